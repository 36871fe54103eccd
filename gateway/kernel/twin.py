"""The twin of the Redis ledger: the same verbs and the same arithmetic in memory.

It is used by a process while Redis is away, where the settings allow that: then only for limits, since no balance is
loaded and so no hold but one of 0 passes. And it is the oracle that the scripts are tested against: given the same
time, both give the same answers and keep the same state, to the last bit of their fractions. So what is changed here
is changed in `lua/`, and the other way round.

Memory is bounded: scopes that hold nothing are forgotten, least recently used first, and admission is refused with
`Overloaded` when too much is in flight. Usage records are handed to `keep` and not kept here.
"""

from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

from gateway.errors import Overloaded
from gateway.kernel.limits import (
    BUCKET_WINDOWS_US,
    BUCKETS,
    BUDGET_WINDOWS,
    DAY_US,
    LIFETIME,
    NO_SLOT,
    BudgetWindow,
    window_end_us,
    window_ids,
)
from gateway.kernel.money import MAX_NANOS, Nanos
from gateway.kernel.record import decode_record
from gateway.kernel.verbs import (
    LEASE_MS,
    PARTITIONS,
    SCOPES,
    Admission,
    Admitted,
    Balance,
    Busy,
    CreditDeferred,
    Credited,
    CreditGap,
    Ended,
    Expired,
    Limited,
    Loaded,
    NoCredit,
    Notice,
    NotLoaded,
    OverBudget,
    Rates,
    Renewal,
    ScopeName,
    Scopes,
    Settled,
    Snapshot,
    Stale,
    UsedUp,
    Verbs,
    Voided,
    name_scopes,
)

SCOPES_MAX: Final = 100_000
HOLDS_MAX: Final = 100_000
#: Parsed limits that are remembered; there are as many as different plans and keys.
LIMITS_MAX: Final = 10_000
TOMBSTONES_MAX: Final = 100_000
_TOMB_US: Final = 120_000_000
_ORPHAN_US: Final = 2 * DAY_US
_SLACK: Final = 0.001

T = TypeVar("T")
#: A refusal that still wants to know the rates.
Refusal = Callable[[Rates], Admission]


class ScopeState:
    """One scope's hash. `used` and `empty_us` are by bucket number less one; only token buckets need `empty_us`."""

    __slots__ = ("balance", "empty_us", "held", "in_flight", "seq", "spent", "used", "written_us")

    def __init__(self) -> None:
        self.balance: int | None = None
        self.held = 0
        self.in_flight = 0
        self.seq = 0
        self.spent: list[int] | None = None
        self.written_us: int | None = None
        self.used = [0.0] * 8
        self.empty_us = [0] * 8


class ScopeLimits(msgspec.Struct, frozen=True):
    """One scope's part of the packed limits: (bucket, limit, capacity), (window, limit, hard)."""

    concurrency: int
    buckets: tuple[tuple[int, int, int], ...]
    budgets: tuple[tuple[int, int, int], ...]


class _Hold(msgspec.Struct):
    scopes: Scopes
    amount: int
    tokens: int
    admitted_us: int
    ends_ms: int
    answer: Admitted
    news: Renewal | None = None


class _Tombstone(msgspec.Struct, frozen=True):
    until_us: int
    verb: Literal["settle", "void", "expire"]
    cost: int
    answer: Settled | Voided | None
    #: A sweep ended it and charged nothing.
    for_nothing: bool = False


class Done(Generic[T]):
    """The answer of a verb that took effect when it was called. Awaiting it does not wait."""

    __slots__ = ("_answer",)

    def __init__(self, answer: T) -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        return self._answer

    def when_done(self, hear: Callable[[T | None, BaseException | None], None]) -> None:
        hear(self._answer, None)


class Twin:
    """`Verbs` in memory. `now_us` is the wall clock in microseconds; `keep` gets (partition, record, time) of each
    usage record, in order. `backlog` is what the usage stream still holds beyond a snapshot's cursor, for `load`:
    (time in ms, record).
    """

    def __init__(
        self,
        *,
        now_us: Callable[[], int],
        keep: Callable[[int, bytes, int], None],
        backlog: Callable[[int, str], Sequence[tuple[int, bytes]]] | None = None,
        partitions: int = PARTITIONS,
        scopes_max: int = SCOPES_MAX,
        holds_max: int = HOLDS_MAX,
    ) -> None:
        self._now_us = now_us
        self._keep = keep
        self._backlog = backlog or _no_backlog
        self._partitions = partitions
        self._scopes_max = scopes_max
        self._holds_max = holds_max
        self.states: OrderedDict[bytes, ScopeState] = OrderedDict()
        self._holds: dict[str, _Hold] = {}
        self._tombstones: OrderedDict[str, _Tombstone] = OrderedDict()
        self._limits: dict[bytes, tuple[int, list[ScopeLimits]]] = {}

    def scopes(self, *, account_id: int, key_id: str, limits: bytes, model: str | None = None) -> Scopes:
        return name_scopes(
            partitions=self._partitions, account_id=account_id, key_id=key_id, model=model, limits=limits
        )

    # -- verbs -------------------------------------------------------------------------------------------------

    def admit(
        self, request_id: str, scopes: Scopes, *, hold_nanos: Nanos, tokens: int, lease_ms: int = LEASE_MS
    ) -> Done[Admission]:
        _check(hold_nanos, tokens)
        now = self._now_us()
        if (hold := self._holds.get(request_id)) is not None:
            return Done(hold.answer)
        if (tombstone := self._tombstone(request_id, now)) is not None:
            return Done(Ended(tombstone.verb, tombstone.cost))
        if len(self._holds) >= self._holds_max:
            raise Overloaded(detail="too many requests in flight for limits kept in memory")
        overdraft, limits = self._parse(scopes.limits)
        keys = _keys(scopes)
        states = [self._drained(key, limit, now) for key, limit in zip(keys, limits, strict=False)]
        wanted = (1, tokens)
        refusal: Refusal | NotLoaded | None = _full(states, limits, wanted) or _busy(states, limits)
        refusal = refusal or _unaffordable(states, limits, hold_nanos, overdraft, now)
        if isinstance(refusal, NotLoaded):
            return Done(refusal)
        if refusal is not None:
            return Done(refusal(_rates(states, limits)))
        for state, limit in zip(states, limits, strict=False):
            for bucket, _, _ in limit.buckets:
                state.used[bucket - 1] += wanted[bucket > 4]
        for number, (key, state) in enumerate(zip(keys, states, strict=True)):
            if number < 2:
                state.held += hold_nanos
                state.in_flight += limits[number].concurrency != NO_SLOT
            self._store(key, state)
        answer = Admitted(_rates(states, limits))
        self._holds[request_id] = _Hold(scopes, hold_nanos, tokens, now, now // 1000 + lease_ms, answer)
        return Done(answer)

    def settle(
        self, request_id: str, scopes: Scopes, *, cost_nanos: Nanos, tokens: int, record: bytes
    ) -> Done[Settled | Ended]:
        _check(cost_nanos, tokens)
        now = self._now_us()
        if (tombstone := self._tombstone(request_id, now)) is not None and not tombstone.for_nothing:
            return Done(_again(tombstone, Settled))
        hold = self._holds.get(request_id)
        if hold is not None and _keys(hold.scopes) != _keys(scopes):
            return Done(Ended("admit", 0))
        if hold is not None:
            answer = Settled(cost_nanos, True, self._release(hold, now, cost_nanos, tokens, recorded=True))
        else:
            self._charge(scopes, cost_nanos, now)
            answer = Settled(cost_nanos, False)
        self._keep(scopes.partition, record, now)
        self._bury(request_id, _Tombstone(now + _TOMB_US, "settle", cost_nanos, answer))
        return Done(answer)

    def void(self, request_id: str, scopes: Scopes, *, record: bytes = b"") -> Done[Voided | Ended]:
        now = self._now_us()
        if (tombstone := self._tombstone(request_id, now)) is not None:
            return Done(_again(tombstone, Voided))
        hold = self._holds.get(request_id)
        if hold is None:
            return Done(Voided(False))
        if _keys(hold.scopes) != _keys(scopes):
            return Done(Ended("admit", 0))
        self._release(hold, now, None, 0, recorded=bool(record))
        if record:
            self._keep(scopes.partition, record, now)
        answer = Voided(True)
        self._bury(request_id, _Tombstone(now + _TOMB_US, "void", 0, answer))
        return Done(answer)

    def renew(self, partition: int, renewals: Sequence[Renewal], *, lease_ms: int = LEASE_MS) -> Done[list[str]]:
        now = self._now_us()
        unknown = []
        for renewal in renewals:
            hold = self._holds.get(renewal.request_id)
            if hold is None or hold.scopes.partition != partition:
                unknown.append(renewal.request_id)
                continue
            hold.ends_ms = now // 1000 + lease_ms
            if renewal.record:
                hold.news = renewal
        return Done(unknown)

    def sweep(self, partition: int, *, at_most: int) -> Done[list[Expired]]:
        now = self._now_us()
        due = sorted(
            (hold.ends_ms, request_id)
            for request_id, hold in self._holds.items()
            if hold.scopes.partition == partition and hold.ends_ms <= now // 1000
        )
        swept = []
        for _, request_id in due[:at_most]:
            hold = self._holds[request_id]
            if hold.news is None:
                self._release(hold, now, None, 0, recorded=False)
                swept.append(Expired(request_id, "voided"))
                cost = 0
            else:
                cost = hold.news.cost_nanos
                notices = self._release(hold, now, cost, hold.news.tokens, recorded=True)
                self._keep(partition, hold.news.record, now)
                swept.append(Expired(request_id, "charged", cost, notices))
            until_us = now + (_TOMB_US if hold.news is None else _ORPHAN_US)
            tombstone = _Tombstone(until_us, "expire", cost, None, for_nothing=hold.news is None)
            self._bury(request_id, tombstone)
        return Done(swept)

    def credit(
        self, account_id: int, *, seq: int, previous_seq: int, amount_nanos: Nanos
    ) -> Done[Credited | CreditGap | CreditDeferred]:
        key = self._account_key(account_id)
        state = self.states.get(key) or ScopeState()
        if state.balance is None:
            if seq > state.seq:
                state.seq = seq
                self._store(key, state)
            return Done(CreditDeferred(state.seq))
        if seq <= state.seq:
            return Done(Credited(state.balance, repeated=True))
        if previous_seq != state.seq:
            return Done(CreditGap(state.seq))
        state.balance = _exact(state.balance + amount_nanos)
        state.seq = seq
        return Done(Credited(state.balance, repeated=False))

    def load(
        self, account_id: int, snapshot: Snapshot, *, key_id: str = "", force: bool = False
    ) -> Done[Loaded | Stale]:
        partition = account_id % self._partitions
        key = self._account_key(account_id)
        key_key = f"{{p{partition}}}:k:{key_id}".encode() if key_id else b""
        state = self.states.get(key) or ScopeState()
        key_state = self.states.get(key_key) or ScopeState()
        wants_balance = force or state.balance is None
        wants_spent = snapshot.account_spent is not None and (force or state.spent is None)
        wants_key = bool(key_id) and snapshot.key_spent is not None and (force or key_state.spent is None)
        if not (wants_balance or wants_spent or wants_key):
            assert state.balance is not None
            return Done(Loaded(state.balance, already=True))
        if state.seq > snapshot.seq:
            return Done(Stale(state.seq))
        balance = snapshot.balance_nanos
        spent = None if snapshot.account_spent is None else snapshot.account_spent.counters()
        key_spent = None if snapshot.key_spent is None else snapshot.key_spent.counters()
        for at_ms, packed in self._backlog(partition, snapshot.cursor):
            record = decode_record(packed)
            if record.account_id != account_id:
                continue
            balance = _exact(balance - record.cost_nanos)
            if spent is not None:
                _count_again(spent, record.cost_nanos, at_ms * 1000)
            if key_spent is not None and record.key_id == key_id:
                _count_again(key_spent, record.cost_nanos, at_ms * 1000)
        if wants_balance:
            state.balance, state.seq = balance, snapshot.seq
        if wants_spent:
            state.spent = spent
        self._store(key, state)
        if wants_key:
            key_state.spent = key_spent
            self._store(key_key, key_state)
        assert state.balance is not None
        return Done(Loaded(state.balance, already=False))

    def forget_spent(self, account_id: int, key_ids: Sequence[str]) -> Done[int]:
        for key_id in key_ids:
            state = self.states.get(f"{{p{account_id % self._partitions}}}:k:{key_id}".encode())
            if state is not None:
                state.spent = None
        return Done(len(key_ids))

    def peek_balance(self, account_id: int) -> Done[Balance | None]:
        state = self.states.get(self._account_key(account_id))
        if state is None or state.balance is None:
            return Done(None)
        return Done(Balance(state.balance, state.held, state.seq, state.in_flight))

    # -- state -------------------------------------------------------------------------------------------------

    def _account_key(self, account_id: int) -> bytes:
        return f"{{p{account_id % self._partitions}}}:a:{account_id}".encode()

    def _parse(self, packed: bytes) -> tuple[int, list[ScopeLimits]]:
        if (parsed := self._limits.get(packed)) is None:
            if len(self._limits) >= LIMITS_MAX:
                self._limits.clear()
            parsed = self._limits[packed] = parse_limits(packed)
        return parsed

    def _drained(self, key: bytes, limits: ScopeLimits, now: int) -> ScopeState:
        """A copy of the scope with its buckets drained to now; nothing is changed until it is stored."""
        stored = self.states.get(key)
        state = ScopeState()
        state.written_us = now
        state.empty_us = [now] * 8
        if stored is None:
            return state
        state.balance, state.held, state.in_flight = stored.balance, stored.held, stored.in_flight
        state.seq, state.spent = stored.seq, stored.spent
        if stored.written_us is None:
            return state
        elapsed = max(0.0, float(now - stored.written_us))
        for bucket, limit, _ in limits.buckets:
            used = stored.used[bucket - 1]
            # In floating point throughout, in the scripts' order: so both round alike.
            used = max(0.0, used - elapsed * float(limit) / float(BUCKET_WINDOWS_US[bucket - 1])) if used > 0 else 0.0
            state.used[bucket - 1] = used
            state.empty_us[bucket - 1] = now if used == 0 else stored.empty_us[bucket - 1]
        return state

    def _store(self, key: bytes, state: ScopeState) -> None:
        self.states[key] = state
        self.states.move_to_end(key)
        for _ in range(len(self.states) - self._scopes_max):
            # What holds something goes to the back of the queue: there are at most twice as many as holds.
            oldest, idle = self.states.popitem(last=False)
            if idle.in_flight or idle.balance is not None:
                self.states[oldest] = idle

    def _tombstone(self, request_id: str, now: int) -> _Tombstone | None:
        tombstone = self._tombstones.get(request_id)
        return None if tombstone is None or tombstone.until_us <= now else tombstone

    def _bury(self, request_id: str, tombstone: _Tombstone) -> None:
        self._holds.pop(request_id, None)
        self._tombstones[request_id] = tombstone
        self._tombstones.move_to_end(request_id)
        if len(self._tombstones) > TOMBSTONES_MAX:
            self._tombstones.popitem(last=False)

    def _release(self, hold: _Hold, now: int, cost: int | None, tokens: int, *, recorded: bool) -> tuple[Notice, ...]:
        _, limits = self._parse(hold.scopes.limits)
        delta = tokens - hold.tokens
        notices: list[Notice] = []
        for number, (key, limit) in enumerate(zip(_keys(hold.scopes), limits, strict=False)):
            if key not in self.states or self.states[key].written_us is None:
                continue
            state = self._drained(key, limit, now)
            for bucket, _, _ in limit.buckets:
                if bucket > 4:
                    used = state.used[bucket - 1]
                    if delta > 0:
                        state.used[bucket - 1] = used + delta
                    elif delta < 0 and state.empty_us[bucket - 1] <= hold.admitted_us:
                        state.used[bucket - 1] = max(0.0, used + delta)
            if number < 2:
                state.held = max(0, state.held - hold.amount)
                state.in_flight = max(0, state.in_flight - (limit.concurrency != NO_SLOT))
                if cost is not None and number == 0 and state.balance is not None:
                    state.balance = _exact(state.balance - cost)
                if recorded and state.spent is not None:
                    state.spent = list(state.spent)
                    if cost is None:
                        _count_request(state.spent)
                    else:
                        _spend(state.spent, cost, now, requests=1)
                        notices += _notice(number, state.spent, limit.budgets)
            self._store(key, state)
        return tuple(notices)

    def _charge(self, scopes: Scopes, cost: int, now: int) -> None:
        for number, key in enumerate((scopes.account_key, scopes.key_key)):
            if (state := self.states.get(key)) is not None:
                if number == 0 and state.balance is not None:
                    state.balance = _exact(state.balance - cost)
                if state.spent is not None:
                    _spend(state.spent, cost, now, requests=1)


def parse_limits(packed: bytes) -> tuple[int, list[ScopeLimits]]:
    """The overdraft, and the limits of the account, the key and the model, from `limits.pack_limits`."""
    numbers = iter(msgspec.msgpack.decode(packed, type=list[int]))
    overdraft = next(numbers)

    def triples() -> tuple[tuple[int, int, int], ...]:
        return tuple((next(numbers), next(numbers), next(numbers)) for _ in range(next(numbers)))

    return overdraft, [ScopeLimits(next(numbers), triples(), triples()) for _ in SCOPES]


def _no_backlog(partition: int, cursor: str) -> tuple[()]:
    return ()


def _keys(scopes: Scopes) -> list[bytes]:
    keys = [scopes.account_key, scopes.key_key]
    return keys if scopes.model_key is None else [*keys, scopes.model_key]


def _rates(states: list[ScopeState], limits: list[ScopeLimits]) -> Rates:
    found = [-1, -1, 0, -1, -1, 0]
    for state, limit in zip(states, limits, strict=False):
        for bucket, rate, capacity in limit.buckets:
            used = state.used[bucket - 1]
            left = max(0, int((capacity - used + _SLACK) // 1))
            slot = 3 if bucket > 4 else 0
            if found[slot] == -1 or left < found[slot + 1]:
                window_us = BUCKET_WINDOWS_US[bucket - 1]
                found[slot : slot + 3] = rate, left, _up(used * window_us / rate / 1000) if used > 0 and rate else 0
    return Rates(*found)


def _up(number: float) -> int:
    return int(-(-number // 1))


def _full(states: list[ScopeState], limits: list[ScopeLimits], wanted: tuple[int, int]) -> Refusal | None:
    """Of the buckets that are full, the one that takes longest; one that will never hold this beats all."""
    longest, found = -2, (0, 0, 0, 0)
    for number, (state, limit) in enumerate(zip(states, limits, strict=False)):
        for bucket, rate, capacity in limit.buckets:
            wants = wanted[bucket > 4]
            over = state.used[bucket - 1] + wants - capacity
            if over > _SLACK and wants > 0 and longest != -1:
                wait_ms = -1
                if wants <= capacity:
                    wait_ms = _up(over * BUCKET_WINDOWS_US[bucket - 1] / rate / 1000)
                if wait_ms == -1 or wait_ms > longest:
                    longest, found = wait_ms, (number, bucket, rate, wants)
    if longest == -2:
        return None
    number, bucket, rate, wants = found
    retry_ms = None if longest == -1 else longest
    return lambda rates: Limited(rates, SCOPES[number], BUCKETS[bucket - 1], rate, wants, retry_ms)


def _busy(states: list[ScopeState], limits: list[ScopeLimits]) -> Refusal | None:
    for number in (0, 1):
        most = limits[number].concurrency
        if most >= 0 and states[number].in_flight + 1 > most:
            return lambda rates: Busy(rates, SCOPES[number], most)
    return None


def _unaffordable(
    states: list[ScopeState], limits: list[ScopeLimits], amount: int, overdraft: int, now: int
) -> Refusal | NotLoaded | None:
    """What is free needs neither a balance nor room in a budget, but it counts as a request."""
    over: tuple[ScopeName, BudgetWindow, int, int, bool, int | None] | None = None
    room = MAX_NANOS
    for number in (0, 1):
        state, budgets = states[number], limits[number].budgets
        if not budgets or (amount == 0 and budgets[-1][0] != LIFETIME):
            continue
        if state.spent is None:
            return NotLoaded(SCOPES[number])
        counters = list(state.spent)
        _spend(counters, 0, now)
        for window, limit, hard in budgets:
            window_id, spent, _ = counters[3 * window - 3 : 3 * window]
            if window == LIFETIME:
                if spent + state.in_flight + 1 > limit:
                    used_up = (SCOPES[number], limit, spent + 1 <= limit)
                    return lambda rates: UsedUp(rates, *used_up)
            elif amount > 0 and hard:
                left = limit - spent - state.held
                room = min(room, left)
                if left < amount and over is None:
                    end_us = window_end_us(window, window_id)
                    ends_ms = None if end_us < 0 else end_us // 1000
                    name = BUDGET_WINDOWS[window - 1]
                    over = (SCOPES[number], name, limit, spent, spent + amount <= limit, ends_ms)
    if amount == 0:
        return None
    account = states[0]
    if account.balance is None:
        return NotLoaded("account")
    credit = account.balance + overdraft
    room = min(room, credit - account.held)
    if over is not None:
        found = over
        return lambda rates: OverBudget(rates, *found, room)
    if credit - account.held < amount:
        return lambda rates: NoCredit(rates, amount <= credit, room)
    return None


def _spend(counters: list[int], cost: int, now: int, *, requests: int = 0) -> None:
    """Counts a cost in every window, after starting those anew that are over, and requests."""
    counters[3 * LIFETIME - 2] += requests
    for position, window_id in enumerate(window_ids(now)):
        at = 3 * position
        if window_id > counters[at]:
            counters[at : at + 3] = window_id, 0, 0
        counters[at + 1] = min(counters[at + 1] + cost, MAX_NANOS)


def _count_again(counters: list[int], cost: int, at_us: int) -> None:
    """Counts what was charged then: in a window that is over by now it counts no more."""
    _count_request(counters)
    for position, window_id in enumerate(window_ids(at_us)):
        at = 3 * position
        if window_id > counters[at]:
            counters[at : at + 3] = window_id, 0, 0
        if window_id == counters[at]:
            counters[at + 1] = min(counters[at + 1] + cost, MAX_NANOS)


def _count_request(counters: list[int]) -> None:
    counters[3 * LIFETIME - 2] += 1


def _notice(number: int, counters: list[int], budgets: tuple[tuple[int, int, int], ...]) -> list[Notice]:
    notices = []
    for window, limit, hard in budgets:
        at = 3 * window - 3
        if not hard and counters[at + 1] >= limit and counters[at + 2] < limit:
            counters[at + 2] = limit
            notices.append(Notice(SCOPES[number], BUDGET_WINDOWS[window - 1], limit, counters[at + 1]))
    return notices


def _again(tombstone: _Tombstone, kind: type[T]) -> T | Ended:
    if isinstance(tombstone.answer, kind):
        return tombstone.answer
    return Ended(tombstone.verb, tombstone.cost)


def _check(amount: int, tokens: int) -> None:
    if not (0 <= amount <= MAX_NANOS and 0 <= tokens <= MAX_NANOS):
        raise ValueError(f"out of bounds: {amount} nanos, {tokens} tokens")


def _exact(amount: int) -> int:
    if abs(amount) > MAX_NANOS:
        raise ValueError(f"an amount beyond 2^53: {amount}")
    return amount


_: type[Verbs] = Twin
