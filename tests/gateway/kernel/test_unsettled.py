import asyncio
import contextlib
import uuid
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.errors import StoreUnavailable
from gateway.infra.redis import Redis
from gateway.kernel.limits import pack_limits
from gateway.kernel.record import encode_record
from gateway.kernel.request_id import RequestIds
from gateway.kernel.settler import CHANNEL
from gateway.kernel.unsettled import REMEMBERED_S, STALE_S, Unsettled, find_known
from gateway.kernel.verbs import Ended, Settled, name_scopes
from tests.books import CREDIT, Books

LIMITS = pack_limits()


class HandClock:
    def __init__(self) -> None:
        self.at_s = 1_763_640_000.0

    def now(self) -> float:
        return self.at_s

    monotonic = now


class World:
    """Redis and PostgreSQL as the buffer knows them. One partition for each account."""

    def __init__(self, partitions: int = 2) -> None:
        self.clock = HandClock()
        self.new_id = RequestIds(self.clock).make
        self.partitions = partitions
        self.streams: list[list[str]] = [[] for _ in range(partitions)]
        self.remembered: dict[str, str] = {}
        self.books: set[str] = set()
        self.redis_away = False
        self.postgres_away = False
        self.offers = 0
        self.unsettled = Unsettled(self, self.known, clock=self.clock, records_max=50)  # type: ignore[arg-type]

    def scopes(self, account_id: int):
        return name_scopes(partitions=self.partitions, account_id=account_id, key_id="k", model=None, limits=LIMITS)

    async def known(self, request_ids: Sequence[str]) -> set[str]:
        if self.postgres_away:
            raise StoreUnavailable(detail="postgres")
        return {uuid.UUID(each).hex for each in request_ids if each in self.books}

    async def settle(self, request_id: str, scopes, *, cost_nanos: int, tokens: int, record: bytes):
        self.offers += 1
        if self.redis_away:
            raise StoreUnavailable(detail="redis")
        if (verb := self.remembered.get(request_id)) not in {None, "settle"}:
            return Ended(verb, 0)
        if verb is None:
            self.remembered[request_id] = "settle"
            self.streams[scopes.partition].append(request_id)
        return Settled(cost_nanos, True)

    def serve(self, account_id: int = 0) -> str:
        """A request that is settled, and kept."""
        request_id, scopes = self.new_id(), self.scopes(account_id)
        with contextlib.suppress(StoreUnavailable):
            asyncio.run(self.settle(request_id, scopes, cost_nanos=5, tokens=1, record=b"r"))
        self.unsettled.keep(request_id, scopes, cost_nanos=5, tokens=1, record=b"r")
        return request_id

    def drain(self, partition: int, count: int = 1000, *, told: bool = True) -> None:
        done, self.streams[partition] = self.streams[partition][:count], self.streams[partition][count:]
        self.books.update(done)
        if told and done:
            self.unsettled.hear(b"s" + b"".join(uuid.UUID(each).bytes for each in done))

    def lose(self, partition: int, keep: int = 0) -> list[str]:
        lost = self.streams[partition][keep:]
        del self.streams[partition][keep:]
        for each in lost:
            del self.remembered[each]
        return lost

    def check(self) -> None:
        asyncio.run(self.unsettled.check())


def test_record_is_dropped_when_it_is_in_the_books():
    world = World()
    world.serve()
    world.serve(1)

    world.drain(0)

    assert len(world.unsettled) == 1


def test_nothing_is_offered_again_while_all_is_well():
    world = World()
    for _ in range(10):
        world.serve()
    world.clock.at_s += STALE_S + 1
    offers = world.offers

    world.check()

    assert (world.offers, len(world.unsettled)) == (offers, 10)


def test_interrupted_notices_make_it_offer_what_is_not_in_the_books():
    world = World()
    first, second = world.serve(), world.serve()
    world.drain(0, 1, told=False)
    world.lose(0)

    world.unsettled.hear(None)
    world.check()

    assert first in world.books
    assert world.streams[0] == [second]
    assert len(world.unsettled) == 1


def test_record_that_was_passed_over_is_offered_again():
    world = World()
    lost = world.serve()
    world.lose(0)
    world.serve()
    world.drain(0)

    world.check()

    assert world.streams[0] == [lost]
    world.drain(0)
    assert len(world.unsettled) == 0


def test_another_stream_makes_it_offer_the_records_of_that_partition():
    world = World()
    lost, other = world.serve(0), world.serve(1)
    world.lose(0)

    world.unsettled.hear(b"r0")
    world.check()

    assert world.streams == [[lost], [other]]


def test_missed_confirmation_is_made_up_for():
    world = World()
    world.serve()
    world.drain(0, told=False)
    world.clock.at_s += STALE_S + 1

    world.check()

    assert len(world.unsettled) == 0


def test_without_postgres_only_what_redis_would_remember_is_offered():
    world = World()
    world.serve()
    world.clock.at_s += REMEMBERED_S + 1
    fresh = world.serve()
    world.lose(0)
    world.postgres_away = True
    world.unsettled.hear(None)

    world.check()

    assert world.streams[0] == [fresh]
    world.postgres_away = False
    world.check()
    assert len(world.streams[0]) == 2


def test_failed_offer_is_made_again():
    world = World()
    lost = world.serve()
    world.lose(0)
    world.unsettled.hear(None)
    world.redis_away = True

    world.check()
    world.redis_away = False
    world.check()

    assert world.streams[0] == [lost]


def test_request_that_a_sweep_has_ended_is_let_go():
    world = World()
    request_id = world.serve()
    world.lose(0)
    world.remembered[request_id] = "expire"
    world.unsettled.hear(None)

    world.check()

    assert len(world.unsettled) == 0


def test_full_buffer_gives_up_the_oldest():
    world = World()
    ids = [world.serve() for _ in range(53)]
    world.lose(0)
    world.unsettled.hear(None)

    world.check()

    assert world.unsettled.dropped == 3
    assert world.streams[0] == ids[3:]


@pytest.mark.parametrize("message", [b"", b"x", b"r", b"rx", b"s", b"s" + b"1" * 7])
def test_notice_that_says_nothing_is_ignored(message):
    world = World()
    world.serve()

    world.unsettled.hear(message)

    assert len(world.unsettled) == 1


class Losses(RuleBasedStateMachine):
    """Whatever Redis loses and whichever notices go missing: in the end each record is in the books."""

    @initialize()
    def start(self) -> None:
        self.world = World()
        self.ids: list[str] = []

    @rule(account=st.integers(0, 1))
    def serve(self, account: int) -> None:
        if len(self.world.unsettled) < 50:
            self.ids.append(self.world.serve(account))

    @rule(partition=st.integers(0, 1), count=st.integers(1, 5), told=st.booleans())
    def drain(self, partition: int, count: int, told: bool) -> None:
        self.world.drain(partition, count, told=told)

    @rule(partition=st.integers(0, 1), keep=st.integers(0, 3), crashed=st.booleans())
    def lose(self, partition: int, keep: int, crashed: bool) -> None:
        # A crash interrupts the notices; otherwise the settler finds out.
        self.world.lose(partition, keep)
        self.world.unsettled.hear(None if crashed else b"r%d" % partition)

    @rule()
    def forget(self) -> None:
        self.world.clock.at_s += 130
        self.world.remembered.clear()
        # What is in the stream is lost with its memory only where Redis crashed.
        for stream in self.world.streams:
            self.world.remembered.update(dict.fromkeys(stream, "settle"))

    @rule(away=st.booleans())
    def postgres(self, away: bool) -> None:
        self.world.postgres_away = away

    @rule(away=st.booleans())
    def redis(self, away: bool) -> None:
        if away != self.world.redis_away:
            self.world.redis_away = away
            self.world.unsettled.hear(None)

    @rule()
    def check(self) -> None:
        self.world.check()

    @invariant()
    def what_is_not_in_the_books_is_kept(self) -> None:
        kept = {kept.request_id for kept in self.world.unsettled._kept.values()}
        assert set(self.ids) - self.world.books <= kept

    def teardown(self) -> None:
        world = self.world
        world.redis_away = world.postgres_away = False
        world.unsettled.hear(None)
        world.check()
        for partition in range(2):
            world.drain(partition)
        world.check()
        assert world.books == set(self.ids)
        assert len(world.unsettled) == 0


Losses.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLosses = Losses.TestCase


async def test_records_survive_an_emptied_redis_and_are_charged_once(books: Books, redis_url: str):
    account = await books.open_account()
    unsettled = Unsettled(books.ledger, find_known(books.database), clock=books.clock)
    listener = Redis(redis_url, timeout_s=10.0)
    await listener.connect()
    subscription = listener.subscribe(CHANNEL)
    await books.loader.ensure_loaded(account)
    try:
        records = [books.record(account, cost) for cost in range(1, 21)]
        for number, record in enumerate(records):
            unsettled.keep(
                record.request_id,
                books.scopes(account),
                cost_nanos=record.cost_nanos,
                tokens=7,
                record=encode_record(record),
            )
            await books.settle(record)
            if number == 9:
                await books.drain()
        assert await books.hot_nanos(account) == CREDIT - sum(range(1, 21))
        await books.redis.execute("FLUSHALL", "SYNC")
        unsettled.hear(None)

        await unsettled.check()
        await books.drain()
        assert len(unsettled) == 10
        unsettled.hear(None)
        await unsettled.check()
        await books.loader.ensure_loaded(account, force=True)

        assert len(unsettled) == 0
        assert await books.book_nanos(account) == await books.hot_nanos(account) == CREDIT - sum(range(1, 21))
        await books.assert_balanced()
    finally:
        subscription.close()
        await listener.close()


async def test_running_buffer_hears_the_settler(books: Books, redis_url: str):
    account = await books.open_account()
    unsettled = Unsettled(books.ledger, find_known(books.database), clock=books.clock)
    listener = Redis(redis_url, timeout_s=10.0)
    await listener.connect()
    subscription = listener.subscribe(CHANNEL)
    unsettled.start(subscription)
    try:
        for cost in (1, 2, 3):
            record = books.record(account, cost)
            await books.settle(record)
            unsettled.keep(
                record.request_id, books.scopes(account), cost_nanos=cost, tokens=7, record=encode_record(record)
            )
        await books.drain()

        async with asyncio.timeout(30):
            while len(unsettled) > 0:  # noqa: ASYNC110  it tells nobody
                await asyncio.sleep(0.02)
    finally:
        await unsettled.stop()
        await listener.close()
