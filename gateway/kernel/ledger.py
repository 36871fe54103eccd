"""The hot ledger: limits and money in Redis, one script for each verb.

It builds the scripts' arguments and reads their answers; what happens is written in `lua/`. A verb's command is on
its way when the call returns, and the answer is decoded when it is awaited. Failures of the store come through as the
client raises them (`StoreUnavailable`): whether a verb that failed so took effect is unknown, and it can be repeated.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from importlib import resources
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import msgspec

from gateway.errors import StoreUnavailable
from gateway.kernel.limits import BUCKETS, BUDGET_WINDOWS
from gateway.kernel.money import Nanos
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
    Scopes,
    Settled,
    Snapshot,
    Spent,
    Stale,
    UsedUp,
    Verbs,
    Voided,
    name_scopes,
)

#: Renewals in one call; a script holds up the whole server while it runs.
RENEWALS_MAX: Final = 500
#: Entries of the usage stream that one call of `load` reads (about 3 us each).
LOAD_PIECE: Final = 500
#: Pieces before a load gives up: the settler must catch up first.
LOAD_PIECES_MAX: Final = 20_000
#: Leases that one sweep ends.
SWEEP_MAX: Final = 500

_ENDING: Final = ("common", "holds", "buckets", "budgets", "release")
_SHARED: Final[dict[str, tuple[str, ...]]] = {
    "admit": ("common", "holds", "buckets", "budgets"),
    "settle": _ENDING,
    "void": _ENDING,
    "expire": _ENDING,
    "renew": ("common",),
    "due": ("common",),
    "fetch": (),
    "credit": ("common",),
    "load": ("common", "budgets", "cursor"),
    "balance": (),
    "forget": (),
    "progress": (),
    "audit": ("common", "cursor"),
}

T = TypeVar("T")
Argument = bytes | str | int
# A reply is whatever the script answers: integers, bytes, lists of them; the decoders below know which.
Reply = Any


class Script(Protocol):
    """A script, ready to run: sends at once, answers when awaited."""

    def __call__(self, keys: Sequence[bytes], args: Sequence[Argument], /) -> Awaitable[object]: ...


class ScriptHost(Protocol):
    """The part of the Redis client that the ledger needs."""

    def script(self, source: bytes, /) -> Script: ...


class Answer(Generic[T]):
    """A verb that was sent; awaiting it gives the decoded answer."""

    __slots__ = ("_decode", "_reply")

    def __init__(self, reply: Awaitable[object], decode: Callable[[Reply], T]) -> None:
        self._reply = reply
        self._decode = decode

    def __await__(self) -> Generator[Any, None, T]:
        return self._decode((yield from self._reply.__await__()))

    def when_done(self, hear: Callable[[T | None, BaseException | None], None]) -> None:
        """Call `hear` with the answer or the error, instead of awaiting it."""

        def tell(done: "asyncio.Future[object]") -> None:
            if done.cancelled():
                hear(None, StoreUnavailable(detail="the answer was not waited for"))
            elif (error := done.exception()) is not None:
                hear(None, error)
            else:
                hear(self._decode(done.result()), None)

        reply = self._reply
        # What the client gives is one already.
        future = reply if isinstance(reply, asyncio.Future) else asyncio.ensure_future(reply)
        future.add_done_callback(tell)


class Ledger:
    """`Verbs` on Redis. `now_us` replaces Redis' clock, in tests."""

    def __init__(
        self, redis: ScriptHost, *, partitions: int = PARTITIONS, now_us: Callable[[], int] | None = None
    ) -> None:
        self._partitions = partitions
        self._now_us = now_us
        self._admit = redis.script(source("admit"))
        self._settle = redis.script(source("settle"))
        self._void = redis.script(source("void"))
        self._renew = redis.script(source("renew"))
        self._due = redis.script(source("due"))
        self._fetch = redis.script(source("fetch"))
        self._expire = redis.script(source("expire"))
        self._credit = redis.script(source("credit"))
        self._load = redis.script(source("load"))
        self._balance = redis.script(source("balance"))
        self._forget = redis.script(source("forget"))
        self._progress = redis.script(source("progress"))

    def scopes(self, *, account_id: int, key_id: str, limits: bytes, model: str | None = None) -> Scopes:
        return name_scopes(
            partitions=self._partitions, account_id=account_id, key_id=key_id, model=model, limits=limits
        )

    def admit(
        self, request_id: str, scopes: Scopes, *, hold_nanos: Nanos, tokens: int, lease_ms: int = LEASE_MS
    ) -> Answer[Admission]:
        args: list[Argument] = [request_id, scopes.limits, hold_nanos, tokens, lease_ms]
        if self._now_us is not None:
            args.append(self._now_us())
        return Answer(self._admit(_hold_keys(request_id, scopes), args), _admission)

    def settle(
        self, request_id: str, scopes: Scopes, *, cost_nanos: Nanos, tokens: int, record: bytes
    ) -> Answer[Settled | Ended]:
        args: list[Argument] = [request_id, cost_nanos, tokens, record]
        if self._now_us is not None:
            args.append(self._now_us())
        return Answer(self._settle(_hold_keys(request_id, scopes), args), _settled)

    def void(self, request_id: str, scopes: Scopes, *, record: bytes = b"") -> Answer[Voided | Ended]:
        args: list[Argument] = [request_id, record]
        if self._now_us is not None:
            args.append(self._now_us())
        return Answer(self._void(_hold_keys(request_id, scopes), args), _voided)

    def renew(self, partition: int, renewals: Sequence[Renewal], *, lease_ms: int = LEASE_MS) -> Answer[list[str]]:
        """Extend the leases of at most `RENEWALS_MAX` holds; answers with the requests that have none."""
        if len(renewals) > RENEWALS_MAX:
            raise ValueError(f"{len(renewals)} renewals in one call, at most {RENEWALS_MAX} are possible")
        args: list[Argument] = [lease_ms, self._now()]
        for renewal in renewals:
            args += (renewal.request_id, renewal.cost_nanos, renewal.tokens, renewal.record)
        keys = (self._key(partition, "leases"), self._key(partition, "progress"))
        return Answer(self._renew(keys, args), _texts)

    async def sweep(
        self, partition: int, *, at_most: int = SWEEP_MAX, permitted: Callable[[], bool] | None = None
    ) -> list[Expired]:
        """End at most `at_most` holds whose lease ran out, oldest first.

        Three steps, since the keys of a hold stand in the hold. The last one looks again whether it is due: sweeps
        may run side by side. `permitted` is asked once it is known that leases ran out, and may say that this is no
        time to do anything about it.
        """
        leases = self._key(partition, "leases")
        due: list[str] = _texts(await self._due((leases,), (min(at_most, SWEEP_MAX), self._now())))
        if not due or (permitted is not None and not permitted()):
            return []
        tails = (leases, self._key(partition, "progress"), self._key(partition, "usage"))
        holds = [self._key(partition, f"h:{request_id}") for request_id in due]
        found = cast("list[bytes | None]", await self._fetch(holds, ()))
        sent = []
        for request_id, hold_key, packed in zip(due, holds, found, strict=True):
            # Without a hold nothing is left to end but the lease; the script then touches neither of the first two.
            scopes = _scopes_of(packed) or [hold_key, hold_key]
            keys = (*scopes[:2], hold_key, *tails, *scopes[2:])
            sent.append((request_id, self._expire(keys, (request_id, self._now()))))
        swept = [_expired(request_id, await reply) for request_id, reply in sent]
        return [one for one in swept if one is not None]

    def credit(
        self, account_id: int, *, seq: int, previous_seq: int, amount_nanos: Nanos
    ) -> Answer[Credited | CreditGap | CreditDeferred]:
        keys = (self._account_key(account_id),)
        return Answer(self._credit(keys, (seq, previous_seq, amount_nanos)), _credited)

    async def load(
        self, account_id: int, snapshot: Snapshot, *, key_id: str = "", force: bool = False
    ) -> Loaded | Stale:
        """Make the hot balance (and budget counters) from a snapshot, unless there is one already.

        Stale too when the stream is longer than `LOAD_PIECES_MAX` pieces beyond the snapshot's cursor.
        """
        partition = account_id % self._partitions
        keys = [self._account_key(account_id), self._key(partition, "usage")]
        if key_id:
            keys.append(self._key(partition, f"k:{key_id}"))
        cursor: bytes | str = snapshot.cursor
        balance = snapshot.balance_nanos
        account_spent, key_spent = pack_counters(snapshot.account_spent), pack_counters(snapshot.key_spent)
        for _ in range(LOAD_PIECES_MAX):
            reply: Reply = await self._load(
                keys,
                (account_id, balance, snapshot.seq, cursor, int(force), LOAD_PIECE, account_spent, key_id, key_spent),
            )
            if reply[0] != 3:
                return Stale(reply[1]) if reply[0] == 4 else Loaded(reply[1], already=reply[0] == 2)
            cursor, balance, account_spent, key_spent = reply[1:]
        return Stale(snapshot.seq)

    def peek_balance(self, account_id: int) -> Answer[Balance | None]:
        return Answer(self._balance((self._account_key(account_id),), ()), _balance)

    def forget_spent(self, account_id: int, key_ids: Sequence[str]) -> Answer[int]:
        partition = account_id % self._partitions
        return Answer(self._forget([self._key(partition, f"k:{key_id}") for key_id in key_ids], ()), int)

    def progress(self, partition: int, request_id: str) -> Answer[Renewal | None]:
        """What the last renewal of a hold said; None where none said anything, or it has ended."""

        def decode(reply: Reply) -> Renewal | None:
            return Renewal(request_id, *reply) if reply else None

        return Answer(self._progress((self._key(partition, "progress"),), (request_id,)), decode)

    def _account_key(self, account_id: int) -> bytes:
        return self._key(account_id % self._partitions, f"a:{account_id}")

    @staticmethod
    def _key(partition: int, name: str) -> bytes:
        return f"{{p{partition}}}:{name}".encode()

    def _now(self) -> Argument:
        return b"" if self._now_us is None else self._now_us()


def source(verb: str) -> bytes:
    """A script, with what it shares with others in front of it."""
    folder = resources.files("gateway.kernel") / "lua"
    return b"".join((folder / f"{name}.lua").read_bytes() for name in (*_SHARED[verb], verb))


def pack_counters(spent: Spent | None) -> bytes:
    """Budget counters as the scripts keep them; empty for None."""
    return b"" if spent is None else msgspec.msgpack.encode(spent.counters())


def _scopes_of(packed: bytes | None) -> list[bytes]:
    """The keys of account, key and, where it has limits, model in a hold; empty if it is none."""
    if packed is None:
        return []
    # Left raw: the limits in it are bytes that msgpack, as Redis writes it, calls text.
    parts = msgspec.msgpack.decode(packed, type=list[msgspec.Raw])
    if msgspec.msgpack.decode(parts[0]) != "held":
        return []
    names = [msgspec.msgpack.decode(part, type=str) for part in parts[4:7]]
    return [name.encode() for name in names if name]


def _hold_keys(request_id: str, scopes: Scopes) -> list[bytes]:
    keys = [
        scopes.account_key,
        scopes.key_key,
        scopes.hold_prefix + request_id.encode(),
        scopes.leases_key,
        scopes.progress_key,
        scopes.usage_key,
    ]
    if scopes.model_key is not None:
        keys.append(scopes.model_key)
    return keys


def _admission(reply: Reply) -> Admission:
    code = reply[0]
    if code == 1:
        return Admitted(Rates(*reply[1:7]))
    if code == 6:
        return NotLoaded(SCOPES[reply[1] - 1])
    if code == 7:
        return _ended(reply)
    rates = Rates(*reply[1:7])
    if code == 2:
        _, _, _, _, _, _, _, scope, bucket, limit, wanted, retry_ms = reply
        return Limited(
            rates, SCOPES[scope - 1], BUCKETS[bucket - 1], limit, wanted, retry_ms if retry_ms >= 0 else None
        )
    if code == 3:
        return Busy(rates, SCOPES[reply[7] - 1], reply[8])
    if code == 4:
        _, _, _, _, _, _, _, scope, window, limit, spent, why, ends_ms, room = reply
        ends = ends_ms if ends_ms >= 0 else None
        return OverBudget(rates, SCOPES[scope - 1], BUDGET_WINDOWS[window - 1], limit, spent, why == 1, ends, room)
    if code == 8:
        return UsedUp(rates, SCOPES[reply[7] - 1], reply[8], reply[9] == 1)
    return NoCredit(rates, reply[7] == 1, reply[8])


def _ended(reply: Reply) -> Ended:
    return Ended(reply[1].decode(), reply[2])


def _settled(reply: Reply) -> Settled | Ended:
    code = reply[0]
    if code == 1 and len(reply) == 2:
        return Settled(reply[1], True)
    if code == 7:
        return _ended(reply)
    return Settled(reply[1], code == 1, _notices(reply))


def _voided(reply: Reply) -> Voided | Ended:
    return _ended(reply) if reply[0] == 7 else Voided(reply[0] == 1)


def _expired(request_id: str, reply: Reply) -> Expired | None:
    if reply[0] == 1:
        return Expired(request_id, "charged", reply[1], _notices(reply))
    if reply[0] == 4:
        return None
    return Expired(request_id, "voided" if reply[0] == 2 else "lost")


def _credited(reply: Reply) -> Credited | CreditGap | CreditDeferred:
    if reply[0] <= 2:
        return Credited(reply[1], repeated=reply[0] == 2)
    return CreditGap(reply[1]) if reply[0] == 3 else CreditDeferred(reply[1])


def _balance(reply: Reply) -> Balance | None:
    return Balance(*reply) if reply else None


def _notices(reply: Reply) -> tuple[Notice, ...]:
    return tuple(
        Notice(SCOPES[reply[at] - 1], BUDGET_WINDOWS[reply[at + 1] - 1], reply[at + 2], reply[at + 3])
        for at in range(2, len(reply), 4)
    )


def _texts(reply: Reply) -> list[str]:
    return [text.decode() for text in reply]


_: type[Verbs] = Ledger
