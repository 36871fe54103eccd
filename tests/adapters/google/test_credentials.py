"""What is sent for an access token, and what is made of the answer."""

import urllib.parse

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.api import ConfigError, Origin, ResponseHead, UpstreamCredentials
from gateway_adapters.google.credentials import Token, read_credential, read_token

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
ACCOUNT = {
    "type": "service_account",
    "project_id": "acme-1",
    "private_key_id": "k1",
    "private_key": PEM,
    "client_email": "gateway@acme-1.iam.gserviceaccount.com",
    "token_uri": "https://oauth2.googleapis.com/token",
}
PERSON = {"type": "authorized_user", "client_id": "c", "client_secret": "s&", "refresh_token": "r/1"}


def test_a_service_account_signs_what_it_wants() -> None:
    credential = read_credential(msgspec.json.encode(ACCOUNT).decode())

    request = credential.request(1_790_000_000.7)

    assert credential.project == "acme-1"
    assert (request.method, request.origin, request.target) == (
        b"POST",
        Origin("https", "oauth2.googleapis.com", 443),
        b"/token",
    )
    assert isinstance(request.body, bytes)
    fields = dict(urllib.parse.parse_qsl(request.body.decode()))
    assert fields["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    assert jwt.get_unverified_header(fields["assertion"]) == {"alg": "RS256", "kid": "k1", "typ": "JWT"}
    claims = jwt.decode(
        fields["assertion"],
        KEY.public_key(),
        algorithms=["RS256"],
        audience="https://oauth2.googleapis.com/token",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert claims["iss"] == claims["sub"] == "gateway@acme-1.iam.gserviceaccount.com"
    assert (claims["iat"], claims["exp"]) == (1_790_000_000, 1_790_003_600)
    assert claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"


def test_a_person_exchanges_the_refresh_token() -> None:
    request = read_credential(msgspec.json.encode(PERSON).decode()).request(0.0)

    assert isinstance(request.body, bytes)
    assert dict(urllib.parse.parse_qsl(request.body.decode())) == {
        "grant_type": "refresh_token",
        "client_id": "c",
        "client_secret": "s&",
        "refresh_token": "r/1",
    }


def test_the_machine_is_asked_at_its_metadata_server() -> None:
    request = read_credential(" metadata\n").request(0.0)

    assert (request.method, request.origin.host, request.body) == (b"GET", "metadata.google.internal", b"")
    assert (b"metadata-flavor", b"Google") in request.headers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not the JSON"),
        ('{"type":"external_account"}', "not supported"),
        (msgspec.json.encode({**ACCOUNT, "private_key": "secret-pem"}).decode(), "private_key can't be read"),
        (msgspec.json.encode({**ACCOUNT, "client_email": ""}).decode(), "client_email"),
        (msgspec.json.encode({**ACCOUNT, "token_uri": "ftp://x"}).decode(), "token_uri"),
        (msgspec.json.encode({**PERSON, "refresh_token": ""}).decode(), "refresh_token"),
    ],
)
def test_what_is_no_credential_is_said_without_its_words(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_credential(text)

    assert says in caught.value.message
    assert "secret-pem" not in caught.value.message
    assert caught.value.param == "api_key"


@pytest.mark.parametrize(("good_s", "renew_s"), [(3600.0, 3300.0), (600.0, 300.0), (10.0, 5.0)])
def test_a_token_is_renewed_before_it_runs_out(good_s: float, renew_s: float) -> None:
    body = msgspec.json.encode({"access_token": "ya29.x", "expires_in": good_s, "token_type": "Bearer"})

    token = read_token(ResponseHead(200, []), body)

    assert token == Token("ya29.x", good_s)
    assert token.renew_s == renew_s


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (
            400,
            b'{"error":"invalid_grant","error_description":"Invalid JWT Signature."}',
            "invalid_grant: Invalid JWT",
        ),
        (503, b"<html>", "503"),
        (200, b'{"access_token":"","expires_in":5}', "without a token"),
        (200, b'{"access_token":"a\\nb","expires_in":5}', "without a token"),
        (200, b'{"access_token":"ya29.secret","expires_in":0}', "without a token"),
        (200, b"[]", "without a token"),
    ],
)
def test_an_answer_without_a_token_says_why_and_no_secret(status: int, body: bytes, says: str) -> None:
    with pytest.raises(UpstreamCredentials) as caught:
        read_token(ResponseHead(status, []), body)

    assert says in (caught.value.detail or "")
    assert "ya29" not in (caught.value.detail or "")
