"""What became of one earlier request: from the books, or from the usage stream while it is on its way to them.

A request is only ever shown to the key that made it; whether another key made it is not told. Between the end of a
request and the moment Redis has its record it is nowhere to be found, and while it runs neither.
"""

import uuid
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import msgspec

from gateway.errors import GatewayError, StoreUnavailable
from gateway.infra.postgres import Database
from gateway.kernel.journal import UsageRow, find_usage
from gateway.kernel.record import UsageRecord, decode_record
from gateway.kernel.request_id import is_request_id, time_ms
from gateway.kernel.verbs import PARTITIONS, usage_key

#: Entries of the stream in one look, and looks: more than a settler that keeps up ever leaves there.
PIECE: Final = 200
PIECES_MAX: Final = 10

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Commands(Protocol):
    """The part of the Redis client that is needed here."""

    def execute(self, *command: bytes | str | int) -> Awaitable[object]: ...


class History:
    """Of all workers: what it reads is in the stores."""

    def __init__(self, database: Database, redis: Commands, *, partitions: int = PARTITIONS) -> None:
        self._database = database
        self._redis = redis
        self._partitions = partitions

    async def find(self, request_id: str, *, account_id: int, key_id: str) -> UsageRow | None:
        """The request of that id, if this key of this account made it.

        Raises:
            StoreUnavailable: it is not in the one store that answers.
        """
        if not is_request_id(request_id):
            return None
        failure: StoreUnavailable | None = None
        try:
            if (row := await find_usage(self._database, request_id, key_id=key_id)) is not None:
                return row
        except StoreUnavailable as error:
            failure = error
        try:
            record = await self._find_unsettled(request_id, account_id)
        except StoreUnavailable as error:
            failure = error
        else:
            if record is not None:
                return _row(record) if record.key_id == key_id else None
        if failure is None:
            # It may have been settled between the two looks.
            return await find_usage(self._database, request_id, key_id=key_id)
        raise failure

    async def _find_unsettled(self, request_id: str, account_id: int) -> UsageRecord | None:
        # No entry is older than the request it is about.
        start = str(time_ms(request_id))
        for _ in range(PIECES_MAX):
            stream = usage_key(account_id % self._partitions)
            try:
                # [id, [field, value, ...]] of each entry
                entries: Any = await self._redis.execute("XRANGE", stream, start, "+", "COUNT", PIECE)
            except StoreUnavailable:
                raise
            except GatewayError as error:
                raise StoreUnavailable(detail=error.detail) from error
            for _, fields in entries:
                # Cheaper than decoding what is nearly always somebody else's.
                if request_id.encode() in fields[1] and (record := _decode(fields[1])).request_id == request_id:
                    return record
            if len(entries) < PIECE:
                return None
            start = f"({entries[-1][0].decode()}"
        return None


def _decode(packed: bytes) -> UsageRecord:
    try:
        return decode_record(packed)
    except ValueError:
        # The settler sets it aside.
        return UsageRecord(request_id="", account_id=0, key_id="", cost_nanos=0)


def _row(record: UsageRecord) -> UsageRow:
    """The record as it will stand in the books."""
    values = msgspec.structs.asdict(record)
    known = {name: values[name] for name in UsageRow.__struct_fields__ if name in values}
    known["request_id"] = uuid.UUID(record.request_id)
    return UsageRow(**known, created_at=_EPOCH + timedelta(milliseconds=time_ms(record.request_id)))
