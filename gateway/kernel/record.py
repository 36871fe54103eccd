"""The usage record: everything that is kept of one ended request, and its encoding on the way to PostgreSQL.

Rules:
- Written as a msgpack array. Fields are only ever appended, and only with a default: a decoder then reads the records
  of older and of newer writers alike, which a rolling deployment needs. `version` rises when a field changes meaning.
- The first five positions are also read by the Redis scripts (`lua/load.lua` sums costs by account): they are fixed.
- A record carries what the charge was computed from (counts and prices), so that it can be explained later, and never
  what was said.
"""

from typing import Literal

import msgspec

from gateway.kernel.money import Nanos, Price
from gateway.wire.usage import Usage, UsageSource

VERSION = 1

#: How a request ended. Not enforced when decoding: a newer writer may know more of them.
Outcome = Literal[
    "ok",
    "caller_error",
    "caller_gone",
    "policy_refused",
    "provider_error",
    "gateway_error",
    "orphaned",
]


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """One try at one provider: `outcome` is "ok" or an `error_type`."""

    provider: str
    outcome: str


class UsageRecord(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One ended request. `account_id`, `key_id` and `cost_nanos` are what the ledger charges by."""

    version: int = VERSION
    request_id: str
    account_id: int
    key_id: str
    cost_nanos: Nanos
    # -- end of the positions that scripts read
    hold_nanos: Nanos = 0
    #: The public name; `upstream_model` is what the provider calls it.
    model: str = ""
    provider: str = ""
    upstream_model: str = ""
    dialect: str = ""
    route: str = ""
    #: What the caller got; 0 where nothing was sent.
    status: int = 0
    outcome: str = "ok"
    #: As in `errors.py`; empty where all went well.
    error_type: str = ""
    stream: bool = False
    #: Unix time in milliseconds; latencies are counted from it.
    started_ms: int = 0
    latency_ms: int = 0
    first_token_ms: int | None = None
    usage_source: str = "reported"
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
    audio_ms: int = 0
    characters: int = 0
    searches: int = 0
    provider_cost_nanos: Nanos | None = None
    service_tier: str | None = None
    #: The plain prices and the markup that the cost was computed at.
    input_mtok_nanos: Nanos = 0
    output_mtok_nanos: Nanos = 0
    markup_permille: int = 1000
    attempts: tuple[Attempt, ...] = ()
    tags: dict[str, str] = {}
    #: Of a request that went out with an account's own key: which, and the share of the price that was charged.
    own_key_id: str | None = None
    fee_permille: int | None = None

    def with_usage(self, usage: Usage, price: Price, *, cost_nanos: Nanos) -> "UsageRecord":
        """This record with what was used, at what price, and what it came to."""
        return msgspec.structs.replace(
            self,
            cost_nanos=cost_nanos,
            usage_source=usage.source,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            input_cached_tokens=usage.input_cached_tokens,
            input_cache_write_tokens=usage.input_cache_write_tokens,
            input_cache_write_1h_tokens=usage.input_cache_write_1h_tokens,
            input_audio_tokens=usage.input_audio_tokens,
            input_image_tokens=usage.input_image_tokens,
            output_reasoning_tokens=usage.output_reasoning_tokens,
            output_audio_tokens=usage.output_audio_tokens,
            output_image_tokens=usage.output_image_tokens,
            images=usage.images,
            audio_ms=round(usage.seconds * 1000),
            characters=usage.characters,
            searches=usage.searches,
            provider_cost_nanos=usage.provider_cost_nanos,
            service_tier=usage.service_tier,
            input_mtok_nanos=price.input_mtok_nanos,
            output_mtok_nanos=price.output_mtok_nanos,
            markup_permille=price.markup_permille,
        )

    def usage(self) -> Usage:
        """The counts, in the shape that taps and prices speak."""
        known: dict[str, UsageSource] = {"reported": "reported", "estimated": "estimated", "partial": "partial"}
        return Usage(
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            input_cached_tokens=self.input_cached_tokens,
            input_cache_write_tokens=self.input_cache_write_tokens,
            input_cache_write_1h_tokens=self.input_cache_write_1h_tokens,
            input_audio_tokens=self.input_audio_tokens,
            input_image_tokens=self.input_image_tokens,
            output_reasoning_tokens=self.output_reasoning_tokens,
            output_audio_tokens=self.output_audio_tokens,
            output_image_tokens=self.output_image_tokens,
            images=self.images,
            seconds=self.audio_ms / 1000,
            characters=self.characters,
            searches=self.searches,
            provider_cost_nanos=self.provider_cost_nanos,
            service_tier=self.service_tier,
            source=known.get(self.usage_source, "estimated"),
        )


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(UsageRecord)


def encode_record(record: UsageRecord) -> bytes:
    """The record as it travels through the usage stream."""
    return _encoder.encode(record)


def decode_record(data: bytes) -> UsageRecord:
    """A record from the usage stream, whichever version wrote it.

    Raises:
        ValueError: not a usage record.
    """
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a usage record: {error}") from error
