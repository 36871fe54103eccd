"""Vertex AI behind the gateway: a fake token server and a fake provider on the loopback interface."""

import asyncio
import urllib.parse

import jwt
import msgspec
import openai
import pytest
from google import genai
from google.genai import types

from gateway.secret import Secret
from gateway.settings import Provider
from tests.acceptance.answers import stream
from tests.acceptance.test_google import HELLO, MESSAGES, MODEL, SSE, same
from tests.adapters.google.test_credentials import ACCOUNT, KEY
from tests.gateways import RunningGateway
from tests.upstreams import HANG, RECEIVE, REPEAT, Peer, Script, ScriptedUpstream, answer, play

PATIENCE_S = 20.0
JSON = [(b"content-type", b"application/json")]
REFUSED = answer(b'{"error":"invalid_grant","error_description":"Invalid JWT Signature."}', status=400, headers=JSON)
UNAUTHENTICATED = answer(
    b'{"error":{"code":401,"message":"Request had invalid credentials.","status":"UNAUTHENTICATED"}}',
    status=401,
    headers=JSON,
)


def token(name: str, *, good_s: float = 3600) -> bytes:
    body = msgspec.json.encode({"access_token": f"ya29.{name}", "expires_in": good_s, "token_type": "Bearer"})
    return answer(body, headers=JSON)


async def begin(stage, tokens: Script, *models: Script) -> tuple[RunningGateway, ScriptedUpstream, ScriptedUpstream]:
    """A gateway, the token server and the provider."""
    server = await stage.upstream(tokens)
    provider = await stage.upstream(*(models or (same(stream(HELLO, headers=SSE)),)))
    account = {**ACCOUNT, "token_uri": f"{server.url}/token"}
    table = Provider(
        adapter="vertex",
        base_url=f"{provider.url}/v1beta1",
        api_key=Secret(msgspec.json.encode(account).decode()),
        models=("*",),
        extra={"location": "us-central1"},
    )
    gateway, _ = await stage.gateway(play(HANG), providers={"vertex": table})
    return gateway, server, provider


async def ask(gateway: RunningGateway) -> str:
    events = await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    return "".join([piece.choices[0].delta.content or "" async for piece in events])


async def test_a_signed_statement_becomes_a_token_and_that_a_header(stage, caplog):
    gateway, server, provider = await begin(stage, same(token("one")))

    assert await ask(gateway) == "Hello."
    async with genai.Client(api_key=gateway.key, http_options=types.HttpOptions(base_url=gateway.url)).aio as client:
        found = [piece async for piece in await client.models.generate_content_stream(model=MODEL, contents="Hi")]

    assert "".join(piece.text or "" for piece in found) == "Hello."
    [exchange] = server.requests
    assertion = dict(urllib.parse.parse_qsl(exchange.body.decode()))["assertion"]
    # Neither issued in the future nor run out, and for this server.
    jwt.decode(assertion, KEY.public_key(), algorithms=["RS256"], audience=f"{server.url}/token")
    for received in provider.requests:
        assert received.header(b"authorization") == b"Bearer ya29.one"
        assert received.target == (
            b"/v1beta1/projects/acme-1/locations/us-central1/publishers/google/models/gemini-3-pro"
            b":streamGenerateContent?alt=sse"
        )
    assert "ya29" not in caplog.text
    assert assertion not in caplog.text


async def test_a_token_is_renewed_before_it_runs_out(stage):
    """One refresh at a time, and requests meanwhile go on with the token that is there."""
    renewed = asyncio.Event()
    given = 0

    async def tokens(peer: Peer) -> None:
        nonlocal given
        while True:
            await peer.receive()
            given += 1
            await peer.send(token(f"{given}", good_s=2 if given == 1 else 3600))
            if given == 2:
                renewed.set()

    gateway, _, provider = await begin(stage, tokens)
    assert await ask(gateway) == "Hello."
    async with asyncio.timeout(PATIENCE_S):
        await renewed.wait()
        while provider.requests[-1].header(b"authorization") != b"Bearer ya29.2":
            assert await ask(gateway) == "Hello."

    assert provider.requests[0].header(b"authorization") == b"Bearer ya29.1"
    assert given == 2


async def test_without_a_token_the_provider_is_at_fault_and_it_comes_back(stage, caplog):
    """Never the caller's 401; as soon as a token is here, requests go out."""
    refused = 0

    async def tokens(peer: Peer) -> None:
        nonlocal refused
        while True:
            await peer.receive()
            refused += 1
            await peer.send(REFUSED if refused < 3 else token("late"))

    gateway, _, provider = await begin(stage, tokens)

    with pytest.raises(openai.InternalServerError) as caught:
        await ask(gateway)
    assert caught.value.status_code in (502, 503)
    assert not provider.requests
    async with asyncio.timeout(PATIENCE_S):
        while not provider.requests:
            await asyncio.sleep(0.1)
            try:
                said = await ask(gateway)
            except openai.InternalServerError:
                continue

    assert said == "Hello."
    assert "provider vertex has no new credential: the token server answered 400 invalid_grant" in caplog.text


async def test_a_token_that_google_refuses_is_no_error_of_the_callers(stage):
    """Case 63: the caller's own key is good."""
    gateway, _, _ = await begin(stage, same(token("bad")), play(RECEIVE, UNAUTHENTICATED, REPEAT))

    with pytest.raises(openai.InternalServerError) as caught:
        await ask(gateway)

    assert caught.value.status_code == 502
    assert caught.value.code == "upstream_auth"
