"""What an account, a key and a model may use: rates, concurrency and budgets, and the one packed form of them.

Rules:
- None is unlimited, zero is nothing at all. Every scope has to pass: the account, the key, the model in the account.
- A rate is a token bucket: it holds what the limit says, and refills continuously over its window (a month is 30
  days). So a fresh bucket lets its whole limit through at once, and never more than that beyond its refill. `burst`
  narrows how many requests may come at once below the limit per minute.
- A budget is money in a calendar window (UTC, weeks from Monday). A hard one refuses what might pass it, and counts
  what is still in flight; a soft one only gives notice, once in each window.
- A key that is not live has half of the plan's limits; the account as a whole has all of them.
- A key may be good for so many requests in all its life. What counts is what ended with a record, besides what is in
  flight, so that PostgreSQL can say it again where Redis has lost it.

Redis stores how much is used, never the limits: these travel with each request as one msgpack argument, packed once
for each (principal, model) and read by `lua/common.lua` and by the twin. The layout is described at `pack_limits`.
"""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from gateway.kernel.money import MAX_NANOS, Nanos

BudgetWindow = Literal["day", "week", "month", "total"]
#: Positions in the packed form, from one.
BUDGET_WINDOWS: Final[tuple[BudgetWindow, ...]] = ("day", "week", "month", "total")

MINUTE_US: Final = 60_000_000
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US
MONTH_US: Final = 30 * DAY_US

#: Larger limits are refused: what is used must stay exact as a Lua number.
LIMIT_MAX: Final = 10**12
#: As a limit of concurrency in the packed form: takes no slot at all.
NO_SLOT: Final = -2
#: As the window of a budget in the packed form: what is counted are requests, for good.
LIFETIME: Final = 5
#: How many budgets a scope can have.
BUDGETS_MAX: Final = 16

#: The buckets by number, from one: requests, then tokens. The name is that of the field which holds what is used.
BUCKETS: Final = ("rm", "rh", "rd", "rM", "tm", "th", "td", "tM")
BUCKET_WINDOWS_US: Final = (MINUTE_US, HOUR_US, DAY_US, MONTH_US) * 2
#: What callers are told a bucket is called.
BUCKET_NAMES: Final = {
    "rm": "requests per minute",
    "rh": "requests per hour",
    "rd": "requests per day",
    "rM": "requests per month",
    "tm": "tokens per minute",
    "th": "tokens per hour",
    "td": "tokens per day",
    "tM": "tokens per month",
}


class Budget(msgspec.Struct, frozen=True):
    """So much money in a window. A `hard` one refuses; a soft one gives notice."""

    window: BudgetWindow
    limit_nanos: Nanos
    hard: bool = True


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits of one scope; the default has none."""

    requests_per_minute: int | None = None
    requests_per_hour: int | None = None
    requests_per_day: int | None = None
    requests_per_month: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_hour: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    #: Requests at once, where that is less than the limit per minute; alone, it is that limit.
    burst: int | None = None
    #: Requests in flight.
    concurrency: int | None = None
    budgets: tuple[Budget, ...] = ()


#: The fields that are counts.
COUNTS: Final = tuple(name for name in Limits.__struct_fields__ if name != "budgets")
NO_LIMITS: Final = Limits()


def halve(limits: Limits) -> Limits:
    """Half of every count, but not less than one where one was allowed. Budgets stay: they are money, not speed."""
    return msgspec.structs.replace(
        limits, **{name: max(min(1, count), count // 2) for name, count in _counts(limits) if count is not None}
    )


def tighten(one: Limits, other: Limits) -> Limits:
    """The lower of each count, and the budgets of both."""
    counts = {}
    for (name, left), (_, right) in zip(_counts(one), _counts(other), strict=True):
        counts[name] = left if right is None else right if left is None else min(left, right)
    budgets = tuple(dict.fromkeys((*one.budgets, *other.budgets)))
    return Limits(**counts, budgets=budgets)


def combine_limits(
    *,
    plan: Limits,
    key: Limits = NO_LIMITS,
    model: Limits | None = None,
    live: bool = True,
    overdraft_nanos: Nanos = 0,
    requests_max: int | None = None,
) -> bytes:
    """The packed limits of a call: the plan holds for the account, the key's own for the key (and half of the plan
    for a key that is not live), `model` for that model in the account. `requests_max` is for all the key's life.
    """
    own = key if live else tighten(key, halve(msgspec.structs.replace(plan, budgets=())))
    return pack_limits(
        account=plan, key=own, model=model, overdraft_nanos=overdraft_nanos, key_requests_max=requests_max
    )


def pack_limits(
    *,
    account: Limits = NO_LIMITS,
    key: Limits = NO_LIMITS,
    model: Limits | None = None,
    overdraft_nanos: Nanos = 0,
    key_requests_max: int | None = None,
) -> bytes:
    """One flat array: the overdraft, and then for the account, the key and the model
    `concurrency or -1 (-2: takes no slot), number of buckets, (bucket number, limit, capacity) of each, number of
    budgets, (window 1-4, limit nanos, 1 if hard else 0) of each`. Flat, because each table costs the script an
    allocation. The requests of a key's life are a budget of window 5, behind all others.

    Buckets are in the order of `BUCKETS`; budgets in rising order, so that notices come in the order in which they
    are earned.

    Raises:
        ValueError: a negative or oversized limit, or too many budgets.
    """
    if not 0 <= overdraft_nanos <= MAX_NANOS:
        raise ValueError(f"overdraft out of bounds: {overdraft_nanos}")
    packed = [overdraft_nanos]
    _pack_scope(account, packed)
    _pack_scope(key, packed, requests_max=key_requests_max)
    _pack_scope(NO_LIMITS if model is None else model, packed)
    return msgspec.msgpack.encode(packed)


def detach_limits(packed: bytes) -> bytes:
    """What is left of packed limits for work that goes on without a request: the money alone. It takes no place in a
    bucket, and no slot.
    """
    given = msgspec.msgpack.decode(packed, type=list[int])
    detached, at = given[:1], 1
    while at < len(given):
        at += 2 + 3 * given[at + 1]
        number, at = given[at], at + 1
        budgets = given[at : at + 3 * number]
        at += 3 * number
        # The request that ordered the work was the one that counts.
        if budgets[-3:-2] == [LIFETIME]:
            budgets = budgets[:-3]
        detached += (NO_SLOT, 0, len(budgets) // 3, *budgets)
    return msgspec.msgpack.encode(detached)


def _counts(limits: Limits) -> Iterable[tuple[str, int | None]]:
    return [(name, getattr(limits, name)) for name in COUNTS]


def _pack_scope(limits: Limits, packed: list[int], *, requests_max: int | None = None) -> None:
    for name, count in _counts(limits):
        if count is not None and not 0 <= count <= LIMIT_MAX:
            raise ValueError(f"{name} out of bounds: {count}")
    if len(limits.budgets) > BUDGETS_MAX:
        raise ValueError(f"{len(limits.budgets)} budgets, at most {BUDGETS_MAX} are possible")
    per_bucket = (
        limits.burst if limits.requests_per_minute is None else limits.requests_per_minute,
        limits.requests_per_hour,
        limits.requests_per_day,
        limits.requests_per_month,
        limits.tokens_per_minute,
        limits.tokens_per_hour,
        limits.tokens_per_day,
        limits.tokens_per_month,
    )
    buckets: list[int] = []
    for number, limit in enumerate(per_bucket, 1):
        if limit is not None:
            capacity = min(limit, limits.burst) if number == 1 and limits.burst is not None else limit
            buckets += (number, limit, capacity)
    budgets: list[int] = []
    for budget in sorted(limits.budgets, key=lambda b: (BUDGET_WINDOWS.index(b.window), b.limit_nanos)):
        if not 0 <= budget.limit_nanos <= MAX_NANOS:
            raise ValueError(f"budget out of bounds: {budget.limit_nanos}")
        budgets += (BUDGET_WINDOWS.index(budget.window) + 1, budget.limit_nanos, int(budget.hard))
    if requests_max is not None:
        if not 0 <= requests_max <= LIMIT_MAX:
            raise ValueError(f"requests out of bounds: {requests_max}")
        budgets += (LIFETIME, requests_max, 1)
    packed.append(-1 if limits.concurrency is None else limits.concurrency)
    packed += (len(buckets) // 3, *buckets, len(budgets) // 3, *budgets)


def window_ids(now_us: int) -> tuple[int, int, int, int]:
    """Numbers of the day, ISO week and month that a moment is in, and 0 for the window without end; each rises by one
    from window to window. The arithmetic of `lua/common.lua`: months are counted from March of year 0, so that the
    leap day is the last of its year.
    """
    day = now_us // DAY_US
    era_day = day + 719_468
    era, of_era = divmod(era_day, 146_097)
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    return day, (day + 3) // 7, (era * 400 + year) * 12 + month, 0


def window_end_us(window: int, window_id: int) -> int:
    """When the window (1 day, 2 week, 3 month) of that number is over, microseconds since the epoch; -1 for 4."""
    if window == 1:
        return (window_id + 1) * DAY_US
    if window == 2:
        return ((window_id + 1) * 7 - 3) * DAY_US
    if window == 3:
        year, month = divmod(window_id + 1, 12)
        days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 - 719_468
        return days * DAY_US
    return -1
