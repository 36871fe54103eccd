"""What all bridges have in common: cutting changes nothing, and what broke off never looks finished."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bridges import BRIDGES
from gateway.bridges import taps as taps_module
from gateway.bridges.bridge import Bridge
from gateway.bridges.completions import Completions
from gateway.bridges.gemini import Gemini
from gateway.bridges.messages import Messages
from gateway.exchange import Call
from gateway.wire.dialects import Dialect
from tests.gateway.bridges.streams import (
    DELTAS,
    JSON_HEAD,
    USAGE,
    call_of,
    chunk,
    events_of,
    report,
    run,
    sse,
    tap_of,
)

MESSAGES = call_of(Dialect.ANTHROPIC_MESSAGES, {"model": "m", "max_tokens": 5, "stream": True, "messages": []})
CONTENTS = {"contents": [], "generationConfig": {"thinkingConfig": {"includeThoughts": True}}}
GEMINI = call_of(Dialect.GEMINI_GENERATE, CONTENTS, query=b"alt=sse", stream=True)
COMPLETIONS = call_of(Dialect.OPENAI_COMPLETIONS, {"model": "m", "prompt": "Hi", "stream": True})
ALL: list[tuple[Bridge, Call]] = [(Messages(), MESSAGES), (Gemini(), GEMINI), (Completions(), COMPLETIONS)]
EACH = pytest.mark.parametrize(("bridge", "call"), ALL, ids=lambda value: getattr(value, "dialect", None))


@EACH
@given(deltas=DELTAS, data=st.data(), end=st.sampled_from([b"\n", b"\r\n"]))
def test_the_same_comes_out_however_it_was_cut(bridge, call, deltas, data, end):
    body = sse(*map(chunk, deltas), chunk(finish="stop"), report(), b"[DONE]").replace(b"\n", end)
    whole = tap_of(bridge, call)
    expected = whole.feed(body) + whole.end()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))

    tap = tap_of(bridge, call)
    places = [0, *cuts, len(body)]
    out = b"".join([tap.feed(body[start:stop]) for start, stop in itertools.pairwise(places)]) + tap.end()

    assert out == expected
    assert (tap.failure is None) == (whole.failure is None)
    assert tap.usage() == whole.usage()


@EACH
def test_one_byte_at_a_time_is_as_good_as_all_at_once(bridge, call):
    body = b": hm\n\n" + sse(chunk({"content": "caf\u00e9 \u2028"}), chunk(finish="stop"), report(), b"[DONE]")

    assert run(bridge, call, body, cuts=list(range(len(body)))) == run(bridge, call, body)


@EACH
@given(deltas=DELTAS, at=st.integers(0, 400))
def test_a_stream_that_breaks_off_never_looks_finished(bridge, call, deltas, at):
    body = sse(*map(chunk, deltas))[:at]
    tap = tap_of(bridge, call)

    out = tap.feed(body) + tap.end()

    assert not tap.complete
    assert not any(mark in out for mark in (b"message_stop", b"finishReason", b"[DONE]"))
    assert out == b"" or out.endswith(b"\n\n")


@EACH
def test_a_finish_reason_without_a_terminator_is_an_end(bridge, call):
    body = sse(chunk({"content": "Hi"}), chunk(finish="stop"))

    assert any(mark in run(bridge, call, body) for mark in (b"message_stop", b"finishReason", b"[DONE]"))


@EACH
def test_an_error_stops_what_came_before_it_from_looking_finished(bridge, call):
    broken = b'{"error":{"message":"Overloaded","code":503}}'
    tap = tap_of(bridge, call)

    out = tap.feed(sse(chunk({"content": "One"}), broken, b"[DONE]")) + tap.end()

    assert tap.failure is not None
    assert msgspec.json.decode(tap.failure.body) == msgspec.json.decode(broken)
    assert tap.errored
    assert not tap.complete
    assert b"One" in out
    assert not any(mark in out for mark in (b"message_stop", b"finishReason", b"[DONE]"))
    assert tap.delivered().source == "partial"


@EACH
def test_groqs_error_is_one_too(bridge, call):
    tap = tap_of(bridge, call)

    tap.feed(sse(chunk({}, x_groq={"id": "req_1", "error": {"message": "No."}})))

    assert tap.failure is not None
    assert msgspec.json.decode(tap.failure.body) == {"error": {"message": "No."}}


@EACH
@pytest.mark.parametrize("data", [b"nonsense", b"{", b"[1]", b'{"choices": 5', b"\xff\xfe"])
def test_an_event_that_cannot_be_read_is_the_providers_failure(bridge, call, data):
    tap = tap_of(bridge, call)

    tap.feed(sse(chunk({"content": "One"}), data))

    assert tap.failure is not None
    assert tap.failure.blame == "provider"
    assert tap.failure.status == 502


@EACH
def test_a_plain_body_becomes_a_stream(bridge, call):
    """Case 59."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}
    body = msgspec.json.encode({"id": "c1", "model": "m", "choices": [choice], "usage": USAGE})

    out = run(bridge, call, b"\n\n  \n" + body, cuts=[1, 9, 40], head=JSON_HEAD)

    assert b"Hello." in out
    assert len(events_of(out)) >= 2


@EACH
def test_an_answer_that_is_larger_than_can_be_gathered_is_a_failure(bridge, call):
    tap = tap_of(bridge, call, head=JSON_HEAD)
    tap.feed(b'{"x":"')
    for _ in range(taps_module.ANSWER_BYTES_MAX // 2**20):
        tap.feed(b"x" * 2**20)

    tap.end()

    assert tap.failure is not None
    assert not tap.complete


@EACH
def test_usage_is_the_adapters(bridge, call):
    tap = tap_of(bridge, call)
    tap.feed(sse(chunk({"content": "Hi"}), chunk(finish="stop"), report(), b"[DONE]"))
    tap.end()

    usage = tap.usage()

    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.input_cached_tokens) == (30, 12, 10)


@EACH
def test_state_does_not_grow_with_the_stream(bridge, call):
    tap = tap_of(bridge, call)
    writer = tap._writer
    body = sse(chunk({"content": "word "}), chunk({"reasoning_content": "hm "}))
    for _ in range(2000):
        tap.feed(body)

    def held(value: object, depth: int = 4) -> int:
        if isinstance(value, bytes | str):
            return len(value)
        if isinstance(value, list | tuple):
            return sum(held(each, depth - 1) for each in value)
        if isinstance(value, dict):
            return sum(held(each, depth - 1) for each in value.values())
        names = getattr(type(value), "__slots__", ())
        return sum(held(getattr(value, name), depth - 1) for name in names) if depth else 0

    assert held(writer) < 1000


def test_every_bridge_is_listed_under_its_own_dialect():
    assert all(bridge.dialect is dialect for dialect, bridge in BRIDGES.items())
    assert {bridge.dialect for bridge, _ in ALL} <= BRIDGES.keys()
