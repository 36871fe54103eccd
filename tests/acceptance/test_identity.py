"""Byte identity on generated traffic: what a caller and a provider of the same dialect say to each other arrives as
it was said, whatever it is and however it is cut.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.settings import Objects, Settings
from gateway.wire.peek import peek
from tests.acceptance.answers import SSE
from tests.gateways import RunningGateway
from tests.upstreams import ScriptedUpstream, chunk

SOME = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

# -- JSON as people and programs really write it ---------------------------------------------------------------------

SPACE = st.sampled_from(["", "", "", " ", "\n", "\t ", "\r\n  "])
NUMBERS = st.one_of(
    st.sampled_from(
        ["0", "-0", "-0.0", "1.0", "1e400", "1E-7", "0.10", "9007199254740993", "123456789012345678901234"]
    ),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
CHARACTERS = st.one_of(
    st.characters(exclude_characters='"\\', exclude_categories=("Cs", "Cc")),
    st.sampled_from(
        [
            "\\n",
            '\\"',
            "\\\\",
            "\\/",
            "\\u0041",
            "\\ud83d\\ude00",
            "\\ud800",
            "\u2028",
            "\u0085",
            "\U0001f600",
            "data: ",
            "[DONE]",
        ]
    ),
)
STRINGS = st.lists(CHARACTERS, max_size=12).map(lambda parts: '"' + "".join(parts) + '"')
SCALARS = st.one_of(NUMBERS, STRINGS, st.sampled_from(["true", "false", "null"]))
#: Members that the gateway acts on are put in by the tests.
NAMES = STRINGS.filter(lambda text: text not in {'"model"', '"stream"', '"stream_options"', '"n"'})


def members(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    pair = st.tuples(SPACE, NAMES, SPACE, SPACE, values, SPACE).map(
        lambda p: f"{p[0]}{p[1]}{p[2]}:{p[3]}{p[4]}{p[5]}"
    )
    return st.lists(pair, max_size=4)


def enclose(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arrays = st.lists(st.tuples(SPACE, values, SPACE).map("".join), max_size=4).map(
        lambda items: f"[{','.join(items)}]"
    )
    return st.one_of(arrays, members(values).map(lambda pairs: "{" + ",".join(pairs) + "}"))


VALUES = st.recursive(SCALARS, enclose, max_leaves=12)


@st.composite
def requests(draw, *, stream: bool | None) -> bytes:
    """A request body with a model somewhere among the members."""
    pairs = draw(members(VALUES))
    own = [draw(st.sampled_from(['"model":"gpt-x"', '"model" : "gpt-x" ', '"mod\\u0065l":"gpt-\\u0078"']))]
    if stream is not None:
        own.append('"stream":true' if stream else draw(st.sampled_from(['"stream":false', '"stream": null'])))
    for pair in own:
        pairs.insert(draw(st.integers(0, len(pairs))), pair)
    return (draw(SPACE) + "{" + ",".join(pairs) + "}" + draw(SPACE)).encode()


OBJECTS = members(VALUES).map(lambda pairs: ("{" + ",".join(pairs) + "}").encode())
HEADER_VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20).map(
    str.encode
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"x-made-up", b"x-request-id", b"openai-processing-ms", b"etag", b"x-groq-id"]),
        HEADER_VALUES,
    ),
    max_size=5,
    unique_by=lambda pair: pair[0],
)


@st.composite
def streams(draw) -> bytes:
    """An event stream that needs no repair and ends in its mark."""
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    blocks = []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["data", "data", "data", "tight", "named", "comment", "two lines"]))
        data = draw(OBJECTS).replace(b"\r", b" ").replace(b"\n", b" ")
        blocks.append(
            {
                "data": b"data: " + data,
                "tight": b"data:" + data,
                "named": b"event: thing" + end + b"data: " + data,
                "comment": b": OPENROUTER PROCESSING",
                "two lines": b"data: {" + end + b"data: }",
            }[kind]
        )
    blocks.append(b"data: [DONE]")
    return b"".join(block + end + end for block in blocks)


# -- a provider that says what it is told to -------------------------------------------------------------------------


class Parrot:
    """Answers every request with `head` and `body`, in pieces of `each` bytes on the wire and in its own framing."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.chunked = False
        self.each: int | None = None

    async def __call__(self, peer) -> None:
        while True:
            await peer.receive()
            lines = b"".join(b"%b: %b\r\n" % pair for pair in self.headers)
            framing = b"transfer-encoding: chunked" if self.chunked else b"content-length: %d" % len(self.body)
            await peer.send(b"HTTP/1.1 %d X\r\n%b%b\r\n\r\n" % (self.status, lines, framing))
            step = self.each or len(self.body) or 1
            pieces = [self.body[at : at + step] for at in range(0, len(self.body), step)]
            for piece in pieces:
                await peer.send(chunk(piece) if self.chunked else piece)
                if len(pieces) > 1:
                    await asyncio.sleep(0)
            if self.chunked:
                await peer.send(b"0\r\n\r\n")


@pytest.fixture
async def parrot(both_stores, server) -> AsyncIterator[tuple[Parrot, RunningGateway, ScriptedUpstream]]:
    parrot = Parrot()
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream(parrot))
        gateway = await stack.enter_async_context(
            RunningGateway(
                both_stores,
                providers={"local": upstream},
                server=server,
                settings=Settings(objects=Objects(relay=("/odd",))),
            )
        )
        yield parrot, gateway, upstream


@SOME
@given(
    body=requests(stream=False),
    answer=OBJECTS,
    headers=HEADERS,
    status=st.sampled_from([200, 201, 400, 404, 422, 500]),
    framing=st.tuples(st.booleans(), st.sampled_from([None, 1, 7])),
)
async def test_plain_traffic_is_untouched(parrot, body, answer, headers, status, framing):  # noqa: PLR0917
    bird, gateway, upstream = parrot
    bird.status, bird.body = status, answer
    bird.chunked, bird.each = framing
    bird.headers = [(b"content-type", b"application/json"), *headers]

    answered = await gateway.ask(body)

    assert upstream.requests[-1].body == body
    assert (answered.status, answered.body, answered.whole) == (status, answer, True)
    assert [pair for pair in answered.headers if pair in headers] == headers


@SOME
@given(body=requests(stream=True), answer=streams(), headers=HEADERS, each=st.sampled_from([None, 1, 3, 64]))
async def test_streams_are_untouched(parrot, body, answer, headers, each):
    """But for the one span that asks for the usage."""
    bird, gateway, upstream = parrot
    bird.status, bird.body, bird.chunked, bird.each = 200, answer, True, each
    bird.headers = [*SSE, *headers]

    answered = await gateway.ask(body)

    sent = upstream.requests[-1].body
    asked = b'"stream_options":{"include_usage":true}'
    assert sent.count(asked) == 1
    assert body in {sent.replace(b"," + asked, b""), sent.replace(asked + b",", b"")}
    assert peek(sent).include_usage
    assert (answered.status, answered.body, answered.whole) == (200, answer, True)
    assert [pair for pair in answered.headers if pair in headers] == headers


@SOME
@given(body=st.binary(max_size=2000), answer=st.binary(max_size=2000), chunked=st.booleans())
async def test_what_is_not_understood_is_untouched(parrot, body, answer, chunked):
    """Any bytes on a path that the operator opened, both ways."""
    bird, gateway, upstream = parrot
    bird.status, bird.body, bird.chunked, bird.each = 200, answer, chunked, None
    bird.headers = [(b"content-type", b"application/octet-stream")]

    answered = await gateway.ask(
        body, path=b"/v1/odd/upload?a=%2F&b", headers=[(b"content-type", b"application/octet-stream")]
    )

    assert upstream.requests[-1].body == body
    assert upstream.requests[-1].target == b"/v1/odd/upload?a=%2F&b"
    assert (answered.body, answered.whole) == (answer, True)
