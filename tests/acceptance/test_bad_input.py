"""What arrives from callers who are confused, hostile or merely old."""

import asyncio
import contextlib

import msgspec
import pytest

from gateway.settings import Cors, Metrics, Model, Server, Settings
from tests.acceptance.answers import ASK, ASK_STREAM, CHAT, chat_stream, sse
from tests.gateways import PROVIDER_KEY
from tests.upstreams import RECEIVE, REPEAT, answer, chunk, events, play


def same(*parts: bytes):
    return play(RECEIVE, *parts, REPEAT)


def header_names(request) -> set[bytes]:
    return {name for name, _ in request.headers}


# -- paths and methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/chat/completions/",
        b"//v1//chat/completions",
        b"/openai/v1/chat/completions",
        b"/api/v1/chat/completions",
        b"/v1/v1/chat/completions",
        b"/openai/deployments/gpt-x/chat/completions?api-version=2024-10-21",
    ],
)
async def test_one_endpoint_in_many_spellings(stage, path):
    """Cases 87 and 88."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)))

    answered = await gateway.ask(ASK, path=path)

    assert (answered.status, answered.body) == (200, CHAT)
    assert upstream.requests[0].target.partition(b"?")[0] == b"/v1/chat/completions"


@pytest.mark.parametrize(
    "path",
    [
        b"/v2/chat/completions",
        b"/nothing",
        b"/v1",
        b"/v1/../admin",
        b"/v1/%2e%2e/admin",
        b"/v1/organization/x",
        b"/x?y",
    ],
)
async def test_an_unknown_path_is_a_404_in_json(stage, server, path):
    """Case 87."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)

    answered = await gateway.ask(ASK, path=path)

    assert answered.status == 404
    assert answered.error["code"] == "unknown_url"
    assert answered.error["request_id"] == answered.header(b"x-request-id").decode()
    assert upstream.connections == 0


@pytest.mark.parametrize("method", [b"HEAD", b"TRACE", b"PROPFIND"])
async def test_a_path_of_objects_takes_its_own_methods_alone(stage, server, method):
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)

    answered = await gateway.ask(path=b"/v1/files", method=method)

    assert answered.status == 405
    assert answered.header(b"allow") == b"POST, GET"
    assert upstream.connections == 0


@pytest.mark.parametrize("path", [b"/health", b"/healthz", b"/metrics"])
async def test_a_wrong_method_is_refused_in_the_callers_dialect_elsewhere_too(stage, path):
    gateway, _ = await stage.gateway(same(answer(CHAT)))

    plain = await gateway.ask(b"{}", path=path)
    anthropic = await gateway.ask(b"{}", path=path, headers=[(b"anthropic-version", b"2023-06-01")])

    for answered in (plain, anthropic):
        assert (answered.status, answered.header(b"allow")) == (405, b"GET, HEAD")
        assert answered.header(b"x-request-id")
    assert plain.error["code"] == "method_not_supported"
    assert anthropic.error["type"] == "invalid_request_error"
    assert (await gateway.ask(path=path, method=b"HEAD")).status == 200


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"DELETE", b"PATCH", b"HEAD"])
async def test_a_wrong_method_is_a_405_that_says_the_right_one(stage, server, method):
    """Cases 85 and 87."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)

    answered = await gateway.ask(path=b"/v1/chat/completions", method=method)

    assert answered.status == 405
    assert answered.header(b"allow") == b"POST"
    assert answered.whole
    if method != b"HEAD":
        assert answered.error["code"] == "method_not_supported"
    assert upstream.connections == 0


async def test_head_has_the_head_of_get(stage, server):
    """Case 85."""
    gateway, _ = await stage.gateway(same(answer(CHAT)), server=server)

    for path in (b"/v1/models", b"/health", b"/"):
        got = await gateway.ask(path=path, method=b"GET")
        head = await gateway.ask(path=path, method=b"HEAD")

        assert (head.status, head.body, head.whole) == (200, b"", True)
        assert head.header(b"content-length") == b"%d" % len(got.body)


async def test_a_websocket_is_refused(stage, server):
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)
    headers = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")]

    answered = await gateway.ask(
        path=b"/v1/chat/completions",
        method=b"GET",
        headers=[*headers, (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA==")],
    )

    assert answered.status in {400, 403, 404, 405, 426}
    assert upstream.connections == 0


# -- sizes -----------------------------------------------------------------------------------------------------------

SMALL = Settings(server=Server(body_bytes_max=10_000))


@pytest.mark.parametrize("framing", ["declared", "chunked", "whole"])
async def test_a_body_that_is_too_large_is_a_413(stage, server, framing):
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server, settings=SMALL)
    connection = await gateway.connect()
    if framing == "declared":
        # Refused by its length alone: the body is not waited for.
        await connection.send(gateway.request(headers=[(b"content-length", b"20000")]))
    elif framing == "chunked":
        await connection.send(gateway.request(headers=[(b"transfer-encoding", b"chunked")]))
        await connection.send(chunk(b"x" * 6000) + chunk(b"x" * 6000))
    else:
        await connection.send(gateway.request(ASK + b" " * 10_000))

    answered = await connection.receive()

    assert answered.status == 413
    assert answered.error["code"] == "request_too_large"
    assert upstream.connections == 0


async def test_a_body_at_the_limit_is_taken(stage, server):
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server, settings=SMALL)

    answered = await gateway.ask(ASK + b" " * (10_000 - len(ASK)))

    assert answered.status == 200
    assert len(upstream.requests[0].body) == 10_000


async def test_a_body_that_stops_coming_is_a_408(stage, server):
    settings = Settings(server=Server(body_timeout_s=0.3))
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server, settings=settings)
    connection = await gateway.connect()

    await connection.send(gateway.request(ASK)[:-10])
    answered = await connection.receive()

    assert answered.status == 408
    assert answered.error["code"] == "request_timeout"
    assert upstream.connections == 0


async def test_a_body_that_comes_too_slowly_as_a_whole_is_a_408(stage, server):
    settings = Settings(server=Server(body_timeout_s=30.0, upload_timeout_s=0.5))
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server, settings=settings)
    connection = await gateway.connect()
    await connection.send(gateway.request(ASK + b" " * 1000)[:-1000])

    async def drip():
        with contextlib.suppress(OSError):
            for _ in range(999):
                await connection.send(b" ")
                await asyncio.sleep(0.05)

    dripping = asyncio.ensure_future(drip())
    answered = await connection.receive()
    dripping.cancel()

    assert answered.status == 408
    assert upstream.connections == 0


async def test_a_caller_who_leaves_in_the_middle_of_its_body(stage, server):
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)
    connection = await gateway.connect()

    await connection.send(gateway.request(ASK)[:-10])
    connection.writer.write_eof()
    await connection.closed()

    assert upstream.connections == 0


async def test_many_and_large_headers_are_taken(stage, server):
    """Case 86: a hundred headers, and 60 KiB of them."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server="direct" if server == "h11" else server)
    headers = [(b"x-%d" % number, b"v" * 590) for number in range(100)]

    answered = await gateway.ask(ASK, headers=headers)

    assert answered.status == 200
    assert len(header_names(upstream.requests[0]) & {name for name, _ in headers}) == 100


@pytest.mark.parametrize("headers", [[(b"x-large", b"v" * 70_000)], [(b"x-%d" % n, b"v" * 200) for n in range(400)]])
async def test_headers_beyond_64_kib_are_a_431(stage, headers):
    """Case 86."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)))

    answered = await gateway.ask(ASK, headers=headers)

    assert answered.status == 431
    assert answered.error["type"] == "invalid_request_error"
    assert upstream.connections == 0


async def test_a_head_without_an_end_is_cut_off(stage):
    gateway, _ = await stage.gateway(same(answer(CHAT)))
    connection = await gateway.connect()

    await connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n")
    for number in range(40):
        await connection.send(b"x-%d: %b\r\n" % (number, b"v" * 4000))
        if connection.reader.at_eof():
            break
    answered = await connection.receive()

    assert answered.status == 431
    await connection.closed()


# -- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcd",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost : g\r\ncontent-length: 0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\nhost: g\n\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nhost: h\r\ncontent-length: 0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_refused_and_the_end(stage, request_bytes):
    """Case 53: nothing that two parsers could read in two ways gets through."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)))
    connection = await gateway.connect()
    authorization = b"authorization: Bearer " + gateway.key.encode() + b"\r\nhost:"

    await connection.send(request_bytes.replace(b"host:", authorization))
    answered = await connection.receive()

    # What is read as a request all the same, and refused for its contents, is refused in good order.
    assert answered.status == (501 if b"gzip" in request_bytes else 400)
    await connection.closed()
    assert upstream.connections == 0


@pytest.mark.parametrize("server", ["direct", "httptools"])
async def test_both_framings_are_a_400(stage, server):
    """Case 53. (h11 takes the chunks and forgets the length, as RFC 9112 allows.)"""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)
    connection = await gateway.connect()
    headers = [(b"transfer-encoding", b"chunked"), (b"content-length", b"%d" % len(ASK))]

    await connection.send(gateway.request(headers=headers) + chunk(ASK) + b"0\r\n\r\n")
    answered = await connection.receive()

    assert answered.status == 400
    assert upstream.connections == 0


async def test_expect_continue(stage, server):
    """Case 84: the go-ahead comes before the body, and the answer after it."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)
    connection = await gateway.connect()
    body = ASK + b" " * 5_000_000
    head = gateway.request(headers=[(b"expect", b"100-continue"), (b"content-length", b"%d" % len(body))])

    await connection.send(head)
    interim = await asyncio.wait_for(connection.reader.readuntil(b"\r\n\r\n"), 10)
    await connection.send(body)
    answered = await connection.receive()

    assert interim.startswith(b"HTTP/1.1 100 ")
    assert (answered.status, answered.body) == (200, CHAT)
    assert upstream.requests[0].body == body
    assert upstream.requests[0].header(b"expect") is None


async def test_a_stranger_is_not_asked_for_its_body(stage, server):
    """Case 84."""
    gateway, _ = await stage.gateway(same(answer(CHAT)), server=server)
    connection = await gateway.connect()
    headers = [(b"expect", b"100-continue"), (b"content-length", b"5000000")]

    await connection.send(gateway.request(headers=headers, key=""))
    first = await asyncio.wait_for(connection.reader.readline(), 10)

    assert first.startswith(b"HTTP/1.1 401 ")


async def test_pipelined_requests_are_answered_in_order(stage, server):
    """Case 86."""
    other = CHAT.replace(b"Hello.", b"Again.")
    gateway, _ = await stage.gateway(
        play(RECEIVE, answer(CHAT), RECEIVE, events(*chat_stream("One", usage=False)), RECEIVE, answer(other)),
        server=server,
    )
    connection = await gateway.connect()

    await connection.send(b"".join(gateway.request(body) for body in (ASK, ASK_STREAM, ASK)))
    data = b""
    while not data.endswith(other):
        data += await asyncio.wait_for(connection.reader.read(65536), 10)

    order = [data.index(part) for part in (CHAT, sse(*chat_stream("One", usage=False))[:100], other)]
    assert order == sorted(order)
    assert data.count(b"HTTP/1.1 200 ") == 3


async def test_a_caller_that_closes_after_one(stage, server):
    """Case 86."""
    gateway, _ = await stage.gateway(same(answer(CHAT)), server=server)
    connection = await gateway.connect()

    await connection.send(gateway.request(ASK, headers=[(b"connection", b"close")]))
    answered = await connection.receive()
    await connection.closed()

    assert answered.body == CHAT
    assert answered.header(b"connection") == b"close"


@pytest.mark.parametrize("server", ["direct", "h11"])
@pytest.mark.parametrize("body", [ASK, ASK_STREAM], ids=["plain", "stream"])
async def test_a_caller_that_speaks_http_1_0(stage, server, body):
    """Case 86: no chunks, and the end of the connection is the end. (uvicorn's httptools protocol sends chunks.)"""
    streamed = sse(*chat_stream("One", usage=False))
    gateway, _ = await stage.gateway(
        same(answer(CHAT) if body is ASK else events(*chat_stream("One", usage=False))), server=server
    )
    connection = await gateway.connect()

    await connection.send(gateway.request(body).replace(b"HTTP/1.1", b"HTTP/1.0"))
    data = await asyncio.wait_for(connection.reader.read(-1), 10)

    head, _, rest = data.partition(b"\r\n\r\n")
    assert b" 200 " in head
    assert b"chunked" not in head.lower()
    assert rest == (CHAT if body is ASK else streamed)


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", [b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key", b"bearer", b"?key=", b"twice"]
)
async def test_a_key_is_found_where_sdks_put_it(stage, server, place):
    """Case 88; and it goes no further."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)
    key = gateway.key.encode()
    headers = {
        b"authorization": [(b"authorization", b"Bearer " + key)],
        b"bearer": [(b"authorization", b"bearer   " + key)],
        b"?key=": [],
        b"twice": [(b"authorization", b"Bearer " + key), (b"x-api-key", key)],
    }.get(place, [(place, key)])
    path = b"/v1/chat/completions" + (b"?key=" + key + b"&alt=sse" if place == b"?key=" else b"")

    answered = await gateway.ask(ASK, path=path, headers=headers, key="")

    assert answered.status == 200
    [request] = upstream.requests
    assert key not in request.head + request.body
    assert request.header(b"authorization") == f"Bearer {PROVIDER_KEY}".encode()
    assert header_names(request) & {b"api-key", b"x-api-key", b"x-goog-api-key"} == set()


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer gw_live_other"), (b"x-api-key", b"KEY")],
        [(b"authorization", b"Bearer KEY"), (b"authorization", b"Bearer other")],
        [(b"authorization", b"Basic KEY")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer \xff\xfe")],
        [(b"authorization", b"")],
        [(b"x-api-key", b"KEYx")],
        [(b"x-api-key", b" ")],
        [],
    ],
)
async def test_keys_that_are_none_or_not_one(stage, server, headers):
    """Case 88: two different keys are not guessed between."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)

    answered = await gateway.ask(
        ASK, headers=[(name, value.replace(b"KEY", gateway.key.encode())) for name, value in headers], key=""
    )

    assert answered.status == 401
    assert answered.error["code"] == "invalid_api_key"
    assert gateway.key.encode() not in answered.body
    assert upstream.connections == 0


async def test_anthropic_and_gemini_callers_are_refused_in_their_own_words(stage, server):
    """The error object is that of the path's dialect."""
    gateway, _ = await stage.gateway(same(answer(CHAT)), server=server)

    anthropic = await gateway.ask(b"{}", path=b"/v1/messages", key="")
    gemini = await gateway.ask(b"{}", path=b"/v1/models/gemini-x:generateContent", key="")

    said = msgspec.json.decode(anthropic.body)
    assert (anthropic.status, said["type"], said["error"]["type"]) == (401, "error", "authentication_error")
    assert said["request_id"]
    said = msgspec.json.decode(gemini.body)
    assert (gemini.status, said["error"]["code"], said["error"]["status"]) == (401, 401, "UNAUTHENTICATED")


# -- headers ---------------------------------------------------------------------------------------------------------

PRIVATE = [
    (b"cookie", b"session=1"),
    (b"x-forwarded-for", b"10.0.0.7"),
    (b"x-forwarded-host", b"inside"),
    (b"forwarded", b"for=10.0.0.7"),
    (b"x-real-ip", b"10.0.0.7"),
    (b"via", b"1.1 corp"),
    (b"origin", b"https://app.example"),
    (b"referer", b"https://app.example/secret"),
    (b"sec-fetch-mode", b"cors"),
    (b"openai-organization", b"org-caller"),
    (b"openai-project", b"proj-caller"),
    (b"proxy-authorization", b"Basic eDp5"),
    (b"connection", b"keep-alive, x-secret"),
    (b"x-secret", b"1"),
    (b"te", b"trailers"),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"x-amz-security-token", b"t"),
]
PUBLIC = [
    (b"user-agent", b"my-app/1.0"),
    (b"accept", b"application/json"),
    (b"openai-beta", b"assistants=v2"),
    (b"idempotency-key", b"k-1"),
    (b"x-stainless-lang", b"python"),
    (b"x-client-request-id", b"mine"),
]


async def test_what_a_caller_says_about_itself_stays_here(stage, server):
    """Case 89."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)

    answered = await gateway.ask(ASK, headers=[*PRIVATE, *PUBLIC])

    assert answered.status == 200
    [request] = upstream.requests
    private = {name for name, _ in PRIVATE} - {b"connection"}
    assert header_names(request) & private == set()
    assert request.header(b"connection") in {None, b"keep-alive"}
    assert {pair for pair in request.headers if pair in PUBLIC} == set(PUBLIC)
    assert request.header(b"host") == f"127.0.0.1:{upstream.port}".encode()


async def test_what_a_provider_says_to_its_customer_stays_here(stage, server):
    """Cases 89 and 90."""
    hidden = [
        (b"set-cookie", b"__cf_bm=1"),
        (b"set-cookie", b"_cfuvid=2"),
        (b"openai-organization", b"org-operator"),
        (b"openai-project", b"proj-operator"),
        (b"x-ratelimit-limit-requests", b"5000"),
        (b"x-ratelimit-remaining-tokens", b"1"),
        (b"x-ratelimit-reset-requests", b"6m0s"),
        (b"cf-ray", b"x"),
        (b"server", b"cloudflare"),
        (b"alt-svc", b"h3"),
        (b"strict-transport-security", b"max-age=1"),
        (b"access-control-allow-origin", b"*"),
        (b"www-authenticate", b"Bearer"),
        (b"connection", b"x-hop"),
        (b"x-hop", b"1"),
        (b"keep-alive", b"timeout=5"),
    ]
    shown = [
        (b"x-request-id", b"req_up"),
        (b"openai-version", b"2020-10-01"),
        (b"openai-processing-ms", b"12"),
        (b"x-ms-region", b"Sweden Central"),
        (b"x-unknown", b"kept; as=is"),
        (b"etag", b'"abc"'),
    ]
    gateway, _ = await stage.gateway(same(answer(CHAT, headers=[*hidden, *shown])), server=server)

    answered = await gateway.ask(ASK)

    assert {pair for pair in answered.headers if pair in shown} == set(shown)
    assert {pair for pair in answered.headers if pair in hidden} == set()
    assert answered.header(b"x-gateway-request-id")
    assert {name for name, _ in answered.headers} & {b"set-cookie", b"server", b"x-hop", b"cf-ray"} == set()


# -- browsers --------------------------------------------------------------------------------------------------------

BROWSERS = Settings(cors=Cors(origins=("https://app.example",)), metrics=Metrics())
PREFLIGHT = [
    (b"access-control-request-method", b"POST"),
    (b"access-control-request-headers", b"authorization,content-type,x-stainless-lang,x-stainless-retry-count"),
]


async def test_a_preflight_is_answered_without_a_key(stage, server):
    """Case 85."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server, settings=BROWSERS)

    allowed = await gateway.ask(
        path=b"/v1/chat/completions",
        method=b"OPTIONS",
        headers=[(b"origin", b"https://app.example"), *PREFLIGHT],
        key="",
    )
    refused = await gateway.ask(
        path=b"/v1/chat/completions",
        method=b"OPTIONS",
        headers=[(b"origin", b"https://evil.example"), *PREFLIGHT],
        key="",
    )

    assert allowed.status == 204
    assert allowed.header(b"access-control-allow-origin") == b"https://app.example"
    assert allowed.header(b"access-control-allow-headers") == PREFLIGHT[1][1]
    assert b"POST" in allowed.header(b"access-control-allow-methods")
    assert not [name for name, _ in refused.headers if name.startswith(b"access-control-")]
    assert upstream.connections == 0


async def test_a_browser_may_read_answers_and_errors(stage, server):
    """Case 85."""
    gateway, _ = await stage.gateway(same(answer(CHAT)), server=server, settings=BROWSERS)
    headers = [(b"origin", b"https://app.example")]

    good = await gateway.ask(ASK, headers=headers)
    bad = await gateway.ask(b"[]", headers=headers)
    stranger = await gateway.ask(ASK, headers=headers, key="")
    foreign = await gateway.ask(ASK, headers=[(b"origin", b"https://evil.example")])
    program = await gateway.ask(ASK)

    # Where one address answers differently by origin, a cache has to know also from those that have none.
    for answered in (good, bad, stranger, foreign, program):
        assert answered.header(b"vary") == b"origin"
    for answered in (foreign, program):
        assert answered.header(b"access-control-allow-origin") is None
    assert [good.status, bad.status, stranger.status] == [200, 400, 401]
    for answered in (good, bad, stranger):
        assert answered.header(b"access-control-allow-origin") == b"https://app.example"
        assert b"x-request-id" in answered.header(b"access-control-expose-headers")


async def test_without_configured_origins_browsers_get_nothing(stage):
    gateway, _ = await stage.gateway(same(answer(CHAT)))

    answered = await gateway.ask(ASK, headers=[(b"origin", b"https://app.example")])

    assert answered.status == 200
    assert not [name for name, _ in answered.headers if name.startswith(b"access-control-")]


# -- models ----------------------------------------------------------------------------------------------------------


async def test_models_are_listed_and_found_by_any_spelling(stage, server):
    """Case 11."""
    models = {"plain": Model(free=True), "vendor/name:free": Model(free=True, aliases=("short",))}
    upstream = await stage.upstream(same(answer(CHAT)))
    provider = stage.provider(upstream, models=("plain", "vendor/name:free"))
    gateway, _ = await stage.gateway(same(answer(CHAT)), providers={"local": provider}, models=models, server=server)
    client = gateway.openai()

    listed = {model.id async for model in await client.models.list()}
    encoded = await client.models.retrieve("vendor/name:free")
    raw = await gateway.ask(path=b"/v1/models/vendor/name:free", method=b"GET")

    assert {"plain", "vendor/name:free"} <= listed
    assert encoded.id == "vendor/name:free"
    assert isinstance(encoded.created, int)
    assert encoded.object == "model"
    assert msgspec.json.decode(raw.body)["id"] == "vendor/name:free"


async def test_an_unknown_model_is_a_404(stage, server):
    """Case 11."""
    upstream = await stage.upstream(same(answer(CHAT)))
    provider = stage.provider(upstream, models=("plain",))
    gateway, _ = await stage.gateway(same(answer(CHAT)), providers={"local": provider}, server=server)

    for answered in (
        await gateway.ask(path=b"/v1/models/nobody%2Fknows", method=b"GET"),
        await gateway.ask(ASK.replace(b"gpt-x", b"nobody/knows")),
    ):
        assert answered.status == 404
        assert answered.error["code"] == "model_not_found"
        assert "nobody/knows" in answered.error["message"]
    assert upstream.connections == 0
