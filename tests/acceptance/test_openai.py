"""The official OpenAI clients, with nothing changed but their base URL."""

import asyncio
import math

import msgspec
import openai
import pydantic
import pytest

from tests.acceptance.answers import (
    ASK_STREAM,
    CHAT,
    DONE,
    LAST_CHUNK,
    MESSAGES,
    USAGE,
    chat_stream,
    delta,
    embeddings,
    error,
    response_object,
    responses_stream,
    sse,
    stream,
    stream_head,
)
from tests.gateways import PROVIDER_KEY
from tests.upstreams import RECEIVE, REPEAT, Until, answer, chunk, events, play


def same(*parts: bytes):
    return play(RECEIVE, *parts, REPEAT)


async def test_a_chat_answer_is_the_providers_byte_for_byte(stage, server):
    """Case 1."""
    headers = [(b"x-request-id", b"req_upstream"), (b"openai-processing-ms", b"12")]
    gateway, upstream = await stage.gateway(same(answer(CHAT, headers=headers)), server=server)

    raw = await gateway.openai().chat.completions.with_raw_response.create(model="gpt-x", messages=MESSAGES)

    assert raw.status_code == 200
    assert raw.content == CHAT
    assert raw.headers["x-request-id"] == "req_upstream"
    assert raw.headers["openai-processing-ms"] == "12"
    assert raw.headers["x-gateway-provider"] == "local"
    assert raw.headers["x-gateway-attempts"] == "1"
    completion = raw.parse()
    assert completion.choices[0].message.content == "Hello."
    assert completion.model_extra == {"x_unknown": {"kept": True}}
    assert upstream.requests[0].header(b"authorization") == f"Bearer {PROVIDER_KEY}".encode()
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (9, 2, "reported")
    assert raw.headers["x-gateway-request-id"] == record.id


async def test_the_blocking_client_gets_the_same(stage):
    """Case 1, with the other client."""
    gateway, _ = await stage.gateway(same(answer(CHAT)))
    client = gateway.blocking_openai()

    completion = await asyncio.to_thread(client.chat.completions.create, model="gpt-x", messages=MESSAGES)

    assert completion.choices[0].message.content == "Hello."
    assert completion._request_id


async def test_the_blocking_client_streams(stage):
    """Case 2, with the other client."""
    gateway, _ = await stage.gateway(same(events(*chat_stream("One ", "two."))))
    client = gateway.blocking_openai()

    def read() -> str:
        chunks = client.chat.completions.create(model="gpt-x", messages=MESSAGES, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    assert await asyncio.to_thread(read) == "One two."


async def test_the_usage_of_a_stream_is_asked_for_and_taken_out_again(stage, server):
    """Case 2."""
    gateway, upstream = await stage.gateway(same(events(*chat_stream("One ", "two."))), server=server)

    answer = await gateway.ask(ASK_STREAM)

    assert answer.body == sse(*chat_stream("One ", "two.", usage=False))
    sent = upstream.requests[0].body
    assert sent.replace(b',"stream_options":{"include_usage":true}', b"", 1) == ASK_STREAM
    assert msgspec.json.decode(sent)["stream_options"] == {"include_usage": True}
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (20, 9, "reported")
    assert record.stream


async def test_a_client_that_indexes_choices_never_meets_an_empty_list(stage):
    """Case 2, as the official client sees it."""
    gateway, _ = await stage.gateway(same(events(*chat_stream("One ", "two."))))

    chunks = await gateway.openai().chat.completions.create(model="gpt-x", messages=MESSAGES, stream=True)

    assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == "One two."


async def test_a_caller_who_asks_for_usage_gets_it_untouched(stage, server):
    """Case 3."""
    whole = chat_stream("One ", "two.")
    gateway, upstream = await stage.gateway(same(events(*whole)), server=server)
    client = gateway.openai()

    chunks = await client.chat.completions.create(
        model="gpt-x", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    seen = [chunk async for chunk in chunks]
    raw = await gateway.ask(upstream.requests[0].body)

    assert seen[-1].choices == []
    assert seen[-1].usage.total_tokens == 29
    assert raw.body == sse(*whole)
    assert raw.header(b"content-type") == b"text/event-stream; charset=utf-8"
    assert upstream.requests[0].body == upstream.requests[1].body


async def test_three_parallel_tool_calls_through_the_stream_helper(stage, server):
    """Cases 5 and 21: arguments come in pieces of one character, escapes cut in the middle."""
    wanted = {f"call_{n}": {"city": f"caf\u00e9 {n}", "n": n} for n in range(3)}
    data = [delta(role="assistant", content=None)]
    for index, (call_id, arguments) in enumerate(wanted.items()):
        function = {"name": "look_up", "arguments": ""}
        data.append(delta(tool_calls=[{"index": index, "id": call_id, "type": "function", "function": function}]))
        text = msgspec.json.encode(arguments).decode().replace("\u00e9", "\\u00e9")
        data += [delta(tool_calls=[{"index": index, "function": {"arguments": piece}}]) for piece in text]
    gateway, _ = await stage.gateway(same(events(*data, delta(finish="tool_calls"), USAGE, DONE)), server=server)

    async with gateway.openai().chat.completions.stream(model="gpt-x", messages=MESSAGES) as helper:
        completion = await helper.get_final_completion()

    calls = completion.choices[0].message.tool_calls
    assert {call.id: msgspec.json.decode(call.function.arguments) for call in calls} == wanted


class Weather(pydantic.BaseModel):
    city: str
    degrees: float


def parsed_answer(finish: str) -> bytes:
    message = {"role": "assistant", "content": '{"city":"Paris","degrees":21.5}', "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    return msgspec.json.encode(
        {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    )


async def test_parse_fills_a_model(stage):
    """Case 6."""
    gateway, upstream = await stage.gateway(same(answer(parsed_answer("stop"))))

    completion = await gateway.openai().chat.completions.parse(
        model="gpt-x", messages=MESSAGES, response_format=Weather
    )

    assert completion.choices[0].message.parsed == Weather(city="Paris", degrees=21.5)
    assert msgspec.json.decode(upstream.requests[0].body)["response_format"]["json_schema"]["strict"] is True


async def test_parse_raises_on_an_answer_cut_by_its_length(stage):
    """Case 6."""
    gateway, _ = await stage.gateway(same(answer(parsed_answer("length"))))

    with pytest.raises(openai.LengthFinishReasonError):
        await gateway.openai().chat.completions.parse(model="gpt-x", messages=MESSAGES, response_format=Weather)


async def test_legacy_completions_keep_their_interleaved_choices(stage, server):
    """Case 7."""
    data = [
        msgspec.json.encode(
            {
                "id": "cmpl-1",
                "object": "text_completion",
                "created": 1,
                "model": "gpt-x",
                "choices": [{"index": n % 2, "text": text, "logprobs": None, "finish_reason": finish}],
            }
        )
        for n, (text, finish) in enumerate(
            [("Say", None), ("Say", None), (" a", None), (" b", None), ("", "stop"), ("", "length")]
        )
    ]
    gateway, upstream = await stage.gateway(same(events(*data, DONE)), server=server)

    chunks = await gateway.openai().completions.create(model="gpt-x", prompt="Say", n=2, echo=True, stream=True)
    choices = [choice async for chunk in chunks for choice in chunk.choices]

    assert [(choice.index, choice.text) for choice in choices] == [
        (0, "Say"),
        (1, "Say"),
        (0, " a"),
        (1, " b"),
        (0, ""),
        (1, ""),
    ]
    assert [choice.finish_reason for choice in choices[-2:]] == ["stop", "length"]
    assert upstream.requests[0].target == b"/v1/completions"


async def test_three_choices_interleaved_with_their_own_ends(stage):
    """Case 23."""
    data = [delta(f"{n}", index=n % 3) for n in range(9)]
    data += [delta(index=n, finish=finish) for n, finish in enumerate(["stop", "length", "content_filter"])]
    gateway, _ = await stage.gateway(same(events(*data, DONE)))

    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    async for part in await gateway.openai().chat.completions.create(
        model="gpt-x", messages=MESSAGES, n=3, stream=True
    ):
        for choice in part.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason

    assert texts == {0: "036", 1: "147", 2: "258"}
    assert ends == {0: "stop", 1: "length", 2: "content_filter"}


async def test_responses_plain(stage, server):
    """Case 8."""
    body = msgspec.json.encode(response_object("completed", "Hi"))
    gateway, upstream = await stage.gateway(same(answer(body)), server=server)

    response = await gateway.openai().responses.create(model="gpt-x", input="Hi")

    assert response.output_text == "Hi"
    assert response.usage.total_tokens == 10
    assert b"stream_options" not in upstream.requests[0].body
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens) == (8, 2)


async def test_responses_streamed(stage, server):
    """Case 8: names and sequence intact, no mark added, usage out of the last event."""
    body = responses_stream("Hel", "lo")
    gateway, upstream = await stage.gateway(same(stream(body)), server=server)

    seen = [event async for event in await gateway.openai().responses.create(model="gpt-x", input="Hi", stream=True)]
    raw = await gateway.ask(upstream.requests[0].body, path=b"/v1/responses")

    assert [event.sequence_number for event in seen] == list(range(7))
    assert seen[-1].type == "response.completed"
    assert seen[-1].response.output_text == "Hello"
    assert raw.body == body
    assert b"stream_options" not in upstream.requests[0].body
    for record in await gateway.records(2):
        assert (record.input_tokens, record.output_tokens, record.usage_source) == (8, 2, "reported")


async def test_the_responses_stream_helper(stage):
    """Case 8, through the helper."""
    gateway, _ = await stage.gateway(same(stream(responses_stream("Hel", "lo"))))

    async with gateway.openai().responses.stream(model="gpt-x", input="Hi") as helper:
        final = await helper.get_final_response()

    assert final.output_text == "Hello"


VECTORS = [[0.25, -1.5, math.pi], [0.0, 1e-7, -2.0]]


@pytest.mark.parametrize("packed", [True, False], ids=["base64", "floats"])
async def test_embeddings(stage, server, packed):
    """Case 9: the client asks for base64; a provider that answers with floats all the same is understood too."""
    body = embeddings(*VECTORS, packed=packed)
    gateway, upstream = await stage.gateway(same(answer(body)), server=server)

    result = await gateway.openai().embeddings.create(model="text-embedding-x", input=["a", "b"])

    assert [item.embedding for item in result.data] == [pytest.approx(vector, abs=1e-6) for vector in VECTORS]
    assert msgspec.json.decode(upstream.requests[0].body)["encoding_format"] == "base64"
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.usage_source) == (5, "reported")


async def test_200_streams_at_once_do_not_mix(stage, server):
    """Case 20: each gets its own words back; the provider's connections are used again."""

    async def script(peer):
        while True:
            request = await peer.receive()
            word = msgspec.json.decode(request.body)["messages"][0]["content"]
            data = chat_stream(*[f"{word}-{n} " for n in range(5)], completion=f"chatcmpl-{word}")
            await peer.send(stream_head())
            for event in data:
                await asyncio.sleep(0)
                await peer.send(chunk(sse(event)))
            await peer.send(LAST_CHUNK)

    gateway, upstream = await stage.gateway(script, server=server)
    client = gateway.openai()

    async def one(number: int) -> None:
        word = f"w{number}"
        chunks = await client.chat.completions.create(
            model="gpt-x", messages=[{"role": "user", "content": word}], stream=True
        )
        seen = [chunk async for chunk in chunks]
        assert {chunk.id for chunk in seen} == {f"chatcmpl-{word}"}
        text = "".join(chunk.choices[0].delta.content or "" for chunk in seen)
        assert text == "".join(f"{word}-{n} " for n in range(5))

    await asyncio.gather(*(one(number) for number in range(200)))
    before = upstream.connections
    await asyncio.gather(*(one(number) for number in range(200, 220)))

    assert upstream.connections == before
    assert len(upstream.requests) == 220


async def test_an_error_of_the_provider_is_its_own(stage, server):
    """Class, code, message, param and request id as without a gateway."""
    body = error("Unsupported value.", code="unsupported_value", param="temperature")
    gateway, upstream = await stage.gateway(
        same(answer(body, status=400, headers=[(b"x-request-id", b"req_up")])), server=server
    )

    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.openai(max_retries=2).chat.completions.create(model="gpt-x", messages=MESSAGES)

    assert caught.value.code == "unsupported_value"
    assert caught.value.param == "temperature"
    assert caught.value.request_id == "req_up"
    assert "Unsupported value." in caught.value.message
    assert caught.value.response.content == body
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_each_status_raises_its_own_exception(stage, status, expected):
    body = error("It says why.", kind="some_error", code="some_code")
    gateway, _ = await stage.gateway(same(answer(body, status=status)))

    with pytest.raises(expected) as caught:
        await gateway.openai().chat.completions.create(model="gpt-x", messages=MESSAGES)

    assert caught.value.status_code == status
    assert caught.value.code == "some_code"
    assert caught.value.response.content == body
    assert caught.value.request_id


async def test_the_azure_client(stage, server):
    """Case 88: the deployment in the path is the model, the key comes in a header of its own."""
    gateway, upstream = await stage.gateway(same(answer(CHAT)), server=server)

    async with openai.AsyncAzureOpenAI(
        api_key=gateway.key, azure_endpoint=gateway.url, api_version="2024-10-21", max_retries=0
    ) as client:
        completion = await client.chat.completions.create(model="gpt-x", messages=MESSAGES)

    assert completion.choices[0].message.content == "Hello."
    [request] = upstream.requests
    assert request.target.startswith(b"/v1/chat/completions")
    assert request.header(b"api-key") is None
    assert request.header(b"authorization") == f"Bearer {PROVIDER_KEY}".encode()
    assert gateway.key.encode() not in request.head + request.body


async def test_a_client_that_gives_up_is_three_requests(stage):
    """Case 82: the client's own timeout, its two retries, and a provider that is let go each time."""
    never = asyncio.Event()
    gateway, upstream = await stage.gateway(play(RECEIVE, Until(never)))

    with pytest.raises(openai.APITimeoutError):
        await gateway.openai(max_retries=2, timeout=0.3).chat.completions.create(model="gpt-x", messages=MESSAGES)

    assert len(upstream.requests) == 3
    never.set()
    await asyncio.wait_for(upstream.all_closed(), 10)
    assert [record.error_type for record in await gateway.records(3)] == ["caller_gone"] * 3


async def test_what_a_providers_row_drops_is_told(stage, server):
    """Mistral refuses `user` and `store`; who sends neither is told nothing. No name writes a header of its own."""
    upstream = await stage.upstream(same(answer(CHAT)))
    provider = stage.provider(upstream, adapter="compatible", extra={"row": "mistral"})
    gateway, _ = await stage.gateway(same(answer(CHAT)), providers={"local": provider}, server=server)
    create = gateway.openai().chat.completions.with_raw_response.create

    told = await create(model="gpt-x", messages=MESSAGES, user="u", store=True, seed=1)
    silent = await create(model="gpt-x", messages=MESSAGES, seed=1)

    assert set(told.headers["x-gateway-dropped"].split(", ")) == {"user", "store"}
    assert "x-gateway-dropped" not in silent.headers
    sent = [msgspec.json.decode(request.body) for request in upstream.requests]
    assert [set(body) for body in sent] == [{"model", "messages", "random_seed"}] * 2
