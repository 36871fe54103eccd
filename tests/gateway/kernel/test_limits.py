"""Limits are combined, halved and packed; calendar windows are the calendar's."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel.limits import (
    BUDGETS_MAX,
    LIMIT_MAX,
    Budget,
    Limits,
    combine_limits,
    halve,
    pack_limits,
    tighten,
    window_end_us,
    window_ids,
)
from gateway.kernel.twin import parse_limits

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _naive(year: int) -> datetime:
    """As hypothesis wants its bounds."""
    return EPOCH.replace(year=year, tzinfo=None)


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def test_half_of_one_is_still_one_and_half_of_nothing_nothing() -> None:
    limits = Limits(requests_per_minute=1, requests_per_hour=0, tokens_per_day=5, concurrency=10)

    assert halve(limits) == Limits(requests_per_minute=1, requests_per_hour=0, tokens_per_day=2, concurrency=5)


def test_budgets_are_not_halved() -> None:
    limits = Limits(budgets=(Budget("day", 100),))

    assert halve(limits) == limits


def test_the_tighter_of_two_limits_holds_and_all_budgets_do() -> None:
    one = Limits(requests_per_minute=5, tokens_per_day=10, budgets=(Budget("day", 1),))
    other = Limits(requests_per_minute=7, concurrency=3, budgets=(Budget("day", 1), Budget("week", 2, hard=False)))

    assert tighten(one, other) == Limits(
        requests_per_minute=5,
        tokens_per_day=10,
        concurrency=3,
        budgets=(Budget("day", 1), Budget("week", 2, hard=False)),
    )


def test_a_key_that_is_not_live_has_half_the_plan_and_the_account_all_of_it() -> None:
    plan = Limits(requests_per_minute=10, budgets=(Budget("day", 100),))

    _, (account, key, model) = parse_limits(combine_limits(plan=plan, key=Limits(requests_per_minute=8), live=False))

    assert account.buckets == ((1, 10, 10),)
    assert key.buckets == ((1, 5, 5),)
    assert (key.budgets, model.buckets) == ((), ())


def test_a_live_key_has_its_own_limits_only() -> None:
    _, (_, key, _) = parse_limits(combine_limits(plan=Limits(requests_per_minute=10), live=True))

    assert key.buckets == ()


def test_burst_narrows_the_bucket_of_the_minute_but_not_its_rate() -> None:
    _, (account, key, _) = parse_limits(
        pack_limits(account=Limits(requests_per_minute=300, burst=50), key=Limits(requests_per_minute=250, burst=500))
    )

    assert account.buckets == ((1, 300, 50),)
    assert key.buckets == ((1, 250, 250),)


def test_burst_alone_is_a_limit_per_minute() -> None:
    _, (account, _, _) = parse_limits(pack_limits(account=Limits(burst=7)))

    assert account.buckets == ((1, 7, 7),)


def test_the_packed_form_is_what_the_scripts_expect() -> None:
    packed = pack_limits(
        account=Limits(requests_per_minute=5, tokens_per_day=9, concurrency=2),
        key=Limits(budgets=(Budget("month", 7, hard=False), Budget("day", 3))),
        overdraft_nanos=11,
    )

    assert msgspec.msgpack.decode(packed) == [11, 2, 2, 1, 5, 5, 7, 9, 9, 0, -1, 0, 2, 1, 3, 1, 3, 7, 0, -1, 0, 0]


@pytest.mark.parametrize(
    "limits",
    [
        Limits(requests_per_minute=-1),
        Limits(tokens_per_month=LIMIT_MAX + 1),
        Limits(budgets=(Budget("day", -1),)),
        Limits(budgets=(Budget("day", 2**53),)),
        Limits(budgets=tuple(Budget("day", n) for n in range(BUDGETS_MAX + 1))),
    ],
)
def test_limits_out_of_bounds_are_refused(limits: Limits) -> None:
    with pytest.raises(ValueError, match=r"out of bounds|at most"):
        pack_limits(account=limits)


def test_an_overdraft_out_of_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        pack_limits(overdraft_nanos=-1)


@given(moment=st.datetimes(_naive(1970), _naive(2400)).map(lambda at: at.replace(tzinfo=UTC)))
def test_windows_are_those_of_the_calendar(moment: datetime) -> None:
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    monday = midnight - timedelta(days=moment.isoweekday() - 1)
    first = midnight.replace(day=1)
    next_first = (first + timedelta(days=32)).replace(day=1)

    day, week, month, total = window_ids(us(moment))

    assert (window_end_us(1, day - 1), window_end_us(1, day)) == (us(midnight), us(midnight + timedelta(days=1)))
    assert (window_end_us(2, week - 1), window_end_us(2, week)) == (us(monday), us(monday + timedelta(days=7)))
    assert (window_end_us(3, month - 1), window_end_us(3, month)) == (us(first), us(next_first))
    assert (total, window_end_us(4, total)) == (0, -1)
