"""What catalogue pages and clients read: OpenRouter's shapes, with what callers pay in them."""

import msgspec

from gateway.catalogue.listing import ListedModel
from gateway.catalogue.metrics import HuggingFaceMetrics
from gateway.catalogue.tariff import Pricing


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """What goes in and comes out."""

    modality: str | None
    input_modalities: tuple[str, ...]
    output_modalities: tuple[str, ...]
    tokenizer: str | None
    instruct_type: str | None = None


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


def architecture_of(listed: ListedModel | None) -> Architecture:
    inputs, outputs = (listed.inputs, listed.outputs) if listed is not None else ((), ())
    return Architecture(
        modality=f"{'+'.join(inputs)}->{'+'.join(outputs)}" if inputs and outputs else None,
        input_modalities=inputs,
        output_modalities=outputs,
        tokenizer=(listed.tokenizer or None) if listed is not None else None,
    )
