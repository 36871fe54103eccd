"""How the gateway does, for administrators: the day's figures, its processes, its books, and what was set aside.

What workers and breakers say is of this host; everything from the database is of all of them.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from gateway.control import audit, rejected
from gateway.control.admin.people import Because
from gateway.control.errors import NotFound
from gateway.control.paging import Cursor, Limit, Number, decode_cursor, encode_cursor
from gateway.control.route import Call, Done, Nothing, Route
from gateway.infra.postgres import Row, load_queries
from gateway.kernel.keys import CHANNEL, EVERY_KEY
from gateway.kernel.money import usd
from gateway.kernel.rejects import Reject, count_rejects, list_rejects
from gateway.status import Status, summarize

_TAG: Final = "administration"
_queries: Final = load_queries(Path(__file__).with_name("system.sql"))


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """An account, and what it used today."""

    account_id: int
    name: str
    requests: int
    tokens: int
    cost: float


class AtProvider(msgspec.Struct, frozen=True, kw_only=True):
    """What was done at a provider today."""

    provider: str
    requests: int
    failures: int
    tokens: int
    cost: float
    latency_ms: float


class Recent(msgspec.Struct, frozen=True, kw_only=True):
    """A request of anybody's."""

    id: UUID
    timestamp: datetime
    account_id: int
    key_id: str
    model: str
    provider: str
    status: int
    outcome: str
    tokens: int
    cost: float
    latency_ms: int


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The day (UTC) so far, of all gateways; costs are dollars."""

    timestamp: datetime
    total_users: int
    suspended_users: int
    #: Accounts that asked for something.
    active_today: int
    requests_today: int
    failures_today: int
    tokens_today: int
    cost_today: float
    #: Ten accounts, by tokens.
    top_users: tuple[Top, ...]
    providers: tuple[AtProvider, ...]
    #: Twenty, the latest first.
    recent_requests: tuple[Recent, ...]
    #: Of this host.
    system_metrics: Status


class SystemStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the gateway does now."""

    timestamp: datetime
    #: Of this host.
    gateway: Status
    #: Stores that do not answer.
    missing: tuple[str, ...]
    #: Credit that was entered and that Redis has not been told of.
    credit_waiting: int
    #: Usage records that could not be settled.
    records_set_aside: int


class SetAside(msgspec.Struct, frozen=True, kw_only=True):
    """A usage record that could not be settled; what it says is null where it is no record at all."""

    id: int
    reason: str
    timestamp: datetime
    stream_id: str
    request_id: str | None
    account_id: int | None
    key_id: str | None
    model: str | None
    cost: float | None


class AllSetAside(msgspec.Struct, frozen=True, kw_only=True):
    """A page of them, oldest first."""

    rejects: tuple[SetAside, ...]
    #: Of all pages.
    total: int
    next_cursor: str | None


class SetAsideFilter(msgspec.Struct, frozen=True, kw_only=True):
    limit: Limit = 100
    cursor: Cursor | None = None


async def show_overview(call: Call[Nothing, Nothing]) -> Overview:
    """The day so far: how many people, what they asked for, who most, and the latest requests."""
    database = call.parts.database
    now = _now(call)
    today = await call.parts.today.standings()
    day = today.sums
    people = await database.fetch_row(_queries["count_people"])
    assert people is not None
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return Overview(
        timestamp=now,
        total_users=people["users"],
        suspended_users=people["suspended"],
        active_today=day["accounts"],
        requests_today=day["requests"],
        failures_today=day["failures"],
        tokens_today=day["input_tokens"] + day["output_tokens"],
        cost_today=usd(day["cost_nanos"]),
        top_users=tuple(
            Top(
                account_id=row["account_id"],
                name=row["name"],
                requests=row["requests"],
                tokens=row["tokens"],
                cost=usd(row["cost_nanos"]),
            )
            for row in today.top
        ),
        providers=tuple(
            AtProvider(
                provider=row["provider"],
                requests=row["requests"],
                failures=row["failures"],
                tokens=row["tokens"],
                cost=usd(row["cost_nanos"]),
                latency_ms=round(row["latency_ms"] / row["requests"], 1),
            )
            for row in await database.fetch(_queries["sum_providers"], midnight)
        ),
        recent_requests=tuple(_recent(row) for row in await database.fetch(_queries["last_requests"])),
        system_metrics=summarize(await call.parts.facts()),
    )


async def show_status(call: Call[Nothing, Nothing]) -> SystemStatus:
    """Processes, providers and their breakers, and how far the books are."""
    parts = call.parts
    return SystemStatus(
        timestamp=_now(call),
        gateway=summarize(await parts.facts()),
        missing=await parts.readiness.find_missing(),
        credit_waiting=await parts.database.fetch_value(_queries["count_waiting"]),
        records_set_aside=await count_rejects(parts.database),
    )


async def doubt_keys(call: Call[Nothing, Nothing]) -> Done:
    """Have every worker ask the database again about every key, its plan and its limits, at its next use. They do so
    by themselves for what is changed here; this is for whoever changed the database by hand. What was counted so far
    stays counted.
    """
    await call.parts.redis.execute("PUBLISH", CHANNEL, EVERY_KEY)
    return Done(message="Every worker asks again.")


async def list_set_aside(call: Call[Nothing, SetAsideFilter]) -> AllSetAside:
    """Usage records that could not be settled, oldest first."""
    query, database = call.query, call.parts.database
    after = (0,) if query.cursor is None else decode_cursor(query.cursor, tuple[Number])
    rejects = await list_rejects(database, after_id=after[0], limit=query.limit)
    return AllSetAside(
        rejects=tuple(_set_aside(each) for each in rejects),
        total=await count_rejects(database),
        next_cursor=encode_cursor(rejects[-1].id) if len(rejects) == query.limit else None,
    )


async def retry(call: Call[Because, Nothing]) -> SetAside:
    """Have a record settled again, once what was wrong is mended. What still can't be comes back under another id."""
    parts = call.parts
    found = await rejected.retry(
        parts.database, parts.redis, audit.by(call), call.params["reject_id"], reason=call.body.reason
    )
    if found is None:
        raise NotFound
    return _set_aside(found)


async def discard(call: Call[Because, Nothing]) -> SetAside:
    """Forget a record: what it cost is never entered."""
    parts = call.parts
    found = await rejected.discard(parts.database, audit.by(call), call.params["reject_id"], reason=call.body.reason)
    if found is None:
        raise NotFound
    return _set_aside(found)


def _set_aside(reject: Reject) -> SetAside:
    return SetAside(
        id=reject.id,
        reason=reject.reason,
        timestamp=reject.created_at,
        stream_id=reject.stream_id,
        request_id=reject.request_id,
        account_id=reject.account_id,
        key_id=reject.key_id,
        model=reject.model,
        cost=None if reject.cost_nanos is None else usd(reject.cost_nanos),
    )


def _recent(row: Row) -> Recent:
    return Recent(
        id=row["request_id"],
        timestamp=row["created_at"],
        account_id=row["account_id"],
        key_id=row["key_id"],
        model=row["model"],
        provider=row["provider"],
        status=row["status"],
        outcome=row["outcome"],
        tokens=row["input_tokens"] + row["output_tokens"],
        cost=usd(row["cost_nanos"]),
        latency_ms=row["latency_ms"],
    )


def _now(call: Call[Nothing, Nothing]) -> datetime:
    return datetime.fromtimestamp(call.parts.clock.now(), UTC)


ROUTES: Final = (
    Route(
        method="GET",
        path="/admin/monitor",
        handler=show_overview,
        access="admin:monitoring:read",
        summary="The day so far",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/admin/status",
        handler=show_status,
        access="admin:monitoring:read",
        summary="How the gateway does",
        tag=_TAG,
    ),
    Route(
        method="POST",
        path="/admin/clear-rate-limit-cache",
        handler=doubt_keys,
        access="admin:rate_limits:update",
        summary="Read keys and their limits again",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/admin/settle-rejects",
        handler=list_set_aside,
        access="admin:monitoring:read",
        summary="Usage that could not be settled",
        tag=_TAG,
    ),
    Route(
        method="POST",
        path="/admin/settle-rejects/{reject_id:int}/retry",
        handler=retry,
        access="admin:credits:create",
        summary="Settle a record again",
        tag=_TAG,
        errors=(NotFound,),
    ),
    Route(
        method="POST",
        path="/admin/settle-rejects/{reject_id:int}/discard",
        handler=discard,
        access="admin:credits:create",
        summary="Forget a record",
        tag=_TAG,
        errors=(NotFound,),
    ),
)
