"""Google's official client in front of a provider that speaks chat completions only."""

import asyncio

import msgspec
import pytest
from google import genai
from google.genai import errors, types

from tests.acceptance.answers import (
    DONE,
    LAST_CHUNK,
    USAGE,
    chat_stream,
    delta,
    embeddings,
    error,
    sse,
    stream,
    stream_head,
)
from tests.gateways import RunningGateway
from tests.upstreams import CLOSE, RECEIVE, REPEAT, Until, answer, chunk, events, play


def same(*parts: bytes):
    return play(RECEIVE, *parts, REPEAT)


def client_of(gateway: RunningGateway) -> genai.Client:
    return genai.Client(api_key=gateway.key, http_options=types.HttpOptions(base_url=gateway.url))


async def test_a_stream_becomes_googles(stage, server):
    """Case 97, through a bridge."""
    gateway, upstream = await stage.gateway(same(events(*chat_stream("One ", "two."))), server=server)

    async with client_of(gateway).aio as client:
        pieces = [piece async for piece in await client.models.generate_content_stream(model="gpt-x", contents="Hi")]

    assert "".join(piece.text or "" for piece in pieces) == "One two."
    assert pieces[-1].candidates[0].finish_reason == types.FinishReason.STOP
    assert pieces[-1].usage_metadata.prompt_token_count == 20
    assert pieces[-1].usage_metadata.total_token_count == 29
    sent = msgspec.json.decode(upstream.requests[0].body)
    assert sent["messages"] == [{"role": "user", "content": "Hi"}]
    assert sent["model"] == "gpt-x"
    assert upstream.requests[0].target == b"/v1/chat/completions"
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (20, 9, "reported")


async def test_an_answer_becomes_googles(stage):
    """Case 97, not streamed; thoughts are told to those who ask."""
    body = delta("Paris.", finish="stop", reasoning_content="Hm.").replace(b'"delta"', b'"message"')
    body = body.replace(
        b'"usage":null',
        b'"usage":{"prompt_tokens":9,"completion_tokens":7,"total_tokens":16,'
        b'"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":5}}',
    )
    gateway, upstream = await stage.gateway(same(answer(body)))
    config = types.GenerateContentConfig(
        system_instruction="Be brief.",
        temperature=0.5,
        top_k=3,
        max_output_tokens=64,
        stop_sequences=["END"],
        thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=0),
    )

    async with client_of(gateway).aio as client:
        answered = await client.models.generate_content(model="gpt-x", contents="Capital?", config=config)

    assert answered.text == "Paris."
    assert [part.thought for part in answered.candidates[0].content.parts] == [True, None]
    usage = answered.usage_metadata
    assert (usage.prompt_token_count, usage.cached_content_token_count) == (9, 4)
    assert (usage.candidates_token_count, usage.thoughts_token_count, usage.total_token_count) == (2, 5, 16)
    assert answered.model_version == "gpt-x"
    assert msgspec.json.decode(upstream.requests[0].body) == {
        "model": "gpt-x",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital?"}],
        "temperature": 0.5,
        "max_completion_tokens": 64,
        "stop": ["END"],
        "reasoning_effort": "none",
    }
    assert upstream.requests[0].header(b"x-goog-api-client") is None


async def test_calls_are_written_when_they_are_whole(stage):
    """Case 33 the other way round: two calls, their arguments in pieces."""
    data = [delta(role="assistant", content="")]
    for index in range(2):
        function = {"name": "look_up", "arguments": ""}
        data.append(delta(tool_calls=[{"index": index, "id": f"call_{index}", "function": function}]))
        text = '{"city":"caf\\u00e9 NUMBER","deep":{"n":["}"]}}'.replace("NUMBER", str(index))
        data += [delta(tool_calls=[{"index": index, "function": {"arguments": piece}}]) for piece in text]
    gateway, upstream = await stage.gateway(same(events(*data, delta(finish="tool_calls"), USAGE, DONE)))
    parameters = types.Schema(
        type=types.Type.OBJECT,
        properties={"city": types.Schema(type=types.Type.STRING, nullable=True, min_length=1)},
        required=["city"],
    )
    declared = types.FunctionDeclaration(name="look_up", description="Looks up.", parameters=parameters)
    other = types.FunctionDeclaration(name="other")
    calling = types.FunctionCallingConfig(
        mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["look_up"]
    )
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared, other])],
        tool_config=types.ToolConfig(function_calling_config=calling),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )

    async with client_of(gateway).aio as client:
        found = await client.models.generate_content_stream(model="gpt-x", contents="Hi", config=config)
        pieces = [piece async for piece in found]

    calls = [call for piece in pieces for call in piece.function_calls or ()]
    assert [(call.id, call.name, call.args) for call in calls] == [
        (f"call_{index}", "look_up", {"city": f"caf\u00e9 {index}", "deep": {"n": ["}"]}}) for index in range(2)
    ]
    sent = msgspec.json.decode(upstream.requests[0].body)
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "look_up"}}
    [tool] = sent["tools"]
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {"city": {"type": ["string", "null"], "minLength": 1}},
        "required": ["city"],
    }


async def test_a_conversation_with_functions_and_pictures_is_carried_over(stage):
    """Case 27 the other way round: results find their calls by name, in order."""
    gateway, upstream = await stage.gateway(same(events(*chat_stream("Done."))))
    contents = [
        types.Content(
            role="user",
            parts=[types.Part.from_text(text="What?"), types.Part.from_bytes(data=b"\x89PNG", mime_type="image/png")],
        ),
        types.Content(
            role="model",
            parts=[types.Part.from_function_call(name="f", args={"n": n}) for n in range(2)]
            + [types.Part.from_function_call(name="g", args={})],
        ),
        types.Content(
            role="user",
            parts=[
                types.Part.from_function_response(name="g", response={"output": "c"}),
                *[types.Part.from_function_response(name="f", response={"output": n}) for n in range(2)],
            ],
        ),
    ]

    async with client_of(gateway).aio as client:
        async for _ in await client.models.generate_content_stream(model="gpt-x", contents=contents):
            pass

    sent = msgspec.json.decode(upstream.requests[0].body)["messages"]
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    assert sent[0] == {"role": "user", "content": [{"type": "text", "text": "What?"}, picture]}
    assert [(call["id"], call["function"]["arguments"]) for call in sent[1]["tool_calls"]] == [
        ("call_1", '{"n": 0}'),
        ("call_2", '{"n": 1}'),
        ("call_3", "{}"),
    ]
    assert [(message["tool_call_id"], message["content"]) for message in sent[2:]] == [
        ("call_3", '{"output": "c"}'),
        ("call_1", '{"output": 0}'),
        ("call_2", '{"output": 1}'),
    ]


async def test_an_answer_in_a_schema(stage):
    gateway, upstream = await stage.gateway(same(answer(delta('{"name":"P"}', finish="stop"))))
    schema = types.Schema(type=types.Type.OBJECT, properties={"name": types.Schema(type=types.Type.STRING)})
    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=schema)

    async with client_of(gateway).aio as client:
        answered = await client.models.generate_content(model="gpt-x", contents="Hi", config=config)

    assert answered.parsed == {"name": "P"}
    wanted = msgspec.json.decode(upstream.requests[0].body)["response_format"]["json_schema"]
    assert wanted["schema"] == {"type": "object", "properties": {"name": {"type": "string"}}}


async def test_what_google_alone_can_do_is_refused(stage):
    gateway, upstream = await stage.gateway(same(answer(b"{}")))
    config = types.GenerateContentConfig(tools=[types.Tool(google_search=types.GoogleSearch())])

    async with client_of(gateway).aio as client:
        with pytest.raises(errors.ClientError) as caught:
            await client.models.generate_content(model="gpt-x", contents="Hi", config=config)

    assert caught.value.code == 400
    assert caught.value.status == "INVALID_ARGUMENT"
    assert upstream.requests == []


async def test_a_refusal_before_the_stream_is_an_error_of_the_dialect(stage):
    gateway, _ = await stage.gateway(same(answer(error("No such model."), status=404)))

    async with client_of(gateway).aio as client:
        with pytest.raises(errors.ClientError) as caught:
            await client.models.generate_content(model="gpt-x", contents="Hi")

    assert caught.value.code == 404
    assert caught.value.status == "NOT_FOUND"


async def test_an_error_inside_the_stream_raises_by_its_code(stage, server):
    """Case 97; and a stream has nothing in it but data."""
    broken = b'{"error":{"message":"Overloaded.","type":"server_error","code":503}}'
    heard = asyncio.Event()
    parts = [
        stream_head()
        + chunk(b": OPENROUTER PROCESSING\n\n" + sse(delta(role="assistant", content=""), delta("One "))),
        Until(heard),
        chunk(sse(broken, DONE)) + LAST_CHUNK,
    ]
    gateway, _ = await stage.gateway(same(*parts), server=server)

    async with client_of(gateway).aio as client:
        pieces = aiter(await client.models.generate_content_stream(model="gpt-x", contents="Hi"))
        assert (await anext(pieces)).text == "One "
        heard.set()
        with pytest.raises(errors.ServerError) as caught:
            await anext(pieces)

    assert caught.value.code == 503


async def test_a_stream_that_breaks_off_never_looks_finished(stage, server):
    """Case 75."""
    start = stream_head() + chunk(sse(delta(role="assistant", content=""), delta("One ")))
    gateway, _ = await stage.gateway(play(RECEIVE, start, CLOSE), server=server)

    async with client_of(gateway).aio as client:
        pieces = aiter(await client.models.generate_content_stream(model="gpt-x", contents="Hi"))
        assert (await anext(pieces)).candidates[0].finish_reason is None
        with pytest.raises(errors.APIError):
            await anext(pieces)

    [record] = await gateway.records(1)
    assert record.usage_source == "partial"


async def test_a_stream_holds_data_and_nothing_else(stage):
    """Case 97, byte by byte."""
    path = b"/v1beta/models/gpt-x:streamGenerateContent?alt=sse&key="
    body = b'{"contents":[{"parts":[{"text":"Hi"}]}]}'
    gateway, upstream = await stage.gateway(same(stream(b": hm\n\n" + sse(*chat_stream("One ", "two.")))))

    answered = await gateway.ask(body, path=path + gateway.key.encode(), key="")

    assert answered.header(b"content-type") == b"text/event-stream; charset=utf-8"
    lines = answered.body.split(b"\n")
    assert all(line.startswith(b"data: {") for line in lines[::2] if line)
    assert not any(lines[1::2])
    assert gateway.key.encode() not in upstream.requests[0].target


async def test_without_sse_a_stream_is_an_array(stage):
    path = b"/v1beta/models/gpt-x:streamGenerateContent"
    body = b'{"contents":{"parts":{"text":"Hi"}}}'.replace(b'{"parts":{', b'[{"parts":[{').replace(b"}}}", b"}]}]}")
    gateway, _ = await stage.gateway(same(events(*chat_stream("One ", "two."))))

    answered = await gateway.ask(body, path=path)

    assert answered.header(b"content-type") == b"application/json"
    pieces = msgspec.json.decode(answered.body)
    parts = [part for piece in pieces for part in piece["candidates"][0].get("content", {}).get("parts", ())]
    assert "".join(part["text"] for part in parts) == "One two."
    assert pieces[-1]["usageMetadata"]["totalTokenCount"] == 29


async def test_tokens_are_counted_by_estimate_and_nobody_is_asked(stage):
    """Case 96, Google's."""
    gateway, upstream = await stage.gateway(same(answer(b"{}")))

    async with client_of(gateway).aio as client:
        counted = await client.models.count_tokens(model="gpt-x", contents="Hi " * 1000)

    assert 700 < counted.total_tokens < 2000
    assert upstream.connections == 0


async def test_an_unknown_model_is_an_error_in_the_shape_of_who_asks(stage):
    """Case 96, Google's."""
    upstream = await stage.upstream(same(answer(b"{}")))
    provider = stage.provider(upstream, models=("gpt-x",))
    gateway, _ = await stage.gateway(same(answer(b"{}")), providers={"local": provider})

    async with client_of(gateway).aio as client:
        with pytest.raises(errors.ClientError) as caught:
            await client.models.get(model="nobody")

    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


@pytest.mark.parametrize("packed", [False, True])
async def test_embeddings_are_googles(stage, server, packed):
    """Of a provider that embeds as OpenAI does, whichever way it writes a vector."""
    body = embeddings([0.5, -1.0], [0.25, 2.0], packed=packed)
    gateway, upstream = await stage.gateway(same(answer(body)), server=server)
    config = types.EmbedContentConfig(output_dimensionality=2, task_type="RETRIEVAL_QUERY")

    async with client_of(gateway).aio as client:
        found = await client.models.embed_content(model="e", contents=["One.", "Two."], config=config)
    alone = await gateway.ask(
        b'{"content":{"parts":[{"text":"One."},{"text":"More."}]},"task_type":"RETRIEVAL_QUERY"}',
        path=b"/v1beta/models/e:embedContent",
    )

    assert [each.values for each in found.embeddings] == [[0.5, -1.0], [0.25, 2.0]]
    assert msgspec.json.decode(alone.body) == {"embedding": {"values": [0.5, -1.0]}}
    assert alone.header(b"x-gateway-dropped") == b"taskType"
    batch, single = upstream.requests
    assert batch.target == single.target == b"/v1/embeddings"
    assert msgspec.json.decode(batch.body) == {
        "model": "e",
        "input": ["One.", "Two."],
        "encoding_format": "float",
        "dimensions": 2,
    }
    assert msgspec.json.decode(single.body)["input"] == ["One.\nMore."]
    records = await gateway.records(2)
    assert [record.usage_source for record in records] == ["reported"] * 2
    assert all(record.input_tokens for record in records)


@pytest.mark.parametrize(
    ("verb", "body", "param"),
    [
        ("batchEmbedContents", {"requests": []}, "requests"),
        ("batchEmbedContents", {}, "requests"),
        ("batchEmbedContents", {"requests": [{"content": {"parts": [{"inlineData": {}}]}}]}, "requests[0].content.parts[0]"),
        ("embedContent", {"content": {"parts": []}}, "content.parts"),
        ("embedContent", {"content": 5}, "content"),
    ],
)  # fmt: skip
async def test_what_can_not_be_embedded_is_refused(stage, verb, body, param):
    gateway, upstream = await stage.gateway(same(answer(b"{}")))

    answered = await gateway.ask(msgspec.json.encode(body), path=f"/v1beta/models/e:{verb}".encode())

    assert answered.status == 400
    assert param in answered.error["message"]
    assert upstream.requests == []
