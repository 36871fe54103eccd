"""Whoever is slow slows the other side down: memory stays bounded both ways."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable

import pytest

from gateway.settings import Timeouts
from gateway.upstream import UpstreamClient
from gateway.upstream.connection import Connection
from gateway.upstream.response import HELD_BYTES_MAX, UpstreamResponse
from tests.gateway.upstream.bodies import PATIENT, Record, fetch, request, until
from tests.gateway.upstream.wire import FakeOwner, FakeTransport
from tests.upstreams import RECEIVE, Peer, ScriptedUpstream, answer, play

#: What a fast reader gets whole, slowly.
SIZE_BYTES = 4 * 1024 * 1024
#: Far more than the kernel holds for a connection, even where its buffers may grow to 32 MiB.
FLOOD_BYTES = 256 * 1024 * 1024


class Flood:
    """A script that sends as fast as it is let, and counts."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.sent_bytes = 0

    async def __call__(self, peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % self.size_bytes)
        while self.sent_bytes < self.size_bytes:
            await peer.send(b"x" * 65536)
            self.sent_bytes += 65536

    async def assert_stalls(self) -> None:
        """Wait until nothing moves any more, which must be before all is sent."""
        await still(lambda: self.sent_bytes)
        assert self.sent_bytes < self.size_bytes


async def still(count: Callable[[], int]) -> None:
    """Wait until `count` has begun and stays as it is."""
    seen = same = 0
    while same < 3:
        await asyncio.sleep(0.05)
        same = same + 1 if count() == seen > 0 else 0
        seen = count()


async def test_a_body_that_nobody_takes_is_not_read(client: UpstreamClient) -> None:
    flood = Flood(FLOOD_BYTES)
    async with ScriptedUpstream(flood) as upstream:
        tracemalloc.start()
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        await flood.assert_stalls()
        held_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        response.close()

        assert held_bytes < 4 * HELD_BYTES_MAX


@pytest.mark.parametrize("how", ["read", "iterate"])
async def test_a_body_taken_late_is_whole(client: UpstreamClient, how: str) -> None:
    async with ScriptedUpstream(Flood(SIZE_BYTES)) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        await asyncio.sleep(0.05)
        if how == "read":
            body = await response.read(SIZE_BYTES)
        else:
            body = b"".join([piece async for piece in response])

        assert body == b"x" * SIZE_BYTES
        assert response.complete


class Slow(Record):
    """Pauses after every chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.response: UpstreamResponse | None = None
        self.size_bytes = 0

    def data(self, chunk: bytes) -> None:
        assert self.response is not None
        self.size_bytes += len(chunk)
        self.response.pause()
        self.fed.set()


async def test_a_paused_sink_stops_the_provider(client: UpstreamClient) -> None:
    flood = Flood(FLOOD_BYTES)
    async with ScriptedUpstream(flood) as upstream:
        sink = Slow()
        sink.response = await client.send(request(upstream.origin), timeouts=PATIENT)
        sink.response.pipe(sink)
        await flood.assert_stalls()
        assert 0 < sink.size_bytes <= 2 * HELD_BYTES_MAX

        # One resume is one more read.
        before_bytes = sink.size_bytes
        sink.fed.clear()
        sink.response.resume()
        await sink.fed.wait()
        assert sink.size_bytes - before_bytes <= 2 * HELD_BYTES_MAX
        sink.response.close()


async def test_a_sink_that_pauses_gets_everything_once(client: UpstreamClient) -> None:
    async with ScriptedUpstream(Flood(SIZE_BYTES)) as upstream:
        sink = Slow()
        sink.response = await client.send(request(upstream.origin), timeouts=PATIENT)
        sink.response.pipe(sink)
        while not sink.over.is_set():
            sink.response.resume()
            await asyncio.sleep(0.001)

        assert (sink.size_bytes, sink.ends) == (SIZE_BYTES, 1)


async def test_a_slow_iterator_stops_the_provider(client: UpstreamClient) -> None:
    flood = Flood(FLOOD_BYTES)
    async with ScriptedUpstream(flood) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        pieces = aiter(response)
        assert len(await anext(pieces)) <= 2 * HELD_BYTES_MAX
        await flood.assert_stalls()
        assert len(await anext(pieces)) <= 2 * HELD_BYTES_MAX
        response.close()


async def test_a_slow_provider_stops_the_body_that_is_sent(client: UpstreamClient) -> None:
    asked_bytes = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal asked_bytes
        while asked_bytes < FLOOD_BYTES:
            asked_bytes += 65536
            yield b"x" * 65536

    async def deaf(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        await asyncio.Event().wait()

    async with ScriptedUpstream(deaf) as upstream:
        sending = asyncio.ensure_future(client.send(request(upstream.origin, body=body()), timeouts=PATIENT))
        await still(lambda: asked_bytes)

        assert asked_bytes < FLOOD_BYTES
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_body_taken_late_by_the_provider_arrives_whole(client: UpstreamClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(SIZE_BYTES // 65536):
            yield b"x" * 65536

    async def slow(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        await asyncio.sleep(0.1)
        peer.writer.transport.resume_reading()
        await peer.receive()
        await peer.send(answer(b"ok"))

    async with ScriptedUpstream(slow) as upstream:
        sent = request(upstream.origin, body=body(), content_length=SIZE_BYTES)
        assert await fetch(client, sent) == (200, b"ok")
        assert upstream.requests[0].body == b"x" * SIZE_BYTES


async def test_a_connection_freed_while_paused_is_read_again(client: UpstreamClient) -> None:
    class Pausing(Record):
        def data(self, chunk: bytes) -> None:
            super().data(chunk)
            response.pause()

    async with ScriptedUpstream(play(RECEIVE, answer(b"a" * HELD_BYTES_MAX), RECEIVE, answer(b"second"))) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        record = Pausing()
        response.pipe(record)
        while not record.over.is_set():
            response.resume()
            await asyncio.sleep(0.001)

        await until(lambda: client.stats.idle == 1)
        assert await fetch(client, request(upstream.origin)) == (200, b"second")
        assert upstream.connections == 1


# -- the same, with a transport that tells ------------------------------------------------------------------------


@pytest.fixture
async def wire() -> tuple[Connection, FakeTransport, UpstreamResponse]:
    """A connection in the middle of an endless body that nobody takes yet."""
    connection = Connection(FakeOwner(), asyncio.get_running_loop())
    transport = FakeTransport(connection)
    connection.connection_made(transport)
    response = UpstreamResponse(connection, Timeouts(), 0.0, 0.0)
    connection.start(response, b"GET / HTTP/1.1\r\n\r\n", b"", bodiless=False)
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
    return connection, transport, response


async def test_reading_pauses_at_the_bound_and_resumes_when_taken(
    wire: tuple[Connection, FakeTransport, UpstreamResponse],
) -> None:
    connection, transport, response = wire
    connection.data_received(b"x" * (HELD_BYTES_MAX - 1))
    assert transport.reading
    connection.data_received(b"x")
    assert not transport.reading

    record = Record()
    response.pipe(record)

    assert transport.reading
    assert len(record.body) == HELD_BYTES_MAX
    assert len(record.chunks) == 1


async def test_pausing_and_resuming_twice_is_once(wire: tuple[Connection, FakeTransport, UpstreamResponse]) -> None:
    _, transport, response = wire
    response.pause()
    response.pause()
    assert not transport.reading

    response.resume()
    response.resume()
    assert transport.reading


async def test_pausing_a_finished_response_touches_nobody(
    wire: tuple[Connection, FakeTransport, UpstreamResponse],
) -> None:
    connection, transport, response = wire
    connection.eof_received()
    assert response.complete

    response.pause()
    response.resume()

    assert transport.reading
