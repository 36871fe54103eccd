"""What a call used, in one shape for every dialect."""

from typing import Literal

import msgspec

UsageSource = Literal["reported", "estimated", "partial"]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one call, normalised: every `input_*` part is inside `input_tokens`, every `output_*` inside
    `output_tokens`, so that what is left after the parts is priced at the plain price.

    `source` says where the figures come from: the provider's own report, an estimate of a whole answer for which
    none came, or a `partial` one of an answer that was cut.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    input_cached_tokens: int = 0
    input_cache_write_tokens: int = 0
    input_cache_write_1h_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_reasoning_tokens: int = 0
    output_audio_tokens: int = 0
    output_image_tokens: int = 0
    images: int = 0
    seconds: float = 0.0
    characters: int = 0
    searches: int = 0
    #: What the provider says it charged, nano-dollars; beats the price table where trusted.
    provider_cost_nanos: int | None = None
    service_tier: str | None = None
    source: UsageSource = "reported"
