"""A provider's own list of its models, read: which there are, how much they take, what they cost, what they can do.

Rules:
- Everything is optional and loosely typed: lists are OpenAI's, with what each provider adds under names of its own.
  What is not of the expected kind is not there. Texts and numbers of models are bounded.
- A price is taken only where it says what a call costs: OpenRouter's `pricing`, in dollars for one token as decimal
  texts, which others copy; and `pricing` with `input` and `output`, in dollars for a million tokens. A price that
  holds at some hours alone is not taken.
- Zero is believed of names that end in `:free`, and of the answers of models that write none (embeddings): elsewhere
  it is what a list says of what is not sold by the token, and would be given away.
- What a model lacks is what the list denies it. What it is silent about is taken to work.

What is plausible is decided in `plausible.py`. Sources: the providers' references of "List models".
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from gateway.kernel.money import NANOS_PER_USD, Nanos, Price, Tier

MODELS_MAX: Final = 20_000
ID_CHARS_MAX: Final = 256
TEXT_CHARS_MAX: Final = 2000
WORDS_MAX: Final = 64
TOKENS_MAX: Final = 1_000_000_000
_MTOK: Final = 1_000_000
_FREE_SUFFIX: Final = ":free"
#: Models that answer with numbers.
_SILENT: Final = re.compile(r"embed|rerank|moderation")

#: OpenRouter's prices: its names, ours, and how many of what it is for.
_PER_UNIT: Final = {
    "prompt": ("input_mtok_nanos", _MTOK),
    "completion": ("output_mtok_nanos", _MTOK),
    "input_cache_read": ("input_cached_mtok_nanos", _MTOK),
    "input_cache_write": ("input_cache_write_mtok_nanos", _MTOK),
    "input_cache_write_1h": ("input_cache_write_1h_mtok_nanos", _MTOK),
    "internal_reasoning": ("output_reasoning_mtok_nanos", _MTOK),
    "audio": ("input_audio_mtok_nanos", _MTOK),
    "audio_output": ("output_audio_mtok_nanos", _MTOK),
    "web_search": ("search_nanos", 1),
    "request": ("request_nanos", 1),
}
_PER_MTOK: Final = {
    "input": "input_mtok_nanos",
    "output": "output_mtok_nanos",
    "cached_input": "input_cached_mtok_nanos",
}
#: Parts for which zero means that they cost what their plain kind costs.
_ZERO_IS_PLAIN: Final = frozenset(
    {"internal_reasoning", "audio", "audio_output", "input_cache_read", "input_cache_write", "input_cache_write_1h"}
)
_CONTEXT: Final = (
    *("context_length", "max_context_length", "context_window", "inputTokenLimit", "max_input_tokens"),
    *("max_model_len", "context_size"),
)
_OUTPUT: Final = ("max_completion_tokens", "outputTokenLimit", "max_output_tokens", "max_output_length")
_NEXT: Final = ("nextPageToken", "next_page_token")


class ListedModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model as its provider lists it."""

    id: str
    name: str = ""
    description: str = ""
    #: Unix time; 0 where it is not told.
    created_s: int = 0
    owner: str = ""
    context_tokens: int | None = None
    output_tokens_max: int | None = None
    price: Price | None = None
    #: Why the price is not used; see `plausible.py`.
    refused: str = ""
    #: `text`, `image`, `audio`, `file`, `video`.
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    #: Members of a request that it takes.
    parameters: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    tokenizer: str = ""
    hugging_face_id: str = ""
    moderated: bool | None = None


class ModelPage(msgspec.Struct, frozen=True):
    """One answer to the question which models there are."""

    models: tuple[ListedModel, ...]
    #: What to ask for next; empty where this was all.
    following: str = ""


def read_page(body: bytes) -> ModelPage:
    """Read an answer.

    Raises:
        ValueError: it is no list of models.
    """
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("the list of models is not JSON") from error
    listed = answer
    following = ""
    if isinstance(answer, dict):
        listed = answer.get("data", answer.get("models"))
        following = next((found for key in _NEXT if (found := _text(answer, key))), "")
        if answer.get("has_more") is True:
            following = _text(answer, "last_id")
    if not isinstance(listed, list):
        raise ValueError("the answer holds no list of models")  # noqa: TRY004  nobody called it wrongly
    models = {model.id: model for raw in listed[:MODELS_MAX] if (model := _model(raw)) is not None}
    return ModelPage(tuple(models.values()), following)


def _model(raw: Any) -> ListedModel | None:  # Any: whatever JSON holds
    if not isinstance(raw, dict):
        return None
    name = _text(raw, "id", ID_CHARS_MAX + 8) or _text(raw, "name", ID_CHARS_MAX + 8)
    model_id = name.removeprefix("models/")
    if not model_id or len(model_id) > ID_CHARS_MAX or not model_id.isprintable() or raw.get("active") is False:
        return None
    architecture, top = _table(raw, "architecture"), _table(raw, "top_provider")
    metadata = _table(raw, "metadata")
    created = raw.get("created")
    moderated = top.get("is_moderated")
    inputs = _words(architecture, "input_modalities") or _words(raw, "input_modalities")
    parameters = _words(raw, "supported_parameters")
    return ListedModel(
        id=model_id,
        name=next((text for key in ("display_name", "displayName", "name") if (text := _text(raw, key))), ""),
        description=_text(raw, "description", TEXT_CHARS_MAX),
        created_s=created if isinstance(created, int) and 0 < created < 2**40 else 0,
        owner=_text(raw, "owned_by"),
        context_tokens=_tokens((raw, metadata, top), _CONTEXT),
        output_tokens_max=_tokens((top, raw, metadata), _OUTPUT),
        price=_price(model_id, _table(raw, "pricing"), _words(architecture, "output_modalities")),
        inputs=inputs,
        outputs=_words(architecture, "output_modalities") or _words(raw, "output_modalities"),
        parameters=parameters,
        lacks=tuple(dict.fromkeys(_lacks(raw, inputs, parameters))),
        tokenizer=_text(architecture, "tokenizer"),
        hugging_face_id=_text(raw, "hugging_face_id"),
        moderated=moderated if isinstance(moderated, bool) else None,
    )


def _lacks(raw: Mapping[str, Any], inputs: tuple[str, ...], parameters: tuple[str, ...]) -> Iterator[str]:
    if parameters:
        if "tools" not in parameters:
            yield "tools"
        if "structured_outputs" not in parameters and "response_format" not in parameters:
            yield "json_schema"
    if inputs:
        yield from (lack for kind, lack in (("image", "vision"), ("audio", "audio")) if kind not in inputs)
    able = _table(raw, "capabilities")
    denied = {"tools": (able.get("function_calling"), raw.get("supports_tools"))}
    denied["vision"] = (able.get("vision"), raw.get("supports_image_input"))
    yield from (lack for lack, said in denied.items() if False in said)


def _price(model_id: str, pricing: Mapping[str, Any], outputs: tuple[str, ...]) -> Price | None:
    """The price that a list gives; None where it gives none, or one that would not say what a call costs."""
    try:
        if isinstance(pricing.get("prompt"), str):
            parts = _per_unit(pricing)
            tiers = _tiers(pricing, parts)
            price = None if tiers is None else msgspec.convert({**parts, "tiers": tiers}, Price)
        elif pricing.keys() >= {"input", "output"}:
            price = msgspec.convert(
                {ours: _nanos(pricing[theirs], 1) for theirs, ours in _PER_MTOK.items() if theirs in pricing}, Price
            )
        else:
            return None
    except (ValueError, InvalidOperation):
        return None
    if price is None or model_id.endswith(_FREE_SUFFIX):
        return price
    silent = "text" not in outputs if outputs else _SILENT.search(model_id.lower()) is not None
    if price.input_mtok_nanos and (price.output_mtok_nanos or silent):
        return price
    # Paid for by the request alone.
    return price if price.request_nanos and not (price.input_mtok_nanos or price.output_mtok_nanos) else None


def _per_unit(pricing: Mapping[str, Any]) -> dict[str, Nanos]:
    parts: dict[str, Nanos] = {}
    for theirs, (ours, units) in _PER_UNIT.items():
        if pricing.get(theirs) is None:
            continue
        nanos = _nanos(pricing[theirs], units)
        if nanos or theirs not in _ZERO_IS_PLAIN:
            parts[ours] = nanos
    return parts


def _tiers(pricing: Mapping[str, Any], base: Mapping[str, Nanos]) -> tuple[Tier, ...] | None:
    """Other prices for larger prompts; None where prices depend on more than that."""
    overrides = pricing.get("overrides") or []
    if not isinstance(overrides, list):
        return None
    tiers: dict[int, Tier] = {}
    for override in overrides:
        if not isinstance(override, dict) or any(key.startswith("utc_") for key in override):
            return None
        above = override.get("min_prompt_tokens")
        if not isinstance(above, int) or not 0 <= above <= TOKENS_MAX:
            return None
        price = msgspec.convert({**base, **_per_unit(override)}, Price)
        tiers[above] = Tier(above_tokens=above, price=price)
    return tuple(tiers[above] for above in sorted(tiers))


def _nanos(value: Any, units: int) -> Nanos:
    """Nanos for `units` of what costs `value` dollars each.

    Raises:
        ValueError, InvalidOperation: it is no price. Below zero is how lists say that it depends.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("not a number")  # noqa: TRY004
    # The shortest text that stands for a float is what was written.
    usd = Decimal(value if isinstance(value, str) else repr(value))
    if not usd.is_finite() or not 0 <= usd * units <= 1_000_000:
        raise ValueError("no price")
    return int((usd * units * NANOS_PER_USD).to_integral_value())


def _text(table: Mapping[str, Any], key: str, most: int = ID_CHARS_MAX) -> str:
    value = table.get(key)
    return value[:most] if isinstance(value, str) else ""


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key)
    return value if isinstance(value, dict) else {}


def _words(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key)
    if not isinstance(value, list):
        return ()
    return tuple(word for word in value[:WORDS_MAX] if isinstance(word, str) and len(word) <= WORDS_MAX)


def _tokens(tables: tuple[Mapping[str, Any], ...], keys: tuple[str, ...]) -> int | None:
    for table in tables:
        for key in keys:
            value = table.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= TOKENS_MAX:
                return value
    return None
