"""Bedrock: where a request goes and how it is signed, what of a chat Converse is told, and streams cut anywhere."""

import itertools
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import (
    BadRequest,
    Call,
    ConfigError,
    Dialect,
    Offer,
    ProviderConfig,
    ResponseHead,
    Secret,
    UpstreamRequest,
    peek,
)
from gateway.registry import known_providers
from gateway.testing.cases import frame, play
from gateway_adapters.bedrock.adapter import Bedrock
from gateway_adapters.bedrock.answer import ConverseTap
from gateway_adapters.sigv4 import Signer

NOW_S = datetime(2026, 11, 22, 10, 0, tzinfo=UTC).timestamp()
CLAUDE = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
KEYS: dict[str, object] = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "wJalr/EXAMPLE"}
STREAM_HEAD = ResponseHead(200, [(b"content-type", b"application/vnd.amazon.eventstream")])


def bedrock(base_url: str | None = None, key: str | None = None, **extra: object) -> Bedrock:
    adapter = Bedrock(now_s=lambda: NOW_S)
    adapter.configure(
        ProviderConfig(name="bedrock", base_url=base_url, api_key=Secret(key) if key else None, extra=extra)
    )
    return adapter


def chat(**members: Any) -> Call:
    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **members})
    return Call(
        id="1",
        dialect=Dialect.OPENAI_CHAT,
        method="POST",
        path=b"/chat/completions",
        query=b"",
        headers=[(b"authorization", b"Bearer gw_live_caller"), (b"x-amz-security-token", b"evil")],
        body=body,
        peek=peek(body),
        model="m",
    )


def send(adapter: Bedrock | None = None, model: str = CLAUDE, **members: Any) -> UpstreamRequest:
    adapter = adapter or bedrock(key="k")
    return adapter.prepare(chat(**members), Offer(model="m", provider="bedrock", upstream_model=model))


def told(model: str = CLAUDE, **members: Any) -> dict[str, Any]:
    sent = send(model=model, **members)
    assert isinstance(sent.body, bytes)
    return dict(msgspec.json.decode(sent.body))


def test_a_request_is_signed_as_it_is_sent() -> None:
    sent = send(bedrock(**KEYS, session_token="t0k3n", region="eu-central-1"))

    assert sent.origin.host == "bedrock-runtime.eu-central-1.amazonaws.com"
    assert sent.target == b"/model/eu.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse"
    headers = dict(sent.headers)
    assert headers[b"x-amz-date"] == b"20261122T100000Z"
    assert headers[b"x-amz-security-token"] == b"t0k3n"
    assert isinstance(sent.body, bytes)
    expected = Signer(
        access_key_id="AKIDEXAMPLE",
        secret_access_key="wJalr/EXAMPLE",
        session_token="t0k3n",
        region="eu-central-1",
        service="bedrock",
    ).sign(
        method=b"POST",
        host=b"bedrock-runtime.eu-central-1.amazonaws.com",
        path=sent.target,
        headers=[(b"content-type", b"application/json")],
        body=sent.body,
        now_s=NOW_S,
    )
    assert set(expected) <= set(sent.headers)
    assert len(headers) == len(sent.headers)
    assert (
        b"Credential=AKIDEXAMPLE/20261122/eu-central-1/bedrock/aws4_request, "
        b"SignedHeaders=content-type;host;x-amz-date;x-amz-security-token," in headers[b"authorization"]
    )


def test_the_signature_is_of_the_moment_it_is_made() -> None:
    times = iter([NOW_S, NOW_S + 1])
    adapter = Bedrock(now_s=lambda: next(times))
    adapter.configure(ProviderConfig(name="b", base_url=None, api_key=None, extra=KEYS))

    first, second = (dict(send(adapter).headers) for _ in range(2))

    assert first[b"authorization"] != second[b"authorization"]
    assert (first[b"x-amz-date"], second[b"x-amz-date"]) == (b"20261122T100000Z", b"20261122T100001Z")


def test_an_api_key_is_sent_as_it_is() -> None:
    headers = dict(send(bedrock(key="ABSK-1")).headers)

    assert headers[b"authorization"] == b"Bearer ABSK-1"
    assert not [name for name in headers if name.startswith(b"x-amz-")]


def test_an_access_key_goes_before_an_api_key() -> None:
    assert dict(send(bedrock(key="ABSK-1", **KEYS)).headers)[b"authorization"].startswith(b"AWS4-HMAC-SHA256 ")


@pytest.mark.parametrize(
    ("base_url", "extra", "host", "region"),
    [
        (None, {}, "bedrock-runtime.us-east-1.amazonaws.com", b"us-east-1"),
        (None, {"region": "us-gov-west-1"}, "bedrock-runtime.us-gov-west-1.amazonaws.com", b"us-gov-west-1"),
        ("https://bedrock-runtime-fips.us-west-2.amazonaws.com", {}, None, b"us-west-2"),
        ("https://vpce-1.bedrock-runtime.eu-west-1.vpce.amazonaws.com", {}, None, b"eu-west-1"),
        ("http://127.0.0.1:9", {"region": "eu-west-3"}, "127.0.0.1", b"eu-west-3"),
    ],
)
def test_the_region_is_in_the_address_or_in_the_table(
    base_url: str | None, extra: dict[str, object], host: str | None, region: bytes
) -> None:
    sent = send(bedrock(base_url, **KEYS, **extra))

    assert sent.origin.host == (host or (base_url or "").removeprefix("https://"))
    assert b"/" + region + b"/bedrock/" in dict(sent.headers)[b"authorization"]


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({}, "api_key"),
        ({"access_key_id": "A"}, "secret_access_key"),
        ({"secret_access_key": "S"}, "access_key_id"),
        ({**KEYS, "access_key_id": 5}, "access_key_id"),
        ({**KEYS, "session_token": "two\nlines"}, "session_token"),
        ({**KEYS, "region": "eu"}, "region"),
        ({**KEYS, "base_url": "https://bedrock.internal"}, "region"),
        ({**KEYS, "base_url": "ftp://x"}, "base_url"),
        ({"key": "two\nlines"}, "api_key"),
        ({"key": "k", "regoin": "eu-west-1"}, "regoin"),
    ],
)
def test_a_wrong_table_is_refused(arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bedrock(**arguments)

    assert caught.value.param == param
    assert "two" not in caught.value.message


def test_its_usual_variable_turns_it_on() -> None:
    known = known_providers()["bedrock"]

    assert (known.adapter, known.variable, known.base_url) == ("bedrock", "AWS_BEARER_TOKEN_BEDROCK", "")


# -- what Converse is told -----------------------------------------------------------------------------------


def test_results_of_tools_and_what_follows_are_one_turn() -> None:
    """Cases 25 and 27."""
    calls = [
        {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": ""}} for number in range(4)
    ]
    results = [{"role": "tool", "tool_call_id": f"c{number}", "content": str(number)} for number in range(4)]
    body = told(
        messages=[
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "tool_calls": calls},
            *results,
            {"role": "user", "content": "c"},
        ]
    )

    first, second, third = body["messages"]
    assert first == {"role": "user", "content": [{"text": "a"}, {"text": "b"}]}
    assert [use["toolUse"]["input"] for use in second["content"]] == [{}] * 4
    assert [block["toolResult"]["toolUseId"] for block in third["content"][:4]] == ["c0", "c1", "c2", "c3"]
    assert third["content"][4:] == [{"text": "c"}]
    # Bedrock refuses calls in a history for which no tool is there.
    assert body["toolConfig"]["tools"] == [
        {"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object", "properties": {}}}}}
    ]


def test_functions_of_an_old_history_are_tools() -> None:
    body = told(
        messages=[
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
        ]
    )

    use, result = body["messages"][1]["content"][0], body["messages"][2]["content"][0]
    assert use["toolUse"]["toolUseId"] == result["toolResult"]["toolUseId"] == "call_fn_1"


def test_a_schema_arrives_as_it_was_written() -> None:
    """Case 29."""
    schema = b'{"$defs":{"\xc3\xa4":{"enum":["x",1.0]}},"anyOf":[{"$ref":"#/$defs/\xc3\xa4"}],"additionalProperties": false}'
    call = chat()
    tools = b',"tools":[{"type":"function","function":{"name":"f","parameters":' + schema + b"}}]}"
    body = call.body[:-1] + tools
    call = msgspec.structs.replace(call, body=body, peek=peek(body))

    sent = bedrock(key="k").prepare(call, Offer(model="m", provider="b", upstream_model=CLAUDE))

    assert isinstance(sent.body, bytes)
    assert b'"inputSchema":{"json":' + schema + b"}" in sent.body


@pytest.mark.parametrize(
    ("model", "members", "fields", "dropped"),
    [
        (CLAUDE, {"reasoning_effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, ()),
        (CLAUDE, {"reasoning_effort": "low", "max_tokens": 500}, None, ("reasoning_effort",)),
        (CLAUDE, {"reasoning_effort": "none"}, None, ()),
        (CLAUDE, {"thinking": {"type": "disabled"}}, {"thinking": {"type": "disabled"}}, ()),
        (CLAUDE, {"temperature": 1, "top_p": 0.5, "top_k": 3}, {"top_k": 3}, ("top_p",)),
        (
            "anthropic.claude-opus-4-6-v1",
            {"reasoning_effort": "xhigh"},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
            (),
        ),
        ("anthropic.claude-opus-4-7", {"temperature": 0.5, "top_k": 3}, None, ("temperature", "top_k")),
        ("amazon.nova-pro-v1:0", {"reasoning_effort": "none", "top_k": 3}, None, ("top_k",)),
        ("openai.gpt-oss-120b-1:0", {"reasoning_effort": "max"}, {"reasoning_effort": "high"}, ()),
        ("mistral.large", {"reasoning_effort": "low", "seed": 1}, None, ("reasoning_effort", "seed")),
        ("mistral.large", {"additionalModelRequestFields": {"x": 1}}, {"x": 1}, ()),
    ],
)
def test_what_only_a_models_maker_understands(
    model: str, members: dict[str, Any], fields: dict[str, Any] | None, dropped: tuple[str, ...]
) -> None:
    assert told(model, **members).get("additionalModelRequestFields") == fields
    assert send(model=model, **members).dropped == dropped


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "sometimes"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": "Hi"}, "messages"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"additionalModelRequestFields": [1]}, "additionalModelRequestFields"),
    ],
)
def test_what_can_not_be_told_is_refused_by_name(members: dict[str, Any], param: str) -> None:
    """Case 23 among them."""
    with pytest.raises(BadRequest) as caught:
        send(**members)

    assert caught.value.param == param


# -- streams -------------------------------------------------------------------------------------------------


def event(kind: str, **payload: Any) -> bytes:
    headers = {":message-type": "event", ":event-type": kind, ":content-type": "application/json"}
    return frame(headers, msgspec.json.encode(payload))


def exception(kind: str, message: str) -> bytes:
    return frame({":message-type": "exception", ":exception-type": kind}, msgspec.json.encode({"message": message}))


BEGIN = event("messageStart", role="assistant") + event(
    "contentBlockDelta", contentBlockIndex=0, delta={"text": "Grüße 🎉"}
)
END = event("messageStop", stopReason="end_turn") + event(
    "metadata", usage={"inputTokens": 5, "outputTokens": 2, "totalTokens": 7}
)


def tap() -> ConverseTap:
    return ConverseTap(chat(stream=True), STREAM_HEAD, answer_id="r1")


@given(marks=st.lists(st.integers(1, len(BEGIN + END)), max_size=20))
def test_a_stream_cut_anywhere_comes_out_the_same(marks: list[int]) -> None:
    """Case 99."""
    whole = BEGIN + END
    places = sorted({0, len(whole), *marks})
    expected = play(tap(), [whole], cut=False)
    watched = tap()

    said = play(watched, [whole[a:b] for a, b in itertools.pairwise(places)], cut=False)

    assert said == expected
    assert said.endswith(b"data: [DONE]\n\n")
    assert watched.complete
    usage = watched.usage()
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (5, 2)


@given(place=st.integers(0, len(END) - 1))
def test_a_damaged_stream_is_a_failure_and_not_an_end(place: int) -> None:
    """Case 99."""
    damaged = bytearray(END)
    damaged[place] ^= 0x40
    watched = tap()

    said = watched.feed(BEGIN) + watched.feed(bytes(damaged)) + watched.feed(b"\0" * 65536)

    assert "Grüße 🎉".encode() in said
    assert said.endswith(b"\n\n")
    assert watched.failure is not None
    assert watched.errored
    assert (watched.failure.blame, watched.failure.status) == ("provider", 502)
    assert b"[DONE]" not in said
    assert watched.end() == b""


@pytest.mark.parametrize(
    ("kind", "message", "blame", "status"),
    [
        ("throttlingException", "Too many requests", "provider", 429),
        ("modelStreamErrorException", "Broke", "provider", 502),
        ("internalServerException", "Oops", "provider", 500),
        ("serviceUnavailableException", "Later", "provider", 503),
        ("modelTimeoutException", "Slow", "provider", 504),
        ("validationException", "Bad", "caller", 400),
        ("validationException", "Input is too long for requested model", "context", 400),
        ("brandNewException", "?", "provider", 500),
    ],
)
def test_exceptions_in_a_stream(kind: str, message: str, blame: str, status: int) -> None:
    """Case 99."""
    watched = tap()

    said = watched.feed(BEGIN + exception(kind, message) + END)

    assert said.count(b"data: ") == 2
    assert watched.failure is not None
    assert (watched.failure.blame, watched.failure.status, watched.failure.message) == (blame, status, message)
    assert not watched.complete


def test_an_error_frame_has_its_words_in_its_headers() -> None:
    watched = tap()

    watched.feed(frame({":message-type": "error", ":error-code": "InternalFailure", ":error-message": "Broke"}, b""))

    assert watched.failure is not None
    assert (watched.failure.message, watched.failure.status) == ("Broke", 500)


def test_what_was_delivered_is_estimated_where_no_report_came() -> None:
    watched = tap()
    watched.feed(BEGIN + event("contentBlockDelta", contentBlockIndex=0, delta={"text": "x" * 400}))

    assert watched.usage() is None
    assert watched.delivered().output_tokens == (400 + 7) // 4
    assert watched.delivered().source == "partial"


def test_a_stream_is_held_by_what_is_not_whole_alone() -> None:
    """However many deltas came, they leave nothing behind."""
    watched = tap()
    watched.feed(BEGIN)
    for _ in range(1000):
        watched.feed(event("contentBlockDelta", contentBlockIndex=0, delta={"text": "word "}))

    assert watched._parser.resting
    assert len(watched._parser._remembered) < 5


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"output":5}', b'{"message":"no"}'])
def test_a_good_status_without_an_answer_is_a_failure(body: bytes) -> None:
    watched = bedrock(key="k").tap(chat(), ResponseHead(200, [(b"content-type", b"application/json")]))

    assert play(watched, [body], cut=False) == b""
    assert watched.failure is not None
    assert watched.failure.status == 502
    assert not watched.complete
