"""Chat answers for the tests of bridges, and what bridges make of them in any cutting."""

import itertools
from typing import Any

import msgspec
from hypothesis import strategies as st

from gateway.api import ResponseHead, Tap
from gateway.bridges.bridge import Bridge
from gateway.exchange import Call
from gateway.wire.dialects import Dialect
from gateway.wire.peek import peek
from gateway.wire.sse_tap import SSETap
from gateway.wire.taps import JSONTap

HEAD = ResponseHead(200, [(b"content-type", b"text/event-stream")])
JSON_HEAD = ResponseHead(200, [(b"content-type", b"application/json")])
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 12,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 10},
    "completion_tokens_details": {"reasoning_tokens": 8},
}


def call_of(
    dialect: Dialect, members: dict[str, Any] | bytes, *, path: bytes = b"", query: bytes = b"", **peeked: Any
):
    body = members if isinstance(members, bytes) else msgspec.json.encode(members)
    found = msgspec.structs.replace(peek(body), **peeked) if peeked else peek(body)
    return Call(
        id="01a2",
        dialect=dialect,
        method="POST",
        path=path,
        query=query,
        headers=[(b"content-type", b"application/json")],
        body=body,
        peek=found,
        model="gpt-x",
    )


def chunk(delta: dict[str, Any] | None = None, *, finish: str | None = None, index: int = 0, **members: Any) -> bytes:
    choices = [{"index": index, "delta": delta or {}, "finish_reason": finish}]
    return msgspec.json.encode({"id": "c1", "created": 5, "model": "m", "choices": choices, **members})


def report() -> bytes:
    return msgspec.json.encode({"id": "c1", "model": "m", "choices": [], "usage": USAGE})


def sse(*data: bytes) -> bytes:
    return b"".join(b"data: %b\n\n" % event for event in data)


def tap_of(bridge: Bridge, call: Call, *, head: ResponseHead = HEAD) -> Tap:
    inner: Tap
    inner = SSETap(Dialect.OPENAI_CHAT, strip_usage=True) if head is HEAD else JSONTap(Dialect.OPENAI_CHAT)
    return bridge.tap(call, head, inner)


def run(
    bridge: Bridge, call: Call, body: bytes, *, cuts: list[int] | None = None, head: ResponseHead = HEAD
) -> bytes:
    """What the caller gets for a body that comes in pieces."""
    tap = tap_of(bridge, call, head=head)
    places = [0, *sorted(cuts or ()), len(body)]
    out = b"".join([tap.feed(body[start:stop]) for start, stop in itertools.pairwise(places)])
    out += tap.end()
    assert tap.failure is None
    assert tap.complete
    assert not tap.mid_event
    return out


def events_of(body: bytes) -> list[Any]:
    """The data of an event stream."""
    assert body.endswith(b"\n\n")
    lines = [line for block in body[:-2].split(b"\n\n") for line in block.split(b"\n")]
    found = [line[6:] for line in lines if line.startswith(b"data: ")]
    return [data if data == b"[DONE]" else msgspec.json.decode(data) for data in found]


TEXTS = st.text(max_size=8)
PIECES = st.one_of(
    TEXTS.map(lambda text: {"content": text}),
    TEXTS.map(lambda text: {"reasoning_content": text}),
    st.tuples(st.integers(0, 3), st.sampled_from(["", "{", '"a":', '"\\', '"}', "[1]", "}", '{"x":1}'])).map(
        lambda pair: {"tool_calls": [{"index": pair[0], "function": {"arguments": pair[1]}}]}
    ),
    st.integers(0, 3).map(
        lambda index: {
            "tool_calls": [
                {"index": index, "id": f"call_{index}", "function": {"name": f"f{index}", "arguments": ""}}
            ]
        }
    ),
)
#: Deltas in any order, sensible or not.
DELTAS = st.lists(PIECES, max_size=12)
