"""A plain answer where a stream was asked for, made the stream it should have been.

Some servers answer `stream: true` with a completion in one piece: those that can't stream a certain model, or not
with tools, and caches in front of them. The official clients see an empty stream in that, without an error. So the
answer becomes the events that say the same: of each choice one chunk with everything in it and one with its finish,
the usage where the caller asked for it, and the mark. Members that the gateway has no name for stay where they were.

Events under the wrong name are seen to be events by their first byte, and pass as any stream does.

An answer that is an error becomes an error event, which the clients raise.
Source: OpenAI's API reference, "The chat completion object" and "The chat completion chunk object".
"""

from typing import Any, Final

import msgspec

from gateway.api import Call, Dialect, JSONTap, SSETap, Usage

SSE_TYPE: Final = b"text/event-stream; charset=utf-8"
DONE: Final = b"data: [DONE]\n\n"
#: What is kept of an answer until its end; a larger one never becomes a stream.
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
#: Whose streams this is about.
DIALECTS: Final = frozenset({Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS})

_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode  # Any: a provider's JSON


class UnstreamedTap:
    """Keeps a plain answer and gives a stream at its end."""

    rewrites = True
    content_type = SSE_TYPE
    failure = None
    __slots__ = ("_events", "_inner", "_parts", "_size", "_usage_wanted", "_whole")

    def __init__(self, call: Call, *, events: SSETap, whole: JSONTap) -> None:
        """`whole` watches the answer, or `events` should it be a stream after all."""
        self._whole = False
        self._events: SSETap | None = events
        self._inner: JSONTap | SSETap = whole
        self._usage_wanted = bool(call.peek.include_usage)
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def complete(self) -> bool:
        return self._whole or (self._inner is self._events and self._inner.complete)

    @property
    def errored(self) -> bool:
        return self._inner.errored

    @property
    def mid_event(self) -> bool:
        return self._inner is self._events and self._inner.mid_event

    def feed(self, data: bytes) -> bytes:
        if self._events is not None:
            if self._inner is not self._events and (first := data.lstrip()[:1]):
                if first == b"{":
                    self._events = None
                else:
                    self._inner = self._events
            if self._inner is self._events:
                return self._inner.feed(data)
        self._inner.feed(data)
        self._size += len(data)
        if self._size <= ANSWER_BYTES_MAX:
            self._parts.append(data)
        else:
            self._parts.clear()
        return b""

    def end(self) -> bytes:
        if self._inner is self._events:
            return self._inner.end()
        self._inner.end()
        try:
            answer = _decode(b"".join(self._parts))
        except _UNREADABLE:
            return b""
        self._parts.clear()
        if answer.get("error"):
            self._whole = True
            return _event(answer) + DONE
        choices = answer.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            return b""
        self._whole = True
        return b"".join(_events(answer, choices, usage_wanted=self._usage_wanted)) + DONE

    def usage(self) -> Usage | None:
        return self._inner.usage()

    def delivered(self) -> Usage:
        return self._inner.delivered()


def _events(answer: dict[str, Any], choices: list[dict[str, Any]], *, usage_wanted: bool) -> list[bytes]:
    usage = answer.pop("usage", None)
    is_chat = answer.get("object") != "text_completion"
    if is_chat:
        answer["object"] = "chat.completion.chunk"
    if usage_wanted:
        answer["usage"] = None
    events: list[bytes] = []
    for place, choice in enumerate(choices):
        choice.setdefault("index", place)
        message = choice.pop("message", None)
        if isinstance(message, dict):
            finish = choice.pop("finish_reason", None)
            begun = choice | {"delta": _delta(message), "finish_reason": None}
            ended = {"index": choice["index"], "delta": {}, "finish_reason": finish or "stop"}
            events += [_event(answer | {"choices": [begun]}), _event(answer | {"choices": [ended]})]
        else:
            events.append(_event(answer | {"choices": [choice]}))
    if usage_wanted and usage is not None:
        events.append(_event(answer | {"choices": [], "usage": usage}))
    return events


def _delta(message: dict[str, Any]) -> dict[str, Any]:
    """A message as one delta: its tool calls are numbered, as they are in a stream."""
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        numbered = [{"index": place} | call for place, call in enumerate(calls) if isinstance(call, dict)]
        message = message | {"tool_calls": numbered}
    return message


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + _encode(document) + b"\n\n"
