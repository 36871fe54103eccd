"""uvicorn's HTTP/1.1 protocol with a direct path for response bodies.

ASGI's `send` costs a coroutine and often a wake-up for each chunk; at fifty thousand events a second that is the
whole budget. `DirectProtocol` offers the response side of a request as plain method calls, in
`scope["extensions"]["gateway.direct"]`: whoever has bytes for the caller writes them at once, from wherever it is.

Rules:
- It is an extension. An application that does not look for it gets uvicorn's behaviour, and one that uses it must
  work on a server without it. A request uses either `send` or the direct methods, never both.
- The end of a response leaves with the next turn of the loop, behind whatever was queued before it in this one. So
  the command that charges for an answer is on its way before the bytes that make the answer whole.
- The caller's side is heard through a `Listener`: it pauses when the socket's buffer is full, resumes when it has
  drained, and is told once when the caller is gone.
- Header values come from our own HTTP parser or from this program, so they hold no line ends; `start` does not
  check them again.
- What is no request is refused behind the answers that are under way, never among their bytes: a caller would take
  the refusal for a part of one of them, and a proxy on its way for the answer to somebody else.

Idle keep-alive connections are closed by one sweep a second (`sweep_idle`) instead of a timer for each response.
"""

import asyncio
import logging
import re
import urllib.parse
from collections.abc import Callable
from typing import Any, Protocol

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.infra.clock import SystemClock
from gateway.kernel.request_id import RequestIds
from gateway.wire.dialects import Dialect, error_body

log = logging.getLogger(__name__)

EXTENSION = "gateway.direct"

#: A request's line and headers; more is answered with 431.
HEAD_BYTES_MAX = 64 * 1024

#: Where a WebSocket may be opened; elsewhere the wish for one is left unheard.
_CONVERSATIONS = re.compile(rb"/realtime/?(?:\?|$)")

#: Written and not taken by the kernel; beyond it the source of the bytes is paused.
HIGH_WATER_BYTES = 32 * 1024

_LAST_CHUNK = b"0\r\n\r\n"
_FULL = "This gateway has as many connections as it may have. Try again shortly."
_HEAD_TOO_LARGE = "The request's headers are larger than this gateway accepts."
_NOT_HTTP = "The request is not valid HTTP/1.1."
_ONE_HOST = "The request must name its host, once."

_new_id = RequestIds(SystemClock()).make


class _RefusedError(Exception):
    """Stops the parser at a head that was refused: nothing behind it may be read as a part of another request."""


class Listener(Protocol):
    """Hears what happens on the caller's side while a direct response is under way."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def gone(self) -> None: ...


class Signal:
    """What uvicorn uses an `asyncio.Event` for, at a fraction of its cost where nobody waits."""

    __slots__ = ("_given", "_waiter")

    def __init__(self) -> None:
        self._given = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._given = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        self._given = False

    async def wait(self) -> None:
        """One task at a time may wait."""
        if not self._given:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None


class DirectCycle(RequestResponseCycle):
    """One request and its response, with the direct methods beside uvicorn's own."""

    listener: Listener | None = None
    #: Begun, and not written yet.
    _head: bytes = b""
    #: Complete, but its last bytes wait for the next turn.
    ending: bool = False
    _last: bytes = b""
    task: asyncio.Task[None] | None = None

    async def send(self, message: Any) -> None:  # Any: uvicorn's own ASGI type
        if self.waiting_for_100_continue:
            # Nobody can tell whether the body that was not asked for still comes: what follows could be either.
            self.keep_alive = False
        await super().send(message)

    def take_body(self) -> bytes | None:
        """The whole request body if it is here already, else None: then use `receive`."""
        if self.more_body or self.waiting_for_100_continue or self.disconnected:
            return None
        body = bytes(self.body)
        self.body = bytearray()
        return body

    def listen(self, listener: Listener | None) -> None:
        """Tell `listener` what happens from now on; what already happened is told at once."""
        self.listener = listener
        if listener is not None:
            if self.disconnected:
                listener.gone()
            elif self.flow.write_paused:
                listener.pause()

    def start(self, status: int, headers: list[tuple[bytes, bytes]], *, chunked: bool) -> None:
        """Begin the response. Its head leaves with the first body bytes, or by `flush`.

        `headers` hold `content-length` unless `chunked`; `date`, `transfer-encoding` and `connection` are added here.
        An HTTP/1.0 caller gets no chunks but the end of the connection.
        """
        if self.response_started:
            raise RuntimeError("response already started")
        self.response_started = True
        if self.waiting_for_100_continue:
            # As in `send`.
            self.waiting_for_100_continue = self.keep_alive = False
        head = STATUS_LINE[status] + b"".join([b"%b: %b\r\n" % pair for pair in self.default_headers + headers])
        if chunked and self.scope["http_version"] == "1.0":
            chunked = self.keep_alive = False
        self.chunked_encoding = chunked
        if chunked and self.scope["method"] != "HEAD":
            head += b"transfer-encoding: chunked\r\n"
        self._head = head + (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def flush(self) -> None:
        """Write the head now, if it has not left yet."""
        head = self._head
        if head:
            self._head = b""
            if not self.disconnected:
                self.transport.write(head)

    def write(self, data: bytes) -> None:
        """Write body bytes; nothing happens once the caller is gone, or for HEAD."""
        if self.disconnected or self.scope["method"] == "HEAD":
            return
        # One buffer, and so one system call: neither head nor the size of a chunk travels alone.
        head = self._head
        if head:
            self._head = b""
        if self.chunked_encoding:
            self.transport.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))
        else:
            self.transport.write(head + data if head else data)

    def end(self, data: bytes = b"") -> None:
        """The response is whole, with `data` as its last bytes."""
        if self.response_complete:
            return
        self.response_complete = self.ending = True
        self.listener = None
        if self.scope["method"] == "HEAD":
            data = b""
        elif self.chunked_encoding:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else _LAST_CHUNK
        self._last = self._head + data
        self._head = b""
        self.message_event.set()
        # uvicorn takes `on_response` away once the application has returned.
        asyncio.get_running_loop().call_soon(self._leave, self.on_response)

    def _leave(self, on_response: Callable[[], None]) -> None:
        """Write what `end` left, and let the connection go on."""
        self.ending = False
        if not self.disconnected and not self.transport.is_closing():
            if self._last:
                self.transport.write(self._last)
            if not self.keep_alive:
                self.transport.close()
        self._last = b""
        on_response()

    def abort(self) -> None:
        """Cut the connection, so that a response that is not whole can't be taken for one that is."""
        self.response_complete = True
        self.listener = None
        self.keep_alive = False
        if not self.disconnected:
            self.transport.abort()
        self.message_event.set()
        self.on_response()


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol, making `DirectCycle`s."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # Any: ASGI's lifespan state
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        #: Loop time since when no request is under way; 0 while one is.
        self.idle_since_s = 0.0
        self._in_head = False
        #: Nothing is read any more: the connection ends with the answers under way.
        self._refused = False
        #: `Host` headers in the head under way.
        self._hosts = 0
        #: Of the head under way, and of the latest read; and whether a request ended in that.
        self._head_bytes = 0
        self._read_bytes = 0
        self._ended = False
        #: The request being answered; with pipelining not the newest one.
        self._answering: DirectCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's signature
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self.idle_since_s = self.loop.time()
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self._refuse(503, _FULL, type="service_unavailable_error", code="server_is_overloaded")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        cycles = [cycle for cycle, _ in self.pipeline]
        if self.cycle is not None:
            cycles.append(self.cycle)
        for cycle in cycles:
            cycle.disconnected = True
            if isinstance(cycle, DirectCycle) and cycle.listener is not None:
                listener, cycle.listener = cycle.listener, None
                listener.gone()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._read_bytes = len(data)
        self._ended = False
        if self._in_head:
            self._head_bytes += len(data)
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    self._refuse(405, "This gateway opens no tunnels.")
                    return
                if self._opens_websocket():
                    self._open_websocket(data[upgrade.args[0] :])
                    return
                data = self._without_upgrade() + data[upgrade.args[0] :]
                self._read_bytes = len(data)
                self.parser = httptools.HttpRequestParser(self)
                # As uvicorn has it: what follows a request that is the connection's last is nobody's fault.
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except httptools.HttpParserError as error:
                self._refuse(400, _NOT_HTTP, detail=str(error))
                return
            else:
                break
        if self._in_head and self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(431, _HEAD_TOO_LARGE)

    def _opens_websocket(self) -> bool:
        """Whether the head that was just read begins a conversation where there are any."""
        return (
            self.ws_protocol_class is not None
            and self.parser.get_method() == b"GET"
            and _CONVERSATIONS.search(self.url) is not None
            and self._get_upgrade() == b"websocket"
            and (self.cycle is None or self.cycle.response_complete)
        )

    def _open_websocket(self, rest: bytes) -> None:
        """Hand the connection over, with the head that was read and what came behind it."""
        self.connections.discard(self)
        head = [b"GET %b HTTP/1.1" % self.url, *(b"%b: %b" % pair for pair in self.headers)]
        assert self.ws_protocol_class is not None
        protocol = self.ws_protocol_class(  # type: ignore[call-arg]  # as uvicorn calls it
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"\r\n".join(head) + b"\r\n\r\n" + rest)

    def _without_upgrade(self) -> bytes:
        """The head that was just read, without the wish for another protocol.

        A server may leave it unheard (RFC 9110, section 7.8), but the parser takes what follows for that protocol's.
        Java's own client wishes for HTTP/2 in every request, those with a body among them.
        """
        parser = self.parser
        head = [b"%b %b HTTP/%b" % (parser.get_method(), self.url, parser.get_http_version().encode("ascii"))]
        head += [b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade"]
        return b"\r\n".join(head) + b"\r\n\r\n"

    def _refuse(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the word the error object uses
        code: str | None = None,
        detail: str = "",
    ) -> None:
        """Answer what never became a request, and close; behind other answers only close."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self._ends_by_itself():
            log.info("a request of %s behind another is refused with %d: %s", self.client, status, detail or message)
            return
        request_id = _new_id()
        log.info("request %s of %s refused with %d: %s", request_id, self.client, status, detail or message)
        body = error_body(
            Dialect.OPENAI_OTHER,
            status=status,
            type=type,
            code=code,
            message=message,
            param=None,
            request_id=request_id,
        )
        head = (
            b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\nconnection: close\r\n\r\n"
            % (len(body), request_id.encode("ascii"))
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _ends_by_itself(self) -> bool:
        """Whether answers are under way that a refusal must not be written among; the connection ends with them."""
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and not cycle.more_body and not _is_ending(cycle)):
            return False
        if not cycle.more_body or _is_ending(cycle):
            # The one that is refused came behind it.
            cycle.keep_alive = False
        elif cycle.response_complete:
            self.transport.close()
        elif cycle.response_started or self.pipeline:
            # Its own body is broken, too late to say so.
            self.transport.abort()
        else:
            return False
        return True

    def on_message_begin(self) -> None:
        self._in_head = True
        self._hosts = 0
        # Where another request ended in the same read, it is not known how much of it is this one's.
        self._head_bytes = 0 if self._ended else self._read_bytes
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._hosts != 1 and (self._hosts or self.parser.get_http_version() == "1.1"):
            # RFC 9112, section 3.2: who passes such a request on may have read another host than who answers it.
            self._refuse(400, _ONE_HOST)
            raise _RefusedError
        if self.parser.should_upgrade():
            # `data_received` hears of it next, and asks once more without.
            return
        if self._head_bytes + self._read_bytes > HEAD_BYTES_MAX:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > HEAD_BYTES_MAX:
                self._refuse(431, _HEAD_TOO_LARGE)
                raise _RefusedError
        if self.transport.is_closing():
            return
        parser = self.parser
        http_version = parser.get_http_version()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]  # a TypedDict that gets filled in
        scope["method"] = parser.get_method().decode("ascii")
        if http_version != "1.1":
            scope["http_version"] = http_version
        url = httptools.parse_url(self.url)
        raw_path = url.path or b"/"
        path = raw_path.decode("ascii", "surrogateescape")
        scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = url.query or b""

        previous = self.cycle
        cycle = DirectCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=Signal(),  # type: ignore[arg-type]  # it has the methods that are called
            expect_100_continue=self.expect_100_continue,
            keep_alive=http_version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        scope["extensions"] = {EXTENSION: cycle}
        self.cycle = cycle
        self.idle_since_s = 0.0
        if previous is None or (previous.response_complete and not _is_ending(previous)):
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_message_complete(self) -> None:
        self._ended = True
        cycle = self.cycle
        if cycle is not None:
            cycle.more_body = False
            if not cycle.response_complete:
                cycle.message_event.set()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self.idle_since_s = self.loop.time()

    def shutdown(self) -> None:
        if _is_ending(self.cycle):
            self.cycle.keep_alive = False
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        if (cycle := self._answering) is not None and cycle.listener is not None:
            cycle.listener.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if (cycle := self._answering) is not None and cycle.listener is not None:
            cycle.listener.resume()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # Any: uvicorn's own ASGI type
        assert isinstance(cycle, DirectCycle)
        self._answering = cycle
        # A task takes itself off the list: a done callback would be one more turn of the loop for each request.
        task = self.loop.create_task(self._run(cycle, app))
        cycle.task = task
        self.tasks.add(task)

    async def _run(self, cycle: DirectCycle, app: Any) -> None:  # Any: as above
        try:
            await cycle.run_asgi(app)
        finally:
            if cycle.task is not None:
                self.tasks.discard(cycle.task)
                cycle.task = None


def _is_ending(cycle: RequestResponseCycle | None) -> bool:
    return isinstance(cycle, DirectCycle) and cycle.ending


def sweep_idle(state: ServerState, *, now_s: float, keep_alive_s: float) -> None:
    """Close the connections on which no request has been under way for `keep_alive_s`. Call it once a second."""
    for connection in list(state.connections):
        if isinstance(connection, DirectProtocol):
            since_s = connection.idle_since_s
            if since_s and now_s - since_s > keep_alive_s:
                connection.transport.close()
