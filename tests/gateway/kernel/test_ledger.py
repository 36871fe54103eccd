"""The ledger on real servers: one alone, and a cluster of three, where a verb that touched two slots would be refused.

The clock is turned by hand where time matters, else it is Redis' own.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context

import msgspec
import pytest

from gateway.infra.redis import CommandRefused, Redis
from gateway.kernel.ledger import RENEWALS_MAX, Ledger
from gateway.kernel.limits import BUCKET_NAMES, DAY_US, MINUTE_US, NO_LIMITS, Budget, Limits, pack_limits
from gateway.kernel.money import MAX_NANOS
from gateway.kernel.record import decode_record
from gateway.kernel.verbs import (
    Admitted,
    Balance,
    Busy,
    CreditDeferred,
    Credited,
    CreditGap,
    Ended,
    Expired,
    Limited,
    Loaded,
    NoCredit,
    Notice,
    NotLoaded,
    OverBudget,
    Rates,
    Renewal,
    Scopes,
    Settled,
    Snapshot,
    Spent,
    Stale,
    UsedUp,
    Voided,
)
from tests.ledgers import START_US, TurnClock, make_record, race
from tests.valkey_cluster import ValkeyCluster

NO_RATES = Rates(-1, -1, 0, -1, -1, 0)
SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    servers = ValkeyCluster(tmp_path_factory.mktemp("cluster"), 3)
    try:
        yield servers.start()
    finally:
        servers.stop()


@pytest.fixture(params=["server", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "server":
        return str(request.getfixturevalue("redis_url"))
    servers = request.getfixturevalue("cluster")
    for server in servers.servers:
        server.ask("FLUSHALL")
    return str(servers.url)


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    client = Redis(url, timeout_s=30)
    await client.connect()
    yield client
    await client.close()


class Desk:
    """A ledger, a clock, and an account that is loaded."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.clock = TurnClock()
        self.ledger = Ledger(redis, now_us=self.clock)

    def scopes(
        self,
        account: Limits = NO_LIMITS,
        key: Limits = NO_LIMITS,
        model: Limits | None = None,
        *,
        overdraft_nanos: int = 0,
        requests_max: int | None = None,
    ) -> Scopes:
        packed = pack_limits(
            account=account, key=key, model=model, overdraft_nanos=overdraft_nanos, key_requests_max=requests_max
        )
        return self.ledger.scopes(account_id=1, key_id="k", model=None if model is None else "m", limits=packed)

    async def load(self, balance_nanos: int) -> None:
        spent = Spent(as_of_us=self.clock.now_us)
        snapshot = Snapshot(balance_nanos=balance_nanos, seq=1, cursor="0-0", account_spent=spent, key_spent=spent)
        assert await self.ledger.load(1, snapshot, key_id="k") == Loaded(balance_nanos, already=False)

    async def admit(self, request_id: str, scopes: Scopes, *, hold_nanos: int = 0, tokens: int = 0) -> object:
        return await self.ledger.admit(request_id, scopes, hold_nanos=hold_nanos, tokens=tokens)

    async def settle(self, request_id: str, scopes: Scopes, *, cost_nanos: int = 0, tokens: int = 0) -> object:
        record = make_record(request_id, 1, "k", cost_nanos)
        return await self.ledger.settle(request_id, scopes, cost_nanos=cost_nanos, tokens=tokens, record=record)

    async def charged(self) -> list[tuple[str, int, bool]]:
        """Request, cost, and whether it was held: of every entry in the usage stream."""
        entries = await self.redis.execute("XRANGE", "{p1}:usage", "-", "+")
        assert isinstance(entries, list)
        found = []
        for _, fields in entries:
            record = decode_record(fields[1])
            found.append((record.request_id, record.cost_nanos, b"u" not in fields))
        return found

    async def dump(self) -> dict[bytes, object]:
        """Everything that is stored of the account, its key and its requests."""
        found: dict[bytes, object] = {}
        for name in (b"{p1}:a:1", b"{p1}:k:k", b"{p1}:m:1:m"):
            found[name] = await self.redis.execute("HGETALL", name)
        found[b"leases"] = await self.redis.execute("ZRANGE", "{p1}:leases", 0, -1, "WITHSCORES")
        found[b"usage"] = await self.redis.execute("XLEN", "{p1}:usage")
        return found


@pytest.fixture
def desk(redis: Redis) -> Desk:
    return Desk(redis)


def admitted(answer: object) -> bool:
    return isinstance(answer, Admitted)


# -- the life of a hold --------------------------------------------------------------------------------------


async def test_a_hold_is_taken_off_and_the_real_cost_charged(desk: Desk) -> None:
    await desk.load(1000)
    scopes = desk.scopes()

    assert await desk.admit("r", scopes, hold_nanos=600) == Admitted(NO_RATES)
    assert await desk.ledger.peek_balance(1) == Balance(1000, 600, 1, 1)
    assert await desk.settle("r", scopes, cost_nanos=250) == Settled(250, held=True)

    assert await desk.ledger.peek_balance(1) == Balance(750, 0, 1, 0)
    assert await desk.charged() == [("r", 250, True)]


async def test_repeats_get_the_first_answer_and_change_nothing(desk: Desk) -> None:
    await desk.load(1000)
    scopes = desk.scopes(Limits(requests_per_day=10))

    first = await desk.admit("r", scopes, hold_nanos=600)
    assert await desk.admit("r", scopes, hold_nanos=1) == first
    await desk.settle("r", scopes, cost_nanos=250)
    before = await desk.dump()

    assert await desk.settle("r", scopes, cost_nanos=999) == Settled(250, held=True)
    assert await desk.admit("r", scopes, hold_nanos=600) == Ended("settle", 250)
    assert await desk.ledger.void("r", scopes) == Ended("settle", 250)
    assert await desk.dump() == before


async def test_a_voided_request_costs_nothing_and_cannot_be_settled(desk: Desk) -> None:
    await desk.load(1000)
    scopes = desk.scopes(Limits(requests_per_day=10, tokens_per_day=100))
    await desk.admit("r", scopes, hold_nanos=600, tokens=60)

    assert await desk.ledger.void("r", scopes, record=make_record("r", 1, "k", 0)) == Voided(held=True)
    assert await desk.ledger.void("r", scopes) == Voided(held=True)
    assert await desk.settle("r", scopes, cost_nanos=5) == Ended("void", 0)

    assert await desk.ledger.peek_balance(1) == Balance(1000, 0, 1, 0)
    assert await desk.charged() == [("r", 0, True)]
    # The request counts, its tokens do not.
    assert await desk.admit("s", scopes) == Admitted(Rates(10, 8, 2 * DAY_US // 10_000, 100, 100, 0))


async def test_voiding_what_was_never_held_leaves_no_trace(desk: Desk) -> None:
    assert await desk.ledger.void("r", desk.scopes(), record=b"x") == Voided(held=False)
    assert await desk.charged() == []
    assert admitted(await desk.admit("r", desk.scopes()))


async def test_a_settle_without_a_hold_is_charged_all_the_same_and_marked(desk: Desk) -> None:
    await desk.load(1000)
    scopes = desk.scopes()

    assert await desk.settle("r", scopes, cost_nanos=250) == Settled(250, held=False)
    assert await desk.settle("r", scopes, cost_nanos=250) == Settled(250, held=False)

    assert await desk.ledger.peek_balance(1) == Balance(750, 0, 1, 0)
    assert await desk.charged() == [("r", 250, False)]


async def test_a_settle_of_an_account_that_is_not_loaded_is_in_its_next_load(desk: Desk) -> None:
    await desk.settle("r", desk.scopes(), cost_nanos=250)

    await desk.ledger.load(1, Snapshot(balance_nanos=1000, seq=0, cursor="0-0"))

    assert await desk.ledger.peek_balance(1) == Balance(750, 0, 0, 0)


async def test_a_verb_that_names_other_scopes_is_a_conflict(desk: Desk) -> None:
    await desk.load(1000)
    await desk.admit("r", desk.scopes(), hold_nanos=600)
    other = desk.ledger.scopes(account_id=1, key_id="other", limits=pack_limits())

    assert await desk.settle("r", other, cost_nanos=5) == Ended("admit", 0)
    assert await desk.ledger.void("r", other) == Ended("admit", 0)
    assert await desk.ledger.peek_balance(1) == Balance(1000, 600, 1, 1)


async def test_a_tombstone_stands_for_two_minutes(desk: Desk) -> None:
    await desk.load(1000)
    await desk.settle("r", desk.scopes(), cost_nanos=1)

    desk.clock.now_us += 120 * SECOND_US - 1
    assert await desk.settle("r", desk.scopes(), cost_nanos=2) == Settled(1, held=False)
    desk.clock.now_us += 1
    assert await desk.settle("r", desk.scopes(), cost_nanos=2) == Settled(2, held=False)
    assert 0 < int(str(await desk.redis.execute("PTTL", "{p1}:h:r"))) <= 120_000


# -- rates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [name for name in Limits.__struct_fields__ if name.startswith("requests")])
async def test_exactly_the_limit_passes_and_then_one_for_each_that_drained(desk: Desk, field: str) -> None:
    scopes = desk.scopes(Limits(**{field: 7}))
    window_us = {"minute": MINUTE_US, "hour": 60 * MINUTE_US, "day": DAY_US, "month": 30 * DAY_US}[
        field.rsplit("_", maxsplit=1)[-1]
    ]

    assert [admitted(await desk.admit(f"r{n}", scopes)) for n in range(8)] == [True] * 7 + [False]
    refused = await desk.admit("r", scopes)
    assert isinstance(refused, Limited)
    assert (refused.scope, refused.limit, refused.wanted) == ("account", 7, 1)
    assert BUCKET_NAMES[refused.bucket] == field.replace("_", " ")
    assert refused.retry_ms is not None

    desk.clock.now_us += (refused.retry_ms - 2 - window_us // 7 // 1000 // 100) * 1000
    assert not admitted(await desk.admit("r", scopes))
    desk.clock.now_us = START_US + refused.retry_ms * 1000
    assert admitted(await desk.admit("r", scopes))
    assert not admitted(await desk.admit("s", scopes))


async def test_polling_a_full_bucket_does_not_keep_it_full(desk: Desk) -> None:
    scopes = desk.scopes(Limits(requests_per_day=1))
    await desk.admit("r", scopes)

    for _ in range(100):
        desk.clock.now_us += DAY_US // 100
        last = await desk.admit("s", scopes)

    assert admitted(last)


async def test_burst_narrows_what_comes_at_once(desk: Desk) -> None:
    scopes = desk.scopes(Limits(requests_per_minute=60, burst=2))

    assert [admitted(await desk.admit(f"r{n}", scopes)) for n in range(3)] == [True, True, False]
    desk.clock.now_us += SECOND_US
    assert admitted(await desk.admit("s", scopes))


async def test_the_bucket_that_takes_longest_is_named(desk: Desk) -> None:
    scopes = desk.scopes(Limits(requests_per_minute=1), Limits(requests_per_day=1), Limits(requests_per_hour=1))
    await desk.admit("r", scopes)

    refused = await desk.admit("s", scopes)

    assert refused == Limited(Rates(1, 0, 60_000, -1, -1, 0), "key", "rd", 1, 1, 86_400_000)


async def test_a_request_larger_than_the_bucket_is_told_that_it_will_never_fit(desk: Desk) -> None:
    scopes = desk.scopes(Limits(tokens_per_minute=100, requests_per_day=1))
    await desk.admit("r", scopes)

    refused = await desk.admit("s", scopes, tokens=101)

    assert isinstance(refused, Limited)
    assert (refused.bucket, refused.limit, refused.wanted, refused.retry_ms) == ("tm", 100, 101, None)


async def test_a_limit_of_zero_admits_nothing(desk: Desk) -> None:
    refused = await desk.admit("r", desk.scopes(Limits(requests_per_minute=0)))

    assert isinstance(refused, Limited)
    assert refused.retry_ms is None


async def test_rates_tell_of_the_tightest_bucket_of_all_scopes(desk: Desk) -> None:
    scopes = desk.scopes(
        Limits(requests_per_minute=10, tokens_per_day=1000),
        Limits(requests_per_minute=5, tokens_per_minute=2000),
        Limits(requests_per_hour=7, tokens_per_minute=600),
    )

    assert await desk.admit("r", scopes, tokens=100) == Admitted(Rates(5, 4, 12_000, 600, 500, 10_000))


async def test_a_model_has_buckets_of_its_own_within_the_account(desk: Desk) -> None:
    limited = desk.scopes(model=Limits(requests_per_day=1))

    assert admitted(await desk.admit("r", limited))
    refused = await desk.admit("s", limited)
    assert isinstance(refused, Limited)
    assert refused.scope == "model"
    assert admitted(await desk.admit("s", desk.scopes()))


async def test_a_clock_that_steps_back_neither_drains_nor_blocks(desk: Desk) -> None:
    scopes = desk.scopes(Limits(requests_per_minute=2))
    await desk.admit("r", scopes)
    desk.clock.now_us -= 3600 * SECOND_US

    assert admitted(await desk.admit("s", scopes))
    assert not admitted(await desk.admit("t", scopes))
    desk.clock.now_us += 30 * SECOND_US
    assert admitted(await desk.admit("t", scopes))


async def test_a_limit_that_was_lifted_for_a_while_starts_empty(desk: Desk) -> None:
    limited = desk.scopes(Limits(tokens_per_month=100, requests_per_month=1))
    await desk.admit("r", limited, tokens=100)

    await desk.admit("s", desk.scopes())

    assert admitted(await desk.admit("t", limited, tokens=100))


async def test_one_limit_of_several_that_was_lifted_for_a_while_starts_empty(desk: Desk) -> None:
    minute = Limits(requests_per_minute=9)
    both = Limits(requests_per_minute=9, requests_per_month=1)
    await desk.admit("r", desk.scopes(both))

    await desk.admit("s", desk.scopes(minute))

    assert admitted(await desk.admit("t", desk.scopes(both)))


# -- tokens: from the estimate to the truth -------------------------------------------------------------------


async def tokens_left(desk: Desk, scopes: Scopes) -> int:
    probe = await desk.admit(f"probe-{desk.clock.now_us}", scopes, tokens=10**9)
    assert isinstance(probe, Limited)
    return probe.rates.tokens_remaining


async def test_tokens_are_corrected_from_the_estimate(desk: Desk) -> None:
    scopes = desk.scopes(Limits(tokens_per_day=1000))
    await desk.admit("low", scopes, tokens=600)
    assert await tokens_left(desk, scopes) == 400

    await desk.settle("low", scopes, tokens=100)

    assert await tokens_left(desk, scopes) == 900


async def test_tokens_beyond_the_estimate_go_over_the_limit_and_drain(desk: Desk) -> None:
    scopes = desk.scopes(Limits(tokens_per_minute=1000))
    await desk.admit("r", scopes, tokens=100)
    await desk.settle("r", scopes, tokens=2500)

    refused = await desk.admit("s", scopes, tokens=1)

    assert isinstance(refused, Limited)
    assert (refused.rates.tokens_remaining, refused.retry_ms) == (0, math.ceil(1501 * 60))
    desk.clock.now_us += refused.retry_ms * 1000
    assert admitted(await desk.admit("s", scopes, tokens=1))


async def test_an_estimate_that_has_drained_away_is_not_given_back_at_the_cost_of_others(desk: Desk) -> None:
    scopes = desk.scopes(Limits(tokens_per_minute=1000))
    await desk.admit("slow", scopes, tokens=1000)
    desk.clock.now_us += 10 * MINUTE_US
    await desk.admit("other", scopes, tokens=900)

    await desk.settle("slow", scopes, tokens=10)

    assert await tokens_left(desk, scopes) == 100


async def test_an_estimate_that_never_drained_is_given_back_in_full(desk: Desk) -> None:
    scopes = desk.scopes(Limits(tokens_per_minute=1000))
    await desk.admit("slow", scopes, tokens=800)
    desk.clock.now_us += 30 * SECOND_US  # 300 left of it
    await desk.admit("other", scopes, tokens=600)

    await desk.settle("slow", scopes, tokens=700)

    assert await tokens_left(desk, scopes) == 200


# -- concurrency ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["settle", "void", "expire"])
async def test_a_slot_comes_back_however_the_request_ends(desk: Desk, ending: str) -> None:
    scopes = desk.scopes(Limits(concurrency=5), Limits(concurrency=2))
    await desk.admit("one", scopes)
    await desk.admit("two", scopes)
    assert await desk.admit("three", scopes) == Busy(NO_RATES, "key", 2)

    if ending == "settle":
        await desk.settle("one", scopes)
    elif ending == "void":
        await desk.ledger.void("one", scopes)
    else:
        desk.clock.now_us += 60 * SECOND_US
        assert len(await desk.ledger.sweep(1)) == 2

    assert admitted(await desk.admit("three", scopes))


# -- money ---------------------------------------------------------------------------------------------------


async def test_no_credit_says_whether_waiting_helps(desk: Desk) -> None:
    await desk.load(1000)
    scopes = desk.scopes()
    await desk.admit("r", scopes, hold_nanos=600)

    assert await desk.admit("s", scopes, hold_nanos=401) == NoCredit(NO_RATES, in_flight=True, room_nanos=400)
    assert await desk.admit("s", scopes, hold_nanos=1001) == NoCredit(NO_RATES, in_flight=False, room_nanos=400)
    assert admitted(await desk.admit("s", scopes, hold_nanos=400))


async def test_an_overdraft_lets_holds_pass_below_zero_as_far_as_it_goes(desk: Desk) -> None:
    await desk.load(0)
    scopes = desk.scopes(overdraft_nanos=500)

    assert await desk.admit("r", scopes, hold_nanos=501) == NoCredit(NO_RATES, in_flight=False, room_nanos=500)
    assert admitted(await desk.admit("r", scopes, hold_nanos=500))


async def test_what_is_free_needs_no_account(desk: Desk) -> None:
    scopes = desk.scopes(Limits(budgets=(Budget("day", 0),)))

    assert await desk.admit("paid", scopes, hold_nanos=1) == NotLoaded("account")
    assert admitted(await desk.admit("free", scopes))
    assert await desk.settle("free", scopes) == Settled(0, held=True)


async def test_budgets_that_are_not_loaded_are_asked_for_by_scope(desk: Desk) -> None:
    await desk.ledger.load(1, Snapshot(balance_nanos=1000, seq=1, cursor="0-0"))
    both = (Limits(budgets=(Budget("day", 100),)),) * 2
    spent = Spent(as_of_us=START_US, day_nanos=70)

    assert await desk.admit("r", desk.scopes(*both), hold_nanos=1) == NotLoaded("account")
    await desk.ledger.load(1, Snapshot(balance_nanos=5, seq=1, cursor="0-0", account_spent=spent))
    assert await desk.admit("r", desk.scopes(*both), hold_nanos=1) == NotLoaded("key")
    await desk.ledger.load(1, Snapshot(balance_nanos=5, seq=1, cursor="0-0", key_spent=spent), key_id="k")

    assert isinstance(await desk.admit("r", desk.scopes(*both), hold_nanos=31), OverBudget)
    assert admitted(await desk.admit("r", desk.scopes(*both), hold_nanos=30))
    assert await desk.ledger.peek_balance(1) == Balance(1000, 30, 1, 1)


async def test_a_hard_budget_counts_what_is_in_flight(desk: Desk) -> None:
    await desk.load(10_000)
    scopes = desk.scopes(key=Limits(budgets=(Budget("total", 1000),)))
    await desk.admit("r", scopes, hold_nanos=600)

    assert await desk.admit("s", scopes, hold_nanos=401) == OverBudget(
        NO_RATES, "key", "total", 1000, 0, True, None, 400
    )
    await desk.settle("r", scopes, cost_nanos=700)
    assert await desk.admit("s", scopes, hold_nanos=301) == OverBudget(
        NO_RATES, "key", "total", 1000, 700, False, None, 300
    )
    assert admitted(await desk.admit("s", scopes, hold_nanos=300))


async def test_the_room_that_is_left_is_that_of_the_tightest(desk: Desk) -> None:
    await desk.load(300)
    wide, tight = Budget("month", 5000), Budget("day", 400)
    scopes = desk.scopes(Limits(budgets=(wide,)), Limits(budgets=(tight, wide)))
    await desk.admit("r", scopes, hold_nanos=100)

    refused = await desk.admit("s", scopes, hold_nanos=350)
    assert isinstance(refused, OverBudget)
    assert (refused.scope, refused.window, refused.room_nanos) == ("key", "day", 200)
    assert await desk.admit("s", scopes, hold_nanos=201) == NoCredit(NO_RATES, in_flight=True, room_nanos=200)
    assert admitted(await desk.admit("s", scopes, hold_nanos=200))


async def test_an_overdrawn_account_has_less_than_no_room(desk: Desk) -> None:
    await desk.load(100)
    scopes = desk.scopes()
    await desk.settle("lost", scopes, cost_nanos=150)

    assert await desk.admit("r", scopes, hold_nanos=1) == NoCredit(NO_RATES, in_flight=False, room_nanos=-50)
    assert admitted(await desk.admit("free", scopes))


async def test_a_key_is_good_for_so_many_requests(desk: Desk) -> None:
    await desk.load(10_000)
    scopes = desk.scopes(requests_max=3)
    for request in ("r", "s", "t"):
        assert admitted(await desk.admit(request, scopes))

    # One that comes to nothing, and of which no record is kept, is given back.
    assert await desk.admit("u", scopes) == UsedUp(NO_RATES, "key", 3, True)
    await desk.ledger.void("r", scopes)
    await desk.settle("s", scopes, cost_nanos=5)
    await desk.ledger.void("t", scopes, record=make_record("t", 1, "k", 0))
    assert admitted(await desk.admit("u", scopes))
    await desk.settle("u", scopes)
    assert await desk.admit("v", scopes) == UsedUp(NO_RATES, "key", 3, False)
    assert await desk.admit("w", scopes, hold_nanos=7) == UsedUp(NO_RATES, "key", 3, False)


async def test_requests_are_counted_again_after_redis_has_lost_them(desk: Desk) -> None:
    scopes = desk.scopes(requests_max=2)
    assert await desk.admit("r", scopes) == NotLoaded("key")

    spent = Spent(as_of_us=START_US, requests=1)
    await desk.ledger.load(1, Snapshot(balance_nanos=0, seq=1, cursor="0-0", key_spent=spent), key_id="k")
    assert admitted(await desk.admit("r", scopes))
    await desk.settle("r", scopes)
    assert await desk.admit("s", scopes) == UsedUp(NO_RATES, "key", 2, False)

    # What is in the stream and not in the books yet counts as well.
    await desk.ledger.load(1, Snapshot(balance_nanos=0, seq=1, cursor="0-0", key_spent=spent), key_id="k", force=True)
    assert await desk.admit("s", scopes) == UsedUp(NO_RATES, "key", 2, False)


@pytest.mark.parametrize(
    ("window", "now", "end"),
    [
        ("day", datetime(2024, 2, 28, 23, 59, 59, tzinfo=UTC), datetime(2024, 2, 29, tzinfo=UTC)),
        ("month", datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)),
        ("month", datetime(2100, 2, 28, 12, tzinfo=UTC), datetime(2100, 3, 1, tzinfo=UTC)),
        ("month", datetime(2025, 12, 31, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
        ("week", datetime(2026, 1, 4, 23, tzinfo=UTC), datetime(2026, 1, 5, tzinfo=UTC)),  # ISO week 1 of 2026
        ("week", datetime(2024, 12, 30, tzinfo=UTC), datetime(2025, 1, 6, tzinfo=UTC)),  # week 1 of 2025
    ],
)
async def test_budgets_reset_with_the_calendar(desk: Desk, window: str, now: datetime, end: datetime) -> None:
    desk.clock.now_us = int(now.timestamp()) * SECOND_US
    await desk.load(10_000)
    scopes = desk.scopes(Limits(budgets=(Budget(window, 100),)))  # type: ignore[arg-type] # one of the four
    await desk.admit("r", scopes, hold_nanos=100)
    await desk.settle("r", scopes, cost_nanos=100)

    refused = await desk.admit("s", scopes, hold_nanos=1)
    assert isinstance(refused, OverBudget)
    assert refused.ends_ms == int(end.timestamp()) * 1000

    desk.clock.now_us = refused.ends_ms * 1000 - 1
    assert isinstance(await desk.admit("s", scopes, hold_nanos=1), OverBudget)
    desk.clock.now_us += 1
    assert admitted(await desk.admit("s", scopes, hold_nanos=100))


async def test_a_soft_budget_gives_notice_once_in_each_window(desk: Desk) -> None:
    await desk.load(10_000)
    scopes = desk.scopes(
        Limits(budgets=(Budget("day", 100, hard=False), Budget("day", 150, hard=False), Budget("day", 9000)))
    )

    async def spend(request_id: str, cost: int) -> tuple[Notice, ...]:
        await desk.admit(request_id, scopes, hold_nanos=cost)
        answer = await desk.settle(request_id, scopes, cost_nanos=cost)
        assert isinstance(answer, Settled)
        return answer.notices

    assert await spend("a", 99) == ()
    assert await spend("b", 1) == (Notice("account", "day", 100, 100),)
    assert await spend("c", 10) == ()
    assert await spend("d", 50) == (Notice("account", "day", 150, 160),)
    # The repeat of a settle whose answer was lost brings the notice again.
    assert await desk.settle("d", scopes, cost_nanos=50) == Settled(50, True, (Notice("account", "day", 150, 160),))
    desk.clock.now_us += DAY_US
    assert await spend("e", 200) == (Notice("account", "day", 100, 200), Notice("account", "day", 150, 200))


async def test_a_hard_budget_gives_no_notice(desk: Desk) -> None:
    await desk.load(10_000)
    scopes = desk.scopes(Limits(budgets=(Budget("day", 100),)))
    await desk.admit("r", scopes, hold_nanos=100)

    assert await desk.settle("r", scopes, cost_nanos=100) == Settled(100, held=True)


async def test_a_settle_without_a_hold_counts_against_the_budgets(desk: Desk) -> None:
    await desk.load(10_000)
    scopes = desk.scopes(key=Limits(budgets=(Budget("day", 100),)))
    await desk.settle("lost", scopes, cost_nanos=60)

    assert isinstance(await desk.admit("r", scopes, hold_nanos=41), OverBudget)
    assert admitted(await desk.admit("r", scopes, hold_nanos=40))


# -- all or nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "hold_nanos", "refusal"),
    [
        ({"account": Limits(requests_per_day=0)}, 1, Limited),
        ({"key": Limits(tokens_per_day=5)}, 1, Limited),
        ({"model": Limits(requests_per_day=0)}, 1, Limited),
        ({"key": Limits(concurrency=0)}, 1, Busy),
        ({"key": Limits(budgets=(Budget("week", 3),))}, 4, OverBudget),
        ({}, 1001, NoCredit),
    ],
)
async def test_a_refused_request_changes_nothing(
    desk: Desk, scopes: dict[str, Limits], hold_nanos: int, refusal: type
) -> None:
    wide = Limits(requests_per_minute=9, tokens_per_minute=99, concurrency=9)
    await desk.load(1000)
    await desk.admit("r", desk.scopes(wide, wide, wide), hold_nanos=1, tokens=10)
    before = await desk.dump()
    desk.clock.now_us += SECOND_US

    answer = await desk.admit(
        "s", desk.scopes(**{"account": wide, "key": wide, "model": wide, **scopes}), hold_nanos=hold_nanos, tokens=10
    )

    assert isinstance(answer, refusal)
    assert await desk.dump() == before
    assert await desk.redis.execute("EXISTS", "{p1}:h:s") == 0


# -- leases --------------------------------------------------------------------------------------------------


async def test_a_dead_workers_hold_is_charged_what_the_last_renewal_said(desk: Desk) -> None:
    await desk.load(1000)
    scopes = desk.scopes(Limits(tokens_per_month=1000))
    await desk.admit("r", scopes, hold_nanos=600, tokens=500)
    record = make_record("r", 1, "k", 120)
    desk.clock.now_us += 30 * SECOND_US
    assert await desk.ledger.renew(1, [Renewal("r", 120, 40, record), Renewal("unknown")]) == ["unknown"]

    desk.clock.now_us += 60 * SECOND_US - 1000
    assert await desk.ledger.sweep(1) == []
    desk.clock.now_us += 1000
    assert await desk.ledger.sweep(1) == [Expired("r", "charged", 120)]

    assert await desk.ledger.peek_balance(1) == Balance(880, 0, 1, 0)
    assert await desk.charged() == [("r", 120, True)]
    assert await tokens_left(desk, scopes) == 960
    assert await desk.settle("r", scopes, cost_nanos=300) == Ended("expire", 120)
    assert await desk.ledger.sweep(1) == []


async def test_a_renewal_without_news_keeps_the_last_news(desk: Desk) -> None:
    await desk.load(1000)
    await desk.admit("r", desk.scopes(), hold_nanos=600)
    await desk.ledger.renew(1, [Renewal("r", 7, 1, make_record("r", 1, "k", 7))])
    await desk.ledger.renew(1, [Renewal("r")])
    desk.clock.now_us += 60 * SECOND_US

    assert await desk.ledger.sweep(1) == [Expired("r", "charged", 7)]


async def test_a_hold_of_which_nothing_was_delivered_is_voided(desk: Desk) -> None:
    await desk.load(1000)
    scopes = desk.scopes()
    await desk.admit("r", scopes, hold_nanos=600)
    desk.clock.now_us += 60 * SECOND_US

    assert await desk.ledger.sweep(1) == [Expired("r", "voided")]

    assert await desk.ledger.peek_balance(1) == Balance(1000, 0, 1, 0)
    assert await desk.charged() == []
    assert await desk.ledger.void("r", scopes) == Ended("expire", 0)


async def test_a_settle_is_charged_although_a_sweep_had_ended_the_hold_for_nothing(desk: Desk) -> None:
    """Its worker, or whoever read its journal, speaks late: the tokens were delivered."""
    await desk.load(1000)
    scopes = desk.scopes()
    await desk.admit("r", scopes, hold_nanos=600)
    desk.clock.now_us += 60 * SECOND_US
    assert await desk.ledger.sweep(1) == [Expired("r", "voided")]

    assert await desk.settle("r", scopes, cost_nanos=70) == Settled(70, False)
    assert await desk.settle("r", scopes, cost_nanos=70) == Settled(70, False)

    assert await desk.ledger.peek_balance(1) == Balance(930, 0, 1, 0)
    assert await desk.charged() == [("r", 70, False)]
    assert await desk.ledger.void("r", scopes) == Ended("settle", 70)


async def test_sweeps_are_bounded_oldest_first_and_may_run_side_by_side(desk: Desk) -> None:
    for number in range(6):
        await desk.admit(f"r{number}", desk.scopes())
        desk.clock.now_us += 1000
    desk.clock.now_us += 60 * SECOND_US

    assert [one.request_id for one in await desk.ledger.sweep(1, at_most=2)] == ["r0", "r1"]
    left, right = await asyncio.gather(desk.ledger.sweep(1), desk.ledger.sweep(1))
    assert sorted(one.request_id for one in left + right) == ["r2", "r3", "r4", "r5"]


async def test_a_lease_without_a_hold_is_removed(desk: Desk) -> None:
    await desk.admit("r", desk.scopes())
    await desk.redis.execute("DEL", "{p1}:h:r")
    desk.clock.now_us += 60 * SECOND_US

    assert await desk.ledger.sweep(1) == [Expired("r", "lost")]
    assert await desk.ledger.sweep(1) == []


async def test_renewals_in_one_call_are_bounded(desk: Desk) -> None:
    with pytest.raises(ValueError, match="at most"):
        desk.ledger.renew(1, [Renewal("r")] * (RENEWALS_MAX + 1))


# -- credit and load -----------------------------------------------------------------------------------------


async def test_credit_is_applied_once_and_in_sequence(desk: Desk) -> None:
    await desk.load(1000)  # with seq 1

    assert await desk.ledger.credit(1, seq=2, previous_seq=1, amount_nanos=500) == Credited(1500, repeated=False)
    assert await desk.ledger.credit(1, seq=2, previous_seq=1, amount_nanos=500) == Credited(1500, repeated=True)
    assert await desk.ledger.credit(1, seq=9, previous_seq=7, amount_nanos=500) == CreditGap(2)
    assert await desk.ledger.credit(1, seq=9, previous_seq=1, amount_nanos=500) == CreditGap(2)
    assert await desk.ledger.credit(1, seq=9, previous_seq=2, amount_nanos=-700) == Credited(800, repeated=False)


async def test_a_credit_before_the_load_forbids_older_snapshots(desk: Desk) -> None:
    assert await desk.ledger.credit(1, seq=5, previous_seq=4, amount_nanos=500) == CreditDeferred(5)

    assert await desk.ledger.load(1, Snapshot(balance_nanos=1, seq=4, cursor="0-0")) == Stale(5)
    assert await desk.ledger.load(1, Snapshot(balance_nanos=501, seq=5, cursor="0-0")) == Loaded(501, already=False)
    assert await desk.redis.execute("PTTL", "{p1}:a:1") == -1


async def test_a_load_takes_off_what_the_stream_holds_beyond_the_cursor(desk: Desk) -> None:
    other = desk.ledger.scopes(account_id=65, key_id="other", limits=pack_limits())
    for number in range(1203):
        desk.ledger.settle(f"r{number}", desk.scopes(), cost_nanos=2, tokens=0, record=make_record("r", 1, "k", 2))
        last = desk.ledger.settle(
            f"s{number}", other, cost_nanos=9, tokens=0, record=make_record("s", 65, "other", 9)
        )
    await last
    entries = await desk.redis.execute("XRANGE", "{p1}:usage", "-", "+", "COUNT", 6)
    assert isinstance(entries, list)
    cursor = entries[-1][0].decode()

    spent = Spent(as_of_us=START_US, month_nanos=10)
    snapshot = Snapshot(balance_nanos=10_000, seq=1, cursor=cursor, account_spent=spent, key_spent=spent)
    assert await desk.ledger.load(1, snapshot, key_id="k") == Loaded(10_000 - 1200 * 2, already=False)

    scopes = desk.scopes(key=Limits(budgets=(Budget("month", 10 + 2400),)))
    assert isinstance(await desk.admit("t", scopes, hold_nanos=1), OverBudget)


async def test_a_load_counts_what_the_stream_holds_in_the_windows_it_was_charged_in(desk: Desk) -> None:
    """What was charged before midnight and is not settled after it is no part of the new day's budget."""
    budgets = (Budget("day", 100), Budget("month", 1000), Budget("total", 1000))
    scopes = desk.scopes(Limits(budgets=budgets))
    midnight_us = (desk.clock.now_us // DAY_US + 1) * DAY_US
    desk.clock.now_us = midnight_us - SECOND_US
    await desk.settle("late", scopes, cost_nanos=60)
    desk.clock.now_us = midnight_us + SECOND_US
    await desk.settle("early", scopes, cost_nanos=30)
    spent = Spent(as_of_us=desk.clock.now_us)
    snapshot = Snapshot(balance_nanos=10_000, seq=1, cursor="0-0", account_spent=spent, key_spent=spent)
    await desk.ledger.load(1, snapshot, key_id="k")

    over = await desk.admit("b", scopes, hold_nanos=71)
    within = await desk.admit("c", scopes, hold_nanos=70)
    counters = msgspec.msgpack.decode(await desk.redis.execute("HGET", scopes.account_key, "spent"))

    assert isinstance(over, OverBudget)
    assert (over.window, over.spent_nanos) == ("day", 30)
    assert isinstance(within, Admitted)
    assert counters[1::3] == [30, 90, 90, 90, 2]


async def test_a_load_is_made_once_unless_forced_and_keeps_what_is_held(desk: Desk) -> None:
    await desk.load(1000)
    await desk.admit("r", desk.scopes(), hold_nanos=600)
    snapshot = Snapshot(balance_nanos=5000, seq=2, cursor="0-0")

    assert await desk.ledger.load(1, snapshot) == Loaded(1000, already=True)
    assert await desk.ledger.load(1, snapshot, force=True) == Loaded(5000, already=False)
    assert await desk.ledger.peek_balance(1) == Balance(5000, 600, 2, 1)


async def test_a_load_notices_that_the_stream_was_trimmed_beyond_its_cursor(desk: Desk) -> None:
    ids = []
    for number in range(3):
        await desk.settle(f"r{number}", desk.scopes(), cost_nanos=1)
        entries = await desk.redis.execute("XREVRANGE", "{p1}:usage", "+", "-", "COUNT", 1)
        assert isinstance(entries, list)
        ids.append(entries[0][0].decode())
    await desk.redis.execute("XTRIM", "{p1}:usage", "MINID", ids[1])

    for cursor in ("0-0", ids[0]):
        assert await desk.ledger.load(1, Snapshot(balance_nanos=10, seq=1, cursor=cursor)) == Stale(0)
    assert await desk.ledger.load(1, Snapshot(balance_nanos=9, seq=1, cursor=ids[1])) == Loaded(8, already=False)


# -- bounds --------------------------------------------------------------------------------------------------


async def test_amounts_beyond_what_a_lua_number_holds_are_refused_before_anything_is_written(desk: Desk) -> None:
    await desk.load(MAX_NANOS)
    scopes = desk.scopes()

    for attempt in (
        desk.ledger.credit(1, seq=2, previous_seq=1, amount_nanos=1),
        desk.ledger.credit(1, seq=2, previous_seq=1, amount_nanos=2**53),
        desk.ledger.admit("r", scopes, hold_nanos=2**53, tokens=0),
        desk.ledger.admit("r", scopes, hold_nanos=-1, tokens=0),
        desk.ledger.settle("r", scopes, cost_nanos=2**60, tokens=0, record=b""),
        desk.ledger.settle("r", scopes, cost_nanos=-1, tokens=0, record=b""),
    ):
        with pytest.raises(CommandRefused):
            await attempt

    assert await desk.ledger.peek_balance(1) == Balance(MAX_NANOS, 0, 1, 0)
    assert admitted(await desk.admit("r", scopes, hold_nanos=MAX_NANOS))
    assert await desk.settle("r", scopes, cost_nanos=MAX_NANOS - 1) == Settled(MAX_NANOS - 1, held=True)
    assert await desk.ledger.peek_balance(1) == Balance(1, 0, 1, 0)


async def test_what_is_used_stays_and_what_is_idle_goes(desk: Desk) -> None:
    await desk.load(1000)
    await desk.admit("r", desk.scopes(model=Limits(requests_per_day=5)), hold_nanos=1)

    assert await desk.redis.execute("PTTL", "{p1}:a:1") == -1
    for name in ("{p1}:k:k", "{p1}:m:1:m"):
        assert 0 < int(str(await desk.redis.execute("PTTL", name))) <= 40 * 86_400_000


async def test_names_with_braces_stay_in_their_partition(desk: Desk) -> None:
    packed = pack_limits(model=Limits(requests_per_day=1))
    scopes = desk.ledger.scopes(account_id=1, key_id="}{p9}", model="{x}\udc80é", limits=packed)

    assert admitted(await desk.admit("r", scopes))
    assert await desk.settle("r", scopes) == Settled(0, held=True)
    desk.clock.now_us += DAY_US
    assert admitted(await desk.admit("{s}", scopes))
    desk.clock.now_us += DAY_US
    assert await desk.ledger.sweep(1) == [Expired("{s}", "voided")]


# -- many at once --------------------------------------------------------------------------------------------


async def test_parallel_admits_on_a_balance_for_some_admit_exactly_those(desk: Desk, url: str) -> None:
    await desk.load(1000)
    clients = [Redis(url, timeout_s=30) for _ in range(4)]
    ledgers = [Ledger(client) for client in clients]
    await asyncio.gather(*(client.connect() for client in clients))
    scopes = desk.scopes()

    answers = await asyncio.gather(
        *(ledgers[n % 4].admit(f"r{n}", scopes, hold_nanos=90, tokens=0) for n in range(200))
    )

    assert sum(map(admitted, answers)) == 11
    assert await desk.ledger.peek_balance(1) == Balance(1000, 990, 1, 11)
    await asyncio.gather(*(client.close() for client in clients))


async def test_several_processes_together_are_admitted_exactly_the_limit(desk: Desk, url: str) -> None:
    await desk.load(10_000)
    packed = pack_limits(account=Limits(requests_per_month=50), key=Limits(tokens_per_month=60))

    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        racers = [pool.submit(race, url, packed, hold_nanos=1, name=f"p{n}", tries=60) for n in range(3)]
        counts = await asyncio.gather(*(asyncio.wrap_future(racer) for racer in racers))

    assert sum(counts) == 50
    assert await desk.ledger.peek_balance(1) == Balance(10_000, 50, 1, 50)
