"""What a call used, in one shape for every dialect.

Rules:
- One reader for every `usage` object of the OpenAI family and of those who copy it: chat, completions, responses,
  embeddings, images and transcriptions. What is missing, null or not a count is 0; it never raises.
- Parts are carved out of the totals one after the other, so that they never overlap and never exceed them.
- A provider's own charge is exact decimal arithmetic and is only read where it is trusted.

It prices nothing, and guesses nothing: an object without any count is None.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import ROUND_CEILING, Decimal
from itertools import islice
from operator import attrgetter
from typing import Literal

import msgspec

from gateway.wire.jsontext import CLOSING, OPENING, TOKEN, mask_escapes

UsageSource = Literal["reported", "estimated", "partial"]

#: A count above this is no count but a broken report.
COUNT_MAX = 10**12
_COST_USD_MAX = Decimal(1_000_000)

#: What one request is believed to have used: far more than any model takes or gives, and little enough that its cost
#: can be counted. Only a broken or lying provider reports more.
REPORT_TOKENS_MAX = 100_000_000
REPORT_CHARACTERS_MAX = 100_000_000
REPORT_SECONDS_MAX = 1_000_000
REPORT_PIECES_MAX = 100_000
REPORT_COST_NANOS_MAX = 100_000 * 10**9
_NANOS = Decimal(1_000_000_000)
# xAI charges in ticks of 1e-10 dollars.
_TICKS_PER_NANO = Decimal(10)

#: How many places that look like a usage object are tried in the end of a long text, and how far one is read.
_CANDIDATES_MAX = 8
_TOKENS_MAX = 20_000

_VALUE = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*\{")
_TIER = re.compile(rb'"service_tier"[ \t\r\n]*:[ \t\r\n]*"([a-z_]{1,32})"')


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
    #: What the request calls for, where pictures have several prices: quality, then size, such as "hd 1024x1792".
    image_kind: str = ""
    seconds: float = 0.0
    characters: int = 0
    searches: int = 0
    #: What the provider says it charged, nano-dollars; beats the price table where trusted.
    provider_cost_nanos: int | None = None
    service_tier: str | None = None
    source: UsageSource = "reported"


_NONE = msgspec.Raw(b"")


class _Input(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    cache_write_tokens: int | None = None


class _Output(msgspec.Struct, frozen=True, gc=False):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _Plain(msgspec.Struct, frozen=True, gc=False):
    """A report as OpenAI writes it. What only others write is looked at elsewhere, and named here to be noticed."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _Input | None = None
    completion_tokens_details: _Output | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Input | None = None
    output_tokens_details: _Output | None = None
    input_token_details: msgspec.Raw = _NONE
    output_token_details: msgspec.Raw = _NONE
    prompt_cache_hit_tokens: msgspec.Raw = _NONE
    cache_read_input_tokens: msgspec.Raw = _NONE
    cache_creation_input_tokens: msgspec.Raw = _NONE
    reasoning_tokens: msgspec.Raw = _NONE
    seconds: msgspec.Raw = _NONE
    server_tool_use: msgspec.Raw = _NONE
    server_tool_use_details: msgspec.Raw = _NONE
    num_search_queries: msgspec.Raw = _NONE
    service_tier: msgspec.Raw = _NONE
    speed: msgspec.Raw = _NONE


_NO_INPUT = _Input()
_NO_OUTPUT = _Output()
_OTHERS = tuple(name for name, kind in _Plain.__annotations__.items() if kind is msgspec.Raw)
_others_of = attrgetter(*_OTHERS)
_NO_OTHERS = (_NONE,) * len(_OTHERS)

_decode_plain = msgspec.json.Decoder(_Plain).decode
# Decimals, because a charge is money.
_decode = msgspec.json.Decoder(dict[str, object], float_hook=Decimal).decode


def parse_usage(
    raw: bytes | msgspec.Raw,
    *,
    trust_cost: bool = False,
    reasoning_in_total: bool = False,
    service_tier: str | None = None,
) -> Usage | None:
    """Read one `usage` object; None where it is not an object or counts nothing. See `normalise`."""
    if not trust_cost:
        try:
            usage = _read_plain(_decode_plain(raw), service_tier)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            usage = None
        if usage is not None:
            return usage
    report = read_report(raw)
    if report is None:
        return None
    return normalise(report, trust_cost=trust_cost, reasoning_in_total=reasoning_in_total, service_tier=service_tier)


def _read_plain(plain: _Plain, service_tier: str | None) -> Usage | None:
    """What `normalise` makes of a report with nothing unusual in it; None where something is.

    Every call ends in one of these: this way is five times as fast (`benchmarks/micro.py`).
    """
    inputs = plain.prompt_tokens if plain.prompt_tokens is not None else plain.input_tokens
    outputs = plain.completion_tokens if plain.completion_tokens is not None else plain.output_tokens
    into = plain.prompt_tokens_details or plain.input_tokens_details or _NO_INPUT
    out = plain.completion_tokens_details or plain.output_tokens_details or _NO_OUTPUT
    if inputs is None or outputs is None or into.cache_write_tokens:
        return None
    cached, heard, seen = into.cached_tokens or 0, into.audio_tokens or 0, into.image_tokens or 0
    reasoning, spoken, drawn = out.reasoning_tokens or 0, out.audio_tokens or 0, out.image_tokens or 0
    total = plain.total_tokens
    if (
        min(inputs, outputs, cached, heard, seen, reasoning, spoken, drawn) < 0
        or max(inputs, outputs) > COUNT_MAX
        or cached + heard + seen > inputs
        or reasoning + spoken + drawn > outputs
        or (total is not None and total != inputs + outputs)
    ):
        return None
    if _others_of(plain) != _NO_OTHERS:
        return None
    return Usage(
        input_tokens=inputs,
        output_tokens=outputs,
        input_cached_tokens=cached,
        input_audio_tokens=heard,
        input_image_tokens=seen,
        output_reasoning_tokens=reasoning,
        output_audio_tokens=spoken,
        output_image_tokens=drawn,
        service_tier=service_tier,
    )


def read_report(raw: bytes | msgspec.Raw) -> dict[str, object] | None:
    """A `usage` object as the provider wrote it, or None."""
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def normalise(
    report: Mapping[str, object],
    *,
    trust_cost: bool = False,
    reasoning_in_total: bool = False,
    service_tier: str | None = None,
) -> Usage | None:
    """A provider's report in our shape; None where it counts nothing.

    `trust_cost` takes what the provider says it charged. `reasoning_in_total` takes what the total has above the
    parts for reasoning that is named nowhere else. `service_tier` is what the answer says it was served as.
    """
    inputs = _first(report, "prompt_tokens", "input_tokens")
    outputs = _first(report, "completion_tokens", "output_tokens")
    total = _first(report, "total_tokens")
    seconds = report.get("seconds") if report.get("type") == "duration" else None
    if inputs is None and outputs is None and total is None and seconds is None:
        return None
    input_tokens = inputs if inputs is not None else max((total or 0) - (outputs or 0), 0)
    output_tokens = outputs or 0
    into = _part(report, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    out = _part(report, "completion_tokens_details", "output_tokens_details", "output_token_details")

    read = _first(report, "cache_read_input_tokens") or 0
    written = _first(report, "cache_creation_input_tokens") or 0
    if "prompt_tokens" not in report and (read or written) and not into:
        # Anthropic counts the two beside the input; here they are inside.
        input_tokens += read + written
    cached = _first(into, "cached_tokens") or _first(report, "prompt_cache_hit_tokens") or read
    written = _first(into, "cache_write_tokens") or written
    # Realtime counts audio that was kept both as kept and as audio.
    kept = _first(_part(into, "cached_tokens_details"), "audio_tokens") or 0
    heard = max(0, (_first(into, "audio_tokens") or 0) - kept)
    ttl = _part(into, "cache_write_tokens_details") or _part(report, "cache_creation")
    # Whatever is kept for longer than the shortest time has one price here.
    written_long = min(written, _first(ttl, "ttl_12h_tokens", "ephemeral_1h_input_tokens") or 0)
    reasoning = _first(out, "reasoning_tokens", "thinking_tokens") or _first(report, "reasoning_tokens") or 0
    if reasoning and total == input_tokens + output_tokens + reasoning:
        # xAI, and Gemini behind its OpenAI paths, leave reasoning out of the completion; their total gives it away.
        output_tokens += reasoning
    if reasoning_in_total and total is not None and (unnamed := total - input_tokens - output_tokens) > 0:
        output_tokens += unnamed
        reasoning = max(reasoning, unnamed)

    if report.get("speed") == "fast":
        # Anthropic's, with a price of its own beside those of its service tiers.
        service_tier = "fast"
    elif service_tier is None and isinstance(tier := report.get("service_tier"), str):
        service_tier = tier

    inside = _Carver(input_tokens)
    outside = _Carver(output_tokens)
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        input_cached_tokens=inside.carve(cached),
        input_cache_write_1h_tokens=inside.carve(written_long),
        input_cache_write_tokens=inside.carve(written - written_long),
        input_audio_tokens=inside.carve(heard),
        input_image_tokens=inside.carve(_first(into, "image_tokens") or 0),
        output_reasoning_tokens=outside.carve(reasoning),
        output_audio_tokens=outside.carve(_first(out, "audio_tokens") or 0),
        output_image_tokens=outside.carve(_first(out, "image_tokens") or 0),
        seconds=_seconds(seconds),
        searches=_searches(report),
        provider_cost_nanos=_cost(report) if trust_cost else None,
        service_tier=service_tier,
    )


def is_believable(usage: Usage, *, requests: int = 1) -> bool:
    """Whether a provider may be taken at its word that so many requests together used this."""
    return (
        usage.input_tokens + usage.output_tokens <= REPORT_TOKENS_MAX * requests
        and usage.characters <= REPORT_CHARACTERS_MAX * requests
        and usage.seconds <= REPORT_SECONDS_MAX * requests
        and usage.images + usage.searches <= REPORT_PIECES_MAX * requests
        and (usage.provider_cost_nanos or 0) <= REPORT_COST_NANOS_MAX * requests
    )


def count_searches(raw: bytes | msgspec.Raw) -> int:
    """Web searches in the `tool_usage` that the responses dialect puts beside `usage`."""
    report = read_report(raw) or {}
    return _first(_part(report, "web_search"), "num_requests") or 0


def find_usage(text: bytes, *, depths: tuple[int, ...] = (1,), name: bytes = b"usage") -> bytes | None:
    """The last object called `name` in the end of a long JSON text, without reading what is before it.

    `text` must run to the end of the JSON, its start may be cut anywhere. `depths` are how many objects are still
    open around the member: 1 at the top of a body, 2 inside the `response` of a terminal event. Inside a JSON string
    a quote has a backslash before it, so a match without one is a member, and counting brackets from there is sound.
    """
    for start in islice(_candidates(text, name), _CANDIDATES_MAX):
        end, depth = _balance(text, start)
        if depth in depths:
            return text[start:end]
    return None


def find_service_tier(text: bytes) -> str | None:
    """The last `service_tier` in the end of a JSON text, or None."""
    at = text.rfind(b'"service_tier"')
    if at <= 0 or text[at - 1] == 0x5C:
        return None
    tier = _TIER.match(text, at)
    return None if tier is None else tier[1].decode()


def _candidates(text: bytes, name: bytes) -> Iterator[int]:
    """Where the value of a member of this name opens, from the last to the first."""
    quoted = b'"%b"' % name
    at = len(text)
    while (at := text.rfind(quoted, 0, at)) > 0:
        opened = _VALUE.match(text, at + len(quoted))
        if opened is not None and text[at - 1] != 0x5C:
            yield opened.end() - 1


def _balance(text: bytes, start: int) -> tuple[int, int]:
    """Where the object at `start` ends, and how many brackets are closed after it up to the end of `text`."""
    masked = mask_escapes(text[start:])
    depth, end = 0, -1
    for token in islice(TOKEN.finditer(masked), _TOKENS_MAX):
        mark = token[0]
        if mark in OPENING:
            depth += 1
        elif mark in CLOSING:
            depth -= 1
            if depth == 0 and end < 0:
                end = start + token.end()
    return end, -depth


class _Carver:
    """Hands out parts of a total until nothing is left."""

    def __init__(self, total: int) -> None:
        self._left = total

    def carve(self, part: int) -> int:
        taken = min(part, self._left)
        self._left -= taken
        return taken


def _count(value: object) -> int | None:
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value) if abs(value) <= COUNT_MAX else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= COUNT_MAX:
        return value
    return None


def _first(report: Mapping[str, object], *names: str) -> int | None:
    """The first of these members that is a count."""
    for name in names:
        if (count := _count(report.get(name))) is not None:
            return count
    return None


def _part(report: Mapping[str, object], *names: str) -> dict[str, object]:
    """The first of these members that is an object, else an empty one."""
    for name in names:
        value = report.get(name)
        if isinstance(value, dict):
            return value
    return {}


def _seconds(value: object) -> float:
    if isinstance(value, int | Decimal) and not isinstance(value, bool) and 0 <= value <= COUNT_MAX:
        return float(value)
    return 0.0


def _searches(report: Mapping[str, object]) -> int:
    served = _part(report, "server_tool_use", "server_tool_use_details")
    return _first(served, "web_search_requests") or _first(report, "num_search_queries") or 0


def _cost(report: Mapping[str, object]) -> int | None:
    """Nano-dollars the provider says it charged, rounded up.

    OpenRouter's `cost` leaves out what a caller's own upstream key was charged; that is beside it.
    """
    ticks = _count(report.get("cost_in_usd_ticks"))
    if ticks is not None:
        return int((ticks / _TICKS_PER_NANO).to_integral_value(ROUND_CEILING))
    cost = report.get("cost")
    if isinstance(cost, dict):
        cost = cost.get("total_cost")
    parts = [cost]
    if report.get("is_byok") is True:
        parts.append(_part(report, "cost_details").get("upstream_inference_cost"))
    total: Decimal | None = None
    for part in parts:
        if isinstance(part, int | Decimal) and not isinstance(part, bool) and 0 <= part <= _COST_USD_MAX:
            total = (total or Decimal(0)) + part
    return None if total is None else int((total * _NANOS).to_integral_value(ROUND_CEILING))
