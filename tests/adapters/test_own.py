"""Keys that accounts bring: in the place of every credential of the operator's, and deciding nothing but who is asked."""

from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.api import Adapter, Call, ConfigError, Dialect, Offer, OwnKeyed, Peek, ProviderConfig, Secret
from gateway_adapters.anthropic import Anthropic
from gateway_adapters.azure import Azure
from gateway_adapters.bedrock.adapter import Bedrock
from gateway_adapters.cohere import Cohere
from gateway_adapters.compatible import Compatible
from gateway_adapters.echo import Echo
from gateway_adapters.google import Google, Vertex, VertexAnthropic
from gateway_adapters.google.credentials import TOKEN_URL
from gateway_adapters.openai import OpenAI

OPERATORS = "operators-secret-0815"
OWN = "own-secret-4711"
ASK = b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"max_tokens":5}'
RSA = rsa.generate_private_key(65537, 2048).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
ACCOUNT = {
    "type": "service_account",
    "project_id": "theirs-1",
    "client_email": "a@theirs-1.example",
    "private_key": RSA.decode(),
    "token_uri": TOKEN_URL,
}


def own(
    kind: Any, key: object = OWN, *, base_url: str | None = None, extra: dict[str, object] | None = None
) -> Adapter:
    """An adapter of the operator's provider with an account's key."""
    text = key if isinstance(key, str) else msgspec.json.encode(key).decode()
    table = ProviderConfig(name="openai", base_url=base_url, api_key=None, extra=extra or {})
    adapter: Adapter = kind()
    adapter.configure(kind.own(table, Secret(text)))
    return adapter


def written(adapter: Adapter) -> str:
    """Everything that goes out for a chat completion."""
    call = Call(
        id="1",
        dialect=Dialect.OPENAI_CHAT,
        method="POST",
        path=b"/chat/completions",
        query=b"",
        headers=[],
        body=ASK,
        peek=Peek(model="m"),
        model="m",
    )
    return repr(adapter.prepare(call, Offer(model="m", provider="p", upstream_model="m")))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (OpenAI, {}),
        (Compatible, {}),
        (Anthropic, {}),
        (Google, {}),
        (Cohere, {}),
        (Vertex, {"extra": {"project": "ours-1"}}),
        (Azure, {"base_url": "https://ours.openai.azure.com"}),
        (
            Azure,
            {
                "base_url": "https://ours.openai.azure.com",
                "extra": {
                    "auth": "client-secret",
                    "tenant_id": "t",
                    "client_id": "c",
                    "client_secret": OPERATORS,
                },
            },
        ),
        (Bedrock, {"extra": {"access_key_id": "AKIAOURS", "secret_access_key": OPERATORS, "region": "eu-west-1"}}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_key_takes_the_place_of_the_operators(kind, options):
    assert issubclass(kind, OwnKeyed)

    sent = written(own(kind, **options))

    assert OWN in sent
    assert OPERATORS not in sent
    assert "AKIAOURS" not in sent


def test_a_pair_of_ones_own_signs_and_nothing_of_the_operators_goes_along():
    pair = {"access_key_id": "AKIATHEIRS", "secret_access_key": OWN}
    extra: dict[str, object] = {
        "access_key_id": "AKIAOURS",
        "secret_access_key": OPERATORS,
        "session_token": "token-" + OPERATORS,
        "region": "eu-west-1",
    }

    sent = written(own(Bedrock, pair, extra=extra))

    assert "Credential=AKIATHEIRS/" in sent
    assert "/eu-west-1/" in sent
    assert OPERATORS not in sent
    assert OWN not in sent


def test_an_application_of_ones_own_asks_where_the_operators_would():
    application = {"tenant_id": "theirs", "client_id": "theirs", "client_secret": OWN}
    extra: dict[str, object] = {
        "auth": "client-secret",
        "tenant_id": "ours",
        "client_id": "ours",
        "client_secret": OPERATORS,
        "authority": "https://login.example",
    }

    adapter = own(Azure, application, base_url="https://ours.openai.azure.com", extra=extra)
    assert isinstance(adapter, Azure)
    request = adapter.renewal(0.0)

    assert request is not None
    assert request.origin.host == "login.example"
    assert request.target.startswith(b"/theirs/")
    assert OWN in repr(request.body)
    assert OPERATORS not in repr(request)


@pytest.mark.parametrize("kind", [Vertex, VertexAnthropic])
def test_a_service_account_of_ones_own_is_asked_about_at_google_and_billed_to_its_project(kind):
    adapter = own(kind, ACCOUNT, extra={"project": "ours-1", "location": "us-central1"})

    request = adapter.renewal(0.0)

    assert request is not None
    assert (request.origin.host, request.target) == ("oauth2.googleapis.com", b"/token")
    assert "theirs-1/locations/us-central1" in adapter._access.base_url
    assert "ours-1" not in adapter._access.base_url


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (Vertex, "metadata"),
        (Vertex, " metadata\n"),
        (VertexAnthropic, "metadata"),
        (Vertex, ACCOUNT | {"token_uri": "https://evil.example/token"}),
        (Vertex, ACCOUNT | {"token_uri": "http://169.254.169.254/token"}),
        (Vertex, ACCOUNT | {"project_id": "../../elsewhere"}),
        (Vertex, ACCOUNT | {"type": "external_account"}),
        (VertexAnthropic, OWN),
        (Vertex, "{not json"),
        (Bedrock, {"access_key_id": "A"}),
        (Bedrock, {"access_key_id": "A", "secret_access_key": "B", "region": "eu-west-1"}),
        (Azure, {"tenant_id": "t", "client_id": "c", "client_secret": "s", "authority": "https://evil.example"}),
        (Azure, {"client_id": "the machine's"}),
        (OpenAI, "two\nlines"),
        (Anthropic, "two\nlines"),
        (Google, "two\nlines"),
        (Cohere, "two\nlines"),
    ],
)
def test_what_is_no_key_or_would_be_sent_elsewhere_is_refused(kind, key):
    base_url = "https://ours.openai.azure.com" if kind is Azure else None
    extra: dict[str, object] = {"project": "ours-1"} if kind in (Vertex, VertexAnthropic) else {}

    with pytest.raises(ConfigError) as refused:
        own(kind, key, base_url=base_url, extra=extra)

    assert "PRIVATE KEY" not in refused.value.message
    assert "two\nlines" not in refused.value.message


def test_a_credential_that_can_not_be_told_from_the_rest_is_no_place_for_another():
    with pytest.raises(ConfigError) as refused:
        own(Compatible, base_url="http://127.0.0.1:9/v1", extra={"headers": {"X-API-Key": OPERATORS}})

    assert refused.value.param == "headers"
    assert OPERATORS not in refused.value.message


def test_one_that_takes_no_key_takes_none_of_anybodys():
    assert not issubclass(Echo, OwnKeyed)
