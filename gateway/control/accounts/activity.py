"""Activity: what an account has asked for, one by one and in sums.

Rules:
- Both are made of settled usage, which follows the end of a request by about a second. Nothing is added up in here:
  the sums are kept by day, model and provider as records come in.
- A day is one of UTC, and a request belongs to the one in which it began. So the totals of a span are exactly the
  number of requests that its log lists, whatever page is shown.
- A request that was refused before a provider was asked is in the access log and not here.
"""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import Meta

from gateway.control.accounts.trail import in_utc
from gateway.control.errors import Invalid
from gateway.control.paging import Moment, Page
from gateway.control.route import ID_MAX, Call, Nothing, Route
from gateway.infra.postgres import Row, load_queries
from gateway.kernel.money import usd

DAYS_MAX: Final = 365
DAYS: Final = 30
#: Of all accounts together, whose sums are kept by the hour.
ALL_DAYS_MAX: Final = 92
LOG_LIMIT: Final = 10
#: Requests that are passed over are read all the same, from all over the disk; a cursor costs the same anywhere.
OFFSET_MAX: Final = 10_000
#: The first day that a log without a beginning looks at.
BEGINNING: Final = date(2000, 1, 1)
_TAG: Final = "activity"
#: What `grouping(day, model, provider)` says: a bit for each that was summed over.
_BY_DAY, _BY_MODEL, _BY_PROVIDER, _ALL = 0b011, 0b101, 0b110, 0b111
_queries: Final = load_queries(Path(__file__).with_name("activity.sql"))

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Day = Annotated[date, Meta(description="A day of UTC, as 2026-01-31.")]


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which days, and of them which model and provider."""

    days: Annotated[int, Meta(ge=1, le=DAYS_MAX, description="The last days, today included.")] | None = None
    from_: Day | None = msgspec.field(name="from", default=None)
    to: Day | None = None
    model: Name | None = None
    provider: Name | None = None


class EverybodyFilter(Filter, frozen=True, kw_only=True):
    """Also whose."""

    account_id: Annotated[int, Meta(ge=1, le=ID_MAX)] | None = None


class Sums(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model or provider; `spend` and `cost` are the same dollars."""

    name: str
    requests: int
    failures: int
    tokens: int
    prompt_tokens: int
    completion_tokens: int
    spend: float
    cost: float


class DaySums(msgspec.Struct, frozen=True, kw_only=True):
    """Of one day."""

    date: date
    spend: float
    tokens: int
    requests: int
    failures: int


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What was used in the span; days on which nothing was are left out."""

    from_: date = msgspec.field(name="from")
    to: date
    total_requests: int
    failed_requests: int
    total_tokens: int
    prompt_tokens: int
    completion_tokens: int
    total_spend: float
    total_cost: float
    daily_stats: tuple[DaySums, ...]
    by_date: dict[str, DaySums]
    by_model: tuple[Sums, ...]
    by_provider: tuple[Sums, ...]


class LogFilter(Page, frozen=True, kw_only=True):
    """Which requests, and which page of them."""

    limit: Annotated[int, Meta(ge=1, le=1000, description="How many at most.")] = LOG_LIMIT
    offset: Annotated[int, Meta(ge=0, le=OFFSET_MAX, description="How many to pass over.")] = 0
    page: Annotated[int, Meta(ge=1, le=OFFSET_MAX, description="From 1; instead of `offset`.")] | None = None
    from_: Day | None = msgspec.field(name="from", default=None)
    to: Day | None = None
    model: Name | None = None
    provider: Name | None = None


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """One request."""

    #: What its answer had as `x-gateway-request-id`.
    id: UUID
    account_id: int
    timestamp: datetime
    model: str
    provider: str
    tokens: int
    #: Dollars.
    cost: float
    #: Tokens of the answer each second; null where nothing was generated.
    speed: float | None
    #: How it ended: `ok`, or why not.
    finish_reason: str
    app: str
    #: The provider key of the account's own that it went out with; the cost is a fee then.
    own_key_id: UUID | None
    status: int
    metadata: dict[str, Any]  # Any: numbers, texts, and the caller's own tags


class ActivityLog(msgspec.Struct, frozen=True, kw_only=True):
    """A page of them, newest first."""

    logs: tuple[Activity, ...]
    #: Of all pages.
    total: int
    page: int
    limit: int
    offset: int
    next_cursor: str | None


async def show_statistics(call: Call[Nothing, Filter]) -> Statistics:
    """What the account used: in all, by day, by model and by provider. Without a span, the last 30 days."""
    return await read_statistics(call, account_id=call.actor.account_id)


async def show_usage(call: Call[Nothing, EverybodyFilter]) -> Statistics:
    """What all accounts used together, or one of them: in all, by day, by model and by provider. Without a span, the
    last 30 days; of all accounts, 92 days at most, and of their requests only those have failed that failed for the
    provider's sake.
    """
    return await read_statistics(call, account_id=call.query.account_id)


async def read_statistics(call: Call[Nothing, Any], *, account_id: int | None) -> Statistics:  # Any: a Filter
    """Sums of an account, or of all.

    Raises:
        Invalid: there is no such span, or it is too long.
    """
    query: Filter = call.query
    first, last = _span(query, today=_today(call), days_max=DAYS_MAX if account_id is not None else ALL_DAYS_MAX)
    database = call.parts.database
    if account_id is None:
        rows = await database.fetch(
            _queries["sum_all_activity"], _midnight(first), _after(last), query.model, query.provider
        )
    else:
        rows = await database.fetch(_queries["sum_activity"], account_id, first, last, query.model, query.provider)
    by_level: dict[int, list[Row]] = {_BY_DAY: [], _BY_MODEL: [], _BY_PROVIDER: [], _ALL: []}
    for row in rows:
        by_level[row["level"]].append(row)
    total = by_level[_ALL][0]
    days = tuple(
        DaySums(
            date=row["day"],
            spend=usd(row["cost_nanos"]),
            tokens=row["input_tokens"] + row["output_tokens"],
            requests=row["requests"],
            failures=row["failures"],
        )
        for row in by_level[_BY_DAY]
    )
    prompt, completion = total["input_tokens"] or 0, total["output_tokens"] or 0
    cost = usd(total["cost_nanos"] or 0)
    return Statistics(
        from_=first,
        to=last,
        total_requests=total["requests"] or 0,
        failed_requests=total["failures"] or 0,
        total_tokens=prompt + completion,
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_spend=cost,
        total_cost=cost,
        daily_stats=days,
        by_date={each.date.isoformat(): each for each in days},
        by_model=tuple(_sums(row, row["model"]) for row in by_level[_BY_MODEL]),
        by_provider=tuple(_sums(row, row["provider"]) for row in by_level[_BY_PROVIDER]),
    )


async def show_log(call: Call[Nothing, LogFilter]) -> ActivityLog:
    """The requests of the account, newest first. `total` counts all that the filter lets through."""
    query, database, account_id = call.query, call.parts.database, call.actor.account_id
    first, last = query.from_ or BEGINNING, query.to or _today(call) + timedelta(days=1)
    at, request_id = query.after(tuple[Moment, UUID]) or (None, None)
    offset = query.offset if query.page is None else (query.page - 1) * query.limit
    if offset > OFFSET_MAX:
        raise Invalid(f"Pages end at {OFFSET_MAX} requests; go on with `cursor`.", loc=("query", "page"))
    query = msgspec.structs.replace(query, offset=offset)
    rows = await database.fetch(
        _queries["list_activity"],
        account_id,
        _midnight(first),
        _after(last),
        query.model,
        query.provider,
        in_utc(at, "cursor"),
        request_id,
        *query.window,
    )
    page, next_cursor = query.cut(rows, "created_at", "request_id")
    total = await database.fetch_value(
        _queries["count_activity"], account_id, first, last, query.model, query.provider
    )
    return ActivityLog(
        logs=tuple(_activity(row, account_id) for row in page),
        total=total,
        page=offset // query.limit + 1,
        limit=query.limit,
        offset=offset,
        next_cursor=next_cursor,
    )


def _span(query: Filter, *, today: date, days_max: int) -> tuple[date, date]:
    """The first and the last day.

    Raises:
        Invalid: there is no such span, or it is longer than it may be.
    """
    if query.days is not None and (query.from_ is not None or query.to is not None):
        raise Invalid("Give `days`, or `from` and `to`.", loc=("query", "days"))
    last = query.to or today
    try:
        first = query.from_ or last - timedelta(days=(query.days or DAYS) - 1)
    except OverflowError as error:
        raise Invalid("There was no such day.", loc=("query", "to")) from error
    if not 0 <= (last - first).days <= days_max:
        raise Invalid(
            f"From `from` to `to` it is {days_max} days at most, and `from` is first.", loc=("query", "from")
        )
    return first, last


def _today(call: Call[Any, Any]) -> date:  # Any: of either query
    return datetime.fromtimestamp(call.parts.clock.now(), UTC).date()


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _after(day: date) -> datetime:
    """The end of a day."""
    try:
        return _midnight(day + timedelta(days=1))
    except OverflowError as error:
        raise Invalid("There is no such day.", loc=("query", "to")) from error


def _sums(row: Row, name: str) -> Sums:
    cost = usd(row["cost_nanos"])
    return Sums(
        name=name,
        requests=row["requests"],
        failures=row["failures"],
        tokens=row["input_tokens"] + row["output_tokens"],
        prompt_tokens=row["input_tokens"],
        completion_tokens=row["output_tokens"],
        spend=cost,
        cost=cost,
    )


def _activity(row: Row, account_id: int) -> Activity:
    generated_ms = row["latency_ms"] - (row["first_token_ms"] or 0)
    speed = round(row["output_tokens"] * 1000 / generated_ms, 2) if generated_ms > 0 else 0.0
    return Activity(
        id=row["request_id"],
        account_id=account_id,
        timestamp=row["created_at"],
        model=row["model"],
        provider=row["provider"],
        tokens=row["input_tokens"] + row["output_tokens"],
        cost=usd(row["cost_nanos"]),
        speed=speed or None,
        finish_reason=row["outcome"],
        app="API",
        own_key_id=row["own_key_id"],
        status=row["status"],
        metadata={
            "prompt_tokens": row["input_tokens"],
            "completion_tokens": row["output_tokens"],
            "endpoint": row["route"],
            "stream": row["stream"],
            "key_id": row["key_id"],
            "latency_ms": row["latency_ms"],
            "first_token_ms": row["first_token_ms"],
            "error_type": row["error_type"] or None,
            "tags": msgspec.json.decode(row["tags"]),
        },
    )


ROUTES: Final = (
    Route(
        method="GET",
        path="/user/activity/stats",
        handler=show_statistics,
        access="usage:read",
        summary="What was used, in sums",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/admin/usage",
        handler=show_usage,
        access="admin:analytics:read",
        summary="What everybody used, in sums",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/user/activity/log",
        handler=show_log,
        access="usage:read",
        summary="Requests, one by one",
        tag=_TAG,
    ),
)
