"""Where a request to an Azure resource goes, by the version that its table names."""

import pytest

from gateway.api import (
    Call,
    ConfigError,
    Dialect,
    Offer,
    Peek,
    ProviderConfig,
    Renewing,
    ResponseHead,
    UpstreamCredentials,
    UpstreamRequest,
    peek,
)
from gateway.registry import known_providers
from gateway.secret import Secret
from gateway.wire.form import peek_form
from gateway.wire.paths import resolve
from gateway_adapters.azure import Azure

FORM = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n--b--\r\n'
MULTIPART = b"multipart/form-data; boundary=b"


APPLICATION = {"tenant_id": "t-1", "client_id": "c-1", "client_secret": "s&1"}
ACCEPTED = ResponseHead(200, [(b"content-type", b"application/json")])


def azure(base_url: str | None = "https://res.openai.azure.com", key: str | None = "k", **extra: object) -> Azure:
    adapter = Azure()
    adapter.configure(
        ProviderConfig(name="azure", base_url=base_url, api_key=Secret(key) if key else None, extra=extra)
    )
    return adapter


def send(
    adapter: Azure,
    path: bytes = b"/v1/chat/completions",
    body: bytes = b'{"model":"m"}',
    *,
    query: bytes = b"",
    model: str = "dep 1/2",
    method: str = "POST",
    kind: bytes = b"application/json",
) -> UpstreamRequest:
    target = resolve(path)
    assert target is not None
    seen = Peek() if method == "GET" else peek_form(body, kind) if kind == MULTIPART else peek(body)
    call = Call(
        id="1",
        dialect=target.dialect,
        method=method,
        path=target.path,
        query=query,
        headers=[(b"content-type", kind)],
        body=body,
        peek=seen,
        model="m",
    )
    return adapter.prepare(call, Offer(model="m", provider="azure", upstream_model=model))


@pytest.mark.parametrize(
    "base_url",
    [
        "https://res.openai.azure.com",
        "https://res.openai.azure.com/",
        "https://res.openai.azure.com/openai",
        "https://res.openai.azure.com/openai/v1/",
    ],
)
@pytest.mark.parametrize(
    ("version", "target"),
    [
        ("", b"/openai/v1/chat/completions"),
        ("v1", b"/openai/v1/chat/completions"),
        ("preview", b"/openai/v1/chat/completions?api-version=preview"),
        ("2024-10-21", b"/openai/deployments/dep%201%2F2/chat/completions?api-version=2024-10-21"),
        ("2025-04-01-preview", b"/openai/deployments/dep%201%2F2/chat/completions?api-version=2025-04-01-preview"),
    ],
)
def test_the_path_follows_from_the_version(base_url: str, version: str, target: bytes) -> None:
    sent = send(azure(base_url, api_version=version))

    assert sent.target == target
    assert (b"api-key", b"k") in sent.headers


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"/v1/embeddings", b"/openai/deployments/d/embeddings"),
        (b"/v1/audio/speech", b"/openai/deployments/d/audio/speech"),
        (b"/v1/images/generations", b"/openai/deployments/d/images/generations"),
        (b"/openai/deployments/x/completions", b"/openai/deployments/d/completions"),
        (b"/v1/responses", b"/openai/responses"),
        (b"/v1/batches", b"/openai/batches"),
    ],
)
def test_what_a_deployment_answers_and_what_the_resource_does(path: bytes, target: bytes) -> None:
    sent = send(
        azure(api_version="2024-10-21"), path, query=b"api-version=2020-01-01&key=gw_live_1&limit=2", model="d"
    )

    assert sent.target == target + b"?limit=2&api-version=2024-10-21"


def test_a_gateway_in_front_of_the_resource_keeps_its_path() -> None:
    assert send(azure("https://apim.example/ai")).target == b"/ai/openai/v1/chat/completions"


def test_a_deployment_in_the_path_leaves_the_body_alone() -> None:
    body = b'{ "model":"m", "messages":[]}'

    assert send(azure(api_version="2024-10-21"), body=body).body is body
    assert send(azure(), body=body).body == b'{ "model":"dep 1/2", "messages":[]}'


def test_a_form_goes_to_its_deployment_as_it_is() -> None:
    sent = send(azure(api_version="2024-10-21"), b"/v1/audio/transcriptions", FORM, kind=MULTIPART, model="d")

    assert sent.target == b"/openai/deployments/d/audio/transcriptions?api-version=2024-10-21"
    assert sent.body is FORM


def test_a_token_of_entra_goes_where_tokens_go() -> None:
    headers = dict(send(azure(auth="bearer")).headers)

    assert headers[b"authorization"] == b"Bearer k"
    assert b"api-key" not in headers


def test_an_application_gets_its_token_by_its_secret() -> None:
    adapter = azure(key=None, auth="client-secret", **APPLICATION)
    with pytest.raises(UpstreamCredentials):
        send(adapter)

    asked = adapter.renewal(0.0)

    assert isinstance(adapter, Renewing)
    assert asked is not None
    assert (asked.origin.host, asked.target) == ("login.microsoftonline.com", b"/t-1/oauth2/v2.0/token")
    assert asked.body == (
        b"grant_type=client_credentials&client_id=c-1&client_secret=s%261"
        b"&scope=https%3A%2F%2Fcognitiveservices.azure.com%2F.default"
    )
    assert adapter.renewed(ACCEPTED, b'{"token_type":"Bearer","expires_in":3599,"access_token":"ey1"}') == 3299
    assert (b"authorization", b"Bearer ey1") in send(adapter).headers

    assert adapter.renewed(ACCEPTED, b'{"expires_in":100,"access_token":"ey2"}') == 50
    headers = send(adapter).headers
    assert [value for name, value in headers if name == b"authorization"] == [b"Bearer ey2"]
    assert b"api-key" not in dict(headers)


def test_a_machine_gets_its_token_by_being_there() -> None:
    adapter = azure(key=None, auth="managed-identity", client_id="c-1")

    asked = adapter.renewal(0.0)

    assert asked is not None
    assert (asked.method, asked.origin.host) == (b"GET", "169.254.169.254")
    assert asked.target == (
        b"/metadata/identity/oauth2/token?api-version=2018-02-01"
        b"&resource=https%3A%2F%2Fcognitiveservices.azure.com&client_id=c-1"
    )
    assert (b"metadata", b"true") in asked.headers
    assert adapter.renewed(ACCEPTED, b'{"access_token":"ey1","expires_in":"86399"}') == 86_099


@pytest.mark.parametrize(
    ("status", "body", "detail"),
    [
        (
            401,
            b'{"error":"invalid_client","error_description":"AADSTS7000215: secret s&1"}',
            "401 invalid_client AADSTS7000215",
        ),
        (400, b'{"error":"<script>"}', "400 without a token"),
        (200, b'{"expires_in":3599}', "200 without a token"),
        (200, b'{"access_token":"ey1"}', "200 without a token"),
        (200, b'{"access_token":"two\\nlines","expires_in":9}', "200 without a token"),
        (502, b"<html>", "502 without a token"),
    ],
)
def test_what_is_no_token_leaves_the_last_one(status: int, body: bytes, detail: str) -> None:
    adapter = azure(key=None, auth="client-secret", **APPLICATION)
    adapter.renewed(ACCEPTED, b'{"expires_in":3599,"access_token":"ey1"}')

    with pytest.raises(UpstreamCredentials) as caught:
        adapter.renewed(ResponseHead(status, []), body)

    assert caught.value.detail == f"Entra ID answered {detail}"
    assert (b"authorization", b"Bearer ey1") in send(adapter).headers


def test_a_key_needs_no_renewal() -> None:
    assert azure().renewal(0.0) is None


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"base_url": None}, "base_url"),
        ({"base_url": "res.openai.azure.com"}, "base_url"),
        ({"key": None}, "api_key"),
        ({"api_version": "2024"}, "api_version"),
        ({"api_version": 2024}, "api_version"),
        ({"api_version": "2024-10-21&x=1"}, "api_version"),
        ({"auth": "basic"}, "auth"),
        ({"auth": ["bearer"]}, "auth"),
        ({"client_id": "c"}, "client_id"),
        ({"auth": "client-secret", "tenant_id": "t", "client_id": "c"}, "client_secret"),
        ({"auth": "client-secret", "tenant_id": "t", "client_secret": "s"}, "client_id"),
        ({"auth": "client-secret", "tenant_id": "t/x", "client_id": "c", "client_secret": "s"}, "tenant_id"),
        ({"auth": "client-secret", "tenant_id": "t", "client_id": "c", "client_secret": 5}, "client_secret"),
        ({"auth": "client-secret", **APPLICATION, "authority": "login"}, "authority"),
        ({"auth": "managed-identity", "client_secret": "s"}, "client_secret"),
        ({"deployment": "d"}, "deployment"),
    ],
)
def test_a_wrong_table_is_refused(arguments: dict[str, object], param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        azure(**arguments)  # type: ignore[arg-type]  # wrong on purpose

    assert caught.value.param == param


def test_it_is_known_but_nothing_turns_it_on_alone() -> None:
    known = known_providers()["azure"]

    assert (known.adapter, known.variable, known.base_url) == ("azure", "", "")


def test_it_speaks_what_openai_speaks() -> None:
    assert {Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES, Dialect.OPENAI_OTHER} <= azure().dialects
