"""A provider that needs no account: for the first request, for tests and for benchmarks.

`start` opens a small HTTP/1.1 server on the loopback interface, inside the worker; requests reach it over a real
socket, through everything that a request to any other provider passes. What it answers is decided in
`echo_answers.py`; this module does the HTTP and the waiting.

The server is for this gateway's client and no other: it takes one request at a time on each connection.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import ClassVar, cast

import httptools
import msgspec

from gateway.api import (
    Adapter,
    Call,
    ConfigError,
    Dialect,
    KnownProvider,
    Lifecycle,
    Offer,
    Origin,
    ProviderConfig,
    UpstreamRequest,
)
from gateway_adapters import echo_answers, echo_realtime
from gateway_adapters.echo_answers import Answer
from gateway_adapters.openai import OpenAI
from gateway_adapters.rows import Row

BODY_BYTES_MAX = 64 * 1024 * 1024
_HOST = "127.0.0.1"
_ROW = Row(
    # The port is known once the server listens.
    base_url=f"http://{_HOST}/v1",
    key_required=False,
    dialects=frozenset(
        {
            Dialect.OPENAI_CHAT,
            Dialect.OPENAI_COMPLETIONS,
            Dialect.OPENAI_RESPONSES,
            Dialect.OPENAI_EMBEDDINGS,
            Dialect.OPENAI_IMAGES,
            Dialect.OPENAI_IMAGE_EDITS,
            Dialect.OPENAI_SPEECH,
            Dialect.OPENAI_TRANSCRIPTIONS,
            Dialect.OPENAI_MODERATIONS,
            Dialect.RERANK,
            Dialect.OPENAI_OTHER,
        }
    ),
)


class Echo(OpenAI):
    """Relays to a server of its own."""

    ID: ClassVar[str] = "echo"

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        return ()

    #: It takes no key, and so none of anybody's own.
    own: ClassVar[None] = None  # type: ignore[assignment]  # what it inherits, taken back

    def configure(self, config: ProviderConfig) -> None:
        if config.base_url is not None or config.api_key is not None or config.extra:
            raise ConfigError("the echo provider takes no base_url, no api_key and no keys of its own")
        self.take(_ROW, config)
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._conversations = contextlib.AsyncExitStack()
        self._realtime = self._origin

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        request = super().prepare(call, offer)
        if call.path == b"/realtime":
            # Conversations are another server's.
            return msgspec.structs.replace(request, origin=self._realtime)
        return request

    def listing(self, page: str) -> UpstreamRequest | None:
        # Any name will do.
        return None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self._connections), _HOST, 0)
        self._origin = Origin("http", _HOST, self._server.sockets[0].getsockname()[1])
        port = await self._conversations.enter_async_context(echo_realtime.serving(_HOST))
        self._realtime = Origin("http", _HOST, port)

    async def stop(self) -> None:
        await self._conversations.aclose()
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.abort()
            await self._server.wait_closed()
            self._server = None


class _Connection(asyncio.Protocol):
    """One connection: reads a request, writes its answer, reads the next."""

    def __init__(self, connections: "set[_Connection]") -> None:
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._answer: Answer | None = None
        self._frames: Iterator[tuple[float, bytes]] = iter(())
        self._due: bytes | None = None
        self._events = 0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._keeps_alive = True

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # a stream's; uvloop's is no subclass of asyncio's
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        self._end()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._answer is not None and self._timer is None:
            self._write_on()

    # -- httptools

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > BODY_BYTES_MAX:
            self.abort()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._answer is not None:
            self.abort()
            return
        body = b"".join(self._body)
        path = self._url.partition(b"?")[0]
        self._url, self._body, self._body_bytes = b"", [], 0
        self._keeps_alive = self._parser.should_keep_alive()
        self._answer = echo_answers.answer(self._parser.get_method(), path, body)
        self._frames = self._answer.frames
        self._events = 0
        self._after(self._answer.wait_s, self._write_head)

    # -- the answer

    def _after(self, pause_s: float, step: Callable[[], None]) -> None:
        if pause_s:
            self._timer = self._loop.call_later(pause_s, step)
        else:
            step()

    def _write_head(self) -> None:
        self._timer = None
        answer = self._answer
        if answer is None or self._transport is None:
            return
        head = [b"HTTP/1.1 %d %b" % (answer.status, _REASONS.get(answer.status, b"Unknown"))]
        head.append(b"content-type: " + answer.content_type)
        head.extend(b"%b: %b" % header for header in answer.headers)
        if answer.size_bytes is None:
            head.append(b"transfer-encoding: chunked")
        else:
            head.append(b"content-length: %d" % answer.size_bytes)
        self._transport.write(b"\r\n".join(head) + b"\r\n\r\n")
        self._write_on()

    def _write_on(self) -> None:
        """Write frames until one has to wait, the caller can't take more, or there are none."""
        self._timer = None
        answer = self._answer
        while answer is not None and self._transport is not None and not self._paused:
            if self._ceases(answer):
                return
            if self._due is None:
                frame = next(self._frames, None)
                if frame is None:
                    self._complete(answer)
                    return
                pause_s, self._due = frame
                if pause_s:
                    self._timer = self._loop.call_later(pause_s, self._write_on)
                    return
            data, self._due = self._due, None
            self._transport.write(data if answer.size_bytes is not None else b"%x\r\n%b\r\n" % (len(data), data))
            self._events += 1

    def _ceases(self, answer: Answer) -> bool:
        """Whether the script says that nothing more is written: a stall waits for the other side to give up."""
        written = self._events
        if answer.script.cut is not None and written >= (answer.script.cut if answer.size_bytes is None else 1):
            assert self._transport is not None
            self._transport.close()
            return True
        return answer.script.stall is not None and written >= (
            answer.script.stall if answer.size_bytes is None else 1
        )

    def _complete(self, answer: Answer) -> None:
        assert self._transport is not None
        if answer.size_bytes is None:
            self._transport.write(b"0\r\n\r\n")
        if not self._keeps_alive:
            self._transport.close()
        self._end()

    def _end(self) -> None:
        self._answer = None
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}

_: type[Adapter] = Echo
_lifecycle: type[Lifecycle] = Echo
