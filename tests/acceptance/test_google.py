"""Google's own API behind the gateway: its official client relayed, OpenAI's translated."""

import asyncio
import base64
import logging
import struct

import anthropic
import msgspec
import openai
import pytest
from google import genai
from google.genai import errors, types

from gateway.secret import Secret
from gateway.settings import Model, Provider
from tests.acceptance.answers import DONE, LAST_CHUNK, delta, stream, stream_head
from tests.gateways import PROVIDER_KEY, RunningGateway
from tests.upstreams import CLOSE, HANG, RECEIVE, REPEAT, Script, ScriptedUpstream, Until, answer, chunk, play

MODEL = "gemini-3-pro"
MESSAGES = [{"role": "user", "content": "Hi"}]
SSE = [(b"content-type", b"text/event-stream")]
USAGE = {"promptTokenCount": 10, "candidatesTokenCount": 7, "thoughtsTokenCount": 12, "totalTokenCount": 29}
KEY_INVALID = (
    b'[{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT","details":'
    b'[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}]}}]'
)
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "fg"]


def event(*parts: dict[str, object], finish: str = "", usage: dict[str, int] | None = None) -> bytes:
    """One event of Google's, as it frames them."""
    candidate: dict[str, object] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    report = {"usageMetadata": usage or {**USAGE, "candidatesTokenCount": 1, "totalTokenCount": 23}}
    return framed(msgspec.json.encode({"candidates": [candidate], **report, "responseId": "r1"}))


def framed(data: bytes) -> bytes:
    return b"data: " + data + b"\r\n\r\n"


def text(said: str, **members: object) -> dict[str, object]:
    return {"text": said, **members}


def called(name: str, *, signature: str = "", **arguments: object) -> dict[str, object]:
    part: dict[str, object] = {"functionCall": {"id": f"id-{name}", "name": name, "args": arguments}}
    return {**part, "thoughtSignature": signature} if signature else part


HELLO = event(text("Hel")) + event(text("lo.")) + event(text(""), finish="STOP", usage=USAGE)
ERROR = framed(b'{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}')


def same(*parts: bytes) -> Script:
    return play(RECEIVE, *parts, REPEAT)


def streamed(body: bytes) -> bytes:
    return stream(body, headers=SSE)


def google(upstream: ScriptedUpstream, **options: object) -> Provider:
    table = {
        "adapter": "google",
        "base_url": f"{upstream.url}/v1beta",
        "api_key": Secret(PROVIDER_KEY),
        "models": ("*",),
    }
    return Provider(**{**table, **options})


async def begin(stage, *scripts: Script, **options: object) -> tuple[RunningGateway, ScriptedUpstream]:
    upstream = await stage.upstream(*scripts)
    gateway, _ = await stage.gateway(play(HANG), providers={"gemini": google(upstream)}, **options)
    return gateway, upstream


def client_of(gateway: RunningGateway, **options: object) -> genai.Client:
    return genai.Client(api_key=gateway.key, http_options=types.HttpOptions(base_url=gateway.url, **options))


# -- Google's client -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "v1beta", "v1"])
async def test_a_stream_is_relayed(stage, server, version):
    """Case 97: as the provider sent it, with the usage of its last event."""
    gateway, upstream = await begin(stage, same(streamed(HELLO)), server=server)

    async with client_of(gateway, api_version=version).aio as client:
        pieces = [piece async for piece in await client.models.generate_content_stream(model=MODEL, contents="Hi")]

    assert "".join(piece.text or "" for piece in pieces) == "Hello."
    [received] = upstream.requests
    assert received.target == b"/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse"
    assert received.header(b"x-goog-api-key") == PROVIDER_KEY.encode()
    assert gateway.key.encode() not in b"".join(value for _, value in received.headers)
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (10, 19, "reported")
    assert record.route == "/v1/models/*:streamGenerateContent"


async def test_not_a_byte_of_a_stream_is_changed(stage, server):
    """Case 97: no comment, no event name, no mark of an end is ever added."""
    gateway, _ = await begin(stage, same(streamed(HELLO)), server=server)
    path = b"/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse&key=" + gateway.key.encode()

    relayed = await gateway.ask(b'{"contents": []}', path=path, key="")

    assert (relayed.status, relayed.body) == (200, HELLO)


async def test_a_plain_answer_is_relayed(stage):
    body = (
        b'{ "candidates": [{"content":{"parts":[{"text":"Hello."}]},"finishReason":"STOP"}],\n "usageMetadata": %b}\n'
    )
    body %= msgspec.json.encode(USAGE)
    gateway, upstream = await begin(stage, same(answer(body, headers=[(b"content-type", b"application/json")])))

    async with client_of(gateway).aio as client:
        found = await client.models.generate_content(
            model=MODEL, contents="Hi", config=types.GenerateContentConfig(max_output_tokens=5)
        )
    raw = await gateway.ask(b'{"contents": []}', path=b"/v1/models/gemini-3-pro:generateContent")

    assert found.text == "Hello."
    assert raw.body == body
    assert raw.header(b"x-gateway-cost-usd") is not None
    assert upstream.requests[1].body == b'{"contents": []}'
    assert [record.output_tokens for record in await gateway.records(2)] == [19, 19]


async def test_an_error_in_a_stream_raises_by_its_code(stage):
    """Case 97."""
    gateway, _ = await begin(stage, same(streamed(event(text("Hel")) + ERROR)))

    async with client_of(gateway).aio as client:
        with pytest.raises(errors.ServerError) as caught:
            async for _ in await client.models.generate_content_stream(model=MODEL, contents="Hi"):
                pass

    assert caught.value.code == 503


async def test_a_cut_stream_raises(stage):
    """Case 95, for Google's client: a stream without a finish reason is never a whole one."""
    gateway, _ = await begin(
        stage, play(RECEIVE, stream_head(headers=SSE), chunk(event(text("Hel"))), LAST_CHUNK, CLOSE)
    )

    async with client_of(gateway).aio as client:
        with pytest.raises(errors.APIError):
            async for _ in await client.models.generate_content_stream(model=MODEL, contents="Hi"):
                pass

    [record] = await gateway.records(1)
    assert (record.error_type, record.output_tokens) == ("provider_disconnected", 13)


async def test_a_wrong_key_is_refused_in_googles_words(stage):
    gateway, upstream = await begin(stage, same(streamed(HELLO)))

    async with genai.Client(
        api_key="gw_live_wrong", http_options=types.HttpOptions(base_url=gateway.url)
    ).aio as client:
        with pytest.raises(errors.ClientError) as caught:
            await client.models.generate_content(model=MODEL, contents="Hi")

    assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")
    assert upstream.connections == 0


async def test_two_different_keys_are_refused_and_neither_is_logged(stage, caplog):
    """Case 88: `?key=` beside a header."""
    caplog.set_level(logging.DEBUG)
    gateway, upstream = await begin(stage, same(streamed(HELLO)))
    path = b"/v1beta/models/gemini-3-pro:generateContent?key=gw_live_other"

    refused = await gateway.ask(b"{}", path=path)
    taken = await gateway.ask(b"{}", path=path.replace(b"gw_live_other", gateway.key.encode()))

    assert (refused.status, refused.error["status"]) == (401, "UNAUTHENTICATED")
    assert taken.status == 200
    assert [received.target for received in upstream.requests] == [b"/v1beta/models/gemini-3-pro:generateContent"]
    assert gateway.key not in caplog.text
    assert "gw_live_other" not in caplog.text


async def test_the_operators_bad_key_is_no_error_of_the_callers(stage):
    """Case 71: a 400 in an array, which says that the key is wrong."""
    refusal = answer(KEY_INVALID, status=400, headers=[(b"content-type", b"application/json")])
    gateway, upstream = await begin(stage, same(refusal))

    async with client_of(gateway).aio as client:
        with pytest.raises(errors.ServerError):
            await client.models.generate_content(model=MODEL, contents="Hi")
    with pytest.raises(openai.InternalServerError) as caught:
        await gateway.openai(max_retries=2).chat.completions.create(model=MODEL, messages=MESSAGES)

    assert caught.value.status_code == 502
    assert caught.value.code == "upstream_auth"
    assert len(upstream.requests) <= 2


async def test_counting_and_embedding(stage):
    vectors = b'{"embeddings":[{"values":[0.5,-2.0]}]}'
    gateway, upstream = await begin(
        stage,
        play(RECEIVE, answer(b'{"totalTokens":31}'), RECEIVE, answer(vectors), REPEAT),
    )

    async with client_of(gateway).aio as client:
        counted = await client.models.count_tokens(model=MODEL, contents="Hi")
        embedded = await client.models.embed_content(model="embed-x", contents="Hi")

    assert counted.total_tokens == 31
    assert embedded.embeddings[0].values == [0.5, -2.0]
    assert [received.target.rpartition(b":")[2] for received in upstream.requests] == [
        b"countTokens",
        b"batchEmbedContents",
    ]
    first, second = await gateway.records(2)
    assert (first.input_tokens, first.output_tokens, first.cost_nanos) == (0, 0, 0)
    assert second.input_tokens > 0


async def read_into(said: list[str], gateway: RunningGateway, heard: asyncio.Event) -> None:
    """The words of a stream, as far as they come."""
    events = await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    async for piece in events:
        said += [choice.delta.content or "" for choice in piece.choices]
        if any(said):
            heard.set()


async def test_models_are_listed_in_googles_shape(stage):
    """Case 96, for Google's client; OpenAI's asks at the same path."""
    upstream = await stage.upstream(play(HANG))
    providers = {"gemini": google(upstream, models=("gemini-3-pro", "acme/gemini-x"))}
    gateway, _ = await stage.gateway(play(HANG), providers=providers)

    async with client_of(gateway).aio as client:
        names = [model.name async for model in await client.models.list()]
        one = await client.models.get(model="acme/gemini-x")
        with pytest.raises(errors.ClientError):
            await client.models.get(model="nope")
    async with client_of(gateway, api_version="v1beta").aio as client:
        again = [model.name async for model in await client.models.list()]
    plain = [model.id async for model in gateway.openai().models.list()]

    assert sorted(names) == sorted(again) == ["models/acme/gemini-x", "models/gemini-3-pro"]
    assert one.name == "models/acme/gemini-x"
    assert sorted(plain) == ["acme/gemini-x", "gemini-3-pro"]


# -- OpenAI's client -------------------------------------------------------------------------------------------------


async def test_thoughts_are_counted_and_the_last_report_is_it(stage, server):
    """Case 98."""
    gateway, upstream = await begin(stage, same(streamed(event(text("Hm", thought=True)) + HELLO)), server=server)

    chunks = [
        chunk
        async for chunk in await gateway.openai().chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, seed=7, user="u"
        )
    ]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello."
    assert chunks[1].choices[0].delta.model_extra == {"reasoning_content": "Hm"}
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (10, 19, 29)
    assert usage.completion_tokens_details.reasoning_tokens == 12
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert {chunk.id for chunk in chunks} == {"chatcmpl-r1"}
    assert msgspec.json.decode(upstream.requests[0].body)["generationConfig"] == {"seed": 7}
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (10, 19, "reported")


async def test_what_was_dropped_is_told(stage):
    gateway, _ = await begin(stage, same(streamed(HELLO)))

    raw = await gateway.openai().chat.completions.with_raw_response.create(
        model=MODEL, messages=MESSAGES, stream=True, logit_bias={"1": 2}, parallel_tool_calls=False
    )

    assert set(raw.headers["x-gateway-dropped"].split(", ")) == {"logit_bias", "parallel_tool_calls"}


@pytest.mark.parametrize("keeps", [True, False])
async def test_tool_calls_of_two_events_and_the_signature_on_the_next_turn(stage, keeps):
    """Case 33: numbered over the whole stream; the signature comes back although the client drops it."""
    calls = event(called("f", signature="c2ln", a=1)) + event(called("g"), finish="STOP", usage=USAGE)
    gateway, upstream = await begin(stage, play(RECEIVE, streamed(calls), RECEIVE, streamed(HELLO), REPEAT))
    client = gateway.openai()

    async with client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=TOOLS) as events:
        completion = await events.get_final_completion()
    [choice] = completion.choices
    made = choice.message.tool_calls
    turn = [
        call.model_dump(exclude_none=True, include=None if keeps else {"id", "type", "function"}) for call in made
    ]
    for call in turn:
        call["function"].pop("parsed_arguments", None)
        call.pop("index", None)
    history = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": turn},
        *({"role": "tool", "tool_call_id": call.id, "content": "12"} for call in made),
    ]
    async for _ in await client.chat.completions.create(model=MODEL, messages=history, tools=TOOLS, stream=True):
        pass

    assert choice.finish_reason == "tool_calls"
    assert [(call.index, call.function.name, call.function.arguments) for call in made] == [
        (0, "f", '{"a":1}'),
        (1, "g", "{}"),
    ]
    contents = msgspec.json.decode(upstream.requests[1].body)["contents"]
    assert contents[1]["parts"] == [
        {"functionCall": {"id": "id-f", "name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"},
        {"functionCall": {"id": "id-g", "name": "g", "args": {}}},
    ]
    assert [part["functionResponse"]["name"] for part in contents[2]["parts"]] == ["f", "g"]


@pytest.mark.parametrize("streams", [True, False])
async def test_a_blocked_prompt_is_an_answer(stage, streams):
    """Case 34."""
    blocked = b'{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{"promptTokenCount":10}}'
    reply = (
        streamed(framed(blocked)) if streams else answer(blocked, headers=[(b"content-type", b"application/json")])
    )
    gateway, _ = await begin(stage, same(reply))

    found = await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=streams)
    if streams:
        chunks = [chunk async for chunk in found]
        refusal, finish = chunks[1].choices[0].delta.refusal, chunks[-1].choices[0].finish_reason
    else:
        refusal, finish = found.choices[0].message.refusal, found.choices[0].finish_reason
        assert found.choices[0].message.content is None

    assert "PROHIBITED_CONTENT" in refusal
    assert finish == "content_filter"


async def test_an_error_first_is_an_error_with_a_status(stage):
    """Case 73, for a translated stream."""
    gateway, _ = await begin(stage, same(streamed(ERROR)))

    with pytest.raises(openai.InternalServerError) as caught:
        await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)

    assert caught.value.status_code == 503
    assert "overloaded" in caught.value.message


async def test_an_error_later_ends_the_stream_with_an_error(stage, server):
    heard = asyncio.Event()
    script = play(
        RECEIVE, stream_head(headers=SSE), chunk(event(text("Hel"))), Until(heard), chunk(ERROR), LAST_CHUNK, REPEAT
    )
    gateway, _ = await begin(stage, script, server=server)
    said: list[str] = []

    with pytest.raises(openai.APIError) as caught:
        await read_into(said, gateway, heard)

    assert "".join(said) == "Hel"
    assert "overloaded" in caught.value.message


async def test_a_cut_stream_is_no_whole_one(stage, server):
    """Case 75."""
    gateway, _ = await begin(
        stage,
        play(RECEIVE, stream_head(headers=SSE), chunk(event(text("Hel")) + b"data: {"), LAST_CHUNK, CLOSE),
        server=server,
    )

    with pytest.raises(openai.APIError):
        async for _ in await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
            pass

    [record] = await gateway.records(1)
    assert (record.error_type, record.output_tokens) == ("provider_disconnected", 13)


async def test_too_long_a_prompt_has_openais_code(stage):
    """Case 67."""
    body = b'{"error":{"code":400,"message":"The input token count (9) exceeds the maximum number of tokens allowed (8).","status":"INVALID_ARGUMENT"}}'
    gateway, _ = await begin(stage, same(answer(body, status=400, headers=[(b"content-type", b"application/json")])))

    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES)

    assert caught.value.code == "context_length_exceeded"
    assert "input token count" in caught.value.message


async def test_a_tool_answer_to_no_call_names_its_id(stage):
    """Case 26."""
    gateway, upstream = await begin(stage, same(streamed(HELLO)))
    history = [*MESSAGES, {"role": "tool", "tool_call_id": "nope", "content": "1"}]

    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.openai().chat.completions.create(model=MODEL, messages=history)

    assert "nope" in caught.value.message
    assert caught.value.param == "messages[1].tool_call_id"
    assert not upstream.requests


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_embeddings(stage, encoding):
    """Case 9."""
    body = b'{"embeddings":[{"values":[0.5,-2.0]},{"values":[1,0]}]}'
    gateway, upstream = await begin(stage, same(answer(body, headers=[(b"content-type", b"application/json")])))
    options = {} if encoding is None else {"encoding_format": encoding}

    found = await gateway.openai().embeddings.create(model="embed-x", input=["a", "b"], **options)

    vectors = [one.embedding for one in found.data]
    if encoding == "base64":
        vectors = [list(struct.unpack("<2f", base64.b64decode(vector))) for vector in vectors]
    assert vectors == [[0.5, -2.0], [1.0, 0.0]]
    assert upstream.requests[0].target == b"/v1beta/models/embed-x:batchEmbedContents"
    [record] = await gateway.records(1)
    assert record.input_tokens > 0
    assert record.output_tokens == 0


async def test_a_caller_of_one_provider_falls_back_to_the_other(stage):
    """Google throttles: OpenAI's own provider answers in the same stream."""
    throttled = answer(
        b'{"error":{"code":429,"message":"Quota exceeded","status":"RESOURCE_EXHAUSTED"}}',
        status=429,
        headers=[(b"content-type", b"application/json")],
    )
    first = await stage.upstream(same(throttled))
    events = b"".join(b"data: %b\n\n" % data for data in (delta("Hello."), delta(finish="stop"), DONE))
    second = await stage.upstream(same(stream(events)))
    providers = {
        "gemini": google(first, priority=0),
        "other": stage.provider(second, models=("*",), priority=1),
    }
    gateway, _ = await stage.gateway(play(HANG), providers=providers)

    said = [
        piece.choices[0].delta.content or ""
        async for piece in await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        if piece.choices
    ]

    assert "".join(said) == "Hello."
    assert len(first.requests) == len(second.requests) == 1


async def test_a_caller_who_leaves_is_charged_for_what_was_reported(stage):
    """Case 81, translated."""
    upstream = await stage.upstream(play(RECEIVE, stream_head(headers=SSE), chunk(event(text("Hel"))), RECEIVE))
    gateway, _ = await stage.gateway(play(HANG), providers={"gemini": google(upstream)})

    events = await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    async for piece in events:
        if piece.choices[0].delta.content:
            break
    await events.close()
    async with asyncio.timeout(10):
        await upstream.all_closed()

    [record] = await gateway.records(1)
    assert (record.error_type, record.input_tokens, record.output_tokens) == ("caller_gone", 10, 13)


# -- what was thought, through other dialects ------------------------------------------------------------------

ASK_TO_THINK = {
    "model": MODEL,
    "max_tokens": 4000,
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "tools": [{"name": "f", "input_schema": {"type": "object"}}],
}


async def test_anthropics_client_brings_back_what_google_signed(stage):
    """The next turn is at another gateway, which remembers nothing of the first."""
    calls = event(text("Hm.", thought=True)) + event(called("f", signature="c2ln", a=1), finish="STOP", usage=USAGE)
    first, _ = await begin(stage, same(streamed(calls)))
    second, upstream = await begin(stage, same(streamed(HELLO)))
    turns = [*MESSAGES]

    async with (
        anthropic.AsyncAnthropic(api_key=first.key, base_url=first.url) as client,
        client.messages.stream(**ASK_TO_THINK, messages=turns) as events,
    ):
        message = await events.get_final_message()
    result = {"type": "tool_result", "tool_use_id": message.content[-1].id, "content": "12"}
    turns += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    async with (
        anthropic.AsyncAnthropic(api_key=second.key, base_url=second.url) as client,
        client.messages.stream(**ASK_TO_THINK, messages=turns) as events,
    ):
        assert await events.get_final_text() == "Hello."

    assert [block.type for block in message.content] == ["thinking", "redacted_thinking", "tool_use"]
    contents = msgspec.json.decode(upstream.requests[0].body)["contents"]
    assert contents[1]["parts"] == [called("f", signature="c2ln", a=1)]


async def test_openais_client_brings_it_back_in_a_response(stage):
    calls = event(called("f", signature="c2ln", a=1), finish="STOP", usage=USAGE)
    first, _ = await begin(stage, same(streamed(calls)))
    second, upstream = await begin(stage, same(streamed(HELLO)))
    asked = {
        "model": MODEL,
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}],
        "include": ["reasoning.encrypted_content"],
        "store": False,
    }

    async with first.openai().responses.stream(input="Hi", **asked) as events:
        response = await events.get_final_response()
    items = [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in response.output]
    result = {"type": "function_call_output", "call_id": items[-1]["call_id"], "output": "12"}
    turns = [{"role": "user", "content": "Hi"}, *items, result]
    async with second.openai().responses.stream(input=turns, **asked) as events:
        assert (await events.get_final_response()).output_text == "Hello."

    contents = msgspec.json.decode(upstream.requests[0].body)["contents"]
    assert contents[1]["parts"] == [called("f", signature="c2ln", a=1)]


async def test_googles_client_brings_back_what_anthropic_signed(stage):
    """Its history of a conversation keeps only what it thinks well of."""
    usage = {"input_tokens": 9, "output_tokens": 7}
    said = [
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "cmVk"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
    ]
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "c", "usage": usage}
    calls = {**message, "content": said, "stop_reason": "tool_use"}
    done = {**message, "content": [{"type": "text", "text": "Hello."}], "stop_reason": "end_turn"}
    upstream = await stage.upstream(
        play(RECEIVE, answer(msgspec.json.encode(calls)), RECEIVE, answer(msgspec.json.encode(done)))
    )
    provider = Provider(
        adapter="anthropic", base_url=upstream.url, api_key=Secret(PROVIDER_KEY), models=("claude-sonnet-4-5",)
    )
    free = {"claude-sonnet-4-5": Model(free=True)}
    gateway, _ = await stage.gateway(play(HANG), providers={"anthropic": provider}, models=free)
    config = types.GenerateContentConfig(
        max_output_tokens=4000,
        thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=2000),
        tools=[types.Tool(function_declarations=[types.FunctionDeclaration(name="f")])],
    )

    async with client_of(gateway).aio as client:
        chat = client.chats.create(model="claude-sonnet-4-5", config=config)
        await chat.send_message("Hi")
        result = types.Part.from_function_response(name="f", response={"output": "12"})
        result.function_response.id = "toolu_1"
        answered = await chat.send_message(result)

    assert answered.text == "Hello."
    assert msgspec.json.decode(upstream.requests[1].body)["messages"][1]["content"] == said
