"""One connection to one server: commands out, replies in, in order.

Commands wait in `_out` until the end of the loop's turn and leave joined. Their futures wait in `_waiting` for the
replies, which the protocol promises in the same order. There is no timer for each command: a tick a few times within
`timeout_s` remembers how many commands had been sent, and if the replies have not come as far as an old enough mark,
the server is silent. Ticks are counted, not clock time, so that a stall of our own loop fails nobody whose reply is
already there to be read.

A connection ends once, by `give_up` or by the server, and then every waiting future fails. It does not reconnect
(`link.py`), and it leaves refused commands to whoever knows what the refusal means (`client.py`).
"""

import asyncio
from collections import deque
from collections.abc import Callable

import hiredis

from gateway.errors import GatewayError, StoreUnavailable

#: Commands that may wait for their replies on one connection.
PENDING_MAX = 10_000
#: Bytes that may wait in the transport before commands are held back.
WRITE_BUFFER_BYTES_MAX = 1024 * 1024
#: Parts of `timeout_s`: a silent server is noticed between `timeout_s` and a quarter more.
TICKS = 4
#: A connection that has heard nothing for so long asks whether somebody is there.
PING_S = 1.0

Argument = bytes | str | int | float
Command = tuple[Argument, ...]
#: A command that was sent: who waits for the reply, the command itself, and how often it was sent on or again.
Entry = tuple["asyncio.Future[object]", Command, int]

#: Refusals that say that the server, not the command, is at fault.
_UNAVAILABLE = frozenset({
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN",
})  # fmt: skip
_NOTHING = object()


class CommandRefused(GatewayError):
    """The store refused a command.

    A mistake of ours: a wrong type, a script that failed. `prefix` is the first word of what the server said,
    `detail` all of it.
    """

    def __init__(self, said: str) -> None:
        super().__init__(detail=said)
        self.prefix = said.partition(" ")[0]


class Connection(asyncio.Protocol):
    """An open connection. `on_refusal` gets every error reply, `on_lost` is called once, with the reason."""

    def __init__(self, name: str, *, timeout_s: float, pending_max: int = PENDING_MAX) -> None:
        self.name = name
        #: Becomes the reason when the connection has ended.
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.on_refusal: Callable[[Connection, Entry, str], None] = fail_refused
        self.on_lost: Callable[[Connection], None] | None = None
        #: Scripts on their way to the server, by their digest.
        self.loading: set[Argument] = set()
        #: Logged in and known to answer.
        self.greeted = False
        self._loop = asyncio.get_running_loop()
        self._pending_max = pending_max
        self._tick_s = timeout_s / TICKS
        self._ping_ticks = max(TICKS, round(PING_S / self._tick_s))
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._out: list[bytes] = []
        self._waiting: deque[Entry] = deque()
        self._replied = 0
        self._marks: deque[int] = deque()
        self._idle_ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._dead = False
        self._push: Callable[[object], None] | None = None
        # Whoever waits for this future is gone already: for commands whose reply does not matter.
        self._nobody: asyncio.Future[object] = self._loop.create_future()
        self._nobody.cancel()

    def __len__(self) -> int:
        """Commands that wait for their replies."""
        return len(self._waiting)

    # -- for callers -------------------------------------------------------------------------------------------

    def send(self, future: "asyncio.Future[object]", command: Command, hops: int = 0) -> None:
        """Send `command`; its reply, or a GatewayError, becomes the result of `future`.

        Raises:
            StoreUnavailable: the connection has ended, or too many commands wait already.
            TypeError: an argument is neither bytes, text nor a number.
        """
        if self._dead:
            raise StoreUnavailable(detail=f"{self.name}: connection lost")
        waiting = self._waiting
        if len(waiting) >= self._pending_max:
            raise StoreUnavailable(detail=f"{self.name}: {self._pending_max} commands are waiting")
        packed = hiredis.pack_command(command)  # type: ignore[arg-type] # its stub says a tuple of one
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out.append(packed)
        waiting.append((future, command, hops))

    def ask(self, *command: Argument) -> "asyncio.Future[object]":
        """Send `command`; the future of its reply."""
        future: asyncio.Future[object] = self._loop.create_future()
        self.send(future, command)
        return future

    def tell(self, *command: Argument) -> None:
        """Send `command`; nobody waits for the reply."""
        self.send(self._nobody, command)

    def listen(self, push: Callable[[object], None]) -> None:
        """From now on replies answer nothing: each goes to `push`. For a connection that subscribes."""
        assert not self._waiting, "replies are outstanding"
        self._push = push

    def write(self, *command: Argument) -> None:
        """Send a command on a connection that listens."""
        assert self._push is not None
        if self._transport is not None and not self._dead:
            self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type] # as above

    async def drain(self, wait_s: float) -> None:
        """Wait until everything sent so far is answered, at most `wait_s`."""
        if pending := [entry[0] for entry in self._waiting]:
            await asyncio.wait(pending, timeout=wait_s)

    def give_up(self, reason: str) -> None:
        """End the connection now and fail everything that waits. Does nothing the second time."""
        if self._dead:
            return
        self._dead = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._out.clear()
        waiting, self._waiting = self._waiting, deque()
        if not self.lost.done():
            self.lost.set_result(reason)
        if self.on_lost is not None:
            self.on_lost(self)
        for future, _, _ in waiting:
            if not future.done():
                future.set_exception(StoreUnavailable(detail=f"{self.name}: {reason}"))

    # -- for the loop ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The loop's own transports are not subclasses of asyncio's under uvloop, but have the same methods.
        self._transport = transport  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)  # type: ignore[attr-defined]
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def data_received(self, data: bytes) -> None:
        if self._dead:
            return
        self._idle_ticks = 0
        reader = self._reader
        try:
            reader.feed(data)
            if self._push is not None:
                while (reply := reader.gets()) is not _NOTHING:
                    self._push(reply)
                return
            gets = reader.gets
            next_entry = self._waiting.popleft
            replied = 0
            while (reply := gets()) is not _NOTHING:
                replied += 1
                entry = next_entry()
                if type(reply) is hiredis.ReplyError:
                    self.on_refusal(self, entry, str(reply))
                    if self.lost.done():
                        return
                    continue
                try:
                    entry[0].set_result(reply)
                except asyncio.InvalidStateError:
                    # The caller stopped waiting.
                    continue
            self._replied += replied
        except hiredis.ProtocolError as error:
            self.give_up(f"protocol error: {error}")
        except IndexError:
            self.give_up("a reply that nothing asked for")

    def eof_received(self) -> None:
        self.give_up("closed by the server")

    def connection_lost(self, error: Exception | None) -> None:
        self.give_up(f"lost: {error}" if error else "closed")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def _flush(self) -> None:
        if self._paused or self._dead or self._transport is None:
            return
        out = self._out
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        self._idle_ticks += 1
        if self._push is not None:
            if self._idle_ticks == self._ping_ticks:
                self.write(b"PING")
            elif self._idle_ticks > self._ping_ticks + TICKS:
                self.give_up("silent")
            return
        marks = self._marks
        if len(marks) == TICKS and self._replied < marks.popleft():
            self.give_up("no reply in time")
            return
        if not self._waiting and self._idle_ticks >= self._ping_ticks:
            self.tell(b"PING")
        marks.append(self._replied + len(self._waiting))


def fail_refused(connection: Connection, entry: Entry, said: str) -> None:
    """Fail a command that the server refused with `said`."""
    future = entry[0]
    if not future.done():
        future.set_exception(refusal(said, connection.name))


def refusal(said: str, name: str) -> GatewayError:
    """The error for an error reply."""
    if said.partition(" ")[0] in _UNAVAILABLE:
        return StoreUnavailable(detail=f"{name}: {said}")
    return CommandRefused(said)
