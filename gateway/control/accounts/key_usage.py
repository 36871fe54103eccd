"""What keys were used for: of all of an account's at a glance, and of one by day. As settled, about a second ago."""

from datetime import date, datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gateway.control.accounts.key_facts import Environment, queries, view_of
from gateway.control.accounts.keys import TAG, KeyFilter, find_key, now_of, read_page
from gateway.control.route import Call, Nothing, Route
from gateway.infra.postgres import Row
from gateway.kernel.money import usd

DAYS_MAX: Final = 366
#: Rows by day and model.
ROWS_MAX: Final = 5000


class KeyUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Of one key, for all its life; costs are dollars."""

    id: str
    key_name: str
    environment_tag: Environment
    is_active: bool
    requests_used: int
    max_requests: int | None
    requests_remaining: int | None
    usage_percentage: float | None
    cost_total: float
    last_used_at: datetime | None


class UsageOfKeys(msgspec.Struct, frozen=True, kw_only=True):
    """A page of them; the totals are of all keys that there ever were."""

    user_id: int | None
    account_id: int
    total_keys: int
    active_keys: int
    total_requests: int
    total_cost: float
    keys: tuple[KeyUsage, ...]
    limit: int
    offset: int
    next_cursor: str | None


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """So much in a time; the cost is dollars."""

    requests: int
    tokens: int
    cost: float


class DayOfKey(msgspec.Struct, frozen=True, kw_only=True):
    date: date
    model: str
    requests: int
    tokens: int
    cost: float


class UsageOfKey(KeyUsage, frozen=True, kw_only=True):
    """The same with what it was used for, in days of UTC."""

    today: Period
    this_month: Period
    total: Period
    daily_stats: tuple[DayOfKey, ...]


class UsageFilter(msgspec.Struct, frozen=True, kw_only=True):
    days: Annotated[int, Meta(ge=1, le=DAYS_MAX, description="For so many days, today among them.")] = 30


async def list_usage(call: Call[Nothing, KeyFilter]) -> UsageOfKeys:
    """What each key has used for all its life."""
    rows, cursor = await read_page(call)
    now = now_of(call.parts)
    counted = await call.parts.database.fetch_row(queries["count_keys"], call.actor.account_id)
    assert counted is not None
    views = [msgspec.structs.asdict(view_of(row, now=now)) for row in rows]
    return UsageOfKeys(
        user_id=call.actor.user_id,
        account_id=call.actor.account_id,
        total_keys=counted["living"],
        active_keys=counted["active"],
        total_requests=counted["requests"],
        total_cost=usd(counted["cost_nanos"]),
        keys=tuple(KeyUsage(**{name: view[name] for name in KeyUsage.__struct_fields__}) for view in views),
        limit=call.query.limit,
        offset=call.query.offset,
        next_cursor=cursor,
    )


async def show_usage(call: Call[Nothing, UsageFilter]) -> UsageOfKey:
    """What a key was used for, by day and model."""
    database, actor, key_id = call.parts.database, call.actor, call.params["key_id"]
    row = await find_key(database, actor, key_id)
    sums = await database.fetch_row(queries["sum_key"], key_id, actor.account_id)
    assert sums is not None
    days = await database.fetch(queries["list_key_days"], key_id, actor.account_id, call.query.days, ROWS_MAX)
    view = msgspec.structs.asdict(view_of(row, now=now_of(call.parts)))
    return UsageOfKey(
        **{name: view[name] for name in KeyUsage.__struct_fields__},
        today=_period(sums, "day_"),
        this_month=_period(sums, "month_"),
        total=_period(sums, ""),
        daily_stats=tuple(
            DayOfKey(
                date=each["day"],
                model=each["model"],
                requests=each["requests"],
                tokens=each["input_tokens"] + each["output_tokens"],
                cost=usd(each["cost_nanos"]),
            )
            for each in days
        ),
    )


def _period(sums: Row, prefix: str) -> Period:
    return Period(
        requests=sums[f"{prefix}requests"],
        tokens=sums[f"{prefix}tokens"],
        cost=usd(sums[f"{prefix}cost_nanos"]),
    )


ROUTES: Final = (
    Route(
        method="GET",
        path="/user/api-keys/usage",
        handler=list_usage,
        access="api_keys:read",
        summary="What the keys were used for",
        tag=TAG,
    ),
    Route(
        method="GET",
        path="/user/api-keys/{key_id}/usage",
        handler=show_usage,
        access="api_keys:read",
        summary="What a key was used for",
        tag=TAG,
    ),
)
