"""Whether the stores answer, how providers and models do, and pings.

`/health/ready` and the pings are for anyone; how providers do is for those who are signed in. A load balancer asks
none of these: `/health` says that this worker takes requests, and stays so while a store is away.
"""

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from gateway.control.errors import NotReady
from gateway.control.pings import queries
from gateway.control.route import Call, Nothing, Route
from gateway.control.traffic import Health, Traffic, judge
from gateway.readiness import say_missing

_TAG: Final = "health"


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The stores answer."""

    status: Literal["ready"]
    timestamp: datetime


class ProviderHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One provider. Rates and times are since the hour before began; null where nothing was asked."""

    name: str
    status: Health
    #: The worst of its circuit breakers: closed is well.
    breaker: str
    keys_out: int
    error_percent: float | None
    latency_ms: float | None
    first_token_ms: float | None


class ProvidersHealth(msgspec.Struct, frozen=True, kw_only=True):
    """All that are configured."""

    status: Health
    timestamp: datetime
    providers: tuple[ProviderHealth, ...]


class ModelHealth(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a provider."""

    id: str
    provider: str
    status: Health
    error_percent: float | None
    latency_ms: float | None
    first_token_ms: float | None


class ModelsHealth(msgspec.Struct, frozen=True, kw_only=True):
    """All that the configuration names, at each provider that has it."""

    timestamp: datetime
    models: tuple[ModelHealth, ...]


class Pong(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    #: The number of this ping, of all that all gateways ever had; null where the database does not answer.
    count: int | None
    timestamp: datetime


class PingStatistics(msgspec.Struct, frozen=True, kw_only=True):
    total_pings: int
    #: Never: it is counted where it is kept.
    cached: bool
    timestamp: datetime
    last_ping_at: datetime | None
    created_at: datetime | None
    updated_at: datetime | None


async def show_ready(call: Call[Nothing, Nothing]) -> Ready:
    """Whether the stores answer. 503 names those that don't."""
    missing = await call.parts.readiness.find_missing()
    if missing:
        raise NotReady(say_missing(missing))
    return Ready(status="ready", timestamp=_now(call))


async def show_providers(call: Call[Nothing, Nothing]) -> ProvidersHealth:
    """How providers do, from what requests met."""
    traffic = await _look(call)
    found = []
    for name, status in traffic.providers.items():
        rates = traffic.of_provider(name)
        found.append(
            ProviderHealth(
                name=name,
                status=judge(status, rates),
                breaker=status.breaker,
                keys_out=status.keys_out,
                error_percent=rates.error_percent,
                latency_ms=rates.latency_ms,
                first_token_ms=rates.first_token_ms,
            )
        )
    words = {each.status for each in found}
    # Where one still does, requests have somewhere to go.
    whole: Health = "unknown"
    if words == {"unavailable"}:
        whole = "unavailable"
    elif words & {"unavailable", "degraded"}:
        whole = "degraded"
    elif "healthy" in words:
        whole = "healthy"
    return ProvidersHealth(status=whole, timestamp=traffic.at, providers=tuple(found))


async def show_models(call: Call[Nothing, Nothing]) -> ModelsHealth:
    """How the models that the configuration names do at their providers, from what requests met."""
    traffic, offers = await _look(call), call.parts.deps.offers
    found = []
    for model in sorted(offers.listed()):
        for offer in offers.find(model):
            rates = traffic.of_offer(offer.provider, model)
            found.append(
                ModelHealth(
                    id=model,
                    provider=offer.provider,
                    status=judge(traffic.providers.get(offer.provider), rates),
                    error_percent=rates.error_percent,
                    latency_ms=rates.latency_ms,
                    first_token_ms=rates.first_token_ms,
                )
            )
    return ModelsHealth(timestamp=traffic.at, models=tuple(found))


async def ping(call: Call[Nothing, Nothing]) -> Pong:
    """Pong, and the how manieth it is."""
    return Pong(message="pong", count=await call.parts.pings.count(), timestamp=_now(call))


async def show_pings(call: Call[Nothing, Nothing]) -> PingStatistics:
    """How many pings there were, at all gateways and ever."""
    row = await call.parts.database.fetch_row(queries["read_pings"])
    return PingStatistics(
        total_pings=0 if row is None else row["value"],
        cached=False,
        timestamp=_now(call),
        last_ping_at=None if row is None else row["updated_at"],
        created_at=None if row is None else row["created_at"],
        updated_at=None if row is None else row["updated_at"],
    )


async def _look(call: Call[Nothing, Nothing]) -> Traffic:
    return await call.parts.observer.look(await call.parts.facts())


def _now(call: Call[Nothing, Nothing]) -> datetime:
    return datetime.fromtimestamp(call.parts.clock.now(), UTC)


ROUTES: Final = (
    Route(
        method="GET",
        path="/health/ready",
        handler=show_ready,
        access="public",
        summary="Whether the stores answer",
        tag=_TAG,
        errors=(NotReady,),
    ),
    Route(
        method="GET",
        path="/health/providers",
        handler=show_providers,
        access="signed_in",
        summary="How providers do",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/health/models",
        handler=show_models,
        access="signed_in",
        summary="How models do",
        tag=_TAG,
    ),
    Route(method="GET", path="/ping", handler=ping, access="public", summary="Pong", tag=_TAG),
    Route(method="GET", path="/ping/stats", handler=show_pings, access="public", summary="How many pings", tag=_TAG),
)
