"""The verbs of the ledger: what they take, what they answer, and which hold they act on.

`Ledger` (Redis, `ledger.py`) and `Twin` (in memory, `twin.py`) both speak `Verbs`. Each verb acts once for each
request id, whoever repeats it; the repeat gets the first answer.

    absent --admit--> held --settle--> ended
                      held --void----> ended
                      held --expire--> ended     (by a sweep, when the lease ran out)

Any other edge answers `Ended` and changes nothing, but for a settle without a hold, or after a sweep that charged
nothing: the tokens were delivered, so it is charged all the same, and says so.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from gateway.kernel.limits import BudgetWindow, window_ids
from gateway.kernel.money import Nanos

T_co = TypeVar("T_co", covariant=True)

ScopeName = Literal["account", "key", "model"]
#: As the scripts number them, from one.
SCOPES: Final[tuple[ScopeName, ...]] = ("account", "key", "model")

LEASE_MS: Final = 60_000
PARTITIONS: Final = 64


class Scopes(msgspec.Struct, frozen=True, kw_only=True):
    """Whose limits and whose money: made once for each (principal, model), by `Verbs.scopes`.

    Everything that a request's keys in Redis are made of, encoded.
    """

    partition: int
    account_key: bytes
    key_key: bytes
    model_key: bytes | None
    hold_prefix: bytes
    leases_key: bytes
    progress_key: bytes
    usage_key: bytes
    #: `limits.pack_limits`
    limits: bytes


def name_scopes(*, partitions: int, account_id: int, key_id: str, model: str | None, limits: bytes) -> Scopes:
    """The names in Redis; `model` only where that model has limits of its own within the account."""
    partition = account_id % partitions
    tag = f"{{p{partition}}}:"
    return restore_scopes(
        partition,
        name_account(partition, account_id),
        f"{tag}k:{key_id}".encode(),
        None if model is None else f"{tag}m:{account_id}:{model}".encode(errors="replace"),
        limits=limits,
    )


def restore_scopes(
    partition: int, account_key: bytes, key_key: bytes, model_key: bytes | None, *, limits: bytes = b""
) -> Scopes:
    """Scopes from their names. Limits are needed to admit; what ends a request finds them in the hold."""
    tag = f"{{p{partition}}}:"
    return Scopes(
        partition=partition,
        account_key=account_key,
        key_key=key_key,
        model_key=model_key,
        hold_prefix=f"{tag}h:".encode(),
        leases_key=f"{tag}leases".encode(),
        progress_key=f"{tag}progress".encode(),
        usage_key=usage_key(partition),
        limits=limits,
    )


def name_account(partition: int, account_id: int) -> bytes:
    """The hash of an account."""
    return f"{{p{partition}}}:a:{account_id}".encode()


def usage_key(partition: int) -> bytes:
    """The usage stream of a partition."""
    return f"{{p{partition}}}:usage".encode()


# -- admit ---------------------------------------------------------------------------------------------------


class Rates(msgspec.Struct, frozen=True):
    """The tightest request bucket and the tightest token bucket, for `x-ratelimit-*`; a limit of -1 means none."""

    requests_limit: int
    requests_remaining: int
    requests_reset_ms: int
    tokens_limit: int
    tokens_remaining: int
    tokens_reset_ms: int


class Admitted(msgspec.Struct, frozen=True):
    """Everything was taken; settle or void it."""

    rates: Rates


class Limited(msgspec.Struct, frozen=True):
    """A bucket is full. `bucket` is a key of `limits.BUCKET_NAMES`."""

    rates: Rates
    scope: ScopeName
    bucket: str
    limit: int
    wanted: int
    #: None: a request of this size will never fit.
    retry_ms: int | None


class Busy(msgspec.Struct, frozen=True):
    """As many requests as are allowed at once are in flight."""

    rates: Rates
    scope: ScopeName
    limit: int


class OverBudget(msgspec.Struct, frozen=True):
    """A hard budget would be passed."""

    rates: Rates
    scope: ScopeName
    window: BudgetWindow
    limit_nanos: Nanos
    spent_nanos: Nanos
    #: It is what others hold in flight that leaves no room: some of it will come back.
    in_flight: bool
    #: Unix time in milliseconds; None: the window has no end.
    ends_ms: int | None
    #: The largest hold that the balance and all hard budgets have room for; below zero where they are overdrawn.
    room_nanos: Nanos


class UsedUp(msgspec.Struct, frozen=True):
    """The key has made all the requests of its life."""

    rates: Rates
    scope: ScopeName
    limit: int
    #: Some of them are in flight, and may yet come to nothing.
    in_flight: bool


class NoCredit(msgspec.Struct, frozen=True):
    """The balance does not cover the hold."""

    rates: Rates
    #: It is what others hold in flight that leaves no room: some of it will come back.
    in_flight: bool
    #: As of `OverBudget`.
    room_nanos: Nanos


class NotLoaded(msgspec.Struct, frozen=True):
    """The balance of the account, or the budget counters of the scope, are not in Redis: `load`, and try again."""

    scope: ScopeName


class Ended(msgspec.Struct, frozen=True):
    """A conflict: the request has ended, by `verb` (settle, void, expire); "admit": it is held by other scopes."""

    verb: str
    cost_nanos: Nanos


Admission: TypeAlias = Admitted | Limited | Busy | OverBudget | UsedUp | NoCredit | NotLoaded | Ended

# -- settle, void, renew, sweep ------------------------------------------------------------------------------


class Notice(msgspec.Struct, frozen=True):
    """A soft budget was reached, for the first time in its window."""

    scope: ScopeName
    window: BudgetWindow
    limit_nanos: Nanos
    spent_nanos: Nanos


class Settled(msgspec.Struct, frozen=True):
    """The cost is charged. Not `held`: Redis knew of no hold."""

    cost_nanos: Nanos
    held: bool
    notices: tuple[Notice, ...] = ()


class Voided(msgspec.Struct, frozen=True):
    """Nothing is charged. Not `held`: there was nothing to void."""

    held: bool


class Renewal(msgspec.Struct, frozen=True):
    """A hold that is alive. `record` (encoded, outcome "orphaned") is what is kept if no more is heard of it: the
    cost and the tokens in it are `cost_nanos` and `tokens`. Empty: nothing new.
    """

    request_id: str
    cost_nanos: Nanos = 0
    tokens: int = 0
    record: bytes = b""


class Expired(msgspec.Struct, frozen=True):
    """What a sweep did about a lease that ran out: `charged` what was delivered, `voided` a hold of which no delivery
    was known, or removed a lease that was `lost` its hold.
    """

    request_id: str
    outcome: Literal["charged", "voided", "lost"]
    cost_nanos: Nanos = 0
    notices: tuple[Notice, ...] = ()


# -- credit, load, balance -----------------------------------------------------------------------------------


class Credited(msgspec.Struct, frozen=True):
    """The entry is in the balance, by this call or (`repeated`) before."""

    balance_nanos: Nanos
    repeated: bool


class CreditGap(msgspec.Struct, frozen=True):
    """Entries after `seq` are missing before this one: load the account by force."""

    seq: int


class CreditDeferred(msgspec.Struct, frozen=True):
    """The account is not loaded; its next load brings the entry along. `seq` is the latest one heard of."""

    seq: int


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What a scope has spent in the windows that the moment `as_of_us` is in."""

    as_of_us: int
    day_nanos: Nanos = 0
    week_nanos: Nanos = 0
    month_nanos: Nanos = 0
    total_nanos: Nanos = 0
    #: Requests of all its life.
    requests: int = 0

    def counters(self) -> list[int]:
        """`[window number, spent, largest limit noticed]` for each window, and the same for requests, as the scripts
        keep them.
        """
        sums = (self.day_nanos, self.week_nanos, self.month_nanos, self.total_nanos, self.requests)
        windows = (*window_ids(self.as_of_us), 0)
        return [part for window, spent in zip(windows, sums, strict=True) for part in (window, spent, 0)]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """An account as PostgreSQL knew it in one moment (one transaction's view).

    `cursor` is the id of the last entry of the partition's usage stream that is in these figures, "0-0" if none. Who
    trims the stream must keep the entry at the committed cursor; a trim beyond a snapshot's cursor is then noticed.
    """

    balance_nanos: Nanos
    #: The sequence number of the last credit-side entry in the balance; 0 if there is none.
    seq: int
    cursor: str
    #: Needed where the account, or the key, has budgets.
    account_spent: Spent | None = None
    key_spent: Spent | None = None


class Loaded(msgspec.Struct, frozen=True):
    """The account can be used. `already`: it could before, and nothing was changed."""

    balance_nanos: Nanos
    already: bool


class Stale(msgspec.Struct, frozen=True):
    """The snapshot is older than what Redis knows or still has: take another. `seq`: the latest credit heard of."""

    seq: int


class Balance(msgspec.Struct, frozen=True):
    """The hot copy of an account."""

    balance_nanos: Nanos
    held_nanos: Nanos
    seq: int
    in_flight: int


class Sent(Protocol[T_co]):
    """A verb that was sent. Await it for its answer, or be told: `hear(answer, None)` or `hear(None, error)`."""

    def __await__(self) -> Generator[Any, None, T_co]: ...  # Any: what a loop's futures yield is the loop's business

    def when_done(self, hear: "Callable[[T_co | None, BaseException | None], None]") -> None: ...


class Verbs(Protocol):
    """What can be done to the hot copy of limits and money.

    Every verb takes effect in the order in which it was called (on one connection), not in which it is awaited: a
    call has sent its command when it returns. Only `sweep` and `load` take several commands, and start when awaited.
    """

    def scopes(self, *, account_id: int, key_id: str, limits: bytes, model: str | None = None) -> Scopes:
        """Name the scopes of a call; `model` only if `limits` has any for it."""
        ...

    def admit(
        self, request_id: str, scopes: Scopes, *, hold_nanos: Nanos, tokens: int, lease_ms: int = LEASE_MS
    ) -> Awaitable[Admission]:
        """Take all that the request needs, or nothing. `tokens` is the estimate; a hold of 0 needs no credit."""
        ...

    def settle(
        self, request_id: str, scopes: Scopes, *, cost_nanos: Nanos, tokens: int, record: bytes
    ) -> Sent[Settled | Ended]:
        """Charge the real cost, correct the tokens, end the hold, keep the record."""
        ...

    def void(self, request_id: str, scopes: Scopes, *, record: bytes = b"") -> Sent[Voided | Ended]:
        """End the hold at no cost. A record (of cost 0) is kept if one is given."""
        ...

    def renew(self, partition: int, renewals: Sequence[Renewal], *, lease_ms: int = LEASE_MS) -> Awaitable[list[str]]:
        """Extend the leases; answers with the requests that have none."""
        ...

    def sweep(self, partition: int, *, at_most: int) -> Awaitable[list[Expired]]:
        """End holds whose lease ran out, oldest first."""
        ...

    def credit(
        self, account_id: int, *, seq: int, previous_seq: int, amount_nanos: Nanos
    ) -> Awaitable[Credited | CreditGap | CreditDeferred]:
        """Apply one entry of the credit side, of any sign, that follows the one numbered `previous_seq`."""
        ...

    def load(
        self, account_id: int, snapshot: Snapshot, *, key_id: str = "", force: bool = False
    ) -> Awaitable[Loaded | Stale]:
        """Make the hot balance (and budget counters) from a snapshot, unless there is one already."""
        ...

    def forget_spent(self, account_id: int, key_ids: Sequence[str]) -> Awaitable[int]:
        """Have the budget counters of these keys (at least one) loaded again by whoever needs them next."""
        ...

    def peek_balance(self, account_id: int) -> Awaitable[Balance | None]:
        """Look, without touching; None: not loaded."""
        ...
