"""Who asked for how much today: read once for many, and not again for a while."""

import asyncio
from datetime import UTC, datetime

import pytest

from gateway.control.today import REMEMBERED_S, Today
from tests.control.desk import Desk
from tests.control.usage import add_usage

NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)


class Watch:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> float:
        return NOON.timestamp() + self.passed_s

    def monotonic(self) -> float:
        return self.passed_s


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def today(desk: Desk, watch: Watch) -> Today:
    return Today(desk.parts.database, clock=watch)


async def test_those_who_ask_at_once_are_told_the_same(today: Today):
    told = await asyncio.gather(*(today.standings() for _ in range(5)))

    assert all(each is told[0] for each in told)


async def test_what_was_read_is_told_for_a_while_and_then_read_again(desk: Desk, today: Today, watch: Watch):
    ann = await desk.person()
    first = await today.standings()
    await add_usage(desk.parts.database, ann.account_id, at=NOON)

    watch.passed_s += REMEMBERED_S
    soon = await today.standings()
    watch.passed_s += 0.001
    later = await today.standings()

    assert soon is first
    assert later.at > first.at
    assert later.sums["requests"] == first.sums["requests"] + 1
    assert ann.account_id in [row["id"] for row in later.busiest]


async def test_a_new_day_begins_at_once(desk: Desk, today: Today, watch: Watch):
    ann = await desk.person()
    await add_usage(desk.parts.database, ann.account_id, at=NOON)
    watch.passed_s = 12 * 3600 - 1
    evening = await today.standings()
    watch.passed_s += 1

    midnight = await today.standings()

    assert evening.sums["requests"] > 0
    assert (midnight.sums["requests"], midnight.top, midnight.busiest) == (0, [], [])
