"""Google's `generateContent` dialect: what the gateway reads of a request, and watches in an answer.

Rules:
- A request's bytes are not changed. Google takes its members in camel case and with underscores; both are read.
- An answer goes on as it came. In a stream, what Google's SDKs choke on is repaired, should it ever come: comments
  and other lines that are no data, and a `data:` without its space.
- The usage in each event is that of the whole answer so far: the last one counts, and none are added up.
- A stream has no terminator. It is whole once a candidate has a finish reason, or the prompt was refused.

Source: the reference of the Gemini API, GenerateContentResponse and UsageMetadata.
"""

import contextlib
import re
from collections.abc import Iterable

import msgspec

from gateway.wire.answer import BYTES_PER_TOKEN
from gateway.wire.dialects import Dialect
from gateway.wire.peek import Peek, find_members, peek
from gateway.wire.sse import cut, lines_of
from gateway.wire.sse_tap import HELD_BYTES_MAX
from gateway.wire.taps import JSONTap
from gateway.wire.usage import COUNT_MAX, Usage, UsageSource, find_usage

_TIERS = ("serviceTier", "service_tier")
_TIER_CHARACTERS_MAX = 32
_CONFIGS = ("generationConfig", "generation_config")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NONE = msgspec.Raw(b"")
_FALSY = frozenset({b"", b"null", b"false", b"{}", b"[]"})

# -- requests ------------------------------------------------------------------------------------------------


class _Config(msgspec.Struct, frozen=True, gc=False):
    """Loosely typed: what it means is the provider's to judge, and protobuf's JSON takes numbers in quotes."""

    maxOutputTokens: object = None  # noqa: N815 - Google's name
    max_output_tokens: object = None
    candidateCount: object = None  # noqa: N815
    candidate_count: object = None


_decode_config = msgspec.json.Decoder(_Config).decode


def peek_gemini(body: bytes, *, stream: bool = False) -> Peek:
    """Read a request body; `stream` is what its path says.

    Raises:
        BadRequest: as `peek` does, and where there are two configurations.
    """
    found = peek(body)
    limit: int | None = None
    n = 1
    if any(b'"%b"' % name.encode() in body for name in _CONFIGS):
        for raw in find_members(body, _CONFIGS).values():
            try:
                config = _decode_config(raw)
            except _UNREADABLE:
                continue
            for bound in (config.maxOutputTokens, config.max_output_tokens):
                if (count := _number(bound)) is not None:
                    limit = max(limit or 0, count)
            n = max(n, _number(config.candidateCount) or 1, _number(config.candidate_count) or 1)
    tier = found.service_tier
    if b'"serviceTier"' in body:
        raw = find_members(body, _TIERS).get("serviceTier", _NONE)
        with contextlib.suppress(*_UNREADABLE):
            tier = msgspec.json.decode(raw, type=str)
    return msgspec.structs.replace(found, stream=stream, max_output_tokens=limit, n=n, service_tier=_tier(tier))


def _tier(value: object) -> str | None:
    """A service tier, in any case of letters; None where it is none, or the plain one by another name."""
    tier = value.lower() if isinstance(value, str) and len(value) <= _TIER_CHARACTERS_MAX else ""
    return None if tier in ("", "unspecified") else tier


def _number(value: object) -> int | None:
    """A count, also where it is written as text or with a fraction of nothing."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


# -- usage ---------------------------------------------------------------------------------------------------


class _Share(msgspec.Struct, frozen=True, gc=False):
    modality: object = None
    tokenCount: object = None  # noqa: N815


class _Report(msgspec.Struct, frozen=True, gc=False):
    """`usageMetadata`."""

    promptTokenCount: object = None  # noqa: N815
    cachedContentTokenCount: object = None  # noqa: N815
    candidatesTokenCount: object = None  # noqa: N815
    thoughtsTokenCount: object = None  # noqa: N815
    toolUsePromptTokenCount: object = None  # noqa: N815
    totalTokenCount: object = None  # noqa: N815
    promptTokensDetails: list[_Share] | None = None  # noqa: N815
    cacheTokensDetails: list[_Share] | None = None  # noqa: N815
    candidatesTokensDetails: list[_Share] | None = None  # noqa: N815
    toolUsePromptTokensDetails: list[_Share] | None = None  # noqa: N815
    serviceTier: object = None  # noqa: N815


_decode_report = msgspec.json.Decoder(_Report).decode


def parse_gemini_usage(raw: bytes | msgspec.Raw, *, searches: int = 0) -> Usage | None:
    """Read one `usageMetadata`; None where it is not one or counts nothing.

    What tools put into the prompt is input, and thoughts are output. Where the parts disagree with the total, what is
    left of the total after the input is the output.
    """
    try:
        report = _decode_report(raw)
    except _UNREADABLE:
        return None
    prompt, total = _count(report.promptTokenCount), _count(report.totalTokenCount)
    said, thought = _count(report.candidatesTokenCount), _count(report.thoughtsTokenCount)
    if prompt is None and total is None and said is None:
        return None
    inputs = (prompt or 0) + (_count(report.toolUsePromptTokenCount) or 0)
    reasoning = thought or 0
    outputs = (said or 0) + reasoning
    if total is not None and total != inputs + outputs and total >= inputs:
        outputs = total - inputs
    cached = min(_count(report.cachedContentTokenCount) or 0, inputs)
    reasoning = min(reasoning, outputs)
    heard = _share(report.promptTokensDetails, "AUDIO") + _share(report.toolUsePromptTokensDetails, "AUDIO")
    seen = _share(report.promptTokensDetails, "IMAGE") + _share(report.toolUsePromptTokensDetails, "IMAGE")
    # What of it was cached is counted as that.
    heard = min(max(heard - _share(report.cacheTokensDetails, "AUDIO"), 0), inputs - cached)
    seen = min(max(seen - _share(report.cacheTokensDetails, "IMAGE"), 0), inputs - cached - heard)
    spoken = min(_share(report.candidatesTokensDetails, "AUDIO"), outputs - reasoning)
    drawn = min(_share(report.candidatesTokensDetails, "IMAGE"), outputs - reasoning - spoken)
    return Usage(
        input_tokens=inputs,
        output_tokens=outputs,
        input_cached_tokens=cached,
        input_audio_tokens=heard,
        input_image_tokens=seen,
        output_reasoning_tokens=reasoning,
        output_audio_tokens=spoken,
        output_image_tokens=drawn,
        searches=searches,
        service_tier=_tier(report.serviceTier),
    )


def _count(value: object) -> int | None:
    count = _number(value)
    return count if count is None or count <= COUNT_MAX else None


def _share(shares: list[_Share] | None, modality: str) -> int:
    """Tokens of one kind: pictures, recordings."""
    return sum(_count(share.tokenCount) or 0 for share in shares or () if share.modality == modality)


# -- answers -------------------------------------------------------------------------------------------------


class _Part(msgspec.Struct, frozen=True, gc=False):
    text: str = ""


class _Content(msgspec.Struct, frozen=True, gc=False):
    parts: list[_Part] | None = None


class _Grounding(msgspec.Struct, frozen=True, gc=False):
    webSearchQueries: list[str] | None = None  # noqa: N815


class _Candidate(msgspec.Struct, frozen=True, gc=False):
    content: _Content | None = None
    finishReason: str | None = None  # noqa: N815
    groundingMetadata: _Grounding | None = None  # noqa: N815


class _Feedback(msgspec.Struct, frozen=True, gc=False):
    blockReason: str | None = None  # noqa: N815


class _Answer(msgspec.Struct, frozen=True, gc=False):
    """The members of an answer, or of one event of a stream, that say how it went."""

    candidates: list[_Candidate] | None = None
    promptFeedback: _Feedback | None = None  # noqa: N815
    usageMetadata: msgspec.Raw = _NONE  # noqa: N815
    error: msgspec.Raw = _NONE


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_answers = msgspec.json.Decoder(list[_Answer]).decode


class _Facts:
    """What was learned of an answer so far; as much of it as one event has."""

    __slots__ = ("errored", "finished", "report", "searches", "text_bytes")

    def __init__(self) -> None:
        self.finished = False
        self.errored = False
        self.report = _NONE
        self.searches = 0
        #: Of the event that was read last.
        self.text_bytes = 0

    def read(self, answers: Iterable[_Answer]) -> None:
        for answer in answers:
            if bytes(answer.usageMetadata) not in _FALSY:
                self.report = answer.usageMetadata
            if bytes(answer.error) not in _FALSY:
                self.errored = True
            if answer.promptFeedback is not None and answer.promptFeedback.blockReason:
                self.finished = True
            self.text_bytes = 0
            for candidate in answer.candidates or ():
                self.finished = self.finished or bool(candidate.finishReason)
                if candidate.groundingMetadata is not None:
                    self.searches = max(self.searches, len(candidate.groundingMetadata.webSearchQueries or ()))
                if candidate.content is not None:
                    self.text_bytes += sum(len(part.text) for part in candidate.content.parts or ())

    def usage(self) -> Usage | None:
        return parse_gemini_usage(self.report, searches=self.searches) if self.report is not _NONE else None


class GeminiJSONTap(JSONTap):
    """For a plain answer, and for a stream that was asked for as one: an array of what would be its events."""

    __slots__ = ()

    def usage(self) -> Usage | None:
        if self._dialect is Dialect.GEMINI_COUNT_TOKENS:
            # Nothing was used: counting costs nothing.
            return Usage() if self.complete and not self.errored else None
        text = self._fold()
        if self._tail:
            raw = find_usage(text, name=b"usageMetadata", depths=(1, 2))
            return None if raw is None else parse_gemini_usage(raw)
        facts = _Facts()
        try:
            facts.read(_decode_answers(text) if text.lstrip().startswith(b"[") else (_decode_answer(text),))
        except _UNREADABLE:
            return None
        self.errored = facts.errored
        return facts.usage()

    def delivered(self) -> Usage:
        source: UsageSource = "estimated" if self.complete else "partial"
        if self.errored or self._dialect is not Dialect.GEMINI_GENERATE:
            return Usage(source=source)
        return Usage(output_tokens=self._size // BYTES_PER_TOKEN, source=source)


class GeminiSSETap:
    """For a stream of events.

    Only whole events leave, so that an abort finds the caller between two of them; `mid_event` says where that is not
    so because one was longer than `HELD_BYTES_MAX`: a picture.
    """

    #: A repair may shorten the stream.
    rewrites = True
    content_type = None
    failure = None
    __slots__ = (
        "_facts",
        "_held",
        "_last",
        "_long",
        "_size",
        "_told",
        "events",
        "mid_event",
        "repairs",
    )

    def __init__(self) -> None:
        self.events = 0
        self.repairs = 0
        self.mid_event = False
        self._facts = _Facts()
        self._held = bytearray()
        #: The end of an event that is too long to hold, and goes out as it comes.
        self._long: bytearray | None = None
        #: The chunk of whole events that came last, and the last one that reports usage, until it is read.
        self._last = b""
        self._told = b""
        self._size = 0

    @property
    def first_token(self) -> bool:
        return self.events > 0

    @property
    def complete(self) -> bool:
        self._read()
        return self._facts.finished

    @property
    def errored(self) -> bool:
        self._read()
        return self._facts.errored

    def feed(self, data: bytes) -> bytes:
        if self._held or self._long is not None:
            return self._feed_careful(data)
        if (
            data.startswith(b'data: {"candidates"')
            and data.find(b"\n") == len(data) - 3
            and data.endswith(b"\r\n\r\n")
            and data.find(b'"finishReason"') < 0
            and data.find(b'"webSearchQueries"') < 0
        ):
            # One whole event that only adds text, as nearly all do.
            if data.rfind(b'"usageMetadata"') >= 0:
                self._told = data
            self._last = data
            self.events += 1
            self._size += len(data)
            return data
        if events := _usual_events(data):
            self._note(data, events)
            return data
        return self._feed_careful(data)

    def end(self) -> bytes:
        rest = bytes(self._held)
        self._held.clear()
        if self._long is not None:
            self._note_long(bytes(self._long))
            self._long = None
            self.mid_event = False
            return b"\n\n"
        if not rest.strip():
            return b""
        # A last event without its blank line: no SDK would see it.
        self.repairs += 1
        return self._block(rest.rstrip(b"\r\n") + b"\n\n")

    def usage(self) -> Usage | None:
        self._read()
        return self._facts.usage()

    def delivered(self) -> Usage:
        """Output tokens by the number of events and the text in them, as the last one shows it."""
        self._read()
        source: UsageSource = "estimated" if self._facts.finished else "partial"
        if not self.events or (self._facts.errored and self.events == 1):
            return Usage(source=source)
        event_bytes = self._size // self.events
        envelope_bytes = min(max(event_bytes - self._facts.text_bytes, 0), event_bytes)
        text_bytes = self._size - self.events * envelope_bytes
        return Usage(output_tokens=max(self.events, text_bytes // BYTES_PER_TOKEN), source=source)

    def _note(self, data: bytes, events: int) -> None:
        """Count whole events. The usual one is not parsed: what the last one reports replaces what came before."""
        if b'"finishReason"' in data or b'"webSearchQueries"' in data or b'"error"' in data or b"blockReason" in data:
            self._facts.read(_answers_of(data))
        if b'"usageMetadata"' in data:
            self._told = data
        self._last = data
        self.events += events
        self._size += len(data)

    def _read(self) -> None:
        """Parse the last chunk that reports, or else the last one."""
        self._facts.read(_answers_of(self._told or self._last))
        self._told = b""

    # -- the careful way -------------------------------------------------------------------------------------

    def _feed_careful(self, data: bytes) -> bytes:
        out: list[bytes] = []
        if self._long is not None:
            data = self._feed_long(data, out)
        held = self._held
        scanned = len(held)
        held += data
        start = 0
        while (end := cut(held, start, max(start, scanned))) >= 0:
            out.append(self._block(bytes(held[start:end])))
            start = end
        del held[:start]
        if len(held) > HELD_BYTES_MAX and held.startswith(b"data: "):
            out.append(bytes(held))
            self._long = bytearray(held)
            held.clear()
            self.mid_event = True
        return b"".join(out)

    def _block(self, raw: bytes) -> bytes:
        """One block with its blank line; what of it is relayed."""
        if _usual_events(raw) == 1:
            self._note(raw, 1)
            return raw
        lines = lines_of(raw)
        data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
        if any(not line.startswith(b"data: ") for line in lines if line):
            self.repairs += 1
        if not data:
            return b""
        kept = b"".join(b"data: " + line + b"\n" for line in data) + b"\n"
        self._note(kept, 1)
        return kept

    def _feed_long(self, data: bytes, out: list[bytes]) -> bytes:
        """Relay what belongs to the long event; what comes after it. Its end is kept: usage stands there."""
        assert self._long is not None
        known = len(self._long)
        self._long += data
        end = cut(self._long, 0, known)
        if end < 0:
            out.append(data)
            if len(self._long) > 2 * HELD_BYTES_MAX:
                del self._long[:-HELD_BYTES_MAX]
            return b""
        out.append(bytes(self._long[known:end]))
        rest = bytes(self._long[end:])
        self._note_long(bytes(self._long[:end]))
        self._long = None
        self.mid_event = False
        return rest

    def _note_long(self, tail: bytes) -> None:
        """What the end of a long event says."""
        if (raw := find_usage(tail.rstrip(), name=b"usageMetadata", depths=(1,))) is not None:
            self._facts.report = msgspec.Raw(raw)
        if _FINISHED.search(tail) is not None:
            self._facts.finished = True
        self._last = self._told = b""
        self.events += 1
        self._size += len(tail)


#: In text a quote has a backslash before it.
_FINISHED = re.compile(rb'"finishReason"[ \t]*:[ \t]*"')
_EVENT = re.compile(rb"data: ?([^\r\n]*)")


def _usual_events(data: bytes) -> int:
    """How many events a chunk is, where it is whole ones of one `data` line each and nothing else; else 0."""
    if not data.startswith(b"data: "):
        return 0
    end = b"\r\n\r\n" if data.endswith(b"\r\n\r\n") else b"\n\n"
    if not data.endswith(end):
        return 0
    events = data.count(end)
    if data.count(b"\n") != 2 * events or data.count(b"\r") != (2 * events if end[0] == 0x0D else 0):
        return 0
    return events if events == 1 or data.count(b"\ndata: ") == events - 1 else 0


def _answers_of(chunk: bytes) -> list[_Answer]:
    answers: list[_Answer] = []
    for event in _EVENT.findall(chunk):
        try:
            answers.append(_decode_answer(event))
        except _UNREADABLE:
            continue
    return answers
