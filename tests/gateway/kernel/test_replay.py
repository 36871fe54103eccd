"""From a worker's holds through its journal to Redis: nothing lost, nothing twice, whoever dies or is away."""

import asyncio
from pathlib import Path

import pytest

from gateway.errors import StoreUnavailable
from gateway.infra.metrics import Registry
from gateway.kernel.holds import RENEWED_AT_ONCE, YOUNG_S, Hold, Holds
from gateway.kernel.limits import pack_limits
from gateway.kernel.local_journal import Entry, LocalJournal, find_left
from gateway.kernel.record import UsageRecord, encode_record
from gateway.kernel.replay import Replay
from gateway.kernel.request_id import RequestIds, is_request_id, time_ms
from gateway.kernel.verbs import Admitted, Snapshot
from gateway.telemetry import Telemetry
from tests.outages import Switched, TestClock

ACCOUNT = 3
CREDIT = 1_000_000


class Kept:
    """A second copy that shows what it was given."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def keep(self, request_id, scopes, *, cost_nanos, tokens, record) -> None:
        self.ids.append(request_id)


class Worker:
    """One process' holds, journal and replay, on a store that others share."""

    def __init__(self, redis: Switched, clock: TestClock, directory: Path) -> None:
        self.redis = redis
        self.clock = clock
        self.copies = Kept()
        self.journal = LocalJournal(directory, bytes_max=1024 * 1024)
        self.holds = Holds(
            redis,
            clock=clock,
            settle_seconds=Telemetry(Registry(incarnation="test"), version="test").time_redis("settle"),
            journal=self.journal,
            second_copy=self.copies,
        )
        self.replay = Replay(self.journal, redis, reachable=lambda: not redis.away, second_copy=self.copies)

    def record(self, name: str, cost_nanos: int, outcome: str = "ok") -> UsageRecord:
        return UsageRecord(
            request_id=name, account_id=ACCOUNT, key_id="key", cost_nanos=cost_nanos, outcome=outcome, input_tokens=5
        )

    async def open(self, name: str, hold_nanos: int = 100) -> Hold:
        """Admit a request; its progress is whatever `delivered` says."""
        scopes = self.redis.scopes(account_id=ACCOUNT, key_id="key", limits=pack_limits())
        admission = await self.redis.admit(name, scopes, hold_nanos=hold_nanos, tokens=5)
        assert isinstance(admission, Admitted)
        hold = Hold(name, scopes, hold_nanos)
        self.holds.add(hold, lambda: None)
        return hold

    def deliver(self, hold: Hold, cost_nanos: int) -> None:
        """So much of its answer has gone out."""
        record = self.record(hold.request_id, cost_nanos, "orphaned")
        self.holds.add(hold, lambda: (cost_nanos, 5, record))

    def settle(self, hold: Hold, cost_nanos: int) -> None:
        self.holds.settle(hold, self.record(hold.request_id, cost_nanos), tokens=5)

    async def renew(self) -> None:
        self.clock.at_s += YOUNG_S + 1
        await self.holds.renew()

    def die(self) -> None:
        """What the kernel does: the locks go, the bytes stay."""
        if (file := self.journal.seal()) is not None:
            file.release()
        self.replay.close()


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
async def redis(clock) -> Switched:
    store = Switched(clock)
    await store.load(ACCOUNT, Snapshot(balance_nanos=CREDIT, seq=1, cursor="0-0"))
    return store


@pytest.fixture
def worker(redis, clock, tmp_path) -> Worker:
    return Worker(redis, clock, tmp_path / "journal")


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def balance(redis: Switched) -> tuple[int, int]:
    found = await redis.peek_balance(ACCOUNT)
    return found.balance_nanos, found.held_nanos


@pytest.mark.parametrize("silent", [False, True])
async def test_an_end_that_redis_did_not_hear_is_told_when_it_is_back(worker, redis, silent):
    hold = await worker.open("one")
    redis.away, redis.silent = not silent, silent
    worker.settle(hold, 40)
    await turns()
    assert worker.journal.ends == 1
    redis.away = redis.silent = False

    assert await worker.replay.replay_once() == 1

    assert await balance(redis) == (CREDIT - 40, 0)
    assert [record.request_id for record in redis.records] == ["one"]
    assert set(worker.copies.ids) == {"one"}
    assert (worker.journal.untold, find_left(worker.journal.directory)) == (0, [])
    assert list(worker.journal.directory.iterdir()) == []


async def test_a_void_is_told_too(worker, redis):
    hold = await worker.open("one")
    redis.away = True
    worker.holds.void(hold, worker.record("one", 0))
    redis.away = False

    await worker.replay.replay_once()

    assert await balance(redis) == (CREDIT, 0)
    assert [record.cost_nanos for record in redis.records] == [0]
    assert worker.copies.ids == []


async def test_nothing_is_tried_while_redis_is_away(worker, redis):
    hold = await worker.open("one")
    redis.away = True
    worker.settle(hold, 40)

    assert await worker.replay.replay_once() == 0

    assert worker.journal.ends == 1
    worker.die()


async def test_what_dead_processes_left_is_told_as_soon_as_redis_is_back(worker, redis, clock):
    """Their holds may be swept a few seconds later."""
    heir = Worker(redis, clock, worker.journal.directory)
    await heir.replay.replay_once(left=False)
    hold = await worker.open("one")
    redis.away = True
    worker.settle(hold, 40)
    worker.die()
    assert await heir.replay.replay_once(left=False) == 0
    redis.away = False

    assert await heir.replay.replay_once(left=False) == 1

    assert await balance(redis) == (CREDIT - 40, 0)


async def test_a_replay_that_is_interrupted_goes_on_and_charges_once(worker, redis):
    holds = [await worker.open(f"request {number}") for number in range(5)]
    redis.away = True
    for hold in holds:
        worker.settle(hold, 40)
    redis.away, redis.silent = False, True  # it takes all of them, and answers none
    with pytest.raises(StoreUnavailable):
        await worker.replay.replay_once()
    redis.silent = False

    assert await worker.replay.replay_once() == 5

    assert await balance(redis) == (CREDIT - 5 * 40, 0)
    assert len(redis.records) == 5


async def test_what_redis_was_told_since_is_not_charged_from_the_journal(worker, redis, clock):
    """While it was away, the journal heard of 10; when it was back, Redis heard of 30; then the worker died."""
    hold = await worker.open("one")
    worker.deliver(hold, 10)
    redis.away = True
    with pytest.raises(StoreUnavailable):
        await worker.renew()
    redis.away = False
    worker.deliver(hold, 30)
    await worker.renew()
    worker.die()

    heir = Worker(redis, clock, worker.journal.directory)
    assert await heir.replay.replay_once() == 0
    clock.at_s += 120
    await redis.sweep(hold.scopes.partition, at_most=10)

    assert await balance(redis) == (CREDIT - 30, 0)


async def test_another_process_tells_what_a_dead_one_could_not(worker, redis, clock):
    hold = await worker.open("one")
    redis.away = True
    worker.settle(hold, 40)
    worker.die()
    redis.away = False
    heir = Worker(redis, clock, worker.journal.directory)

    assert await heir.replay.replay_once() == 1

    assert await balance(redis) == (CREDIT - 40, 0)
    assert heir.copies.ids == ["one"]


async def test_what_a_dead_process_had_delivered_is_charged(worker, redis, clock):
    hold = await worker.open("one")
    redis.away = True
    worker.deliver(hold, 10)
    with pytest.raises(StoreUnavailable):
        await worker.renew()
    worker.deliver(hold, 25)
    with pytest.raises(StoreUnavailable):
        await worker.renew()
    worker.die()
    redis.away = False
    heir = Worker(redis, clock, worker.journal.directory)

    assert await heir.replay.replay_once() == 1

    assert await balance(redis) == (CREDIT - 25, 0)
    assert [(record.cost_nanos, record.outcome) for record in redis.records] == [(25, "orphaned")]


async def test_a_worker_that_was_paused_charges_what_the_sweep_did_not_know_of(worker, redis, clock):
    """It was stopped for an hour in the middle of a stream, and goes on."""
    request_id = RequestIds(clock).make()
    hold = await worker.open(request_id)
    worker.deliver(hold, 10)
    await worker.renew()
    clock.at_s += 3600
    await redis.sweep(hold.scopes.partition, at_most=10)
    swept = await balance(redis)

    worker.settle(hold, 30)
    await turns()

    assert swept == (CREDIT - 10, 0)
    assert await balance(redis) == (CREDIT - 30, 0)
    first, rest = redis.records
    assert (first.request_id, first.cost_nanos) == (request_id, 10)
    assert (rest.cost_nanos, rest.input_tokens, rest.tags) == (20, 0, {"continues": request_id})
    assert is_request_id(rest.request_id)
    assert time_ms(rest.request_id) == time_ms(request_id)
    assert worker.copies.ids == [request_id, rest.request_id]


@pytest.mark.parametrize("cost_nanos", [5, 10])
async def test_a_sweep_that_charged_enough_is_left_alone(worker, redis, clock, cost_nanos):
    hold = await worker.open("one")
    worker.deliver(hold, 10)
    await worker.renew()
    clock.at_s += 3600
    await redis.sweep(hold.scopes.partition, at_most=10)

    worker.settle(hold, cost_nanos)
    await turns()

    assert await balance(redis) == (CREDIT - 10, 0)


async def test_a_machine_that_was_away_for_a_day_has_the_rest_charged_once(worker, redis, clock):
    """It could not tell Redis of an end, and went down before it could; a sweep elsewhere charged less meanwhile."""
    request_id = RequestIds(clock).make()
    hold = await worker.open(request_id)
    worker.deliver(hold, 10)
    await worker.renew()
    redis.away = True
    worker.settle(hold, 30)
    worker.die()
    redis.away = False
    await asyncio.sleep(0)
    copy = {path: path.read_bytes() for path in worker.journal.directory.iterdir()}
    clock.at_s += 86_400
    await redis.sweep(hold.scopes.partition, at_most=10)

    for _ in range(2):
        # And once more: the first time it was killed before the file was gone.
        for path, content in copy.items():
            path.write_bytes(content)
        assert await Worker(redis, clock, worker.journal.directory).replay.replay_once() == 1

    assert await balance(redis) == (CREDIT - 30, 0)
    assert [record.cost_nanos for record in redis.records] == [10, 20]


async def test_a_living_process_ends_its_requests_itself(worker, redis):
    one, other = await worker.open("one"), await worker.open("other")
    redis.away = True
    worker.deliver(one, 10)
    with pytest.raises(StoreUnavailable):
        await worker.renew()
    worker.settle(other, 30)
    redis.away = False

    await worker.replay.replay_once()
    assert [record.request_id for record in redis.records] == ["other"]
    worker.settle(one, 50)

    assert await balance(redis) == (CREDIT - 80, 0)


async def test_what_was_told_to_redis_is_not_taken_for_an_orphan(worker, redis, clock):
    hold = await worker.open("one")
    redis.away = True
    worker.deliver(hold, 10)
    with pytest.raises(StoreUnavailable):
        await worker.renew()
    redis.away = False
    worker.settle(hold, 50)
    assert worker.journal.is_due
    worker.die()
    clock.at_s += 1000  # Redis has forgotten the request
    heir = Worker(redis, clock, worker.journal.directory)

    assert await heir.replay.replay_once() == 0

    assert await balance(redis) == (CREDIT - 50, 0)


async def test_a_file_in_which_nothing_counts_any_more_is_removed(worker, redis):
    hold = await worker.open("one")
    redis.away = True
    worker.deliver(hold, 10)
    with pytest.raises(StoreUnavailable):
        await worker.renew()
    redis.away = False

    await worker.replay.replay_once()
    assert len(list(worker.journal.directory.iterdir())) == 1  # it is under way
    worker.settle(hold, 50)
    await worker.replay.replay_once()

    assert list(worker.journal.directory.iterdir()) == []
    assert await balance(redis) == (CREDIT - 50, 0)


async def test_the_progress_of_a_request_that_redis_forgot_is_written_down(worker, redis, clock):
    hold = await worker.open("one")
    worker.deliver(hold, 10)
    redis.store = Switched(clock).store  # emptied
    await worker.renew()

    worker.die()

    (left,) = find_left(worker.journal.directory)
    assert [(entry.verb, entry.cost_nanos) for entry in left.read()] == [("progress", 10)]
    left.remove()


async def test_an_abandoned_admission_gives_back_what_it_took(worker, redis):
    scopes = redis.scopes(account_id=ACCOUNT, key_id="key", limits=pack_limits())
    redis.silent = True
    with pytest.raises(StoreUnavailable):
        await redis.admit("one", scopes, hold_nanos=100, tokens=5)
    assert (await redis.store.peek_balance(ACCOUNT)).held_nanos == 100
    redis.silent, redis.away = False, True
    worker.holds.abandon(Hold("one", scopes, 100))
    redis.away = False

    await worker.holds.close(1)

    assert await balance(redis) == (CREDIT, 0)
    assert redis.records == []


async def test_at_the_end_of_a_process_what_redis_did_not_confirm_is_written_down(worker, redis, clock):
    hold = await worker.open("one")

    class Never:
        def when_done(self, hear) -> None:
            """It is paused, and nobody has noticed yet."""

    redis.settle = lambda *_, **__: Never()
    worker.settle(hold, 40)

    await worker.holds.close(0.01)

    assert worker.journal.ends == 1
    worker.die()


async def test_damage_costs_no_other_entry_and_is_kept_for_people(worker, redis, clock):
    holds = [await worker.open(f"request {number}") for number in range(3)]
    redis.away = True
    for hold in holds:
        worker.settle(hold, 40)
    worker.die()
    (path,) = worker.journal.directory.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    redis.away = False
    heir = Worker(redis, clock, worker.journal.directory)

    assert await heir.replay.replay_once() == 2

    assert [record.request_id for record in redis.records] == ["request 0", "request 2"]
    assert [each.suffix for each in worker.journal.directory.iterdir()] == [".damaged"]
    assert await heir.replay.replay_once() == 0


async def test_a_torn_end_is_what_a_kill_leaves_and_no_damage(worker, redis, clock):
    hold = await worker.open("one")
    redis.away = True
    worker.settle(hold, 40)
    worker.die()
    (path,) = worker.journal.directory.iterdir()
    path.write_bytes(path.read_bytes() * 2)
    path.write_bytes(path.read_bytes()[:-3])
    redis.away = False
    heir = Worker(redis, clock, worker.journal.directory)

    await heir.replay.replay_once()

    assert await balance(redis) == (CREDIT - 40, 0)
    assert list(worker.journal.directory.iterdir()) == []


async def test_two_processes_do_not_tell_the_same_file(worker, redis, clock):
    hold = await worker.open("one")
    redis.away = True
    worker.settle(hold, 40)
    worker.die()
    redis.away = False
    heirs = [Worker(redis, clock, worker.journal.directory) for _ in range(3)]

    told = await asyncio.gather(*(heir.replay.replay_once() for heir in heirs))

    assert sorted(told) == [0, 0, 1]
    assert len(redis.records) == 1


def test_entries_hold_what_ends_a_request():
    entry = Entry(
        "settle",
        "one",
        3,
        b"a",
        b"k",
        None,
        5,
        6,
        encode_record(UsageRecord(request_id="one", account_id=ACCOUNT, key_id="key", cost_nanos=5)),
    )

    assert (entry.scopes.account_key, entry.scopes.key_key, entry.scopes.model_key) == (b"a", b"k", None)


async def test_the_streams_of_a_worker_do_not_wait_for_the_books_of_all_of_them(worker):
    """What each renewal costs adds up: five hundred in one go would hold up every event meanwhile."""
    in_this_turn = 0
    most = 0

    def delivered() -> None:
        nonlocal in_this_turn, most
        in_this_turn += 1
        most = max(most, in_this_turn)

    for number in range(10 * RENEWED_AT_ONCE + 1):
        worker.holds.add(await worker.open(f"request-{number}"), delivered)
    renewing = asyncio.ensure_future(worker.renew())
    while not renewing.done():
        in_this_turn = 0
        await turns(1)
    await renewing
    assert most == RENEWED_AT_ONCE


async def test_a_hold_that_ends_while_others_are_renewed_is_left_alone(worker, redis):
    holds = [await worker.open(f"request-{number}") for number in range(3 * RENEWED_AT_ONCE)]
    last = holds[-1]

    def ends_another() -> None:
        if last in worker.holds._open:
            worker.settle(last, 50)

    worker.holds.add(holds[0], ends_another)
    await worker.renew()
    assert await balance(redis) == (CREDIT - 50, 100 * (len(holds) - 1))
