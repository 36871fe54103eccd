"""The protocol of one socket, without one: what is written, when it serves again, what it leaves behind."""

import asyncio
import gc

import pytest

from gateway.errors import UpstreamDisconnected, UpstreamMalformed
from gateway.settings import Timeouts
from gateway.upstream.connection import HEAD_BYTES_MAX, Connection
from gateway.upstream.response import UpstreamResponse
from tests.gateway.upstream.bodies import Record
from tests.gateway.upstream.wire import FakeOwner, FakeTransport

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Wire:
    """A connection between its owner and its transport."""

    def __init__(self) -> None:
        self.owner = FakeOwner()
        self.connection = Connection(self.owner, asyncio.get_running_loop())
        self.transport = FakeTransport(self.connection)
        self.connection.connection_made(self.transport)
        self.connection.adopt()

    def start(self, body: bytes | None = b"{}", *, bodiless: bool = False) -> tuple[UpstreamResponse, Record]:
        response = UpstreamResponse(self.connection, Timeouts(), 0.0, 0.0)
        self.connection.start(response, HEAD, body, bodiless=bodiless)
        record = Record()
        response.pipe(record)
        return response, record


@pytest.fixture
async def wire() -> Wire:
    return Wire()


async def test_a_small_body_is_one_write_with_its_head_and_a_large_one_is_not_copied(wire: Wire) -> None:
    large = b"x" * 100_000

    wire.start(b"{}")
    wire.connection.data_received(OK)
    wire.start(large)

    assert wire.transport.written == [HEAD + b"{}", HEAD, large]
    assert wire.transport.written[2] is large


async def test_a_read_that_is_one_body_piece_is_handed_on_as_one_object(wire: Wire) -> None:
    _, record = wire.start()
    wire.connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    wire.connection.data_received(b"5\r\nhello\r\n")
    wire.connection.data_received(b"1\r\n,\r\n6\r\n world\r\n")

    assert record.chunks == [b"hello", b", world"]


async def test_it_serves_again_only_when_the_whole_request_is_written(wire: Wire) -> None:
    wire.transport.unwritten = 1
    _, record = wire.start(b"x" * 100_000)
    wire.connection.data_received(OK)

    assert (record.body, record.ends) == (b"hello", 1)
    assert wire.transport.aborted
    assert (wire.owner.freed, wire.owner.dropped) == (0, 1)


async def test_it_does_not_serve_again_while_its_body_is_still_to_come(wire: Wire) -> None:
    _, record = wire.start(None)
    wire.connection.data_received(OK)

    assert record.ends == 1
    assert wire.transport.aborted


async def test_a_read_with_head_and_large_body_is_taken_whole(wire: Wire) -> None:
    body = b"y" * 3 * HEAD_BYTES_MAX
    _, record = wire.start()
    wire.connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    assert record.chunks == [body]
    assert wire.owner.freed == 1


@pytest.mark.parametrize("step", [1000, HEAD_BYTES_MAX, 10 * HEAD_BYTES_MAX])
async def test_a_head_is_bounded_however_it_comes(wire: Wire, step: int) -> None:
    _, record = wire.start()
    data = b"HTTP/1.1 200 OK\r\nx: " + b"a" * 2 * HEAD_BYTES_MAX + b"\r\ncontent-length: 0\r\n\r\n"
    for start in range(0, len(data), step):
        if not wire.transport.aborted:
            wire.connection.data_received(data[start : start + step])

    assert [type(error) for error in record.errors] == [UpstreamMalformed]


async def test_chunk_headers_alone_do_not_add_up_to_the_bound(wire: Wire) -> None:
    _, record = wire.start()
    wire.connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(HEAD_BYTES_MAX // 2):
        for piece in (b"1\r\n", b".", b"\r\n"):
            wire.connection.data_received(piece)

    assert record.errors == []
    assert len(record.body) == HEAD_BYTES_MAX // 2


async def test_losing_the_connection_tells_everybody_once(wire: Wire) -> None:
    response, record = wire.start()
    wire.connection.connection_lost(ConnectionResetError("reset by peer"))

    assert [type(error) for error in record.errors] == [UpstreamDisconnected]
    assert "reset by peer" in (record.errors[0].detail or "")
    assert (wire.owner.dropped, wire.owner.lost, len(wire.owner.settlements)) == (1, 1, 1)
    assert "failed" in repr(response)


async def test_an_eof_and_then_the_loss_tells_once(wire: Wire) -> None:
    _, record = wire.start()
    wire.connection.eof_received()
    wire.connection.connection_lost(None)

    assert len(record.errors) == 1
    assert (wire.owner.dropped, wire.owner.lost) == (1, 1)


async def test_writing_to_a_lost_connection_is_nothing(wire: Wire) -> None:
    wire.start(None)
    wire.connection.pause_writing()
    waiting = asyncio.ensure_future(wire.connection.writable())
    await asyncio.sleep(0)
    wire.connection.connection_lost(None)
    await waiting

    wire.connection.write(b"late")
    await wire.connection.writable()
    assert wire.transport.written == [HEAD]


async def test_two_readers_of_one_response_are_a_bug(wire: Wire) -> None:
    response = UpstreamResponse(wire.connection, Timeouts(), 0.0, 0.0)
    wire.connection.start(response, HEAD, b"", bodiless=False)
    assert "no head yet" in repr(response)
    wire.connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
    assert repr(response) == "<UpstreamResponse: 200, open>"
    first = asyncio.ensure_future(response.read(10))
    await asyncio.sleep(0)

    with pytest.raises(RuntimeError):
        await response.read(10)
    response.close()
    with pytest.raises(UpstreamDisconnected):
        await first


async def test_exchanges_leave_nothing_for_the_garbage_collector(wire: Wire) -> None:
    async def exchange() -> None:
        response = UpstreamResponse(wire.connection, Timeouts(), 0.0, 0.0)
        wire.connection.start(response, HEAD, b"{}", bodiless=False)
        wire.connection.data_received(OK)
        await response.arrived
        assert await response.read(10) == b"hello"

    await exchange()
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            await exchange()
        assert gc.collect() == 0
    finally:
        gc.enable()


async def test_a_lost_connection_leaves_nothing_for_the_garbage_collector() -> None:
    def lifetime() -> None:
        wire = Wire()
        wire.start()
        wire.connection.data_received(OK)
        wire.connection.connection_lost(None)
        # The fake transport's own hold on its protocol, which a real one gives up.
        del wire.transport.protocol

    lifetime()
    gc.collect()
    gc.disable()
    try:
        lifetime()
        assert gc.collect() == 0
    finally:
        gc.enable()
