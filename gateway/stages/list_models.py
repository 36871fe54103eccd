"""`GET /v1/models` and `/v1/models/{id}`: what this gateway offers to whoever asks, from memory.

In OpenAI's shape, or in Anthropic's or Google's for their clients: all ask at this path, and what they send with it
tells them apart.
"""

import urllib.parse
from collections.abc import Sequence
from typing import get_args

import msgspec

from gateway.catalogue.tariff import Pricing, pricing_of
from gateway.deps import Deps, Handler
from gateway.errors import MethodNotAllowed, UnknownModel
from gateway.exchange import Exchange, Offer, Scope
from gateway.kernel.constraints import Constraints
from gateway.routing.permitted import may_use
from gateway.settings import Capability
from gateway.wire.dialects import Dialect, id_headers

_CAPABILITIES: tuple[Capability, ...] = get_args(Capability)
#: OpenAI's schema wants an integer; the gateway does not know when a model was made.
_CREATED = 0
#: Every client of Anthropic's sends it, and no other.
_ANTHROPIC = b"anthropic-version"
#: Where Google's clients put their key, and the versions that only they ask for.
_GOOGLE = b"x-goog-api-key"
_GOOGLE_PATHS = (b"/v1beta", b"/v1alpha")


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's `model` object."""

    id: str
    object: str = "model"
    created: int = _CREATED
    owned_by: str
    #: What OpenAI does not say. Of several providers, the most that any takes, and the price of the first.
    context_length: int | None
    max_output_tokens: int | None
    #: Null where nobody knows: it can't be called then.
    pricing: Pricing | None
    capabilities: tuple[str, ...]


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's list of models."""

    object: str = "list"
    data: list[ModelCard]


class AnthropicModel(msgspec.Struct, frozen=True, kw_only=True):
    """Anthropic's `model` object. That a model is offered is all that is known of its life."""

    type: str = "model"
    id: str
    display_name: str
    created_at: str = "1970-01-01T00:00:00Z"
    lifecycle: str = "active"
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicList(msgspec.Struct, frozen=True, kw_only=True):
    """Anthropic's list of models, all on one page."""

    data: list[AnthropicModel]
    has_more: bool = False
    first_id: str | None
    last_id: str | None


class GoogleModel(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Google's `Model` object."""

    name: str
    display_name: str
    input_token_limit: int | None = None
    output_token_limit: int | None = None
    supported_generation_methods: tuple[str, ...]


class GoogleList(msgspec.Struct, frozen=True, kw_only=True):
    """Google's list of models, all on one page."""

    models: list[GoogleModel]


def client_dialect(scope: Scope) -> Dialect:
    """A dialect of those whose client asks for models."""
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    names = [name for name, _ in scope["headers"]]
    if raw_path.startswith(_GOOGLE_PATHS) or _GOOGLE in names:
        return Dialect.GEMINI_GENERATE
    return Dialect.ANTHROPIC_MESSAGES if _ANTHROPIC in names else Dialect.OPENAI_OTHER


async def list_models(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Answer with all models, or with the one whose id follows in the path."""
    if x.scope["method"] not in {"GET", "HEAD"}:
        raise MethodNotAllowed(allow="GET, HEAD")
    name = urllib.parse.unquote(x.target.path.removeprefix(b"/models").removeprefix(b"/").decode("latin-1"))
    assert x.principal is not None
    allowed = x.principal.constraints
    offers = _offers(deps, name, allowed) if name else ()
    if name and not offers:
        raise UnknownModel(name)
    told_as = x.told_as or Dialect.OPENAI_OTHER
    shown = deps.offers.shown
    if name or allowed is not None:
        body = msgspec.json.encode(_answer(told_as, name, offers, deps, allowed))
    elif not (body := shown.get(told_as, b"")):
        body = shown[told_as] = msgspec.json.encode(_answer(told_as, name, offers, deps, allowed))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *id_headers(told_as, x.id),
        *x.reply_headers,
    ]
    x.committed = True
    x.status = 200
    x.bytes_out = len(body)
    await x.send({"type": "http.response.start", "status": 200, "headers": headers})
    await x.send({"type": "http.response.body", "body": b"" if x.scope["method"] == "HEAD" else body})


def _answer(
    told_as: Dialect, name: str, offers: Sequence[Offer], deps: Deps, allowed: Constraints | None
) -> ModelCard | ModelList | AnthropicModel | AnthropicList | GoogleModel | GoogleList:
    """In the shape that the client knows: the one model, or all."""
    if told_as is Dialect.GEMINI_GENERATE:
        return _google_model(name, offers) if name else _google_list(deps, allowed)
    if told_as is Dialect.ANTHROPIC_MESSAGES:
        return _anthropic_model(name, offers) if name else _anthropic_list(deps, allowed)
    if name:
        return _card(name, offers)
    return ModelList(data=[_card(model, _offers(deps, model, allowed)) for model, _ in _names(deps, allowed)])


def _offers(deps: Deps, name: str, allowed: Constraints | None) -> Sequence[Offer]:
    """The offers of a model that the caller may use: those with a price, or all where nobody knows one."""
    offers: Sequence[Offer] = deps.offers.find(name)
    if allowed is not None and offers:
        if not may_use(allowed, name, offers):
            return ()
        offers = [offer for offer in offers if allowed.allows_provider(offer.provider)]
    return [offer for offer in offers if offer.free or offer.price is not None] or offers


def _names(deps: Deps, allowed: Constraints | None) -> list[tuple[str, str]]:
    """(model, provider that is first to serve it) of what the caller may use."""
    names = deps.offers.callable_names()
    if allowed is None:
        return names
    return [(name, offers[0].provider) for name, _ in names if (offers := _offers(deps, name, allowed))]


def _card(name: str, offers: Sequence[Offer]) -> ModelCard:
    contexts = [offer.context_tokens for offer in offers if offer.context_tokens is not None]
    outputs = [offer.output_tokens_max for offer in offers if offer.output_tokens_max is not None]
    lacking = [frozenset(offer.lacks) for offer in offers]
    return ModelCard(
        id=name,
        owned_by=offers[0].provider,
        context_length=max(contexts, default=None),
        max_output_tokens=max(outputs, default=None),
        pricing=pricing_of(offers[0]),
        capabilities=tuple(able for able in _CAPABILITIES if not all(able in lacks for lacks in lacking)),
    )


def _anthropic_model(name: str, offers: Sequence[Offer]) -> AnthropicModel:
    """A model by what the first of its offers says."""
    offer = offers[0] if offers else None
    return AnthropicModel(
        id=name,
        display_name=name,
        max_input_tokens=None if offer is None else offer.context_tokens,
        max_tokens=None if offer is None else offer.output_tokens_max,
    )


def _anthropic_list(deps: Deps, allowed: Constraints | None) -> AnthropicList:
    names = [name for name, _ in _names(deps, allowed)]
    data = [_anthropic_model(name, _offers(deps, name, allowed)) for name in names]
    return AnthropicList(data=data, first_id=names[0] if names else None, last_id=names[-1] if names else None)


def _google_model(name: str, offers: Sequence[Offer]) -> GoogleModel:
    """A model by what the first of its offers says."""
    offer = offers[0] if offers else None
    return GoogleModel(
        name=f"models/{name}",
        display_name=name,
        input_token_limit=None if offer is None else offer.context_tokens,
        output_token_limit=None if offer is None else offer.output_tokens_max,
        supported_generation_methods=("generateContent", "countTokens"),
    )


def _google_list(deps: Deps, allowed: Constraints | None) -> GoogleList:
    names = (name for name, _ in _names(deps, allowed))
    return GoogleList(models=[_google_model(name, _offers(deps, name, allowed)) for name in names])
