"""The ledger of a worker that may go on without Redis: the one in Redis while it answers, a twin in memory while not.

It is used where `money.when_redis_is_away` is "limit_locally". Then, while Redis is away:
- The same limits hold, counted by each worker on its own and from nothing: N workers let N times as much through.
- An account can spend what PostgreSQL says it has, and no more than the allowance, in each worker and outage. Budgets
  hold as PostgreSQL knows them. So the most an account can overspend is the allowance times the workers. With an
  allowance of 0 only free models are served. Where PostgreSQL is away too, an account not met before is refused.
- What was charged goes where every end goes that Redis can't take: into the local journal (`holds.py`).

A new outage begins when Redis was back for `FRESH_S` and was told everything; one that comes earlier goes on with
what is left of the allowance.
"""

from collections.abc import Awaitable, Sequence
from typing import Final

import msgspec

from gateway.errors import StoreUnavailable
from gateway.infra.clock import Clock
from gateway.kernel.local_journal import LocalJournal
from gateway.kernel.money import Nanos
from gateway.kernel.twin import Twin
from gateway.kernel.verbs import (
    LEASE_MS,
    PARTITIONS,
    Admission,
    Admitted,
    Balance,
    CreditDeferred,
    Credited,
    CreditGap,
    Ended,
    Expired,
    Loaded,
    NoCredit,
    Renewal,
    Scopes,
    Sent,
    Settled,
    Snapshot,
    Stale,
    Verbs,
    Voided,
)

#: Long enough for the settler to bring what was told to PostgreSQL, from where the next allowance is measured.
FRESH_S: Final = 10.0


class Standby:
    """`Verbs` that do not end with Redis."""

    def __init__(
        self,
        ledger: Verbs,
        *,
        journal: LocalJournal,
        clock: Clock,
        allowance_nanos: Nanos,
        partitions: int = PARTITIONS,
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._clock = clock
        self._allowance_nanos = allowance_nanos
        self._partitions = partitions
        self._twin: Twin | None = None
        #: Since when Redis answers again; None while it does not.
        self._back_s: float | None = None
        #: Requests that the twin let in, and which one.
        self._here: dict[str, Twin] = {}
        #: How many it let in.
        self.admitted = 0
        #: Accounts that have more than the allowance.
        self._capped: set[bytes] = set()

    def __repr__(self) -> str:
        return f"<Standby: {len(self._here)} admitted here>"

    def scopes(self, *, account_id: int, key_id: str, limits: bytes, model: str | None = None) -> Scopes:
        return self._ledger.scopes(account_id=account_id, key_id=key_id, limits=limits, model=model)

    def admit(
        self, request_id: str, scopes: Scopes, *, hold_nanos: Nanos, tokens: int, lease_ms: int = LEASE_MS
    ) -> Awaitable[Admission]:
        try:
            sent = self._ledger.admit(request_id, scopes, hold_nanos=hold_nanos, tokens=tokens, lease_ms=lease_ms)
        except StoreUnavailable:
            return self._admit_here(request_id, scopes, hold_nanos=hold_nanos, tokens=tokens)
        return self._admit(sent, request_id, scopes, hold_nanos=hold_nanos, tokens=tokens)

    async def _admit(
        self, sent: Awaitable[Admission], request_id: str, scopes: Scopes, *, hold_nanos: Nanos, tokens: int
    ) -> Admission:
        try:
            admission = await sent
        except StoreUnavailable:
            # Redis may have taken the hold all the same; the end of the request gives it back, whoever it is told by.
            return await self._admit_here(request_id, scopes, hold_nanos=hold_nanos, tokens=tokens)
        if self._twin is not None and self._back_s is None:
            self._back_s = self._clock.monotonic()
        return admission

    async def _admit_here(self, request_id: str, scopes: Scopes, *, hold_nanos: Nanos, tokens: int) -> Admission:
        if not self._journal.has_room:
            raise StoreUnavailable(detail="the local journal is full")
        twin = self._current()
        admission = await twin.admit(request_id, scopes, hold_nanos=hold_nanos, tokens=tokens)
        if isinstance(admission, Admitted):
            self._here[request_id] = twin
            self.admitted += 1
        elif isinstance(admission, NoCredit) and scopes.account_key in self._capped:
            # It has credit; it is we who can't let it have more.
            raise StoreUnavailable(detail="Redis is away, and the local allowance of the account is used up")
        return admission

    def settle(
        self, request_id: str, scopes: Scopes, *, cost_nanos: Nanos, tokens: int, record: bytes
    ) -> Sent[Settled | Ended]:
        if (twin := self._here.pop(request_id, None)) is not None:
            twin.settle(request_id, scopes, cost_nanos=cost_nanos, tokens=tokens, record=record)
        return self._ledger.settle(request_id, scopes, cost_nanos=cost_nanos, tokens=tokens, record=record)

    def void(self, request_id: str, scopes: Scopes, *, record: bytes = b"") -> Sent[Voided | Ended]:
        if (twin := self._here.pop(request_id, None)) is not None:
            twin.void(request_id, scopes, record=record)
        return self._ledger.void(request_id, scopes, record=record)

    def renew(self, partition: int, renewals: Sequence[Renewal], *, lease_ms: int = LEASE_MS) -> Awaitable[list[str]]:
        """Redis does not know of what was admitted here, and says so; `Holds` then writes it to the journal."""
        return self._ledger.renew(partition, renewals, lease_ms=lease_ms)

    def sweep(self, partition: int, *, at_most: int) -> Awaitable[list[Expired]]:
        return self._ledger.sweep(partition, at_most=at_most)

    def credit(
        self, account_id: int, *, seq: int, previous_seq: int, amount_nanos: Nanos
    ) -> Awaitable[Credited | CreditGap | CreditDeferred]:
        return self._ledger.credit(account_id, seq=seq, previous_seq=previous_seq, amount_nanos=amount_nanos)

    async def load(
        self, account_id: int, snapshot: Snapshot, *, key_id: str = "", force: bool = False
    ) -> Loaded | Stale:
        try:
            return await self._ledger.load(account_id, snapshot, key_id=key_id, force=force)
        except StoreUnavailable:
            twin = self._current()
            scopes = self.scopes(account_id=account_id, key_id=key_id, limits=b"")
            if snapshot.balance_nanos > self._allowance_nanos:
                self._capped.add(scopes.account_key)
                snapshot = msgspec.structs.replace(snapshot, balance_nanos=self._allowance_nanos)
            # Never by force: that would be another allowance.
            return await twin.load(account_id, snapshot, key_id=key_id)

    def forget_spent(self, account_id: int, key_ids: Sequence[str]) -> Awaitable[int]:
        return self._ledger.forget_spent(account_id, key_ids)

    def peek_balance(self, account_id: int) -> Awaitable[Balance | None]:
        return self._ledger.peek_balance(account_id)

    def _current(self) -> Twin:
        """The twin of this outage."""
        back_s, self._back_s = self._back_s, None
        over = (
            back_s is not None
            and self._clock.monotonic() - back_s >= FRESH_S
            and not self._here
            and self._journal.untold == 0
        )
        if self._twin is None or over:
            self._twin = Twin(now_us=self._now_us, keep=_keep_nothing, partitions=self._partitions)
            self._capped.clear()
        return self._twin

    def _now_us(self) -> int:
        return int(self._clock.now() * 1_000_000)


def _keep_nothing(partition: int, record: bytes, at_us: int) -> None:
    """Records of what is settled here go into the journal, by whoever settles."""


_: type[Verbs] = Standby
