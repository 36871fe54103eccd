"""uvicorn's HTTP/1.1 protocol, making requests that have a direct path for their responses (`cycle.py`).

Rules:
- A connection that ends while its caller may still be sending is ended on our side only and read on for a while:
  to close it at once would reset it, and take the answer away from a caller, or a proxy, who has not read it yet.
- Requests that came behind others wait, and while one waits nothing more is read: a caller who sends faster than it
  is answered is slowed down, and does not fill the memory.
- What is no request is refused behind the answers that are under way, never among their bytes: a caller would take
  the refusal for a part of one of them, and a proxy on its way for the answer to somebody else.

Idle keep-alive connections are closed by one sweep a second (`sweep`) instead of a timer for each response, and so
are those whose caller has stopped to read: a place among the requests is not held by who wants no answer.
"""

import asyncio
import logging
import re
import urllib.parse
from functools import lru_cache
from typing import Any, Final, Protocol

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from gateway.infra.clock import SystemClock
from gateway.kernel.request_id import RequestIds
from gateway.server.accepting import State
from gateway.server.cycle import DirectCycle, Lingering
from gateway.server.unread import HIGH_WATER_BYTES, Unread
from gateway.server.websocket import WebSocketProtocol
from gateway.wire.dialects import Dialect, error_body

log = logging.getLogger(__name__)

EXTENSION = "gateway.direct"

#: A request's line and headers; more is answered with 431. So is more than this behind a body, or between two pieces
#: of one, that is no part of it: trailers, which nobody here reads, and what may stand beside a chunk's size.
HEAD_BYTES_MAX = 64 * 1024

#: A request's target; more is answered with 414. Whose it is is not known yet, and making sense of an encoded path
#: takes microseconds for each of its bytes.
URL_BYTES_MAX = 8 * 1024

#: Requests that wait behind one on its connection. Who sends more without waiting for answers loses the connection
#: once those are answered, and may send the rest again (RFC 9112, section 9.3.2).
PIPELINED_MAX = 64

#: How long a caller who is told that this is the end may go on sending.
LINGER_S = 5.0

#: Where a WebSocket may be opened; elsewhere the wish for one is left unheard.
_CONVERSATIONS = re.compile(rb"/realtime/?(?:\?|$)")

#: The targets of requests whose parts are remembered are at most this long.
_SPLIT_BYTES_MAX: Final = 256
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}

_FULL = "This gateway has as many connections as it may have. Try again shortly."
_HEAD_TOO_LARGE = "The request's headers are larger than this gateway accepts."
_URL_TOO_LONG = "The request's URL is longer than this gateway accepts."
_NOT_HTTP = "The request is not valid HTTP/1.1."
_ONE_HOST = "The request must name its host, once."
_TOO_MANY = "There are more requests waiting on this connection than may."
_VERSION = "This gateway speaks HTTP/1.1."
_CODING = "The only transfer coding that this gateway takes is `chunked`."
#: What is looked at in a head: how it is framed, and for whom.
_WATCHED: Final = frozenset({b"host", b"expect", b"transfer-encoding"})

_new_id = RequestIds(SystemClock()).make


class _RefusedError(Exception):
    """Stops the parser at a head that was refused: nothing behind it may be read as a part of another request."""


class Judged(Protocol):
    """What becomes of a request: no status where it is let in, else the answer; and when to come back."""

    @property
    def key_id(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def head(self) -> bytes: ...
    @property
    def body(self) -> bytes: ...
    @property
    def retry_after_s(self) -> float: ...


class Gate(Protocol):
    """Turns requests away while the application is crowded; see `gateway/gate.py`."""

    def is_crowded(self, running: int, /) -> bool: ...

    def judge(
        self, request: tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]], str], /, *, running: int, refusals: int
    ) -> Judged | None: ...


class DirectProtocol(Lingering):
    """uvicorn's httptools protocol, making `DirectCycle`s.

    An application may offer `dispatch` beside being called: the same, but what it returns is awaited, so that it can
    be the coroutine that does the work. It may offer a `gate`, which turns requests away by their heads.

    Who is turned away and comes back sooner than it was told to is from then on told to stay away for longer each
    time, and not read until then: to refuse it again and again would take the time of those who are served. Where
    several keys come by one connection, it is a proxy's, and always read.
    """

    cycle: DirectCycle | None  # type: ignore[assignment]  # uvicorn's is never told to be None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # Any: ASGI's lifespan state
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._dispatch = getattr(self.app, "dispatch", self.app)
        self._gate: Gate | None = getattr(self.app, "gate", None)
        #: The request under way was turned away, and its body has not ended.
        self._turned_away = False
        #: Whose requests came while there was no room, until when it was told to stay away, how often it was turned
        #: away since it came too soon, and whether there were others.
        self._crowding = ""
        self._back_at_s = 0.0
        self._refusals = 0
        self._shared = False
        self._reads_again: asyncio.TimerHandle | None = None
        #: Loop time since when no request is under way; 0 while one is.
        self.idle_since_s = 0.0
        self._unread = Unread()
        #: The next request is the last one here.
        self._leaving = False
        self._in_head = False
        #: Nothing is read any more: the connection ends with the answers under way.
        self._refused = False
        #: Our side has ended, and the rest is only read.
        self.lingering = False
        #: `Host` headers in the head under way.
        self._hosts = 0
        #: It names a transfer coding that is not undone here: the body would not be what it says it is.
        self._foreign_coding = False
        #: Of the head under way, and of the latest read; and whether a request ended in that.
        self._head_bytes = 0
        self._read_bytes = 0
        self._ended = False
        #: Whether the latest read brought some body, and how much came since one that did.
        self._heard = False
        self._unheard_bytes = 0
        #: The request being answered; with pipelining not the newest one.
        self._answering: DirectCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's signature
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self.idle_since_s = self.loop.time()
        if isinstance(self.server_state, State):
            for acceptor in self.server_state.acceptors:
                acceptor.let_in()
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self._refuse(503, _FULL, type="service_unavailable_error", code="server_is_overloaded")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._reads_again is not None:
            self._reads_again.cancel()
            self._reads_again = None
        self._tell_gone()

    def linger(self) -> None:
        """End our side, and read on, without looking at it, until the other one ends or the sweep ends both."""
        if self.transport.is_closing() or self.lingering:
            return
        self._refused = self.lingering = True
        self.idle_since_s = self.loop.time()
        self.transport.write_eof()
        if self.flow.read_paused:
            self.flow.resume_reading()
        self._tell_gone()

    def _tell_gone(self) -> None:
        """Nothing that is under way here has a caller any more."""
        cycles = {cycle for cycle, _ in self.pipeline} | {self.cycle, self._answering}
        for cycle in cycles:
            if not isinstance(cycle, DirectCycle):
                continue
            cycle.disconnected = True
            cycle.wake()
            if cycle.listener is not None:
                listener, cycle.listener = cycle.listener, None
                listener.gone()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._read_bytes = len(data)
        self._ended = self._heard = False
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
        if self._in_head:
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse(431, _HEAD_TOO_LARGE)
        elif not self._ended:
            self._unheard_bytes = 0 if self._heard else self._unheard_bytes + len(data)
            if self._unheard_bytes > HEAD_BYTES_MAX:
                self._refuse(431, _HEAD_TOO_LARGE)

    def _opens_websocket(self) -> bool:
        """Whether the head that was just read begins a conversation where there are any."""
        return (
            self.ws_protocol_class is not None
            and self.parser.get_method() == b"GET"
            and _CONVERSATIONS.search(self.url) is not None
            and self._get_upgrade() == b"websocket"
            and (self.cycle is None or (self.cycle.response_complete and not self.cycle.ending))
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
        fields = [
            *map(b": ".join, self.server_state.default_headers),
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"x-request-id: " + request_id.encode("ascii"),
            b"connection: close\r\n\r\n",
        ]
        self.transport.write(STATUS_LINE[status] + b"\r\n".join(fields) + body)
        if status == 503:
            # There is no room to let it stay.
            self.transport.close()
        else:
            self.linger()

    def _ends_by_itself(self) -> bool:
        """Whether answers are under way that a refusal must not be written among; the connection ends with them."""
        if self._turned_away:
            # It was answered already.
            self.linger()
            return True
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and not cycle.more_body and not cycle.ending):
            return False
        if not cycle.more_body or cycle.ending:
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
        self._foreign_coding = False
        # Where another request ended in the same read, it is not known how much of it is this one's.
        self._head_bytes = 0 if self._ended else self._read_bytes
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer must not be taken for a header (RFC 9110, section 6.5.1).
            return
        name = name.lower()
        if name in _WATCHED:
            if name == b"host":
                self._hosts += 1
            elif name == b"expect":
                self.expect_100_continue = self.expect_100_continue or value.lower() == b"100-continue"
            elif value.rstrip(b" ").lower() != b"chunked":
                self._foreign_coding = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self.parser
        http_version = parser.get_http_version()
        if http_version != "1.1":
            if http_version != "1.0":
                self._refuse(505, _VERSION)
                raise _RefusedError
            # To be ignored (RFC 9110, section 10.1.1): nobody there understands an answer before the answer.
            self.expect_100_continue = False
        if self._foreign_coding:
            self._refuse(501, _CODING)
            raise _RefusedError
        if self._hosts != 1 and (self._hosts or http_version == "1.1"):
            # RFC 9112, section 3.2: who passes such a request on may have read another host than who answers it.
            self._refuse(400, _ONE_HOST)
            raise _RefusedError
        if parser.should_upgrade():
            # `data_received` hears of it next, and asks once more without.
            return
        if self._head_bytes + self._read_bytes > HEAD_BYTES_MAX:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > HEAD_BYTES_MAX:
                self._refuse(431, _HEAD_TOO_LARGE)
                raise _RefusedError
        if self.transport.is_closing():
            return
        url = self.url
        if len(url) > URL_BYTES_MAX:
            self._refuse(414, _URL_TOO_LONG)
            raise _RefusedError
        path, raw_path, query = (_split if len(url) <= _SPLIT_BYTES_MAX else _split.__wrapped__)(url)
        gate = self._gate
        if gate is not None and gate.is_crowded(len(self.tasks)) and self._turns_away(gate, raw_path, query):
            return
        extensions: dict[str, DirectCycle] = {}
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": http_version,
            "method": parser.get_method().decode("ascii"),
            "scheme": self.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": self.root_path,
            "headers": self.headers,
            "server": self.server,
            "client": self.client,
            "state": self.app_state.copy(),
            "extensions": extensions,
        }
        if len(self.pipeline) >= PIPELINED_MAX:
            self._refuse(503, _TOO_MANY)
            raise _RefusedError
        previous = self.cycle
        keep_alive = http_version != "1.0" and parser.should_keep_alive() and not self._leaving
        cycle = DirectCycle(self, scope, keep_alive=keep_alive)
        self.cycle = extensions[EXTENSION] = cycle
        self.idle_since_s = 0.0
        if previous is None or (previous.response_complete and not previous.ending):
            self._start(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _turns_away(self, gate: Gate, raw_path: bytes, query: bytes) -> bool:
        """Whether the request whose head was just read is answered here, as there is no room for it."""
        previous = self.cycle
        if self.expect_100_continue or not (previous is None or (previous.response_complete and not previous.ending)):
            # Behind an answer under way, or before a body that waits to be asked for.
            return False
        client = self.client[0] if self.client else ""
        request = (self.parser.get_method(), raw_path, query, self.headers, client)
        judged = gate.judge(request, running=len(self.tasks), refusals=self._refusals)
        if judged is None:
            return False
        now_s = self.loop.time()
        self._shared = self._shared or self._crowding not in ("", judged.key_id)
        self._crowding = judged.key_id
        if not judged.status:
            self._refusals = 0
            return False
        too_soon = now_s < self._back_at_s
        self._back_at_s = now_s + judged.retry_after_s
        self._refusals = self._refusals + 1 if too_soon or self._refusals else 0
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive() and not self._leaving
        lines = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[judged.status] + lines + judged.head + end + judged.body)
        self.server_state.total_requests += 1
        self._turned_away = True
        self.idle_since_s = now_s
        if not keep_alive:
            self._refused = True
            self.transport.close()
        elif self._refusals and not self._shared and self._reads_again is None:
            self.flow.pause_reading()
            self._reads_again = self.loop.call_at(self._back_at_s, self._read_again)
        return True

    def _read_again(self) -> None:
        if self._reads_again is not None:
            self._reads_again.cancel()
            self._reads_again = None
            if not self.transport.is_closing():
                self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        self._heard = True
        if self._turned_away:
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return
        cycle.pieces.append(body)
        cycle.size_bytes += len(body)
        if cycle.size_bytes > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        if cycle.waiter is not None:
            cycle.wake()

    def on_message_complete(self) -> None:
        self._ended = True
        self._unheard_bytes = 0
        if self._turned_away:
            self._turned_away = False
            return
        cycle = self.cycle
        if cycle is not None:
            cycle.more_body = False
            if cycle.waiter is not None:
                cycle.wake()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        pipeline = self.pipeline
        if pipeline:
            cycle, _ = pipeline.pop()
            assert isinstance(cycle, DirectCycle)
            self._start(cycle)
        else:
            self.idle_since_s = self.loop.time()
        if self.flow.read_paused and not pipeline:
            # Before, it would let in more of them for each that is answered.
            self.flow.resume_reading()

    def leave(self, *, idle_s: float) -> None:
        """Close soon, but lose no request: the next answer says that it is the last one here, or the connection
        closes when nothing came for `idle_s` from now on. Call it again and again.
        """
        now_s = self.loop.time()
        if self.lingering:
            self.transport.close()
            return
        if not self._leaving:
            self._leaving = True
            self._read_again()
            self.idle_since_s = self.idle_since_s and now_s
        cycle = self.cycle
        if cycle is not None and not cycle.response_started:
            cycle.keep_alive = False
        elif self.idle_since_s and now_s - self.idle_since_s > idle_s:
            self.transport.close()

    def shutdown(self) -> None:
        if self.cycle is not None and self.cycle.ending:
            self.cycle.keep_alive = False
        else:
            super().shutdown()

    def abort_unread(self, *, now_s: float, timeout_s: float) -> None:
        """Cut a connection that has taken none of what was written to it for `timeout_s`. For the sweep.

        To the request it is a caller who is gone: its provider's connection is closed, and what was sent is charged.
        """
        if self._unread.is_stuck(self.transport, now_s=now_s, timeout_s=timeout_s):
            log.info("%s has read nothing for %.0f s: its connection is cut", self.client, timeout_s)
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if (cycle := self._answering) is not None and cycle.listener is not None:
            cycle.listener.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if (cycle := self._answering) is not None and cycle.listener is not None:
            cycle.listener.resume()

    def _start(self, cycle: DirectCycle) -> None:
        self._answering = cycle
        # A task takes itself off the list: a done callback would be one more turn of the loop for each request.
        cycle.task = task = self.loop.create_task(self._run(cycle))
        self.tasks.add(task)

    async def _run(self, cycle: DirectCycle) -> None:
        """The application, for one request; what goes wrong in it ends here, as with uvicorn's `run_asgi`."""
        try:
            await self._dispatch(cycle.scope, cycle.receive, cycle.send)
        except asyncio.CancelledError:
            # The grace time is over. Whoever could say so to the caller has.
            if not (cycle.response_complete or cycle.disconnected):
                await self._break_off(cycle)
        except BaseException:
            cycle.logger.exception("Exception in ASGI application\n")
            await self._break_off(cycle)
        else:
            if not (cycle.response_complete or cycle.disconnected):
                cycle.logger.error("ASGI callable returned without completing response.")
                await self._break_off(cycle)
        finally:
            cycle.on_response = _nothing
            # It holds the cycle, which holds it: a request must not wait for the collector of cycles.
            cycle.scope.pop("extensions", None)
            if cycle.task is not None:
                self.tasks.discard(cycle.task)
                cycle.task = None

    async def _break_off(self, cycle: DirectCycle) -> None:
        if cycle.response_started:
            self.transport.close()
        else:
            await cycle.send_500_response()


@lru_cache(maxsize=256)
def _split(url: bytes) -> tuple[str, bytes, bytes]:
    """A request's target: path, path as it came, query. Most callers ask for one of a few."""
    parts = httptools.parse_url(url)
    raw_path = parts.path or b"/"
    path = raw_path.decode("ascii", "surrogateescape")
    return urllib.parse.unquote(path) if "%" in path else path, raw_path, parts.query or b""


def _nothing() -> None:
    return


def sweep(state: ServerState, *, now_s: float, keep_alive_s: float, write_timeout_s: float) -> None:
    """Close the connections on which no request has been under way for `keep_alive_s`, and cut those whose caller has
    read nothing of what waits for it for `write_timeout_s`. Call it once a second.
    """
    for connection in list(state.connections):
        if isinstance(connection, DirectProtocol):
            since_s = connection.idle_since_s
            if since_s and now_s - since_s > (LINGER_S if connection.lingering else keep_alive_s):
                connection.transport.close()
        if isinstance(connection, DirectProtocol | WebSocketProtocol):
            connection.abort_unread(now_s=now_s, timeout_s=write_timeout_s)
