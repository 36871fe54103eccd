"""The settler: carries usage records from the streams in Redis into PostgreSQL, each exactly once.

Rules:
- Records, entries, balances and the cursor of the stream move in one transaction, which first locks the cursor and
  finds it where this settler left it. So two settlers at once cost time and never money; a lease saves the time.
- A stream is read from its beginning, and what is committed is trimmed from it, all but the entry at the cursor.
  Where that entry is missing, the stream is another one (Redis was emptied, or fell back to a replica that had not
  heard of it): the cursor goes back to the start and whatever is there is settled. Ids are never compared across such
  a break.
- A record is known by its request id. One that is in the books already changes nothing; its account is reported as
  `repeated`, because Redis may have charged it twice, and has to be loaded anew.
- So is the account of a record that was set aside and put back: it may have been loaded anew in between, and then
  Redis does not have the charge.
- What can't be settled (no record of ours, an account nobody knows, a value PostgreSQL refuses) is set aside in
  `settle_rejects` and counted; it never holds up what comes after it.

While PostgreSQL is away the streams keep the records. There is no consumer group: with the cursor in the transaction
it would be a second, weaker memory of the same thing.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import asyncpg
import msgspec

from gateway.errors import GatewayError
from gateway.infra.clock import Clock
from gateway.infra.metrics import Cell, Gauge
from gateway.infra.postgres import Database, Session, load_queries
from gateway.kernel.money import MAX_NANOS
from gateway.kernel.record import UsageRecord, decode_record
from gateway.kernel.request_id import is_request_id, time_ms
from gateway.kernel.verbs import PARTITIONS, usage_key

log = logging.getLogger(__name__)

#: Records in one transaction.
BATCH_MAX: Final = 1000
#: Entries read from one stream in one pass.
PIECE: Final = 512
#: Records that are decoded before others get their turn in the loop: about half a millisecond.
BREATH: Final = 100
#: Where the ids of settled requests are published, 16 bytes each after an "s"; "r" and a number says that the stream
#: of that partition is another one.
CHANNEL: Final = b"gateway:settled"
START: Final = "0-0"
#: A field of an entry whose record was set aside before.
PUT_BACK: Final = b"b"

#: Where nothing is not the same as zero.
_NULLABLE: Final = frozenset({"first_token_ms", "provider_cost_nanos", "fee_permille"})

queries: Final = load_queries(Path(__file__).with_name("settler.sql"))


class Commands(Protocol):
    """The part of the Redis client that the settler needs."""

    def execute(self, *command: bytes | str | int) -> Awaitable[object]: ...


class Meters(Protocol):
    """What the ledger's background work counts; `Telemetry` has it."""

    records_settled: Cell
    records_rejected: Cell
    settle_lag: Gauge
    ledger_drift: Gauge
    holds_expired: Cell


class Entry(msgspec.Struct, frozen=True):
    """One entry of a usage stream; `reason` says why it can't be settled, and without a record, why it is none."""

    partition: int
    id: str
    packed: bytes
    record: UsageRecord | None
    reason: str = ""
    #: It was set aside before.
    put_back: bool = False


class Pass(msgspec.Struct):
    """What one pass over the streams did."""

    settled: int = 0
    rejected: int = 0
    #: Accounts of charges that were in the books before.
    repeated: set[int] = msgspec.field(default_factory=set)
    #: Partitions whose stream is another one.
    rewound: list[int] = msgspec.field(default_factory=list)
    #: There may be more to settle at once.
    more: bool = False


class _Overtaken(Exception):
    """Another settler moved a cursor."""


class Settler:
    """Settles `partitions`, a pass at a time, for whoever calls `settle_once`."""

    def __init__(
        self,
        database: Database,
        redis: Commands,
        *,
        clock: Clock,
        telemetry: Meters,
        partitions: Sequence[int] = range(PARTITIONS),
    ) -> None:
        self._database = database
        self._redis = redis
        self._clock = clock
        self._telemetry = telemetry
        self._partitions = list(partitions)
        #: As this settler believes; PostgreSQL knows better.
        self._cursors: dict[int, str] = {}
        #: Accounts and partitions that were not reported yet: a commit that was not heard of is one all the same.
        self._repeated: set[int] = set()
        self._rewound: list[int] = []
        #: When the oldest record was settled in Redis that is known to wait.
        self._oldest_ms: int | None = None

    async def settle_once(self) -> Pass:
        """Settle what is in the streams now, at most `PIECE` entries of each.

        Raises:
            StoreUnavailable: a store is away; what was committed until then stays.
        """
        done = Pass()
        try:
            if not self._cursors:
                await self._read_cursors()
            entries = await self._read_streams(done)
            self._oldest_ms = min((_at_ms(entry.id) for entry in entries), default=None)
            self._show_lag()
            for start in range(0, len(entries), BATCH_MAX):
                await self._settle(entries[start : start + BATCH_MAX], done)
            self._oldest_ms = None
            self._show_lag()
        except _Overtaken:
            self._cursors.clear()
            done.more = True
        except BaseException:
            # Whether a commit took effect may be unknown.
            self._cursors.clear()
            self._show_lag()
            raise
        done.repeated, self._repeated = self._repeated, set()
        done.rewound, self._rewound = self._rewound, []
        return done

    # -- reading -----------------------------------------------------------------------------------------------

    async def _read_cursors(self) -> None:
        async with self._database.session() as session:
            await session.execute(queries["seed_cursors"], self._partitions)
            rows = await session.fetch(queries["read_cursors"], self._partitions)
        self._cursors = {row["partition"]: row["last_id"] for row in rows}

    async def _read_streams(self, done: Pass) -> list[Entry]:
        commands = [("XRANGE", usage_key(partition), "-", "+", "COUNT", PIECE) for partition in self._partitions]
        replies = await ask_all(self._redis, commands)
        entries: list[Entry] = []
        for partition, reply in zip(self._partitions, replies, strict=True):
            fresh = await self._beyond_cursor(partition, reply)
            done.more = done.more or len(fresh) >= PIECE - 1
            for item in fresh:
                entries.append(_read_entry(partition, item))
                if len(entries) % BREATH == 0:
                    await asyncio.sleep(0)
        return entries

    # A reply is a list of [id, [field, value, ...]].
    async def _beyond_cursor(self, partition: int, reply: Any) -> Any:
        cursor = self._cursors[partition]
        if cursor == START:
            return reply
        if reply and reply[0][0] == cursor.encode():
            return reply[1:]
        stream = usage_key(partition)
        if await self._redis.execute("XRANGE", stream, cursor, cursor):
            # Committed, and not trimmed: a settler died in between.
            await self._redis.execute("XTRIM", stream, "MINID", "=", cursor)
            return await self._redis.execute("XRANGE", stream, f"({cursor}", "+", "COUNT", PIECE)
        if not await self._database.execute(queries["rewind_cursor"], partition, cursor):
            raise _Overtaken
        log.warning("usage stream %d is another one than before; settling it from its start", partition)
        self._cursors[partition] = START
        self._rewound.append(partition)
        await self._redis.execute("PUBLISH", CHANNEL, b"r%d" % partition)
        return reply

    # -- writing -----------------------------------------------------------------------------------------------

    async def _settle(self, batch: Sequence[Entry], done: Pass) -> None:
        """Commit a batch; where PostgreSQL refuses it, the halves of it, down to the one record that is at fault."""
        try:
            await self._commit(batch, done)
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            if len(batch) == 1:
                entry = batch[0]
                # With its record: who keeps a copy of it is told, and must not offer it again.
                rejected = msgspec.structs.replace(entry, reason=f"refused by PostgreSQL: {error}")
                await self._commit([rejected], done)
            else:
                middle = len(batch) // 2
                await self._settle(batch[:middle], done)
                await self._settle(batch[middle:], done)

    async def _commit(self, batch: Sequence[Entry], done: Pass) -> None:
        ends = {entry.partition: entry.id for entry in batch}
        partitions = sorted(ends)
        async with self._database.transaction() as session:
            rows = await session.fetch(queries["lock_cursors"], partitions)
            if any(row["last_id"] != self._cursors[row["partition"]] for row in rows):
                raise _Overtaken
            good, bad = await self._sort_out(session, batch)
            if good:
                text = encode_rows(good)
                self._repeated.update(row["account_id"] for row in await session.fetch(queries["settle_batch"], text))
                self._repeated.update(
                    entry.record.account_id for entry in good if entry.put_back and entry.record is not None
                )
            for entry in bad:
                await session.execute(queries["reject"], entry.partition, entry.id, entry.packed, entry.reason)
            await session.execute(queries["move_cursors"], partitions, [ends[each] for each in partitions])
        self._cursors.update(ends)
        done.settled += len(good)
        done.rejected += len(bad)
        self._telemetry.records_settled[0] += len(good)
        self._telemetry.records_rejected[0] += len(bad)
        for entry in bad:
            log.error("usage record set aside: %s", entry.reason, extra={"stream_id": entry.id})
        await self._tell(batch, ends)

    async def _sort_out(self, session: Session, batch: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
        """What can be settled, with the balances of its accounts locked, and what can't."""
        bad = [entry for entry in batch if entry.reason]
        decoded = [entry for entry in batch if not entry.reason]
        accounts = sorted({entry.record.account_id for entry in decoded if entry.record is not None})
        known = {row["account_id"] for row in await session.fetch(queries["lock_balances"], accounts)}
        good: dict[str, Entry] = {}
        for entry in decoded:
            record = entry.record
            assert record is not None
            if record.account_id not in known:
                reason = f"no account {record.account_id}"
                bad.append(Entry(entry.partition, entry.id, entry.packed, None, reason))
            else:
                # Twice in one batch is once: the first is the one that counts, as it does across batches.
                good.setdefault(record.request_id, entry)
        return list(good.values()), bad

    async def _tell(self, batch: Sequence[Entry], ends: dict[int, str]) -> None:
        """Trim what is committed, and let the workers drop their copies. Lost on the way, both are done later."""
        ids = b"".join(uuid.UUID(entry.record.request_id).bytes for entry in batch if entry.record is not None)
        commands: list[tuple[bytes | str | int, ...]] = [
            ("XTRIM", usage_key(partition), "MINID", "=", last_id) for partition, last_id in ends.items()
        ]
        commands.append(("PUBLISH", CHANNEL, b"s" + ids))
        try:
            await ask_all(self._redis, commands)
        except GatewayError as error:
            log.warning("settled, but Redis could not be told: %s", error.detail)

    def _show_lag(self) -> None:
        oldest_ms = self._oldest_ms
        lag_s = 0.0 if oldest_ms is None else max(0.0, self._clock.now() - oldest_ms / 1000)
        self._telemetry.settle_lag.set((), lag_s)


async def ask_all(redis: Commands, commands: Iterable[tuple[bytes | str | int, ...]]) -> list[Any]:
    """Send all, then wait for all. Raises the first failure, when every reply is in."""
    sent: list[Awaitable[object]] = []
    failure: GatewayError | None = None
    for command in commands:
        try:
            sent.append(redis.execute(*command))
        except GatewayError as error:
            failure = error
            break
    replies = await asyncio.gather(*sent, return_exceptions=True)
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    if failure is not None:
        raise failure
    return list(replies)


def encode_rows(entries: Sequence[Entry]) -> str:
    """The records as a JSON array for `settle_batch`: one argument, a tenth of the work of forty columns.

    What is zero or empty is left out, which spares PostgreSQL a third of the work of reading it.
    """
    rows = []
    for number, entry in enumerate(entries):
        record = entry.record
        assert record is not None
        fields = msgspec.structs.asdict(record)
        row = {name: value for name, value in fields.items() if value or (name in _NULLABLE and value is not None)}
        row["n"] = number
        row["made_ms"] = time_ms(record.request_id)
        row["settled_ms"] = _at_ms(entry.id)
        rows.append(row)
    # PostgreSQL's text can't hold a NUL, which a caller may well type.
    return msgspec.json.encode(rows).replace(b"\\u0000", b"\\ufffd").decode()


def _read_entry(partition: int, item: Any) -> Entry:  # as Redis sends it
    entry_id = item[0].decode()
    fields = item[1]
    packed = fields[1] if len(fields) >= 2 and fields[0] == b"r" else b""
    try:
        record = decode_record(packed)
        if not is_request_id(record.request_id):
            raise ValueError(f"not a request id: {record.request_id[:60]!r}")
        if not 0 <= record.cost_nanos <= MAX_NANOS:
            raise ValueError(f"not a cost: {record.cost_nanos}")
        if not 0 < record.account_id < 2**63:
            raise ValueError(f"not an account: {record.account_id}")
    except ValueError as error:
        return Entry(partition, entry_id, packed, None, str(error))
    return Entry(partition, entry_id, packed, record, put_back=PUT_BACK in fields[2::2])


def _at_ms(stream_id: str) -> int:
    return int(stream_id.partition("-")[0])
