"""The responses dialect for every provider that serves chat completions.

A request becomes a chat completion in `responses_request.py`; what comes back becomes output items and events in
`responses_output.py`. Here is the bridge itself, and what tells the one of the other.

Rules:
- A bridged response is kept nowhere: it says `store: false`, and there is nothing to go on from by its id.
- A stream ends in `response.completed` or `response.incomplete` only when the provider's own was seen to end. Of one
  that did not, nothing is said here: the gateway ends it with the error event, which has the next number.
- Of several answers the first is the answer: this dialect has no `n`.
"""

from typing import Final

import msgspec

from gateway.api import ResponseHead, Tap
from gateway.bridges.bridge import NO_EXTENSIONS, Opened
from gateway.bridges.calls import CallNumbers, TooManyCalls
from gateway.bridges.hub import Chunk, Delta, calls_of, chat_call, delta_of, encode
from gateway.bridges.reasoning import detail_of
from gateway.bridges.responses_output import Output, Wishes
from gateway.bridges.responses_request import (
    Members,
    chat_request,
    custom_tools,
    included,
    read_members,
    reasoning_of,
    wants_logprobs,
)
from gateway.bridges.taps import BodyTap, StreamTap, Unwritable
from gateway.exchange import Call
from gateway.wire.dialects import Dialect
from gateway.wire.estimate import estimate_input_tokens
from gateway.wire.usage import Usage

_NULL: Final = b"null"
#: The very object that stands for what a chunk does not say.
_NONE: Final = Chunk().service_tier
#: Finish reasons of providers that did not finish.
_BROKEN: Final = frozenset({"error", "insufficient_system_resource"})

#: What a response says back of its request, with what it says where the request says nothing.
_ECHO: Final[dict[str, object]] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "safety_identifier": None,
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


class _Logprobs(msgspec.Struct, frozen=True, gc=False):
    content: msgspec.Raw = msgspec.Raw(b"")


_decode_logprobs = msgspec.json.Decoder(_Logprobs).decode


class Responses:
    """The bridge."""

    dialect = Dialect.OPENAI_RESPONSES
    hub = Dialect.OPENAI_CHAT

    def open(self, call: Call, extensions: frozenset[str] = NO_EXTENSIONS) -> Opened:
        chat, dropped = chat_request(read_members(call.body), model=call.model, extensions=extensions)
        return Opened(chat_call(call, chat), dropped)

    def tap(self, call: Call, head: ResponseHead, inner: Tap) -> Tap:
        wishes = wishes_of(call)
        input_tokens = estimate_input_tokens(call.body)
        writer = Writer(wishes, created_s=int(head.received_s))
        if call.peek.stream:
            return ResponsesTap(inner, writer, input_tokens=input_tokens)
        return BodyTap(inner, writer.write_whole, input_tokens=input_tokens)


def wishes_of(call: Call) -> Wishes:
    """What a request that was opened says about its answer."""
    members = read_members(call.body)
    reasoning = reasoning_of(members)
    summarises = "summary" in reasoning or "generate_summary" in reasoning
    return Wishes(
        id="".join(character for character in call.id if character.isascii() and character.isalnum()),
        streams=call.peek.stream,
        echo=_echo(members, reasoning),
        model=call.model,
        custom_tools=custom_tools(members),
        summarises=summarises,
        seals="reasoning.encrypted_content" in included(members),
        logprobs=wants_logprobs(members),
    )


def _echo(members: Members, reasoning: Members) -> bytes:
    said: dict[str, object] = {name: members.get(name, default) for name, default in _ECHO.items()}
    said["background"] = False
    said["truncation"] = "disabled"
    said["store"] = False
    said["reasoning"] = {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")}
    text = msgspec.json.decode(members["text"], type=Members) if "text" in members else {}
    said["text"] = {"format": {"type": "text"}, **{name: raw for name, raw in text.items() if bytes(raw) != _NULL}}
    return encode(said)[1:-1]


class ResponsesTap(StreamTap):
    """The tap of a stream, whose events are numbered."""

    __slots__ = ("_numbered",)

    def __init__(self, inner: Tap, writer: "Writer", *, input_tokens: int) -> None:
        super().__init__(inner, writer, input_tokens=input_tokens)
        self._numbered = writer

    @property
    def events(self) -> int:
        """Events returned so far, which is the number of the next one."""
        return self._numbered.output.told


class Writer:
    """Tells an `Output` what the hub's chunks say, or the one that is a whole answer."""

    __slots__ = ("_created_s", "_finish_reason", "_logprobs", "_numbers", "output")

    def __init__(self, wishes: Wishes, *, created_s: int = 0, output: Output | None = None) -> None:
        """`created_s` is for an answer that does not say when it was made."""
        self.output = output or Output(wishes)
        self._created_s = created_s
        self._logprobs = wishes.logprobs
        self._finish_reason: str | None = None
        self._numbers = CallNumbers()

    def write(self, chunk: Chunk) -> bytes:
        """The events for one of a stream's.

        Raises:
            Unwritable: the answer is too long, or the provider says that it did not finish it.
        """
        output = self.output
        self._begin(chunk)
        if chunk.service_tier is not _NONE:
            output.serve_as(bytes(chunk.service_tier))
        choices = chunk.choices
        if choices and choices[0].index == 0:
            choice = choices[0]
            self._read(delta_of(choice), choice.logprobs)
            if choice.finish_reason:
                if choice.finish_reason in _BROKEN:
                    raise Unwritable(f"the provider gave up: {choice.finish_reason}")
                self._finish_reason = choice.finish_reason
        return output.taken()

    def end(self, usage: Usage) -> bytes:
        """The last events."""
        self._begin(Chunk())
        self.output.finish(self._finish_reason, usage)
        return self.output.taken()

    def write_whole(self, completion: Chunk, usage: Usage) -> bytes:
        """The response that says what a whole answer says.

        Raises:
            Unwritable: as `write`.
        """
        self.write(completion)
        return self.output.finish(self._finish_reason, usage)

    def _begin(self, chunk: Chunk) -> None:
        if not self.output.begun:
            self.output.begin(model=chunk.model or "", created_s=chunk.created or self._created_s)

    def _read(self, delta: Delta, logprobs: msgspec.Raw) -> None:
        output = self.output
        if delta.reasoning_content:
            output.think(delta.reasoning_content, "reasoning_content")
        elif delta.reasoning:
            output.think(delta.reasoning, "reasoning")
        if delta.reasoning_details is not _NONE:
            output.detail(bytes(delta.reasoning_details))
        if delta.content:
            output.say(delta.content, self._logprobs_in(logprobs) if self._logprobs else b"")
        if delta.refusal:
            output.refuse(delta.refusal)
        if delta.annotations is not _NONE:
            output.annotate(bytes(delta.annotations))
        if delta.images is not _NONE:
            output.draw(bytes(delta.images))
        if delta.tool_calls or delta.function_call:
            for call in calls_of(delta):
                if call.extra_content and (detail := detail_of(call)) is not None:
                    output.sign_call(detail)
                name, arguments = None, None
                if call.function is not None:
                    name, arguments = call.function.name, call.function.arguments
                try:
                    number = self._numbers.find(call)
                except TooManyCalls as error:
                    raise Unwritable(str(error)) from error
                output.call(number, call.id, name, arguments or "")

    @staticmethod
    def _logprobs_in(raw: msgspec.Raw) -> bytes:
        """The list of them, as JSON; empty where there is none."""
        if raw is _NONE or bytes(raw) == _NULL:
            return b""
        found = bytes(_decode_logprobs(raw).content)
        return found if found.startswith(b"[") else b""
