"""Our integers against the package's own decimals: the same cost for any usage of any model, to the nano."""

import math
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue.build import Corrections, build
from gateway.kernel.money import NANOS_PER_USD, cost_nanos, hold_nanos
from gateway.wire.usage import Usage

#: Nothing of it is corrected here, so that both sides say what the package says.
CARDS = {
    provider: {card.id: card for card in each.cards}
    for provider, each in build(providers, Corrections(), at=0.0).items()
}
THRESHOLDS = (32_000, 100_000, 128_000, 199_999, 200_000, 256_000, 272_000, 512_000)


def _whole(rate: object) -> bool:
    """Whether a rate is a whole number of nano-dollars for a million, so that nothing had to be rounded."""
    if isinstance(rate, TieredPrices):
        return all(_whole(each) for each in (rate.base, *(tier.price for tier in rate.tiers)))
    return rate is None or (Fraction(rate) * NANOS_PER_USD).denominator == 1


def _rates(model: ModelInfo) -> list[ModelPrice]:
    standard = [model.prices] if isinstance(model.prices, ModelPrice) else [each.prices for each in model.prices]
    return [*standard, *(variant.prices for variant in model.price_variants or ())]


MODELS = [
    (provider, model)
    for provider in providers
    for model in provider.models
    if not CARDS[provider.id][model.id].left_out
    and all(row.price is not None for row in CARDS[provider.id][model.id].prices)
    and all(_whole(rate) for rates in _rates(model) for rate in rates.__dict__.values())
]

counts = st.one_of(
    st.integers(0, 1000),
    st.integers(0, 2_000_000),
    st.sampled_from(THRESHOLDS).flatmap(lambda tokens: st.integers(tokens - 1, tokens + 1)),
)


@st.composite
def usages(draw) -> Usage:
    """Parts that never exceed their totals, as `Usage` promises."""
    total_in, total_out = draw(counts), draw(counts)
    left = total_in
    parts = {}
    for name in ("input_cached_tokens", "input_cache_write_tokens", "input_cache_write_1h_tokens"):
        parts[name] = draw(st.integers(0, left))
        left -= parts[name]
    parts["input_audio_tokens"] = draw(st.integers(0, left))
    parts["input_image_tokens"] = draw(st.integers(0, left - parts["input_audio_tokens"]))
    parts["output_reasoning_tokens"] = draw(st.integers(0, total_out))
    parts["output_audio_tokens"] = draw(st.integers(0, total_out - parts["output_reasoning_tokens"]))
    return Usage(
        input_tokens=total_in,
        output_tokens=total_out,
        searches=draw(st.integers(0, 5)),
        characters=draw(st.integers(0, 10_000)),
        seconds=float(draw(st.integers(10, 40_000))),  # one model is never charged for less than ten
        service_tier=draw(st.sampled_from([None, "default", "flex", "batch", "priority", "fast"])),
        **parts,
    )


def theirs(usage: Usage) -> TheirUsage:
    return TheirUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.input_cached_tokens,
        cache_write_tokens=usage.input_cache_write_tokens + usage.input_cache_write_1h_tokens,
        cache_write_1h_tokens=usage.input_cache_write_1h_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        input_image_tokens=usage.input_image_tokens,
        cache_audio_read_tokens=0,
        cache_image_read_tokens=0,
        output_reasoning_tokens=usage.output_reasoning_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        output_image_tokens=0,
        web_searches=usage.searches,
        input_characters=usage.characters,
        audio_seconds=int(usage.seconds),
        input_audio_seconds=int(usage.seconds),
    )


def their_cost(provider: Provider, model: ModelInfo, usage: Usage, *, at: datetime) -> Decimal:
    """In dollars. What a service tier is called depends on the provider."""
    for word in ("service_tier", "processing", "speed"):
        context = {} if usage.service_tier is None else {word: usage.service_tier}
        if any(variant.when == context for variant in model.price_variants or ()):
            break
    else:
        context = {}
    return model.calc_price(theirs(usage), provider, genai_request_timestamp=at, price_context=context).total_price


def test_most_models_are_compared():
    assert len(MODELS) > 2000


@given(
    chosen=st.sampled_from(MODELS),
    usage=usages(),
    at=st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_a_cost_is_the_packages_rounded_up_to_a_nano(chosen, usage, at):
    provider, model = chosen
    price = CARDS[provider.id][model.id].price(at.timestamp())
    assert price is not None

    ours = cost_nanos(usage, price)

    expected = their_cost(provider, model, usage, at=at)
    # Their decimals have 28 places, which a division by 3600 can exceed.
    exact = Fraction(expected) * NANOS_PER_USD
    assert ours == math.ceil(exact) or abs(ours - exact) < Fraction(1, 10**6)


@given(chosen=st.sampled_from(MODELS), usage=usages())
def test_a_hold_covers_the_cost(chosen, usage):
    provider, model = chosen
    price = CARDS[provider.id][model.id].prices[-1].price
    assert price is not None

    held = hold_nanos(
        usage.input_tokens,
        usage.output_tokens,
        price,
        seconds=int(usage.seconds),
        characters=usage.characters,
        service_tier=usage.service_tier,
    )

    dearest_search = max(price.search_nanos, *(each.search_nanos for each in price.service_prices.values()), 0)
    assert cost_nanos(usage, price) <= held + usage.searches * dearest_search


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "groq", "mistral", "openrouter"])
def test_every_model_of_the_large_providers_costs_the_same(provider):
    at = datetime(2026, 11, 20, 2, 30, tzinfo=UTC)
    usage = Usage(input_tokens=272_001, output_tokens=777, input_cached_tokens=123, output_reasoning_tokens=77)

    for owner, model in MODELS:
        if owner.id == provider:
            price = CARDS[provider][model.id].price(at.timestamp())
            exact = Fraction(their_cost(owner, model, usage, at=at)) * NANOS_PER_USD
            assert cost_nanos(usage, price) == math.ceil(exact), model.id
