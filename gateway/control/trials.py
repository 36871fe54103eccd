"""How trials did, for administrators, by what the ledger says of them.

Rules:
- A trial is the first credit of type `trial` that an account was given, and lasts `DAYS` from then.
- It has led to something (`converted`) where the account bought credit, ever; else it goes on (`active`) or is over
  (`expired`).
- What was used in it is what the account used on the days (UTC) of the trial.
- All of them are read for this, so it is done at most every `REMEMBERED_S` in a worker, once for all who ask.
"""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import msgspec

from gateway.infra.clock import Clock
from gateway.infra.postgres import Database, load_queries
from gateway.kernel.money import usd

DAYS: Final = 3
REMEMBERED_S: Final = 60.0
_queries: Final = load_queries(Path(__file__).with_name("trials.sql"))

State = Literal["active", "expired", "converted"]
STATES: Final[tuple[State, ...]] = ("active", "expired", "converted")


class TrialSums(msgspec.Struct, frozen=True, kw_only=True):
    """Of trials in one state."""

    trials: int = 0
    requests: int = 0
    tokens: int = 0
    #: Dollars.
    credits: float = 0.0


class TrialAnalytics(msgspec.Struct, frozen=True, kw_only=True):
    """Of all trials there were."""

    total_trials: int
    active_trials: int
    expired_trials: int
    converted_trials: int
    #: Percent of those that are not going on any more.
    conversion_rate: float
    total_requests_used: int
    total_tokens_used: int
    #: Dollars.
    total_credits_used: float
    average_requests_per_trial: float
    average_tokens_per_trial: float
    average_credits_per_trial: float
    breakdown: dict[State, TrialSums]
    #: Of which moment it is true.
    timestamp: datetime


def analyse(sums: Mapping[State, TrialSums], *, at: datetime) -> TrialAnalytics:
    """What the sums of each state say of all."""
    counts = {state: sums[state].trials for state in STATES}
    total, over = sum(counts.values()), counts["expired"] + counts["converted"]
    requests = sum(each.requests for each in sums.values())
    tokens = sum(each.tokens for each in sums.values())
    credit = round(sum(each.credits for each in sums.values()), 9)
    share = max(1, total)
    return TrialAnalytics(
        total_trials=total,
        active_trials=counts["active"],
        expired_trials=counts["expired"],
        converted_trials=counts["converted"],
        conversion_rate=round(100 * counts["converted"] / over, 2) if over else 0.0,
        total_requests_used=requests,
        total_tokens_used=tokens,
        total_credits_used=credit,
        average_requests_per_trial=round(requests / share, 2),
        average_tokens_per_trial=round(tokens / share, 2),
        average_credits_per_trial=round(credit / share, 9),
        breakdown=dict(sums),
        timestamp=at,
    )


class Trials:
    """As one worker knows them."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._reading = asyncio.Lock()
        self._read: TrialAnalytics | None = None
        self._read_s = 0.0

    async def analytics(self) -> TrialAnalytics:
        """How they did, or as it was within the last minute.

        Raises:
            StoreUnavailable
        """
        async with self._reading:
            if self._read is None or self._clock.monotonic() - self._read_s > REMEMBERED_S:
                at = datetime.fromtimestamp(self._clock.now(), UTC)
                rows = await self._database.fetch(_queries["sum_trials"], timedelta(days=DAYS), at)
                found = {row["state"]: row for row in rows}
                sums = {
                    state: TrialSums()
                    if (row := found.get(state)) is None
                    else TrialSums(
                        trials=row["trials"],
                        requests=row["requests"],
                        tokens=row["tokens"],
                        credits=usd(row["cost_nanos"]),
                    )
                    for state in STATES
                }
                self._read = analyse(sums, at=at)
                self._read_s = self._clock.monotonic()
            return self._read
