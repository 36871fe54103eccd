"""One socket to a provider: request bytes out, response bytes through the parser, one exchange at a time.

The parser (llhttp, by way of httptools) is strict, and this adds what it leaves open: the bound on a head, exactly
`chunked` as the only transfer coding, bytes that nobody asked for, and where a body ends that has no length.

Rules:
- A connection serves again only if the answer was whole and framed, both sides want to, the whole request was
  written, and not one byte came beyond the answer. Everything else closes it; a closed connection never comes back.
- Bytes or an end of file while idle close it.
- All body bytes of one read are handed on in one call. Body pieces go from the parser into a list by its own
  `append`: no Python frame for each (RFC 9112 chunks are often smaller than reads).
- Lost bytes are never silent: what ends early fails the response, after the bytes that did arrive.

It does not open sockets (`dial`), choose between connections (`pool`) nor keep time (`deadlines`).
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Final, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from gateway.api import Headers, ResponseHead
from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamMalformed
from gateway.upstream.response import UpstreamResponse

#: All heads of one answer together, informational ones included; also trailers, and what is parsed without yielding.
HEAD_BYTES_MAX: Final = 64 * 1024
#: Step in which a read that may hold an oversize head is parsed.
_STEP_BYTES: Final = 4 * 1024
#: A body up to this size is copied behind its head, so that both are one write.
_JOIN_BYTES_MAX: Final = 16 * 1024
_BODILESS_STATUSES: Final = frozenset((204, 304))
_WRITE_HIGH_BYTES: Final = 128 * 1024
#: What is read at once. A whole read goes to the caller even where its socket is full, so this is also what a caller
#: who reads slowly can cost; uvloop's own reads are eight times as large.
READ_BYTES: Final = 32 * 1024


class Owner(Protocol):
    """Where connections come from and go back to."""

    def free(self, connection: "Connection") -> None:
        """Its exchange is over and it can serve again."""
        ...

    def drop(self, connection: "Connection") -> None:
        """It will never serve again. Called once, if it was adopted."""
        ...

    def gone(self, connection: "Connection") -> None:
        """Its socket is closed. Called once, last."""
        ...

    def settled(self, response: UpstreamResponse) -> None:
        """Nothing more happens to this exchange."""
        ...


class _RefusedError(Exception):
    """Raised inside a parser callback to stop the parser."""


class _Buffer(threading.local):
    """Where all connections of a loop read into: each takes what it needs out before the next one reads."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES))


_buffer: Final = _Buffer()


class Connection(asyncio.BufferedProtocol):
    """The protocol of one socket."""

    __slots__ = (
        "_adopted",
        "_bodiless",
        "_buffer",
        "_complete",
        "_feed",
        "_head_bytes",
        "_headed",
        "_headers",
        "_keep_alive",
        "_owner",
        "_parser",
        "_pieces",
        "_reading_paused",
        "_response",
        "_unread_bytes",
        "_until_close",
        "_uploading",
        "_writable",
        "closed",
        "idle_since_s",
        "loop",
        "on_body",
        "served",
        "transport",
        "writing_paused",
    )

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self.loop = loop
        self.transport: asyncio.Transport
        #: Exchanges that ended well.
        self.served = 0
        self.idle_since_s = 0.0
        #: The transport wants no more bytes for now.
        self.writing_paused = False
        #: Never to be used again.
        self.closed = False
        self._adopted = False
        self._response: UpstreamResponse | None = None
        self._writable: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self.on_body: Callable[[bytes], None] = self._pieces.append
        self._headers: Headers = []
        self._headed = False
        self._complete = False
        self._bodiless = False
        self._keep_alive = False
        self._until_close = False
        self._uploading = False
        self._reading_paused = False
        self._buffer = _buffer.view
        self._head_bytes = 0
        self._unread_bytes = 0
        self._parser = HttpResponseParser(self)
        self._feed: Callable[[bytes | memoryview], None] = self._parser.feed_data

    def adopt(self) -> None:
        """The owner counts this connection from now on and is told when it drops out."""
        self._adopted = True

    # -- the exchange --------------------------------------------------------------------------------------------

    def start(self, response: UpstreamResponse, head: bytes, body: bytes | None, *, bodiless: bool) -> None:
        """Write a request: `head`, then `body`, which is None where it will come by `write`.

        `bodiless` says that the answer has none whatever its head claims (HEAD).
        """
        response.arrived = self.loop.create_future()
        self._response = response
        self._headed = False
        self._complete = False
        self._bodiless = bodiless
        self._head_bytes = 0
        if body is None:
            self._uploading = True
            response.begin_sending(self.loop.time())
            self.transport.write(head)
        elif len(body) <= _JOIN_BYTES_MAX:
            self.transport.write(head + body if body else head)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def write(self, piece: bytes) -> None:
        """A piece of the request body; wait for `writable` between pieces."""
        if not self.closed:
            self.transport.write(piece)

    def finish_upload(self) -> None:
        """The last piece was written."""
        self._uploading = False
        if self._response is not None:
            self._response.finish_sending(self.loop.time())

    async def writable(self) -> None:
        """Return when the transport takes more, or is closed."""
        if self.writing_paused and not self.closed:
            self._writable = self.loop.create_future()
            try:
                await self._writable
            finally:
                self._writable = None

    def serves(self, response: UpstreamResponse) -> bool:
        """Whether `response` is still this connection's exchange."""
        return self._response is response

    @property
    def untouched(self) -> bool:
        """Not one byte of an answer arrived since the last `start`."""
        return self._head_bytes == 0

    def pause_reading(self) -> None:
        if not self._reading_paused and not self.closed:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and not self.closed:
            self._reading_paused = False
            self.transport.resume_reading()

    def fail(self, error: UpstreamError) -> None:
        """Close the socket, and tell the exchange why."""
        response = self._response
        self._response = None
        self.close()
        if response is not None:
            self._owner.settled(response)
            response.deliver_failure(error)

    def close(self) -> None:
        """Close the socket now, whatever is still unwritten. Nothing is told to an exchange."""
        if not self.closed:
            self.closed = True
            self.transport.abort()
            self._leave()

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports have all the methods, but not the base class.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self._buffer[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        """Take what was read; nothing of `data` is kept."""
        response = self._response
        if response is None:
            # Nobody asked: a server's parting 408, or bytes of an answer that should have ended. Neither is ours.
            self.close()
            return
        response.touched = True
        try:
            if self._headed:
                self._feed(data)
            else:
                self._feed_head(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._stopped(response, error)
            return
        pieces = self._pieces
        if pieces:
            self._unread_bytes = 0
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            response.last = self._complete
            response.deliver(chunk)
            if self._complete and self._response is response:
                self._finish(response)
        elif self._complete:
            self._finish(response)
        elif self._headed:
            self._unread_bytes += len(data)
            if self._unread_bytes > HEAD_BYTES_MAX:
                self.fail(UpstreamMalformed(detail="endless trailers or chunk extensions"))

    def eof_received(self) -> None:
        response = self._response
        if response is not None and self._headed and self._until_close:
            self._keep_alive = False
            self._finish(response)
        else:
            self.fail(UpstreamDisconnected(detail=self._broke_off("closed by the provider")))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._leave()
        if self._response is not None:
            self.fail(UpstreamDisconnected(detail=self._broke_off(str(exc or "connection lost"))))
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        # The parser and this hold each other; without this the collector would have to find them.
        del self._parser, self._feed, self.on_body
        self._owner.gone(self)

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._response is not None:
            self._response.touched = True
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # -- the parser's callbacks ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            raise _RefusedError("bytes after the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        # Only spaces: the parser knows no coding or length with a tab behind it, and this must not know better.
        self._headers.append((name.lower(), value.rstrip(b" ")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        status = parser.get_status_code()
        headers = self._headers
        self._headers = []
        if status < 200:
            if status == 101:
                raise _RefusedError("101 without an upgrade asked for")
            return
        fields = dict(headers)
        self._keep_alive = parser.should_keep_alive()
        coding = fields.get(b"transfer-encoding")
        if coding is not None:
            self._check_coding(coding, headers)
            self._until_close = False
        else:
            self._until_close = b"content-length" not in fields and status not in _BODILESS_STATUSES
        self._headed = True
        self._unread_bytes = 0
        if self._bodiless:
            self._complete = True
        response = self._response
        assert response is not None
        response.deliver_head(ResponseHead(status, headers))

    def on_message_complete(self) -> None:
        # Also called after each informational head.
        self._complete = self._headed

    # -- private -------------------------------------------------------------------------------------------------

    def _feed_head(self, data: bytes | memoryview) -> None:
        """Parse while the head is not in yet, and never more than its bound of it."""
        if self._head_bytes + len(data) <= HEAD_BYTES_MAX:
            self._head_bytes += len(data)
            self._feed(data)
        else:
            view = memoryview(data)
            while view and not self._headed:
                if self._head_bytes >= HEAD_BYTES_MAX:
                    raise HttpParserError(f"a head of more than {HEAD_BYTES_MAX} bytes")
                step = view[: min(_STEP_BYTES, HEAD_BYTES_MAX - self._head_bytes)]
                view = view[len(step) :]
                self._head_bytes += len(step)
                self._feed(step)
            if view:
                self._feed(view)
        if self._bodiless and self._headed:
            # The parser waits for the body that the head announced.
            if self._pieces:
                self._pieces.clear()
                self._keep_alive = False
            self._parser = HttpResponseParser(self)
            self._feed = self._parser.feed_data

    def _check_coding(self, coding: bytes, headers: Headers) -> None:
        if coding.lower() != b"chunked" or sum(name == b"transfer-encoding" for name, _ in headers) > 1:
            raise _RefusedError("a transfer coding other than chunked")
        if self._keep_alive and self._parser.get_http_version() != "1.1":
            # RFC 9112, section 6.1: such framing is faulty even where it parses; use the answer, not the connection.
            self._keep_alive = False

    def _stopped(self, response: UpstreamResponse, error: Exception) -> None:
        """The parser refused to go on: after the answer, or inside it."""
        if self._pieces and not self._bodiless:
            chunk = b"".join(self._pieces)
            self._pieces.clear()
            response.deliver(chunk)
            if self._response is not response:
                return
        if self._complete:
            self._keep_alive = False
            self._finish(response)
        else:
            self.fail(UpstreamMalformed(detail=str(error.__context__ or error)))

    def _finish(self, response: UpstreamResponse) -> None:
        """The answer is whole: let go of the exchange, keep or close the socket, then tell."""
        self._response = None
        if self._headers:
            response.trailers = self._headers
            self._headers = []
        self._owner.settled(response)
        if (
            self._keep_alive
            and not self._uploading
            and not self.closed
            and not self.transport.get_write_buffer_size()
        ):
            self.served += 1
            if self._reading_paused:
                self.resume_reading()
            self._owner.free(self)
        else:
            self.close()
        response.deliver_end()

    def _broke_off(self, reason: str) -> str:
        if self._headed:
            return f"{reason}, inside the body"
        return f"{reason}, {'inside' if self._head_bytes else 'before'} the head"

    def _leave(self) -> None:
        if self._adopted:
            self._adopted = False
            self._owner.drop(self)
