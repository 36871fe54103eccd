"""A connection that comes back: dialled again in the background whenever it is lost, for as long as it is wanted.

The first attempt follows within 50 ms; then the wait doubles up to `DELAY_S_MAX`, with jitter so that workers that
lost the same server do not return to it together. A connection that breaks soon after it was made counts as a failed
attempt: a server that greets and then refuses (a replica that was a master a moment ago) is not called in a loop.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from gateway.errors import StoreUnavailable
from gateway.infra.redis.connection import Connection
from gateway.infra.tasks import TaskGroup

log = logging.getLogger(__name__)

DELAY_S_MIN = 0.05
DELAY_S_MAX = 1.0
#: A connection that lived so long was a good one.
PROVEN_S = 2.0

Dial = Callable[[], Awaitable[Connection]]


class Link:
    """Keeps `connection` open while it can; None while it can't. `on_change` is called at each change of it."""

    def __init__(self, name: str, dial: Dial, *, tasks: TaskGroup, on_change: "Callable[[Link], None]") -> None:
        self.name = name
        self.connection: Connection | None = None
        self._dial = dial
        self._tasks = tasks
        self._on_change = on_change
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Make the first connection, and keep it from then on.

        Raises:
            StoreUnavailable: it could not be made; nothing goes on in the background.
        """
        connection = await self._dial()
        self._attach(connection)
        self._task = self._tasks.spawn(self._keep(connection), name=f"redis {self.name}")

    def start(self) -> None:
        """Make and keep the connection in the background."""
        self._task = self._tasks.spawn(self._keep(None), name=f"redis {self.name}")

    async def wait_up(self, wait_s: float) -> Connection:
        """The connection, as soon as there is one.

        Raises:
            StoreUnavailable: there was none within `wait_s`.
        """
        try:
            async with asyncio.timeout(wait_s):
                while self.connection is None:
                    await self._up.wait()
        except TimeoutError:
            raise StoreUnavailable(detail=f"{self.name}: not connected") from None
        return self.connection

    async def close(self, wait_s: float) -> None:
        """Let what was sent be answered, at most `wait_s`, then close."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        if self.connection is not None:
            await self.connection.drain(wait_s)
        if self.connection is not None:
            self.connection.give_up("closed by us")

    async def _keep(self, connection: Connection | None) -> None:
        loop = asyncio.get_running_loop()
        delay_s = 0.0
        while True:
            if connection is None:
                connection = await self._redial(delay_s)
                self._attach(connection)
            began_s = loop.time()
            reason = await connection.lost
            log.warning("redis connection lost", extra={"server": self.name, "reason": reason})
            lived_s = loop.time() - began_s
            delay_s = 0.0 if lived_s >= PROVEN_S else _longer(delay_s)
            connection = None

    async def _redial(self, delay_s: float) -> Connection:
        failures = 0
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.0) * delay_s)
            try:
                return await self._dial()
            except StoreUnavailable as error:
                delay_s = _longer(delay_s)
                # Once when it begins; then it is known.
                level = logging.DEBUG if failures else logging.WARNING
                log.log(level, "redis can't be reached", extra={"server": self.name, "reason": error.detail})
                failures += 1

    def _attach(self, connection: Connection) -> None:
        if self._closed:
            connection.give_up("closed by us")
            return
        self.connection = connection
        connection.on_lost = self._detach
        if connection.lost.done():
            # Between the greeting and now.
            self._detach(connection)
            return
        self._up.set()
        self._on_change(self)

    def _detach(self, connection: Connection) -> None:
        if self.connection is connection:
            self.connection = None
            self._up.clear()
            self._on_change(self)


def _longer(delay_s: float) -> float:
    return min(DELAY_S_MAX, max(DELAY_S_MIN, delay_s * 2))
