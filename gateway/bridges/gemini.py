"""Google's `generateContent`, for providers that speak chat completions.

The request is in `gemini_request.py`. Here: the answer, plain or streamed.

Rules:
- A stream has nothing in it but `data: {json}` and blank lines: Google's clients choke on everything else. A caller
  who asks for a stream without `alt=sse` gets what Google gives: an array of the same objects.
- A call to a function is written when its arguments are whole, and in the order in which the calls were begun.
- The usage stands in the last object, with the finish reason.
- Thoughts are told to callers who ask for them (`includeThoughts`), and to no others. What a provider signed or
  sealed of them stands on the part that follows, as Google's own signatures do; so it comes back (`reasoning.py`).

Source: https://ai.google.dev/api/generate-content, as the official SDK reads it.
"""

import urllib.parse
from typing import Any, Final

import msgspec

from gateway.api import ResponseHead, Tap
from gateway.bridges.bridge import NO_EXTENSIONS, Opened
from gateway.bridges.calls import CallNumbers, JSONEnd, TooManyCalls
from gateway.bridges.gemini_request import chat_of_gemini, includes_thoughts
from gateway.bridges.hub import UNREADABLE, Choice, Chunk, Delta, ToolCall, calls_of, delta_of, encode, has_logprobs
from gateway.bridges.reasoning import (
    DETAILS_MAX,
    Detail,
    is_text,
    read_details,
    seal_bytes,
    secret_of,
    secrets_in,
    signature_of,
)
from gateway.bridges.taps import BodyTap, StreamTap, Unwritable
from gateway.exchange import Call
from gateway.wire.dialects import JSON_TYPE, SSE_TYPE, Dialect
from gateway.wire.estimate import estimate_input_tokens
from gateway.wire.usage import Usage

#: Characters of arguments that wait to be whole.
WAITING_CHARS_MAX: Final = 4 * 1024 * 1024

_FINISHES: Final = {"length": "MAX_TOKENS", "model_length": "MAX_TOKENS", "content_filter": "SAFETY"}
_STOP: Final = "STOP"
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder().decode

Parts = list[dict[str, object]]


class Gemini:
    """From Google's `generateContent` to the hub and back."""

    dialect = Dialect.GEMINI_GENERATE
    hub = Dialect.OPENAI_CHAT

    def open(self, call: Call, extensions: frozenset[str] = NO_EXTENSIONS) -> Opened:
        return chat_of_gemini(call, extensions)

    def tap(self, call: Call, head: ResponseHead, inner: Tap) -> Tap:
        input_tokens = estimate_input_tokens(call.body)
        thoughts = b"houghts" in call.body and includes_thoughts(call)
        if not call.peek.stream:
            return BodyTap(inner, _Body(call.id, model=call.model, thoughts=thoughts), input_tokens=input_tokens)
        events = urllib.parse.parse_qs(call.query.decode("latin-1")).get("alt") == ["sse"]
        writer = GeminiStream(call.id, model=call.model, thoughts=thoughts, events=events)
        return StreamTap(inner, writer, input_tokens=input_tokens, content_type=SSE_TYPE if events else JSON_TYPE)


class _Waiting:
    """A call whose arguments are on their way."""

    __slots__ = ("arguments", "end", "id", "name", "signature")

    def __init__(self) -> None:
        self.id = ""
        #: Google's own.
        self.signature: str | None = None
        self.name = ""
        self.arguments: list[str] = []
        self.end = JSONEnd()


class _Candidate:
    """What is to be remembered of one candidate until its end."""

    __slots__ = ("calls", "finish", "numbers", "secrets", "written")

    def __init__(self) -> None:
        #: What is to stand on the next part.
        self.secrets: list[Detail] = []
        self.finish = ""
        self.numbers = CallNumbers()
        #: Calls that are not written yet, in order, and how many were.
        self.calls: list[_Waiting] = []
        self.written = 0


class GeminiStream:
    """Writes a stream of answers in pieces."""

    __slots__ = (
        "_candidates",
        "_events",
        "_first",
        "_id",
        "_model",
        "_said",
        "_signed",
        "_tail",
        "_text",
        "_thoughts",
        "_waiting_chars",
    )

    def __init__(self, id_: str, *, model: str, thoughts: bool, events: bool) -> None:
        """`id_` and `model` are used where the provider names none; `events` is False for an array."""
        self._id = id_
        self._model = model
        self._thoughts = thoughts
        self._events = events
        self._first = True
        #: What every object ends with.
        self._tail = b""
        #: What an object that is nothing but text of the first candidate begins with.
        self._text = b'{"candidates":[{"content":{"parts":[{"text":'
        self._candidates: dict[int, _Candidate] = {}
        #: The first candidate is among them.
        self._said = False
        #: Something is to stand on the next part.
        self._signed = False
        self._waiting_chars = 0

    def write(self, chunk: Chunk) -> bytes:
        choices = chunk.choices
        if not choices:
            return b""
        if not self._tail:
            facts = encode({"modelVersion": chunk.model or self._model, "responseId": chunk.id or self._id})
            self._tail = b"," + facts[1:]
        out = b""
        for choice in choices:
            delta = delta_of(choice)
            text = delta.content
            if text and self._said and not self._signed and self._is_plain(choice, delta):
                # The usual: one more piece of text of the only candidate.
                out += self._frame(b'%b%b}],"role":"model"},"index":0}]%b' % (self._text, encode(text), self._tail))
                continue
            out += self._put(choice, delta)
        return out

    def end(self, usage: Usage) -> bytes:
        out = b""
        if not self._tail:
            out += self.write(Chunk(choices=[Choice()]))
        candidates: list[dict[str, object]] = []
        for index, candidate in sorted(self._candidates.items()) or [(0, _Candidate())]:
            parts = [_function_call(call) for call in candidate.calls]
            if candidate.secrets:
                _sign(parts, candidate.secrets)
            content = {"content": {"parts": parts, "role": "model"}} if parts else {}
            candidates.append({**content, "finishReason": _finish(candidate.finish), "index": index})
        last = encode({"candidates": candidates, "usageMetadata": usage_metadata(usage)})
        out += self._frame(last[:-1] + self._tail)
        return out if self._events else out + b"]"

    @staticmethod
    def _is_plain(choice: Choice, delta: Delta) -> bool:
        return not (
            choice.index
            or choice.finish_reason
            or has_logprobs(choice)
            or delta.tool_calls
            or delta.reasoning_content
            or delta.reasoning
            or delta.refusal
            or delta.function_call
        )

    def _put(self, choice: Choice, delta: Delta) -> bytes:
        candidate = self._candidates.get(choice.index)
        if candidate is None:
            candidate = self._candidates[choice.index] = _Candidate()
            self._said = 0 in self._candidates
        parts = self._thought(delta)
        if candidate.secrets and parts:
            _sign(parts, candidate.secrets)
        if self._thoughts and delta.reasoning_details:
            candidate.secrets += secrets_in(delta.reasoning_details)[: DETAILS_MAX - len(candidate.secrets)]
        said = [*_texts(delta.content), *_texts(delta.refusal)]
        for call in calls_of(delta):
            self._take(candidate, call)
        while candidate.calls and candidate.calls[0].end.whole and candidate.calls[0].name:
            call_ = candidate.calls.pop(0)
            candidate.written += 1
            self._waiting_chars -= sum(map(len, call_.arguments))
            said.append(_function_call(call_))
        if candidate.secrets and said:
            _sign(said, candidate.secrets)
        parts += said
        self._signed = any(each.secrets for each in self._candidates.values())
        if choice.finish_reason:
            candidate.finish = "content_filter" if delta.refusal else choice.finish_reason
        logprobs = logprobs_result(choice.logprobs)
        return self._object(parts, choice.index, logprobs) if parts or logprobs else b""

    def _take(self, candidate: _Candidate, call: ToolCall) -> None:
        try:
            number = candidate.numbers.find(call) - candidate.written
        except TooManyCalls:
            raise Unwritable("more calls than can be counted") from None
        function = call.function
        arguments = (function.arguments or "") if function is not None else ""
        if number < 0:
            if arguments.strip():
                raise Unwritable("a call goes on after its arguments were whole")
            return
        while number >= len(candidate.calls):
            candidate.calls.append(_Waiting())
        waiting = candidate.calls[number]
        waiting.id = waiting.id or call.id or ""
        if call.extra_content:
            waiting.signature = waiting.signature or signature_of(call)
        if function is not None:
            waiting.name = waiting.name or function.name or ""
        if arguments:
            waiting.arguments.append(arguments)
            waiting.end.feed(arguments)
            self._waiting_chars += len(arguments)
            if self._waiting_chars > WAITING_CHARS_MAX:
                raise Unwritable("longer arguments than can be kept")

    def _thought(self, delta: Delta) -> Parts:
        text = delta.reasoning_content or delta.reasoning
        return [{"text": text, "thought": True}] if text and self._thoughts else []

    def _object(self, parts: Parts, index: int, logprobs: dict[str, object] | None = None) -> bytes:
        candidate: dict[str, object] = {"content": {"parts": parts, "role": "model"}, "index": index}
        if logprobs is not None:
            candidate["logprobsResult"] = logprobs
        return self._frame(encode({"candidates": [candidate]})[:-1] + self._tail)

    def _frame(self, data: bytes) -> bytes:
        if self._events:
            return b"data: %b\n\n" % data
        lead = b"[" if self._first else b",\r\n"
        self._first = False
        return lead + data


class _Body:
    """Writes one answer as a whole."""

    def __init__(self, id_: str, *, model: str, thoughts: bool) -> None:
        self._id = id_
        self._model = model
        self._thoughts = thoughts

    def __call__(self, completion: Chunk, usage: Usage) -> bytes:
        candidates: list[dict[str, object]] = []
        for choice in completion.choices or ():
            delta = delta_of(choice)
            parts, secrets = self._thought(delta)
            said = [*_texts(delta.content), *_texts(delta.refusal)]
            for call in calls_of(delta):
                waiting = _Waiting()
                waiting.id = call.id or ""
                waiting.signature = signature_of(call)
                if call.function is not None:
                    waiting.name = call.function.name or ""
                    waiting.arguments.append(call.function.arguments or "")
                said.append(_function_call(waiting))
            if secrets:
                _sign(said, secrets)
            parts += said
            candidate: dict[str, object] = {
                "content": {"parts": parts, "role": "model"},
                "finishReason": _finish("content_filter" if delta.refusal else choice.finish_reason or ""),
                "index": choice.index,
            }
            if (logprobs := logprobs_result(choice.logprobs)) is not None:
                candidate["logprobsResult"] = logprobs
            candidates.append(candidate)
        return encode(
            {
                "candidates": candidates,
                "usageMetadata": usage_metadata(usage),
                "modelVersion": completion.model or self._model,
                "responseId": completion.id or self._id,
            }
        )

    def _thought(self, delta: Delta) -> tuple[Parts, list[Detail]]:
        """What was thought, for a caller who wants it, and what is to stand on the part after it."""
        if not self._thoughts:
            return [], []
        details = read_details(delta.reasoning_details) if delta.reasoning_details else []
        thinking = delta.reasoning_content or delta.reasoning
        if not any(is_text(detail) and detail.get("text") for detail in details):
            parts: Parts = [{"text": thinking, "thought": True}] if thinking else []
            return parts, [detail for detail in details if secret_of(detail)]
        parts = []
        secrets: list[Detail] = []
        for detail in details:
            text = detail.get("text") if is_text(detail) else None
            if text:
                part: dict[str, object] = {"text": text, "thought": True}
                if secrets:
                    _sign([part], secrets)
                parts.append(part)
            if secret_of(detail):
                secrets.append(detail)
        return parts, secrets


def _sign(parts: Parts, secrets: list[Detail]) -> None:
    """Put what a provider wants back on the first of these parts, or on one without a word of its own."""
    part = next((part for part in parts if "thoughtSignature" not in part), None)
    if part is None:
        part = {"text": ""}
        parts.insert(0, part)
    # The text of a thought stands in the parts before.
    bare = [{name: value for name, value in detail.items() if name != "text"} for detail in secrets]
    part["thoughtSignature"] = seal_bytes(bare)
    secrets.clear()


def usage_metadata(usage: Usage) -> dict[str, object]:
    """Usage as Google counts it: thoughts are beside the candidates."""
    counts: dict[str, object] = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": usage.output_tokens - usage.output_reasoning_tokens,
        "totalTokenCount": usage.input_tokens + usage.output_tokens,
    }
    if usage.input_cached_tokens:
        counts["cachedContentTokenCount"] = usage.input_cached_tokens
    if usage.output_reasoning_tokens:
        counts["thoughtsTokenCount"] = usage.output_reasoning_tokens
    return counts


def logprobs_result(raw: msgspec.Raw) -> dict[str, object] | None:
    """Log probabilities as Google has them."""
    if not raw:
        return None
    try:
        logprobs: Any = _decode_any(raw)  # Any: JSON
    except UNREADABLE:
        return None
    places = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(places, list) or not all(isinstance(place, dict) for place in places):
        return None
    return {
        "chosenCandidates": [_probability(place) for place in places],
        "topCandidates": [
            {"candidates": [_probability(top) for top in place.get("top_logprobs") or () if isinstance(top, dict)]}
            for place in places
        ],
    }


def _probability(token: dict[str, Any]) -> dict[str, object]:  # Any: JSON
    return {"token": token.get("token"), "logProbability": token.get("logprob")}


def _texts(text: str | None) -> Parts:
    return [{"text": text}] if text else []


def _finish(reason: str) -> str:
    return _FINISHES.get(reason, _STOP)


def _function_call(call: _Waiting) -> dict[str, object]:
    """A call, its arguments as the object they are; those that are none, because they were cut, as text."""
    text = "".join(call.arguments)
    arguments: object = msgspec.Raw(text.encode())
    try:
        _decode_object(text.encode())
    except (*UNREADABLE, UnicodeEncodeError):
        arguments = {"_raw": text} if text.strip() else {}
    function: dict[str, object] = {"name": call.name, "args": arguments}
    if call.id:
        function["id"] = call.id
    part: dict[str, object] = {"functionCall": function}
    if call.signature:
        part["thoughtSignature"] = call.signature
    return part
