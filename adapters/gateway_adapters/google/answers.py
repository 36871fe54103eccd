"""What Google's models answer, as chat completions.

Rules:
- An event of a stream is a fragment of the whole answer; a tool call comes whole in one part, others may follow in
  later events. They are numbered over the whole stream, each candidate's by themselves.
- The usage in each event is that of all so far: the last one counts. Thoughts are part of the completion.
- Google says STOP after tool calls too: where there was one, the finish reason is `tool_calls`. A prompt that was
  refused is an answer with a refusal in it, and with `content_filter` for its end.
- A candidate that ended for a reason of Google's own without saying anything is an error of the provider's.
- A stream that ends without a finish reason was cut.

Source: the reference of the Gemini API, GenerateContentResponse.
"""

from hashlib import blake2b
from typing import Final

import msgspec

from gateway.api import Call, EventTooLong, Failure, FrameScanner, ResponseHead, Usage, parse_gemini_usage
from gateway_adapters.chat_answer import (
    BYTES_PER_TOKEN,
    JSON_TYPE,
    SSE_TYPE,
    UNREADABLE,
    BrokenAnswer,
    ChunkWriter,
    GatheredTap,
    StreamTap,
    unreadable,
    usage_object,
)
from gateway_adapters.google.failures import failure_inside
from gateway_adapters.google.signatures import Signatures

CANDIDATES_MAX: Final = 128
#: Whose signatures they are, as OpenRouter's clients know it.
REASONING_FORMAT: Final = "google-gemini-v1"
_NONE: Final = msgspec.Raw(b"")
_NOTHING: Final = frozenset({b"", b"null", b"{}", b"[]"})
#: What is longer is none of them.
_NOTHING_BYTES: Final = len(b"null")

_LENGTH: Final = frozenset({"MAX_TOKENS"})
_FILTERED: Final = frozenset(
    {
        *("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "ESCALATION"),
        *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "PUP_LIMITED_DISABLED"),
    }
)
#: All others end an answer too; one that says nothing then is none.
_PLAIN: Final = frozenset({"STOP", "FINISH_REASON_UNSPECIFIED"})

_encode = msgspec.json.Encoder().encode


class _Blob(msgspec.Struct, gc=False):
    mimeType: str = ""  # noqa: N815 - Google's name, as all of these
    data: str = ""


class _Function(msgspec.Struct, gc=False):
    name: str = ""
    id: str | None = None
    args: msgspec.Raw = _NONE


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    thought: bool | None = None
    functionCall: _Function | None = None  # noqa: N815
    inlineData: _Blob | None = None  # noqa: N815
    thoughtSignature: str | None = None  # noqa: N815


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _LogProbability(msgspec.Struct, gc=False):
    token: str = ""
    logProbability: float | None = None  # noqa: N815


class _Top(msgspec.Struct, gc=False):
    candidates: list[_LogProbability] | None = None


class _LogProbabilities(msgspec.Struct, gc=False):
    topCandidates: list[_Top] | None = None  # noqa: N815
    chosenCandidates: list[_LogProbability] | None = None  # noqa: N815


class _Grounding(msgspec.Struct, gc=False):
    webSearchQueries: list[str] | None = None  # noqa: N815


class _Candidate(msgspec.Struct, gc=False):
    content: _Content | None = None
    finishReason: str | None = None  # noqa: N815
    index: int | None = None
    logprobsResult: _LogProbabilities | None = None  # noqa: N815
    groundingMetadata: _Grounding | None = None  # noqa: N815


class _Feedback(msgspec.Struct, gc=False):
    blockReason: str | None = None  # noqa: N815
    blockReasonMessage: str | None = None  # noqa: N815


class _Event(msgspec.Struct, gc=False):
    candidates: list[_Candidate] | None = None
    promptFeedback: _Feedback | None = None  # noqa: N815
    usageMetadata: msgspec.Raw = _NONE  # noqa: N815
    responseId: str | None = None  # noqa: N815
    error: msgspec.Raw = _NONE


_decode = msgspec.json.Decoder(_Event).decode
_decode_many = msgspec.json.Decoder(list[_Event]).decode


def _whole_events(data: bytes) -> list[bytes]:
    """The data of the events in a piece that is nothing but whole events, of one line each; else nothing."""
    end = b"\r\n\r\n" if data.endswith(b"\r\n\r\n") else b"\n\n"
    if not data.endswith(end):
        return []
    blocks = data[6 : -len(end)].split(end + b"data: ")
    # Two lines of data, or line ends of both kinds, are for who reads with care.
    if any(block.find(b"\n") >= 0 or block.find(b"\r") >= 0 for block in blocks):
        return []
    return blocks


def _only_text(candidate: _Candidate) -> str | None:
    """What a candidate says that says nothing else, and is not at its end."""
    content = candidate.content
    if content is None or candidate.finishReason or candidate.logprobsResult or candidate.groundingMetadata:
        return None
    parts = content.parts
    if parts is None or len(parts) != 1:
        return None
    part = parts[0]
    # Whatever else a part has, it has it instead of text; but a signature and the mark of a thought.
    return None if part.thought or part.thoughtSignature else part.text


class _Writer(ChunkWriter):
    """With what only Google's answers have."""

    __slots__ = ()

    def signed_call(self, index: int, call: dict[str, object]) -> bytes:
        return self.delta(_encode({"tool_calls": [{"index": index, **call}]}))

    def logprobs(self, content: list[dict[str, object]]) -> bytes:
        return self._before + b'{},"logprobs":' + _encode({"content": content}) + self._between


class _Choice:
    """What is known of one candidate."""

    __slots__ = ("calls", "finished", "images", "index", "said", "secrets")

    def __init__(self, index: int) -> None:
        self.index = index
        self.calls = 0
        self.images = 0
        self.secrets = 0
        #: Anything but thoughts.
        self.said = False
        self.finished = False

    def finish(self, reason: str) -> str:
        """OpenAI's finish reason.

        Raises:
            BrokenAnswer: there is nothing that it could be the finish of.
        """
        self.finished = True
        if reason in _FILTERED:
            return "content_filter"
        if reason in _LENGTH:
            return "length"
        if not self.said and reason not in _PLAIN:
            raise BrokenAnswer(
                Failure(
                    blame="provider",
                    detail=f"finished with {reason} and no content",
                    message=f"The model ended its answer with {reason} before it said anything.",
                    status=502,
                )
            )
        return "tool_calls" if self.calls else "stop"


class _Reader:
    """What is the same in a stream and in a whole answer."""

    def __init__(self, call: Call, signatures: Signatures) -> None:
        self._seed = call.id.encode()
        self._account_id = call.account_id
        self._signatures = signatures
        self._report = _NONE
        self._searches = 0

    def note(self, event: _Event) -> None:
        """Take what counts for the whole answer."""
        if len(event.usageMetadata) > _NOTHING_BYTES:
            self._report = event.usageMetadata

    def searched(self, grounding: _Grounding) -> None:
        self._searches = max(self._searches, len(grounding.webSearchQueries or ()))

    def usage(self) -> Usage | None:
        return None if self._report is _NONE else parse_gemini_usage(self._report, searches=self._searches)

    def called(self, choice: _Choice, part: _Part, function: _Function) -> dict[str, object]:
        """A tool call, and its signature kept. One without an id gets one that no other call has."""
        number, choice.calls, choice.said = choice.calls, choice.calls + 1, True
        call_id = function.id
        if not call_id:
            place = f":{choice.index}:{number}".encode()
            call_id = "call_" + blake2b(self._seed + place, digest_size=12).hexdigest()
        arguments = bytes(function.args).decode() if bytes(function.args) not in _NOTHING else "{}"
        call: dict[str, object] = {
            "id": call_id,
            "type": "function",
            "function": {"name": function.name, "arguments": arguments},
        }
        if part.thoughtSignature:
            self._signatures.keep(self._account_id, call_id, function.name, part.thoughtSignature)
            call["extra_content"] = {"google": {"thought_signature": part.thoughtSignature}}
        return call

    @staticmethod
    def signed(choice: _Choice, signature: str) -> list[dict[str, object]]:
        """The signature of what was said, which is not insisted on: as a detail of the reasoning."""
        number, choice.secrets = choice.secrets, choice.secrets + 1
        return [{"type": "reasoning.encrypted", "index": number, "format": REASONING_FORMAT, "data": signature}]


class GoogleStreamTap(StreamTap):
    """For a stream of events."""

    def __init__(self, call: Call, head: ResponseHead, signatures: Signatures, *, secret: str = "") -> None:
        super().__init__(call, head)
        self._reader = _Reader(call, signatures)
        self._secret = secret
        self._scanner = FrameScanner()
        self._choices: dict[int, tuple[_Choice, _Writer]] = {}
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        if self.failure is not None:
            return b""
        if data.startswith(b"data: ") and self._scanner.resting and (events := _whole_events(data)):
            if len(events) == 1:
                return self.event(events[0])
            return b"".join([self.event(event) for event in events if self.failure is None])
        try:
            frames = self._scanner.feed(data)
        except EventTooLong:
            self.failure = unreadable("an event is longer than what is translated")
            return b""
        out = [self.event(frame.data) for frame in frames if frame.data and self.failure is None]
        return out[0] if len(out) == 1 else b"".join(out)

    def end(self) -> bytes:
        rest = self._scanner.finish()
        out = b"" if rest is None or self.failure is not None else self._last(rest.data)
        return out + self.close()

    def _last(self, data: bytes) -> bytes:
        """What was left without its blank line: an event, or half of one where the stream was cut."""
        try:
            event = _decode(data)
        except UNREADABLE:
            return b""
        return self.chunks(event, data)

    def usage(self) -> Usage | None:
        return self._reader.usage()

    def event(self, data: bytes) -> bytes:
        """The chunks that one event makes."""
        try:
            event = _decode(data)
        except UNREADABLE as error:
            self.failure = unreadable(f"an event is not as it should be: {error}")
            return b""
        return self.chunks(event, data)

    def chunks(self, event: _Event, data: bytes) -> bytes:
        if len(event.error) > _NOTHING_BYTES:
            self.failure = failure_inside(data, secret=self._secret)
            return b""
        self._reader.note(event)
        candidates = event.candidates
        if candidates is not None and len(candidates) == 1 and event.promptFeedback is None:
            text = _only_text(candidates[0])
            if text and (known := self._choices.get(candidates[0].index or 0)) is not None:
                # The usual: one more piece of what is being said.
                known[0].said = True
                self._count(text)
                return known[1].text(text)
        if not self._begun:
            self._begun = True
            if event.responseId:
                self._id = f"chatcmpl-{event.responseId}"
        out: list[bytes] = []
        try:
            for candidate in event.candidates or ():
                self._candidate(candidate, out)
        except BrokenAnswer as error:
            self.failure = error.failure
        feedback = event.promptFeedback
        if feedback is not None and feedback.blockReason and not self._choices:
            choice, writer = self._open(0, out)
            out += [writer.delta(_encode({"refusal": _refusal(feedback)})), writer.finish("content_filter")]
            choice.finished = True
        if out and self.failure is None and not self.complete:
            self.complete = all(choice.finished for choice, _ in self._choices.values())
        return out[0] if len(out) == 1 else b"".join(out)

    def close(self) -> bytes:
        """What follows the last event."""
        if not self.complete or self.failure is not None:
            return b""
        return next(iter(self._choices.values()))[1].close(self._reader.usage())

    def _open(self, index: int, out: list[bytes]) -> tuple[_Choice, _Writer]:
        if len(self._choices) >= CANDIDATES_MAX:
            raise BrokenAnswer(unreadable("there are too many candidates"))
        writer = _Writer(answer_id=self._id, created=self._created, model=self._model, usage=self._asked, index=index)
        self._choices[index] = found = (_Choice(index), writer)
        out.append(writer.role())
        return found

    def _candidate(self, candidate: _Candidate, out: list[bytes]) -> None:
        index = candidate.index or 0
        found = self._choices.get(index)
        choice, writer = self._open(index, out) if found is None else found
        if candidate.content is not None:
            for part in candidate.content.parts or ():
                if part.text:
                    self._count(part.text)
                    if part.thought:
                        out.append(writer.reasoning(part.text))
                    else:
                        choice.said = True
                        out.append(writer.text(part.text))
                elif part.functionCall is not None:
                    number = choice.calls
                    call = self._reader.called(choice, part, part.functionCall)
                    self._count(str(call["function"]))
                    out.append(writer.signed_call(number, call))
                elif part.inlineData is not None and (image := _image(part.inlineData)) is not None:
                    out.append(writer.delta(_encode({"images": [{"index": choice.images, **image}]})))
                    choice.images += 1
                    choice.said = True
                if part.thoughtSignature and part.functionCall is None:
                    signed = self._reader.signed(choice, part.thoughtSignature)
                    out.append(writer.delta(_encode({"reasoning_details": signed})))
        if candidate.logprobsResult is not None and (content := _logprobs(candidate.logprobsResult)):
            out.append(writer.logprobs(content))
        if candidate.groundingMetadata is not None:
            self._reader.searched(candidate.groundingMetadata)
        if candidate.finishReason and not choice.finished:
            out.append(writer.finish(choice.finish(candidate.finishReason)))


class GoogleWholeTap(GatheredTap):
    """For a plain answer, or an array of what would have been events: a completion, or a stream of it."""

    def __init__(self, call: Call, head: ResponseHead, signatures: Signatures, *, secret: str = "") -> None:
        super().__init__(call, head)
        self._reader = _Reader(call, signatures)
        self._secret = secret
        self._text_chars = 0
        self._stream = GoogleStreamTap(call, head, signatures, secret=secret) if call.peek.stream else None
        self.content_type = JSON_TYPE if self._stream is None else SSE_TYPE

    def usage(self) -> Usage | None:
        return self._reader.usage()

    def delivered(self) -> Usage:
        source = super().delivered().source
        return Usage(output_tokens=self._text_chars // BYTES_PER_TOKEN, source=source)

    def _written(self, body: bytes) -> bytes:
        events = _decode_many(body) if body.lstrip().startswith(b"[") else [_decode(body)]
        for event in events:
            if bytes(event.error) not in _NOTHING:
                raise BrokenAnswer(failure_inside(body, secret=self._secret))
            self._reader.note(event)
        if self._stream is not None:
            return self._events(self._stream, events, body)
        return self._completion(events)

    def _events(self, stream: GoogleStreamTap, events: list[_Event], body: bytes) -> bytes:
        out = b"".join([stream.chunks(event, body) for event in events]) + stream.close()
        if stream.failure is not None:
            raise BrokenAnswer(stream.failure)
        if not stream.complete:
            raise BrokenAnswer(unreadable("the answer has no finish reason"))
        return out

    def _completion(self, events: list[_Event]) -> bytes:
        choices: dict[int, tuple[_Choice, dict[str, object]]] = {}
        for event in events:
            if event.responseId:
                self._id = f"chatcmpl-{event.responseId}"
            for candidate in event.candidates or ():
                index = candidate.index or 0
                if index not in choices:
                    choices[index] = (_Choice(index), _empty_choice(index))
                self._add(*choices[index], candidate)
            feedback = event.promptFeedback
            if feedback is not None and feedback.blockReason and not choices:
                choices[0] = (_Choice(0), _empty_choice(0, refusal=_refusal(feedback)))
        if not choices:
            raise BrokenAnswer(unreadable("the answer has no candidate"))
        completion: dict[str, object] = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [written for _, written in choices.values()],
        }
        if (usage := self._reader.usage()) is not None:
            completion["usage"] = usage_object(usage)
        return _encode(completion)

    def _add(self, choice: _Choice, written: dict[str, object], candidate: _Candidate) -> None:
        """Add what a candidate says to its choice."""
        message = written["message"]
        assert isinstance(message, dict)
        for part in (candidate.content.parts or ()) if candidate.content is not None else ():
            if part.text:
                name = "reasoning_content" if part.thought else "content"
                message[name] = (message.get(name) or "") + part.text
                choice.said = choice.said or not part.thought
                self._text_chars += len(part.text)
            elif part.functionCall is not None:
                message.setdefault("tool_calls", []).append(self._reader.called(choice, part, part.functionCall))
            elif part.inlineData is not None and (image := _image(part.inlineData)) is not None:
                message.setdefault("images", []).append(image)
                choice.said = True
            if part.thoughtSignature and part.functionCall is None:
                signed = self._reader.signed(choice, part.thoughtSignature)
                message.setdefault("reasoning_details", []).extend(signed)
        if candidate.logprobsResult is not None:
            written["logprobs"] = {"content": _logprobs(candidate.logprobsResult)}
        if candidate.groundingMetadata is not None:
            self._reader.searched(candidate.groundingMetadata)
        if candidate.finishReason:
            written["finish_reason"] = choice.finish(candidate.finishReason)


def _empty_choice(index: int, *, refusal: str | None = None) -> dict[str, object]:
    message = {"role": "assistant", "content": None, "refusal": refusal}
    # Google leaves the reason out of an answer that is whole and short of one.
    finish = "stop" if refusal is None else "content_filter"
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}


def _refusal(feedback: _Feedback) -> str:
    return feedback.blockReasonMessage or f"Google refused the prompt: {feedback.blockReason}."


def _image(blob: _Blob) -> dict[str, object] | None:
    if not blob.mimeType.startswith("image/"):
        return None
    return {"type": "image_url", "image_url": {"url": f"data:{blob.mimeType};base64,{blob.data}"}}


def _logprobs(found: _LogProbabilities) -> list[dict[str, object]]:
    content: list[dict[str, object]] = []
    tops = found.topCandidates or []
    for number, chosen in enumerate(found.chosenCandidates or ()):
        top = tops[number].candidates or [] if number < len(tops) else []
        content.append({**_logprob(chosen), "top_logprobs": [_logprob(other) for other in top]})
    return content


def _logprob(token: _LogProbability) -> dict[str, object]:
    return {
        "token": token.token,
        "logprob": token.logProbability if token.logProbability is not None else -9999.0,
        "bytes": list(token.token.encode()),
    }
