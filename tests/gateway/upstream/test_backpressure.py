"""Whoever is slow slows the other side down: memory stays bounded both ways."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from gateway.settings import Timeouts
from gateway.upstream import UpstreamClient
from gateway.upstream.connection import Connection
from gateway.upstream.response import HELD_BYTES_MAX, UpstreamResponse
from tests.gateway.upstream.bodies import PATIENT, Record, fetch, request, until
from tests.gateway.upstream.wire import FakeOwner, FakeTransport
from tests.upstreams import RECEIVE, Peer, ScriptedUpstream, answer, play

SIZE_BYTES = 24 * 1024 * 1024
#: What sockets hold on both ends of a loopback connection, and both loops' own buffers: far below the body.
IN_FLIGHT_BYTES_MAX = 12 * 1024 * 1024


class Flood:
    """A script that sends as fast as it is let, and counts."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.stalled_at = -1

    async def __call__(self, peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE_BYTES)
        while self.sent_bytes < SIZE_BYTES:
            await peer.send(b"x" * 65536)
            self.sent_bytes += 65536

    async def stalled(self) -> None:
        """Wait until nothing moves any more."""
        while self.stalled_at != self.sent_bytes:
            self.stalled_at = self.sent_bytes
            await asyncio.sleep(0.1)


async def test_a_body_that_nobody_takes_is_not_read(client: UpstreamClient) -> None:
    flood = Flood()
    async with ScriptedUpstream(flood) as upstream:
        tracemalloc.start()
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        await flood.stalled()
        held_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert flood.sent_bytes < IN_FLIGHT_BYTES_MAX
        assert held_bytes < 4 * HELD_BYTES_MAX
        assert await response.read(SIZE_BYTES) == b"x" * SIZE_BYTES
        assert response.complete


async def test_a_paused_sink_stops_the_provider(client: UpstreamClient) -> None:
    class Slow(Record):
        size_bytes = 0

        def data(self, chunk: bytes) -> None:
            self.size_bytes += len(chunk)
            self.fed.set()
            response.pause()

    flood = Flood()
    async with ScriptedUpstream(flood) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        sink = Slow()
        response.pipe(sink)
        await sink.fed.wait()
        await flood.stalled()
        assert flood.sent_bytes < IN_FLIGHT_BYTES_MAX
        assert sink.size_bytes <= 2 * HELD_BYTES_MAX

        while not sink.over.is_set():
            sink.fed.clear()
            response.resume()
            waiters = [asyncio.ensure_future(event.wait()) for event in (sink.fed, sink.over)]
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            for waiter in waiters:
                waiter.cancel()

        assert sink.size_bytes == SIZE_BYTES
        assert sink.ends == 1


async def test_a_slow_iterator_stops_the_provider(client: UpstreamClient) -> None:
    flood = Flood()
    async with ScriptedUpstream(flood) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        pieces = aiter(response)
        size_bytes = len(await anext(pieces))
        await flood.stalled()
        assert flood.sent_bytes < IN_FLIGHT_BYTES_MAX

        async for piece in pieces:
            assert len(piece) <= 2 * HELD_BYTES_MAX
            size_bytes += len(piece)
        assert size_bytes == SIZE_BYTES


async def test_a_slow_provider_stops_the_body_that_is_sent(client: UpstreamClient) -> None:
    asked_bytes = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal asked_bytes
        while asked_bytes < SIZE_BYTES:
            asked_bytes += 65536
            yield b"x" * 65536

    async def slow(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        await release.wait()
        peer.writer.transport.resume_reading()
        await peer.receive()
        await peer.send(answer(b"ok"))

    release = asyncio.Event()
    async with ScriptedUpstream(slow) as upstream:
        sending = asyncio.ensure_future(
            fetch(client, request(upstream.origin, body=body(), content_length=SIZE_BYTES))
        )
        seen_bytes = -1
        while seen_bytes != asked_bytes or not seen_bytes:
            seen_bytes = asked_bytes
            await asyncio.sleep(0.1)
        assert asked_bytes < IN_FLIGHT_BYTES_MAX

        release.set()
        assert await sending == (200, b"ok")
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
