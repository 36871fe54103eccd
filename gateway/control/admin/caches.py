"""What is kept of other places, for administrators to look at and to have fetched again: providers' lists of their
models, and what Hugging Face says of open ones.

Rules:
- Nobody is asked here. What is to be fetched is marked as due, and whoever keeps the books asks within seconds, a few
  at a time, so that no crowd of refreshes asks a provider more often than that.
- What was said last stays until something else is said.
"""

from datetime import UTC, datetime
from typing import Final

import msgspec

from gateway.catalogue.lists import ListStore
from gateway.catalogue.metrics import HuggingFaceMetrics
from gateway.catalogue.overrides import CHANNEL
from gateway.control.errors import Conflict, NotFound
from gateway.control.route import Call, Done, Nothing, Route

#: Models that are shown one by one.
SAMPLE_MAX: Final = 100
_TAG: Final = "administration"


class ListView(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider said of its models last."""

    provider: str
    models: int
    #: Null where it never did.
    listed_at: datetime | None
    #: In a row, since then.
    failures: int
    error: str | None


class CacheStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What this worker offers, from memory, and how old what providers say of themselves is."""

    status: str
    #: Models that the configuration or a provider names.
    models: int
    #: How many of them each provider lists.
    providers: dict[str, int]
    #: Models whose price an administrator has set.
    prices_set: int
    #: Of providers that can be asked.
    lists: tuple[ListView, ...]


class MetricStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of Hugging Face."""

    status: str
    #: Whether it is asked at all.
    enabled: bool
    #: Models of which something is known.
    cached_models: int
    #: That it does not know, or does not show to anybody.
    unknown_models: int
    #: About which it is asked next, or again.
    due_models: int


class MetricView(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one model."""

    status: str
    model: str
    #: Whether Hugging Face is asked at all.
    enabled: bool
    metrics: HuggingFaceMetrics


class OfferView(msgspec.Struct, frozen=True, kw_only=True):
    """Who would serve a model, best first."""

    provider: str
    upstream_model: str
    free: bool
    #: A model that has no price and is not free is refused.
    priced: bool


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One name that callers may use."""

    model: str
    offers: tuple[OfferView, ...]


class ModelsView(msgspec.Struct, frozen=True, kw_only=True):
    """What this worker makes of the names that are listed, with the odd ones first."""

    status: str
    models: int
    #: Of them, those that nobody may use: no offer of theirs is priced or free.
    refused_models: int
    sample: tuple[ModelView, ...]


async def show_cache(call: Call[Nothing, Nothing]) -> CacheStatus:
    """What this worker offers, and what became of asking providers for their models."""
    deps = call.parts.deps
    names = deps.offers.names()
    counts = dict.fromkeys(sorted(deps.providers), 0)
    for model, _ in names:
        for provider in {offer.provider for offer in deps.offers.find(model)}:
            counts[provider] = counts.get(provider, 0) + 1
    return CacheStatus(
        status="success",
        models=len(names),
        providers=counts,
        prices_set=len(call.parts.prices.overrides),
        lists=tuple(
            ListView(
                provider=state.provider,
                models=state.model_count,
                listed_at=None if state.listed_s is None else datetime.fromtimestamp(state.listed_s, UTC),
                failures=state.failures,
                error=state.error or None,
            )
            for state in await ListStore(call.parts.database).states()
        ),
    )


async def refresh(call: Call[Nothing, Nothing]) -> Done:
    """Have providers asked again which models they have, within seconds, and every worker read again what is set of
    models and prices. Both happen by themselves, in their time. Keys and addresses of providers are of the
    configuration, which the gateway reads again when its file changes.
    """
    parts = call.parts
    await parts.redis.execute("PUBLISH", CHANNEL, b"refresh")
    if not parts.settings.catalogue.lists:
        return Done(message="Every worker reads models and prices again. Providers are not asked: [catalogue] lists.")
    await ListStore(parts.database).doubt()
    return Done(message="Every worker reads models and prices again, and providers are asked for theirs.")


async def show_metrics(call: Call[Nothing, Nothing]) -> MetricStatus:
    """How much is known of open models from Hugging Face."""
    counts = await call.parts.metrics.count()
    return MetricStatus(
        status="success",
        enabled=call.parts.settings.catalogue.huggingface,
        cached_models=counts.known,
        unknown_models=counts.unknown,
        due_models=counts.due,
    )


async def show_metric(call: Call[Nothing, Nothing]) -> MetricView:
    """What is known from Hugging Face about one model. It is not asked for this."""
    name = call.params["id"]
    found = (await call.parts.metrics.read([name])).get(name)
    if found is None:
        raise NotFound("Nothing is known of this model from Hugging Face.")
    return MetricView(status="success", model=name, enabled=call.parts.settings.catalogue.huggingface, metrics=found)


async def show_models(call: Call[Nothing, Nothing]) -> ModelsView:
    """What this worker would do for each listed model: for whoever wonders why one is refused, or goes elsewhere."""
    offers = call.parts.deps.offers
    views = [
        ModelView(
            model=model,
            offers=tuple(
                OfferView(
                    provider=offer.provider,
                    upstream_model=offer.upstream_model,
                    free=offer.free,
                    priced=offer.price is not None,
                )
                for offer in offers.find(model)
            ),
        )
        for model, _ in offers.names()
    ]
    views.sort(key=lambda view: (_is_usable(view), view.model))
    refused = sum(not _is_usable(view) for view in views)
    return ModelsView(status="success", models=len(views), refused_models=refused, sample=tuple(views[:SAMPLE_MAX]))


def _is_usable(view: ModelView) -> bool:
    return any(offer.free or offer.priced for offer in view.offers)


async def refresh_metrics(call: Call[Nothing, Nothing]) -> Done:
    """Have Hugging Face asked again about every open model, a few every some seconds."""
    if not call.parts.settings.catalogue.huggingface:
        raise Conflict("Hugging Face is not asked here; [catalogue] huggingface turns it on.", code="huggingface_off")
    await call.parts.metrics.doubt()
    return Done(message="Hugging Face is asked again.")


ROUTES: Final = (
    Route(
        method="GET",
        path="/admin/cache-status",
        handler=show_cache,
        access="admin:models:read",
        summary="What is offered, and what providers said",
        tag=_TAG,
    ),
    Route(
        method="POST",
        path="/admin/refresh-models",
        handler=refresh,
        access="admin:models:refresh",
        summary="Read models and prices again",
        tag=_TAG,
        aliases=("/admin/refresh-providers",),
    ),
    Route(
        method="GET",
        path="/admin/huggingface-cache-status",
        handler=show_metrics,
        access="admin:models:read",
        summary="What is known from Hugging Face",
        tag=_TAG,
    ),
    Route(
        method="POST",
        path="/admin/refresh-huggingface-cache",
        handler=refresh_metrics,
        access="admin:models:refresh",
        summary="Ask Hugging Face again",
        tag=_TAG,
        errors=(Conflict,),
    ),
    Route(
        method="GET",
        path="/admin/test-huggingface/{id:path}",
        handler=show_metric,
        access="admin:models:read",
        summary="What is known of one model from Hugging Face",
        tag=_TAG,
        errors=(NotFound,),
    ),
    Route(
        method="GET",
        path="/admin/debug-models",
        handler=show_models,
        access="admin:models:read",
        summary="What this worker makes of the models that are listed",
        tag=_TAG,
    ),
)
