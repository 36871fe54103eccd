from datetime import UTC, datetime

import pytest

from gateway.catalogue.card import DatedPrice, ModelCard, Window
from gateway.catalogue.match import Equals
from gateway.kernel.money import Price

CHEAP, DEAR, DEARER = Price(input_mtok_nanos=1), Price(input_mtok_nanos=2), Price(input_mtok_nanos=3)
HOUR = 3600


def when(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def card(*rows: DatedPrice) -> ModelCard:
    return ModelCard(id="m", match=Equals("m"), prices=rows)


def test_a_price_begins_at_midnight_of_its_date():
    rows = card(DatedPrice(CHEAP), DatedPrice(DEAR, since_s=int(when("2026-07-30"))))

    assert rows.price(when("2026-07-29T23:59:59.999")) is CHEAP
    assert rows.price(when("2026-07-30")) is DEAR
    assert rows.next_change(when("2026-07-29T23:00")) == when("2026-07-30")
    assert rows.next_change(when("2026-07-30")) is None


def test_the_first_price_holds_where_none_does():
    rows = card(DatedPrice(CHEAP, since_s=int(when("2026-07-30"))))

    assert rows.price(when("2020-01-01")) is CHEAP


def test_a_card_without_prices_has_none():
    assert card().price(0.0) is None
    assert card().next_change(0.0) is None


def test_a_window_is_open_at_its_end():
    rows = card(DatedPrice(CHEAP), DatedPrice(DEAR, window=Window(1 * HOUR, 4 * HOUR)))

    assert rows.price(when("2026-11-22T00:59:59.999")) is CHEAP
    assert rows.price(when("2026-11-22T01:00")) is DEAR
    assert rows.price(when("2026-11-22T03:59:59.999")) is DEAR
    assert rows.price(when("2026-11-22T04:00")) is CHEAP


def test_a_window_may_pass_midnight():
    rows = card(DatedPrice(CHEAP), DatedPrice(DEAR, window=Window(22 * HOUR, 2 * HOUR)))

    holding = [hour for hour in range(24) if rows.price(when(f"2026-11-22T{hour:02}:30")) is DEAR]

    assert holding == [0, 1, 22, 23]


def test_a_window_holds_on_its_days_of_the_week():
    rows = card(DatedPrice(CHEAP), DatedPrice(DEAR, window=Window(HOUR, 4 * HOUR, days=(1, 2, 3, 4, 5))))

    # From Monday, 16 November 2026.
    holding = [day for day in range(16, 23) if rows.price(when(f"2026-11-{day}T02:00")) is DEAR]

    assert holding == [16, 17, 18, 19, 20]


def test_of_two_prices_that_hold_the_later_row_counts():
    rows = card(DatedPrice(CHEAP), DatedPrice(DEAR, window=Window(0, 12 * HOUR)), DatedPrice(DEARER, since_s=1000))

    assert rows.price(500.0) is DEAR
    assert rows.price(1000.0) is DEARER


@pytest.mark.parametrize("days", [(), (1, 2, 3, 4, 5), (6, 7)])
def test_nothing_changes_before_the_next_change(days):
    rows = card(
        DatedPrice(CHEAP),
        DatedPrice(DEARER, since_s=int(when("2026-11-18"))),
        DatedPrice(DEAR, window=Window(1 * HOUR, 4 * HOUR, days)),
        DatedPrice(DEAR, window=Window(23 * HOUR, 1 * HOUR + 1800, days)),
    )
    at, end, changes = when("2026-11-15T12:34:56"), when("2026-11-29"), 0

    while at < end:
        until = rows.next_change(at)
        steps = [at + (until - at) * step / 50 for step in range(50)]
        assert all(rows.price(step) is rows.price(at) for step in steps)
        assert until > at
        changes += rows.price(until) is not rows.price(at)
        at = until

    assert changes
