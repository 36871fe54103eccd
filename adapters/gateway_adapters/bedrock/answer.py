"""What Bedrock's Converse answers, as a chat completion.

Rules:
- Bedrock counts what it read from and wrote to its cache beside the input; here both are inside.
- The usage comes after the end of the message: the stream is closed when it was told, or at the end without it.
- An exception in the stream, a frame with a wrong checksum and an event that can't be read are failures. What came
  before stays whole.
- What a guardrail did (`trace`) passes on, beside the usage; a stream tells it only to those who ask for the usage.

Source: Bedrock's API reference, "Converse", "ConverseStream" and their data types.
"""

from typing import Final

import msgspec

from gateway.api import MESSAGE_CHARS_MAX, Call, Failure, ResponseHead, Usage
from gateway_adapters import failures
from gateway_adapters.chat_answer import UNREADABLE, Answer, Called, StreamTap, unreadable
from gateway_adapters.eventstream import DamagedStream, EventFrame, EventStreamParser

#: Whose thoughts are signed.
REASONING_FORMAT: Final = "anthropic-claude-v1"

_FINISHES: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
#: What an exception in a stream would have been as a status.
STATUSES: Final = {
    "internalServerException": 500,
    "modelStreamErrorException": 502,
    "modelTimeoutException": 504,
    "serviceUnavailableException": 503,
    "throttlingException": 429,
    "validationException": 400,
}
_NONE: Final = msgspec.Raw(b"")
_encode = msgspec.json.Encoder().encode


class _CacheDetail(msgspec.Struct, gc=False):
    inputTokens: int = 0  # noqa: N815 - Bedrock's names, here and below
    ttl: str = ""


class _Report(msgspec.Struct):
    inputTokens: int = 0  # noqa: N815
    outputTokens: int = 0  # noqa: N815
    cacheReadInputTokens: int | None = None  # noqa: N815
    cacheWriteInputTokens: int | None = None  # noqa: N815
    cacheDetails: list[_CacheDetail] | None = None  # noqa: N815

    def usage(self, tier: str | None) -> Usage:
        read, written = self.cacheReadInputTokens or 0, self.cacheWriteInputTokens or 0
        long = min(written, sum(detail.inputTokens for detail in self.cacheDetails or () if detail.ttl == "1h"))
        return Usage(
            input_tokens=self.inputTokens + read + written,
            output_tokens=self.outputTokens,
            input_cached_tokens=read,
            input_cache_write_tokens=written - long,
            input_cache_write_1h_tokens=long,
            service_tier=tier,
        )


class _Text(msgspec.Struct):
    text: str | None = None


class _ReasoningText(msgspec.Struct):
    text: str | None = None
    signature: str | None = None


class _Reasoning(msgspec.Struct):
    """A whole thought has `reasoningText`; a piece of one has the text or the signature at its top."""

    reasoningText: _ReasoningText | None = None  # noqa: N815
    redactedContent: str | None = None  # noqa: N815
    text: str | None = None
    signature: str | None = None


class _ToolUse(msgspec.Struct):
    """A whole call has an object for its input, a piece of one has text."""

    toolUseId: str = ""  # noqa: N815
    name: str = ""
    input: msgspec.Raw = _NONE


class _Cited(msgspec.Struct):
    content: list[_Text] = []
    citations: list[msgspec.Raw] = []


class _Block(msgspec.Struct):
    """A block of a message, or a piece of one."""

    text: str | None = None
    toolUse: _ToolUse | None = None  # noqa: N815
    reasoningContent: _Reasoning | None = None  # noqa: N815
    citationsContent: _Cited | None = None  # noqa: N815
    citation: msgspec.Raw = _NONE


class _Message(msgspec.Struct):
    content: list[_Block] = []


class _Output(msgspec.Struct):
    message: _Message


class _Tier(msgspec.Struct):
    type: str | None = None


class _Whole(msgspec.Struct):
    output: _Output
    stopReason: str = "end_turn"  # noqa: N815
    usage: _Report | None = None
    serviceTier: _Tier | None = None  # noqa: N815
    trace: msgspec.Raw = _NONE
    additionalModelResponseFields: msgspec.Raw = _NONE  # noqa: N815


class _Event(msgspec.Struct):
    """Any event of a stream: each has some of these."""

    contentBlockIndex: int = 0  # noqa: N815
    start: _Block | None = None
    delta: _Block | None = None
    stopReason: str | None = None  # noqa: N815
    usage: _Report | None = None
    serviceTier: _Tier | None = None  # noqa: N815
    trace: msgspec.Raw = _NONE
    message: str | None = None


_decode_whole = msgspec.json.Decoder(_Whole).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_text = msgspec.json.Decoder(str).decode


def read_answer(body: bytes) -> Answer:
    """A whole answer."""
    whole = _decode_whole(body)
    texts: list[str] = []
    thoughts: list[str] = []
    details: list[object] = []
    citations: list[object] = []
    calls: list[Called] = []
    for block in whole.output.message.content:
        if block.text is not None:
            texts.append(block.text)
        if block.citationsContent is not None:
            texts += [part.text or "" for part in block.citationsContent.content]
            citations += block.citationsContent.citations
        if block.toolUse is not None:
            arguments = bytes(block.toolUse.input).decode("utf-8", "replace") or "{}"
            calls.append(Called(block.toolUse.toolUseId, block.toolUse.name, arguments))
        if (thought := block.reasoningContent) is not None:
            if (told := thought.reasoningText) is not None:
                thoughts.append(told.text or "")
                if told.signature:
                    details.append(_detail(len(details), text=told.text or "", signature=told.signature))
            if thought.redactedContent:
                details.append(_hidden(len(details), thought.redactedContent))
    members: dict[str, object] = {}
    if details:
        members["reasoning_details"] = details
    if citations:
        members["citations"] = citations
    more = {"trace": whole.trace, "additionalModelResponseFields": whole.additionalModelResponseFields}
    return Answer(
        text="".join(texts) if texts or not calls else None,
        reasoning="".join(thoughts),
        calls=calls,
        finish=_FINISHES.get(whole.stopReason, "stop"),
        usage=None if whole.usage is None else whole.usage.usage(_tier(whole.serviceTier)),
        message_more=members,
        more={name: raw for name, raw in more.items() if bytes(raw) not in (b"", b"null")},
    )


class ConverseTap(StreamTap):
    """Bedrock's frames as chunks. Of a block only its kind and number are kept: they come one after the other."""

    def __init__(self, call: Call, head: ResponseHead, *, answer_id: str, secret: str = "") -> None:
        super().__init__(call, head, answer_id=answer_id)
        self._parser = EventStreamParser()
        self._secret = secret
        #: The number of the thought that is being told, and whether there is one.
        self._details = 0
        self._thinks = False
        #: Of the call that is being told, no input came yet.
        self._bare = False
        self._finished = False

    def feed(self, data: bytes) -> bytes:
        if self.failure is not None:
            return b""
        try:
            frames = self._parser.feed(data)
        except DamagedStream as error:
            out = b"".join([self._frame(frame) for frame in error.frames])
            self.failure = self.failure or unreadable(f"the event stream is damaged: {error}")
            return out
        if len(frames) == 1:
            return self._frame(frames[0])
        return b"".join([self._frame(frame) for frame in frames])

    def end(self) -> bytes:
        if self.failure is not None or not self._finished or self.complete:
            return b""
        self.complete = True
        return self._chunks.close(self._usage)

    def _frame(self, frame: EventFrame) -> bytes:
        if self.failure is not None:
            return b""
        kind = frame.text(":message-type")
        if kind != "event":
            self.failure = refused(frame, secret=self._secret)
            return b""
        try:
            event = _decode_event(frame.payload)
        except UNREADABLE as error:
            self.failure = unreadable(f"an event is not as it should be: {error}")
            return b""
        match frame.text(":event-type"):
            case "contentBlockDelta" if event.delta is not None:
                return self._delta(event.delta)
            case "messageStart":
                return self._chunks.role()
            case "contentBlockStart" if event.start is not None and (use := event.start.toolUse) is not None:
                self._calls += 1
                self._deltas += 1
                self._bare = True
                return self._chunks.call(self._calls - 1, use.toolUseId, use.name)
            case "contentBlockStop":
                return self._stop()
            case "messageStop":
                self._finished = True
                return self._chunks.finish(_FINISHES.get(event.stopReason or "", "stop"))
            case "metadata":
                return self._report(event)
        return b""

    def _delta(self, delta: _Block) -> bytes:
        if delta.text is not None:
            if not delta.text:
                return b""
            self._count(delta.text)
            return self._chunks.text(delta.text)
        if delta.toolUse is not None and bytes(delta.toolUse.input).startswith(b'"'):
            piece = _decode_text(delta.toolUse.input)
            if not piece or not self._calls:
                return b""
            self._bare = False
            self._count(piece)
            return self._chunks.arguments(self._calls - 1, piece)
        if delta.reasoningContent is not None:
            return self._thought(delta.reasoningContent)
        if bytes(delta.citation).startswith(b"{"):
            return self._chunks.delta(b'{"citations":[' + bytes(delta.citation) + b"]}")
        return b""

    def _thought(self, piece: _Reasoning) -> bytes:
        self._thinks = True
        if piece.text:
            self._count(piece.text)
            said = _encode(piece.text)
            return self._chunks.delta(
                b'{"reasoning_content":%b,"reasoning_details":[{"type":"reasoning.text","index":%d,"text":%b}]}'
                % (said, self._details, said)
            )
        if piece.signature:
            detail = _detail(self._details, signature=piece.signature)
            return self._chunks.delta(_encode({"reasoning_details": [detail]}))
        if piece.redactedContent:
            detail = _hidden(self._details, piece.redactedContent)
            return self._chunks.delta(_encode({"reasoning_details": [detail]}))
        return b""

    def _stop(self) -> bytes:
        if self._thinks:
            self._thinks = False
            self._details += 1
        if self._bare:
            self._bare = False
            return self._chunks.arguments(self._calls - 1, "{}")
        return b""

    def _report(self, event: _Event) -> bytes:
        if event.usage is not None:
            self._usage = event.usage.usage(_tier(event.serviceTier))
        if not self._finished or self.complete:
            return b""
        self.complete = True
        more: dict[str, object] = {"trace": event.trace} if bytes(event.trace) not in (b"", b"null") else {}
        return self._chunks.close(self._usage, more)


def refused(frame: EventFrame, *, secret: str) -> Failure:
    """What an exception in a stream means; an `error` frame has its words in its headers."""
    kind = frame.text(":exception-type") or frame.text(":error-code") or "exception"
    status = STATUSES.get(kind, 500)
    body = frame.payload or _encode({"message": frame.text(":error-message")})
    failure = failures.classify(ResponseHead(status, []), body, secret=secret, codes=(kind,))
    said = failure.message or "The provider failed to finish its answer."
    return msgspec.structs.replace(failure, status=status, message=said[:MESSAGE_CHARS_MAX])


def _detail(index: int, *, signature: str, text: str | None = None) -> dict[str, object]:
    detail: dict[str, object] = {"type": "reasoning.text", "index": index, "format": REASONING_FORMAT}
    if text is not None:
        detail["text"] = text
    return detail | {"signature": signature}


def _hidden(index: int, data: str) -> dict[str, object]:
    return {"type": "reasoning.encrypted", "index": index, "format": REASONING_FORMAT, "data": data}


def _tier(tier: _Tier | None) -> str | None:
    return None if tier is None else tier.type
