"""Limits of accounts and keys: shown, counted and set. What is shown is what the limiter goes by, what is counted is
what it has counted.

Rules:
- An account has the limits of its plan. A key has its own on top, and both must pass; one that is not live has half
  of the plan's besides.
- Nobody sets a key's limits above the plan of its account.
- Several keys are changed all or none.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.control import audit
from gateway.control.accounts.key_facts import (
    Count,
    Environment,
    KeyLimits,
    check_below,
    limits_of,
    limits_text,
    plan_cap,
    show_limits,
    tag_of,
)
from gateway.control.accounts.key_facts import queries as key_queries
from gateway.control.accounts.keys import check_owner, check_reach, find_key
from gateway.control.accounts.people import publish_keys
from gateway.control.accounts.users import plan_limits
from gateway.control.errors import Invalid, NotFound
from gateway.control.paging import OFFSET_MAX, Page
from gateway.control.parts import Parts
from gateway.control.route import Call, Nothing, Route
from gateway.control.today import WATCHED_MAX
from gateway.infra.postgres import Row, Session, load_queries
from gateway.kernel.levels import Level, Levels, read_account_levels, read_key_levels
from gateway.kernel.limits import Limits, halve, tighten
from gateway.settings import UNLIMITED

#: Keys in one request.
UPDATES_MAX: Final = 1000
_TAG: Final = "rate limits"
_SIX: Final = tuple(f"{unit}_per_{window}" for unit in ("requests", "tokens") for window in ("minute", "hour", "day"))
_queries: Final = load_queries(Path(__file__).with_name("rate_limits.sql"))

Window = Literal["minute", "hour", "day", "month"]
KeyId = Annotated[str, Meta(min_length=1, max_length=64)]


class SixLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The six that are set together; none may be left out."""

    requests_per_minute: Count
    requests_per_hour: Count
    requests_per_day: Count
    tokens_per_minute: Count
    tokens_per_hour: Count
    tokens_per_day: Count


class KeyUpdate(SixLimits, frozen=True, kw_only=True):
    """The same for one of several keys."""

    key_id: KeyId


class BulkUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """Several keys of the account: all are changed, or none."""

    updates: Annotated[tuple[KeyUpdate, ...], Meta(min_length=1, max_length=UPDATES_MAX)]


class LimitsOfKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may use."""

    key_id: str
    key_name: str
    environment_tag: Environment
    #: Its own.
    rate_limits: KeyLimits
    #: These with those of the plan.
    effective_limits: KeyLimits


class LimitsView(msgspec.Struct, frozen=True, kw_only=True):
    """What the account may use, and a page of its keys."""

    user_id: int | None
    account_id: int
    plan: str
    rate_limits: KeyLimits
    keys: tuple[LimitsOfKey, ...]
    limit: int
    offset: int
    next_cursor: str | None


class LimitsUpdated(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    message: str
    key_id: str
    rate_limits: KeyLimits
    effective_limits: KeyLimits


class ManyUpdated(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    message: str
    updated_keys: tuple[LimitsUpdated, ...]


class WindowFilter(msgspec.Struct, frozen=True, kw_only=True):
    time_window: Window = "minute"


class LevelView(msgspec.Struct, frozen=True, kw_only=True):
    """One limit: how much it lets through, and what of it is taken at this moment. All null where there is none."""

    limit: int | None = None
    used: float | None = None
    remaining: int | None = None
    #: When it is whole again if nothing more is used.
    reset_at: datetime | None = None


class ScopeUsage(msgspec.Struct, frozen=True, kw_only=True):
    requests: LevelView
    tokens: LevelView
    concurrency_limit: int | None
    concurrent_requests: int


class LimitUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the limiter has counted of a key and of its account."""

    key_id: str
    time_window: Window
    key: ScopeUsage
    account: ScopeUsage
    timestamp: datetime


class PlanInUse(msgspec.Struct, frozen=True, kw_only=True):
    plan: str
    accounts: int
    #: False where the configuration has no row for it, so that the row `none` holds.
    configured: bool
    rate_limits: KeyLimits


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Of everybody, since the hour and the day (UTC) began."""

    requests_this_hour: int
    tokens_this_hour: int
    requests_today: int
    tokens_today: int


class SystemLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the whole gateway."""

    plans: tuple[PlanInUse, ...]
    keys_with_limits: int
    traffic: Traffic
    timestamp: datetime


class AlertFilter(msgspec.Struct, frozen=True, kw_only=True):
    threshold: Annotated[float, Meta(gt=0, le=1, description="The part of a limit from which on it is told.")] = 0.8
    limit: Annotated[int, Meta(ge=1, le=WATCHED_MAX)] = 100
    offset: Annotated[int, Meta(ge=0, le=OFFSET_MAX)] = 0


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """An account that comes near a limit."""

    account_id: int
    account_name: str
    plan: str
    #: Which, as `requests_per_day` or `concurrency`.
    limit_name: str
    limit: int
    used: float
    usage_percentage: float
    level: Literal["warning", "critical"]


class Alerts(msgspec.Struct, frozen=True, kw_only=True):
    """The fullest first, of the accounts that ask for most today."""

    alerts: tuple[Alert, ...]
    total_alerts: int
    accounts_watched: int
    threshold: float
    timestamp: datetime


# -- rules
# -------------------------------------------------------------------------------------------------------------


def effective(parts: Parts, plan: str, environment: str, own: Limits) -> Limits:
    """What holds for a key: its own limits within the plan's."""
    cap = plan_limits(parts, plan)
    return tighten(own, cap if environment == "live" else halve(cap))


def counted_for_key(parts: Parts, plan: str, environment: str, own: Limits) -> Limits:
    """What the limiter counts for a key: for a live one its own limits alone, the plan's being the account's."""
    return own if environment == "live" else tighten(own, halve(plan_limits(parts, plan)))


# -- handlers
# ----------------------------------------------------------------------------------------------------------


async def show_limits_of_account(call: Call[Nothing, Page]) -> LimitsView:
    """The limits of the account and of its keys."""
    parts, actor, query = call.parts, call.actor, call.query
    plan: str = await parts.database.fetch_value(key_queries["read_plan"], actor.account_id)
    after = query.after(tuple[str]) or ("",)
    rows = await parts.database.fetch(_queries["list_limits"], actor.account_id, *after, *query.window)
    page, next_cursor = query.cut(rows, "id")
    return LimitsView(
        user_id=actor.user_id,
        account_id=actor.account_id,
        plan=plan,
        rate_limits=show_limits(plan_limits(parts, plan)),
        keys=tuple(
            LimitsOfKey(
                key_id=row["id"],
                key_name=row["name"],
                environment_tag=tag_of(row["environment"]),
                rate_limits=show_limits(limits_of(row)),
                effective_limits=show_limits(effective(parts, plan, row["environment"], limits_of(row))),
            )
            for row in page
        ),
        limit=query.limit,
        offset=query.offset,
        next_cursor=next_cursor,
    )


async def update_limits(call: Call[SixLimits, Nothing]) -> LimitsUpdated:
    """Set what a key may use, within the plan of its account. It holds everywhere within a second."""
    key_id = call.params["key_id"]
    wanted = {key_id: call.body}
    updated = await _set_limits(call, wanted)
    return updated[0]


async def update_many(call: Call[BulkUpdate, Nothing]) -> ManyUpdated:
    """The same for several keys: all of them, or none."""
    wanted: dict[str, SixLimits] = {each.key_id: each for each in call.body.updates}
    if len(wanted) < len(call.body.updates):
        raise Invalid("A key is named twice.", loc=("body", "updates"))
    updated = await _set_limits(call, wanted)
    return ManyUpdated(status="success", message=f"{len(updated)} keys are changed.", updated_keys=tuple(updated))


async def show_usage(call: Call[Nothing, WindowFilter]) -> LimitUsage:
    """How much of the limits of a key, and of its account, is taken at this moment."""
    parts, actor, window = call.parts, call.actor, call.query.time_window
    row = await find_key(parts.database, actor, call.params["key_id"])
    plan: str = await parts.database.fetch_value(key_queries["read_plan"], actor.account_id)
    own = counted_for_key(parts, plan, row["environment"], limits_of(row))
    cap = plan_limits(parts, plan)
    now_s = parts.clock.now()
    of_key, of_account = await asyncio.gather(
        read_key_levels(parts.redis, actor.account_id, row["id"], own, now_s=now_s),
        read_account_levels(parts.redis, actor.account_id, cap, now_s=now_s),
    )
    now = datetime.fromtimestamp(now_s, UTC)
    return LimitUsage(
        key_id=row["id"],
        time_window=window,
        key=_scope_usage(of_key, own, window, now),
        account=_scope_usage(of_account, cap, window, now),
        timestamp=now,
    )


async def show_system(call: Call[Nothing, Nothing]) -> SystemLimits:
    """Which plans are in use, what they allow, and what goes on."""
    parts, database = call.parts, call.parts.database
    plans = await database.fetch(_queries["count_plans"])
    traffic = await database.fetch_row(_queries["sum_traffic"])
    assert traffic is not None
    return SystemLimits(
        plans=tuple(
            PlanInUse(
                plan=row["plan"],
                accounts=row["accounts"],
                configured=row["plan"] == UNLIMITED or row["plan"] in parts.settings.plans,
                rate_limits=show_limits(plan_limits(parts, row["plan"])),
            )
            for row in plans
        ),
        keys_with_limits=await database.fetch_value(_queries["count_limited"]),
        traffic=Traffic(
            requests_this_hour=traffic["hour_requests"],
            tokens_this_hour=traffic["hour_tokens"],
            requests_today=traffic["day_requests"],
            tokens_today=traffic["day_tokens"],
        ),
        timestamp=datetime.fromtimestamp(parts.clock.now(), UTC),
    )


async def list_alerts(call: Call[Nothing, AlertFilter]) -> Alerts:
    """Accounts that come near a limit of their plan, of those that ask for most today."""
    parts, query = call.parts, call.query
    rows = (await parts.today.standings()).busiest
    now_s = parts.clock.now()
    levels = await asyncio.gather(
        *(read_account_levels(parts.redis, row["id"], plan_limits(parts, row["plan"]), now_s=now_s) for row in rows)
    )
    found = [
        alert
        for row, each in zip(rows, levels, strict=True)
        for alert in _alerts(row, plan_limits(parts, row["plan"]), each, query.threshold)
    ]
    found.sort(key=lambda alert: (-alert.usage_percentage, alert.account_id, alert.limit_name))
    return Alerts(
        alerts=tuple(found[query.offset : query.offset + query.limit]),
        total_alerts=len(found),
        accounts_watched=len(rows),
        threshold=query.threshold,
        timestamp=datetime.fromtimestamp(now_s, UTC),
    )


async def _set_limits(call: Call[Any, Any], wanted: dict[str, SixLimits]) -> list[LimitsUpdated]:  # Any: of either
    """Change keys of the caller's account, each checked against its plan.

    Raises:
        NotFound: one of them is none. NotPermitted: above the plan, or somebody else's.
    """
    parts, actor = call.parts, call.actor
    updated = []
    async with parts.database.transaction() as session:
        await check_reach(session, actor)
        plan: str = await session.fetch_value(key_queries["read_plan"], actor.account_id)
        rows = await session.fetch(_queries["lock_many"], actor.account_id, list(wanted))
        if len(rows) < len(wanted):
            raise NotFound
        for row in rows:
            check_owner(actor, row)
            updated.append(await _set_one(call, session, row, wanted[row["id"]], plan))
    await publish_keys(parts, [each.key_id for each in updated])
    return updated


async def _set_one(
    call: Call[Any, Any],  # Any: of either route
    session: Session,
    row: Row,
    six: SixLimits,
    plan: str,
) -> LimitsUpdated:
    parts, actor = call.parts, call.actor
    before, environment = limits_of(row), row["environment"]
    after = msgspec.structs.replace(before, **{name: getattr(six, name) for name in _SIX})
    check_below(after, plan_cap(parts, plan, environment))
    if after != before:
        await session.execute(_queries["set_limits"], row["id"], actor.account_id, limits_text(after))
        await audit.record(
            session,
            audit.by(call),
            "rate_limits.update",
            ("key", row["id"]),
            account_id=actor.account_id,
            before=show_limits(before),
            after=show_limits(after),
        )
    return LimitsUpdated(
        status="success",
        message="The limits are changed.",
        key_id=row["id"],
        rate_limits=show_limits(after),
        effective_limits=show_limits(effective(parts, plan, environment, after)),
    )


def _scope_usage(levels: Levels, limits: Limits, window: Window, now: datetime) -> ScopeUsage:
    return ScopeUsage(
        requests=_level_view(levels.buckets.get(f"requests_per_{window}"), now),
        tokens=_level_view(levels.buckets.get(f"tokens_per_{window}"), now),
        concurrency_limit=limits.concurrency,
        concurrent_requests=levels.concurrency,
    )


def _level_view(level: Level | None, now: datetime) -> LevelView:
    if level is None:
        return LevelView()
    return LevelView(
        limit=level.limit,
        used=round(level.used, 3),
        remaining=level.remaining,
        reset_at=now + timedelta(seconds=level.reset_s),
    )


def _alerts(row: Row, limits: Limits, levels: Levels, threshold: float) -> list[Alert]:
    used = {name: (level.limit, level.used) for name, level in levels.buckets.items()}
    if limits.concurrency is not None:
        used["concurrency"] = (limits.concurrency, float(levels.concurrency))
    return [
        Alert(
            account_id=row["id"],
            account_name=row["name"],
            plan=row["plan"],
            limit_name=name,
            limit=limit,
            used=round(taken, 3),
            usage_percentage=round(100 * taken / limit, 2),
            level="critical" if taken >= limit * 0.95 else "warning",
        )
        for name, (limit, taken) in used.items()
        if limit and taken >= limit * threshold
    ]


ROUTES: Final = (
    Route(
        method="GET",
        path="/user/rate-limits",
        handler=show_limits_of_account,
        access="rate_limits:read",
        summary="Limits of the account and its keys",
        tag=_TAG,
    ),
    Route(
        method="PUT",
        path="/user/rate-limits/{key_id}",
        handler=update_limits,
        access="rate_limits:update",
        summary="Set a key's limits",
        tag=_TAG,
    ),
    Route(
        method="POST",
        path="/user/rate-limits/bulk-update",
        handler=update_many,
        access="rate_limits:update",
        summary="Set the limits of several keys",
        tag=_TAG,
        errors=(NotFound,),
    ),
    Route(
        method="GET",
        path="/user/rate-limits/usage/{key_id}",
        handler=show_usage,
        access="rate_limits:read",
        summary="What is taken of a key's limits",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/admin/rate-limits/system",
        handler=show_system,
        access="admin:rate_limits:read",
        summary="Limits of the whole gateway",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/admin/rate-limits/alerts",
        handler=list_alerts,
        access="admin:rate_limits:read",
        summary="Who comes near a limit",
        tag=_TAG,
    ),
)
