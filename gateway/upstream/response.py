"""One exchange with a provider, from the request written to the last byte of its answer.

`UpstreamResponse` is made when the request is written and handed out when the head is in. Its body is taken in one of
three ways: pushed into a `Sink` (`pipe`, the fast one), read whole (`read`), or iterated.

Rules:
- Bytes are given in order, exactly once, transfer coding undone, content coding untouched.
- While nobody takes the body, at most `HELD_BYTES_MAX` (and one socket read) is held; then the socket is not read.
- `end` comes after the last byte of a body that was seen to be whole, `fail` after the last byte of one that was not.
  Exactly one of them comes, unless `close` was called before.
- Timeouts: until the head is in, `first_byte_s`; then `idle_s` between two reads, not counting the time in which the
  taker had paused us; over all, `total_s`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, Protocol

from gateway.api import Headers, ResponseHead
from gateway.errors import GatewayError, UpstreamDisconnected, UpstreamError, UpstreamMalformed, UpstreamTimeout

if TYPE_CHECKING:
    from gateway.settings import Timeouts
    from gateway.upstream.connection import Connection

HELD_BYTES_MAX: Final = 256 * 1024

# What an exchange is waiting for.
SENDING: Final = 0
AWAITING_HEAD: Final = 1
READING_BODY: Final = 2


class Sink(Protocol):
    """Takes a body as it arrives, synchronously, from inside the socket's read.

    It must not raise. It may call `pause`, `resume` and `close` of the response at any time.
    """

    def data(self, chunk: bytes) -> None:
        """The body bytes of one read, never empty."""
        ...

    def end(self) -> None:
        """The body is whole; its connection is already free for others."""
        ...

    def fail(self, error: UpstreamError) -> None:
        """No more will come, and the body is not whole."""
        ...


class UpstreamResponse:
    """A provider's answer."""

    __slots__ = (
        "_connection",
        "_due_s",
        "_error",
        "_held",
        "_held_bytes",
        "_paused",
        "_phase",
        "_sink",
        "_timeouts",
        "_total_due_s",
        "_waiter",
        "answered",
        "arrived",
        "complete",
        "fault",
        "head",
        "last",
        "reused",
        "touched",
        "trailers",
        "uploading",
        "written_s",
    )

    #: The status line and headers. Set before `UpstreamClient.send` returns.
    head: ResponseHead

    def __init__(self, connection: "Connection", timeouts: "Timeouts", started_s: float, written_s: float) -> None:
        # Set by the connection: resolved when the head is in or never will be.
        self.arrived: asyncio.Future[None]
        #: When the request was written, by the loop's time.
        self.written_s = written_s
        #: Whether the head is in.
        self.answered = False
        #: The task that sends a body in pieces, and what went wrong with that body.
        self.uploading: asyncio.Task[None] | None = None
        self.fault: GatewayError | None = None
        #: Trailer fields of a chunked body; filled in at its end.
        self.trailers: Headers = []
        #: Whether the connection had served another request before.
        self.reused = connection.served > 0
        #: Whether the body arrived whole.
        self.complete = False
        #: True while the last bytes are given to a sink: its `end` follows at once, so that what it writes for both
        #: can be one write.
        self.last = False
        #: Set by every read, cleared by every tick.
        self.touched = False
        self._connection: Connection | None = connection
        self._timeouts = timeouts
        self._total_due_s = started_s + timeouts.total_s
        self._due_s = written_s + timeouts.first_byte_s
        self._phase = AWAITING_HEAD
        self._sink: Sink | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._paused = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # -- for whoever takes the body ------------------------------------------------------------------------------

    def pipe(self, sink: Sink) -> None:
        """Give the body to `sink`: what is already here now, the rest as it arrives."""
        self._sink = sink
        if self._held:
            self.last = self.complete
            sink.data(self._take())
            if self._sink is not sink:
                return  # closed from inside `data`
        if self.complete:
            sink.end()
        elif self._error is not None:
            sink.fail(self._error)

    async def read(self, limit_bytes: int, *, truncate: bool = False) -> bytes:
        """The whole body. Over the limit the connection is closed.

        With `truncate`, the first `limit_bytes` of a longer body are returned, and what came of one that broke off.

        Raises:
            UpstreamMalformed: the body is longer than `limit_bytes`.
            UpstreamError: the body broke off.
        """
        pieces: list[bytes] = []
        size_bytes = 0
        while True:
            if self._held:
                piece = self._take()
                size_bytes += len(piece)
                pieces.append(piece)
                if size_bytes > limit_bytes:
                    self.close()
                    if truncate:
                        return b"".join(pieces)[:limit_bytes]
                    raise UpstreamMalformed(detail=f"a body of more than {limit_bytes} bytes")
            if self.complete:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if self._error is not None:
                if truncate:
                    return b"".join(pieces)
                raise self._error
            await self._readable()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body, as it arrives. Leaving the loop early doesn't close the response; `close` does.

        Raises:
            UpstreamError: the body broke off.
        """
        while True:
            if self._held:
                yield self._take()
            elif self.complete:
                return
            elif self._error is not None:
                raise self._error
            else:
                await self._readable()

    def pause(self) -> None:
        """Stop reading from the socket. What was read already may still be delivered."""
        if not self._paused:
            self._paused = True
            if self._connection is not None:
                self._connection.pause_reading()

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._paused:
            self._paused = False
            self.touched = True
            if self._connection is not None:
                self._connection.resume_reading()

    def close(self) -> None:
        """Take no more: a body that is not complete loses its connection. The sink hears nothing any more."""
        self._sink = None
        if self._connection is not None:
            self._connection.fail(UpstreamDisconnected(detail="closed by the gateway"))
        self._held.clear()
        self._held_bytes = 0

    def __repr__(self) -> str:
        status = str(self.head.status) if self.answered else "no head yet"
        if self.complete:
            state = "complete"
        elif self._error is not None:
            state = f"failed: {self._error.detail or self._error.message}"
        else:
            state = "paused" if self._paused else "open"
        return f"<UpstreamResponse: {status}, {state}>"

    # -- for the connection --------------------------------------------------------------------------------------

    def deliver_head(self, head: ResponseHead) -> None:
        self.head = head
        self.answered = True
        self._phase = READING_BODY
        self.touched = True
        if not self.arrived.done():
            self.arrived.set_result(None)

    def deliver(self, chunk: bytes) -> None:
        sink = self._sink
        if sink is not None:
            sink.data(chunk)
            return
        self._held.append(chunk)
        self._held_bytes += len(chunk)
        if self._held_bytes >= HELD_BYTES_MAX:
            self.pause()
        if self._waiter is not None:
            self._wake()

    def deliver_end(self) -> None:
        """The body is whole, and the connection has already let go of this."""
        self._connection = None
        self.complete = True
        if self._sink is not None:
            self._sink.end()
        elif self._waiter is not None:
            self._wake()

    def deliver_failure(self, error: UpstreamError) -> None:
        """Nothing more will come; the connection is closed."""
        self._connection = None
        self._error = error
        if not self.arrived.done():
            self.arrived.set_result(None)
        if self._sink is not None:
            self._sink.fail(error)
        elif self._waiter is not None:
            self._wake()

    def begin_sending(self, now_s: float) -> None:
        """The body is still on its way out: the head is not due yet."""
        self._phase = SENDING
        self._due_s = now_s + self._timeouts.idle_s

    def finish_sending(self, now_s: float) -> None:
        if self._phase == SENDING:
            self._phase = AWAITING_HEAD
            self._due_s = now_s + self._timeouts.first_byte_s

    @property
    def paused(self) -> bool:
        """True while its taker wants no more."""
        return self._paused

    @property
    def error(self) -> UpstreamError | None:
        """Why no more will come, if it broke off."""
        return self._error

    def check(self, now_s: float) -> None:
        """Fail if a deadline has passed."""
        connection = self._connection
        if connection is None:
            return
        phase = self._phase
        if now_s >= self._total_due_s:
            connection.fail(UpstreamTimeout(detail=f"total: not complete within {self._timeouts.total_s:g} s"))
        elif phase == READING_BODY and (self.touched or self._paused):
            self.touched = False
            self._due_s = now_s + self._timeouts.idle_s
        elif phase == SENDING and (self.touched or not connection.writing_paused):
            # Waiting for the caller's next piece is not the provider's silence.
            self.touched = False
            self._due_s = now_s + self._timeouts.idle_s
        elif now_s >= self._due_s:
            connection.fail(UpstreamTimeout(detail=self._overdue()))

    # -- private -------------------------------------------------------------------------------------------------

    def _overdue(self) -> str:
        if self._phase == SENDING:
            return f"send: request body not taken for {self._timeouts.idle_s:g} s"
        if self._phase == AWAITING_HEAD:
            return f"first byte: no answer within {self._timeouts.first_byte_s:g} s"
        return f"idle: nothing for {self._timeouts.idle_s:g} s"

    def _take(self) -> bytes:
        held = self._held
        chunk = held[0] if len(held) == 1 else b"".join(held)
        held.clear()
        self._held_bytes = 0
        self.resume()
        return chunk

    async def _readable(self) -> None:
        """Wait until something is held or the end is known."""
        if self._waiter is not None:
            raise RuntimeError("two readers of one response")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
