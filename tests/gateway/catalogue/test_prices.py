import pytest

from gateway.catalogue.card import DatedPrice, ModelCard, ProviderCards
from gateway.catalogue.match import NAME_LENGTH_MAX, Equals, StartsWith
from gateway.catalogue.prices import REMEMBERED_MAX, Catalogue
from gateway.catalogue.snapshot import Snapshot
from gateway.kernel.money import Price

NOW = 1_795_377_600.0


def card(name: str, nanos: int = 1, **fields: object) -> ModelCard:
    fields = {"match": Equals(name.lower())} | fields
    return ModelCard(id=name, prices=(DatedPrice(Price(input_mtok_nanos=nanos)),), **fields)


def catalogue_of(**providers: ProviderCards | list[ModelCard]) -> Catalogue:
    cards = {
        name: each if isinstance(each, ProviderCards) else ProviderCards(cards=tuple(each))
        for name, each in providers.items()
    }
    return Catalogue(Snapshot.of(cards, edition="test"))


@pytest.mark.parametrize(
    ("provider", "name", "expected"),
    [
        ("openai", "gpt-4o", "gpt-4o"),
        ("openai", "GPT-4o", "gpt-4o"),
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "gpt-5-20250807", "gpt-5"),
        ("openai", "openai/gpt-5", "gpt-5"),
        ("openai", "gpt-6-sol-2026-10-01", "gpt-6-sol"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("anthropic", "claude-opus-5@20261001", "claude-opus-5"),
        ("google", "models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("vertex-anthropic", "claude-haiku-4-5", "claude-haiku-4-5"),
        ("azure", "gpt-4o", "gpt-4o"),
        ("fireworks", "accounts/fireworks/models/deepseek-v4-pro", "deepseek-v4-pro"),
        ("fireworks", "deepseek-v4-pro", "deepseek-v4-pro"),
        ("groq", "openai/gpt-oss-120b", "openai/gpt-oss-120b"),
        ("openai", "no-such-model", None),
        ("nobody", "gpt-4o", None),
        ("", "", None),
    ],
)
def test_names_that_providers_and_callers_use(catalogue, provider, name, expected):
    found = catalogue.card(provider, name)

    assert (None if found is None else found.id) == expected


def test_another_spelling_is_only_tried_where_the_name_itself_means_nothing():
    catalogue = catalogue_of(p=[card("m", 1), card("m-latest", 2), card("m-20250101", 3), card("d-2025-01-01", 4)])

    assert catalogue.price("p", "m-latest", at=NOW).input_mtok_nanos == 2
    assert catalogue.price("p", "m-20250101", at=NOW).input_mtok_nanos == 3
    assert catalogue.price("p", "m-20250102", at=NOW).input_mtok_nanos == 1
    assert catalogue.price("p", "d-20250101", at=NOW).input_mtok_nanos == 4
    assert catalogue.price("p", "p/m-latest", at=NOW).input_mtok_nanos == 2
    assert catalogue.price("p", "m-20251399", at=NOW).input_mtok_nanos == 1


def test_a_refused_price_is_no_price():
    catalogue = catalogue_of(p=[card("m", refused="a thousand times too much")])

    assert catalogue.price("p", "m", at=NOW) is None
    assert catalogue.card("p", "m").refused


def test_a_reseller_has_its_own_models_first_and_not_the_service_tiers_of_the_maker():
    price = Price(input_mtok_nanos=5, service_prices={"flex": Price(input_mtok_nanos=2)})
    theirs = ModelCard(id="m", match=Equals("m"), prices=(DatedPrice(price),))
    catalogue = catalogue_of(
        maker=[theirs, card("both", 1)], seller=ProviderCards(cards=(card("both", 2),), resells=("nobody", "maker"))
    )

    assert catalogue.price("seller", "m", at=NOW) == Price(input_mtok_nanos=5)
    assert catalogue.price("maker", "m", at=NOW) == price
    assert catalogue.price("seller", "both", at=NOW).input_mtok_nanos == 2


def test_only_providers_that_are_asked_for_are_decoded():
    catalogue = Catalogue(Snapshot(edition="", providers={"broken": b"\xc1", "p": b"\x81\xa5cards\x90"}))

    assert catalogue.knows("broken")
    assert catalogue.card("p", "m") is None


def test_what_is_remembered_of_callers_names_is_bounded():
    catalogue = catalogue_of(p=[card("m", match=StartsWith("m"))])

    for number in range(REMEMBERED_MAX * 2 + 10):
        assert catalogue.card("p", f"m{number}") is not None
        assert catalogue.card("p", f"unknown{number}") is None
    assert catalogue.card("p", "m" * (NAME_LENGTH_MAX + 1)) is None

    assert len(catalogue._remembered) <= REMEMBERED_MAX
    assert all(len(name) <= NAME_LENGTH_MAX for _, name in catalogue._remembered)


def test_the_same_card_is_found_again(catalogue):
    assert catalogue.card("openai", "gpt-4o") is catalogue.card("openai", "gpt-4o")
