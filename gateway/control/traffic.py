"""How providers and models do, as seen in passing: nothing is ever asked for the sake of asking.

What stands in the breakers of this host's workers is of this moment; rates and times are of what all gateways settled
since the hour before began. Both are remembered for a few seconds, for whoever asks often.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import msgspec

from gateway.errors import GatewayError
from gateway.infra.clock import Clock
from gateway.infra.metrics import FamilySnapshot
from gateway.infra.postgres import Database, load_queries
from gateway.status import FleetFacts, ProviderStatus, providers_of

REMEMBERED_S: Final = 5.0
#: Below so many requests a rate says nothing.
REQUESTS_MIN: Final = 10
#: Of them, so many per cent must fail.
DEGRADED_PERCENT: Final = 10.0

_queries: Final = load_queries(Path(__file__).with_name("traffic.sql"))

Health = Literal["healthy", "degraded", "unavailable", "unknown"]


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Of what was settled lately; null where nothing was."""

    requests: int
    #: Of requests, those that failed for the provider's sake.
    error_percent: float | None
    latency_ms: float | None
    first_token_ms: float | None


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known, at one moment."""

    at: datetime
    providers: dict[str, ProviderStatus]
    #: By provider and model; empty where the database does not answer.
    rates: dict[tuple[str, str], tuple[int, int, int, int, int]]

    def of_provider(self, name: str) -> Rates:
        return _rates([figures for (provider, _), figures in self.rates.items() if provider == name])

    def of_offer(self, provider: str, model: str) -> Rates:
        figures = self.rates.get((provider, model))
        return _rates([] if figures is None else [figures])


class Observer:
    """Of one worker."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._seen: Traffic | None = None
        self._seen_s = 0.0

    async def look(self, facts: FleetFacts) -> Traffic:
        """What is known now."""
        now_s = self._clock.monotonic()
        if self._seen is None or now_s - self._seen_s > REMEMBERED_S:
            now = datetime.fromtimestamp(self._clock.now(), UTC)
            rates = {}
            try:
                rows = await self._database.fetch(_queries["read_traffic"], _hour_before(now))
                rates = {
                    (row["provider"], row["model"]): (
                        row["requests"],
                        row["failures"],
                        row["latency_ms"],
                        row["begun"],
                        row["first_token_ms"],
                    )
                    for row in rows
                }
            except GatewayError:
                # The breakers know without it.
                pass
            families: dict[str, FamilySnapshot] = {family.spec.name: family for family in facts.families}
            providers = {each.name: each for each in providers_of(families)}
            self._seen, self._seen_s = Traffic(at=now, providers=providers, rates=rates), now_s
        return self._seen


def judge(provider: ProviderStatus | None, rates: Rates) -> Health:
    """One word for it."""
    if provider is not None and provider.breaker == "open":
        return "unavailable"
    if provider is not None and (provider.breaker != "closed" or provider.keys_out):
        return "degraded"
    if rates.error_percent is None:
        return "unknown"
    is_sure = rates.requests >= REQUESTS_MIN
    return "degraded" if is_sure and rates.error_percent >= DEGRADED_PERCENT else "healthy"


def _rates(figures: list[tuple[int, int, int, int, int]]) -> Rates:
    sums = [sum(each[number] for each in figures) for number in range(5)]
    requests, failures, latency_ms, begun, first_token_ms = sums
    return Rates(
        requests=requests,
        error_percent=round(100 * failures / requests, 2) if requests else None,
        latency_ms=round(latency_ms / requests, 1) if requests else None,
        first_token_ms=round(first_token_ms / begun, 1) if begun else None,
    )


def _hour_before(now: datetime) -> datetime:
    return now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
