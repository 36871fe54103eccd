"""From the package's data to ours: prices that were checked by hand, and what the package must not slip past us."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices.data import providers
from genai_prices.types import ClauseEquals, ModelInfo, ModelPrice, PriceVariant, Provider

from gateway.catalogue.build import Corrections, build, read_corrections, to_nanos, to_price
from gateway.catalogue.card import ModelCard
from gateway.kernel.money import Price, cost_nanos, hold_nanos
from gateway.wire.usage import Usage

NOW = datetime(2026, 11, 22, 20, tzinfo=UTC).timestamp()


def usd(text: str) -> int | None:
    return None if text == "-" else to_nanos(Decimal(text), per=1, units=1)


def made(*models: ModelInfo) -> dict[str, ModelCard]:
    """The cards of a provider with these models."""
    provider = Provider(id="p", name="P", api_pattern="", models=list(models))
    return {card.id: card for card in build([provider], Corrections(), at=NOW)["p"].cards}


def model(name: str, variants: list[PriceVariant] | None = None, **prices: str) -> ModelInfo:
    rates = ModelPrice(**{key: Decimal(text) for key, text in prices.items()})
    return ModelInfo(id=name, match=ClauseEquals(name), prices=rates, price_variants=variants)


def when(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


# Input, output, cached input and cache write in dollars for a million tokens, as providers publish them.
@pytest.mark.parametrize(
    "published",
    [
        "openai gpt-6.1-sol 2 10 0.10 2.50",
        "openai gpt-6-astra 10 50 1.00 12.50",
        "openai gpt-6-luna 0.10 0.50 0.01 0.125",
        "openai gpt-5.6-luna 0.20 1.20 0.02 0.25",
        "openai gpt-5.4-mini 0.75 4.50 0.075 -",
        "openai gpt-5-nano 0.05 0.40 0.005 -",
        "openai gpt-4o 2.50 10 1.25 -",
        "openai gpt-4o-mini-2024-07-18 0.15 0.60 0.075 -",
        "openai text-embedding-3-small 0.02 0 - -",
        "anthropic claude-fable-5-1 10 50 0.25 12.50",
        "anthropic claude-opus-5-5 4 20 0.20 5.00",
        "anthropic claude-sonnet-5 2 10 0.20 2.50",
        "anthropic claude-haiku-5-5 0.10 0.50 0.01 0.125",
        "anthropic claude-haiku-4-5 1 5 0.10 1.25",
        "google gemini-3.1-pro-preview 2 12 0.20 -",
        "google gemini-2.5-flash 0.30 2.50 0.03 -",
        "x-ai grok-4.7 2 6 0.50 -",
        "x-ai grok-4.3 1.25 2.50 0.20 -",
        "mistral mistral-large-2512 0.50 1.50 0.05 -",
        "groq openai/gpt-oss-20b 0.075 0.30 0.0375 -",
        "cohere command-r7b-12-2024 0.0375 0.15 - -",
        "moonshotai kimi-k2.6 0.95 4 0.16 -",
        "zai glm-5.3 1.40 4.40 0.26 -",
        "aws amazon.nova-pro-v1:0 0.80 3.20 0.20 -",
        "deepseek deepseek-flash 0.15 0.60 0.003 -",
    ],
)
def test_published_prices(catalogue, published):
    provider, name, *expected = published.split()

    price = catalogue.price(provider, name, at=NOW)

    assert price is not None
    got = (
        price.input_mtok_nanos,
        price.output_mtok_nanos,
        price.input_cached_mtok_nanos,
        price.input_cache_write_mtok_nanos,
    )
    assert got == tuple(usd(text) for text in expected)


def test_tokens_above_the_threshold_change_the_price_of_the_whole_request(catalogue):
    price = catalogue.price("openai", "gpt-5.4", at=NOW)

    assert cost_nanos(Usage(input_tokens=272_000, output_tokens=1000), price) == usd("0.695")
    assert cost_nanos(Usage(input_tokens=272_001, output_tokens=1000), price) == usd("1.382505")


def test_cached_tokens_count_for_the_threshold_and_have_a_tier_of_their_own(catalogue):
    price = catalogue.price("anthropic", "claude-haiku-5-5", at=NOW)

    # 0.01 for a million up to 100,000 tokens, 0.05 above.
    assert cost_nanos(Usage(input_tokens=100_000, input_cached_tokens=100_000), price) == usd("0.001")
    assert cost_nanos(Usage(input_tokens=200_000, input_cached_tokens=200_000), price) == usd("0.01")


def test_cache_writes_cost_by_how_long_they_are_kept(catalogue):
    price = catalogue.price("anthropic", "claude-sonnet-4-6", at=NOW)

    assert cost_nanos(Usage(input_tokens=1_000_000, input_cache_write_tokens=1_000_000), price) == usd("3.75")
    assert cost_nanos(Usage(input_tokens=1_000_000, input_cache_write_1h_tokens=1_000_000), price) == usd("6")


def test_a_price_changes_on_its_date(catalogue):
    """Case 107."""
    before, after = (
        catalogue.price("openai", "gpt-5.6-terra", at=when(moment))
        for moment in ("2026-07-29T23:59:59", "2026-07-30")
    )

    assert (before.input_mtok_nanos, before.output_mtok_nanos) == (usd("2.5"), usd("15"))
    assert (after.input_mtok_nanos, after.output_mtok_nanos) == (usd("2"), usd("12"))
    assert catalogue.next_change("openai", "gpt-5.6-terra", at=when("2026-07-29T12:00")) == when("2026-07-30")


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-11-20T00:59:59", "0.66"),  # a Friday
        ("2026-11-20T01:00:00", "1.32"),
        ("2026-11-20T03:59:59", "1.32"),
        ("2026-11-20T04:00:00", "0.66"),
        ("2026-11-20T05:59:59", "0.66"),
        ("2026-11-20T06:00:00", "1.32"),
        ("2026-11-20T10:00:00", "0.66"),
        ("2026-11-21T02:00:00", "0.66"),  # a Saturday
        ("2026-11-22T07:00:00", "0.66"),
        ("2026-11-23T07:00:00", "1.32"),  # a Monday
        ("2026-08-14T02:00:00", "0.435"),  # a Friday before there were peak hours
        ("2026-08-17T02:00:00", "1.32"),
    ],
)
def test_deepseek_is_dearer_in_peak_hours_of_weekdays(catalogue, moment, expected):
    """Case 107."""
    price = catalogue.price("deepseek", "deepseek-v4-pro", at=when(moment))

    assert price.input_mtok_nanos == usd(expected)


def test_service_tiers_have_their_own_prices(catalogue):
    price = catalogue.price("openai", "gpt-5.6-terra", at=NOW)
    call = Usage(input_tokens=1_000_000, output_tokens=1_000_000, searches=1)
    plain = Usage(input_tokens=200_000)

    def cost(service: str | None) -> int:
        return cost_nanos(Usage(input_tokens=200_000, service_tier=service), price)

    assert cost_nanos(plain, price) == usd("0.4")
    assert (cost(None), cost("default"), cost("never heard of")) == (usd("0.4"), usd("0.4"), usd("0.4"))
    assert (cost("flex"), cost("batch"), cost("priority")) == (usd("0.2"), usd("0.2"), usd("0.8"))
    # Above the threshold flex halves the tokens of the dearer tier, and not the search.
    assert cost_nanos(call, price) == usd("22.01")
    assert cost_nanos(Usage(**call_as(call, "flex")), price) == usd("11.01")
    # What is held is by what the caller asks for.
    held = {tier: hold_nanos(200_000, 0, price, service_tier=tier) for tier in (None, "flex", "priority")}
    assert usd("0.8") <= held["priority"] == 2 * held[None] == 4 * held["flex"]


def call_as(usage: Usage, service: str) -> dict[str, object]:
    fields = {name: getattr(usage, name) for name in usage.__struct_fields__}
    return fields | {"service_tier": service}


def test_audio_is_exact_although_an_hour_is_no_whole_nanos_a_second(catalogue):
    price = catalogue.price("groq", "whisper-large-v3-turbo", at=NOW)

    assert cost_nanos(Usage(seconds=3600.0), price) == usd("0.04")
    assert cost_nanos(Usage(seconds=1.0), price) == 11112  # 11111.1 up
    assert hold_nanos(0, 0, price, seconds=90) == usd("0.001")


def test_characters_and_requests(catalogue):
    assert cost_nanos(Usage(characters=1000), catalogue.price("openai", "tts-1", at=NOW)) == usd("0.015")
    sonar = catalogue.price("perplexity", "sonar", at=NOW)
    assert cost_nanos(Usage(input_tokens=1000, output_tokens=0), sonar) == usd("0.013")


def test_what_cannot_be_counted_has_no_price_rather_than_half_of_one(catalogue):
    assert catalogue.price("mistral", "mistral-ocr-latest", at=NOW) is None
    assert to_price({"input_mtok": Decimal(1), "input_document_kpages": Decimal(1)})[0] is None
    assert to_price({"web_searches_kcount": Decimal(10)})[0] is None
    assert to_price({"input_mtok": Decimal(1), "a_new_word": Decimal(1)})[0] is None
    assert to_price({}) == (None, set())


def test_tokens_that_are_not_counted_apart_are_named():
    price, left_out = to_price({"input_mtok": Decimal(1), "input_video_mtok": Decimal(2)})

    assert price == Price(input_mtok_nanos=1_000_000_000)
    assert left_out == {"input_video_mtok"}


def test_free_is_not_the_same_as_unknown(catalogue):
    assert catalogue.price("openai", "omni-moderation-latest", at=NOW) == Price()
    assert catalogue.price("openrouter", "openai/gpt-oss-20b:free", at=NOW) == Price()
    assert made(model("m"))["m"].price(NOW) is None


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0.14", 140_000_000),
        ("0.13999999999999999", 140_000_000),
        ("0.18000000000000002", 180_000_000),
        ("0.0833333333333333", 83_333_333),
        ("0.0000000015", 2),
        ("0.0000000014", 1),
        ("600", 600_000_000_000),
    ],
)
def test_decimals_are_exact_and_the_noise_of_floats_is_rounded_away(text, nanos):
    assert to_nanos(Decimal(text), per=1_000_000, units=1_000_000) == nanos


def test_units_other_than_a_million():
    assert to_nanos(Decimal(10), per=1000, units=1) == usd("0.01")
    assert to_nanos(Decimal("0.36"), per=3600, units=3600) == usd("0.36")


def test_a_price_for_one_token_where_one_for_a_million_is_meant_is_refused():
    cards = made(
        model("a", input_mtok="1", output_mtok="4"),
        model("b", input_mtok="2", output_mtok="8"),
        model("per-token", input_mtok="0.000002", output_mtok="0.000008"),
        model("per-billion", input_mtok="2000000", output_mtok="8000000"),
    )

    assert {name for name, card in cards.items() if card.refused} == {"per-token", "per-billion"}


def test_the_installed_package_has_no_price_that_is_refused(snapshot):
    refused = [card.id for each in snapshot.providers for card in snapshot.cards(each).cards if card.refused]

    assert refused == []


def test_of_two_variants_the_first_that_sets_a_part_counts():
    variants = [
        PriceVariant(when={"service_tier": "flex"}, prices=ModelPrice(input_mtok=Decimal(1))),
        PriceVariant(when={"service_tier": "flex"}, prices=ModelPrice(input_mtok=Decimal(9), output_mtok=Decimal(2))),
        PriceVariant(when={"route": "elsewhere"}, prices=ModelPrice(input_mtok=Decimal(7))),
    ]

    price = made(model("m", variants, input_mtok="3", output_mtok="4"))["m"].price(NOW)

    assert price.service_prices == {"flex": Price(input_mtok_nanos=usd("1"), output_mtok_nanos=usd("2"))}


def test_every_correction_is_about_a_model_of_the_package():
    ids = {provider.id: {each.id for each in provider.models} for provider in providers}
    corrections = read_corrections()

    for row in (*corrections.window, *corrections.free, *corrections.output):
        assert set(row.models) <= ids[row.provider]


def test_corrections_are_applied(catalogue):
    assert catalogue.card("openai", "gpt-4o").output_tokens_max == 16_384
    assert catalogue.card("openai", "gpt-4o").context_tokens == 128_000
    assert catalogue.card("deepseek", "deepseek-flash").prices[-1].window.days == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("name", ["claude-sonnet-4-5", "claude-sonnet-4-5@20250929", "claude-opus-4-6"])
def test_anthropic_s_models_at_google_are_vertex_ai_s_alone(catalogue, name):
    assert catalogue.price("google", name, at=NOW) is None
    assert catalogue.price("vertex-anthropic", name, at=NOW) is not None
    assert catalogue.price("vertex-anthropic", "gemini-2.5-flash", at=NOW) is None


def test_what_is_set_apart_is_still_there():
    """A row that sets nothing apart any more is to be taken out."""
    corrections = read_corrections()

    for row in corrections.apart:
        ids = {model.id for provider in providers if provider.id == row.provider for model in provider.models}
        assert any(model.startswith(row.prefix) for model in ids), row
        assert row.named not in {provider.id for provider in providers}
