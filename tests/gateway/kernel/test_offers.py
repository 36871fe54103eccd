"""Which offer a model's name finds."""

from gateway.kernel.money import Price
from gateway.kernel.offers import LISTED_MAX, REMEMBERED_MAX, Known, OfferTable
from gateway.settings import Model


def table(providers: dict[str, list[str]], models: dict[str, Model] | None = None, default: str = "") -> OfferTable:
    return OfferTable(providers, models=models or {}, price=price, default=default)


def price(provider: str, model: str, upstream_model: str) -> tuple[Price | None, bool]:
    return Price(input_mtok_nanos=len(upstream_model)), provider == "a"


def providers_of(offers: OfferTable, model: str) -> list[str]:
    return [offer.provider for offer in offers.find(model)]


def test_a_name_beats_a_prefix_beats_a_star() -> None:
    offers = table({"any": ["*"], "family": ["gpt-*"], "exact": ["gpt-5"], "long": ["gpt-5-*"]})

    assert providers_of(offers, "gpt-5") == ["exact"]
    assert providers_of(offers, "gpt-4") == ["family"]
    assert providers_of(offers, "gpt-5-mini") == ["long"]
    assert providers_of(offers, "claude") == ["any"]


def test_equals_keep_the_order_of_the_configuration() -> None:
    offers = table({"second": ["m", "x*"], "first": ["m", "x*"]})

    assert providers_of(offers, "m") == ["second", "first"]
    assert providers_of(offers, "xy") == ["second", "first"]


def test_nobody_offers_it() -> None:
    assert table({"a": ["m"]}).find("other") == ()


def test_an_alias_and_a_provider_s_own_name() -> None:
    models = {"m": Model(aliases=("nick",), upstream={"a": "vendor/m-2026"})}
    offers = table({"a": ["m"], "b": ["m"]}, models)

    assert [(o.model, o.upstream_model) for o in offers.find("nick")] == [("m", "vendor/m-2026"), ("m", "m")]
    assert offers.names() == [("m", "a"), ("nick", "a")]


def test_a_request_without_a_model_goes_to_the_default_provider() -> None:
    assert providers_of(table({"a": ["*"]}, default="a"), "") == ["a"]
    assert table({"a": ["*"]}).find("") == ()


def test_names_callers_make_up_are_forgotten_again() -> None:
    offers = table({"any": ["*"]})

    for number in range(REMEMBERED_MAX + 10):
        assert offers.find(f"made-up-{number}")

    assert len(offers._remembered) <= REMEMBERED_MAX
    assert offers.listed() == []


def test_an_offer_has_the_price_of_the_provider_s_own_model() -> None:
    offers = table({"a": ["m"], "b": ["m"]}, {"m": Model(upstream={"b": "longer"})})

    found = [(offer.price.input_mtok_nanos, offer.free) for offer in offers.find("m") if offer.price]

    assert found == [(1, True), (6, False)]


def test_what_is_known_of_a_model_is_in_its_offers() -> None:
    known = {"a": Known(100, ("tools",)), "b": Known()}
    offers = OfferTable(
        {"a": ["m"], "b": ["m"]},
        models={"m": Model(lacks=("vision",))},
        price=price,
        know=lambda provider, _model, _upstream: known[provider],
    )

    assert [(offer.context_tokens, offer.lacks) for offer in offers.find("m")] == [
        (100, ("vision", "tools")),
        (None, ("vision",)),
    ]


def test_where_nobody_is_asked_the_configuration_says_how_much_fits() -> None:
    models = {"m": Model(context_tokens=5), "*": Model(context_tokens=7)}

    offers = table({"a": ["m", "*"]}, models)

    assert [offers.find(name)[0].context_tokens for name in ("m", "other")] == [5, 7]


def test_callers_are_shown_what_providers_say_they_have_where_a_wildcard_takes_it() -> None:
    has = {"a": ["x-1", "y-1", "m"], "b": ["x-1", "x-2", "unpriced"]}

    def priced(provider: str, model: str, upstream_model: str) -> tuple[Price | None, bool]:
        return (None if model == "unpriced" else Price()), False

    offers = OfferTable(
        {"a": ["m", "x-*"], "b": ["*"]}, models={}, price=priced, listing=lambda provider: has[provider]
    )

    assert offers.names() == [("m", "a")]
    assert offers.callable_names() == [("m", "a"), ("x-1", "a"), ("x-2", "b")]


def test_what_is_shown_of_one_provider_is_bounded() -> None:
    offers = OfferTable(
        {"a": ["*"]}, models={}, price=price, listing=lambda _: [f"m{number}" for number in range(LISTED_MAX * 2)]
    )

    assert len(offers.callable_names()) == LISTED_MAX


def named(has: dict[str, list[str]], models: dict[str, Model] | None = None) -> OfferTable:
    """Providers that take every name, and what they say that they have."""
    return OfferTable(
        {provider: ["*"] for provider in has},
        models=models or {},
        price=price,
        listing=lambda provider: has[provider],
    )


def asked(offers: OfferTable, model: str) -> list[tuple[str, str]]:
    return [(offer.provider, offer.upstream_model) for offer in offers.find(model)]


def test_a_name_behind_its_maker_s_is_the_maker_s_own_name() -> None:
    offers = named({"acme": ["m", "acme/compound"], "silent": [], "any": ["acme/m"]})

    assert asked(offers, "acme/m") == [("acme", "m"), ("silent", "acme/m"), ("any", "acme/m")]
    assert asked(offers, "acme/compound") == [("acme", "acme/compound"), ("silent", "acme/compound")]


def test_a_row_tells_the_name_before_a_list_does() -> None:
    models = {"acme/m": Model(upstream={"acme": "m-2026"})}

    assert asked(named({"acme": ["m"]}, models), "acme/m") == [("acme", "m-2026")]


def test_who_has_no_such_name_is_not_asked_where_another_has_it() -> None:
    offers = named({"acme": ["m"], "silent": [], "any": ["acme/m-1", "m"]})

    assert asked(offers, "acme/m-1") == [("silent", "acme/m-1"), ("any", "acme/m-1")]
    # Nobody says that he has these: lists are not always complete. And makers have other names for what they list.
    assert [provider for provider, _ in asked(offers, "acme/m-2")] == ["acme", "silent", "any"]
    assert [provider for provider, _ in asked(offers, "m")] == ["acme", "silent", "any"]
