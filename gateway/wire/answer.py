"""What an answer says of itself: a plain body, or one event of a stream, in any of the OpenAI-like dialects.

Only the members that tell how it went are looked at; the rest is skipped without being built. What can't be read says
nothing: nothing here raises on what a provider sends, except `decode` itself (`UNREADABLE`).
"""

import msgspec

from gateway.wire.dialects import COUNT_DIALECTS, UNIT_DIALECTS, Dialect
from gateway.wire.usage import Usage, count_searches, parse_usage

#: Bytes of text to a token where nothing better is known.
BYTES_PER_TOKEN = 4
#: Their streams need no end that is known here: one that ends cleanly is whole.
LOOSE = UNIT_DIALECTS | {Dialect.OPENAI_OTHER}
#: Their answers are no text that could be counted.
NO_TEXT = LOOSE - {Dialect.OPENAI_TRANSCRIPTIONS} | {Dialect.OPENAI_EMBEDDINGS} | COUNT_DIALECTS
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

EMPTY = msgspec.Raw(b"")
_TEXT_MEMBERS = ("content", "reasoning_content", "reasoning", "refusal", "text", "thinking", "partial_json")
_FALSY = frozenset({b"", b"null", b"false", b'""', b"{}", b"[]", b"0"})


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The members of a chunk or body that say how it went; the rest is skipped without being built."""

    type: msgspec.Raw = EMPTY
    choices: msgspec.Raw = EMPTY
    usage: msgspec.Raw = EMPTY
    error: msgspec.Raw = EMPTY
    response: msgspec.Raw = EMPTY
    x_groq: msgspec.Raw = EMPTY
    service_tier: msgspec.Raw = EMPTY
    tool_usage: msgspec.Raw = EMPTY
    message: msgspec.Raw = EMPTY


decode = msgspec.json.Decoder(Answer).decode
_decode_any = msgspec.json.Decoder().decode


def usage_of(answer: Answer, *, trust_cost: bool, reasoning_in_total: bool) -> Usage | None:
    """The usage in a chunk or body: at its top, inside `response`, or where Groq puts it."""
    tier = None if answer.service_tier is EMPTY else _text(answer.service_tier)
    usage = None
    if answer.usage is not EMPTY:
        usage = parse_usage(
            answer.usage, trust_cost=trust_cost, reasoning_in_total=reasoning_in_total, service_tier=tier
        )
    if usage is None and bytes(answer.response).startswith(b"{"):
        return usage_of(decode(answer.response), trust_cost=trust_cost, reasoning_in_total=reasoning_in_total)
    if usage is None and answer.x_groq is not EMPTY:
        usage = parse_usage(member(answer.x_groq, "usage"), trust_cost=trust_cost, service_tier=tier)
    if usage is not None and answer.tool_usage is not EMPTY and (searches := count_searches(answer.tool_usage)):
        return msgspec.structs.replace(usage, searches=searches)
    return usage


def is_truthy(raw: msgspec.Raw) -> bool:
    return bytes(raw) not in _FALSY


def is_empty_list(raw: msgspec.Raw) -> bool:
    text = bytes(raw)
    return text.startswith(b"[") and not text[1:-1].strip()


def member(raw: msgspec.Raw, name: str) -> msgspec.Raw:
    """A member of an object that `Answer` knows the name of, or nothing."""
    if not bytes(raw).startswith(b"{"):
        return EMPTY
    found: msgspec.Raw = getattr(decode(raw), name)
    return found


def event_text_bytes(data: bytes) -> int:
    """How many bytes of generated text an event carries, in the places where the dialects put it."""
    try:
        event = _decode_any(data)
    except UNREADABLE:
        return 0
    if not isinstance(event, dict):
        return 0
    total = _length(event.get("delta"))
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            total += _length(choice.get("text")) + _length(choice.get("delta"))
    return total


def answer_text_bytes(body: bytes) -> int:
    """How many bytes of generated text a plain answer carries; 0 where it is cut, or has none in these places."""
    try:
        answer = _decode_any(body)
    except UNREADABLE:
        return 0
    if not isinstance(answer, dict):
        return 0
    choices, items = answer.get("choices"), answer.get("output")
    total = sum(_length(choice.get("text")) + _length(choice.get("message")) for choice in _dicts(choices))
    for item in _dicts(items):
        total += _length(item.get("arguments"))
        total += sum(_length(part) for part in (*_dicts(item.get("content")), *_dicts(item.get("summary"))))
    return total


def _text(raw: msgspec.Raw) -> str | None:
    if not bytes(raw).startswith(b'"'):
        return None
    try:
        return msgspec.json.decode(raw, type=str)
    except UNREADABLE:
        return None


def _dicts(values: object) -> list[dict[str, object]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _length(value: object) -> int:
    """Bytes of a text, or of the texts in a delta."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, dict):
        total = sum(_length(value.get(name)) for name in _TEXT_MEMBERS)
        calls = value.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict) and isinstance(call.get("function"), dict):
                total += _length(call["function"].get("arguments"))
        return total
    return 0
