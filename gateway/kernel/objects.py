"""Whose objects are whose: the owner of every file, batch, response and the like that a provider keeps for a caller.

An object belongs to an account, and lives at one provider under one of its keys: only there can it be found again.
PostgreSQL knows all of them. Redis and each process keep what was looked at lately, so that asking twice for the same
one is no work for PostgreSQL.

Rules:
- An owner never changes while an object lives, so what is kept in memory can't be wrong about it; what was deleted
  meanwhile is the provider's to deny.
- Where nobody can tell, that is an error (`StoreUnavailable`), never "not found", and never "anybody's".
- `remember` returns when PostgreSQL has it. `note` is for answers that must not wait: it tells memory and Redis at
  once and PostgreSQL within `FLUSH_S`; a worker that is killed in between takes the note with it, and the object
  is then nobody's: it answers 404.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import asyncpg
import msgspec

from gateway.errors import GatewayError, StoreUnavailable, UpstreamMalformed
from gateway.exchange import Offer
from gateway.infra.clock import Clock
from gateway.infra.postgres import Database, Session, load_queries
from gateway.kernel.money import Price

log = logging.getLogger(__name__)

#: How long Redis keeps an owner that nobody asks for.
REDIS_S: Final = 24 * 3600
FLUSH_S: Final = 0.05
#: Notes that wait for PostgreSQL; and of one statement.
NOTES_MAX: Final = 50_000
BATCH_MAX: Final = 500
#: An id that was just found to be nobody's is not asked for again so soon.
UNKNOWN_S: Final = 1.0
UNKNOWN_MAX: Final = 4096
DOCUMENT_BYTES_MAX: Final = 64 * 1024
LIST_MAX: Final = 100
PURGE_MAX: Final = 1000

queries: Final = load_queries(Path(__file__).with_name("objects.sql"))


class Owned(msgspec.Struct, frozen=True, array_like=True):
    """An object and its owner. Fields are only ever appended, with a default: Redis has what older releases wrote."""

    id: str
    kind: str
    account_id: int
    key_id: str
    provider: str
    #: Of the provider's key.
    fingerprint: str
    #: Unix time; expiry None: when it is deleted.
    created_s: float
    expires_s: float | None = None
    #: Something is still to be charged for it.
    pending: bool = False


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What work was ordered at: a price, or nothing where it is free."""

    price: Price | None = None

    @classmethod
    def of(cls, offer: Offer) -> "Terms":
        """Those of an offer."""
        return cls(None if offer.free else offer.price)


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be charged for an object when the provider has done its work, under a request id of its own."""

    charge_id: str
    model: str
    upstream_model: str
    hold_nanos: int
    terms: Terms
    #: When the provider is asked first, if nobody asks before.
    poll_s: float


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A charge that is still to be made, as the table has it."""

    id: str
    kind: str
    account_id: int
    key_id: str
    provider: str
    fingerprint: str
    charge_id: str
    model: str
    upstream_model: str
    hold_nanos: int
    created_s: float
    polls: int
    #: What of it the caller got already, by count or by estimate.
    delivered_input_tokens: int = 0
    delivered_output_tokens: int = 0
    #: `Terms` as JSON; None of what an older release has ordered.
    terms: str | None = None
    #: Of the account's own provider key that does the work, while it is there.
    own_key_id: str | None = None


class Commands(Protocol):
    """The part of the Redis client that is needed here."""

    def execute(self, *command: bytes | str | int) -> Awaitable[object]: ...


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Owned).decode


class Objects:
    """Of one process. Spawn `flush_forever`, and `close` it before the stores."""

    def __init__(self, database: Database, redis: Commands, *, clock: Clock, cache_size: int) -> None:
        self._database = database
        self._redis = redis
        self._clock = clock
        self._cache_size = cache_size
        self._known: OrderedDict[str, Owned] = OrderedDict()
        #: When each was found to be nobody's, on the monotonic clock.
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._notes: list[dict[str, object]] = []
        #: By object, the tokens in and out that callers got of it before it is charged.
        self._delivered: dict[str, tuple[int, int]] = {}
        self._noted = asyncio.Event()
        #: Notes that PostgreSQL never heard of.
        self.lost = 0

    def __repr__(self) -> str:
        return f"<Objects: {len(self._known)} known, {len(self._notes)} to be written>"

    # -- looking up --------------------------------------------------------------------------------------------

    def find_known(self, object_id: str) -> Owned | None:
        """The owner, if this process knows it."""
        owned = self._known.get(object_id)
        if owned is not None:
            self._known.move_to_end(object_id)
            if owned.expires_s is not None and owned.expires_s <= self._clock.now():
                return None
        return owned

    async def find(self, object_id: str) -> Owned | None:
        """The owner; None if there is no such object.

        Raises:
            StoreUnavailable: nobody can tell.
        """
        if (owned := self.find_known(object_id)) is not None:
            return owned
        if (owned := await self._find_in_redis(object_id)) is not None:
            self._keep(owned)
            return owned
        now_s = self._clock.monotonic()
        if now_s - self._unknown.get(object_id, -UNKNOWN_S) < UNKNOWN_S:
            return None
        row = await self._database.fetch_row(queries["find"], object_id)
        if row is None:
            self._unknown[object_id] = now_s
            while len(self._unknown) > UNKNOWN_MAX:
                self._unknown.popitem(last=False)
            return None
        owned = msgspec.convert(dict(row) | {"pending": bool(row["pending"])}, _OwnedRow).owned()
        self._keep(owned)
        self._tell_redis(owned)
        return owned

    async def list(
        self, account_id: int, kind: str, *, after: str | None, limit: int, oldest_first: bool, purpose: str | None
    ) -> list[tuple[str, bytes]]:
        """Objects of an account as providers described them last: id and JSON."""
        query = queries["oldest"] if oldest_first else queries["newest"]
        rows = await self._database.fetch(query, account_id, kind, purpose, after, min(limit, LIST_MAX + 1))
        return [(row["id"], row["document"].encode()) for row in rows]

    # -- learning ----------------------------------------------------------------------------------------------

    async def remember(
        self, objects: Sequence[Owned], *, documents: Sequence[bytes | None] = (), charge: Charge | None = None
    ) -> None:
        """Write down objects; `charge` is for the first of them.

        Raises:
            UpstreamMalformed: the provider gave an id that is somebody else's.
            StoreUnavailable: they may not be remembered.
        """
        rows = [
            _row(owned, documents[number] if number < len(documents) else None, None if number else charge)
            for number, owned in enumerate(objects)
        ]
        written = {row["id"] for row in await self._database.fetch(queries["remember"], _json(rows))}
        for owned in objects:
            if owned.id not in written:
                raise UpstreamMalformed(detail=f"{owned.provider} gave an id that another account has: {owned.id}")
            self._keep(owned)
            self._tell_redis(owned)

    def note(self, owned: Owned, *, charge: Charge | None = None) -> None:
        """Remember an object without waiting for anything. Of two with one id, the first is believed."""
        known = self._known.get(owned.id)
        if known is not None and known.account_id != owned.account_id:
            return
        self._keep(owned)
        self._tell_redis(owned, first=True)
        if len(self._notes) >= NOTES_MAX:
            self.lost += 1
            return
        self._notes.append(_row(owned, None, charge))
        self._noted.set()

    def note_delivered(self, object_id: str, *, input_tokens: int, output_tokens: int) -> None:
        """So much of what is still to be charged is with the caller: charged at the least, if no more is ever known.
        Without waiting; of two notes the larger counts.
        """
        if len(self._delivered) >= NOTES_MAX:
            self.lost += 1
            return
        before = self._delivered.get(object_id, (0, 0))
        self._delivered[object_id] = (max(before[0], input_tokens), max(before[1], output_tokens))
        self._noted.set()

    async def describe(self, owned: Owned, document: bytes) -> None:
        """Keep what the provider says of an object now."""
        if len(document) <= DOCUMENT_BYTES_MAX and b"\\u0000" not in document:
            await self._database.execute(queries["describe"], owned.id, document.decode())

    async def forget(self, owned: Owned) -> None:
        """It is deleted."""
        await self._database.execute(queries["forget"], owned.id)
        self._known.pop(owned.id, None)
        await self._quietly(self._send("DEL", _key(owned.id)))

    def settled(self, owned: Owned) -> None:
        """Nothing is to be charged for it any more."""
        owned = msgspec.structs.replace(owned, pending=False)
        self._keep(owned)
        self._tell_redis(owned)

    # -- in the background -------------------------------------------------------------------------------------

    async def flush_forever(self) -> None:
        """Write notes to PostgreSQL, soon after they were made."""
        failed_s = 0.0
        while True:
            await self._noted.wait()
            await asyncio.sleep(max(FLUSH_S, failed_s))
            try:
                await self.flush()
                failed_s = 0.0
            except StoreUnavailable as error:
                failed_s = min(10.0, max(0.5, failed_s * 2))
                log.warning("%d objects wait for PostgreSQL: %s", len(self._notes), error.detail)

    async def flush(self) -> None:
        """Write what was noted until now."""
        while self._notes:
            batch = self._notes[:BATCH_MAX]
            # Of one id in a statement PostgreSQL takes one row.
            rows = list({row["id"]: row for row in batch}.values())
            try:
                await self._database.execute(queries["remember"], _json(rows))
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                # Not what any other note should wait for.
                self.lost += len(batch)
                log.error("%d objects can't be written down: %s", len(batch), error)  # noqa: TRY400  the text says it
            del self._notes[: len(batch)]
        # After the notes: what was delivered may be of an object that was noted just now.
        while self._delivered:
            told = list(self._delivered.items())[:BATCH_MAX]
            await self._database.execute(
                queries["delivered"],
                [object_id for object_id, _ in told],
                [tokens[0] for _, tokens in told],
                [tokens[1] for _, tokens in told],
            )
            for object_id, tokens in told:
                if self._delivered[object_id] == tokens:
                    del self._delivered[object_id]
        if not self._notes:
            self._noted.clear()

    async def close(self) -> None:
        """Write what is left, if PostgreSQL takes it."""
        try:
            await self.flush()
        except GatewayError as error:
            log.error("%d objects are forgotten: %s", len(self._notes), error.detail)  # noqa: TRY400  the text says it

    def _keep(self, owned: Owned) -> None:
        self._known[owned.id] = owned
        self._known.move_to_end(owned.id)
        self._unknown.pop(owned.id, None)
        while len(self._known) > self._cache_size:
            self._known.popitem(last=False)

    def _tell_redis(self, owned: Owned, *, first: bool = False) -> None:
        """`first`: unless it has one of that id."""
        for_s = REDIS_S
        if owned.expires_s is not None:
            for_s = max(1, min(for_s, int(owned.expires_s - self._clock.now())))
        sent = self._send("SET", _key(owned.id), _encode(owned), "EX", for_s, *(("NX",) if first else ()))
        if sent is not None:
            # Nobody waits for it; PostgreSQL has it, or will.
            asyncio.ensure_future(sent).add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _find_in_redis(self, object_id: str) -> Owned | None:
        sent = self._send("GET", _key(object_id))
        reply: Any = None if sent is None else await self._quietly(sent)  # Any: what the client gives
        if not isinstance(reply, bytes):
            return None
        try:
            owned = _decode(reply)
        except msgspec.DecodeError:
            return None
        return owned if owned.id == object_id else None

    def _send(self, *command: bytes | str | int) -> Awaitable[object] | None:
        try:
            return self._redis.execute(*command)
        except GatewayError:
            return None

    @staticmethod
    async def _quietly(sent: Awaitable[object] | None) -> object:
        """The reply, or None where Redis has none to give: PostgreSQL knows more."""
        if sent is None:
            return None
        try:
            return await sent
        except GatewayError:
            return None


class _OwnedRow(msgspec.Struct):
    """`Owned` by name, as a row comes."""

    id: str
    kind: str
    account_id: int
    key_id: str
    provider: str
    fingerprint: str
    created_s: float
    expires_s: float | None
    pending: bool

    def owned(self) -> Owned:
        return Owned(**msgspec.structs.asdict(self))


class Deferred:
    """The charges that wait for a provider to have done its work, in PostgreSQL: whose turn it is, and how each ends.

    `settle` of `end` is called within the transaction that holds the row, so that of several who see the end at once
    one charges. What it does must be idempotent by `charge_id` all the same: it may have happened although the commit
    did not.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, limit: int, *, first_s: float, most_s: float) -> list[Due]:
        """Charges whose objects are to be asked for now; each is due again later, ever later up to `most_s`."""
        rows = await self._database.fetch(queries["claim_charges"], limit, first_s, most_s)
        return [msgspec.convert(dict(row), Due) for row in rows]

    async def end(self, object_id: str, settle: Callable[[Due], Awaitable[str]]) -> Due | None:
        """End the charge of an object by `settle`, which says as what; None if it has ended already."""
        async with self._database.transaction() as session:
            due = await self._lock(session, object_id)
            if due is not None:
                state = await settle(due)
                await session.execute(queries["end_charge"], object_id, state)
        return due

    async def hasten(self, object_id: str, *, soon_s: float) -> None:
        """Have its provider asked in `soon_s`, whenever it would have been."""
        await self._database.execute(queries["hasten_charge"], object_id, soon_s)

    async def find_batch(self, account_id: int, file_id: str) -> str | None:
        """The batch whose answers are in a file, while it is still to be charged."""
        found: str | None = await self._database.fetch_value(queries["uncharged_batch"], account_id, file_id)
        return found

    async def purge(self) -> int:
        """Drop rows that nobody needs, `PURGE_MAX` at most; how many."""
        return await self._database.execute(queries["purge"], PURGE_MAX)

    @staticmethod
    async def _lock(session: Session, object_id: str) -> Due | None:
        row = await session.fetch_row(queries["lock_charge"], object_id)
        return None if row is None else msgspec.convert(dict(row), Due)


def _key(object_id: str) -> bytes:
    return b"gateway:object:" + object_id.encode("utf-8", "replace")


def _row(owned: Owned, document: bytes | None, charge: Charge | None) -> dict[str, object]:
    row: dict[str, object] = msgspec.structs.asdict(owned)
    del row["pending"]
    if document is not None and len(document) <= DOCUMENT_BYTES_MAX and b"\\u0000" not in document:
        row["document"] = document.decode()
    if charge is not None:
        row |= msgspec.structs.asdict(charge)
    return row


def _json(rows: Sequence[dict[str, object]]) -> str:
    return msgspec.json.encode(rows).decode()
