"""One HTTP/1.1 client connection of the load engine, by callbacks alone: no task and no future for each request.

It sends a request as ready-made bytes, reports every read that carried body bytes, and reports the end. Answers with
a length, in chunks, or ended by the close of the connection are understood, so that any server can be measured.
Redirects, cookies and HTTP/2 are not its business; the body is never kept, only its last piece is.
"""

import asyncio
import enum
from typing import Protocol, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpResponseParser

from gateway.infra.clock import Clock
from gateway.loadtest.events import EventCounter


class End(enum.Enum):
    """How an exchange ended."""

    COMPLETE = enum.auto()
    #: The server closed or reset the connection before the answer was whole.
    CLOSED = enum.auto()
    #: What arrived is not HTTP/1.1.
    GARBLED = enum.auto()


class Listener(Protocol):
    """Whoever is told what happens on a connection. `now_s` is when the bytes were read, by the clock handed in."""

    def on_body(self, connection: "Connection", piece: bytes, events: int, now_s: float) -> None:
        """Body bytes came; `events` server-sent events ended in them (0 unless the answer is an event stream)."""
        ...

    def on_end(self, connection: "Connection", end: End, now_s: float) -> None:
        """The exchange is over. After `COMPLETE` the connection may be used again if it is still `open`."""
        ...

    def on_idle_lost(self, connection: "Connection") -> None:
        """The server closed the connection between two exchanges."""
        ...


class Connection(asyncio.Protocol):
    """At most one exchange at a time. `status`, `streams` and `tail` tell of the current or last one.

    `due_s` and `last_event_s` belong to the listener, which would otherwise look them up for each read.
    """

    transport: asyncio.Transport

    def __init__(self, listener: Listener, clock: Clock) -> None:
        self._listener = listener
        self._clock = clock
        # The parser calls `on_body` once for each chunk. That fifty chunks in one read cost fifty list appends in C,
        # and not as many calls into Python, is what lets the generator keep up with what it measures.
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._parser = HttpResponseParser(self)
        self._counter = EventCounter()
        self._busy = False
        self._framed = False
        self.open = False
        #: When the request was sent or bytes last came.
        self.active_s = 0.0
        #: When the request should have been sent.
        self.due_s = 0.0
        #: When the last event ended, 0.0 before the first.
        self.last_event_s = 0.0
        #: The HTTP status, 0 before the head came.
        self.status = 0
        #: Whether the answer is `text/event-stream`.
        self.streams = False
        #: The last piece of body, for a look at how a stream ended.
        self.tail = b""
        self.received_bytes = 0

    def send(self, request: bytes) -> None:
        """Start an exchange with a whole request: head and body."""
        assert not self._busy
        self._busy = True
        self._framed = False
        self.status = 0
        self.streams = False
        self.tail = b""
        self.last_event_s = 0.0
        self.active_s = self._clock.monotonic()
        self.transport.write(request)

    def abort(self) -> None:
        """Close at once and report nothing more."""
        self._busy = False
        self.open = False
        self.transport.abort()

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # `create_connection` over TCP or TLS makes a full transport.
        self.transport = cast("asyncio.Transport", transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        self.active_s = self._clock.monotonic()
        self.received_bytes += len(data)
        if not self._busy:
            self.abort()
            self._listener.on_idle_lost(self)
            return
        try:
            self._parser.feed_data(data)
            if self._pieces:
                self._report_body()
        except HttpParserCallbackError:
            raise  # a fault of ours, not of the server
        except HttpParserError:
            if self._busy:
                self.abort()
                self._listener.on_end(self, End.GARBLED, self.active_s)

    def connection_lost(self, exc: Exception | None) -> None:
        was_open = self.open
        self.open = False
        if self._busy:
            self._busy = False
            whole = self.status and not self._framed and exc is None
            self._listener.on_end(self, End.COMPLETE if whole else End.CLOSED, self._clock.monotonic())
        elif was_open:
            self._listener.on_idle_lost(self)

    # httptools calls these.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.streams = value.startswith(b"text/event-stream")
        elif name in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.streams:
            self._counter = EventCounter()

    def on_message_complete(self) -> None:
        if not self._busy or 100 <= self.status < 200:
            return
        if self._pieces:
            self._report_body()
        self._busy = False
        if not self._parser.should_keep_alive():
            self.open = False
            self.transport.close()
        self._listener.on_end(self, End.COMPLETE, self.active_s)

    def _report_body(self) -> None:
        """Report what one read brought, as one piece."""
        pieces = self._pieces
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.tail = piece
        events = self._counter.feed(piece) if self.streams else 0
        self._listener.on_body(self, piece, events, self.active_s)
