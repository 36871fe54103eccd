"""The connections to one origin: how many, which one next, who waits.

Rules:
- The newest idle connection is used first, so that the surplus of a burst grows old and is closed.
- Opening and open connections together never exceed `connections_max`. Who comes then waits in line, first come first
  served; the line is bounded, and waiting counts towards the connect timeout.
- A freed connection, or the room of a closed one, goes straight to the first in line: no newcomer overtakes.
- An idle connection older than `keep_alive_s` is never used, and closed by the next sweep.

It opens connections by the function it was given (`dial`), and never looks at bytes.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from gateway.api import Origin, UpstreamRequest
from gateway.errors import UpstreamDisconnected, UpstreamSaturated, UpstreamTimeout
from gateway.upstream.connection import Connection
from gateway.upstream.response import UpstreamResponse

#: Callers in line for one origin; more are refused at once.
WAITING_MAX: Final = 4096

Dial = Callable[["Pool"], Awaitable[Connection]]
Encode = Callable[[UpstreamRequest], bytes]


class Watcher(Protocol):
    """Told of every connection and every exchange, of all pools."""

    def made(self, connection: Connection) -> None:
        """It was opened for a pool. May close it."""
        ...

    def gone(self, connection: Connection) -> None:
        """Its socket is closed. Also called for one that was lost while it was opened, and never `made`."""
        ...

    def settled(self, response: UpstreamResponse) -> None:
        """Nothing more happens to this exchange."""
        ...


class Pool:
    """Connections to one origin. It owns each from the dialling until its socket is closed."""

    __slots__ = (
        "_connections_max",
        "_dial",
        "_keep_alive_s",
        "_made",
        "_waiting",
        "encode",
        "gone",
        "idle",
        "loop",
        "origin",
        "settled",
        "size",
    )

    def __init__(
        self,
        origin: Origin,
        *,
        encode: Encode,
        dial: Dial,
        watcher: Watcher,
        connections_max: int,
        keep_alive_s: float,
    ) -> None:
        self.origin = origin
        #: The head of a request to this origin.
        self.encode = encode
        self._made = watcher.made
        # Straight to the watcher, without a frame in between.
        self.gone = watcher.gone
        self.settled = watcher.settled
        #: Connections that count towards the limit: opening, in use, idle.
        self.size = 0
        #: Oldest first. A dictionary, to take the newest and to lose any in one step.
        self.idle: dict[Connection, None] = {}
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._dial = dial
        self._connections_max = connections_max
        self._keep_alive_s = keep_alive_s
        self.loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        return sum(not line.done() for line in self._waiting)

    @property
    def active(self) -> int:
        return self.size - len(self.idle)

    def take(self) -> Connection | None:
        """The newest idle connection that still serves, or None."""
        idle = self.idle
        while idle:
            connection, _ = idle.popitem()
            if (
                self.loop.time() - connection.idle_since_s < self._keep_alive_s
                and not connection.transport.is_closing()
            ):
                return connection
            connection.close()
        return None

    async def acquire(self, connect_s: float, *, fresh: bool) -> Connection:
        """A connection that is the caller's alone. With `fresh`, a new one where the limit leaves a way to that.

        Raises:
            UpstreamTimeout: it could not be opened within `connect_s`.
            UpstreamSaturated: the limit is reached and the line is full, or did not move within `connect_s`.
            UpstreamUnreachable: see `dial`.
        """
        if not fresh and (taken := self.take()) is not None:
            return taken
        deadline_s = self.loop.time() + connect_s
        if fresh and self.idle and self.size >= self._connections_max:
            next(iter(self.idle)).close()
        while True:
            if self.size < self._connections_max:
                self.size += 1
                break
            handed = await self._wait(deadline_s)
            if handed is None:
                break
            if not handed.closed:
                return handed
            # Lost between the handing over and this caller's turn to run.
        try:
            async with asyncio.timeout_at(deadline_s):
                connection = await self._dial(self)
            if not connection.closed:
                self._made(connection)
            if connection.closed:
                raise UpstreamDisconnected(detail="closed by the provider, before the request")
        except TimeoutError:
            self._release_room()
            raise UpstreamTimeout(detail=f"connect: not open within {connect_s:g} s") from None
        except BaseException:
            self._release_room()
            raise
        connection.adopt()
        return connection

    async def _wait(self, deadline_s: float) -> Connection | None:
        """In line for a connection; None is the room to open one."""
        if len(self._waiting) >= WAITING_MAX:
            raise UpstreamSaturated(detail=f"pool: {WAITING_MAX} callers in line")
        turn: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout_at(deadline_s):
                return await turn
        except UpstreamSaturated:
            raise
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It was handed over in the moment in which this caller gave up.
                handed = turn.result()
                if handed is None:
                    self._release_room()
                else:
                    self.free(handed)
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise UpstreamSaturated(detail="pool: no connection became free in time") from None
            raise

    def _next_in_line(self) -> "asyncio.Future[Connection | None] | None":
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                return turn
        return None

    def _release_room(self) -> None:
        turn = self._next_in_line()
        if turn is None:
            self.size -= 1
        else:
            turn.set_result(None)

    # -- what connections tell ------------------------------------------------------------------------------------

    def free(self, connection: Connection) -> None:
        """It can serve again."""
        if connection.closed:
            return  # its room was given away when it closed
        turn = self._next_in_line() if self._waiting else None
        if turn is not None:
            turn.set_result(connection)
        else:
            connection.idle_since_s = self.loop.time()
            self.idle[connection] = None

    def drop(self, connection: Connection) -> None:
        """It never serves again: its room is free."""
        self.idle.pop(connection, None)
        self._release_room()

    # -- the owner's --------------------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> None:
        """Close what has been idle for too long."""
        expired = []
        for connection in self.idle:
            if now_s - connection.idle_since_s < self._keep_alive_s:
                break
            expired.append(connection)
        for connection in expired:
            connection.close()

    def close(self) -> None:
        """Close the idle connections and turn away who waits."""
        for connection in tuple(self.idle):
            connection.close()
        while (turn := self._next_in_line()) is not None:
            turn.set_exception(UpstreamSaturated(detail="pool: closed"))

    def __repr__(self) -> str:
        where = f"{self.origin.scheme}://{self.origin.host}:{self.origin.port}"
        return f"<Pool {where}: {self.active} active, {len(self.idle)} idle, {self.waiting} waiting>"
