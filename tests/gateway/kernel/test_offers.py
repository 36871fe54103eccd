"""Which offer a model's name finds."""

from gateway.kernel.money import Price
from gateway.kernel.offers import REMEMBERED_MAX, OfferTable
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
