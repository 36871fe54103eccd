"""A chat completion as it is answered, for adapters whose providers say it in other words.

Rules:
- A stream is turned event by event. What is kept of it is a few counts and the last report, whatever its length.
- Only whole events leave. All chunks of an answer have one id, one time, one model; the usage comes in a chunk of its
  own after the finish, and only to those who asked for it.
- An error in a good answer becomes a `Failure`; what was returned before it stays whole.
- What can't be read is an error of the provider's, never an empty answer.

`created` is the time that the provider's head gives, else the one at which it was here. Nothing here reads a clock.
Source: OpenAI's API reference, "The chat completion object" and "The chat completion chunk object".
"""

import email.utils
from collections.abc import Callable
from typing import Final

import msgspec

from gateway.api import Call, Failure, ResponseHead, Usage

JSON_TYPE: Final = b"application/json"
SSE_TYPE: Final = b"text/event-stream; charset=utf-8"
DONE: Final = b"data: [DONE]\n\n"
#: A plain answer larger than this is not translated.
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
BYTES_PER_TOKEN: Final = 4

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encode = msgspec.json.Encoder().encode


class Called(msgspec.Struct, gc=False):
    """A tool call, its arguments as JSON text."""

    id: str
    name: str
    arguments: str


class Answer(msgspec.Struct, kw_only=True):
    """A whole answer, as every provider's can be told. `more` are members that only this provider has."""

    id: str = ""
    text: str | None = None
    reasoning: str = ""
    calls: list[Called] = []
    finish: str = "stop"
    usage: Usage | None = None
    #: Of the message, and of the completion.
    message_more: dict[str, object] = {}
    more: dict[str, object] = {}


class BrokenAnswer(Exception):
    """A good status with an answer that is none."""

    def __init__(self, failure: Failure, usage: Usage | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.usage = usage


def unreadable(detail: str) -> Failure:
    """The failure that an answer is which does not say what the provider's reference says."""
    return Failure(
        blame="provider", detail=detail, message="The provider's answer could not be understood.", status=502
    )


def created_s(head: ResponseHead) -> int:
    """When the provider answered, seconds since 1970; 0 where nobody says."""
    date = head.header(b"date")
    if date is not None:
        try:
            return max(int(email.utils.parsedate_to_datetime(date.decode("latin-1")).timestamp()), 0)
        except (ValueError, TypeError, OverflowError):
            pass  # It is no date.
    return int(head.received_s)


def usage_object(usage: Usage) -> dict[str, object]:
    """A report as OpenAI writes it: all parts are inside their totals."""
    written = usage.input_cache_write_tokens + usage.input_cache_write_1h_tokens
    into = {"cached_tokens": usage.input_cached_tokens, "cache_write_tokens": written}
    out = {"reasoning_tokens": usage.output_reasoning_tokens}
    if usage.input_audio_tokens:
        into["audio_tokens"] = usage.input_audio_tokens
    if usage.output_audio_tokens:
        out["audio_tokens"] = usage.output_audio_tokens
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": into,
        "completion_tokens_details": out,
    }


class ChunkWriter:
    """Writes the events of one stream. The usual one, a piece of text, is a template with the text in it."""

    __slots__ = ("_asked", "_before", "_between", "_finish", "_index", "_model", "_tail")

    def __init__(self, *, answer_id: str, created: int, model: str, usage: bool, index: int = 0) -> None:
        #: Which of several answers it is.
        self._index = index
        self._asked = usage
        self._before = b""
        self._model = _encode(model)
        self.name(answer_id, created)
        self._tail = b',"usage":null}\n\n' if usage else b"}\n\n"
        self._between = b',"finish_reason":null}]' + self._tail
        self._finish = b'{},"finish_reason":'

    def name(self, answer_id: str, created: int) -> None:
        """What the answer is called, where the stream says so itself."""
        self._before = (
            b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[{"index":%d,"delta":'
        ) % (_encode(answer_id), created, self._model, self._index)

    def delta(self, delta: bytes) -> bytes:
        """A chunk with this JSON as its delta."""
        return self._before + delta + self._between

    def role(self) -> bytes:
        return self.delta(b'{"role":"assistant","content":""}')

    def text(self, text: str) -> bytes:
        return self._before + b'{"content":' + _encode(text) + b"}" + self._between

    def reasoning(self, text: str) -> bytes:
        return self.delta(b'{"reasoning_content":' + _encode(text) + b"}")

    def call(self, index: int, call_id: str, name: str, arguments: str = "") -> bytes:
        return self.delta(
            b'{"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}]}'
            % (index, _encode(call_id), _encode(name), _encode(arguments))
        )

    def arguments(self, index: int, piece: str) -> bytes:
        return self.delta(b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (index, _encode(piece)))

    def finish(self, reason: str) -> bytes:
        return self._before + self._finish + _encode(reason) + b"}]" + self._tail

    def close(self, usage: Usage | None, more: dict[str, object] | None = None) -> bytes:
        """The usage chunk for a caller who asked, and the mark of the end. `more` are members beside the usage."""
        if usage is None or not self._asked:
            return DONE
        head = self._before.partition(b'"choices":')[0]
        rest = b"".join(b"," + _encode(name) + b":" + _encode(value) for name, value in (more or {}).items())
        return head + b'"choices":[],"usage":' + _encode(usage_object(usage)) + rest + b"}\n\n" + DONE


class TranslatingTap:
    """What all taps have in common that turn a provider's answer into a chat completion."""

    rewrites = True
    #: Only whole events leave.
    mid_event = False
    content_type: bytes | None = JSON_TYPE

    def __init__(self, call: Call, head: ResponseHead, *, answer_id: str = "") -> None:
        self.complete = False
        self.failure: Failure | None = None
        self._usage: Usage | None = None
        self._id = f"chatcmpl-{answer_id or call.id}"
        self._created = created_s(head)
        self._model = call.model
        self._asked = bool(call.peek.include_usage)

    @property
    def errored(self) -> bool:
        return self.failure is not None

    def usage(self) -> Usage | None:
        return self._usage

    def delivered(self) -> Usage:
        return Usage(source="estimated" if self.complete else "partial")


class StreamTap(TranslatingTap):
    """For a stream: counts what passes. Subclasses read the events in `feed`."""

    content_type = SSE_TYPE

    def __init__(self, call: Call, head: ResponseHead, *, answer_id: str = "") -> None:
        super().__init__(call, head, answer_id=answer_id)
        self._chunks = ChunkWriter(answer_id=self._id, created=self._created, model=self._model, usage=self._asked)
        self._calls = 0
        self._deltas = 0
        self._text_chars = 0

    def delivered(self) -> Usage:
        tokens = max(self._deltas - 1, self._text_chars // BYTES_PER_TOKEN, min(self._deltas, 1))
        return Usage(output_tokens=tokens, source="estimated" if self.complete else "partial")

    def _count(self, text: str) -> None:
        self._deltas += 1
        self._text_chars += len(text)


class GatheredTap(TranslatingTap):
    """For a plain answer: kept until its end. Subclasses write the caller's answer in `_written`."""

    def __init__(self, call: Call, head: ResponseHead, *, answer_id: str = "") -> None:
        super().__init__(call, head, answer_id=answer_id)
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size > ANSWER_BYTES_MAX:
            self._parts.clear()
            self.failure = unreadable("the answer is larger than what is translated")
        else:
            self._parts.append(data)
        return b""

    def end(self) -> bytes:
        if self.failure is not None:
            return b""
        body = b"".join(self._parts)
        self._parts.clear()
        try:
            written = self._written(body)
        except UNREADABLE as error:
            self.failure = unreadable(f"the answer is not as it should be: {error}")
            return b""
        except BrokenAnswer as error:
            self.failure, self._usage = error.failure, error.usage
            return b""
        self.complete = True
        return written

    def _written(self, body: bytes) -> bytes:
        raise NotImplementedError


class WholeTap(GatheredTap):
    """For a chat answer that is no stream: written as a completion, or as a stream for who asked for one."""

    def __init__(
        self, call: Call, head: ResponseHead, read: Callable[[bytes], Answer], *, answer_id: str = ""
    ) -> None:
        super().__init__(call, head, answer_id=answer_id)
        self._read = read
        self._stream = call.peek.stream
        self._text_chars = 0
        if self._stream:
            self.content_type = SSE_TYPE

    def _written(self, body: bytes) -> bytes:
        answer = self._read(body)
        self._usage = answer.usage
        self._text_chars = len(answer.text or "") + sum(len(call.arguments) for call in answer.calls)
        if answer.id:
            self._id = f"chatcmpl-{answer.id}"
        return self._events(answer) if self._stream else self._completion(answer)

    def delivered(self) -> Usage:
        source = super().delivered().source
        return Usage(output_tokens=self._text_chars // BYTES_PER_TOKEN, source=source)

    def _completion(self, answer: Answer) -> bytes:
        message: dict[str, object] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in answer.calls
            ]
        choice = {
            "index": 0,
            "message": message | answer.message_more,
            "logprobs": None,
            "finish_reason": answer.finish,
        }
        completion: dict[str, object] = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
        }
        if answer.usage is not None:
            completion["usage"] = usage_object(answer.usage)
        return _encode(completion | answer.more)

    def _events(self, answer: Answer) -> bytes:
        chunks = ChunkWriter(answer_id=self._id, created=self._created, model=self._model, usage=self._asked)
        events = [chunks.role()]
        if answer.reasoning:
            events.append(chunks.reasoning(answer.reasoning))
        if answer.text:
            events.append(chunks.text(answer.text))
        if answer.message_more:
            events.append(chunks.delta(_encode(answer.message_more)))
        events += [chunks.call(at, call.id, call.name, call.arguments) for at, call in enumerate(answer.calls)]
        events += [chunks.finish(answer.finish), chunks.close(answer.usage, answer.more)]
        return b"".join(events)
