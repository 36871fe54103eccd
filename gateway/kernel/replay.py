"""The replay: tells Redis what stands in local journals, those of this process and those that dead ones left.

Rules:
- Every verb is known by its request id, so what is told twice counts once: Redis remembers for two minutes, the books
  for ever (and what Redis has charged twice is then mended from them).
- A file is removed when all of it was told, and every charge in it was handed to the second copy. One with damage in
  it is kept beside, under another name, for people to look at.
- What a sweep has charged less for meanwhile, because the writer was away for longer than a lease, is charged the
  rest (`remainder.py`).
- What only says how far a request had come is charged when its process is dead and said no more. The files of this
  process are never read so: its requests end by themselves.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from gateway.errors import GatewayError, StoreUnavailable
from gateway.kernel.local_journal import SYNC_S, Entry, Gap, JournalFile, LocalJournal, find_left
from gateway.kernel.money import Nanos
from gateway.kernel.remainder import remainder_of
from gateway.kernel.verbs import Ended, Scopes, Sent, Settled, Verbs, Voided

log = logging.getLogger(__name__)

#: How often Redis is told of what this process wrote, and in how many such rounds once it looks for what others left.
#: That is soon enough for what is told to come before a sweep, see `SWEEP_AFTER_S` in `bookkeeping.py`.
REPLAY_EVERY_S: Final = 1.0
LEFT_EVERY: Final = 2
#: Entries on their way to Redis at a time.
BATCH: Final = 200


class SecondCopy(Protocol):
    """Keeps settled records until PostgreSQL has them; see `unsettled.py`."""

    def keep(self, request_id: str, scopes: Scopes, *, cost_nanos: Nanos, tokens: int, record: bytes) -> None: ...


class Replay:
    """Of one worker. `ledger` is the one in Redis, `reachable` says whether it is worth a try."""

    def __init__(
        self,
        journal: LocalJournal,
        ledger: Verbs,
        *,
        reachable: Callable[[], bool],
        second_copy: SecondCopy | None = None,
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._reachable = reachable
        self._second_copy = second_copy
        #: Redis could not be told anything when that was last tried.
        self._away = True
        #: Files that nobody writes to any more, and whether this process wrote them.
        self._files: list[tuple[JournalFile, bool]] = []

    async def replay_forever(self) -> None:
        """Tell Redis what there is to tell, as soon as it can be told."""
        rounds = 0
        while True:
            try:
                await self.replay_once(left=rounds % LEFT_EVERY == 0)
            except StoreUnavailable as error:
                log.info("local journals wait for Redis: %s", error.detail)
            except OSError as error:
                log.error("local journals can't be read: %s", error)  # noqa: TRY400  it will be tried again
            rounds += 1
            await asyncio.sleep(REPLAY_EVERY_S)

    async def sync_forever(self) -> None:
        """Bring the journal to the disk, soon after each entry."""
        while True:
            await asyncio.sleep(SYNC_S)
            try:
                await self._journal.sync()
            except OSError as error:
                log.error("the local journal can't be synced: %s", error)  # noqa: TRY400  it will be tried again

    async def replay_once(self, *, left: bool = True) -> int:
        """Tell Redis what stands in our file; with `left`, or when it is back, what the dead left too. How much.

        Raises:
            StoreUnavailable: the rest is told by a later call.
            OSError: the same.
        """
        if not self._reachable():
            self._away = True
            return 0
        left, self._away = left or self._away, False
        if self._journal.is_due and (file := self._journal.seal()) is not None:
            self._files.append((file, True))
        if left:
            self._files += [(file, False) for file in find_left(self._journal.directory)]
        count = 0
        while self._files:
            file, ours = self._files[0]
            told = await self._tell(file, ours=ours)
            self._files.pop(0)
            count += told
            if ours:
                self._journal.untold -= told
        return count

    def close(self) -> None:
        """Leave what was not told to others."""
        for file, _ in self._files:
            file.release()
        self._files.clear()

    async def _tell(self, file: JournalFile, *, ours: bool) -> int:
        """Everything in one file, which is gone then."""
        ends: list[Entry] = []
        orphans: dict[str, Entry] = {}
        count = 0
        sound = True
        for found in file.read():
            if isinstance(found, Gap):
                sound = sound and found.torn
                log.warning("%s: %d bytes are no entry", file.path.name, found.size_bytes)
                continue
            orphans.pop(found.request_id, None)
            if found.verb == "progress":
                orphans[found.request_id] = found
            elif found.verb != "told":
                ends.append(found)
            if len(ends) >= BATCH:
                sound = await self._send(ends) and sound
                count += len(ends)
                ends.clear()
        if not ours:
            ends += orphans.values()
        for start in range(0, len(ends), BATCH):
            sound = await self._send(ends[start : start + BATCH]) and sound
        count += len(ends)
        if sound:
            file.remove()
        else:
            log.error("%s is kept for people to look at: not all of it could be told", file.set_aside())
        if count:
            log.warning("told Redis of %d requests that had ended while it was away", count)
        return count

    async def _send(self, entries: Sequence[Entry]) -> bool:
        """Tell Redis of these, and wait for its answers; False if it refuses one for good."""
        sent: list[tuple[Entry, Sent[Settled | Voided | Ended]]] = []
        failure: StoreUnavailable | None = None
        sound = True
        for entry in entries:
            try:
                sent.append((entry, self._say(entry)))
            except StoreUnavailable as error:
                failure = error
                break
        remainders = []
        for entry, answer in sent:
            try:
                if (rest := self._heard(entry, await answer)) is not None:
                    remainders.append(rest)
            except StoreUnavailable as error:
                failure = error
            except GatewayError as error:
                log.error("request %s can't be ended: %s", entry.request_id, error.detail)  # noqa: TRY400
                sound = False
        if failure is not None:
            raise failure
        if remainders:
            sound = await self._send(remainders) and sound
        return sound

    def _say(self, entry: Entry) -> Sent[Settled | Voided | Ended]:
        if entry.verb == "void":
            return self._ledger.void(entry.request_id, entry.scopes, record=entry.record)
        return self._ledger.settle(
            entry.request_id, entry.scopes, cost_nanos=entry.cost_nanos, tokens=entry.tokens, record=entry.record
        )

    def _heard(self, entry: Entry, answer: Settled | Voided | Ended) -> Entry | None:
        """What is still to be told of it, if anything is."""
        if isinstance(answer, Ended):
            log.warning("request %s had ended already, by %s", entry.request_id, answer.verb)
            rest = None if entry.verb == "void" else remainder_of(answer, entry.record)
            if rest is not None:
                return msgspec.structs.replace(
                    entry,
                    verb="settle",
                    request_id=rest.request_id,
                    cost_nanos=rest.cost_nanos,
                    tokens=0,
                    record=rest.record,
                )
        elif self._second_copy is not None and entry.verb != "void":
            self._second_copy.keep(
                entry.request_id,
                entry.scopes,
                cost_nanos=entry.cost_nanos,
                tokens=entry.tokens,
                record=entry.record,
            )
        return None
