"""A worker that goes on without Redis: what it lets through, and what it refuses."""

from pathlib import Path

import pytest

from gateway.errors import StoreUnavailable
from gateway.kernel.limits import Budget, Limits, pack_limits
from gateway.kernel.local_journal import Entry, LocalJournal
from gateway.kernel.standby import FRESH_S, Standby
from gateway.kernel.verbs import Admitted, Limited, NoCredit, NotLoaded, OverBudget, Snapshot, Spent
from tests.ledgers import START_US, make_record
from tests.outages import Switched, TestClock

ACCOUNT = 3
DOLLAR = 1_000_000_000
ALLOWANCE = DOLLAR


class Worker:
    """A standby with its store, and requests of one key."""

    def __init__(self, directory: Path) -> None:
        self.clock = TestClock()
        self.redis = Switched(self.clock)
        self.journal = LocalJournal(directory, bytes_max=1024 * 1024)
        self.ledger = Standby(self.redis, journal=self.journal, clock=self.clock, allowance_nanos=ALLOWANCE)
        self.count = 0

    def scopes(self, *, limits: bytes | None = None):
        return self.ledger.scopes(account_id=ACCOUNT, key_id="key", limits=limits or pack_limits())

    async def admit(self, hold_nanos: int = 0, *, limits: bytes | None = None, name: str = ""):
        self.count += 1
        request_id = name or f"request {self.count}"
        return await self.ledger.admit(request_id, self.scopes(limits=limits), hold_nanos=hold_nanos, tokens=10)

    async def load(self, balance_nanos: int, **fields):
        snapshot = Snapshot(balance_nanos=balance_nanos, seq=1, cursor="0-0", **fields)
        return await self.ledger.load(ACCOUNT, snapshot, key_id="key")

    def settle(self, name: str, cost_nanos: int):
        record = make_record(name, ACCOUNT, "key", cost_nanos)
        return self.ledger.settle(name, self.scopes(), cost_nanos=cost_nanos, tokens=10, record=record)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


async def test_while_redis_answers_it_decides(worker):
    limits = pack_limits(account=Limits(requests_per_minute=1))
    await worker.load(DOLLAR)

    assert isinstance(await worker.admit(5, limits=limits), Admitted)
    assert isinstance(await worker.admit(5, limits=limits), Limited)
    assert (await worker.ledger.peek_balance(ACCOUNT)).held_nanos == 5


@pytest.mark.parametrize("silent", [False, True])
async def test_what_is_free_goes_on_under_the_same_limits(worker, silent):
    limits = pack_limits(account=Limits(requests_per_minute=3))
    worker.redis.away, worker.redis.silent = not silent, silent

    admissions = [await worker.admit(limits=limits) for _ in range(4)]

    assert [type(each) for each in admissions] == [Admitted, Admitted, Admitted, Limited]
    assert admissions[0].rates.requests_remaining == 2


async def test_an_account_is_asked_for_where_postgres_knows_it(worker):
    worker.redis.away = True

    assert isinstance(await worker.admit(5), NotLoaded)
    await worker.load(100)
    assert isinstance(await worker.admit(60), Admitted)
    assert await worker.admit(60) == NoCredit(rates=(await worker.admit(60)).rates, in_flight=True, room_nanos=40)
    assert isinstance(await worker.admit(101), NoCredit)


async def test_what_is_charged_here_is_not_there_any_more(worker):
    worker.redis.away = True
    await worker.load(100)
    assert isinstance(await worker.admit(100, name="one"), Admitted)

    with pytest.raises(StoreUnavailable):  # so it is journaled by whoever holds it
        worker.settle("one", 70)

    assert isinstance(await worker.admit(31), NoCredit)
    assert isinstance(await worker.admit(30), Admitted)


async def test_nobody_spends_more_than_the_allowance(worker):
    worker.redis.away = True
    await worker.load(50 * DOLLAR)

    assert isinstance(await worker.admit(ALLOWANCE), Admitted)
    # It has credit, so it is not told that it has none.
    with pytest.raises(StoreUnavailable) as raised:
        await worker.admit(1)
    assert raised.value.retry_after_s is not None


async def test_budgets_hold_as_postgres_knows_them(worker):
    limits = pack_limits(account=Limits(budgets=(Budget(window="day", limit_nanos=1000),)))
    worker.redis.away = True

    spent = Spent(as_of_us=START_US, day_nanos=990)
    await worker.load(DOLLAR, account_spent=spent, key_spent=Spent(as_of_us=START_US))

    assert isinstance(await worker.admit(11, limits=limits), OverBudget)
    assert isinstance(await worker.admit(10, limits=limits), Admitted)


async def test_the_end_of_what_was_admitted_here_is_told_to_redis_once_it_is_back(worker):
    await worker.load(100)
    worker.redis.away = True
    await worker.load(100)
    assert isinstance(await worker.admit(50, name="one"), Admitted)
    worker.redis.away = False

    await worker.settle("one", 20)

    assert (await worker.ledger.peek_balance(ACCOUNT)).balance_nanos == 80
    assert [record.cost_nanos for record in worker.redis.records] == [20]


async def test_an_outage_that_comes_again_soon_has_no_new_allowance(worker):
    async def outage(hold_nanos: int):
        worker.redis.away = True
        await worker.load(50 * DOLLAR)
        return await worker.admit(hold_nanos, name=f"{hold_nanos} at {worker.clock.now()}")

    async def back(for_s: float):
        worker.redis.away = False
        assert isinstance(await worker.admit(), Admitted)
        worker.clock.at_s += for_s

    await worker.load(50 * DOLLAR)
    assert isinstance(await outage(ALLOWANCE - 1), Admitted)
    name = f"{ALLOWANCE - 1} at {worker.clock.now()}"
    with pytest.raises(StoreUnavailable):
        worker.settle(name, ALLOWANCE - 1)

    await back(FRESH_S / 2)
    with pytest.raises(StoreUnavailable):
        await outage(2)
    await back(FRESH_S + 1)
    assert isinstance(await outage(2), Admitted)


async def test_there_is_no_new_allowance_before_redis_was_told_what_the_last_one_was_spent_on(worker):
    worker.redis.away = True
    await worker.load(50 * DOLLAR)
    assert isinstance(await worker.admit(ALLOWANCE, name="one"), Admitted)
    with pytest.raises(StoreUnavailable):
        worker.settle("one", ALLOWANCE)
    worker.journal.append(Entry("settle", "one"))
    worker.redis.away = False
    await worker.load(50 * DOLLAR)
    assert isinstance(await worker.admit(1), Admitted)
    worker.clock.at_s += FRESH_S + 1

    worker.redis.away = True
    await worker.load(50 * DOLLAR)
    with pytest.raises(StoreUnavailable):
        await worker.admit(1)
    worker.journal.close()


async def test_without_room_for_its_end_no_request_is_let_in(worker):
    worker.redis.away = True
    while worker.journal.has_room:
        worker.journal.append(Entry("settle", "x", record=bytes(10_000)))

    with pytest.raises(StoreUnavailable):
        await worker.admit()
    worker.journal.close()


async def test_a_void_gives_the_tokens_back_here_too(worker):
    limits = pack_limits(account=Limits(tokens_per_minute=10))
    worker.redis.away = True
    assert isinstance(await worker.admit(limits=limits, name="one"), Admitted)
    assert isinstance(await worker.admit(limits=limits), Limited)

    with pytest.raises(StoreUnavailable):
        worker.ledger.void("one", worker.scopes(limits=limits), record=b"")

    assert isinstance(await worker.admit(limits=limits), Admitted)
