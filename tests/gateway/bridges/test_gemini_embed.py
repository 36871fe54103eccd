"""Embeddings asked for in Google's words of a provider that speaks OpenAI's."""

import base64
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import JSONTap, ResponseHead
from gateway.bridges import BRIDGES, reach
from gateway.errors import BadRequest
from gateway.exchange import Call
from gateway.wire.dialects import Dialect
from gateway.wire.gemini import peek_gemini

HEAD = ResponseHead(200, [])
BRIDGE = BRIDGES[Dialect.GEMINI_EMBED]
TEXT = {"content": {"parts": [{"text": "a"}]}}


def call_of(body: object, verb: str = "embedContent") -> Call:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Call(
        id="1",
        dialect=Dialect.GEMINI_EMBED,
        method="POST",
        path=f"/models/e:{verb}".encode(),
        query=b"alt=json",
        headers=[(b"content-type", b"text/json"), (b"x-goog-api-client", b"x"), (b"user-agent", b"u")],
        body=raw,
        peek=peek_gemini(raw, stream=False),
        model="e",
    )


def turned(body: bytes, *, verb: str = "embedContent", step: int = 1000):
    call = call_of(TEXT, verb)
    tap = BRIDGE.tap(call, HEAD, JSONTap(Dialect.OPENAI_EMBEDDINGS))
    out = b"".join(tap.feed(body[at : at + step]) for at in range(0, len(body), step)) + tap.end()
    return out, tap


def test_it_is_reached_by_who_embeds_and_not_by_who_only_chats() -> None:
    assert Dialect.GEMINI_EMBED in reach(frozenset({Dialect.OPENAI_EMBEDDINGS}))
    assert Dialect.GEMINI_EMBED not in reach(frozenset({Dialect.OPENAI_CHAT}))
    assert Dialect.GEMINI_GENERATE not in reach(frozenset({Dialect.OPENAI_EMBEDDINGS}))


def test_a_request_becomes_openais_and_what_is_googles_alone_is_told() -> None:
    body = TEXT | {"model": "models/other", "outputDimensionality": 3, "title": "T", "taskType": "X", "extra": None}

    opened = BRIDGE.open(call_of(body))

    call = opened.call
    assert (call.dialect, call.path, call.query) == (Dialect.OPENAI_EMBEDDINGS, b"/embeddings", b"")
    assert call.headers == [(b"user-agent", b"u"), (b"content-type", b"application/json")]
    assert msgspec.json.decode(call.body) == {
        "model": "e",
        "input": ["a"],
        "encoding_format": "float",
        "dimensions": 3,
    }
    assert call.peek.model == "e"
    assert opened.dropped == ("title", "taskType")


def test_a_batch_has_one_size_of_vectors() -> None:
    three, four = ({**TEXT, "output_dimensionality": size} for size in (3, 4))

    alike = BRIDGE.open(call_of({"requests": [three, three | {"model": "models/x"}], "odd": 1}, "batchEmbedContents"))
    with pytest.raises(BadRequest, match="outputDimensionality"):
        BRIDGE.open(call_of({"requests": [three, four]}, "batchEmbedContents"))

    assert msgspec.json.decode(alike.call.body)["input"] == ["a", "a"]
    assert alike.dropped == ("odd",)


def test_vectors_are_in_the_order_of_the_texts_and_keep_their_spelling() -> None:
    body = b'{"object":"list","data":[{"index":1,"embedding":[1e-7]},{"index":0,"embedding":[1.0,2]}],"usage":{"prompt_tokens":4,"total_tokens":4}}'  # fmt: skip

    out, tap = turned(body, verb="batchEmbedContents", step=7)
    alone, _ = turned(body)

    assert out == b'{"embeddings":[{"values":[1.0,2]},{"values":[1e-7]}]}'
    assert alone == b'{"embedding":{"values":[1.0,2]}}'
    assert tap.complete
    assert tap.content_type == b"application/json"
    usage = tap.usage()
    assert usage is not None
    assert usage.input_tokens == 4


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_packed_vectors_are_unpacked(vector: list[float]) -> None:
    packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

    out, _ = turned(msgspec.json.encode({"data": [{"embedding": packed}]}))

    assert msgspec.json.decode(out) == {"embedding": {"values": vector}}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"no",
        b'{"data":[]}',
        b'{"data":[{}]}',
        b'{"data":[{"embedding":"!"}]}',
        b'{"data":[{"embedding":"YQ=="}]}',
        b'{"error":{"message":"No."}}',
    ],
)
def test_what_is_no_embedding_is_a_failure(body: bytes) -> None:
    out, tap = turned(body)

    assert out == b""
    assert tap.failure is not None
    assert not tap.complete
