"""Where Vertex AI's models are, and what a request to them carries."""

import msgspec
import pytest

from gateway.api import Call, ConfigError, Dialect, Offer, ProviderConfig, ResponseHead, UpstreamCredentials, peek
from gateway.secret import Secret
from gateway_adapters.google import Vertex, VertexAnthropic
from tests.adapters.google.test_credentials import ACCOUNT

JSON = msgspec.json.encode(ACCOUNT).decode()
TOKEN = b'{"access_token":"ya29.x","expires_in":3600}'


def vertex(key: str = JSON, *, base_url: str | None = None, renewed: bool = True, **extra: object) -> Vertex:
    adapter = Vertex()
    adapter.configure(ProviderConfig(name="vertex", base_url=base_url, api_key=Secret(key), extra=extra))
    if renewed and adapter.renewal(0.0) is not None:
        assert adapter.renewed(ResponseHead(200, []), TOKEN) == 3300.0
    return adapter


def call(
    dialect: Dialect, path: bytes, body: bytes = b'{"model":"x","messages":[{"role":"user","content":"Hi"}]}'
) -> Call:
    headers = [(b"content-type", b"application/json"), (b"x-goog-api-key", b"gw_live_caller")]
    return Call(
        id="case", dialect=dialect, method="POST", path=path, query=b"", headers=headers, body=body, peek=peek(body), model="x"
    )  # fmt: skip


CHAT = call(Dialect.OPENAI_CHAT, b"/chat/completions")
NATIVE = call(Dialect.GEMINI_GENERATE, b"/models/x:streamGenerateContent", b'{"contents": []}')


def offer(model: str = "gemini-3-pro") -> Offer:
    return Offer(model="x", provider="vertex", upstream_model=model)


@pytest.mark.parametrize(
    ("extra", "url"),
    [
        ({}, "aiplatform.googleapis.com/v1beta1/projects/acme-1/locations/global"),
        ({"location": "us-central1"}, "us-central1-aiplatform.googleapis.com/v1beta1/projects/acme-1/locations/us-central1"),
        ({"location": "eu"}, "aiplatform.eu.rep.googleapis.com/v1beta1/projects/acme-1/locations/eu"),
        ({"project": "other-2"}, "aiplatform.googleapis.com/v1beta1/projects/other-2/locations/global"),
    ],
)  # fmt: skip
def test_the_address_has_the_location_and_the_project(extra: dict[str, str], url: str) -> None:
    sent = vertex(**extra).prepare(NATIVE, offer())

    path = b"/publishers/google/models/gemini-3-pro:streamGenerateContent"
    assert f"{sent.origin.host}{sent.target.decode()}" == url + path.decode()
    assert sent.body is NATIVE.body
    assert (b"authorization", b"Bearer ya29.x") in sent.headers
    assert all(b"gw_live_caller" not in value for _, value in sent.headers)


@pytest.mark.parametrize(
    ("model", "resource"),
    [
        ("gemini-3-pro", b"publishers/google/models/gemini-3-pro"),
        ("meta/llama-4", b"publishers/meta/models/llama-4"),
        ("publishers/google/models/x", b"publishers/google/models/x"),
    ],
)
def test_a_model_belongs_to_a_publisher(model: str, resource: bytes) -> None:
    assert resource in vertex().prepare(CHAT, offer(model)).target


def test_an_express_key_needs_no_project_and_no_token() -> None:
    adapter = vertex("AQ.express")

    sent = adapter.prepare(CHAT, offer())

    assert adapter.renewal(0.0) is None
    assert sent.target == b"/v1beta1/publishers/google/models/gemini-3-pro:generateContent"
    assert (b"x-goog-api-key", b"AQ.express") in sent.headers


def test_embeddings_are_predictions() -> None:
    body = b'{"model":"x","input":["a","b"],"dimensions":2,"task_type":"RETRIEVAL_QUERY"}'
    asked = call(Dialect.OPENAI_EMBEDDINGS, b"/embeddings", body)
    adapter = vertex()

    sent = adapter.prepare(asked, offer("text-embedding-005"))
    tap = adapter.tap(asked, ResponseHead(200, [(b"content-type", b"application/json")]))
    tap.feed(
        b'{"predictions":[{"embeddings":{"values":[0.5],"statistics":{"token_count":4,"truncated":false}}},'
        b'{"embeddings":{"values":[1],"statistics":{"token_count":3.0}}}]}'
    )
    found = msgspec.json.decode(tap.end())

    assert sent.target.endswith(b"/models/text-embedding-005:predict")
    assert msgspec.json.decode(sent.body) == {
        "instances": [
            {"content": "a", "task_type": "RETRIEVAL_QUERY"},
            {"content": "b", "task_type": "RETRIEVAL_QUERY"},
        ],
        "parameters": {"outputDimensionality": 2},
    }
    assert [one["embedding"] for one in found["data"]] == [[0.5], [1]]
    assert found["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    usage = tap.usage()
    assert usage is not None
    assert usage.input_tokens == 7


def test_without_a_token_the_key_is_to_blame() -> None:
    with pytest.raises(UpstreamCredentials):
        vertex(renewed=False).prepare(CHAT, offer())


def test_a_refused_renewal_leaves_the_old_token() -> None:
    adapter = vertex()

    with pytest.raises(UpstreamCredentials):
        adapter.renewed(ResponseHead(503, []), b"")

    assert (b"authorization", b"Bearer ya29.x") in adapter.prepare(CHAT, offer()).headers


def test_a_token_that_is_echoed_is_not_told() -> None:
    body = b'{"error":{"code":500,"message":"bad token ya29.x","status":"INTERNAL"}}'

    failure = vertex().classify(ResponseHead(500, []), body)

    assert "ya29.x" not in failure.detail + failure.message


# -- Anthropic's models ----------------------------------------------------------------------------------------------


def claude(**extra: object) -> VertexAnthropic:
    adapter = VertexAnthropic()
    adapter.configure(ProviderConfig(name="c", base_url=None, api_key=Secret(JSON), extra=extra))
    adapter.renewed(ResponseHead(200, []), TOKEN)
    return adapter


@pytest.mark.parametrize(
    ("body", "sent_body", "verb"),
    [
        (
            b'{"model": "x", "stream": true,  "messages":[1.0]}',
            b'{"anthropic_version":"vertex-2023-10-16","stream": true,  "messages":[1.0]}',
            b"streamRawPredict",
        ),
        (b'{"model":"x"}', b'{"anthropic_version":"vertex-2023-10-16"}', b"rawPredict"),
        (b'{"messages":[],"anthropic_version":"v"}', b'{"messages":[],"anthropic_version":"v"}', b"rawPredict"),
    ],
)
def test_a_message_to_anthropics_models_has_the_model_in_the_path(body: bytes, sent_body: bytes, verb: bytes) -> None:
    asked = call(Dialect.ANTHROPIC_MESSAGES, b"/messages", body)

    sent = claude(location="us-east5").prepare(asked, offer("claude-sonnet-4@20250514"))

    assert sent.origin.host == "us-east5-aiplatform.googleapis.com"
    assert sent.target == (
        b"/v1beta1/projects/acme-1/locations/us-east5/publishers/anthropic/models/claude-sonnet-4@20250514:" + verb
    )
    assert sent.body == sent_body
    assert (b"authorization", b"Bearer ya29.x") in sent.headers
    assert all(name != b"x-api-key" for name, _ in sent.headers)


def test_a_chat_for_anthropics_models_is_translated() -> None:
    sent = claude().prepare(CHAT, offer("claude-sonnet-4@20250514"))

    body = msgspec.json.decode(sent.body)
    assert sent.target.endswith(b"/models/claude-sonnet-4@20250514:rawPredict")
    assert body["anthropic_version"] == "vertex-2023-10-16"
    assert "model" not in body
    assert body["messages"][0]["role"] == "user"


def test_tokens_are_counted_where_all_models_are() -> None:
    asked = call(Dialect.ANTHROPIC_COUNT_TOKENS, b"/messages/count_tokens", b'{"model":"x","messages":[]}')

    sent = claude().prepare(asked, offer("claude-x"))

    assert sent.target.endswith(b"/models/count-tokens:rawPredict")
    assert sent.body == b'{"model":"claude-x","messages":[]}'


def test_anthropics_models_need_a_credential_and_a_token() -> None:
    adapter = VertexAnthropic()
    with pytest.raises(ConfigError) as caught:
        adapter.configure(ProviderConfig(name="c", base_url=None, api_key=Secret("AQ.express"), extra={}))
    assert caught.value.param == "api_key"
    adapter.configure(ProviderConfig(name="c", base_url=None, api_key=Secret(JSON), extra={}))
    with pytest.raises(UpstreamCredentials):
        adapter.prepare(CHAT, offer())


@pytest.mark.parametrize(
    ("key", "extra", "param"),
    [
        (JSON, {"region": "x"}, "region"),
        (JSON, {"location": "../x"}, "location"),
        (JSON, {"project": "a/b"}, "project"),
        ("metadata", {}, "project"),
        ("{}", {}, "api_key"),
        ("two words", {}, "api_key"),
    ],
)
def test_a_wrong_table_is_named(key: str, extra: dict[str, object], param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vertex(key, **extra)

    assert caught.value.param == param
