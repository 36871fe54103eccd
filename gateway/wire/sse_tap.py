"""The tap for streams of events.

Rules:
- What comes in goes out, byte for byte. The only exceptions, each counted in `repairs`, are what official SDKs choke
  on in an event stream (a byte order mark, `id:` and `retry:` lines, events without data, a last event without its
  blank line), and the usage chunk that the gateway itself asked for.
- Usage is the provider's last word: reports are never added up.
- A tap that can't understand goes on relaying. It never raises on anything a provider sends.
- State is bounded, whatever the length of the stream: a held event, the last two chunks, the end of a long text.

The usual chunk, one or more whole events of one `data` line each and no token count in it, is recognised by a few
byte searches and returned as it is. Everything else takes the careful way. `benchmarks/micro.py` has the figures.
"""

import re
from itertools import islice

import msgspec

from gateway.wire.answer import (
    BYTES_PER_TOKEN,
    LOOSE,
    NO_TEXT,
    UNREADABLE,
    Answer,
    decode,
    event_text_bytes,
    is_empty_list,
    is_truthy,
    member,
    usage_of,
)
from gateway.wire.dialects import Dialect
from gateway.wire.sse import BOM, Frame, FrameScanner, cut, find_blank, parse
from gateway.wire.usage import (
    Usage,
    UsageSource,
    find_service_tier,
    find_usage,
    normalise,
    parse_usage,
    read_report,
)

#: An event that is not whole yet is held up to here; then it goes out as it comes.
HELD_BYTES_MAX = 64 * 1024
#: Of a long event or body, as much of the end is kept to find the usage in.
TAIL_BYTES = 256 * 1024
#: How many events of a chunk are looked at again for an estimate.
_SAMPLE_EVENTS_MAX = 64
#: As much of a chunk of several events is kept to see afterwards how the stream ended.
_KEPT_BYTES = 8 * 1024

_DONE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\][ \t]*(?:[\r\n]|\Z)")
_FINISHED = re.compile(rb'(?<!\\)"finish_reason"[ \t]*:[ \t]*"')
_TERMINAL = re.compile(
    rb'(?<!\\)"type"[ \t]*:[ \t]*"(?:response\.(?:completed|incomplete|failed)|message_stop|'
    rb'image_(?:generation|edit)\.completed|transcript\.text\.done|speech\.audio\.done)"'
)
_UNWANTED = re.compile(rb"(?:\A|[\r\n])(?:id|retry)(?:[:\r\n]|\Z)")
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r|\Z)")
_FAILED = re.compile(rb'"type"[ \t]*:[ \t]*"response\.failed"')
_COMMENTS = re.compile(rb"(?::[^\r\n]*(?:\r\n|\n|\r(?=[^\n])))+")
_check = msgspec.json.Decoder(msgspec.Raw).decode


class SSETap:
    """For an event stream of the OpenAI family, or one that is built like it.

    Only whole events leave, so that an abort finds the caller between two of them; `mid_event` says where that is not
    so because one was longer than `HELD_BYTES_MAX`. `feed` may return nothing to send. After an abort do not call
    `end`: what is held is then half an event, and is dropped.

    `strip_usage` takes out the one event that the gateway asked for on its own account: no choices, and a usage
    object. `repair` allows the repairs named at the top of this module.
    """

    #: A repair or the usage chunk may shorten the stream.
    rewrites = True
    content_type = None
    failure = None
    __slots__ = (
        "_before",
        "_begun",
        "_bytes",
        "_complete",
        "_deltas",
        "_dialect",
        "_ended",
        "_failed",
        "_held",
        "_last",
        "_long_head",
        "_long_tail",
        "_mark",
        "_passing",
        "_reasoning_in_total",
        "_repair",
        "_report",
        "_resting",
        "_scanned",
        "_strip_usage",
        "_trust_cost",
        "_usage",
        "events",
        "mid_event",
        "repairs",
    )

    def __init__(
        self,
        dialect: Dialect,
        *,
        strip_usage: bool = False,
        repair: bool = True,
        trust_cost: bool = False,
        reasoning_in_total: bool = False,
    ) -> None:
        #: Data events relayed so far, `[DONE]` among them; comments are none.
        self.events = 0
        self.repairs = 0
        #: True where what was relayed ends inside an event: a blank line must come before anything of ours.
        self.mid_event = False
        self._dialect = dialect
        self._strip_usage = strip_usage
        self._repair = repair
        self._trust_cost = trust_cost
        self._reasoning_in_total = reasoning_in_total
        # In every report of tokens, and in no text: there the quote would have a backslash before it.
        self._mark = b'"usage"' if dialect in LOOSE else b'_tokens"'
        # True between two events, with nothing held.
        self._resting = True
        self._begun = False
        self._held = bytearray()
        self._scanned = 0
        # True inside an event that was too long to hold.
        self._passing = False
        self._long_head = b""
        self._long_tail = bytearray()
        self._last = self._before = b""
        self._deltas = 0
        self._bytes = 0
        self._usage: Usage | None = None
        # What Anthropic reported so far, and whether that was at the end.
        self._report: dict[str, object] = {}
        self._ended = False
        self._failed = False
        self._complete = False

    @property
    def first_token(self) -> bool:
        """True once a data event was relayed: comments and keep-alives do not count."""
        return self.events > 0

    @property
    def complete(self) -> bool:
        """True once the answer was seen to be whole: its terminator or a finish reason came by."""
        return self._complete or _is_terminal(self._last) or _is_terminal(self._before)

    @property
    def errored(self) -> bool:
        """True where one of the last events reports an error."""
        return self._failed or _is_error(self._last) or _is_error(self._before)

    def feed(self, data: bytes) -> bytes:
        if self._resting and data.find(b"\r") < 0:
            mark = data.rfind(self._mark)
            if mark < 0 and data.startswith(b"data:") and data.find(b"\n") == len(data) - 2 and data[-1] == 0x0A:
                self.events += 1
                self._deltas += 1
                self._bytes += len(data)
                self._before = self._last
                self._last = data
                return data
            return self._feed_resting(data, mark)
        return self._feed_careful(data)

    def end(self) -> bytes:
        out = b""
        if self._passing:
            out = self._end_long()
        elif self._held:
            out = self._end_held(bytes(self._held))
            self._held.clear()
        if self._dialect in LOOSE and not self.mid_event:
            self._complete = True
        return out

    def usage(self) -> Usage | None:
        usage = self._usage
        if usage is None or not self._report or self._ended:
            return usage
        # Anthropic says at the start what came in, and only at the end how much went out.
        if self._deltas == 0 and self.errored:
            return None
        delivered = self.delivered()
        output_tokens = max(usage.output_tokens, delivered.output_tokens)
        return msgspec.structs.replace(usage, output_tokens=output_tokens, source=delivered.source)

    def delivered(self) -> Usage:
        """Output tokens by the number of events and the text in them, as the events that were kept show it."""
        source: UsageSource = "estimated" if self.complete else "partial"
        if self._dialect in NO_TEXT or self._deltas == 0:
            return Usage(source=source)
        frames = [frame for chunk in (self._before, self._last) for frame in _frames(chunk) if frame.data]
        size = text = count = padded = 0
        for frame in islice(frames, _SAMPLE_EVENTS_MAX):
            if (found := event_text_bytes(frame.data)) > 0:
                size += len(frame.raw)
                text += found
                count += 1
                padded += b'"obfuscation"' in frame.data
        if not count and self._deltas <= len(frames) and self.errored:
            # An error was all there was.
            return Usage(source=source)
        tokens = max(self._deltas - 1, 1)
        if count and not padded:
            envelope = (size - text) // count
            tokens = max(tokens, (self._bytes - self._deltas * envelope) // BYTES_PER_TOKEN)
        return Usage(output_tokens=tokens, source=source)

    # -- the careful way -------------------------------------------------------------------------------------

    def _feed_resting(self, data: bytes, mark: int) -> bytes:
        """Between two events: let the usual ones go in one piece. A `mark` that is not -1 says one is not usual."""
        size = data.rfind(b"\n\n", 0, len(data) if mark < 0 else data.find(self._mark)) + 2
        if size < 2:
            return self._feed_careful(data)
        usual = data[:size]
        if usual.startswith(b"data:"):
            events = deltas = _plain_events(usual)
        else:
            events = _named_events(usual) if usual.startswith(b"event:") else 0
            deltas = usual.count(b"delta\n")
        if events == 0:
            return self._feed_careful(data)
        self._note(usual, events=events, deltas=deltas)
        # Slicing all of `data` gives `data` itself.
        return usual if size == len(data) else usual + self._feed_careful(data[size:])

    def _feed_careful(self, data: bytes) -> bytes:
        out: list[bytes] = []
        if self._passing:
            data = self._feed_long(data, out)
        held = self._held
        waiting = len(held) > 0
        held += data
        if not self._begun:
            self._begin()
        start = 0
        while (end := cut(held, start, self._scanned)) >= 0:
            out.append(self._block(bytes(held[start:end])))
            start = self._scanned = end
            if waiting and end < len(held) and held.find(b"\r", end) < 0:
                # What came in pieces is whole now; what follows it may be as usual again.
                rest = bytes(held[end:])
                held.clear()
                self._scanned = 0
                out.append(self._feed_resting(rest, rest.rfind(self._mark)))
                return b"".join(out)
        # A comment line is a sign of life, not the start of an event: it need not wait for its blank line.
        comments = _COMMENTS.match(held, start)
        if comments is not None:
            out.append(comments[0])
            start = comments.end()
        del held[:start]
        self._scanned = len(held)
        if len(held) > HELD_BYTES_MAX:
            self._start_long(out)
        self._resting = self._begun and not held and not self._passing
        return out[0] if len(out) == 1 else b"".join(out)

    def _begin(self) -> None:
        """Drop a byte order mark, once enough came to tell."""
        held = self._held
        if len(held) < len(BOM) and BOM.startswith(held):
            return
        self._begun = True
        if self._repair and held.startswith(BOM):
            del held[: len(BOM)]
            self.repairs += 1

    def _block(self, raw: bytes) -> bytes:
        """One whole block; what of it is relayed."""
        if raw.startswith(b":"):
            # They may have gone ahead already, had they come alone.
            comments = _COMMENTS.match(raw)
            size = 0 if comments is None else comments.end()
            return raw[:size] + self._block(raw[size:]) if size else raw
        if raw.startswith(b"data:") and raw.find(b"\n") == len(raw) - 2 and raw[-1] == 0x0A and raw.find(b"\r") < 0:
            kept, event, data = raw, b"", raw[5:-2]
        else:
            frame = parse(raw)
            kept = self._repaired(frame) if self._repair else raw
            event, data = frame.event, frame.data
        if not data:
            return kept
        if self._mark in raw and self._reports(data):
            self._complete = True
            return b""
        self._note(raw, events=1, deltas=int(not event or event.endswith(b"delta")))
        return kept

    def _note(self, data: bytes, *, events: int, deltas: int) -> None:
        """Count whole events, and keep the end of them."""
        self.events += events
        self._deltas += deltas
        self._bytes += len(data) * deltas // events
        self._before = self._last
        if len(data) > _KEPT_BYTES:
            if events == 1:
                self._complete = self._complete or _is_terminal(data)
                self._failed = self._failed or _is_error(data)
            data = data[-_KEPT_BYTES:]
        self._last = data

    def _repaired(self, frame: Frame) -> bytes:
        """The block without the lines that SDKs choke on; empty where nothing is left."""
        raw = frame.raw
        dataless = bool(frame.event) and not frame.data
        if not dataless and _UNWANTED.search(raw) is None:
            return raw
        lines: list[bytes] = _LINE.findall(raw)
        kept = [line for line in lines if not _is_unwanted(line, dataless=dataless)]
        if len(kept) == len(lines):
            return raw
        self.repairs += 1
        text = b"".join(kept)
        return text if text.strip(b"\r\n") else b""

    def _reports(self, data: bytes) -> bool:
        """Read an event that may report usage; True where it is to be taken out."""
        try:
            answer = decode(data)
        except UNREADABLE:
            return False
        if self._dialect is Dialect.ANTHROPIC_MESSAGES:
            self._merge(answer)
            return False
        usage = usage_of(answer, trust_cost=self._trust_cost, reasoning_in_total=self._reasoning_in_total)
        if usage is None:
            return False
        self._usage = usage
        return (
            self._strip_usage
            and bytes(answer.usage).startswith(b"{")
            and is_empty_list(answer.choices)
            and not is_truthy(answer.error)
        )

    def _merge(self, answer: Answer) -> None:
        """Anthropic reports at the start, and at the end what has changed since, field by field."""
        raw = answer.usage if bytes(answer.usage) else member(answer.message, "usage")
        report = read_report(raw)
        if report is not None:
            self._report.update((name, value) for name, value in report.items() if value is not None)
            self._ended = bytes(answer.type) == b'"message_delta"'
            self._usage = normalise(self._report, trust_cost=self._trust_cost) or self._usage

    # -- events too long to hold -----------------------------------------------------------------------------

    def _start_long(self, out: list[bytes]) -> None:
        held = self._held
        out.append(bytes(held))
        self._long_head = bytes(held[:_KEPT_BYTES])
        self._long_tail = held
        self._held = bytearray()
        self._scanned = 0
        self._passing = self.mid_event = True

    def _feed_long(self, data: bytes, out: list[bytes]) -> bytes:
        """Relay what belongs to the long event; what comes after it."""
        tail = self._long_tail
        known = len(tail)
        tail += data
        end = find_blank(tail, known)
        if end < 0:
            out.append(data)
            if len(tail) > 2 * TAIL_BYTES:
                del tail[:-TAIL_BYTES]
            return b""
        out.append(data[: end - known])
        rest = bytes(tail[end:])
        del tail[end:]
        self._finish_long()
        return rest

    def _finish_long(self) -> None:
        head, text = self._long_head, bytes(self._long_tail).rstrip(b"\r\n")
        self._long_head, self._long_tail = b"", bytearray()
        self._passing = self.mid_event = False
        self.events += 1
        self._complete = self._complete or _is_terminal(head) or _is_terminal(text[-_KEPT_BYTES:])
        self._failed = self._failed or _FAILED.search(head) is not None
        raw = find_usage(text, depths=(1, 2))
        if raw is not None:
            usage = parse_usage(
                raw,
                trust_cost=self._trust_cost,
                reasoning_in_total=self._reasoning_in_total,
                service_tier=find_service_tier(text),
            )
            self._usage = usage or self._usage

    # -- the end ---------------------------------------------------------------------------------------------

    def _end_long(self) -> bytes:
        tail = self._long_tail
        whole = tail.rstrip(b"\r\n").endswith(b"}")
        # Whatever follows a last bare CR, it is no LF.
        closed = find_blank(tail + b":", len(tail)) == len(tail)
        lead = b"\n" if tail.endswith((b"\n", b"\r")) else b"\n\n"
        self._finish_long()
        if closed:
            return b""
        if whole and self._repair:
            self.repairs += 1
            return lead
        self.mid_event = True
        self._complete = self._complete and whole
        return b""

    def _end_held(self, held: bytes) -> bytes:
        """What to send for a last event without its blank line: completed if it is whole, else nothing."""
        out: list[bytes] = []
        start = 0
        # Whatever follows a last bare CR, it is no LF.
        while (end := cut(held + b":", start, start)) >= 0:
            out.append(self._block(held[start:end]))
            start = end
        rest = held[start:]
        frame = parse(rest)
        lead = b"\n" if rest.endswith((b"\n", b"\r")) else b"\n\n"
        if not rest:
            pass
        elif not self._repair:
            self.mid_event = bool(frame.data)
            out.append(self._block(rest))
        elif not frame.data:
            out.append(self._repaired(frame))
        elif _is_whole(frame.data, ended=len(lead) == 1):
            self.repairs += 1
            out.append(self._block(rest + lead))
        else:
            # Half an event is of no use to anyone, and would spoil the one that says so.
            self.repairs += 1
        return b"".join(out)


def _plain_events(data: bytes) -> int:
    """How many events of one `data` line each make up `data`, LF ends and nothing besides; 0 where it is not so."""
    lines = data.count(b"\n")
    if data.endswith(b"\n\n") and lines == 2 * (data.count(b"\n\ndata:") + 1):
        return lines >> 1
    return 0


def _named_events(data: bytes) -> int:
    """The same for events of an `event` line and a `data` line."""
    named = data.find(b"\n") + 1
    if data.startswith(b"data:", named) and data.find(b"\n", named) == len(data) - 2 and data[-1] == 0x0A:
        return 1
    lines = data.split(b"\n")
    if len(lines) % 3 != 1 or lines[-1] or any(lines[2::3]):
        return 0
    if all(line.startswith(b"event:") for line in lines[:-1:3]) and all(
        line.startswith(b"data:") for line in lines[1::3]
    ):
        return len(lines) // 3
    return 0


def _is_whole(data: bytes, *, ended: bool) -> bool:
    """True for the data of an event that lacks nothing but its blank line. `ended` where its line did end."""
    if data.strip() == b"[DONE]":
        return True
    try:
        _check(data)
    except UNREADABLE:
        return ended and not data.lstrip().startswith((b"{", b"["))
    return True


def _is_unwanted(line: bytes, *, dataless: bool) -> bool:
    name = line.partition(b":")[0].rstrip(b"\r\n")
    return name in (b"id", b"retry") or (dataless and name == b"event")


def _is_terminal(chunk: bytes) -> bool:
    return any(pattern.search(chunk) is not None for pattern in (_DONE, _FINISHED, _TERMINAL))


def _is_error(chunk: bytes) -> bool:
    if chunk.find(b"error") < 0 and chunk.find(b"failed") < 0:
        return False
    return any(_reports_error(frame) for frame in _frames(chunk) if frame.data)


def _reports_error(frame: Frame) -> bool:
    if frame.event == b"error":
        return True
    try:
        answer = decode(frame.data)
        groq = member(answer.x_groq, "error")
    except UNREADABLE:
        return False
    return is_truthy(answer.error) or is_truthy(groq) or bytes(answer.type) in (b'"error"', b'"response.failed"')


def _frames(chunk: bytes) -> list[Frame]:
    scanner = FrameScanner(event_bytes_max=len(chunk))
    frames = scanner.feed(chunk)
    rest = scanner.finish()
    return frames if rest is None else [*frames, rest]
