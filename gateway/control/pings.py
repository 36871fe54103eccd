"""Counts pings: right across workers and restarts, and at most one statement at a time in each worker.

Whoever is answered has been counted: those who come while a statement runs wait for the next one, which counts all of
them at once. Without the database a ping is answered without a number, and not counted.
"""

import asyncio
from pathlib import Path
from typing import Final

from gateway.errors import StoreUnavailable
from gateway.infra.postgres import Database, load_queries
from gateway.infra.tasks import TaskGroup

queries: Final = load_queries(Path(__file__).with_name("pings.sql"))


class Pings:
    """Of one worker."""

    def __init__(self, database: Database, tasks: TaskGroup) -> None:
        self._database = database
        self._tasks = tasks
        self._waiting: list[asyncio.Future[int | None]] = []
        self._counting = False

    async def count(self) -> int | None:
        """The number of this one; None where it could not be counted."""
        number: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(number)
        if not self._counting:
            self._counting = True
            self._tasks.spawn(self._count_waiting(), name="count pings")
        return await number

    async def _count_waiting(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    last = await self._database.fetch_value(queries["count_pings"], len(batch))
                except StoreUnavailable:
                    last = None
                for place, number in enumerate(batch):
                    if not number.done():
                        number.set_result(None if last is None else last - len(batch) + 1 + place)
        finally:
            self._counting = False
