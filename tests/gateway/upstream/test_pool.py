"""Which connection serves next, and who gets it: the pool, with connections that are never on a network."""

import asyncio

import pytest

from gateway.api import Origin
from gateway.errors import UpstreamDisconnected, UpstreamSaturated, UpstreamTimeout, UpstreamUnreachable
from gateway.settings import Timeouts
from gateway.upstream import pool as pool_module
from gateway.upstream.connection import Connection
from gateway.upstream.pool import Pool
from gateway.upstream.response import UpstreamResponse
from tests.gateway.upstream.wire import FakeTransport

WAIT_S = 30.0


class Bench:
    """A pool whose connections are opened by the test."""

    def __init__(self, connections_max: int = 2, keep_alive_s: float = 60.0) -> None:
        self.dialled = 0
        self.opened = 0
        self.failures: list[Exception] = []
        self.gate: asyncio.Event | None = None
        self.pool = Pool(
            Origin("http", "provider.test", 80),
            encode=lambda _: b"",
            dial=self.dial,
            watcher=self,
            connections_max=connections_max,
            keep_alive_s=keep_alive_s,
        )

    async def dial(self, pool: Pool) -> Connection:
        self.dialled += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop()
        connection = Connection(pool, asyncio.get_running_loop())
        connection.connection_made(FakeTransport(connection))
        return connection

    def made(self, connection: Connection) -> None:
        self.opened += 1

    def gone(self, connection: Connection) -> None: ...

    def settled(self, response: UpstreamResponse) -> None: ...

    async def acquire(self, *, fresh: bool = False, connect_s: float = WAIT_S) -> Connection:
        return await self.pool.acquire(connect_s, fresh=fresh)


async def turns() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_newest_idle_connection_serves_first() -> None:
    bench = Bench()
    old, new = await bench.acquire(), await bench.acquire()
    bench.pool.free(old)
    bench.pool.free(new)

    assert bench.pool.take() is new
    assert bench.pool.take() is old
    assert bench.pool.take() is None


async def test_a_connection_that_is_closing_is_passed_over() -> None:
    bench = Bench()
    first, second = await bench.acquire(), await bench.acquire()
    bench.pool.free(first)
    bench.pool.free(second)
    second.transport.abort()

    assert bench.pool.take() is first
    assert bench.pool.size == 1


async def test_sweeping_closes_the_old_and_keeps_the_young() -> None:
    bench = Bench()
    old, young = await bench.acquire(), await bench.acquire()
    bench.pool.free(old)
    bench.pool.free(young)
    young.idle_since_s += 50

    bench.pool.sweep(old.idle_since_s + 60.0)

    assert old.closed
    assert list(bench.pool.idle) == [young]
    assert bench.pool.size == 1


async def test_who_comes_beyond_the_limit_waits_and_is_served_in_order() -> None:
    bench = Bench(connections_max=1)
    held = await bench.acquire()
    order: list[int] = []

    async def caller(number: int) -> None:
        connection = await bench.acquire()
        order.append(number)
        bench.pool.free(connection)

    callers = [asyncio.ensure_future(caller(number)) for number in range(5)]
    await turns()
    assert bench.pool.waiting == 5
    bench.pool.free(held)
    await asyncio.gather(*callers)

    assert order == [0, 1, 2, 3, 4]
    assert bench.dialled == 1
    assert bench.pool.waiting == 0


async def test_the_room_of_a_closed_connection_goes_to_the_first_in_line() -> None:
    bench = Bench(connections_max=1)
    held = await bench.acquire()
    waiting = asyncio.ensure_future(bench.acquire())
    await turns()

    held.close()

    assert await waiting is not held
    assert (bench.dialled, bench.pool.size) == (2, 1)


async def test_a_failed_dial_gives_its_room_on() -> None:
    bench = Bench(connections_max=1)
    bench.gate = asyncio.Event()
    bench.failures = [UpstreamUnreachable(detail="test")]
    first = asyncio.ensure_future(bench.acquire())
    second = asyncio.ensure_future(bench.acquire())
    await turns()
    assert (bench.pool.size, bench.pool.waiting) == (1, 1)

    bench.gate.set()
    with pytest.raises(UpstreamUnreachable):
        await first
    await second

    assert bench.pool.size == 1


async def test_a_connection_closed_while_it_was_opened_is_no_connection() -> None:
    bench = Bench()
    dial = bench.dial

    async def closing(pool: Pool) -> Connection:
        connection = await dial(pool)
        connection.eof_received()
        return connection

    pool = Pool(
        Origin("http", "provider.test", 80),
        encode=lambda _: b"",
        dial=closing,
        watcher=bench,
        connections_max=1,
        keep_alive_s=60,
    )
    with pytest.raises(UpstreamDisconnected):
        await pool.acquire(WAIT_S, fresh=False)

    assert pool.size == 0
    assert bench.opened == 0


async def test_a_fresh_connection_takes_the_room_of_the_oldest_idle_one() -> None:
    bench = Bench(connections_max=2)
    oldest, newer = await bench.acquire(), await bench.acquire()
    bench.pool.free(oldest)
    bench.pool.free(newer)

    fresh = await bench.acquire(fresh=True)

    assert fresh not in (oldest, newer)
    assert oldest.closed
    assert list(bench.pool.idle) == [newer]
    assert bench.pool.size == 2


async def test_the_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(connections_max=1)
    await bench.acquire()
    waiting = [asyncio.ensure_future(bench.acquire()) for _ in range(pool_module.WAITING_MAX)]
    await turns()

    with pytest.raises(UpstreamSaturated):
        await bench.acquire()

    for caller in waiting:
        caller.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert bench.pool.waiting == 0


@pytest.mark.parametrize("connect_s", [0.01, 0.05])
async def test_a_dial_that_takes_too_long_leaves_no_trace(connect_s: float) -> None:
    bench = Bench(connections_max=1)
    bench.gate = asyncio.Event()
    with pytest.raises(UpstreamTimeout):
        await bench.acquire(connect_s=connect_s)

    assert bench.pool.size == 0


async def test_a_caller_cancelled_in_line_is_forgotten() -> None:
    bench = Bench(connections_max=1)
    held = await bench.acquire()
    gone, next_one = asyncio.ensure_future(bench.acquire()), asyncio.ensure_future(bench.acquire())
    await turns()
    gone.cancel()
    await turns()

    bench.pool.free(held)

    assert await next_one is held
    assert bench.pool.size == 1


async def test_a_connection_handed_to_a_cancelled_caller_is_handed_on() -> None:
    bench = Bench(connections_max=1)
    held = await bench.acquire()
    gone, next_one = asyncio.ensure_future(bench.acquire()), asyncio.ensure_future(bench.acquire())
    await turns()

    bench.pool.free(held)
    gone.cancel()  # before it could run

    assert await next_one is held
    assert gone.cancelled()


async def test_the_room_handed_to_a_cancelled_caller_is_handed_on() -> None:
    bench = Bench(connections_max=1)
    held = await bench.acquire()
    gone, next_one = asyncio.ensure_future(bench.acquire()), asyncio.ensure_future(bench.acquire())
    await turns()

    held.close()
    gone.cancel()

    assert await next_one is not held
    assert bench.pool.size == 1


async def test_a_handed_connection_that_closes_before_its_caller_runs_is_replaced() -> None:
    bench = Bench(connections_max=1)
    held = await bench.acquire()
    waiting = asyncio.ensure_future(bench.acquire())
    await turns()
    bench.pool.free(held)
    held.eof_received()

    assert not (await waiting).closed
    assert (bench.dialled, bench.pool.size) == (2, 1)


async def test_closing_turns_away_who_waits() -> None:
    bench = Bench(connections_max=1)
    await bench.acquire()
    waiting = asyncio.ensure_future(bench.acquire())
    await turns()

    bench.pool.close()

    with pytest.raises(UpstreamSaturated):
        await waiting


async def test_a_response_keeps_no_connection_it_has_finished_with() -> None:
    bench = Bench()
    connection = await bench.acquire()
    response = UpstreamResponse(connection, Timeouts(), 0.0, 0.0)
    connection.start(response, b"GET / HTTP/1.1\r\n\r\n", b"", bodiless=False)
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert list(bench.pool.idle) == [connection]

    response.close()

    assert list(bench.pool.idle) == [connection]
    assert not connection.closed
