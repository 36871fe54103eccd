"""The holds of one worker: which are open, how they are kept alive, and how each of them ends.

Rules:
- A hold is ended once, by `settle` or `void`. The command is on its way when the call returns: what is written to the
  caller afterwards can't overtake it by more than the length of a system call.
- While a hold is open its lease is renewed, with what was delivered so far; so if this process is killed, a sweep
  elsewhere charges what the last renewal said, and what went out after it where that was marked (`marks.py`).
- A worker that was away for so long that a sweep has ended its request charges what the sweep did not know of.
- An end that Redis did not confirm goes into the local journal, from where it is told again until it is: the verbs
  are idempotent by request id. So does what was delivered of a request whose renewal Redis does not take. An end that
  can't be written there either is kept in memory, at most `UNCONFIRMED_MAX` of them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import islice
from typing import Final

from gateway.errors import GatewayError, StoreUnavailable
from gateway.exchange import Principal
from gateway.infra.clock import Clock
from gateway.infra.metrics import Observations
from gateway.kernel.ledger import RENEWALS_MAX
from gateway.kernel.local_journal import Entry, LocalJournal, Verb
from gateway.kernel.money import Nanos
from gateway.kernel.record import UsageRecord, encode_record
from gateway.kernel.remainder import remainder_of
from gateway.kernel.replay import SecondCopy
from gateway.kernel.verbs import LEASE_MS, Ended, Renewal, Scopes, Sent, Settled, Verbs, Voided

log = logging.getLogger(__name__)

#: How often open holds are renewed, and so how much of a stream can be lost together with its worker's machine.
RENEW_S: Final = 1.0
#: A hold younger than this is not renewed: most requests are over by then.
YOUNG_S: Final = 0.25
#: So many are renewed in one turn of the loop: the streams of this worker must not wait for the books of all of them.
RENEWED_AT_ONCE: Final = 8
CLOSE_POLL_S: Final = 0.02
UNCONFIRMED_MAX: Final = 100_000
SCOPES_MAX: Final = 100_000

#: What would be charged if nothing more were heard: cost, tokens, record. None while nothing was delivered.
Progress = Callable[[], "tuple[Nanos, int, UsageRecord] | None"]


class Hold:
    """What was taken for one request, until it is given back."""

    __slots__ = ("amount_nanos", "end", "journaled", "opened_s", "request_id", "scopes")

    def __init__(self, request_id: str, scopes: Scopes, amount_nanos: Nanos) -> None:
        self.request_id = request_id
        self.scopes = scopes
        self.amount_nanos = amount_nanos
        self.opened_s = 0.0
        #: How it was ended: cost and tokens (None for a void) and the encoded record.
        self.end: tuple[Nanos | None, int, bytes] | None = None
        #: The local journal says how far it has come.
        self.journaled = False


class Holds:
    """Opens nothing itself: `reserve` admits and hands the hold in."""

    def __init__(
        self,
        ledger: Verbs,
        *,
        clock: Clock,
        settle_seconds: Observations,
        journal: LocalJournal,
        second_copy: SecondCopy | None = None,
        lease_ms: int = LEASE_MS,
    ) -> None:
        self._ledger = ledger
        #: For how long a hold is kept whose worker says nothing more.
        self.lease_ms = lease_ms
        self._journal = journal
        self._second_copy = second_copy
        self._clock = clock
        self._settle_seconds = settle_seconds
        self._open: dict[Hold, Progress] = {}
        #: Ended, and the answer is not here yet.
        self._ending: set[Hold] = set()
        self._unconfirmed: dict[str, Hold] = {}
        self._scopes: dict[str, tuple[Principal, Scopes]] = {}
        self.lost = 0

    def __repr__(self) -> str:
        return f"<Holds: {len(self._open)} open, {len(self._ending)} ending, {len(self._unconfirmed)} unconfirmed>"

    @property
    def open_count(self) -> int:
        """Requests that credit is held for, those included whose end is on its way."""
        return len(self._open) + len(self._ending)

    def scopes(self, principal: Principal) -> Scopes:
        """The names and limits of a principal, made once for as long as it is the same."""
        found = self._scopes.get(principal.key_id)
        if found is not None and found[0] is principal:
            return found[1]
        scopes = self._ledger.scopes(
            account_id=principal.account_id, key_id=principal.key_id, limits=principal.limits
        )
        if len(self._scopes) >= SCOPES_MAX:
            self._scopes.clear()
        self._scopes[principal.key_id] = (principal, scopes)
        return scopes

    def add(self, hold: Hold, progress: Progress) -> None:
        """Keep `hold` alive until it is ended."""
        hold.opened_s = self._clock.monotonic()
        self._open[hold] = progress

    def settle(self, hold: Hold, record: UsageRecord, *, tokens: int) -> None:
        """End it with the record's cost."""
        self._end(hold, record.cost_nanos, tokens, encode_record(record))

    def void(self, hold: Hold, record: UsageRecord) -> None:
        """End it at no cost; the record is kept for the usage log."""
        self._end(hold, None, 0, encode_record(record))

    def leave(self, hold: Hold, *, lease_ms: int) -> None:
        """Let it go on without the request: another end of the same id will come, at the latest that of its lease."""
        self._open.pop(hold, None)
        try:
            sent = self._ledger.renew(hold.scopes.partition, [Renewal(hold.request_id)], lease_ms=lease_ms)
        except StoreUnavailable:
            return
        asyncio.ensure_future(sent).add_done_callback(lambda done: done.cancelled() or done.exception())

    def abandon(self, hold: Hold) -> None:
        """Give back what an admission may have taken whose answer was not heard. Its lease would do so, later."""
        self._end(hold, None, 0, b"")

    async def renew_forever(self) -> None:
        """Keep the leases of open holds, and send unconfirmed ends again."""
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self.renew()
                await self._confirm()
            except StoreUnavailable as error:
                log.warning("holds can't be renewed: %s", error.detail or error.message)
            except GatewayError as error:
                log.error("holds can't be renewed: %s", error.detail or error.message)  # noqa: TRY400  the text says it

    async def close(self, wait_s: float) -> None:
        """Wait until every end is confirmed, at most `wait_s`; for the end of the process, once no request runs."""
        try:
            async with asyncio.timeout(wait_s):
                while self._ending:  # noqa: ASYNC110  the hot path pays for no event that only an end would use
                    await asyncio.sleep(CLOSE_POLL_S)
                while self._unconfirmed:
                    await self._confirm()
        except (StoreUnavailable, TimeoutError):
            for hold in list(self._ending):
                self._keep(hold)
            if self._unconfirmed:
                log.error("%d ended requests were not confirmed by Redis", len(self._unconfirmed))  # noqa: TRY400

    def _end(self, hold: Hold, cost: Nanos | None, tokens: int, record: bytes) -> None:
        self._open.pop(hold, None)
        hold.end = (cost, tokens, record)
        try:
            sent = self._send(hold)
        except StoreUnavailable:
            self._keep(hold)
            return
        if cost is not None and self._second_copy is not None:
            self._second_copy.keep(hold.request_id, hold.scopes, cost_nanos=cost, tokens=tokens, record=record)
        self._ending.add(hold)
        sent.when_done(partial(self._ended, hold, self._clock.monotonic()))

    def _send(self, hold: Hold) -> Sent[Settled | Voided | Ended]:
        assert hold.end is not None
        cost, tokens, record = hold.end
        if cost is None:
            return self._ledger.void(hold.request_id, hold.scopes, record=record)
        return self._ledger.settle(hold.request_id, hold.scopes, cost_nanos=cost, tokens=tokens, record=record)

    def _ended(
        self, hold: Hold, sent_s: float, answer: Settled | Voided | Ended | None, error: BaseException | None
    ) -> None:
        self._ending.discard(hold)
        if error is None:
            self._settle_seconds.observe(self._clock.monotonic() - sent_s)
            self._confirmed(hold, answer)
            return
        if not isinstance(error, StoreUnavailable):
            log.error("request %s could not be ended", hold.request_id, exc_info=error)
        self._keep(hold)

    def _keep(self, hold: Hold) -> None:
        assert hold.end is not None
        cost, tokens, record = hold.end
        if record and self._write(hold, "void" if cost is None else "settle", cost or 0, tokens, record):
            return
        if len(self._unconfirmed) >= UNCONFIRMED_MAX:
            self._unconfirmed.pop(next(iter(self._unconfirmed)))
            self.lost += 1
            log.error("too many unconfirmed requests: the oldest is given up, %d lost so far", self.lost)
        self._unconfirmed[hold.request_id] = hold

    def _write(self, hold: Hold, verb: Verb, cost: Nanos = 0, tokens: int = 0, record: bytes = b"") -> bool:
        """Whether the local journal has it now."""
        scopes = hold.scopes
        keys = (scopes.partition, scopes.account_key, scopes.key_key, scopes.model_key)
        try:
            self._journal.append(Entry(verb, hold.request_id, *keys, cost, tokens, record))
        except StoreUnavailable as error:
            log.error("request %s can't be journaled: %s", hold.request_id, error.detail)  # noqa: TRY400
            return False
        return True

    def _confirmed(self, hold: Hold, answer: Settled | Voided | Ended | None) -> None:
        if isinstance(answer, Ended):
            log.warning("request %s had ended already, by %s", hold.request_id, answer.verb)
            assert hold.end is not None
            cost, _, record = hold.end
            if cost is not None and (rest := remainder_of(answer, record)) is not None:
                self._end(Hold(rest.request_id, hold.scopes, 0), rest.cost_nanos, 0, rest.record)
        if hold.journaled:
            self._write(hold, "told")

    async def _confirm(self) -> None:
        while waiting := list(islice(self._unconfirmed.values(), RENEWALS_MAX)):
            sent = [(hold, self._send(hold)) for hold in waiting]
            for hold, answer in sent:
                try:
                    self._confirmed(hold, await answer)
                except StoreUnavailable:
                    raise
                except GatewayError as error:
                    log.error("request %s can't be ended: %s", hold.request_id, error.detail)  # noqa: TRY400
                self._unconfirmed.pop(hold.request_id, None)

    async def renew(self) -> None:
        """Extend the leases of what is open, and say how far it has come.

        Raises:
            StoreUnavailable: Redis was not told of all of it; what it was not told stands in the local journal.
        """
        failure: StoreUnavailable | None = None
        sent: list[tuple[list[Hold], list[Renewal], Awaitable[list[str]]]] = []
        for partition, due in self._due().items():
            for start in range(0, len(due), RENEWED_AT_ONCE):
                holds = [hold for hold in due[start : start + RENEWED_AT_ONCE] if hold in self._open]
                news = [self._renewal(hold) for hold in holds]
                try:
                    sent.append((holds, news, self._ledger.renew(partition, news, lease_ms=self.lease_ms)))
                except StoreUnavailable as error:
                    failure = error
                    self._note(holds, news)
                await asyncio.sleep(0)
        for holds, news, answer in sent:
            try:
                unknown = set(await answer)
            except StoreUnavailable as error:
                failure = error
                self._note(holds, news)
            else:
                if unknown:
                    self._note(holds, [each for each in news if each.request_id in unknown])
                for hold, each in zip(holds, news, strict=True):
                    # What the journal says is old now.
                    if hold.journaled and each.record and each.request_id not in unknown and hold in self._open:
                        hold.journaled = not self._write(hold, "told")
        if failure is not None:
            raise failure

    def _note(self, holds: Iterable[Hold], news: Iterable[Renewal]) -> None:
        """Write down how far requests have come that Redis does not know of."""
        by_id = {hold.request_id: hold for hold in holds}
        for renewal in news:
            hold = by_id[renewal.request_id]
            # What has ended while we waited has said its last word.
            if hold in self._open and renewal.record:
                hold.journaled |= self._write(hold, "progress", renewal.cost_nanos, renewal.tokens, renewal.record)

    def _due(self) -> dict[int, list[Hold]]:
        """What is to be renewed, by partition."""
        before_s = self._clock.monotonic() - YOUNG_S
        by_partition: dict[int, list[Hold]] = {}
        for hold in self._open:
            if hold.opened_s <= before_s:
                by_partition.setdefault(hold.scopes.partition, []).append(hold)
        return by_partition

    def _renewal(self, hold: Hold) -> Renewal:
        news = self._open[hold]()
        if news is None:
            return Renewal(hold.request_id)
        cost, tokens, record = news
        return Renewal(hold.request_id, cost, tokens, encode_record(record))
