"""Trace context: the vectors of the W3C's own test suite that concern a participant, and the decision to keep."""

import pytest

from gateway_plugins.tracing import begin

TRACE = b"0af7651916cd43dd8448eb211c80319c"
SPAN = b"b7ad6b7169203331"


def start(parent: bytes | None, state: bytes | None = None, *, share: float = 1.0, trust: bool = True):
    numbers = iter(range(1000, 2000))
    return begin(parent, state, share=share, trust_parent=trust, bits=lambda _: next(numbers))


@pytest.mark.parametrize(("flags", "sampled"), [(b"01", True), (b"00", False), (b"03", True), (b"02", False)])
def test_a_trace_is_continued(flags: bytes, sampled: bool) -> None:
    trace = start(b"00-%b-%b-%b" % (TRACE, SPAN, flags), b"a=1,b=2")

    assert (trace.trace_id, trace.parent_id, trace.sampled) == (int(TRACE, 16), int(SPAN, 16), sampled)
    assert trace.state == b"a=1,b=2"
    assert trace.header == b"00-%b-%016x-0%d" % (TRACE, trace.span_id, sampled)
    assert trace.span_id != trace.parent_id


def test_a_version_of_tomorrow_is_understood_as_far_as_it_goes() -> None:
    assert start(b"cc-%b-%b-01-what-the-future-brings" % (TRACE, SPAN)).trace_id == int(TRACE, 16)


@pytest.mark.parametrize(
    "parent",
    [
        None,
        b"",
        b"00-%b-%b-01-more" % (TRACE, SPAN),
        b"ff-%b-%b-01" % (TRACE, SPAN),
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"00-%b-%b-01" % (TRACE.upper(), SPAN),
        b"00-%b-%b-1" % (TRACE, SPAN),
        b"00-%b-%b-01" % (TRACE[1:], SPAN),
        b" 00-%b-%b-01" % (TRACE, SPAN),
    ],
)
def test_what_is_no_traceparent_begins_a_trace(parent: bytes | None) -> None:
    trace = start(parent, b"a=1")

    assert (trace.trace_id, trace.span_id, trace.parent_id, trace.state) == (1000, 1001, 0, b"")


def test_the_share_decides_by_the_lower_half_of_the_id() -> None:
    low, high = b"f" * 16 + b"0" * 15 + b"1", b"0" * 16 + b"f" * 16

    assert start(b"00-%b-%b-01" % (low, SPAN), share=0.5, trust=False).sampled
    assert not start(b"00-%b-%b-01" % (high, SPAN), share=0.5, trust=False).sampled
    assert start(b"00-%b-%b-00" % (high, SPAN), share=1.0, trust=False).sampled
    assert not start(None, share=0.0).sampled


def test_too_long_a_state_is_left_out() -> None:
    assert start(b"00-%b-%b-01" % (TRACE, SPAN), b"a" * 513).state == b""
