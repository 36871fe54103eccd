"""Azure, Bedrock and Cohere behind the gateway, the official OpenAI clients in front of it."""

import asyncio
import base64

import anthropic
import msgspec
import openai
import pytest

from gateway.infra.clock import SystemClock
from gateway.secret import Secret
from gateway.settings import Provider
from gateway.testing.cases import frame
from tests.acceptance.answers import MESSAGES, chat_stream, sse, stream
from tests.gateways import PROVIDER_KEY
from tests.upstreams import RECEIVE, REPEAT, Until, answer, chunk, chunked, play

CLOCK = SystemClock()
CLAUDE = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
EVENT_STREAM = [(b"content-type", b"application/vnd.amazon.eventstream"), (b"x-amzn-requestid", b"r-1")]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUg=="


def same(*parts: bytes, each: int | None = None):
    return play(RECEIVE, *parts, REPEAT, each=each)


async def behind(
    stage, adapter: str, *scripts, path: str = "", key: str | None = PROVIDER_KEY, server="direct", **extra
):
    upstream = await stage.upstream(*scripts)
    provider = Provider(
        adapter=adapter,
        base_url=upstream.url + path,
        api_key=Secret(key) if key else None,
        models=("*",),
        extra=extra,
    )
    gateway, _ = await stage.gateway(*scripts, providers={"cloud": provider}, server=server)
    return gateway, upstream


# -- Azure ---------------------------------------------------------------------------------------------------

FILTERED_FIRST = (
    b'{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,'
    b'"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}'
)


@pytest.mark.parametrize("version", ["", "2024-10-21"])
async def test_azures_first_chunk_is_not_taken_for_the_usage(stage, server, version):
    """Case 103."""
    body = sse(FILTERED_FIRST, *chat_stream("One ", "two."))
    gateway, upstream = await behind(stage, "azure", same(stream(body)), server=server, api_version=version)

    received = await gateway.ask(b'{"model":"my-gpt","stream":true,"messages":[]}')

    assert received.body == sse(FILTERED_FIRST, *chat_stream("One ", "two.", usage=False))
    [request] = upstream.requests
    paths = {"": b"/openai/v1/", "2024-10-21": b"/openai/deployments/my-gpt/"}
    assert request.target.startswith(paths[version] + b"chat/completions")
    assert request.header(b"api-key") == PROVIDER_KEY.encode()
    assert request.header(b"authorization") is None
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (20, 9, "reported")


async def test_azures_own_client_reaches_azure(stage):
    """Cases 88 and 103: the version that the client sends is not the one that the provider gets."""
    body = sse(FILTERED_FIRST, *chat_stream("One ", "two."))
    gateway, upstream = await behind(stage, "azure", same(stream(body)), api_version="2025-04-01-preview")

    async with openai.AsyncAzureOpenAI(
        api_key=gateway.key, azure_endpoint=gateway.url, api_version="2024-02-01", max_retries=0
    ) as client:
        chunks = [
            chunk async for chunk in await client.chat.completions.create(model="dep", messages=MESSAGES, stream=True)
        ]

    assert chunks[0].model_extra["prompt_filter_results"][0]["prompt_index"] == 0
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[1:]) == "One two."
    [request] = upstream.requests
    assert request.target == b"/openai/deployments/dep/chat/completions?api-version=2025-04-01-preview"


async def test_a_prompt_that_azure_filters_is_refused_in_azures_words(stage):
    body = (
        b'{"error":{"message":"The response was filtered","type":null,"param":"prompt","code":"content_filter",'
        b'"status":400,"innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{}}}}'
    )
    gateway, _ = await behind(stage, "azure", same(answer(body, status=400)))

    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.openai().chat.completions.create(model="dep", messages=MESSAGES)

    assert caught.value.code == "content_filter"
    assert caught.value.response.content == body
    [record] = await gateway.records(1)
    assert record.error_type == "policy_refused"


# -- Bedrock -------------------------------------------------------------------------------------------------


def event(kind: str, **payload) -> bytes:
    headers = {":message-type": "event", ":event-type": kind, ":content-type": "application/json"}
    return frame(headers, msgspec.json.encode(payload))


def text(said: str) -> bytes:
    return event("contentBlockDelta", contentBlockIndex=0, delta={"text": said}, p="abc")


BEGIN = event("messageStart", role="assistant")
STOP = event("contentBlockStop", contentBlockIndex=0) + event("messageStop", stopReason="end_turn")
METADATA = event(
    "metadata",
    usage={"inputTokens": 5, "outputTokens": 2, "totalTokens": 17, "cacheReadInputTokens": 10},
    metrics={"latencyMs": 3},
)
CONVERSED = (
    b'{"output":{"message":{"role":"assistant","content":[{"text":"Hello."}]}},"stopReason":"end_turn",'
    b'"usage":{"inputTokens":9,"outputTokens":2,"totalTokens":11},"metrics":{"latencyMs":1}}'
)


async def test_bedrock_answers_a_chat(stage, server):
    gateway, upstream = await behind(
        stage, "bedrock", same(answer(CONVERSED, headers=[(b"x-amzn-requestid", b"r-1")])), server=server
    )

    completion = await gateway.openai().chat.completions.create(
        model=CLAUDE,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]},
        ],
        max_tokens=50,
        seed=1,
    )

    assert completion.choices[0].message.content == "Hello."
    assert completion.usage.total_tokens == 11
    [request] = upstream.requests
    assert request.target == b"/model/eu.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse"
    assert request.header(b"authorization") == f"Bearer {PROVIDER_KEY}".encode()
    assert msgspec.json.decode(request.body) == {
        "messages": [
            {
                "role": "user",
                "content": [{"image": {"format": "png", "source": {"bytes": PNG.partition(",")[2]}}}],
            }
        ],
        "system": [{"text": "Be brief."}],
        "inferenceConfig": {"maxTokens": 50},
    }
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (9, 2, "reported")


async def test_a_signed_request_arrives_as_it_was_signed(stage):
    gateway, upstream = await behind(
        stage,
        "bedrock",
        same(answer(CONVERSED)),
        key=None,
        access_key_id="AKIDEXAMPLE",
        secret_access_key="wJalr/EXAMPLE",
        region="eu-central-1",
    )

    await gateway.openai().chat.completions.create(model=CLAUDE, messages=MESSAGES)

    [request] = upstream.requests
    assert request.header(b"host") == f"127.0.0.1:{upstream.port}".encode()
    signature = (request.header(b"authorization") or b"").decode()
    assert "/eu-central-1/bedrock/aws4_request, SignedHeaders=content-type;host;x-amz-date, " in signature
    assert gateway.key not in signature


@pytest.mark.parametrize("each", [None, 1])
async def test_a_stream_of_bedrocks_is_a_stream_of_chunks(stage, server, each):
    """Case 99: frames split at every byte; the usage that comes after the end of the message is counted."""
    body = BEGIN + text("Grüße, ") + text("🎉") + STOP + METADATA
    gateway, _ = await behind(stage, "bedrock", same(chunked(body, headers=EVENT_STREAM), each=each), server=server)

    chunks = [
        chunk
        async for chunk in await gateway.openai().chat.completions.create(
            model=CLAUDE, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    ]

    assert {chunk.id for chunk in chunks} == {"chatcmpl-r-1"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Grüße, 🎉"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (15, 2)
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 10
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (15, 2, "reported")


async def test_no_usage_is_told_to_who_did_not_ask(stage):
    """Case 99: it is counted all the same."""
    gateway, _ = await behind(
        stage, "bedrock", same(chunked(BEGIN + text("Hi") + STOP + METADATA, headers=EVENT_STREAM))
    )

    received = await gateway.ask(msgspec.json.encode({"model": CLAUDE, "stream": True, "messages": MESSAGES}))

    assert received.header(b"content-type") == b"text/event-stream; charset=utf-8"
    assert b"usage" not in received.body
    assert received.body.endswith(b"data: [DONE]\n\n")
    [record] = await gateway.records(1)
    assert record.input_tokens == 15


async def test_the_helper_of_the_client_puts_two_calls_together(stage):
    """Cases 5 and 22."""
    body = (
        BEGIN
        + event("contentBlockStart", contentBlockIndex=1, start={"toolUse": {"toolUseId": "t1", "name": "weather"}})
        + event("contentBlockDelta", contentBlockIndex=1, delta={"toolUse": {"input": '{"city"'}})
        + event("contentBlockDelta", contentBlockIndex=1, delta={"toolUse": {"input": ':"Rom"}'}})
        + event("contentBlockStop", contentBlockIndex=1)
        + event("contentBlockStart", contentBlockIndex=2, start={"toolUse": {"toolUseId": "t2", "name": "weather"}})
        + event("contentBlockStop", contentBlockIndex=2)
        + event("messageStop", stopReason="tool_use")
        + METADATA
    )
    gateway, _ = await behind(stage, "bedrock", same(chunked(body, headers=EVENT_STREAM)))

    async with gateway.openai().chat.completions.stream(model=CLAUDE, messages=MESSAGES, tools=TOOLS) as events:
        completion = await events.get_final_completion()

    calls = completion.choices[0].message.tool_calls
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("t1", "weather", '{"city":"Rom"}'),
        ("t2", "weather", "{}"),
    ]
    assert completion.choices[0].finish_reason == "tool_calls"


async def test_an_answer_has_a_time_though_its_provider_names_none(stage):
    """In every dialect of OpenAI's that has one: whole, and as a stream."""
    whole = answer(CONVERSED)
    streamed = chunked(BEGIN + text("Hi") + STOP + METADATA, headers=EVENT_STREAM)
    assert b"date:" not in whole.lower() + streamed.lower()
    gateway, _ = await behind(
        stage, "bedrock", play(*(part for _ in range(3) for part in (RECEIVE, whole, RECEIVE, streamed)))
    )
    client = gateway.openai()
    begun_s = int(CLOCK.now())

    times = [(await client.chat.completions.create(model=CLAUDE, messages=MESSAGES)).created]
    chunks = await client.chat.completions.create(model=CLAUDE, messages=MESSAGES, stream=True)
    times += [chunk.created async for chunk in chunks]
    times.append((await client.responses.create(model=CLAUDE, input="Hi")).created_at)
    events = await client.responses.create(model=CLAUDE, input="Hi", stream=True)
    times += [
        event.response.created_at
        async for event in events
        if event.type in ("response.created", "response.completed")
    ]
    times.append((await client.completions.create(model=CLAUDE, prompt="Hi")).created)
    pieces = await client.completions.create(model=CLAUDE, prompt="Hi", stream=True)
    times += [piece.created async for piece in pieces]

    assert len(times) > 8
    assert all(begun_s <= each <= CLOCK.now() for each in times)


def damaged(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


THROTTLED = frame(
    {":message-type": "exception", ":exception-type": "throttlingException", ":content-type": "application/json"},
    b'{"message":"Too many requests, please wait before trying again."}',
)


@pytest.mark.parametrize(
    ("breaks", "said", "code"),
    [
        (damaged(text("no")), "could not be understood", "upstream_error"),
        (THROTTLED, "Too many requests, please wait", "rate_limit_exceeded"),
        (b"", "before its answer was complete", "upstream_connection_error"),
        (text("half")[:20], "before its answer was complete", "upstream_connection_error"),
    ],
)
async def test_a_stream_of_bedrocks_that_breaks_raises(stage, server, breaks, said, code):
    """Case 99: a wrong checksum, an exception in the stream, an end that is none."""
    head = chunked(b"", headers=EVENT_STREAM).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    heard = asyncio.Event()
    rest = chunk(breaks) if breaks else b""
    steps = (head + chunk(BEGIN + text("Hi")), Until(heard), rest + b"0\r\n\r\n")
    gateway, _ = await behind(stage, "bedrock", same(*steps), server=server)
    seen = []

    async def read() -> None:
        chunks = await gateway.openai().chat.completions.create(model=CLAUDE, messages=MESSAGES, stream=True)
        async for piece in chunks:
            seen.append(piece.choices[0].delta.content)
            if seen[-1] == "Hi":
                heard.set()

    with pytest.raises(openai.APIError, match=said) as caught:
        await read()

    assert seen == ["", "Hi"]
    assert caught.value.code == code
    [record] = await gateway.records(1)
    assert record.usage_source == "partial"


@pytest.mark.parametrize("first", [THROTTLED, BEGIN + THROTTLED])
async def test_an_exception_before_anything_was_said_goes_to_the_next_provider(stage, first):
    """Case 73."""
    broken = await stage.upstream(same(chunked(first, headers=EVENT_STREAM)))
    good = await stage.upstream(same(chunked(BEGIN + text("Hi") + STOP + METADATA, headers=EVENT_STREAM)))
    providers = {
        name: Provider(
            adapter="bedrock", base_url=upstream.url, api_key=Secret(PROVIDER_KEY), models=("*",), priority=priority
        )
        for priority, (name, upstream) in enumerate({"broken": broken, "good": good}.items())
    }
    gateway, _ = await stage.gateway(same(answer(b"{}")), providers=providers)

    chunks = [
        chunk
        async for chunk in await gateway.openai().chat.completions.create(
            model=CLAUDE, messages=MESSAGES, stream=True
        )
    ]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hi"
    assert len(broken.requests) == len(good.requests) == 1


async def test_bedrocks_errors_are_openais(stage):
    body = b'{"message":"Input is too long for requested model."}'
    headers = [(b"x-amzn-errortype", b"ValidationException:http://internal.amazon.com/")]
    gateway, _ = await behind(stage, "bedrock", same(answer(body, status=400, headers=headers)))

    with pytest.raises(openai.BadRequestError, match="Input is too long") as caught:
        await gateway.openai().chat.completions.create(model=CLAUDE, messages=MESSAGES)

    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("status", "kind", "told"), [(408, "ModelTimeoutException", 504), (424, "ModelErrorException", 502)]
)
async def test_trouble_with_a_model_is_not_the_callers(stage, status, kind, told):
    """OpenAI's client tries again at these; at Bedrock's 424 it would not."""
    failed = answer(b'{"message":"The model failed."}', status=status, headers=[(b"x-amzn-errortype", kind.encode())])
    gateway, _ = await behind(stage, "bedrock", same(failed))

    with pytest.raises(openai.InternalServerError, match="The model failed") as caught:
        await gateway.openai().chat.completions.create(model=CLAUDE, messages=MESSAGES)

    assert caught.value.status_code == told


async def test_an_exception_before_the_answer_began_has_a_status(stage):
    """Case 73: nothing was sent yet, so the client's own rule for a rate limit holds."""
    gateway, _ = await behind(stage, "bedrock", same(chunked(THROTTLED, headers=EVENT_STREAM)))

    with pytest.raises(openai.RateLimitError, match="Too many requests"):
        await gateway.openai().chat.completions.create(model=CLAUDE, messages=MESSAGES, stream=True)


async def test_an_expired_credential_of_the_operators_is_not_the_callers(stage):
    """Case 63."""
    headers = [(b"x-amzn-errortype", b"ExpiredTokenException")]
    gateway, upstream = await behind(
        stage, "bedrock", same(answer(b'{"message":"The security token is expired"}', status=403, headers=headers))
    )

    with pytest.raises(openai.InternalServerError) as caught:
        await gateway.openai(max_retries=2).chat.completions.create(model=CLAUDE, messages=MESSAGES)

    assert caught.value.status_code == 502
    assert "token" not in caught.value.message
    assert len(upstream.requests) == 1


# -- Cohere --------------------------------------------------------------------------------------------------

COHERED = (
    b'{"type":"message-start","id":"c1","delta":{"message":{"role":"assistant","content":[],"tool_calls":[]}}}',
    b'{"type":"content-start","index":0,"delta":{"message":{"content":{"type":"text","text":""}}}}',
    b'{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"Hello "}}}}',
    b'{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"there."}}}}',
    b'{"type":"content-end","index":0}',
    (
        b'{"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":{"billed_units":{"input_tokens":3,'
        b'"output_tokens":2},"tokens":{"input_tokens":70,"output_tokens":4}}}}'
    ),
)


@pytest.mark.parametrize("each", [None, 1])
async def test_a_stream_of_coheres_is_a_stream_of_chunks(stage, server, each):
    """What is counted is what Cohere bills."""
    gateway, upstream = await behind(
        stage, "cohere", same(stream(sse(*COHERED)), each=each), path="/v2", server=server
    )

    chunks = [
        chunk
        async for chunk in await gateway.openai().chat.completions.create(
            model="command-a", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    ]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello there."
    assert chunks[-1].usage.total_tokens == 5
    [request] = upstream.requests
    assert request.target == b"/v2/chat"
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (3, 2, "reported")


async def test_what_cohere_is_not_told_is_told_to_the_caller(stage):
    body = (
        b'{"id":"c1","finish_reason":"COMPLETE","message":{"role":"assistant","content":[{"type":"text",'
        b'"text":"Hi"}]},"usage":{"billed_units":{"input_tokens":1,"output_tokens":1}}}'
    )
    gateway, _ = await behind(stage, "cohere", same(answer(body)), path="/v2")

    raw = await gateway.openai().chat.completions.with_raw_response.create(
        model="command-a", messages=MESSAGES, logit_bias={"1": 2}, user="u"
    )

    assert raw.headers["x-gateway-dropped"] == "logit_bias, user"
    assert raw.parse().choices[0].message.content == "Hi"


async def test_an_error_at_the_end_of_coheres_stream_raises(stage):
    end = b'{"type":"message-end","delta":{"finish_reason":"ERROR","error":"Something broke."}}'
    gateway, _ = await behind(stage, "cohere", same(stream(sse(*COHERED[:3], end))), path="/v2")

    with pytest.raises(openai.APIError, match="Something broke"):
        async for _piece in await gateway.openai().chat.completions.create(
            model="command-a", messages=MESSAGES, stream=True
        ):
            pass


async def test_coheres_vectors_arrive_as_the_client_asks(stage):
    """Case 9, by another dialect."""
    body = b'{"id":"e","embeddings":{"float":[[0.5,-1.0]]},"texts":["a"],"meta":{"billed_units":{"input_tokens":2}}}'
    gateway, upstream = await behind(stage, "cohere", same(answer(body)), path="/v2")

    made = await gateway.openai().embeddings.create(model="embed-v4.0", input="a")

    assert made.data[0].embedding == [0.5, -1.0]
    assert made.usage.prompt_tokens == 2
    assert upstream.requests[0].target == b"/v2/embed"
    [record] = await gateway.records(1)
    assert record.input_tokens == 2


async def test_token_numbers_are_refused_in_plain_words(stage):
    """Case 10."""
    gateway, upstream = await behind(stage, "cohere", same(answer(b"{}")), path="/v2")

    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
        await gateway.openai().embeddings.create(model="embed-v4.0", input=[[1, 2, 3]])

    assert upstream.requests == []


async def test_twenty_streams_at_once_are_told_apart(stage):
    """Case 20, translated."""

    async def script(peer) -> None:
        while True:
            request = await peer.receive()
            said = msgspec.json.decode(request.body)["messages"][0]["content"][0]["text"]
            await peer.send(chunked(BEGIN + text(said) + STOP + METADATA, headers=EVENT_STREAM))

    gateway, _ = await behind(stage, "bedrock", script)
    client = gateway.openai()

    async def ask(word: str) -> str:
        chunks = await client.chat.completions.create(
            model=CLAUDE, messages=[{"role": "user", "content": word}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    words = [f"word {number}" for number in range(20)]
    assert await asyncio.gather(*map(ask, words)) == words


# -- Anthropic's models on Bedrock, in their own words ---------------------------------------------------------

MESSAGE_EVENTS = (
    {
        "type": "message_start",
        "message": {
            "id": "msg_bdrk_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Grüße"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 7}},
    {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 9}},
)  # fmt: skip


def invoked(*events: dict) -> bytes:
    headers = {":message-type": "event", ":event-type": "chunk", ":content-type": "application/json"}
    return b"".join(
        frame(
            headers, msgspec.json.encode({"bytes": base64.b64encode(msgspec.json.encode(each)).decode(), "p": "ab"})
        )
        for each in events
    )


def own_client(gateway) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=gateway.url, api_key=gateway.key, max_retries=0)


@pytest.mark.parametrize("each", [None, 1])
async def test_anthropics_client_streams_from_bedrock(stage, server, each):
    """Cases 92 and 99: what is in the frames is Anthropic's own."""
    script = same(chunked(invoked(*MESSAGE_EVENTS), headers=EVENT_STREAM), each=each)
    gateway, upstream = await behind(stage, "bedrock", script, server=server)

    async with (
        own_client(gateway) as client,
        client.messages.stream(
            model=CLAUDE, max_tokens=2000, messages=MESSAGES, extra_headers={"anthropic-beta": "new-thing-2099-01-01"}
        ) as stream,
    ):
        message = await stream.get_final_message()

    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.content[0].signature, message.content[1].text) == ("c2ln", "Grüße")
    [request] = upstream.requests
    assert request.target.endswith(b"%3A0/invoke-with-response-stream")
    assert stream.response.headers["x-gateway-dropped"] == "anthropic-beta"
    sent = msgspec.json.decode(request.body)
    assert sent == {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 2000, "messages": MESSAGES}
    assert request.header(b"anthropic-version") is None
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (9, 7, "reported")


async def test_an_exception_under_way_is_anthropics_error(stage, server):
    exception = {":message-type": "exception", ":exception-type": "throttlingException"}
    body = invoked(*MESSAGE_EVENTS[:3]) + frame(exception, b'{"message":"Too many tokens."}')
    gateway, _ = await behind(stage, "bedrock", same(chunked(body, headers=EVENT_STREAM)), server=server)

    async with own_client(gateway) as client:
        with pytest.raises(anthropic.APIStatusError) as raised:
            async with client.messages.stream(model=CLAUDE, max_tokens=2000, messages=MESSAGES) as stream:
                await stream.get_final_message()

    assert "Too many tokens." in str(raised.value)


async def test_models_of_others_are_asked_through_converse(stage):
    gateway, upstream = await behind(stage, "bedrock", same(answer(CONVERSED)))

    async with own_client(gateway) as client:
        message = await client.messages.create(model="eu.amazon.nova-pro-v1:0", max_tokens=50, messages=MESSAGES)

    assert message.content[0].text == "Hello."
    assert upstream.requests[0].target == b"/model/eu.amazon.nova-pro-v1%3A0/converse"


async def test_tokens_are_counted_by_bedrock_or_else_estimated(stage):
    unable = b'{"message":"The provided model doesn\'t support counting tokens."}'
    script = play(RECEIVE, answer(b'{"inputTokens":14}'), RECEIVE, answer(unable, status=400))
    gateway, upstream = await behind(stage, "bedrock", script)

    async with own_client(gateway) as client:
        counted = await client.messages.count_tokens(model=CLAUDE, messages=MESSAGES)
        estimated = await client.messages.count_tokens(model=CLAUDE, messages=MESSAGES)

    assert counted.input_tokens == 14
    assert 0 < estimated.input_tokens < 50
    assert upstream.requests[0].target.endswith(b"/model/anthropic.claude-sonnet-4-5-20250929-v1%3A0/count-tokens")
    [first, second] = await gateway.records(2)
    assert (first.cost_nanos, second.cost_nanos) == (0, 0)
