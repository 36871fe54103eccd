"""Bytes in, bytes out: no network, no key, no gateway running."""

import pytest
from gateway_adapter_hello import Hello

from gateway.api import Call, ConfigError, Dialect, Offer, ProviderConfig, ResponseHead, Secret, peek

OFFER = Offer(model="small", provider="hello", upstream_model="small-1")
STREAM = b"""\
data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}

data: {"object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}

data: [DONE]

"""


def hello(**extra: object) -> Hello:
    adapter = Hello()
    adapter.configure(
        ProviderConfig(name="hello", base_url="https://hello.example/api", api_key=Secret("k-1"), extra=extra)
    )
    return adapter


def call(body: bytes) -> Call:
    return Call(
        id="1",
        dialect=Dialect.OPENAI_CHAT,
        method="POST",
        path=b"/chat/completions",
        query=b"",
        headers=[(b"authorization", b"Bearer gw_secret"), (b"content-type", b"application/json")],
        body=body,
        peek=peek(body),
        model="small",
    )


def test_prepare_changes_the_model_and_the_credentials_alone() -> None:
    sent = hello(region="us").prepare(call(b'{ "model":"small", "x":1.0 }'), OFFER)

    assert (sent.origin.host, sent.target) == ("hello.example", b"/api/chat/completions?region=us")
    assert sent.body == b'{ "model":"hello/small-1", "x":1.0 }'
    assert dict(sent.headers) == {
        b"content-type": b"application/json",
        b"x-hello-key": b"k-1",
        b"accept-encoding": b"identity",
    }


def test_a_stream_is_asked_for_its_usage_and_the_caller_does_not_see_it() -> None:
    asked = call(b'{"model":"small","stream":true}')
    tap = hello().tap(asked, ResponseHead(200, [(b"content-type", b"text/event-stream")]))

    assert b'"include_usage":true' in hello().prepare(asked, OFFER).body
    relayed = b"".join(tap.feed(STREAM[i : i + 1]) for i in range(len(STREAM))) + tap.end()

    assert relayed == STREAM[: STREAM.index(b"data: ", 6)] + b"data: [DONE]\n\n"
    assert tap.complete
    usage = tap.usage()
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (3, 1)


@pytest.mark.parametrize(
    ("status", "body", "blame"),
    [(400, b"", "caller"), (400, b"context_length_exceeded", "context"), (401, b"", "key"), (503, b"", "provider")],
)
def test_whose_fault_it_is(status: int, body: bytes, blame: str) -> None:
    assert hello().classify(ResponseHead(status, []), body).blame == blame


def test_when_to_come_back() -> None:
    assert hello().classify(ResponseHead(429, [(b"retry-after", b"7")]), b"").retry_after_s == 7


@pytest.mark.parametrize("extra", [{"region": "moon"}, {"regoin": "eu"}])
def test_a_wrong_table_stops_the_start(extra: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        hello(**extra)
