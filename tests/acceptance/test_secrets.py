"""What is open to strangers, and what nobody may find in what a gateway writes."""

import asyncio

import pytest
from starlette.routing import Route

from gateway.dataplane import DataPlane
from tests.acceptance.answers import ASK, ASK_STREAM, CHAT, chat_stream, error, sse, stream
from tests.gateways import PEPPER, PROVIDER_KEY, ServedGateway, connect
from tests.upstreams import CLOSE, RECEIVE, REPEAT, answer, play

#: Everything that answers without a key, and why: liveness and counts; a token may be asked for the latter. The routes of
#: the control plane are tried by everybody in tests/control/test_access.py.
PUBLIC = {"/health", "/healthz", "/metrics"}
V1 = [
    b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/v1/embeddings", b"/v1/messages",
    b"/v1/models", b"/v1/models/gpt-x", b"/v1/models/gemini-x:generateContent", b"/v1/files", b"/v1/files/x/content",
    b"/v1/batches", b"/v1/audio/speech", b"/v1/audio/transcriptions", b"/v1/images/generations", b"/v1/moderations",
    b"/v1/realtime", b"/v1/anything/else", b"/v1/generations/x", b"/openai/v1/chat/completions",
    b"/api/v1/embeddings", b"/openai/deployments/gpt-x/chat/completions", b"//v1//files/",
]  # fmt: skip
METHODS = [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS"]


def paths_of(app: DataPlane) -> set[str]:
    """Every path the router has a route for."""
    paths = set()
    for route in app.routes:
        assert isinstance(route, Route), f"{route}: look into it too"
        paths.add(route.path)
    return paths


async def test_nothing_but_the_public_list_answers_a_stranger(stage):
    """Every route of the running application, with every method, and every spelling of what is under /v1."""
    gateway, upstream = await stage.gateway(play(RECEIVE, answer(CHAT), REPEAT))
    routes = paths_of(gateway.app)

    for path in routes:
        answered = await gateway.ask(method=b"GET", path=path.encode(), key="")
        assert answered.status == (200 if path in PUBLIC else 401), path
    for path in [*V1, *(path.encode() for path in routes - PUBLIC)]:
        for method in METHODS:
            answered = await gateway.ask(b"{}" if method == b"POST" else b"", method=method, path=path, key="")
            assert answered.status in {401, 404}, (method, path)
            answered = await gateway.ask(b"", method=method, path=path, key="gw_live_" + "a" * 55)
            assert answered.status in {401, 404}, (method, path)

    assert upstream.connections == 0
    assert routes >= PUBLIC


async def test_what_is_public_says_nothing(stage):
    gateway, _ = await stage.gateway(play(RECEIVE, answer(CHAT), REPEAT))
    await gateway.ask(ASK)

    for path in ("/health", "/healthz"):
        answered = await gateway.ask(method=b"GET", path=path.encode(), key="")
        assert answered.body == b'{"status":"ok"}'


CONFIG = """
[log]
level = "debug"
[providers.local]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:PROVIDER_KEY"
[models."*"]
free = true
"""
SECRET_TEXT = "the-words-of-a-prompt-0451"


@pytest.mark.parametrize("workers", [2])
async def test_no_secret_is_written_anywhere(stage, workers):
    """A whole run with everything that goes wrong: logs, access log, metrics and answers are searched."""
    echoing = error(f"Incorrect API key provided: {PROVIDER_KEY}", code="invalid_api_key")
    upstream = await stage.upstream(
        play(RECEIVE, answer(CHAT)),
        play(RECEIVE, stream(sse(*chat_stream("One")))),
        play(RECEIVE, answer(echoing, status=401)),
        play(
            RECEIVE, answer(f"<html>{PROVIDER_KEY}</html>".encode(), status=500, headers=[(b"content-type", b"x/y")])
        ),
        play(RECEIVE, b"HTTP/1.1 200 OK\r\n\r\nnonsense", CLOSE),
        play(RECEIVE, CLOSE),
        play(RECEIVE, answer(error(), status=400)),
    )
    body = ASK.replace(b"Hi", SECRET_TEXT.encode())
    async with ServedGateway(stage.stores, CONFIG.format(url=upstream.url), workers=workers) as gateway:
        key = gateway.key
        wrong = key[:-4] + "AAAA"
        bearer = f"authorization: Bearer {key}"
        asked = [
            *[("/v1/chat/completions", bearer, body)] * 9,
            ("/v1/chat/completions", bearer, ASK_STREAM.replace(b"Hi", SECRET_TEXT.encode())),
            (f"/v1/chat/completions?key={key}", "x-none: 1", body),
            (f"/v1/chat/completions?key={key}&key={wrong}", f"x-api-key: {wrong}", body),
            ("/v1/chat/completions", f"authorization: Bearer {wrong}", body),
            ("/v1/chat/completions", f"authorization: Basic {key}", body),
            (f"/v1/models/{key}", bearer, b""),
            (f"/{key}", bearer, b""),
            ("/v1/chat/completions", bearer, body.replace(b"gpt-x", key.encode()) + b"}"),
            ("/v1/chat/completions", bearer, b"\xff" + key.encode()),
        ]
        answers = []
        for path, header, payload in asked:
            connection = await connect(gateway.port)
            method = "POST" if payload else "GET"
            head = f"{method} {path} HTTP/1.1\r\nhost: gateway\r\n{header}\r\ncontent-type: application/json\r\n"
            await connection.send(head.encode() + b"content-length: %d\r\n\r\n%b" % (len(payload), payload))
            answers.append(await connection.receive())
            connection.abort()
        connection = await connect(gateway.port)
        await connection.send(b"GET /metrics HTTP/1.1\r\nhost: gateway\r\n\r\n")
        metrics = await connection.receive()
        connection.abort()
        # The access log is written in batches; stopping brings the last of them out.
        assert await asyncio.wait_for(gateway.stop(), 60) == 0

    assert len(gateway.access_log.splitlines()) == len(asked)
    assert b"gateway_requests_total" in metrics.body
    written = bytes(gateway.log + gateway.access_log) + metrics.body
    for secret in (key, key[-43:], wrong, PROVIDER_KEY, PEPPER, SECRET_TEXT):
        assert secret.encode() not in written, secret
    # A caller may be told its own key; never anybody else's secrets.
    said = b"".join(answered.body + b"".join(b"".join(pair) for pair in answered.headers) for answered in answers)
    for secret in (PROVIDER_KEY, PEPPER):
        assert secret.encode() not in said
    assert b"Traceback" not in written + said
