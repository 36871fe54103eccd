"""Costs by example, and amounts as text."""

import pytest

from gateway.kernel.money import (
    MAX_NANOS,
    Price,
    Tier,
    charged_units,
    cost_nanos,
    format_usd,
    hold_nanos,
    parse_usd,
    rates_of,
)
from gateway.wire.usage import Usage

USD = 1_000_000_000


def test_a_single_cheap_token_is_charged_a_nano() -> None:
    price = Price(input_mtok_nanos=1)

    assert cost_nanos(Usage(input_tokens=1), price) == 1


def test_cached_tokens_are_charged_once_at_their_own_price() -> None:
    price = Price(input_mtok_nanos=2 * USD, input_cached_mtok_nanos=USD // 2)

    assert cost_nanos(Usage(input_tokens=1000, input_cached_tokens=400), price) == 600 * 2000 + 400 * 500


def test_a_part_without_a_price_costs_the_plain_price() -> None:
    price = Price(output_mtok_nanos=8 * USD)

    assert cost_nanos(Usage(output_tokens=100, output_reasoning_tokens=90), price) == 100 * 8000


def test_a_free_part_is_free() -> None:
    price = Price(input_mtok_nanos=2 * USD, input_cached_mtok_nanos=0)

    assert cost_nanos(Usage(input_tokens=10, input_cached_tokens=10), price) == 0


def test_the_long_cache_write_falls_back_to_the_short_one() -> None:
    price = Price(input_mtok_nanos=USD, input_cache_write_mtok_nanos=2 * USD)

    assert cost_nanos(Usage(input_tokens=10, input_cache_write_1h_tokens=10), price) == 10 * 2000


@pytest.mark.parametrize(("tokens", "rate"), [(272_000, 1000), (272_001, 2000)])
def test_a_tier_holds_for_the_whole_request_and_begins_above_its_threshold(tokens: int, rate: int) -> None:
    price = Price(input_mtok_nanos=USD, tiers=(Tier(272_000, Price(input_mtok_nanos=2 * USD)),))

    assert cost_nanos(Usage(input_tokens=tokens), price) == tokens * rate


def test_parts_larger_than_their_total_leave_no_negative_rest() -> None:
    price = Price(input_mtok_nanos=10 * USD, input_cached_mtok_nanos=USD)

    assert cost_nanos(Usage(input_tokens=5, input_cached_tokens=10), price) == 10 * 1000


@pytest.mark.parametrize(
    ("tier", "nanos"), [("flex", 500_000), ("default", 1_000_000), (None, 1_000_000), ("priority", 2_000_000)]
)
def test_the_service_tier_that_served_decides(tier: str | None, nanos: int) -> None:
    price = Price(input_mtok_nanos=USD, service_permille={"flex": 500, "priority": 2000})

    assert cost_nanos(Usage(input_tokens=1000, service_tier=tier), price) == nanos


def test_the_providers_own_figure_counts_only_where_it_is_trusted() -> None:
    usage = Usage(input_tokens=1000, provider_cost_nanos=777)

    assert cost_nanos(usage, Price(input_mtok_nanos=USD)) == 1_000_000
    assert cost_nanos(usage, Price(input_mtok_nanos=USD, provider_cost=True, markup_permille=1100)) == 855


def test_markup_rounds_once_with_everything_else() -> None:
    price = Price(input_mtok_nanos=333_333, markup_permille=1001)

    assert cost_nanos(Usage(input_tokens=3), price) == 2  # 1.000998..., rounded up


def test_half_a_second_is_half_the_price() -> None:
    assert cost_nanos(Usage(seconds=0.5), Price(second_nanos=100_001)) == 50_001


def test_a_hold_is_for_the_dearest_kind_and_tier_within_reach() -> None:
    price = Price(
        input_mtok_nanos=2 * USD,
        input_cache_write_mtok_nanos=3 * USD,
        output_mtok_nanos=8 * USD,
        tiers=(Tier(1000, Price(input_mtok_nanos=USD, output_mtok_nanos=20 * USD)),),
    )

    assert hold_nanos(1000, 10, price) == 1000 * 3000 + 10 * 8000
    assert hold_nanos(1001, 1000, price) == 1001 * 1000 + 1000 * 20_000


@pytest.mark.parametrize(
    ("tier", "each"), [(None, 1000), ("default", 1000), ("flex", 500), ("priority", 2000), ("fast", 3000)]
)
def test_a_hold_is_for_the_service_tier_that_is_asked_for(tier: str | None, each: int) -> None:
    price = Price(
        input_mtok_nanos=USD,
        tiers=(Tier(1000, Price(input_mtok_nanos=2 * USD)),),
        service_permille={"flex": 500, "priority": 2000},
        service_prices={"fast": Price(input_mtok_nanos=3 * USD)},
    )

    assert hold_nanos(1000, 0, price, service_tier=tier) == 1000 * each
    # Prices of a tier that are listed apart have lengths of their own.
    assert hold_nanos(1001, 0, price, service_tier=tier) == 1001 * each * (1 if tier == "fast" else 2)


def test_the_rates_of_a_request_are_those_of_its_length_and_tier() -> None:
    long = Price(input_mtok_nanos=2 * USD)
    price = Price(input_mtok_nanos=USD, tiers=(Tier(9, long),), service_permille={"flex": 500}, markup_permille=1200)

    assert rates_of(price, input_tokens=9, service_tier="flex") == (price, 600_000)
    assert rates_of(price, input_tokens=10, service_tier=None) == (long, 1_200_000)


def test_a_hold_ends_where_the_ledger_can_count_no_further() -> None:
    price = Price(input_mtok_nanos=1, output_mtok_nanos=10**9, markup_permille=1150)

    assert hold_nanos(1, 10**400, price) == MAX_NANOS
    assert hold_nanos(1, 10**10, price) == 11_500_000_000_001


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("12.34", 12_340_000_000),
        ("-0.000000001", -1),
        ("1.5e-07", 150),
        ("0", 0),
        ("+1.", USD),
        ("9007199.254740991", MAX_NANOS),
    ],
)
def test_dollars_are_read_exactly(text: str, nanos: int) -> None:
    assert parse_usd(text) == nanos


@pytest.mark.parametrize(
    "text",
    ["", "1,5", "0.0000000001", "9007199.254740992", "1e20", "nan", "inf", "1_000", " 1", "٣", "0x10", "1" * 5000],
)
def test_what_is_no_exact_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the contract
        parse_usd(text)


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(12_340_000_000, "12.34"), (0, "0.00"), (-1, "-0.000000001"), (5 * USD, "5.00"), (100_000, "0.0001")],
)
def test_dollars_are_written_exactly(nanos: int, text: str) -> None:
    assert format_usd(nanos) == text


PICTURES = Price(image_nanos=4, image_prices={"hd": 8, "1024x1792": 7, "hd 1024x1792": 12})


@pytest.mark.parametrize(
    ("kind", "each", "held"),
    [
        ("hd 1024x1792", 12, 12),
        ("standard 1024x1792", 7, 7),
        ("hd 1024x1024", 8, 8),
        ("standard 1024x1024", 4, 4),
        # What the provider may choose is held for at its dearest.
        ("hd", 8, 12),
        ("1024x1792", 7, 12),
        ("", 4, 12),
    ],
)
def test_a_picture_costs_what_its_kind_costs(kind: str, each: int, held: int) -> None:
    assert cost_nanos(Usage(images=3, image_kind=kind), PICTURES) == 3 * each
    assert hold_nanos(0, 0, PICTURES, images=3, image_kind=kind) == 3 * held


def test_searches_that_are_known_are_held_for() -> None:
    assert hold_nanos(0, 0, Price(search_nanos=5), searches=3) == 15
    assert hold_nanos(0, 0, Price(search_nanos=5)) == 0


def test_the_units_of_a_price_are_those_it_charges_for() -> None:
    assert charged_units(Price(input_mtok_nanos=1)) == frozenset()
    assert charged_units(Price(hour_nanos=1, search_nanos=1)) == {"seconds", "searches"}
    assert charged_units(Price(character_nanos=1, image_prices={"hd": 1})) == {"characters", "images"}
    assert charged_units(Price(service_prices={"flex": Price(second_nanos=1)})) == {"seconds"}
