"""Who asked for how much today, of all accounts there are: for administrators.

To rank every account that did anything is the one thing here that takes longer the more of them there are, and
people leave such pages open. So it is done at most every `REMEMBERED_S` in a worker, for whoever asks meanwhile, and
of those who ask at once by one. What it says is true of the moment that it names.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import msgspec

from gateway.infra.clock import Clock
from gateway.infra.postgres import Database, Row, load_queries
from gateway.settings import UNLIMITED

REMEMBERED_S: Final = 10.0
#: Accounts that alerts look at: those that ask for most.
WATCHED_MAX: Final = 200
_queries: Final = load_queries(Path(__file__).with_name("today.sql"))


class Standings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one day (UTC), so far."""

    at: datetime
    #: How many accounts did anything, and what all of them did.
    sums: Row
    #: Ten of them, by tokens.
    top: Sequence[Row]
    #: Of those whose plan limits them, `WATCHED_MAX`, by requests.
    busiest: Sequence[Row]


class Today:
    """Of one worker."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._reading = asyncio.Lock()
        self._read: Standings | None = None
        self._read_s = 0.0

    async def standings(self) -> Standings:
        """The day so far, or as it was a few seconds ago.

        Raises:
            StoreUnavailable
        """
        async with self._reading:
            now = datetime.fromtimestamp(self._clock.now(), UTC)
            known = self._read
            is_young = self._clock.monotonic() - self._read_s <= REMEMBERED_S
            if known is not None and is_young and known.at.date() == now.date():
                return known
            self._read = await self._rank(now)
            self._read_s = self._clock.monotonic()
            return self._read

    async def _rank(self, now: datetime) -> Standings:
        day: date = now.date()
        async with self._database.session() as session:
            sums = await session.fetch_row(_queries["sum_day"], day)
            assert sums is not None
            return Standings(
                at=now,
                sums=sums,
                top=await session.fetch(_queries["top_accounts"], day),
                busiest=await session.fetch(_queries["list_busiest"], day, UNLIMITED, WATCHED_MAX),
            )
