"""Taps: they watch an answer pass and know at its end what it used and whether it was whole.

Here are those for plain bodies; `sse_tap.py` has the one for streams of events, `media_taps.py` those for what is no
text.

Rules:
- What comes in goes out, byte for byte.
- A tap that can't understand goes on relaying. It never raises on anything a provider sends.
- State is bounded, whatever the length of the body: all of it, or the end of a long one.

Structurally these are the `Tap` of `gateway.api`; this layer may not import it.
"""

from gateway.wire.answer import BYTES_PER_TOKEN, NO_TEXT, UNREADABLE, answer_text_bytes, decode, is_truthy, usage_of
from gateway.wire.dialects import Dialect
from gateway.wire.sse_tap import TAIL_BYTES, SSETap
from gateway.wire.usage import Usage, UsageSource, find_service_tier, find_usage, parse_usage

#: A body up to this size is kept whole.
BODY_BYTES_MAX = 2 * TAIL_BYTES
_PARTS_MAX = 256


class PassTap:
    """For bodies that are not understood: counts nothing, whole at a clean end."""

    #: What goes out has the length of what came in, and is what it was.
    rewrites = False
    content_type = None
    failure = None

    __slots__ = ("complete", "errored", "events", "mid_event", "repairs")

    def __init__(self) -> None:
        self.complete = False
        self.errored = False
        self.events = 0
        self.mid_event = False
        self.repairs = 0

    @property
    def first_token(self) -> bool:
        return self.events > 0

    def feed(self, data: bytes) -> bytes:
        self.events += 1
        return data

    def end(self) -> bytes:
        self.complete = True
        return b""

    def usage(self) -> Usage | None:
        return None

    def delivered(self) -> Usage:
        return Usage(source="estimated" if self.complete else "partial")


class JSONTap:
    """For a plain JSON body: keeps it, or the end of a long one, and reads its usage when asked after the end."""

    rewrites = False
    content_type = None
    failure = None
    __slots__ = (
        "_dialect",
        "_kept",
        "_parts",
        "_reasoning_in_total",
        "_size",
        "_tail",
        "_trust_cost",
        "complete",
        "errored",
        "mid_event",
        "repairs",
    )

    def __init__(self, dialect: Dialect, *, trust_cost: bool = False, reasoning_in_total: bool = False) -> None:
        self.complete = False
        self.errored = False
        self.mid_event = False
        self.repairs = 0
        self._dialect = dialect
        self._trust_cost = trust_cost
        self._reasoning_in_total = reasoning_in_total
        self._parts: list[bytes] = []
        self._size = self._kept = 0
        #: True once the start was let go.
        self._tail = False

    @property
    def first_token(self) -> bool:
        return self._size > 0

    def feed(self, data: bytes) -> bytes:
        self._parts.append(data)
        self._size += len(data)
        self._kept += len(data)
        if self._kept > BODY_BYTES_MAX or len(self._parts) > _PARTS_MAX:
            self._fold()
        return data

    def end(self) -> bytes:
        text = self._fold()
        self.complete = text.endswith(b"}") or text.rstrip().endswith((b"}", b"]"))
        return b""

    def usage(self) -> Usage | None:
        text = self._fold()
        if self._tail:
            raw = find_usage(text)
            if raw is None:
                return None
            tier = find_service_tier(text)
            return parse_usage(
                raw,
                trust_cost=self._trust_cost,
                reasoning_in_total=self._reasoning_in_total,
                service_tier=tier,
            )
        try:
            answer = decode(text)
        except UNREADABLE:
            return self._misnamed(text)
        self.errored = is_truthy(answer.error)
        return usage_of(answer, trust_cost=self._trust_cost, reasoning_in_total=self._reasoning_in_total)

    def delivered(self) -> Usage:
        source: UsageSource = "estimated" if self.complete else "partial"
        if self.errored or self._dialect in NO_TEXT:
            return Usage(source=source)
        # A body has more in it than text: log probabilities are many times as long as what they are about.
        text = 0 if self._tail else answer_text_bytes(self._fold())
        tokens = -(-text // BYTES_PER_TOKEN) if text else self._size // BYTES_PER_TOKEN
        return Usage(output_tokens=tokens, source=source)

    def _fold(self) -> bytes:
        """What is kept, in one piece: all of it, or the end."""
        text = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if len(text) > BODY_BYTES_MAX:
            text = text[-TAIL_BYTES:]
            self._tail = True
        self._parts = [text]
        self._kept = len(text)
        return text

    def _misnamed(self, text: bytes) -> Usage | None:
        """The usage of an event stream that a provider labelled as JSON."""
        if not text.lstrip().startswith((b"data:", b"event:", b":")):
            return None
        events = SSETap(self._dialect, trust_cost=self._trust_cost, reasoning_in_total=self._reasoning_in_total)
        events.feed(text)
        events.end()
        self.errored = events.errored
        return events.usage()
