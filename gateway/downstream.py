"""Where a response goes: the one place that decides between the server's direct path and ASGI's `send`.

Both speak the same plain methods: `start`, `write`, `end`, `abort` never wait. Back-pressure goes the other way: the
source of the bytes is paused when the caller reads slowly and resumed when it has caught up, so that what is held
for one caller stays below `HIGH_WATER_BYTES` and one read of the upstream socket.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from gateway.errors import CallerGone
from gateway.exchange import Headers, Message, Receive, Scope, Send
from gateway.infra.tasks import TaskGroup

#: ASGI extension of `gateway.server.protocol`.
DIRECT = "gateway.direct"

HIGH_WATER_BYTES = 64 * 1024
LOW_WATER_BYTES = 16 * 1024


class Source(Protocol):
    """What produces the bytes."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Downstream(Protocol):
    """One response on its way to the caller."""

    @property
    def is_gone(self) -> bool:
        """True once the caller has closed the connection."""
        ...

    def start(self, status: int, headers: Headers, *, chunked: bool) -> None:
        """Begin. `headers` hold a content-length unless `chunked`. The head may wait for the first body bytes."""
        ...

    def flush(self) -> None:
        """Let the head wait no longer."""
        ...

    def write(self, data: bytes) -> None: ...

    def end(self, data: bytes = b"") -> None:
        """The response is whole, with `data` as its last bytes."""
        ...

    def abort(self) -> None:
        """Break off so that the caller can't take the response for a whole one."""
        ...

    def feed_from(self, source: Source) -> None:
        """Let `source` be paused and resumed from here."""
        ...

    async def flushed(self) -> None:
        """Wait until everything written has been handed to the server."""
        ...


class _Direct(Protocol):
    """The server's side of the extension; see `gateway.server.protocol.DirectCycle`."""

    def listen(self, listener: object) -> None: ...

    def start(self, status: int, headers: Headers, *, chunked: bool) -> None: ...

    def flush(self) -> None: ...

    def write(self, data: bytes) -> None: ...

    def end(self, data: bytes = b"") -> None: ...

    def abort(self) -> None: ...


class DirectDownstream:
    """Writes to the server's socket from wherever the bytes are."""

    __slots__ = ("_on_gone", "_paused", "_source", "abort", "end", "flush", "is_gone", "start", "write")

    def __init__(self, direct: _Direct, on_gone: Callable[[], object]) -> None:
        self.is_gone = False
        self._on_gone = on_gone
        self._source: Source | None = None
        self._paused = False
        # Bound once: a chunk costs no frame here.
        self.start = direct.start
        self.flush = direct.flush
        self.write = direct.write
        self.end = direct.end
        self.abort = direct.abort
        direct.listen(self)

    def feed_from(self, source: Source) -> None:
        self._source = source
        if self._paused:
            source.pause()

    async def flushed(self) -> None:
        return

    # The server calls these.

    def pause(self) -> None:
        self._paused = True
        if self._source is not None:
            self._source.pause()

    def resume(self) -> None:
        self._paused = False
        if self._source is not None:
            self._source.resume()

    def gone(self) -> None:
        self.is_gone = True
        self._on_gone()


class SendDownstream:
    """Hands the bytes to ASGI's `send` from a task of its own, through a bounded queue; works on any server."""

    def __init__(self, receive: Receive, send: Send, *, on_gone: Callable[[], object], tasks: TaskGroup) -> None:
        self.is_gone = False
        self._send = send
        self._on_gone = on_gone
        self._source: Source | None = None
        self._paused = False
        self._queue: deque[Message] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._aborted = False
        self._ended = False
        self._watcher = tasks.spawn(self._watch(receive), name="disconnect")
        self._pump = tasks.spawn(self._run(), name="send")

    def start(self, status: int, headers: Headers, *, chunked: bool) -> None:
        # The server frames the body by itself.
        self._put({"type": "http.response.start", "status": status, "headers": headers})

    def flush(self) -> None:
        return

    def write(self, data: bytes) -> None:
        self._queued_bytes += len(data)
        self._put({"type": "http.response.body", "body": data, "more_body": True})
        if self._queued_bytes > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            if self._source is not None:
                self._source.pause()

    def end(self, data: bytes = b"") -> None:
        if not self._ended:
            self._ended = True
            message = {"type": "http.response.body", "body": data, "more_body": False}
            # Behind whatever was queued before it in this turn: the command that charges for the answer, above all.
            asyncio.get_running_loop().call_soon(self._put, message)

    def abort(self) -> None:
        self._ended = self._aborted = True
        self._wake.set()

    def feed_from(self, source: Source) -> None:
        self._source = source
        if self._paused:
            source.pause()

    async def flushed(self) -> None:
        """Wait for the queue.

        Raises:
            CallerGone: after `abort`: the server closes a connection whose application returns with an open response.
        """
        try:
            await asyncio.wait([self._pump])
        finally:
            self._watcher.cancel()
            self._pump.cancel()

    def _put(self, message: Message) -> None:
        self._queue.append(message)
        self._wake.set()

    async def _run(self) -> None:
        while not (self.is_gone or self._aborted):
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            message = self._queue.popleft()
            await self._send(message)
            self._queued_bytes -= len(message.get("body", b""))
            if self._paused and self._queued_bytes < LOW_WATER_BYTES:
                self._paused = False
                if self._source is not None:
                    self._source.resume()
            if message["type"] == "http.response.body" and not message["more_body"]:
                return

    async def _watch(self, receive: Receive) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                if not self._ended:
                    self.is_gone = True
                    self._wake.set()
                    self._on_gone()
                return


def open_downstream(
    scope: Scope, receive: Receive, send: Send, *, on_gone: Callable[[], object], tasks: TaskGroup
) -> Downstream:
    """The best way to this caller that the server offers. `on_gone` is called once if the caller leaves.

    Raises:
        CallerGone: the caller has left already.
    """
    # The extension's name vouches for its shape.
    direct: _Direct | None = scope.get("extensions", {}).get(DIRECT)
    if direct is None:
        return SendDownstream(receive, send, on_gone=on_gone, tasks=tasks)
    downstream = DirectDownstream(direct, on_gone)
    if downstream.is_gone:
        raise CallerGone
    return downstream
