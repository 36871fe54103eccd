"""The audit log, shown: to an account what was done with its things, to administrators everything.

What stands in it is decided by whoever records it (`control/audit.py`); nothing here changes a line. It can be taken
away as JSON lines, oldest first: they are made while they are sent, a page at a time, however many there are.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.control.errors import Invalid
from gateway.control.paging import Cursor, Limit, Number, Offset, Page
from gateway.control.parts import Parts
from gateway.control.route import ID_MAX, Call, Nothing, Raw, Route
from gateway.infra.postgres import Row, load_queries

#: Lines read at a time for those who take all away, and how long that may take.
EXPORT_PAGE: Final = 500
EXPORT_TIMEOUT_S: Final = 600.0
NDJSON: Final = "application/x-ndjson"
_TAG: Final = "audit"
#: What clients call an action, and what stands in the log.
_WRITTEN: Final = {"delete": "revoke"}
_SHOWN: Final = {written: shown for shown, written in _WRITTEN.items()}
_queries: Final = load_queries(Path(__file__).with_name("trail.sql"))
_encode_line: Final = msgspec.json.Encoder().encode

Id = Annotated[int, Meta(ge=1, le=ID_MAX)]
Word = Annotated[str, Meta(min_length=1, max_length=200)]
#: A time without a zone is one of UTC.
Moment = datetime


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line: who did what to which thing, what it was before and after, and from where."""

    id: int
    timestamp: datetime
    action: str
    #: user, key, operator (a command on the machine), or system.
    actor_kind: str
    actor_user_id: int | None
    actor_key_id: str | None
    account_id: int | None
    object_kind: str
    object_id: str
    before: dict[str, Any] | None  # Any: whatever of the thing changed
    after: dict[str, Any] | None  # Any: the same
    reason: str | None
    ip: str | None
    user_agent: str | None
    request_id: str | None


class Trail(msgspec.Struct, frozen=True, kw_only=True):
    """A page, newest first."""

    logs: tuple[Change, ...]
    limit: int
    offset: int
    next_cursor: str | None


class ExportFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines of the account."""

    action: Annotated[str, Meta(max_length=100, description="As `api_keys.rotate`.")] | None = None
    actor_user_id: Id | None = None
    object_kind: Word | None = None
    object_id: Word | None = None
    request_id: Word | None = None
    from_: Moment | None = msgspec.field(name="from", default=None)
    to: Moment | None = None


class AllExportFilter(ExportFilter, frozen=True, kw_only=True):
    """Which lines of anybody."""

    account_id: Id | None = None


class TrailFilter(ExportFilter, frozen=True, kw_only=True):
    """Which lines of the account, and which page of them."""

    limit: Limit = 50
    offset: Offset = 0
    cursor: Cursor | None = None

    @property
    def page(self) -> Page:
        return Page(limit=self.limit, offset=self.offset, cursor=self.cursor)


class AllFilter(TrailFilter, frozen=True, kw_only=True):
    """Which lines of anybody, and which page of them."""

    account_id: Id | None = None


class KeyTrailFilter(Page, frozen=True, kw_only=True):
    """Which changes of which keys."""

    limit: Limit = 100
    key_id: Word | None = None
    action: Literal["create", "update", "delete", "rotate"] | None = None
    start_date: Moment | None = None
    end_date: Moment | None = None


class KeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a key."""

    id: int
    key_id: str
    user_id: int | None
    #: create, update, delete, rotate, ...
    action: str
    details: dict[str, Any]  # Any: what it was before and after
    ip: str | None
    user_agent: str | None
    timestamp: datetime


class KeyTrail(msgspec.Struct, frozen=True, kw_only=True):
    """A page, newest first."""

    status: str
    #: Of all pages.
    total_logs: int
    logs: tuple[KeyChange, ...]
    limit: int
    offset: int
    next_cursor: str | None


async def list_key_changes(call: Call[Nothing, KeyTrailFilter]) -> KeyTrail:
    """What was done with the account's keys: made, changed, rotated, deleted."""
    query, database = call.query, call.parts.database
    action = None if query.action is None else f"api_keys.{_WRITTEN.get(query.action, query.action)}"
    span = in_utc(query.start_date, "start_date"), in_utc(query.end_date, "end_date")
    wanted = (call.actor.account_id, query.key_id, action, *span)
    before = query.after(tuple[Number]) or (None,)
    rows = await database.fetch(_queries["list_key_changes"], *wanted, *before, *query.window)
    page, next_cursor = query.cut(rows, "id")
    return KeyTrail(
        status="success",
        total_logs=await database.fetch_value(_queries["count_key_changes"], *wanted),
        logs=tuple(_key_change(row) for row in page),
        limit=query.limit,
        offset=query.offset,
        next_cursor=next_cursor,
    )


async def list_own(call: Call[Nothing, TrailFilter]) -> Trail:
    """Everything that was changed of the account's, by whomever."""
    return await _list(call.parts, call.query, account_id=call.actor.account_id)


async def list_all(call: Call[Nothing, AllFilter]) -> Trail:
    """Everything that was changed of anybody's."""
    return await _list(call.parts, call.query, account_id=call.query.account_id)


async def export_own(call: Call[Nothing, ExportFilter]) -> Raw:
    """The account's lines, oldest first, each a JSON object."""
    return Raw(_lines(call.parts, call.query, account_id=call.actor.account_id), media_type=NDJSON)


async def export_all(call: Call[Nothing, AllExportFilter]) -> Raw:
    """Everybody's lines, oldest first, each a JSON object."""
    return Raw(_lines(call.parts, call.query, account_id=call.query.account_id), media_type=NDJSON)


def in_utc(moment: datetime | None, name: str) -> datetime | None:
    """A time of a query, in UTC; one without a zone is of UTC.

    Raises:
        Invalid: there is no such time.
    """
    if moment is None or moment.tzinfo is None:
        return None if moment is None else moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise Invalid("There was no such time.", loc=("query", name)) from error


async def _list(parts: Parts, query: TrailFilter, *, account_id: int | None) -> Trail:
    before = query.page.after(tuple[Number]) or (None,)
    wanted = _wanted(query, account_id)
    rows = await parts.database.fetch(_queries["list_trail"], *wanted, *before, *query.page.window)
    page, next_cursor = query.page.cut(rows, "id")
    return Trail(
        logs=tuple(_change(row) for row in page),
        limit=query.limit,
        offset=query.offset,
        next_cursor=next_cursor,
    )


async def _lines(parts: Parts, query: ExportFilter, *, account_id: int | None) -> AsyncIterator[bytes]:
    """Pages of lines; what is written meanwhile comes at the end."""
    after, wanted = 0, _wanted(query, account_id)
    while rows := await parts.database.fetch(_queries["list_trail_forward"], *wanted, after, EXPORT_PAGE):
        yield b"".join(_encode_line(_change(row)) + b"\n" for row in rows)
        after = rows[-1]["id"]


def _wanted(query: ExportFilter, account_id: int | None) -> tuple[object, ...]:
    return (
        account_id,
        query.actor_user_id,
        query.action,
        query.object_kind,
        query.object_id,
        query.request_id,
        in_utc(query.from_, "from"),
        in_utc(query.to, "to"),
    )


def _change(row: Row) -> Change:
    return Change(
        id=row["id"],
        timestamp=row["at"],
        action=row["action"],
        actor_kind=row["actor_kind"],
        actor_user_id=row["actor_user_id"],
        actor_key_id=row["actor_key_id"],
        account_id=row["account_id"],
        object_kind=row["object_kind"],
        object_id=row["object_id"],
        before=_values(row["before"]),
        after=_values(row["after"]),
        reason=row["reason"],
        ip=row["ip"],
        user_agent=row["user_agent"],
        request_id=row["request_id"],
    )


def _key_change(row: Row) -> KeyChange:
    action = row["action"].partition(".")[2]
    facts = {"before": _values(row["before"]), "after": _values(row["after"]), "reason": row["reason"]}
    return KeyChange(
        id=row["id"],
        key_id=row["object_id"],
        user_id=row["actor_user_id"],
        action=_SHOWN.get(action, action),
        details={name: value for name, value in facts.items() if value is not None},
        ip=row["ip"],
        user_agent=row["user_agent"],
        timestamp=row["at"],
    )


def _values(text: str | None) -> dict[str, Any] | None:  # Any: as in Change
    # asyncpg hands jsonb on as text.
    return None if text is None else msgspec.json.decode(text, type=dict[str, Any])


ROUTES: Final = (
    Route(
        method="GET",
        path="/user/api-keys/audit-logs",
        handler=list_key_changes,
        access="api_keys:read",
        summary="Changes of the account's keys",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/user/audit-logs",
        handler=list_own,
        access="users:read",
        account_role="admin",
        summary="Changes in the account",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/user/audit-logs/export",
        handler=export_own,
        access="users:read",
        account_role="admin",
        summary="Changes in the account, as JSON lines",
        tag=_TAG,
        timeout_s=EXPORT_TIMEOUT_S,
        media_type=NDJSON,
    ),
    Route(
        method="GET",
        path="/admin/audit-logs",
        handler=list_all,
        access="admin:audit_logs:read",
        summary="Changes everywhere",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/admin/audit-logs/export",
        handler=export_all,
        access="admin:audit_logs:read",
        summary="Changes everywhere, as JSON lines",
        tag=_TAG,
        timeout_s=EXPORT_TIMEOUT_S,
        media_type=NDJSON,
    ),
)
