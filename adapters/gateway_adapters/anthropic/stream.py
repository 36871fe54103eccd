"""Anthropic's stream of events as a stream of chat completion chunks, event by event.

Rules:
- The usual event, a piece of text, takes a short way: its string is copied as it is, escapes and all, into a chunk
  whose other bytes were made once. `benchmarks/micro.py` has the figures.
- Nothing is sent before a block of the answer begins, so that an error until then still has a status of its own.
- State does not grow: of the block that is open, its kind and number, and at most `CITATIONS_MAX` of its sources; of
  the whole, what was reported.
- Every chunk is whole and ends in a blank line. An error event ends it all; it is not passed on, but told by
  `failure`.
- Usage has a chunk of its own, after the one that finishes and only where the caller asked.

Source: Anthropic's documentation, "Streaming messages"; OpenAI's API reference, "The chat completion chunk object".
"""

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from gateway.api import EventTooLong, Failure, FrameScanner, Usage, normalise, read_report
from gateway_adapters.anthropic import answer
from gateway_adapters.anthropic.answer import (
    CITATIONS_MAX,
    NOTHING,
    REASONING_FORMAT,
    Citation,
    StopDetails,
)
from gateway_adapters.anthropic.customs import CustomInput
from gateway_adapters.anthropic.names import read_name
from gateway_adapters.chat_answer import BYTES_PER_TOKEN, DONE, SSE_TYPE, UNREADABLE, unreadable, usage_object

PING: Final = b": ping\n\n"
#: With what nearly all events begin.
_USUAL: Final = b"event: content_block_delta\ndata: "
#: The length of an empty string.
_EMPTY_BYTES: Final = 2

_Kind = Literal["", "text", "thinking", "function", "custom", "json"]


class _Delta(msgspec.Struct, frozen=True, gc=False):
    """A piece of a block, or of the message; texts are left as they are written."""

    type: str = ""
    text: msgspec.Raw = NOTHING
    thinking: msgspec.Raw = NOTHING
    signature: msgspec.Raw = NOTHING
    partial_json: msgspec.Raw = NOTHING
    citation: Citation | None = None
    stop_reason: str | None = None
    stop_details: StopDetails | None = None


class _Piece(msgspec.Struct, frozen=True, gc=False):
    delta: _Delta


class _Block(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    id: str | None = None
    name: str | None = None
    text: msgspec.Raw = NOTHING
    data: str | None = None
    input: msgspec.Raw = NOTHING


class _Opening(msgspec.Struct, frozen=True, gc=False):
    id: str = ""
    model: str = ""
    usage: msgspec.Raw = NOTHING


class _Event(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    message: _Opening | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: msgspec.Raw = NOTHING


_decode_piece = msgspec.json.Decoder(_Piece).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


class ChunkTap:
    """The watcher of a stream that a chat client asked for. See `gateway.api.Tap`."""

    rewrites = True
    mid_event = False
    content_type = SSE_TYPE
    __slots__ = (
        "_blame",
        "_bytes",
        "_called",
        "_calls",
        "_chars",
        "_citations",
        "_cites",
        "_counts",
        "_created",
        "_custom",
        "_deltas",
        "_detail",
        "_details",
        "_end",
        "_finished",
        "_head",
        "_kind",
        "_label",
        "_lead",
        "_opening",
        "_ready",
        "_report",
        "_reported",
        "_scanner",
        "_silent",
        "_start",
        "_tail",
        "_text_lead",
        "_usage_asked",
        "complete",
        "failure",
    )

    def __init__(self, *, created: int, usage_asked: bool, counts: bool, blame: Callable[[bytes], Failure]) -> None:
        """`blame` says what an error event means. `counts` where sources have to be told by where they stand."""
        self.complete = False
        self.failure: Failure | None = None
        self._scanner = FrameScanner()
        self._created = created
        self._usage_asked = usage_asked
        self._counts = counts
        self._blame = blame
        #: True where an event may take the short way: the first chunk is out, and nothing is held.
        self._ready = False
        # The bytes that chunks have in common: all begin with `_head`, those with a delta with `_lead`.
        self._head = self._lead = self._text_lead = b""
        self._end = b',"usage":null}\n\n' if usage_asked else b"}\n\n"
        self._tail = b'},"logprobs":null,"finish_reason":null}]' + self._end
        #: The chunk that says who speaks, until something is said.
        self._opening = b""
        self._report: dict[str, object] = {}
        #: True once the report is the last one.
        self._reported = False
        self._finished = False
        # The block that is open: its kind, what its chunks begin with, whether it said nothing yet, its sources and
        # where its text begins.
        self._kind: _Kind = ""
        self._label = self._detail = b""
        self._silent = True
        self._custom = CustomInput()
        self._citations: list[Citation] = []
        self._start = 0
        # How many there were: calls, thoughts, sources, characters, pieces and their bytes.
        self._calls = self._details = self._cites = self._chars = self._deltas = self._bytes = 0
        self._called = False

    # -- what a tap is asked -------------------------------------------------------------------------------------

    @property
    def errored(self) -> bool:
        return self.failure is not None

    def feed(self, data: bytes) -> bytes:
        if not self._ready or data[-2:] != b"\n\n" or data.find(b"\r") >= 0:
            return self._feed_frames(data)
        if data.find(b"\n\n") == len(data) - 2:
            return self._whole(data[:-2])
        out: list[bytes] = []
        for block in data.split(b"\n\n"):
            if block:
                out.append(self._whole(block))
                if self.failure is not None:
                    break
        return b"".join(out)

    def end(self) -> bytes:
        """A last event without its blank line counts, if it is whole."""
        frame = self._scanner.finish() if self.failure is None else None
        return b"" if frame is None or not frame.data else self.event(frame.data)

    def usage(self) -> Usage | None:
        """What was reported; of a stream that was cut, what came until then, with the rest by estimate."""
        usage = normalise(self._report)
        if usage is None or self._reported:
            return usage
        if self._deltas == 0 and self.failure is not None:
            # It failed before it said anything.
            return None
        delivered = self.delivered()
        output_tokens = max(usage.output_tokens, delivered.output_tokens)
        return msgspec.structs.replace(usage, output_tokens=output_tokens, source=delivered.source)

    def delivered(self) -> Usage:
        tokens = max(self._deltas - 1, self._bytes // BYTES_PER_TOKEN) if self._deltas else 0
        return Usage(output_tokens=tokens, source="estimated" if self.complete else "partial")

    # -- reading -------------------------------------------------------------------------------------------------

    def _whole(self, block: bytes) -> bytes:
        """One event, without its blank line."""
        if block.startswith(_USUAL):
            try:
                delta = _decode_piece(block[len(_USUAL) :]).delta
            except UNREADABLE:
                return b""
            return self._piece(delta)
        return self._feed_frames(block + b"\n\n")

    def _feed_frames(self, data: bytes) -> bytes:
        """Any events, and parts of them."""
        if self.failure is not None:
            return b""
        scanner = self._scanner
        try:
            frames = scanner.feed(data)
        except EventTooLong:
            self.failure = unreadable("an event is too long")
            return b""
        out: list[bytes] = []
        for frame in frames:
            if frame.data:
                out.append(self.event(frame.data))
                if self.errored:
                    break
        self._ready = scanner.resting and bool(self._lead) and not self._opening and not self.errored
        return out[0] if len(out) == 1 else b"".join(out)

    def event(self, data: bytes) -> bytes:
        """The chunks for the data of one event; what can't be read says nothing."""
        try:
            event = _decode_event(data)
        except UNREADABLE:
            return b""
        match event.type:
            case "content_block_delta" if event.delta is not None:
                return self._opened(self._piece(event.delta))
            case "content_block_start" if event.content_block is not None:
                return self._opened(self._open_block(event.content_block))
            case "content_block_stop":
                return self._close_block()
            case "message_start":
                self._open(event.message or _Opening())
            case "message_delta":
                self._reported = self._merge(event.usage) or self._reported
                if event.delta is not None and event.delta.stop_reason is not None:
                    return self._opened(self._finish(event.delta))
            case "message_stop":
                return self._opened(self._close())
            case "ping" if self._lead and not self._opening:
                return PING
            case "error":
                self.failure = self._blame(data)
                self._ready = False
        return b""

    # -- the message ---------------------------------------------------------------------------------------------

    def _open(self, message: _Opening) -> None:
        self._merge(message.usage)
        named = b'"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,' % (
            _encode(message.id),
            self._created,
            _encode(message.model),
        )
        self._head = b"data: {" + named + b'"choices":['
        self._lead = self._head + b'{"index":0,"delta":{'
        self._text_lead = self._lead + b'"content":'
        self._opening = self._lead + b'"role":"assistant","content":"","refusal":null' + self._tail

    def _opened(self, chunks: bytes) -> bytes:
        """`chunks`, after the one that says who speaks if it is not out yet."""
        if not self._lead:
            # A stream without a beginning. What it says is no less worth.
            self._open(_Opening())
            return self._opening if not chunks else b""
        opening, self._opening = self._opening, b""
        return opening + chunks

    def _merge(self, raw: msgspec.Raw) -> bool:
        """What is reported late replaces what was before, member by member. False where nothing is."""
        report = read_report(raw)
        if report is not None:
            self._report.update((name, value) for name, value in report.items() if value is not None)
        return report is not None

    def _finish(self, delta: _Delta) -> bytes:
        self._finished = True
        out = b""
        if delta.stop_reason == "refusal" and delta.stop_details is not None and delta.stop_details.explanation:
            out = self._chunk(b'"refusal":', _encode(delta.stop_details.explanation))
        reason = answer.finish_reason(delta.stop_reason, called=self._called).encode("ascii")
        return out + self._lead + b'},"logprobs":null,"finish_reason":"' + reason + b'"}]' + self._end

    def _close(self) -> bytes:
        if self.complete:
            return b""
        out = b"" if self._finished else self._finish(_Delta())
        self.complete = True
        if self._usage_asked:
            usage = usage_object(self.usage() or self.delivered())
            out += self._head + b'],"usage":' + _encode(usage) + b"}\n\n"
        return out + DONE

    # -- a block -------------------------------------------------------------------------------------------------

    def _open_block(self, block: _Block) -> bytes:
        self._kind, self._silent = "", True
        match block.type:
            case "text":
                self._kind = "text"
                self._start = self._chars
                return self._text(block.text)
            case "thinking":
                self._kind = "thinking"
                self._detail = b'"reasoning_details":[{"type":"reasoning.text","index":%d' % self._details
                # Said once: clients put the pieces together by adding them up.
                self._label = self._detail + b',"format":"%b"' % REASONING_FORMAT.encode("ascii")
            case "redacted_thinking" if block.data:
                hidden = answer.hidden_thought(self._details, block.data)
                self._details += 1
                return self._chunk(b'"reasoning_details":', _encode([hidden]))
            case "tool_use":
                return self._open_call(block)
        return b""

    def _open_call(self, block: _Block) -> bytes:
        kind, name = read_name(block.name or "")
        self._kind = kind
        if kind == "json":
            return self._input(block.input)
        self._called = True
        call: dict[str, Any] = {"index": self._calls, "id": block.id or "", "type": kind}  # Any: the values of JSON
        if kind == "custom":
            call["custom"] = {"name": name, "input": ""}
            self._custom = CustomInput()
            self._label = b'"tool_calls":[{"index":%d,"custom":{"input":' % self._calls
        else:
            call["function"] = {"name": name, "arguments": ""}
            self._label = b'"tool_calls":[{"index":%d,"function":{"arguments":' % self._calls
        self._calls += 1
        return self._chunk(b'"tool_calls":', _encode([call])) + self._input(block.input)

    def _close_block(self) -> bytes:
        out = b""
        if self._silent and self._kind == "function":
            out = self._chunk(self._label, b'"{}"}}]')
        elif self._silent and self._kind == "json":
            out = self._text(msgspec.Raw(b'"{}"'))
        if self._citations:
            sources = [
                {"index": self._cites + number, **answer.annotation(citation, self._start, self._chars)}
                for number, citation in enumerate(self._citations)
            ]
            self._cites += len(sources)
            self._citations = []
            out += self._chunk(b'"annotations":', _encode(sources))
        self._kind = ""
        return out

    def _piece(self, delta: _Delta) -> bytes:
        match delta.type:
            case "text_delta":
                return self._text(delta.text)
            case "thinking_delta":
                return self._thought(delta.thinking)
            case "input_json_delta":
                return self._arguments(delta.partial_json)
            case "signature_delta":
                return self._signature(delta.signature)
            case "citations_delta":
                citation = delta.citation
                if citation is not None and citation.url and len(self._citations) < CITATIONS_MAX:
                    self._citations.append(citation)
        return b""

    def _text(self, text: msgspec.Raw) -> bytes:
        size = len(text)
        if size <= _EMPTY_BYTES:
            return b""
        self._deltas += 1
        self._bytes += size
        if self._counts:
            self._chars += len(_plain(text))
        return b"".join((self._text_lead, text, self._tail))

    def _thought(self, text: msgspec.Raw) -> bytes:
        if len(text) <= _EMPTY_BYTES:
            return b""
        self._deltas += 1
        self._bytes += len(text)
        if self._kind != "thinking":
            return b"".join((self._lead, b'"reasoning_content":', text, self._tail))
        label = self._thought_label()
        return b"".join(
            (self._lead, b'"reasoning_content":', text, b",", label, b',"text":', text, b"}]", self._tail)
        )

    def _signature(self, signature: msgspec.Raw) -> bytes:
        if len(signature) <= _EMPTY_BYTES or self._kind != "thinking":
            return b""
        label = self._thought_label()
        return b"".join((self._lead, label, b',"signature":', signature, b"}]", self._tail))

    def _thought_label(self) -> bytes:
        """With what the next piece of a thought begins. One that says nothing has no number: clients count them."""
        label = self._label
        if label is not self._detail:
            self._details += 1
            self._label = self._detail
        return label

    def _input(self, whole: msgspec.Raw) -> bytes:
        """The input of a call that came with its beginning, which is not how Anthropic does it."""
        raw = bytes(whole)
        return self._arguments(msgspec.Raw(_encode(raw.decode("utf-8", "replace")))) if len(raw) > 2 else b""

    def _arguments(self, text: msgspec.Raw) -> bytes:
        """A piece of a call's input, which is JSON within a string."""
        if len(text) <= _EMPTY_BYTES:
            return b""
        self._silent = False
        if self._kind == "json":
            return self._text(text)
        self._deltas += 1
        self._bytes += len(text)
        if self._kind == "function":
            return b"".join((self._lead, self._label, text, b"}}]", self._tail))
        if self._kind == "custom" and (piece := self._custom.feed(_plain(text))):
            return self._chunk(self._label, b'"' + piece.encode("utf-8", "replace") + b'"}}]')
        return b""

    def _chunk(self, label: bytes, value: bytes) -> bytes:
        return b"".join((self._lead, label, value, self._tail))


def _plain(text: msgspec.Raw) -> str:
    try:
        return _decode_text(text)
    except UNREADABLE:
        return ""
