from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue.rows import PRICE_KEYS, REMEMBERED_MAX, Pricer, Sizes, catalogue_id, price_of
from gateway.errors import ConfigError
from gateway.kernel.money import Price, cost_nanos
from gateway.settings import Model, Provider, Settings
from gateway.wire.usage import Usage

NOW = datetime(2026, 11, 22, 20, tzinfo=UTC).timestamp()
USD = 1_000_000_000
PROVIDERS = {
    "openai": Provider(adapter="openai", base_url="https://api.openai.com/v1"),
    "deepseek": Provider(adapter="compatible", base_url="https://api.deepseek.com/v1"),
    "local": Provider(adapter="openai", base_url="http://127.0.0.1:9001/v1"),
    "echo": Provider(adapter="echo"),
}


@pytest.fixture
def pricer(catalogue):
    def make(models: dict[str, Model] | None = None, **providers: Provider) -> Pricer:
        return Pricer(Settings(providers=PROVIDERS | providers, models=models or {}), catalogue)

    return make


def asked(pricer: Pricer, provider: str, model: str, *, at: float = NOW) -> tuple[int, int] | bool:
    """Input and output nanos, or whether it is free."""
    price, free = pricer.price(provider, model, model, at)
    return free if price is None or free else (price.input_mtok_nanos, price.output_mtok_nanos)


# -- which price --------------------------------------------------------------------------------------------


def test_the_catalogue_prices_what_no_row_does(pricer):
    assert asked(pricer(), "openai", "gpt-4o") == (2.5 * USD, 10 * USD)


def test_a_models_own_row_wins_over_the_catalogue_as_a_whole(pricer):
    own = pricer({"gpt-4o": Model(input_usd_per_mtok=1.0)})

    price, _ = own.price("openai", "gpt-4o", "gpt-4o", NOW)

    assert price == Price(input_mtok_nanos=1 * USD)


def test_the_row_for_any_model_comes_last(pricer):
    rows = pricer({"*": Model(input_usd_per_mtok=7.0, output_usd_per_mtok=7.0), "named": Model(aliases=("n",))})

    assert asked(rows, "openai", "gpt-4o") == (2.5 * USD, 10 * USD)
    assert asked(rows, "openai", "unheard-of") == (7 * USD, 7 * USD)
    assert asked(rows, "local", "named") == (7 * USD, 7 * USD)


def test_without_a_price_a_model_is_neither_priced_nor_free(pricer):
    assert pricer().price("local", "gpt-4o", "gpt-4o", NOW) == (None, False)


def test_free_wins_in_a_models_own_row(pricer):
    rows = pricer({"gpt-4o": Model(free=True, input_usd_per_mtok=1.0)})

    assert rows.price("openai", "gpt-4o", "gpt-4o", NOW) == (None, True)


def test_free_for_any_model_is_for_those_nobody_knows_a_price_of(pricer):
    rows = pricer({"*": Model(free=True, input_usd_per_mtok=7.0)})

    assert asked(rows, "openai", "gpt-4o") == (2.5 * USD, 10 * USD)
    assert asked(rows, "local", "gpt-4o") is True


def test_echo_is_free_unless_its_row_says_otherwise(pricer):
    assert asked(pricer({"*": Model(input_usd_per_mtok=7.0)}), "echo", "echo") is True
    assert asked(pricer({"echo": Model(input_usd_per_mtok=1.0)}), "echo", "echo") == (1 * USD, 0)


def test_the_catalogue_is_asked_for_the_name_the_provider_uses(pricer):
    price, _ = pricer().price("openai", "small", "gpt-4o-mini", NOW)

    assert price is not None
    assert price.input_mtok_nanos == 150_000_000


def test_what_a_provider_charged_beats_the_catalogue_but_no_row_of_the_model(pricer):
    rows = pricer({"gpt-4o": Model(input_usd_per_mtok=1.0), "*": Model(input_usd_per_mtok=2.0)})

    prices = {model: rows.price("openai", model, model, NOW)[0] for model in ("gpt-4o", "gpt-4o-mini", "unheard-of")}

    assert {model: price.provider_cost for model, price in prices.items()} == {
        "gpt-4o": False,
        "gpt-4o-mini": True,
        "unheard-of": True,
    }


@pytest.mark.parametrize(
    ("name", "provider", "expected"),
    [
        ("openai", Provider(adapter="openai", base_url="http://localhost/v1"), "openai"),
        ("gemini", Provider(adapter="compatible"), "google"),
        ("xai", Provider(adapter="compatible"), "x-ai"),
        ("mine", Provider(adapter="compatible", base_url="http://a/v1", extra={"row": "moonshot"}), "moonshotai"),
        ("mine", Provider(adapter="openai"), "openai"),
        ("mine", Provider(adapter="openai", base_url="http://localhost/v1"), ""),
        ("mine", Provider(adapter="openai", base_url="http://localhost/v1", catalogue="groq"), "groq"),
        ("openai", Provider(adapter="openai", catalogue=""), ""),
    ],
)
def test_which_provider_of_the_catalogue_a_configured_one_is(catalogue, name, provider, expected):
    assert catalogue_id(name, provider, catalogue) == expected


def test_every_provider_we_know_under_another_name_is_in_the_catalogue(catalogue):
    for name in ("bedrock", "gemini", "moonshot", "vertex", "xai", "azure", "anthropic", "google", "openrouter"):
        assert catalogue.cards(catalogue_id(name, Provider(adapter="x", base_url="http://a/v1"), catalogue)), name


def test_a_provider_the_catalogue_lacks_is_a_mistake(pricer):
    with pytest.raises(ConfigError, match=r'providers\.mine\.catalogue: the catalogue has no provider "open-ai"'):
        pricer(mine=Provider(adapter="openai", catalogue="open-ai"))


# -- markups ------------------------------------------------------------------------------------------------


def test_the_markup_of_the_model_wins_over_that_of_the_provider(pricer):
    marked = Provider(adapter="openai", base_url="https://api.openai.com/v1", markup=1.15)
    rows = pricer({"gpt-4o": Model(markup=1.5), "*": Model(markup=2.0)}, openai=marked)

    permille = {
        (provider, model): rows.price(provider, model, model, NOW)[0].markup_permille
        for provider, model in (("openai", "gpt-4o"), ("openai", "gpt-4o-mini"), ("deepseek", "deepseek-v3.2"))
    }

    assert list(permille.values()) == [1500, 1150, 2000]
    assert cost_nanos(
        Usage(input_tokens=1_000_000), rows.price("openai", "gpt-4o-mini", "gpt-4o-mini", NOW)[0]
    ) == int(Decimal("0.1725") * USD)


def test_a_markup_finer_than_can_be_kept_is_a_mistake(pricer):
    with pytest.raises(ConfigError, match=r'models\."gpt-4\.1"\.markup: at most three decimals'):
        pricer({"gpt-4.1": Model(markup=1.0005)})


# -- rows ---------------------------------------------------------------------------------------------------


@given(st.decimals(min_value=0, max_value=9000, places=9))
def test_what_is_written_is_what_is_charged(text):
    exact = text * USD

    price = price_of(Model(input_usd_per_mtok=float(text)))

    # A float holds 15 digits whatever they are; more than that nobody writes by hand.
    if len(text.normalize().as_tuple().digits) <= 15:
        assert price == Price(input_mtok_nanos=int(exact))


@pytest.mark.parametrize(("key", "field"), PRICE_KEYS.items())
def test_every_key_is_its_own_part_of_the_price(key, field):
    plain = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0} | {key: 0.000_015}

    price = price_of(Model(**plain))

    assert price is not None
    assert getattr(price, field) == 15_000
    assert sum(getattr(price, each) == 15_000 for each in PRICE_KEYS.values()) == 1


def test_a_row_that_says_nothing_about_prices_has_none():
    assert price_of(Model(aliases=("a",), context_tokens=1, markup=2.0)) is None


def test_zero_is_a_price():
    assert price_of(Model(input_usd_per_mtok=0.0)) == Price()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Model(input_cached_usd_per_mtok=0.1), "needs `input_usd_per_mtok` beside it"),
        (Model(search_usd=0.1, output_usd_per_mtok=1.0), "needs `input_usd_per_mtok` beside it"),
        (Model(output_reasoning_usd_per_mtok=0.1, input_usd_per_mtok=1.0), "needs `output_usd_per_mtok` beside it"),
        (Model(second_usd=1e-10), "finer than a nano-dollar"),
        (Model(input_usd_per_mtok=1e9), "larger than any amount"),
    ],
)
def test_a_row_that_cannot_be_meant_is_a_mistake(row, message):
    with pytest.raises(ConfigError, match=message) as raised:
        price_of(row, key="models.m")

    assert raised.value.param.startswith("models.m.")


def test_a_price_for_one_token_is_refused_and_reported(pricer):
    rows = pricer({"gpt-4o": Model(input_usd_per_mtok=0.0000025, output_usd_per_mtok=0.00001)})

    assert rows.price("openai", "gpt-4o", "gpt-4o", NOW) == (None, False)
    # No catalogue knows what the local one asks.
    assert asked(rows, "local", "gpt-4o") == (2500, 10_000)
    ((key, why),) = rows.objections(NOW).items()
    assert key == "models.gpt-4o"
    assert "1,000,000 times below the usual 2.50, which is what openai asks" in why


# -- time ---------------------------------------------------------------------------------------------------


def test_a_price_is_asked_for_again_when_it_changes(pricer):
    rows = pricer()
    monday = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
    hours = [asked(rows, "deepseek", "deepseek-v4-pro", at=monday + hour * 3600) for hour in range(12)]
    back = asked(rows, "deepseek", "deepseek-v4-pro", at=monday)

    dear = [hour for hour, price in enumerate(hours) if price == (1.32 * USD, 3.96 * USD)]

    assert dear == [1, 2, 3, 6, 7, 8, 9]
    assert back == (0.66 * USD, 1.98 * USD)


def test_no_price_changes_before_the_next_change(pricer):
    rows = pricer()
    at = datetime(2026, 11, 23, 4, 0, 1, tzinfo=UTC).timestamp()

    assert rows.next_change(at) == datetime(2026, 11, 23, 6, tzinfo=UTC).timestamp()


def test_there_may_be_nothing_that_ever_changes(catalogue):
    assert Pricer(Settings(providers={"local": PROVIDERS["local"]}), catalogue).next_change(NOW) is None


# -- the rest -----------------------------------------------------------------------------------------------


def test_sizes_come_from_the_row_then_the_catalogue_then_the_row_for_any_model(pricer):
    rows = pricer({"gpt-4o": Model(context_tokens=1000), "*": Model(context_tokens=5, max_output_tokens=6)})

    assert rows.sizes("openai", "gpt-4o", "gpt-4o") == Sizes(1000, 16_384)
    assert rows.sizes("openai", "gpt-4o-mini", "gpt-4o-mini") == Sizes(128_000, 16_384)
    assert rows.sizes("local", "gpt-4o-mini", "gpt-4o-mini") == Sizes(5, 6)
    assert pricer().sizes("local", "m", "m") == Sizes(None, None)


def test_where_nobody_knows_a_price_a_provider_may_say_what_it_charged(pricer):
    rows = pricer({"*": Model(free=True), "gift": Model(free=True)})

    price, free = rows.price("local", "m", "m", NOW)
    assert free
    assert price == Price(provider_cost=True)
    assert rows.price("local", "gift", "gift", NOW) == (None, True)


def test_what_is_remembered_is_bounded(pricer):
    rows = pricer({"*": Model(free=True)})

    for number in range(REMEMBERED_MAX + 10):
        assert asked(rows, "local", f"m{number}") is True

    assert len(rows._remembered) <= REMEMBERED_MAX
