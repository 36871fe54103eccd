"""Whatever a caller or a provider sends, translating it ends in something that can be read, or in an error of ours."""

import base64
import itertools
import random
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import BadRequest, Call, Dialect, ResponseHead, peek
from gateway.wire.sse import FrameScanner
from gateway_adapters.embeddings import pack
from gateway_adapters.google.answers import GoogleStreamTap, GoogleWholeTap
from gateway_adapters.google.chat import generate_request
from gateway_adapters.google.embeddings import batch_request, embed_tap
from gateway_adapters.google.failures import failure_inside
from gateway_adapters.google.signatures import Signatures

HEAD = ResponseHead(200, [(b"date", b"Sun, 22 Nov 2026 10:00:00 GMT")])

words = st.text(max_size=6)
junk = st.none() | st.booleans() | st.integers(-3, 3) | words | st.lists(words, max_size=2) | st.dictionaries(words, words, max_size=2)  # fmt: skip
text_part = st.fixed_dictionaries({"type": st.just("text"), "text": words})
image_part = st.fixed_dictionaries(
    {
        "type": st.just("image_url"),
        "image_url": st.fixed_dictionaries(
            {"url": st.sampled_from(["https://a.example/x.png", "data:image/png;base64,iVBORw0KGgo=", "http://x", "gs://a/b"])}
        ),
    }
)  # fmt: skip
contents = st.none() | words | st.lists(text_part | image_part, max_size=3)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from(["a", "b"]),
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": words, "arguments": st.sampled_from(["", "{}", '{"a":1}', "[", "1"])}),
        }
    ),
    min_size=1,
    max_size=2,
)  # fmt: skip
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user"]), "content": contents})
    | st.fixed_dictionaries({"role": st.just("assistant"), "content": contents}, optional={"tool_calls": calls})
    | st.fixed_dictionaries({"role": st.just("tool"), "content": words, "tool_call_id": st.sampled_from(["a", "b", "c"])}),
    max_size=6,
)  # fmt: skip
options = st.dictionaries(
    st.sampled_from(
        [
            *("temperature", "stop", "n", "max_tokens", "response_format", "reasoning_effort", "reasoning"),
            *("tool_choice", "modalities", "extra_body", "seed", "user", "logprobs", "tools", "made_up"),
        ]
    ),
    junk,
    max_size=4,
)


def call_of(body: bytes, dialect: Dialect = Dialect.OPENAI_CHAT) -> Call:
    return Call(
        id="case", dialect=dialect, method="POST", path=b"", query=b"", headers=[], body=body, peek=peek(body), model="m"
    )  # fmt: skip


@given(messages, options)
def test_any_request_is_translated_or_refused(said: object, more: dict[str, object]) -> None:
    body = msgspec.json.encode({"model": "m", "messages": said, **more})
    try:
        made, dropped = generate_request(call_of(body), "gemini-3-pro", Signatures())
    except BadRequest:
        return

    sent = msgspec.json.decode(made)
    roles = [turn["role"] for turn in sent["contents"]]
    assert roles
    assert all(first != second for first, second in itertools.pairwise(roles))
    assert all(name in more for name in dropped)
    answered = [part for turn in sent["contents"] for part in turn["parts"] if "functionResponse" in part]
    assert all(isinstance(part["functionResponse"]["response"], dict) for part in answered)


parts = st.lists(
    st.fixed_dictionaries({}, optional={"text": words, "thought": st.booleans()})
    | st.fixed_dictionaries(
        {"functionCall": st.fixed_dictionaries({"name": words}, optional={"id": words, "args": st.just({"a": 1})})},
        optional={"thoughtSignature": words},
    ),
    max_size=3,
)
candidates = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "content": st.fixed_dictionaries({}, optional={"parts": parts}),
            "index": st.integers(0, 2),
            "finishReason": st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY", "OTHER", "NEW_ONE"]),
        },
    ),
    max_size=3,
)
answers = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "candidates": candidates,
            "promptFeedback": st.sampled_from([{}, {"blockReason": "SAFETY"}]),
            "usageMetadata": st.sampled_from([{}, {"promptTokenCount": 3, "totalTokenCount": 5}, {"promptTokenCount": -1}]),
            "error": st.sampled_from([{"code": 503, "message": "m", "status": "UNAVAILABLE"}, {"status": "NOT_FOUND"}]),
        },
    ),
    max_size=5,
)  # fmt: skip


@given(answers, st.integers(0, 2**32))
def test_any_stream_gives_chunks_that_an_sdk_can_read(events: list[object], seed: int) -> None:
    """And the same ones however it is cut."""
    body = b"".join(b"data: " + msgspec.json.encode(event) + b"\r\n\r\n" for event in events)
    call = call_of(b'{"stream":true,"stream_options":{"include_usage":true}}')
    chance = random.Random(seed)
    marks = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(6)))
    outs: list[bytes] = []
    for cuts in ([], marks):
        tap = GoogleStreamTap(call, HEAD, Signatures())
        out = b"".join([tap.feed(body[start:end]) for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)])
        outs.append(out + tap.end())
        assert not tap.mid_event
        assert not tap.complete or b'"finish_reason":"' in outs[-1]
    whole, cut = outs
    assert whole == cut

    frames = FrameScanner().feed(whole)
    assert b"".join(frame.raw for frame in frames) == whole
    finished: set[int] = set()
    numbers: dict[int, int] = {}
    for frame in frames:
        if frame.data == b"[DONE]":
            assert frame is frames[-1]
            continue
        chunk = msgspec.json.decode(frame.data)
        for choice in chunk["choices"]:
            for made in choice["delta"].get("tool_calls", ()):
                assert made["index"] == numbers.get(choice["index"], 0)
                numbers[choice["index"]] = made["index"] + 1
                assert isinstance(msgspec.json.decode(made["function"]["arguments"]), dict)
            if choice["finish_reason"]:
                assert choice["index"] not in finished
                finished.add(choice["index"])


@given(answers)
def test_any_plain_answer_is_a_completion_or_a_failure(events: list[object]) -> None:
    for stream in (True, False):
        tap = GoogleWholeTap(call_of(b'{"stream":true}' if stream else b"{}"), HEAD, Signatures())
        assert tap.feed(msgspec.json.encode(events)) == b""
        out = tap.end()

        assert (tap.failure is None) is tap.complete
        if tap.complete and not stream:
            found = msgspec.json.decode(out)
            assert all(choice["finish_reason"] for choice in found["choices"])
            assert len({choice["index"] for choice in found["choices"]}) == len(found["choices"])


@given(st.binary(max_size=60))
def test_no_bytes_of_a_provider_raise(data: bytes) -> None:
    stream = GoogleStreamTap(call_of(b'{"stream":true}'), HEAD, Signatures())
    stream.feed(data)
    stream.feed(b"data: " + data + b"\n\n")
    stream.end()
    for tap in (GoogleWholeTap(call_of(b"{}"), HEAD, Signatures()), embed_tap(call_of(b'{"input":"x"}'), HEAD)):
        tap.feed(data)
        tap.end()
        assert tap.complete is (tap.failure is None)
    assert failure_inside(data, secret="").status


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8))
def test_vectors_are_packed_as_openai_packs_them(vector: list[float]) -> None:
    """Case 9."""
    text = pack(msgspec.Raw(msgspec.json.encode(vector)))

    assert list(struct.unpack(f"<{len(vector)}f", base64.b64decode(text))) == vector


@pytest.mark.parametrize("value", ['""', "[]", '["a",1]', "[[1]]", "null", '{"a":1}', '["a","b"]'])
def test_only_texts_are_embedded(value: str) -> None:
    call = call_of(f'{{"model":"m","input":{value}}}'.encode(), Dialect.OPENAI_EMBEDDINGS)
    if value in ('""', '["a","b"]'):
        assert batch_request(call, "models/m")[0]
        return
    with pytest.raises(BadRequest):
        batch_request(call, "models/m")
