"""Usage records that the settler set aside: to look at, to settle again, to forget.

Rules:
- What was set aside was charged in Redis and is not in the books, so its account drifts by it. Settled again, once
  what was wrong is mended, the two agree; forgotten, the account gets the amount back when it is loaded anew.
- To settle again is to put the record back into its stream, where the settler finds it as it finds any other, and has
  the account loaded anew. It is known by its request id: one that is put back twice, because this was cut off in
  between, is entered once.
"""

from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from gateway.infra.postgres import Database, Row, Session, load_queries
from gateway.kernel.history import Commands
from gateway.kernel.money import Nanos
from gateway.kernel.record import decode_record
from gateway.kernel.settler import PUT_BACK
from gateway.kernel.verbs import usage_key

PAGE_MAX: Final = 1000
#: Of a reason, which may be PostgreSQL's words.
REASON_LENGTH_MAX: Final = 1000

_queries: Final = load_queries(Path(__file__).with_name("rejects.sql"))


class Reject(msgspec.Struct, frozen=True, kw_only=True):
    """One of them; what it says is null where it is no record of ours."""

    id: int
    reason: str
    created_at: datetime
    stream_id: str
    request_id: str | None
    account_id: int | None
    key_id: str | None
    model: str | None
    cost_nanos: Nanos | None


async def list_rejects(database: Database, *, after_id: int = 0, limit: int = PAGE_MAX) -> list[Reject]:
    """Those with ids above `after_id`, oldest first."""
    rows = await database.fetch(_queries["list_rejects"], after_id, min(limit, PAGE_MAX))
    return [_reject(row) for row in rows]


async def count_rejects(database: Database) -> int:
    """How many there are."""
    count: int = await database.fetch_value(_queries["count_rejects"])
    return count


async def retry_reject(session: Session, redis: Commands, reject_id: int) -> Reject | None:
    """Put a record back into its stream, in a transaction that takes it off the list; None if there is no such one.

    Raises:
        StoreUnavailable: it stays on the list, and may be on its way all the same.
    """
    row = await session.fetch_row(_queries["lock_reject"], reject_id)
    if row is None:
        return None
    await redis.execute("XADD", usage_key(row["partition"]), "*", "r", row["record"], PUT_BACK, 1)
    await session.execute(_queries["delete_reject"], reject_id)
    return _reject(row)


async def discard_reject(session: Session, reject_id: int) -> Reject | None:
    """Forget a record; None if there is no such one."""
    row = await session.fetch_row(_queries["lock_reject"], reject_id)
    if row is None:
        return None
    await session.execute(_queries["delete_reject"], reject_id)
    return _reject(row)


def _reject(row: Row) -> Reject:
    try:
        record = decode_record(row["record"])
    except ValueError:
        record = None
    return Reject(
        id=row["id"],
        reason=row["reason"][:REASON_LENGTH_MAX],
        created_at=row["created_at"],
        stream_id=row["stream_id"],
        request_id=None if record is None else record.request_id,
        account_id=None if record is None else record.account_id,
        key_id=None if record is None else record.key_id,
        model=None if record is None else record.model,
        cost_nanos=None if record is None else record.cost_nanos,
    )
