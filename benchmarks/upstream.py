"""A scripted provider, as cheap as Python allows, so that what stands before it is what gets measured.

The model named in the request decides the answer: `bench-json` is one completion with usage, `bench-burst-50` fifty
SSE events in one write, `bench-paced-1000` a thousand events, one every 20 ms, each carrying as `"t"` the nanosecond
of CLOCK_MONOTONIC at which it was handed to the kernel. That clock is the machine's, so a load generator in another
process subtracts it from its own.

Paced streams come in the format of the path that is asked for: OpenAI's chunks, Anthropic's events (`/v1/messages`)
or Google's (`:streamGenerateContent`, the model in the path), so that what a translation costs can be measured.

Rules: answers are rendered before the first request; there is no HTTP library, only a search for the end of the head
and for content-length, which is all that proxies under test send; keep-alive and pipelining work. All paced streams
hang on one timer wheel. Their events go straight to the socket, because uvloop would collect them until the end of
its turn, after the time stamp was taken. A stream whose socket is full loses the event and not the pace.

It validates nothing and times nothing out: never put it on a public interface.

    python -m benchmarks.upstream --port 9001 --core 1
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple, cast

import uvloop

from benchmarks.machine import pin

#: One turn of the wheel, that is the time between two events of a stream.
INTERVAL_MS: Final = 20
TIMESTAMP_DIGITS: Final = 19

_CREATED: Final = 1_760_000_000
_IDENTITY: Final = b'"id":"chatcmpl-bench","created":%d,"model":"bench"' % _CREATED
_USAGE: Final = b'"usage":{"prompt_tokens":12,"completion_tokens":48,"total_tokens":60}'


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _event(delta: bytes, *, tail: bytes = b"") -> bytes:
    """A `chat.completion.chunk` as SSE, about 200 bytes."""
    return (
        b'data: {"object":"chat.completion.chunk",' + _IDENTITY + b',"system_fingerprint":"fp_bench","choices":'
        b'[{"index":0,"delta":' + delta + b',"logprobs":null,"finish_reason":null}]' + tail + b"}\n\n"
    )


_ROLE: Final = _event(b'{"role":"assistant","content":""}')
_WORD: Final = _event(b'{"content":" measured"}')
_LAST: Final = (
    b'data: {"object":"chat.completion.chunk",' + _IDENTITY + b',"choices":[],' + _USAGE + b"}\n\n",
    b"data: [DONE]\n\n",
)
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_END: Final = _chunk(_LAST[0]) + _chunk(_LAST[1]) + b"0\r\n\r\n"

#: The body of a `bench-json` answer; also what another server has to send to stand in for this one.
COMPLETION: Final = (
    b'{"object":"chat.completion",' + _IDENTITY + b',"choices":[{"index":0,"message":{"role":"assistant","content":'
    b'"A gateway should cost nothing that its users can feel, and prove it with numbers."},"logprobs":null,'
    b'"finish_reason":"stop"}],' + _USAGE + b',"service_tier":"default","system_fingerprint":"fp_bench"}'
)
_JSON_ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(COMPLETION)
) + COMPLETION


class Voice(NamedTuple):
    """A paced stream in one provider's format, chunk by chunk."""

    begin: bytes
    #: Interpolated with one integer for each event sent: chunk header, event, chunk end.
    stamped: bytes
    end: bytes


def _voice(begin: bytes, stamped: bytes, *end: bytes) -> Voice:
    """`stamped` is an event with a `%d` in it."""
    size = len(stamped) - len(b"%d") + TIMESTAMP_DIGITS
    chunk = (b"%x\r\n" % size) + stamped.replace(b"%d", b"%019d") + b"\r\n"
    return Voice(_STREAM_HEAD + _chunk(begin), chunk, b"".join(map(_chunk, end)) + b"0\r\n\r\n")


def _named(kind: bytes, members: bytes) -> bytes:
    return b'event: %b\ndata: {"type":"%b",%b}\n\n' % (kind, kind, members)


def _fragment(part: bytes, *, tail: bytes) -> bytes:
    return (
        b'data: {"candidates": [{"content": {"parts": [' + part + b'],"role": "model"},"index": 0' + tail + b"}],"
        b'"usageMetadata": {"promptTokenCount": 12,"candidatesTokenCount": 48,"totalTokenCount": 60,'
        b'"promptTokensDetails": [{"modality": "TEXT","tokenCount": 12}]},"modelVersion": "bench",'
        b'"responseId": "bench"}\r\n\r\n'
    )


_OPENAI: Final = _voice(_ROLE, _event(b'{"content":" measured"}', tail=b',"t":"%d"'), *_LAST)
_ANTHROPIC: Final = _voice(
    _named(
        b"message_start",
        b'"message":{"id":"msg_bench","type":"message","role":"assistant","model":"bench","content":[],'
        b'"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":12,"output_tokens":1}}',
    )
    + _named(b"content_block_start", b'"index":0,"content_block":{"type":"text","text":""}'),
    _named(b"content_block_delta", b'"index":0,"delta":{"type":"text_delta","text":" measured"},"t":"%d"'),
    _named(b"content_block_stop", b'"index":0'),
    _named(b"message_delta", b'"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":48}'),
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
_GOOGLE: Final = _voice(
    _fragment(b'{"text": " "}', tail=b""),
    _fragment(b'{"text": " measured"}', tail=b',"t":"%d"'),
    _fragment(b'{"text": ""}', tail=b',"finishReason": "STOP"'),
)
_GOOGLE_VERB: Final = b":streamGenerateContent"


def burst_body(events: int) -> bytes:
    """The events of a burst, `events` of them, usage and `[DONE]` included, before chunked framing."""
    return _ROLE + _WORD * (events - 3) + _LAST[0] + _LAST[1]


def render_burst(events: int) -> bytes:
    """A whole burst answer: every event in its own chunk, as providers send them, but all in one write."""
    words = [_chunk(_WORD)] * (events - 3)
    return b"".join((_STREAM_HEAD, _chunk(_ROLE), *words, _END))


class Wheel:
    """Paced streams in 20 slots of a millisecond. One timer serves all; a slot's streams are written back to back."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: list[dict[Connection, None]] = [{} for _ in range(INTERVAL_MS)]
        self._next_slot = 0
        self._tick_done = 0
        self._running = False
        self.streams = 0

    def add(self, stream: "Connection") -> None:
        """Put a stream on the next slot in turn, so that the slots stay equally long."""
        stream.slot = self._next_slot
        self._next_slot = (self._next_slot + 1) % INTERVAL_MS
        self._slots[stream.slot][stream] = None
        self.streams += 1
        if not self._running:
            self._running = True
            self._tick_done = time.monotonic_ns() // 1_000_000
            self._loop.call_later(0.001, self._turn)

    def remove(self, stream: "Connection") -> None:
        if stream.slot >= 0:
            del self._slots[stream.slot][stream]
            stream.slot = -1
            self.streams -= 1

    def _turn(self) -> None:
        if not self.streams:
            self._running = False
            return
        now = time.monotonic_ns() // 1_000_000
        # Whoever is more than a turn late has lost those events: the rate drops, nothing piles up.
        first = max(self._tick_done + 1, now - INTERVAL_MS + 1)
        for tick in range(first, now + 1):
            for stream in tuple(self._slots[tick % INTERVAL_MS]):
                stream.send_paced()
        self._tick_done = now
        self._loop.call_later(0.001, self._turn)


class Connection(asyncio.Protocol):
    """One caller's connection. Requests are answered in order; a paced answer takes the connection for itself."""

    transport: asyncio.Transport

    def __init__(self, wheel: Wheel, answers: dict[bytes, bytes]) -> None:
        self._wheel = wheel
        self._answers = answers
        self._pending = b""
        self._fd = -1
        self._left = 0
        self._blocked = False
        self._voice = _OPENAI
        self.slot = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The loop hands a TCP transport to a TCP server's protocol.
        self.transport = cast("asyncio.Transport", transport)
        self._fd = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wheel.remove(self)

    def eof_received(self) -> None:
        self._wheel.remove(self)

    def data_received(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
        start = 0
        while self.slot < 0 and (head_end := data.find(b"\r\n\r\n", start)) >= 0:
            body = head_end + 4
            end = body + _content_length(data[start:head_end])
            if len(data) < end:
                break
            self._answer(*_asked(data, start, head_end, end))
            start = end
        self._pending = data[start:]

    def _answer(self, model: bytes, voice: Voice) -> None:
        answer = self._answers.get(model)
        if answer is None and model.startswith(b"bench-paced-"):
            self._left = int(model[12:])
            self._voice = voice
            self.transport.write(voice.begin)
            self._wheel.add(self)
            return
        if answer is None:
            answer = render_burst(int(model[12:])) if model.startswith(b"bench-burst-") else _JSON_ANSWER
            self._answers[model] = answer
        self.transport.write(answer)

    def send_paced(self) -> None:
        """Called by the wheel every 20 ms."""
        if self._blocked:
            if self.transport.get_write_buffer_size():
                return
            self._blocked = False
        if self._left == 0:
            self._wheel.remove(self)
            self.transport.write(self._voice.end)
            if self._pending:
                self.data_received(b"")
            return
        self._left -= 1
        event = self._voice.stamped % time.monotonic_ns()
        try:
            sent = os.write(self._fd, event)
        except BlockingIOError:
            return
        except OSError:
            self._wheel.remove(self)
            return
        if sent < len(event):
            self._blocked = True
            self.transport.write(event[sent:])


def _content_length(head: bytes) -> int:
    """0 where there is none, as with GET."""
    at = head.find(b"ontent-")
    while at >= 0:
        if head[at + 7 : at + 14].lower() == b"length:":
            return int(head[at + 14 :].split(b"\r\n", 1)[0])
        at = head.find(b"ontent-", at + 7)
    return 0


def _asked(data: bytes, start: int, head_end: int, end: int) -> tuple[bytes, Voice]:
    """The `bench-` model that a request names, and in which format; empty where it names none."""
    path = data[start : data.find(b"\r\n", start)].split(b" ")[1]
    model, found, _ = path.partition(_GOOGLE_VERB)
    if found:
        return model.rpartition(b"/")[2], _GOOGLE
    at = data.find(b'"bench-', head_end, end)
    model = data[at + 1 : data.find(b'"', at + 1, end)] if at >= 0 else b""
    return model, _ANTHROPIC if path.startswith(b"/v1/messages") else _OPENAI


async def serve(*, host: str, port: int, stop: asyncio.Event, ready: Callable[[int], None] | None = None) -> None:
    """Answer on `host:port` until `stop` is set; `ready` gets the port once it listens (useful with port 0)."""
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop)
    answers: dict[bytes, bytes] = {}
    server = await loop.create_server(lambda: Connection(wheel, answers), host, port, backlog=8192)
    if ready is not None:
        ready(server.sockets[0].getsockname()[1])
    try:
        await stop.wait()
    finally:
        server.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream", description="A scripted provider.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--core", type=int, help="run on this processor only")
    options = parser.parse_args(arguments)
    if options.core is not None:
        pin(os.getpid(), core=options.core)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(
            host=options.host,
            port=options.port,
            stop=stop,
            ready=lambda port: print(f"listening on {options.host}:{port}", flush=True),
        )

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
