"""Anthropic's messages, for providers that speak chat completions.

The request is in `messages_request.py`, the stream's content blocks are in `blocks.py`. Here: the answer, plain or
streamed.

Rules:
- `message_start` comes first, with an estimate of the input, which some clients show while the answer is under way;
  the figures that are charged stand in `message_delta`, which is written when they are known.
- Reasoning becomes a thinking block, with the signature that its provider gave it, if any. What another maker than
  Anthropic signed or sealed stands in a block's place for such things, to be sent back (`reasoning.py`); that is for
  callers who asked for thinking, as others may not know such blocks.
- Where the answer calls a tool, the stop reason is `tool_use`, whatever the provider calls it.

Source: https://platform.claude.com/docs/en/api/messages and .../messages-streaming, as the official SDK reads them.
"""

from typing import Final

import msgspec

from gateway.api import ResponseHead, Tap
from gateway.bridges.blocks import Blocks, call_id
from gateway.bridges.bridge import NO_EXTENSIONS, Opened
from gateway.bridges.calls import CallNumbers, TooManyCalls
from gateway.bridges.hub import UNREADABLE, Choice, Chunk, Delta, calls_of, delta_of, encode
from gateway.bridges.messages_request import chat_of_messages, wants_thinking
from gateway.bridges.reasoning import (
    Detail,
    detail_of,
    is_text,
    of_claude,
    read_details,
    seal_details,
    secret_of,
    secrets_in,
)
from gateway.bridges.taps import BodyTap, StreamTap, Unwritable
from gateway.exchange import Call
from gateway.wire.dialects import Dialect
from gateway.wire.estimate import estimate_input_tokens
from gateway.wire.usage import Usage

_STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "model_length": "model_context_window_exceeded",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_END_TURN: Final = "end_turn"
_END: Final = b'event: message_delta\ndata: %b\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder().decode


class Messages:
    """From Anthropic's messages to the hub and back."""

    dialect = Dialect.ANTHROPIC_MESSAGES
    hub = Dialect.OPENAI_CHAT

    def open(self, call: Call, extensions: frozenset[str] = NO_EXTENSIONS) -> Opened:
        return chat_of_messages(call, extensions)

    def tap(self, call: Call, head: ResponseHead, inner: Tap) -> Tap:
        input_tokens = estimate_input_tokens(call.body)
        seals = wants_thinking(call)
        if call.peek.stream:
            writer = MessageStream(call.id, model=call.model, input_tokens=input_tokens, seals=seals)
            return StreamTap(inner, writer, input_tokens=input_tokens)
        return BodyTap(inner, MessageBody(call.id, model=call.model, seals=seals), input_tokens=input_tokens)


class MessageStream:
    """Writes the events of one message."""

    __slots__ = (
        "_blocks",
        "_finish",
        "_id",
        "_input_tokens",
        "_model",
        "_numbers",
        "_refused",
        "_seals",
        "_stop_sequence",
    )

    def __init__(self, id_: str, *, model: str, input_tokens: int, seals: bool = False) -> None:
        """`id_` and `model` are used where the provider names none. `seals`: see the rules above."""
        self._seals = seals
        self._id = id_
        self._model = model
        self._input_tokens = input_tokens
        self._numbers = CallNumbers()
        #: None until the message was started.
        self._blocks: Blocks | None = None
        self._finish = ""
        self._refused = False
        self._stop_sequence: str | None = None

    def write(self, chunk: Chunk) -> bytes:
        choices = chunk.choices
        if not choices:
            return b""
        out = b""
        blocks = self._blocks
        if blocks is None:
            blocks, out = self._start(chunk)
        choice = choices[0]
        if choice.index:
            return out
        delta = delta_of(choice)
        if thinking := delta.reasoning_content or delta.reasoning:
            out += blocks.say("thinking", thinking)
        if delta.reasoning_details:
            for detail in secrets_in(delta.reasoning_details):
                out += self._secret(blocks, detail)
        if delta.content:
            out += blocks.say("text", delta.content)
        if delta.refusal:
            self._refused = True
            out += blocks.say("text", delta.refusal)
        if delta.tool_calls or delta.function_call:
            out += self._calls(blocks, choice)
        if choice.finish_reason:
            self._finish = choice.finish_reason
            self._stop_sequence = _stop_sequence(choice)
        return out

    def end(self, usage: Usage) -> bytes:
        out = b""
        if self._blocks is None:
            self._blocks, out = self._start(Chunk())
        stop = _stop(self._finish, called=self._blocks.called, refused=self._refused, sequence=self._stop_sequence)
        out += self._blocks.finish()
        delta = encode({"type": "message_delta", "delta": stop, "usage": usage_object(usage)})
        return (
            out + b'event: message_delta\ndata: %b\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n' % delta
        )

    def _calls(self, blocks: Blocks, choice: Choice) -> bytes:
        out = b""
        for call in calls_of(delta_of(choice)):
            try:
                number = self._numbers.find(call)
            except TooManyCalls:
                raise Unwritable("more calls than can be counted") from None
            if call.extra_content and (detail := detail_of(call)) is not None:
                out += self._secret(blocks, detail)
            function = call.function
            name = arguments = ""
            if function is not None:
                name, arguments = function.name or "", function.arguments or ""
            out += blocks.call(number, id_=call.id or "", name=name, arguments=arguments)
        return out

    def _secret(self, blocks: Blocks, detail: Detail) -> bytes:
        kind, secret = _secret_block(detail)
        if not (self._seals or of_claude(detail)):
            return b""
        return blocks.sign(secret) if kind == "thinking" else blocks.hide(secret)

    def _start(self, chunk: Chunk) -> tuple[Blocks, bytes]:
        id_ = chunk.id or self._id
        blocks = self._blocks = Blocks(id_)
        message: dict[str, object] = {
            "id": f"msg_{id_}",
            "type": "message",
            "role": "assistant",
            "model": chunk.model or self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_object(Usage(input_tokens=self._input_tokens, output_tokens=1)),
        }
        start = encode({"type": "message_start", "message": message})
        return blocks, b"event: message_start\ndata: %b\n\n" % start


class MessageBody:
    """Writes one message as a whole."""

    def __init__(self, id_: str, *, model: str, seals: bool = False) -> None:
        self._id = id_
        self._model = model
        self._seals = seals

    def __call__(self, completion: Chunk, usage: Usage) -> bytes:
        assert completion.choices
        choice = completion.choices[0]
        delta = delta_of(choice)
        id_ = completion.id or self._id
        content = self._thoughts(delta)
        content += [{"type": "text", "text": text} for text in (delta.content, delta.refusal) if text]
        calls = calls_of(delta)
        for number, call in enumerate(calls):
            function = call.function
            if self._seals and (detail := detail_of(call)) is not None:
                content.append({"type": "redacted_thinking", "data": seal_details([detail])})
            content.append(
                {
                    "type": "tool_use",
                    "id": call.id or call_id(id_, number),
                    "name": "" if function is None else function.name or "",
                    "input": _input("" if function is None else function.arguments or ""),
                }
            )
        stop = _stop(
            choice.finish_reason or "",
            called=bool(calls),
            refused=bool(delta.refusal),
            sequence=_stop_sequence(choice),
        )
        return encode(
            {
                "id": f"msg_{id_}",
                "type": "message",
                "role": "assistant",
                "model": completion.model or self._model,
                "content": content,
                **stop,
                "usage": usage_object(usage),
            }
        )

    def _thoughts(self, delta: Delta) -> list[dict[str, object]]:
        """What was thought: one by one where the provider tells it so, else as one."""
        content: list[dict[str, object]] = []
        details = read_details(delta.reasoning_details) if delta.reasoning_details else []
        thinking = delta.reasoning_content or delta.reasoning or ""
        told = [detail for detail in details if is_text(detail)]
        if thinking and not any(detail.get("text") for detail in told):
            # A signature without its text is that of all there is.
            content.append({"type": "thinking", "thinking": thinking, "signature": ""})
        for detail in details:
            secret = ""
            if secret_of(detail) and (self._seals or of_claude(detail)):
                secret = _secret_block(detail)[1]
            if is_text(detail):
                text = detail.get("text")
                if not text and thinking and len(told) == 1:
                    content[0]["signature"] = secret
                elif text or secret:
                    said = text if isinstance(text, str) else ""
                    content.append({"type": "thinking", "thinking": said, "signature": secret})
            elif secret:
                content.append({"type": "redacted_thinking", "data": secret})
        return content


def _secret_block(detail: Detail) -> tuple[str, str]:
    """The kind of block that has a place for a secret, and how it is written there."""
    if is_text(detail):
        # The text stands beside it.
        bare = {name: value for name, value in detail.items() if name != "text"}
        return "thinking", secret_of(detail) if of_claude(detail) else seal_details([bare])
    return "redacted_thinking", secret_of(detail) if of_claude(detail) else seal_details([detail])


def usage_object(usage: Usage) -> dict[str, object]:
    """Usage as Anthropic counts it: what was read from a cache and written to one is not in `input_tokens`."""
    written, written_1h = usage.input_cache_write_tokens, usage.input_cache_write_1h_tokens
    counts: dict[str, object] = {
        "input_tokens": usage.input_tokens - usage.input_cached_tokens - written - written_1h,
        "cache_creation_input_tokens": written + written_1h,
        "cache_read_input_tokens": usage.input_cached_tokens,
        "output_tokens": usage.output_tokens,
    }
    if written or written_1h:
        counts["cache_creation"] = {
            "ephemeral_5m_input_tokens": written,
            "ephemeral_1h_input_tokens": written_1h,
        }
    if usage.output_reasoning_tokens:
        counts["output_tokens_details"] = {"thinking_tokens": usage.output_reasoning_tokens}
    if usage.searches:
        counts["server_tool_use"] = {"web_search_requests": usage.searches}
    return counts


def _stop(finish: str, *, called: bool, refused: bool, sequence: str | None) -> dict[str, object]:
    """Why it ended."""
    reason = _STOP_REASONS.get(finish, _END_TURN)
    if refused:
        reason = "refusal"
    elif reason == _END_TURN:
        reason = "tool_use" if called else _END_TURN if sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence if reason == "stop_sequence" else None}


def _stop_sequence(choice: Choice) -> str | None:
    """The stop sequence that was met, where the provider tells."""
    try:
        met = _decode_any(choice.stop_reason)
    except UNREADABLE:
        return None
    return met if isinstance(met, str) else None


def _input(arguments: str) -> object:
    """Arguments as the object they are; what is none, because it was cut for example, is handed on as text."""
    if not arguments.strip():
        return {}
    try:
        _decode_object(arguments.encode())
    except (*UNREADABLE, UnicodeEncodeError):
        return {"_raw": arguments}
    return msgspec.Raw(arguments.encode())
