"""W3C trace context: who began a trace, whether it is kept, and what the next one is told. Text in, text out.

https://www.w3.org/TR/trace-context/
"""

import re
from collections.abc import Callable
from random import SystemRandom
from typing import Final, NamedTuple

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE_BYTES_MAX: Final = 512
_chance: Final = SystemRandom()


class Trace(NamedTuple):
    """One request's place in a trace. `parent_id` is 0 where the trace begins here."""

    trace_id: int
    span_id: int
    parent_id: int
    sampled: bool
    state: bytes = b""

    @property
    def header(self) -> bytes:
        """`traceparent` for those who are asked on."""
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, self.sampled)


def begin(
    traceparent: bytes | None,
    tracestate: bytes | None,
    *,
    share: float,
    trust_parent: bool,
    bits: Callable[[int], int] = _chance.getrandbits,
) -> Trace:
    """The trace that a caller is in, or a new one. `share` of those that nobody decided on are kept, by their id."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is not None and found[1] != b"ff" and not (found[1] == b"00" and found[5]):
        trace_id, parent_id = int(found[2], 16), int(found[3], 16)
        if trace_id and parent_id:
            sampled = bool(int(found[4], 16) & 1) if trust_parent else _is_kept(trace_id, share)
            state = tracestate if tracestate and len(tracestate) <= _TRACESTATE_BYTES_MAX else b""
            return Trace(trace_id, _nonzero(bits, 64), parent_id, sampled, state)
    trace_id = _nonzero(bits, 128)
    return Trace(trace_id, _nonzero(bits, 64), 0, _is_kept(trace_id, share))


def _is_kept(trace_id: int, share: float) -> bool:
    """As OpenTelemetry's TraceIdRatioBased does, so that all who see a trace agree."""
    return (trace_id & 0xFFFFFFFFFFFFFFFF) < round(share * 2**64)


def _nonzero(bits: Callable[[int], int], size: int) -> int:
    return bits(size) or 1
