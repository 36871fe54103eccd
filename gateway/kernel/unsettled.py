"""A worker's second copy of what it settled in Redis, kept until PostgreSQL has it.

Rules:
- A record is dropped when the settler says, by its request id, that it is in the books; a notice that was missed is
  made up for by asking PostgreSQL. Nothing else drops it, but a full buffer: then the oldest goes, and is counted.
- A record is offered to Redis again when there is a sign that Redis lost it: notices were interrupted (a crash, a
  restart, a failover), the settler found another stream, or a later record of this worker and partition is in the
  books and this one is not. The settle verb takes it at most once for as long as it remembers the request; beyond
  that, the books do.
- While PostgreSQL can't be asked, only what Redis still remembers, if it lost nothing, is offered.

So one crash of anything loses nothing; a worker and Redis that die in the same moment can take with them what was
settled since the settler's last pass.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, Protocol

import msgspec

from gateway.errors import GatewayError, StoreUnavailable
from gateway.infra.clock import Clock
from gateway.infra.postgres import Database
from gateway.infra.redis import Message
from gateway.infra.tasks import TaskGroup
from gateway.kernel.money import Nanos
from gateway.kernel.remainder import remainder_of
from gateway.kernel.request_id import time_ms
from gateway.kernel.settler import queries
from gateway.kernel.verbs import Ended, Scopes, Settled, Verbs

log = logging.getLogger(__name__)

RECORDS_MAX: Final = 200_000
#: How often the buffer is looked through for records that were passed over.
CHECK_EVERY_S: Final = 2.0
#: Older ones may have been confirmed without our hearing of it.
STALE_S: Final = 30.0
#: Redis remembers an ended request for two minutes; see `lua/common.lua`.
REMEMBERED_S: Final = 100.0
#: Records in one question to PostgreSQL, or offered in one go.
PIECE: Final = 500

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

#: Which of these request ids are in the books, as hexadecimal digits without dashes.
Known = Callable[[Sequence[str]], Awaitable[set[str]]]


class Notices(Protocol):
    """Where the settler's notices come from; the Redis client's subscription."""

    def __aiter__(self) -> "Notices": ...

    async def __anext__(self) -> Message | None: ...

    def close(self) -> None: ...


class Kept(msgspec.Struct):
    """One settled record, ready to be settled again."""

    request_id: str
    scopes: Scopes
    cost_nanos: Nanos
    tokens: int
    record: bytes
    #: Rises with every offer of this worker, and so, within a partition, as the stream does.
    number: int
    kept_s: float


class Unsettled:
    """The buffer of one worker. `known` asks PostgreSQL; see `find_known`."""

    def __init__(self, ledger: Verbs, known: Known, *, clock: Clock, records_max: int = RECORDS_MAX) -> None:
        self._ledger = ledger
        self._known = known
        self._clock = clock
        self._records_max = records_max
        self._kept: dict[str, Kept] = {}
        self._number = 0
        #: By partition, the latest of our records that is in the books.
        self._confirmed: dict[int, int] = {}
        #: What Redis may have lost, until it was offered again.
        self._doubted: set[str] = set()
        self._tasks = TaskGroup()
        self._wake = asyncio.Event()
        #: Records given up because the buffer was full.
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, request_id: str, scopes: Scopes, *, cost_nanos: Nanos, tokens: int, record: bytes) -> None:
        """Remember a settle that was sent; with the same arguments, in the order of sending."""
        if len(self._kept) >= self._records_max:
            self._drop_oldest()
        self._number += 1
        self._kept[request_id.replace("-", "")] = Kept(
            request_id, scopes, cost_nanos, tokens, record, self._number, self._clock.monotonic()
        )

    def start(self, notices: Notices) -> None:
        """Listen to the settler (on `settler.CHANNEL`) and look after the records, until `stop`."""
        self._tasks.spawn(self._listen(notices), name="settled notices")
        self._tasks.spawn(self._check_forever(), name="unsettled records")

    async def stop(self) -> None:
        await self._tasks.close()
        if self._kept:
            log.info("%d records are in Redis and not known to be in PostgreSQL yet", len(self._kept))

    # -- what is heard -----------------------------------------------------------------------------------------

    def hear(self, message: bytes | None) -> None:
        """Take a notice of the settler; None where some may have been missed."""
        if message is None:
            self._doubted.update(self._kept)
            self._wake.set()
        elif message[:1] == b"s":
            digits = message[1:].hex()
            self._confirm(digits[at : at + 32] for at in range(0, len(digits), 32))
        elif message[:1] == b"r" and message[1:].isdigit():
            partition = int(message[1:])
            self._doubted.update(name for name, kept in self._kept.items() if kept.scopes.partition == partition)
            self._wake.set()

    def _confirm(self, names: Iterable[str]) -> None:
        pop, confirmed = self._kept.pop, self._confirmed
        for name in names:
            if (kept := pop(name, None)) is not None:
                partition = kept.scopes.partition
                if kept.number > confirmed.get(partition, 0):
                    confirmed[partition] = kept.number

    # -- what is done ------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Drop what is in the books, and offer again what Redis seems to have lost.

        Raises:
            StoreUnavailable: Redis is away; what remains is done by the next call.
        """
        now_s = self._clock.monotonic()
        self._doubted.intersection_update(self._kept)
        self._doubted.update(
            name for name, kept in self._kept.items() if kept.number < self._confirmed.get(kept.scopes.partition, 0)
        )
        stale = [name for name, kept in islice(self._kept.items(), PIECE) if now_s - kept.kept_s > STALE_S]
        asked = list(dict.fromkeys((*sorted(self._doubted, key=lambda name: self._kept[name].number), *stale)))
        for start in range(0, len(asked), PIECE):
            piece = asked[start : start + PIECE]
            try:
                self._confirm(
                    await self._known([self._kept[name].request_id for name in piece if name in self._kept])
                )
                lost = [name for name in piece if name in self._doubted and name in self._kept]
            except StoreUnavailable:
                lost = [
                    name
                    for name in piece
                    if name in self._doubted and name in self._kept and now_s - self._kept[name].kept_s < REMEMBERED_S
                ]
            await self._offer(lost)

    async def _offer(self, names: Sequence[str]) -> None:
        """Settle them again. Those whose outcome is unknown stay in doubt."""
        sent = []
        for name in names:
            kept = self._kept[name]
            sent.append(
                self._ledger.settle(
                    kept.request_id, kept.scopes, cost_nanos=kept.cost_nanos, tokens=kept.tokens, record=kept.record
                )
            )
            self._number += 1
            kept.number = self._number
        answers = await asyncio.gather(*sent, return_exceptions=True)
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, StoreUnavailable):
                continue
            if isinstance(answer, GatewayError):
                log.error("request %s can't be settled again: %s", name, answer.detail)
            elif isinstance(answer, BaseException):
                raise answer
            self._doubted.discard(name)
            # Refused, or ended by a sweep, which charged what was last said of it: there is but the rest to do.
            if not isinstance(answer, Settled) and (ended := self._kept.pop(name, None)) is not None:
                rest = remainder_of(answer, ended.record) if isinstance(answer, Ended) else None
                if rest is not None:
                    self.keep(rest.request_id, ended.scopes, cost_nanos=rest.cost_nanos, tokens=0, record=rest.record)
                    self._doubted.add(rest.request_id.replace("-", ""))

    def _drop_oldest(self) -> None:
        name = next(iter(self._kept))
        del self._kept[name]
        self._doubted.discard(name)
        self.dropped += 1
        if self.dropped == 1 or self.dropped % 10_000 == 0:
            log.warning("%d settled records have no second copy: PostgreSQL is too far behind", self.dropped)

    # -- the loops ---------------------------------------------------------------------------------------------

    async def _listen(self, notices: Notices) -> None:
        try:
            async for message in notices:
                self.hear(None if message is None else message.data)
        finally:
            notices.close()

    async def _check_forever(self) -> None:
        while True:
            # Not at once: where Redis was away, it comes back for all of us together.
            await asyncio.sleep(CHECK_EVERY_S / 4)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.check()
            except StoreUnavailable as error:
                log.info("unsettled records wait for a store: %s", error.detail)


def find_known(database: Database) -> Known:
    """Ask PostgreSQL which requests are in the books."""

    async def known(request_ids: Sequence[str]) -> set[str]:
        times = [_EPOCH + timedelta(milliseconds=time_ms(each)) for each in request_ids]
        if not times:
            return set()
        rows = await database.fetch(queries["known_requests"], list(request_ids), min(times), max(times))
        return {row["request_id"].hex for row in rows}

    return known
