"""OpenAI's old completions, for providers that speak chat completions only.

The prompt becomes what the user says. A chat model answers it; it does not go on with it, so that what would show the
difference is refused: `suffix`, `echo`, token numbers, several prompts at once.

Rules:
- Every member that chat completions have too passes as it is, known or not.
- Where no `max_tokens` is given, it is 16, as it always was in this dialect.
- `logprobs` is a number there and two members here; the answer's are turned back, offsets and all.
- Reasoning has no place in this dialect and is left out of the answer.

Source: OpenAI's reference of `POST /v1/completions`.
"""

from typing import Final

import msgspec

from gateway.api import ResponseHead, Tap
from gateway.bridges.bridge import NO_EXTENSIONS, Opened
from gateway.bridges.hub import (
    UNREADABLE,
    Chunk,
    Members,
    chat_call,
    delta_of,
    encode,
    has_logprobs,
    request_members,
    told,
    unsupported,
)
from gateway.bridges.taps import BodyTap, StreamTap
from gateway.errors import BadRequest
from gateway.exchange import Call
from gateway.wire.dialects import DONE, Dialect
from gateway.wire.estimate import estimate_input_tokens
from gateway.wire.usage import Usage

#: What `max_tokens` is where the caller does not say.
MAX_TOKENS_DEFAULT: Final = 16

_REFUSED: Final = {
    "suffix": "a chat model does not fill gaps.",
    "echo": "a chat model does not repeat its prompt; send it without `echo`.",
}
_FINISHES: Final = {"tool_calls": "stop", "function_call": "stop"}


class _Token(msgspec.Struct, gc=False):
    token: str = ""
    logprob: float | None = None


class _Place(_Token, gc=False):
    top_logprobs: list[_Token] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Place] | None = None


_decode_logprobs = msgspec.json.Decoder(_Logprobs).decode
_decode_prompt = msgspec.json.Decoder(str | list[msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


class Completions:
    """From OpenAI's completions to the hub and back."""

    dialect = Dialect.OPENAI_COMPLETIONS
    hub = Dialect.OPENAI_CHAT

    def open(self, call: Call, extensions: frozenset[str] = NO_EXTENSIONS) -> Opened:
        members = request_members(call)
        members.refuse(_REFUSED)
        chat: dict[str, object] = {
            "model": call.model,
            "messages": [{"role": "user", "content": _prompt(members)}],
        }
        bound = members.take("max_tokens", int)
        chat["max_completion_tokens"] = MAX_TOKENS_DEFAULT if bound is None else bound
        wanted = members.take("n", int)
        chat["n"] = wanted
        best_of = members.take("best_of", int)
        if best_of is not None and best_of > (wanted or 1):
            raise unsupported("best_of", "chat completions choose no best answer; ask for `n` and choose.")
        places = members.take("logprobs", int)
        if places is not None:
            chat["logprobs"] = True
            chat["top_logprobs"] = places
        chat["stream"] = members.take("stream", bool) or None
        for name in members.rest():
            # As both are OpenAI's, what is not known here means the same there.
            chat.setdefault(name, members.raw(name))
        return Opened(chat_call(call, chat), dropped=told(()))

    def tap(self, call: Call, head: ResponseHead, inner: Tap) -> Tap:
        input_tokens = estimate_input_tokens(call.body)
        facts = _Facts(f"cmpl-{call.id}", call.model, int(head.received_s))
        if call.peek.stream:
            writer = CompletionStream(facts, report=call.peek.include_usage is True)
            return StreamTap(inner, writer, input_tokens=input_tokens)
        return BodyTap(inner, _Body(facts), input_tokens=input_tokens)


class _Facts(msgspec.Struct, frozen=True):
    """What is said of an answer that does not say it itself."""

    id: str
    model: str
    created_s: int

    def of(self, chunk: Chunk) -> dict[str, object]:
        facts: dict[str, object] = {
            "id": chunk.id or self.id,
            "object": "text_completion",
            "created": chunk.created or self.created_s,
            "model": chunk.model or self.model,
        }
        if chunk.system_fingerprint:
            facts["system_fingerprint"] = chunk.system_fingerprint
        return facts


class CompletionStream:
    """Writes the chunks of a completion."""

    __slots__ = ("_facts", "_head", "_offsets", "_report")

    def __init__(self, facts: _Facts, *, report: bool) -> None:
        """`report` says that the caller asked for the usage."""
        self._facts = facts
        self._report = report
        #: What every chunk begins with.
        self._head = b""
        #: How long the text of each choice is by now.
        self._offsets: dict[int, int] = {}

    def write(self, chunk: Chunk) -> bytes:
        if not chunk.choices:
            return b""
        head = self._head or self._begin(chunk)
        out = b""
        for choice in chunk.choices:
            delta = delta_of(choice)
            text = delta.content or delta.refusal or ""
            if text and not (has_logprobs(choice) or choice.finish_reason):
                # The usual.
                out += b'%b"choices":[{"text":%b,"index":%d,"logprobs":null,"finish_reason":null}]}\n\n' % (
                    head,
                    encode(text),
                    choice.index,
                )
                continue
            logprobs = None
            if has_logprobs(choice):
                logprobs = _logprobs(choice.logprobs, self._offsets.get(choice.index, 0))
                self._offsets[choice.index] = self._offsets.get(choice.index, 0) + len(text)
            if not (text or choice.finish_reason or logprobs):
                continue
            out += b'%b"choices":[{"text":%b,"index":%d,"logprobs":%b,"finish_reason":%b}]}\n\n' % (
                head,
                encode(text),
                choice.index,
                encode(logprobs),
                encode(_finish(choice.finish_reason)),
            )
        return out

    def end(self, usage: Usage) -> bytes:
        if not self._report:
            return DONE
        head = self._head or self._begin(Chunk())
        return b'%b"choices":[],"usage":%b}\n\n%b' % (head, encode(usage_object(usage)), DONE)

    def _begin(self, chunk: Chunk) -> bytes:
        self._head = b"data: " + encode(self._facts.of(chunk))[:-1] + b","
        return self._head


class _Body:
    """Writes a completion as a whole."""

    def __init__(self, facts: _Facts) -> None:
        self._facts = facts

    def __call__(self, completion: Chunk, usage: Usage) -> bytes:
        choices = []
        for choice in completion.choices or ():
            delta = delta_of(choice)
            choices.append(
                {
                    "text": delta.content or delta.refusal or "",
                    "index": choice.index,
                    "logprobs": _logprobs(choice.logprobs, 0),
                    "finish_reason": _finish(choice.finish_reason) or "stop",
                }
            )
        return encode({**self._facts.of(completion), "choices": choices, "usage": usage_object(usage)})


def usage_object(usage: Usage) -> dict[str, object]:
    """Usage as OpenAI's chat and completions count it."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.input_cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.output_reasoning_tokens},
    }


def _prompt(members: Members) -> str:
    raw = members.need("prompt", msgspec.Raw)
    try:
        prompt: str | list[msgspec.Raw] = _decode_prompt(raw)
        if isinstance(prompt, list) and len(prompt) == 1:
            # One text in a list; a list of one token ends below.
            prompt = _decode_text(prompt[0])
    except UNREADABLE:
        prompt = []
    if isinstance(prompt, list):
        raise BadRequest(
            "`prompt` must be one text: providers of this model take neither token numbers nor several prompts.",
            param="prompt",
            code="unsupported_value",
        )
    return prompt


def _finish(reason: str | None) -> str | None:
    return None if reason is None else _FINISHES.get(reason, reason)


def _logprobs(raw: msgspec.Raw, offset: int) -> dict[str, object] | None:
    """Log probabilities as this dialect has them. `offset` is where the text of these tokens begins."""
    try:
        places = _decode_logprobs(raw).content
    except UNREADABLE:
        return None
    if not places:
        return None
    offsets = []
    for place in places:
        offsets.append(offset)
        offset += len(place.token)
    return {
        "tokens": [place.token for place in places],
        "token_logprobs": [place.logprob for place in places],
        "top_logprobs": [{token.token: token.logprob for token in place.top_logprobs or ()} for place in places],
        "text_offset": offsets,
    }
