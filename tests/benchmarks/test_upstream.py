import asyncio
from collections.abc import AsyncIterator

import httptools
import msgspec
import pytest

from benchmarks import upstream
from gateway.loadtest.events import EventCounter


class Answers:
    """Reads answers the way another program's parser does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._body = b""
        self.parser = httptools.HttpResponseParser(self)

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        self.bodies.append(self._body)
        self._body = b""


@pytest.fixture
async def port() -> AsyncIterator[int]:
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.get_running_loop().create_task(
        upstream.serve(host="127.0.0.1", port=0, stop=stop, ready=ready.set_result)
    )
    yield await ready
    stop.set()
    await task


def request(model: str, header: str = "content-length") -> bytes:
    body = b'{"model":"%b","stream":true}' % model.encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%b: %d\r\n\r\n%b" % (header.encode(), len(body), body)


async def ask(port: int, *pieces: bytes, answers: int = 1) -> list[bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    read = Answers()
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    while len(read.bodies) < answers:
        data = await reader.read(65536)
        assert data, "closed early"
        read.parser.feed_data(data)
    writer.close()
    await writer.wait_closed()
    return read.bodies


async def test_json_is_a_completion_with_usage(port: int) -> None:
    (body,) = await ask(port, request("bench-json"))

    decoded = msgspec.json.decode(body)
    assert decoded["object"] == "chat.completion"
    assert decoded["usage"]["total_tokens"] == 60
    assert 300 <= len(body) <= 500


async def test_a_burst_has_as_many_events_as_asked_for(port: int) -> None:
    (body,) = await ask(port, request("bench-burst-50"))

    events = body.split(b"\n\n")[:-1]
    assert len(events) == 50
    assert EventCounter().feed(body) == 50
    assert events[-1] == b"data: [DONE]"
    for event in events[:-1]:
        assert msgspec.json.decode(event.removeprefix(b"data: "))["object"] == "chat.completion.chunk"
    assert body == upstream.burst_body(50)


async def test_paced_events_carry_the_time_they_were_sent(port: int) -> None:
    (body,) = await ask(port, request("bench-paced-4"))

    events = [msgspec.json.decode(event[6:]) for event in body.split(b"\n\n")[:-2]]
    stamps = [int(event["t"]) for event in events if "t" in event]
    assert len(stamps) == 4
    assert stamps == sorted(stamps)
    assert events[-1]["usage"]["total_tokens"] == 60
    assert body.endswith(b"data: [DONE]\n\n")


async def test_requests_cut_or_joined_anywhere_are_all_answered(port: int) -> None:
    one = request("bench-json", header="Content-Length")
    wire = one + request("bench-burst-5") + one

    whole = await ask(port, wire, answers=3)
    split = await ask(port, *(wire[at : at + 7] for at in range(0, len(wire), 7)), answers=3)

    assert whole == split == [upstream.COMPLETION, upstream.burst_body(5), upstream.COMPLETION]


async def test_a_request_behind_a_paced_stream_waits_for_its_end(port: int) -> None:
    bodies = await ask(port, request("bench-paced-3") + request("bench-json"), answers=2)

    assert bodies[0].endswith(b"data: [DONE]\n\n")
    assert bodies[1] == upstream.COMPLETION


async def test_a_caller_that_leaves_takes_its_stream_off_the_wheel() -> None:
    wheel = upstream.Wheel(asyncio.get_running_loop())
    lost = asyncio.Event()

    class Watched(upstream.Connection):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    server = await asyncio.get_running_loop().create_server(lambda: Watched(wheel, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(request("bench-paced-100000"))
        await reader.readuntil(b'"t":')
        assert wheel.streams == 1

        writer.close()
        await lost.wait()

        assert wheel.streams == 0


@pytest.mark.parametrize(
    ("path", "begins", "ends"),
    [
        ("/v1/messages", b'event: message_start\ndata: {"type":"message_start"', b'{"type":"message_stop"}\n\n'),
        ("/v1beta/models/bench-paced-2:streamGenerateContent?alt=sse", b'data: {"candidates"', b"}\r\n\r\n"),
    ],
)
async def test_a_paced_stream_is_in_the_format_of_its_path(port: int, path: str, begins: bytes, ends: bytes) -> None:
    asked = request("bench-paced-2").replace(b"/v1/chat/completions", path.encode())

    (body,) = await ask(port, asked)

    assert body.startswith(begins)
    assert body.endswith(ends)
    events = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
    stamped = [event for event in map(msgspec.json.decode, events) if b'"t":' in msgspec.json.encode(event)]
    assert len(stamped) == 2
