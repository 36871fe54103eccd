"""Anthropic's message as a chat completion: whole, as plain JSON.

What both ways of answering have in common stands here too: finish reasons, usage, the status of an error.

Sources: Anthropic's API reference, "Messages" and "Errors"; OpenAI's, "The chat completion object".
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from gateway.api import Usage, normalise, read_report
from gateway_adapters.anthropic.names import CUSTOM_INPUT, read_name
from gateway_adapters.chat_answer import usage_object

NOTHING: Final = msgspec.Raw(b"")
#: Of OpenRouter's, so that its clients know what they hold.
REASONING_FORMAT: Final = "anthropic-claude-v1"
#: Sources of one passage that are told.
CITATIONS_MAX: Final = 64

FINISH_REASONS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STATUSES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}

_encode = msgspec.json.Encoder().encode


class Citation(msgspec.Struct, frozen=True, gc=False):
    """Where a passage comes from; only what lies on the web has a place in a chat completion."""

    url: str | None = None
    title: str | None = None


class Block(msgspec.Struct, frozen=True):
    """A block of an answer."""

    type: str
    text: str | None = None
    citations: list[Citation] | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str = ""
    name: str = ""
    input: msgspec.Raw = NOTHING


class StopDetails(msgspec.Struct, frozen=True, gc=False):
    explanation: str | None = None


class ErrorKind(msgspec.Struct, frozen=True, gc=False):
    type: str = ""


class Message(msgspec.Struct, frozen=True):
    """An answer, or the error that it turned out to be."""

    type: str = ""
    id: str = ""
    model: str = ""
    content: list[Block] = []
    stop_reason: str | None = None
    stop_details: StopDetails | None = None
    usage: msgspec.Raw = NOTHING
    error: ErrorKind | None = None


decode_message = msgspec.json.Decoder(Message).decode
_decode_custom = msgspec.json.Decoder(dict[str, str]).decode


def finish_reason(stop_reason: str | None, *, called: bool) -> str:
    """OpenAI's word for why it ended. `called` where a tool of the caller's was."""
    reason = FINISH_REASONS.get(stop_reason or "", "stop")
    return "stop" if reason == "tool_calls" and not called else reason


def status_of(kind: str) -> int:
    """The status that an error of this type has."""
    return _STATUSES.get(kind, 500)


def annotation(citation: Citation, start: int, end: int) -> dict[str, Any]:  # Any: as above
    """OpenAI's form of a source; the passage is from `start` up to `end`, in characters of the content."""
    source = {"url": citation.url, "title": citation.title or "", "start_index": start, "end_index": end}
    return {"type": "url_citation", "url_citation": source}


def completion(message: Message, *, created: int) -> bytes:
    """The chat completion that says what `message` says."""
    texts: list[str] = []
    thoughts: list[str] = []
    details: list[dict[str, Any]] = []  # Any: as above
    calls: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    length = 0
    for block in message.content:
        match block.type:
            case "text":
                text = block.text or ""
                sources = (block.citations or ())[:CITATIONS_MAX]
                annotations += [annotation(each, length, length + len(text)) for each in sources if each.url]
                texts.append(text)
                length += len(text)
            case "thinking":
                thoughts.append(block.thinking or "")
                details.append(thought(len(details), text=block.thinking or "", signature=block.signature))
            case "redacted_thinking":
                details.append(hidden_thought(len(details), block.data or ""))
            case "tool_use":
                kind, name = read_name(block.name)
                if kind == "json":
                    texts.append(bytes(block.input or b"{}").decode("utf-8", "replace"))
                else:
                    calls.append(_call(block, kind, name))
    content = "".join(texts)
    reply: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
    explained = message.stop_details.explanation if message.stop_details is not None else None
    reply["refusal"] = explained if message.stop_reason == "refusal" else None
    if thoughts and any(thoughts):
        reply["reasoning_content"] = "".join(thoughts)
    if details:
        reply["reasoning_details"] = details
    if calls:
        reply["tool_calls"] = calls
    if annotations:
        reply["annotations"] = annotations
    answer: dict[str, Any] = {
        "id": message.id,
        "object": "chat.completion",
        "created": created,
        "model": message.model,
        "choices": [
            {
                "index": 0,
                "message": reply,
                "logprobs": None,
                "finish_reason": finish_reason(message.stop_reason, called=bool(calls)),
            }
        ],
    }
    usage = report_of(message)
    if usage is not None:
        answer["usage"] = usage_object(usage)
    return _encode(answer)


def report_of(message: Message) -> Usage | None:
    """What a message reports."""
    report = read_report(message.usage)
    return None if report is None else normalise(report)


def thought(index: int, *, text: str, signature: str | None) -> dict[str, Any]:  # Any: as above
    """What the model thought, such that it can be told again."""
    detail: dict[str, Any] = {"type": "reasoning.text", "index": index, "format": REASONING_FORMAT, "text": text}
    if signature:
        detail["signature"] = signature
    return detail


def hidden_thought(index: int, data: str) -> dict[str, Any]:  # Any: as above
    return {"type": "reasoning.encrypted", "index": index, "format": REASONING_FORMAT, "data": data}


def _call(block: Block, kind: str, name: str) -> dict[str, Any]:  # Any: as above
    if kind == "custom":
        try:
            text = _decode_custom(block.input).get(CUSTOM_INPUT, "")
        except (msgspec.DecodeError, UnicodeDecodeError):
            text = bytes(block.input).decode("utf-8", "replace")
        return {"id": block.id, "type": "custom", "custom": {"name": name, "input": text}}
    arguments = msgspec.json.format(block.input or b"{}", indent=-1).decode("utf-8", "replace")
    return {"id": block.id, "type": "function", "function": {"name": name, "arguments": arguments}}


def events_of(message: Message) -> Iterator[bytes]:
    """The data of the events that a stream of `message` would have brought."""
    opening = {"id": message.id, "model": message.model, "usage": message.usage or None}
    yield _encode({"type": "message_start", "message": opening})
    for index, block in enumerate(message.content):
        empty = {"type": block.type, "id": block.id, "name": block.name, "data": block.data}
        yield _encode({"type": "content_block_start", "index": index, "content_block": empty})
        for delta in _deltas(block):
            yield _encode({"type": "content_block_delta", "index": index, "delta": delta})
        yield _encode({"type": "content_block_stop", "index": index})
    ending = {"stop_reason": message.stop_reason, "stop_details": message.stop_details}
    yield _encode({"type": "message_delta", "delta": ending, "usage": message.usage or None})
    yield _encode({"type": "message_stop"})


def _deltas(block: Block) -> Iterator[dict[str, Any]]:  # Any: as above
    for citation in block.citations or ():
        yield {"type": "citations_delta", "citation": citation}
    if block.text:
        yield {"type": "text_delta", "text": block.text}
    if block.thinking:
        yield {"type": "thinking_delta", "thinking": block.thinking}
    if block.signature:
        yield {"type": "signature_delta", "signature": block.signature}
    if block.type == "tool_use":
        text = bytes(block.input).decode("utf-8", "replace")
        yield {"type": "input_json_delta", "partial_json": "" if text == "{}" else text}
