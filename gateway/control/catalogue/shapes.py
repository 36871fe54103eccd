"""What catalogue pages and clients read: OpenRouter's shapes, with our prices in them.

Prices are what callers pay, markups included: texts, in dollars for one token or one of what the name says.
"""

from decimal import Decimal
from typing import Final

import msgspec

from gateway.catalogue.listing import ListedModel
from gateway.catalogue.metrics import HuggingFaceMetrics
from gateway.exchange import Offer
from gateway.kernel.money import Nanos, Price

_NANOS_DIGITS: Final = 9
_MTOK_DIGITS: Final = 6
_PERMILLE_DIGITS: Final = 3


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """What goes in and comes out."""

    modality: str | None
    input_modalities: tuple[str, ...]
    output_modalities: tuple[str, ...]
    tokenizer: str | None
    instruct_type: str | None = None


class Pricing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dollars, as decimal texts."""

    prompt: str
    completion: str
    request: str
    image: str
    web_search: str
    internal_reasoning: str
    input_cache_read: str | None = None
    input_cache_write: str | None = None


class TopProvider(msgspec.Struct, frozen=True, kw_only=True):
    """The first that would be asked."""

    context_length: int | None
    max_completion_tokens: int | None
    is_moderated: bool | None


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A model at one provider."""

    name: str
    provider_name: str
    model: str
    context_length: int | None
    max_completion_tokens: int | None
    pricing: Pricing | None
    supported_parameters: tuple[str, ...]


class CatalogModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model."""

    id: str
    slug: str
    canonical_slug: str
    name: str
    created: int
    description: str
    context_length: int | None
    architecture: Architecture
    #: Null where nobody knows what it costs: it can't be called then.
    pricing: Pricing | None
    top_provider: TopProvider
    per_request_limits: None
    supported_parameters: tuple[str, ...]
    provider_slug: str
    provider_site_url: str | None
    model_logo_url: str | None
    hugging_face_id: str | None
    source_gateway: str
    source_gateways: tuple[str, ...]
    huggingface_metrics: HuggingFaceMetrics | None = None
    endpoints: list[Endpoint] | None = None


class CatalogProvider(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes or sells models."""

    slug: str
    name: str
    site_url: str | None
    logo_url: str | None
    privacy_policy_url: str | None
    terms_of_service_url: str | None
    status_page_url: str | None
    model_count: int
    moderated_by_openrouter: bool
    source_gateway: str
    source_gateways: tuple[str, ...]


def pricing_of(offer: Offer) -> Pricing | None:
    """What callers pay; None where nobody knows."""
    price = Price() if offer.free else offer.price
    if price is None:
        return None
    permille = price.markup_permille
    written, read = price.input_cache_write_mtok_nanos, price.input_cached_mtok_nanos
    return Pricing(
        prompt=_per_token(price.input_mtok_nanos, permille),
        completion=_per_token(price.output_mtok_nanos, permille),
        request=_per_unit(price.request_nanos, permille),
        image=_per_unit(price.image_nanos, permille),
        web_search=_per_unit(price.search_nanos, permille),
        internal_reasoning=_per_token(price.output_reasoning_mtok_nanos or 0, permille),
        input_cache_read=None if read is None else _per_token(read, permille),
        input_cache_write=None if written is None else _per_token(written, permille),
    )


def architecture_of(listed: ListedModel | None) -> Architecture:
    inputs, outputs = (listed.inputs, listed.outputs) if listed is not None else ((), ())
    return Architecture(
        modality=f"{'+'.join(inputs)}->{'+'.join(outputs)}" if inputs and outputs else None,
        input_modalities=inputs,
        output_modalities=outputs,
        tokenizer=(listed.tokenizer or None) if listed is not None else None,
    )


def _per_token(mtok_nanos: Nanos, permille: int) -> str:
    return _text(mtok_nanos * permille, _NANOS_DIGITS + _MTOK_DIGITS + _PERMILLE_DIGITS)


def _per_unit(nanos: Nanos, permille: int) -> str:
    return _text(nanos * permille, _NANOS_DIGITS + _PERMILLE_DIGITS)


def _text(value: int, digits: int) -> str:
    """`value` with its point moved, exactly and without an exponent."""
    text = f"{Decimal(value).scaleb(-digits):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
