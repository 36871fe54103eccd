"""What can be called here, for anybody to read: models, who makes and sells them, and what they cost."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gateway.catalogue.metrics import HuggingFaceMetrics
from gateway.catalogue.sites import site_of
from gateway.catalogue.tariff import pricing_of
from gateway.control.catalogue.shapes import (
    CatalogModel,
    CatalogProvider,
    Endpoint,
    TopProvider,
    architecture_of,
)
from gateway.control.paging import PAGE_MAX
from gateway.control.parts import Parts
from gateway.control.route import Call, Nothing, Route
from gateway.control.shelf import Entry, Place
from gateway.errors import UnknownModel

_TAG: Final = "catalogue"
_ALL: Final = "all"
_CACHED: Final = ("cache-control", "public, max-age=60")

Word = Annotated[str, Meta(max_length=200)]


class Paging(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list."""

    limit: Annotated[int, Meta(ge=1, le=PAGE_MAX)] = PAGE_MAX
    offset: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    #: One of the configured providers, or `all`.
    gateway: Word = _ALL


class ModelsQuery(Paging, frozen=True, kw_only=True):
    """Which models: those of a maker, or with a word in their names."""

    provider: Word | None = None
    include_huggingface: bool = True


class ProvidersQuery(Paging, frozen=True, kw_only=True):
    """Which makers."""

    moderated_only: bool = False


class DeveloperQuery(Paging, frozen=True, kw_only=True):
    """Which of a maker's models."""

    include_huggingface: bool = True


class ModelQuery(msgspec.Struct, frozen=True, kw_only=True):
    """How much of it."""

    include_huggingface: bool = True


class ModelsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some models."""

    data: list[CatalogModel]
    total: int
    returned: int
    offset: int
    limit: int
    include_huggingface: bool
    gateway: str
    note: str
    timestamp: datetime


class ProvidersPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some makers."""

    data: list[CatalogProvider]
    total: int
    returned: int
    offset: int
    limit: int
    gateway: str
    note: str
    timestamp: datetime


class OneModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model, and where it can be had."""

    data: CatalogModel
    provider: str
    model: str
    include_huggingface: bool
    timestamp: datetime


class DeveloperPage(msgspec.Struct, frozen=True, kw_only=True):
    """A maker's models."""

    developer: str
    models: list[CatalogModel]
    total: int
    count: int
    offset: int
    limit: int


# -- rules -----------------------------------------------------------------------------------------------------------


def at_gateway(entries: Iterable[Entry], gateway: str) -> list[Entry]:
    """Those that a provider has, as it has them; all of them for `all`."""
    if gateway.lower() == _ALL:
        return list(entries)
    return [
        Entry(entry.model, places)
        for entry in entries
        if (places := tuple(place for place in entry.places if place.provider == gateway))
    ]


def of_provider(entries: Iterable[Entry], provider: str) -> list[Entry]:
    """Those whose maker it is, or with it somewhere in the name."""
    wanted = provider.lower()
    return [entry for entry in entries if entry.maker.lower() == wanted or wanted in entry.model.lower()]


def page_of(entries: Sequence[Entry], query: Paging) -> Sequence[Entry]:
    return entries[query.offset : query.offset + query.limit]


def describe(entry: Entry, parts: Parts, metrics: HuggingFaceMetrics | None) -> CatalogModel:
    """A model as people read of it, at the price of this moment."""
    listed, first = entry.listed, entry.places[0]
    offer = parts.deps.offers.offer(entry.model, first.provider)
    sizes = parts.prices.pricer.sizes(first.provider, entry.model, first.upstream_model)
    site = site_of(entry.maker)
    gateways = tuple(dict.fromkeys(place.provider for place in entry.places))
    slug = entry.model if "/" in entry.model else f"{entry.maker}/{entry.model}"
    return CatalogModel(
        id=entry.model,
        slug=slug,
        canonical_slug=slug.lower(),
        name=(listed.name if listed is not None else "") or entry.model,
        created=0 if listed is None else listed.created_s,
        description="" if listed is None else listed.description,
        context_length=sizes.context_tokens,
        architecture=architecture_of(listed),
        pricing=pricing_of(offer),
        top_provider=TopProvider(
            context_length=sizes.context_tokens,
            max_completion_tokens=sizes.output_tokens_max,
            is_moderated=None if listed is None else listed.moderated,
        ),
        per_request_limits=None,
        supported_parameters=() if listed is None else listed.parameters,
        provider_slug=entry.maker,
        provider_site_url=site.site,
        model_logo_url=site.logo_url(parts.settings.catalogue.logo_url),
        hugging_face_id=(listed.hugging_face_id or None) if listed is not None else None,
        source_gateway=gateways[0],
        source_gateways=gateways,
        huggingface_metrics=metrics,
    )


def endpoint_of(entry: Entry, place: Place, parts: Parts) -> Endpoint:
    sizes = parts.prices.pricer.sizes(place.provider, entry.model, place.upstream_model)
    return Endpoint(
        name=f"{place.provider} | {entry.model}",
        provider_name=place.provider,
        model=place.upstream_model,
        context_length=sizes.context_tokens,
        max_completion_tokens=sizes.output_tokens_max,
        pricing=pricing_of(parts.deps.offers.offer(entry.model, place.provider)),
        supported_parameters=() if place.listed is None else place.listed.parameters,
    )


def makers_of(entries: Iterable[Entry], parts: Parts, *, moderated_only: bool) -> list[CatalogProvider]:
    """Who makes the models, those with the most first."""
    models: dict[str, list[Entry]] = {}
    for entry in entries:
        models.setdefault(entry.maker.lower(), []).append(entry)
    found = []
    for slug, made in models.items():
        moderated = any(entry.listed is not None and entry.listed.moderated for entry in made)
        if moderated_only and not moderated:
            continue
        site = site_of(slug)
        gateways = tuple(dict.fromkeys(place.provider for entry in made for place in entry.places))
        found.append(
            CatalogProvider(
                slug=slug,
                name=site.name or slug,
                site_url=site.site,
                logo_url=site.logo_url(parts.settings.catalogue.logo_url),
                privacy_policy_url=site.privacy,
                terms_of_service_url=site.terms,
                status_page_url=site.status,
                model_count=len(made),
                moderated_by_openrouter=moderated,
                source_gateway=gateways[0],
                source_gateways=gateways,
            )
        )
    return sorted(found, key=lambda maker: (-maker.model_count, maker.slug))


# -- handlers --------------------------------------------------------------------------------------------------------


async def list_catalog(call: Call[Nothing, ModelsQuery]) -> ModelsPage:
    """Every model that can be called here by name, with what callers pay: dollars, for one token. Models that several
    providers have stand here once; `gateway` shows those of one provider.
    """
    query = call.query
    entries = at_gateway(await call.parts.shelf.entries(), query.gateway)
    if query.provider is not None:
        entries = of_provider(entries, query.provider)
    data = await _described(page_of(entries, query), call.parts, metrics=query.include_huggingface)
    call.reply_headers.append(_CACHED)
    return ModelsPage(
        data=data,
        total=len(entries),
        returned=len(data),
        offset=query.offset,
        limit=query.limit,
        include_huggingface=query.include_huggingface,
        gateway=query.gateway,
        note=_note(query.gateway),
        timestamp=_now(call.parts),
    )


async def list_providers(call: Call[Nothing, ProvidersQuery]) -> ProvidersPage:
    """Who makes the models that can be called here, with their sites and logos."""
    query = call.query
    entries = at_gateway(await call.parts.shelf.entries(), query.gateway)
    makers = makers_of(entries, call.parts, moderated_only=query.moderated_only)
    data = makers[query.offset : query.offset + query.limit]
    call.reply_headers.append(_CACHED)
    return ProvidersPage(
        data=data,
        total=len(makers),
        returned=len(data),
        offset=query.offset,
        limit=query.limit,
        gateway=query.gateway,
        note=_note(query.gateway),
        timestamp=_now(call.parts),
    )


async def show_model(call: Call[Nothing, ModelQuery]) -> OneModel:
    """One model, and each provider that has it. `provider` is how its name begins, or a configured provider."""
    provider, model = call.params["provider"], call.params["model"]
    entry = _find(await call.parts.shelf.entries(), provider, model)
    if entry is None:
        raise UnknownModel(f"{provider}/{model}")
    [described] = await _described([entry], call.parts, metrics=call.query.include_huggingface)
    call.reply_headers.append(_CACHED)
    endpoints = [endpoint_of(entry, place, call.parts) for place in entry.places]
    return OneModel(
        data=msgspec.structs.replace(described, endpoints=endpoints),
        provider=provider,
        model=model,
        include_huggingface=call.query.include_huggingface,
        timestamp=_now(call.parts),
    )


async def list_developer(call: Call[Nothing, DeveloperQuery]) -> DeveloperPage:
    """The models of one maker."""
    query, name = call.query, call.params["name"]
    entries = at_gateway(await call.parts.shelf.entries(), query.gateway)
    made = [entry for entry in entries if entry.maker.lower() == name.lower()]
    models = await _described(page_of(made, query), call.parts, metrics=query.include_huggingface)
    call.reply_headers.append(_CACHED)
    return DeveloperPage(
        developer=name, models=models, total=len(made), count=len(models), offset=query.offset, limit=query.limit
    )


async def _described(entries: Sequence[Entry], parts: Parts, *, metrics: bool) -> list[CatalogModel]:
    known: dict[str, HuggingFaceMetrics] = {}
    if metrics and parts.settings.catalogue.huggingface:
        known = await parts.metrics.read({_hugging_face_id(entry) for entry in entries})
    return [describe(entry, parts, known.get(_hugging_face_id(entry))) for entry in entries]


def _hugging_face_id(entry: Entry) -> str:
    listed = entry.listed
    return (listed.hugging_face_id if listed is not None else "") or entry.model


def _find(entries: Iterable[Entry], provider: str, model: str) -> Entry | None:
    named = f"{provider}/{model}".lower()
    for entry in entries:
        name = entry.model.lower()
        if name == named:
            return entry
        if name == model.lower() and (
            entry.maker == provider or any(place.provider == provider for place in entry.places)
        ):
            return entry
    return None


def _note(gateway: str) -> str:
    return "models of all providers" if gateway.lower() == _ALL else f"models of {gateway}"


def _now(parts: Parts) -> datetime:
    return datetime.fromtimestamp(parts.clock.now(), UTC)


ROUTES: Final = (
    Route(
        method="GET",
        path="/catalog/models",
        aliases=("/models",),
        handler=list_catalog,
        access="public",
        summary="List models",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/catalog/provider",
        aliases=("/v1/provider", "/models/providers"),
        handler=list_providers,
        access="public",
        summary="List who makes models",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/catalog/model/{provider}/{model:path}",
        handler=show_model,
        access="public",
        summary="Show a model",
        tag=_TAG,
        errors=(UnknownModel,),
    ),
    Route(
        method="GET",
        path="/catalog/developer/{name}/models",
        handler=list_developer,
        access="public",
        summary="List a maker's models",
        tag=_TAG,
    ),
)
