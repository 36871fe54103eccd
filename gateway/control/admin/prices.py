"""Models and what they cost, for administrators: to look at, and to set over the configuration.

What is set is held against the same rules as the configuration before it is kept, so that a slip (a thousand times
what the provider asks, or nothing for half of the tokens) is refused and not charged. Workers use it as soon as they
are told; a request is charged at the prices by which it was let in.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.catalogue.overrides import CHANNEL, Override, pricer_with
from gateway.catalogue.rows import ANY_MODEL
from gateway.control import audit
from gateway.control.admin.people import Reason
from gateway.control.errors import Invalid, NotFound
from gateway.control.paging import Limit, Offset
from gateway.control.parts import Parts
from gateway.control.route import Call, Done, Nothing, Route
from gateway.errors import ConfigError, StoreUnavailable
from gateway.exchange import Offer
from gateway.infra.postgres import load_queries
from gateway.kernel.money import NANOS_PER_USD
from gateway.toml_positions import join_key

_TAG: Final = "administration"
_queries: Final = load_queries(Path(__file__).with_name("prices.sql"))

ModelName = Annotated[str, Meta(min_length=1, max_length=200)]


class OfferView(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a provider. Prices are dollars with the markup in them; null where there is none."""

    model: str
    provider: str
    upstream_model: str
    #: `set` by an administrator, `free`, `priced` by the configuration or the catalogue, or `unpriced`: not offered.
    pricing: Literal["set", "free", "priced", "unpriced"]
    input_usd_per_mtok: float | None
    output_usd_per_mtok: float | None
    request_usd: float | None
    markup: float | None


class Offers(msgspec.Struct, frozen=True, kw_only=True):
    """A page of them, and what is set, by model."""

    offers: tuple[OfferView, ...]
    #: Of all pages.
    total: int
    limit: int
    offset: int
    prices_set: dict[str, Override]


class OfferFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which offers."""

    search: Annotated[str, Meta(max_length=200, description="Part of the model's name.")] = ""
    provider: Annotated[str, Meta(max_length=200)] | None = None
    limit: Limit = 100
    offset: Offset = 0


class NewPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is to cost, and why. `*` is for models that nothing else is known of."""

    model: ModelName
    prices: Override
    reason: Reason


class DropPrice(msgspec.Struct, frozen=True, kw_only=True):
    """Of which model nothing is to be set any more, and why."""

    model: ModelName
    reason: Reason


async def list_offers(call: Call[Nothing, OfferFilter]) -> Offers:
    """What this worker offers now: the models that are named, at each provider, and what they cost."""
    query, deps, overrides = call.query, call.parts.deps, call.parts.prices.overrides
    wanted = query.search.lower()
    names = sorted({name for name, _ in deps.offers.names()} | {name for name in overrides if name != ANY_MODEL})
    found = [
        offer
        for name in names
        if wanted in name.lower()
        for offer in deps.offers.find(name)
        if query.provider is None or offer.provider == query.provider
    ]
    return Offers(
        offers=tuple(
            _view(offer, is_set=offer.model in overrides)
            for offer in found[query.offset : query.offset + query.limit]
        ),
        total=len(found),
        limit=query.limit,
        offset=query.offset,
        prices_set=dict(overrides),
    )


async def set_price(call: Call[NewPrice, Nothing]) -> Done:
    """Set what a model costs, or its markup alone, for all requests from now on."""
    parts, body = call.parts, call.body
    if body.prices == Override():
        raise Invalid("Nothing is set; give a price or a markup.", loc=("body", "prices"))
    _check(parts, body.model, body.prices)
    async with parts.database.transaction() as session:
        row = await session.fetch_row(_queries["lock_price"], body.model)
        text = msgspec.json.encode(body.prices, order="deterministic").decode()
        await session.execute(_queries["set_price"], body.model, text, call.actor.user_id)
        await audit.record(
            session,
            audit.by(call),
            "prices.set",
            ("model", body.model),
            account_id=None,
            before=None if row is None else _values(row["prices"]),
            after=body.prices,
            reason=body.reason,
        )
    await _tell(parts)
    return Done(message=f"{body.model} costs that from now on.")


async def drop_price(call: Call[DropPrice, Nothing]) -> Done:
    """Go back to what the configuration and the catalogue say of a model."""
    parts, body = call.parts, call.body
    async with parts.database.transaction() as session:
        row = await session.fetch_row(_queries["lock_price"], body.model)
        if row is None:
            raise NotFound("Nothing is set of this model.")
        await session.execute(_queries["drop_price"], body.model)
        await audit.record(
            session,
            audit.by(call),
            "prices.drop",
            ("model", body.model),
            account_id=None,
            before=_values(row["prices"]),
            reason=body.reason,
        )
    await _tell(parts)
    return Done(message=f"{body.model} costs what the configuration says.")


def _check(parts: Parts, model: str, prices: Override) -> None:
    """Refuse what can't be meant.

    Raises:
        Invalid, NotFound
    """
    if model != ANY_MODEL and not parts.deps.offers.find(model):
        raise NotFound("No provider offers this model.")
    try:
        pricer = pricer_with(parts.settings, parts.prices.catalogue, {model: prices})
    except ConfigError as error:
        raise Invalid(error.message, loc=("body", "prices")) from error
    if objection := pricer.objections(parts.clock.now()).get(join_key(("models", model))):
        raise Invalid(objection, loc=("body", "prices"))


async def _tell(parts: Parts) -> None:
    """Every worker reads it again. Without Redis they do so once it is back."""
    try:
        await parts.redis.execute("PUBLISH", CHANNEL, b"set")
    except StoreUnavailable:
        return


def _values(text: str) -> dict[str, Any]:  # Any: numbers, and whether it is free
    return msgspec.json.decode(text, type=dict[str, Any])


def _view(offer: Offer, *, is_set: bool) -> OfferView:
    price = offer.price
    pricing: Literal["set", "free", "priced", "unpriced"] = "unpriced" if price is None else "priced"
    if offer.free:
        pricing = "free"
    if is_set:
        pricing = "set"
    if price is None:
        return OfferView(
            model=offer.model,
            provider=offer.provider,
            upstream_model=offer.upstream_model,
            pricing=pricing,
            input_usd_per_mtok=None,
            output_usd_per_mtok=None,
            request_usd=None,
            markup=None,
        )
    charged = price.markup_permille / 1000
    return OfferView(
        model=offer.model,
        provider=offer.provider,
        upstream_model=offer.upstream_model,
        pricing=pricing,
        input_usd_per_mtok=price.input_mtok_nanos * charged / NANOS_PER_USD,
        output_usd_per_mtok=price.output_mtok_nanos * charged / NANOS_PER_USD,
        request_usd=price.request_nanos * charged / NANOS_PER_USD,
        markup=charged,
    )


ROUTES: Final = (
    Route(
        method="GET",
        path="/admin/models",
        handler=list_offers,
        access="admin:models:read",
        summary="Models and what they cost",
        tag=_TAG,
    ),
    Route(
        method="PUT",
        path="/admin/models/prices",
        handler=set_price,
        access="admin:models:update",
        summary="Set what a model costs",
        tag=_TAG,
        errors=(NotFound,),
    ),
    Route(
        method="DELETE",
        path="/admin/models/prices",
        handler=drop_price,
        access="admin:models:update",
        summary="Set nothing of a model",
        tag=_TAG,
        errors=(NotFound,),
    ),
)
