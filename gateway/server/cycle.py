"""One request and its response on a connection, with a direct path for the response.

ASGI's `send` costs a coroutine and often a wake-up for each chunk; at fifty thousand events a second that is the
whole budget. A `DirectCycle` offers the response side as plain method calls, in
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

What uvicorn sets up anew for each request although it is the same for all of them stands in classes here, and what
only a waiting application needs is made when one waits.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

_pair = b": ".join
_LAST_CHUNK = b"0\r\n\r\n"


class Listener(Protocol):
    """Hears what happens on the caller's side while a direct response is under way."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def gone(self) -> None: ...


class Lingering(HttpToolsProtocol):
    """A connection that can be ended on our side first."""

    def linger(self) -> None:
        """Say that this is the end, and go on reading for a while."""
        raise NotImplementedError


class _Unheard:
    """Where uvicorn tells that something has happened; `DirectCycle.receive` looks for itself."""

    def set(self) -> None:
        return


class DirectCycle(RequestResponseCycle):
    """One request and its response, with the direct methods beside uvicorn's own.

    It sets what differs from request to request, and the classes the rest: uvicorn's own `__init__` is not called.
    """

    logger = logging.getLogger("uvicorn.error")
    access_log = False
    message_event = _Unheard()  # type: ignore[assignment]  # it has the method that is called
    disconnected = False
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    #: The answer says how long it is, or says it in chunks.
    sized = True

    listener: Listener | None = None
    #: Begun, and not written yet.
    _head: bytes = b""
    #: Complete, but its last bytes wait for the next turn.
    ending: bool = False
    _last: bytes = b""
    task: asyncio.Task[None] | None = None
    #: Bytes in `pieces`.
    size_bytes = 0
    #: The application knows that the body is whole.
    _told_end: bool = False
    #: Who waits in `receive`.
    waiter: asyncio.Future[None] | None = None

    def __init__(self, protocol: HttpToolsProtocol, scope: Any, *, keep_alive: bool) -> None:  # Any: uvicorn's type
        self.scope = scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.default_headers = protocol.server_state.default_headers
        self.on_response = protocol.on_response_complete
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        #: Of the body, what the application has not taken yet.
        self.pieces: list[bytes] = []

    async def send(self, message: Any) -> None:  # Any: uvicorn's own ASGI type
        if self.waiting_for_100_continue:
            # Nobody can tell whether the body that was not asked for still comes: what follows could be either.
            self.keep_alive = False
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if self.scope["http_version"] == "1.0":
            self._unchunk(message)
        # uvicorn closes behind the last bytes of the last answer, whatever is still to come of its request.
        lingers = last and self.more_body and not self.keep_alive
        if lingers:
            self.keep_alive = True
        await super().send(message)
        if lingers:
            self.keep_alive = False
            self.part()
        if self.response_complete:
            self.wake()

    def _unchunk(self, message: Any) -> None:  # Any: uvicorn's own ASGI type
        """Where an HTTP/1.0 caller would get chunks from uvicorn, let it get the end of the connection."""
        if message["type"] == "http.response.start":
            if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
                self.chunked_encoding = False
                self.sized = False
        elif not self.sized:
            # What uvicorn compares with.
            self.expected_content_length = len(message.get("body", b""))

    def part(self) -> None:
        """End the connection behind its last answer."""
        protocol = self.transport.get_protocol() if self.more_body else None
        if isinstance(protocol, Lingering):
            protocol.linger()
        else:
            self.transport.close()

    async def receive(self) -> Any:  # Any: uvicorn's own ASGI type
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        while True:
            if self.disconnected or self.response_complete:
                return {"type": "http.disconnect"}
            if self.pieces or not (self.more_body or self._told_end):
                return {"type": "http.request", "body": self._take(), "more_body": self.more_body}
            self.flow.resume_reading()
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None

    def wake(self) -> None:
        """Something has happened that the one task wants to know that may wait in `receive`."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def take_body(self) -> bytes | None:
        """The whole request body if it is here already, else None: then use `receive`."""
        if self.more_body or self.waiting_for_100_continue or self.disconnected:
            return None
        return self._take()

    def _take(self) -> bytes:
        pieces = self.pieces
        self._told_end = not self.more_body
        self.size_bytes = 0
        if len(pieces) == 1:
            return pieces.pop()
        body = b"".join(pieces)
        pieces.clear()
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
        fields = [*map(_pair, self.default_headers), *map(_pair, headers)]
        if chunked and self.scope["http_version"] == "1.0":
            chunked = self.keep_alive = False
        self.chunked_encoding = chunked
        if chunked and self.scope["method"] != "HEAD":
            fields.append(b"transfer-encoding: chunked")
        if not self.keep_alive:
            fields.append(b"connection: close")
        # Two empty ones: the end of the last line, and the line that ends the head.
        fields += (b"", b"")
        self._head = STATUS_LINE[status] + b"\r\n".join(fields)

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
        if self.waiter is not None:
            self.wake()
        # The server takes `on_response` away once the application has returned.
        asyncio.get_running_loop().call_soon(self._leave, self.on_response)

    def _leave(self, on_response: Callable[[], None]) -> None:
        """Write what `end` left, and let the connection go on."""
        self.ending = False
        if not self.disconnected and not self.transport.is_closing():
            if self._last:
                self.transport.write(self._last)
            if not self.keep_alive:
                self.part()
        self._last = b""
        on_response()

    def abort(self) -> None:
        """Cut the connection, so that a response that is not whole can't be taken for one that is."""
        self.response_complete = True
        self.listener = None
        self.keep_alive = False
        if not self.disconnected:
            self.transport.abort()
        self.wake()
        self.on_response()
