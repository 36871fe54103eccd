"""What callers are told when something fails, and what official clients make of it."""

import asyncio
import gzip
import socket

import openai
import pytest

from gateway.secret import Secret
from gateway.settings import Provider, Timeouts
from tests.acceptance.answers import (
    ASK,
    ASK_STREAM,
    ASK_STREAM_USAGE,
    CHAT,
    LAST_CHUNK,
    MESSAGES,
    chat_stream,
    delta,
    error,
    sse,
    stream,
    stream_head,
)
from tests.gateways import PROVIDER_KEY
from tests.upstreams import CLOSE, HANG, RECEIVE, REPEAT, RESET, Pause, answer, chunk, chunked, events, play

HTML = [(b"content-type", b"text/html")]
IMPATIENT = Timeouts(connect_s=0.5, first_byte_s=0.4, idle_s=0.4, total_s=20.0)


def same(*parts: bytes):
    return play(RECEIVE, *parts, REPEAT)


async def create(client: openai.AsyncOpenAI, **options: object):
    return await client.chat.completions.create(model="gpt-x", messages=MESSAGES, **options)


async def read_stream(client: openai.AsyncOpenAI) -> str:
    return "".join([part.choices[0].delta.content or "" async for part in await create(client, stream=True)])


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "nonsense", "sk-something", "gw_live_" + "x" * 55])
async def test_a_wrong_key_is_an_authentication_error_at_once(stage, server, key):
    """Case 63: without a retry, without a provider."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)

    with pytest.raises(openai.AuthenticationError) as caught:
        await create(gateway.openai(api_key=key or "-", max_retries=2))

    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id
    assert upstream.connections == 0
    assert len(await gateway.records(1)) == 1


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_trouble_with_the_gateways_own_key_is_never_the_callers(stage, server, status):
    """Case 63: 502, one call to the provider, nothing of its answer in ours."""
    body = error("Incorrect API key provided: sk-prov***cdef", code="invalid_api_key")
    gateway, upstream = await stage.gateway(same(answer(body, status=status)), server=server)

    with pytest.raises(openai.InternalServerError) as caught:
        await create(gateway.openai(max_retries=2))

    assert caught.value.status_code == 502
    assert caught.value.code == "upstream_auth"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "sk-prov" not in caught.value.response.text
    assert len(upstream.requests) == 1


async def test_a_quota_used_up_at_the_provider_is_tried_once(stage):
    """Case 64: it is the operator's bill, and asking again would not pay it."""
    body = error("You exceeded your current quota.", kind="insufficient_quota", code="insufficient_quota")
    gateway, upstream = await stage.gateway(same(answer(body, status=429)))

    with pytest.raises(openai.InternalServerError) as caught:
        await create(gateway.openai(max_retries=2))

    assert caught.value.status_code == 502
    assert len(upstream.requests) == 1


# -- retries ---------------------------------------------------------------------------------------------------------

LIMITED = error("Please try again in 20ms.", kind="requests", code="rate_limit_exceeded")


async def test_a_rate_limit_of_the_provider_is_retried_by_the_client_alone(stage, server):
    """Case 64: three attempts, because the client makes three, and not nine."""
    limited = answer(LIMITED, status=429, headers=[(b"retry-after-ms", b"20"), (b"retry-after", b"1")])
    gateway, upstream = await stage.gateway(same(limited), server=server)

    with pytest.raises(openai.RateLimitError) as caught:
        await create(gateway.openai(max_retries=2))

    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.response.headers["retry-after-ms"] == "20"
    assert caught.value.response.content == LIMITED
    assert [request.header(b"x-stainless-retry-count") for request in upstream.requests] == [b"0", b"1", b"2"]


async def test_a_client_comes_back_when_it_was_told_to(stage):
    """Case 64: after `retry-after: 1`."""
    limited = answer(LIMITED, status=429, headers=[(b"retry-after", b"1")])
    gateway, upstream = await stage.gateway(play(RECEIVE, limited, RECEIVE, answer(CHAT), REPEAT))
    begun_s = asyncio.get_running_loop().time()

    completion = await create(gateway.openai(max_retries=1))

    assert completion.choices[0].message.content == "Hello."
    assert asyncio.get_running_loop().time() - begun_s >= 0.7
    assert len(upstream.requests) == 2


async def test_a_client_told_to_wait_for_ten_minutes_gives_up(stage):
    """Case 65."""
    gateway, upstream = await stage.gateway(same(answer(LIMITED, status=429, headers=[(b"retry-after", b"600")])))

    with pytest.raises(openai.RateLimitError):
        await create(gateway.openai(max_retries=2))

    assert len(upstream.requests) == 1


@pytest.mark.parametrize("value", [b"true", b"false"])
async def test_what_the_provider_says_about_retries_is_obeyed(stage, value):
    """`x-should-retry` goes through, and overrules the status."""
    status = 400 if value == b"true" else 500
    headers = [(b"x-should-retry", value), (b"retry-after-ms", b"10")]
    gateway, upstream = await stage.gateway(same(answer(error(), status=status, headers=headers)))

    with pytest.raises(openai.APIStatusError):
        await create(gateway.openai(max_retries=1))

    assert len(upstream.requests) == (2 if value == b"true" else 1)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"retry-after-ms", b"50")],
        [(b"retry-after", b"Wed, 21 Oct 2015 07:28:00 GMT"), (b"date", b"Wed, 21 Oct 2015 07:27:59 GMT")],
        [(b"retry-after", b"-5")],
        [(b"retry-after", b"soon")],
        [(b"retry-after-ms", b"nan"), (b"retry-after", b"1e999")],
        [(b"retry-after", b"")],
    ],
)
async def test_any_retry_after_goes_through_as_it_is(stage, headers):
    """Case 66."""
    gateway, _ = await stage.gateway(same(answer(LIMITED, status=429, headers=headers)))

    answered = await gateway.ask(ASK)

    assert answered.status == 429
    assert answered.body == LIMITED
    for name, value in headers:
        if name != b"date":
            assert answered.header(name) == value


# -- refusals of the provider ----------------------------------------------------------------------------------------

FILTERED = (
    b'{"error":{"message":"The response was filtered","type":null,"param":"prompt","code":"content_filter",'
    b'"status":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}'
)
REFUSALS = [
    (400, error("This model's maximum context length is 8 tokens.", code="context_length_exceeded")),
    (422, b'{"detail":[{"loc":["body","x"],"msg":"extra fields not permitted","type":"value_error.extra"}]}'),
    (422, b'{"object":"error","message":{"detail":[{"type":"extra_forbidden"}]},"type":"invalid_request_error"}'),
    (404, b'{"error":"model \\"x\\" not found, try pulling it first"}'),
    (400, b'{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}'),
    (400, b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'),
    (429, b'[{"error":{"code":429,"message":"Quota exceeded","status":"RESOURCE_EXHAUSTED"}}]'),
    (500, b' {"error": {"message": "oops", "type": null, "param": null, "code": null}, "extra": 1.0}\n'),
    (529, b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}'),
    (400, FILTERED),
]


@pytest.mark.parametrize(("status", "body"), REFUSALS)
async def test_a_refusal_goes_back_byte_for_byte(stage, server, status, body):
    """Cases 67, 68 and 80: whatever its shape."""
    gateway, _ = await stage.gateway(same(answer(body, status=status)), server=server)

    answered = await gateway.ask(ASK)
    streamed = await gateway.ask(ASK_STREAM)

    for one in (answered, streamed):
        assert (one.status, one.body, one.whole) == (status, body, True)
        assert one.header(b"content-type") == b"application/json"
        assert one.header(b"x-request-id")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":"model \\"x\\" not found, try pulling it first"}', "try pulling it first"),
        (b'{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}', "too long"),
    ],
)
async def test_error_texts_of_self_hosted_servers_reach_the_exception(stage, body, text):
    """Case 80."""
    gateway, _ = await stage.gateway(same(answer(body, status=404)))

    with pytest.raises(openai.NotFoundError) as caught:
        await create(gateway.openai())

    assert text in str(caught.value.body)


@pytest.mark.parametrize(
    ("status", "response"),
    [
        (502, answer(b"<html><h1>502 Bad Gateway</h1></html>", status=502, headers=HTML)),
        (504, answer(b"<html><h1>504</h1></html>", status=504, headers=HTML)),
        (500, answer(b"", status=500)),
        (503, answer(b"upstream connect error", status=503, headers=[(b"content-type", b"text/plain")])),
        (500, b"HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n" + b'{"error":{"mes'),
        (404, answer(b"404 page not found\n", status=404, headers=[(b"content-type", b"text/plain")])),
    ],
)
async def test_an_error_no_client_can_read_becomes_one_that_they_can(stage, server, status, response):
    """Case 69: JSON, with the provider's status and none of its text."""
    gateway, _ = await stage.gateway(play(RECEIVE, response, CLOSE), server=server)

    answered = await gateway.ask(ASK)

    assert answered.status == status
    assert answered.error["message"]
    assert answered.header(b"x-request-id")
    assert b"<html>" not in answered.body


@pytest.mark.parametrize(
    ("coding", "body"),
    [(b"zstd", b"\x28\xb5\x2f\xfd"), (b"gzip", b"no gzip"), (b"gzip", gzip.compress(b" " * 50_000_000))],
    ids=["unknown", "broken", "a bomb"],
)
async def test_a_refusal_that_cannot_be_inflated_is_one_by_its_status(stage, coding, body):
    headers = [(b"content-encoding", coding), (b"retry-after", b"7")]
    gateway, _ = await stage.gateway(same(answer(body, status=429, headers=headers)))

    answered = await gateway.ask(ASK)

    assert answered.status == 429
    assert answered.header(b"retry-after") == b"7"
    assert answered.header(b"content-encoding") is None
    assert answered.error["type"]


async def test_an_enormous_error_is_not_carried_through(stage):
    """Case 69."""
    body = b'{"error":{"message":"' + b"x" * 3_000_000 + b'"}}'
    gateway, _ = await stage.gateway(same(answer(body, status=400)))

    answered = await gateway.ask(ASK)

    assert answered.status == 400
    assert answered.error["code"] == "upstream_refused"
    assert len(answered.body) < 4096


async def test_a_redirect_is_not_followed(stage, server):
    """Case 79: the credential stays with the host it was given for."""
    elsewhere = await stage.upstream(same(answer(CHAT)))
    moved = answer(status=307, headers=[(b"location", elsewhere.url.encode() + b"/v1/chat/completions")])
    gateway, upstream = await stage.gateway(same(moved), server=server)

    answered = await gateway.ask(ASK)

    assert answered.status == 502
    assert answered.error["code"] == "upstream_redirect"
    assert answered.header(b"location") is None
    assert len(upstream.requests) == 1
    assert elsewhere.connections == 0


async def test_interim_answers_are_passed_over(stage, server):
    """Case 78."""
    interim = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n"
        b"HTTP/1.1 102 Processing\r\n\r\n"
    )
    gateway, _ = await stage.gateway(same(interim + answer(CHAT)), server=server)

    answered = await gateway.ask(ASK)

    assert (answered.status, answered.body) == (200, CHAT)
    assert answered.header(b"link") is None


# -- errors inside a stream ------------------------------------------------------------------------------------------

FAILED = b'{"error":{"message":"The server had an error","type":"server_error","param":null,"code":"boom"}}'


@pytest.mark.parametrize("end", [[], [b"[DONE]"]], ids=["no_mark", "mark"])
async def test_a_stream_that_begins_with_an_error_is_relayed(stage, server, end):
    """Case 73: byte for byte; the client raises what the provider said."""
    body = sse(FAILED, *end)
    gateway, _ = await stage.gateway(same(stream(body)), server=server)

    answered = await gateway.ask(ASK_STREAM_USAGE)
    with pytest.raises(openai.APIError) as caught:
        await read_stream(gateway.openai(max_retries=2))

    assert answered.body.startswith(body)
    assert caught.value.code == "boom"
    for record in await gateway.records(2):
        assert (record.input_tokens, record.output_tokens) == (0, 0)


OPENROUTER = (
    b'{"id":"gen-1","object":"chat.completion.chunk","created":1790000000,"model":"v/m","provider":"P","error":'
    b'{"code":502,"message":"Provider disconnected","metadata":{"error_type":"provider_unavailable"}},'
    b'"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error","native_finish_reason":"error"}]}'
)


async def test_an_error_inside_a_chunk_reaches_the_client(stage, server):
    """Case 74."""
    body = sse(delta("Hel"), OPENROUTER, b"[DONE]")
    gateway, _ = await stage.gateway(same(stream(body)), server=server)

    answered = await gateway.ask(ASK_STREAM)
    with pytest.raises(openai.APIError, match="Provider disconnected"):
        await read_stream(gateway.openai())

    assert (answered.body, answered.whole) == (body, True)


BEGUN = [delta(role="assistant", content=""), delta("One "), delta("two")]


@pytest.mark.parametrize(
    "ending",
    [
        (RESET,),
        (CLOSE,),
        (LAST_CHUNK, CLOSE),
        (chunk(b'data: {"id":"chatcm'), CLOSE),
        (chunk(b'data: {"id":"chatcm'), RESET),
        (chunk(b'data: {"id":"chatcm'), LAST_CHUNK),
        (b"zz\r\nnot a chunk\r\n", CLOSE),
    ],
    ids=["rst", "fin", "clean_end", "fin_in_event", "rst_in_event", "clean_end_in_event", "bad_framing"],
)
async def test_a_stream_that_breaks_off_never_looks_finished(stage, server, ending):
    """Case 75: whole events, then the dialect's error event, its mark, and a proper end."""
    parts = (stream_head(), chunk(sse(*BEGUN)), Pause(0.05), *ending)
    gateway, _ = await stage.gateway(play(RECEIVE, *parts), server=server)

    answered = await gateway.ask(ASK_STREAM)
    with pytest.raises(openai.APIError) as caught:
        await read_stream(gateway.openai(max_retries=2))

    assert answered.whole
    assert answered.body.startswith(sse(*BEGUN) + b'data: {"error":{')
    assert answered.body.endswith(b"\n\ndata: [DONE]\n\n")
    assert answered.body.count(b"\n\n") == 5
    assert caught.value.code in {"upstream_connection_error", "upstream_protocol_error"}
    for record in await gateway.records(2):
        assert (record.status, record.aborted_by) == (200, "provider")


@pytest.mark.parametrize("mark", [b"", b"data: [DONE]\n\n"], ids=["bare", "marked"])
async def test_a_stream_that_ends_in_the_provider_s_error_event_gets_no_second_one(stage, server, mark):
    """Case 73, after the first byte: what the provider said is the last word, and what came before it is charged."""
    error = b'data: {"error":{"message":"Overloaded","type":"server_error","code":"overloaded"}}\n\n'
    parts = (stream_head(), chunk(sse(*BEGUN)), Pause(0.05), chunk(error + mark), LAST_CHUNK)
    gateway, _ = await stage.gateway(play(RECEIVE, *parts), server=server)

    answered = await gateway.ask(ASK_STREAM)
    with pytest.raises(openai.APIError, match="Overloaded"):
        await read_stream(gateway.openai(max_retries=0))

    assert answered.whole
    assert answered.body == sse(*BEGUN) + error + mark


async def test_a_responses_stream_that_breaks_off_ends_in_its_own_error_event(stage, server):
    """Case 75, in a dialect whose streams have no mark."""
    first = b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{}}\n\n'
    gateway, _ = await stage.gateway(play(RECEIVE, stream_head(), chunk(first), CLOSE), server=server)

    body = b'{"model":"gpt-x","stream":true,"input":"Hi"}'
    answered = await gateway.ask(body, path=b"/v1/responses")

    assert answered.whole
    assert answered.body.startswith(first + b'event: error\ndata: {"type":"error",')
    assert b"[DONE]" not in answered.body


async def test_a_long_event_that_breaks_off_is_closed_before_the_error(stage):
    """Case 75: what was longer than the gateway holds has begun to go out; the error must not be glued to it."""
    begun = b'data: {"text":"' + b"x" * 200_000
    gateway, _ = await stage.gateway(play(RECEIVE, stream_head(), chunk(begun), Pause(0.05), CLOSE))

    answered = await gateway.ask(ASK_STREAM)

    assert answered.body.startswith(begun + b'\n\ndata: {"error":{')
    assert answered.whole


@pytest.mark.parametrize("size", [600, 600_000], ids=["short", "long"])
async def test_a_plain_answer_that_breaks_off_is_an_error_or_cut(stage, server, size):
    """Case 75: a short one is still held and becomes an error with a status; a long one is cut off visibly."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (size + 1000)
    gateway, _ = await stage.gateway(play(RECEIVE, head + b"{" + b" " * size, Pause(0.05), CLOSE), server=server)

    answered = await gateway.ask(ASK)
    with pytest.raises(openai.APIError):
        await create(gateway.openai())

    if size == 600:
        assert answered.status == 502
        assert answered.error["code"] == "upstream_connection_error"
    else:
        assert answered.status == 200
        assert not answered.whole


# -- timeouts and connections ----------------------------------------------------------------------------------------


async def test_a_stream_that_falls_silent_ends_in_a_timeout(stage, server):
    """Case 76."""
    script = play(RECEIVE, stream_head(), chunk(sse(*BEGUN)), HANG)
    gateway, upstream = await stage.gateway(script, server=server, timeouts=IMPATIENT)

    answered = await gateway.ask(ASK_STREAM)
    with pytest.raises(openai.APIError) as caught:
        await read_stream(gateway.openai())

    assert answered.whole
    assert caught.value.code == "upstream_timeout"
    await asyncio.wait_for(upstream.all_closed(), 10)


async def test_a_provider_that_never_answers_is_a_504(stage, server):
    """Case 76, before the first byte."""
    gateway, upstream = await stage.gateway(play(RECEIVE, HANG), server=server, timeouts=IMPATIENT)

    answered = await gateway.ask(ASK)

    assert answered.status == 504
    assert answered.error["code"] == "upstream_timeout"
    await asyncio.wait_for(upstream.all_closed(), 10)


def provider(url: str) -> Provider:
    return Provider(adapter="openai", base_url=url, api_key=Secret(PROVIDER_KEY), models=("*",))


async def test_a_provider_that_is_not_there_is_a_502(stage, server):
    """Case 77: refused, without a name, and without the TLS it should have."""
    plain = await stage.upstream(play(RECEIVE, REPEAT), play(CLOSE))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        urls = {
            "refused": f"http://127.0.0.1:{unused.getsockname()[1]}/v1",
            "nameless": "http://nobody.invalid/v1",
            "no-tls": plain.url.replace("http", "https") + "/v1",
        }
        providers = {
            name: Provider(adapter="openai", base_url=url, api_key=Secret(PROVIDER_KEY), models=(name,))
            for name, url in urls.items()
        }
        gateway, _ = await stage.gateway(play(CLOSE), providers=providers, server=server, timeouts=IMPATIENT)

        for name in urls:
            answered = await gateway.ask(ASK.replace(b"gpt-x", name.encode()))

            assert answered.status in {502, 504}, name
            assert answered.error["code"] in {"upstream_unreachable", "upstream_timeout"}, name
            assert b"127.0.0.1" not in answered.body
            assert b"invalid" not in answered.body.replace(b"invalid_", b"")


async def test_a_connection_that_went_stale_is_not_noticed(stage, server):
    """Case 77: closed by the provider after the request was written, before a byte of an answer."""
    gateway, upstream = await stage.gateway(
        play(RECEIVE, answer(CHAT), RECEIVE, CLOSE), play(RECEIVE, answer(CHAT), REPEAT), server=server
    )

    first = await gateway.ask(ASK)
    second = await gateway.ask(ASK)

    assert (first.status, second.status) == (200, 200)
    assert second.body == CHAT
    assert len(upstream.requests) == 3
    assert second.header(b"x-gateway-attempts") == b"1"


async def test_a_fresh_connection_that_closes_is_not_tried_again(stage, server):
    """Case 77: who knows what the provider did with the request."""
    gateway, upstream = await stage.gateway(play(RECEIVE, CLOSE), server=server)

    answered = await gateway.ask(ASK)

    assert answered.status == 502
    assert answered.error["code"] == "upstream_connection_error"
    assert len(upstream.requests) == 1


async def test_an_answer_that_is_no_http_is_a_502(stage, server):
    gateway, _ = await stage.gateway(play(RECEIVE, b"SSH-2.0-OpenSSH_9.9\r\n", CLOSE), server=server)

    answered = await gateway.ask(ASK)

    assert answered.status == 502
    assert answered.error["code"] == "upstream_protocol_error"
    assert b"SSH" not in answered.body


async def test_a_stream_without_framing_that_ends_whole_is_whole(stage, server):
    """A `connection: close` body ends with the connection; that it was whole shows in the stream itself."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    body = sse(*chat_stream("One ", "two.", usage=False))
    gateway, _ = await stage.gateway(play(RECEIVE, head + body, CLOSE), server=server)

    assert await read_stream(gateway.openai()) == "One two."


async def test_trailers_do_not_matter(stage, server):
    body = sse(*chat_stream("One", usage=False))
    response = chunked(body, headers=[(b"content-type", b"text/event-stream")], trailers=[(b"x-sum", b"1")])
    gateway, _ = await stage.gateway(same(response), server=server)

    answered = await gateway.ask(ASK_STREAM)

    assert (answered.body, answered.whole) == (body, True)


async def test_events_after_an_error_answer_are_on_a_new_footing(stage):
    """A refusal leaves the connection to the provider usable."""
    script = play(RECEIVE, answer(error(), status=400), RECEIVE, events(*chat_stream("One")), REPEAT)
    gateway, upstream = await stage.gateway(script)

    assert (await gateway.ask(ASK)).status == 400
    assert await read_stream(gateway.openai()) == "One"
    assert upstream.connections == 1
