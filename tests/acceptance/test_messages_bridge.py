"""Anthropic's official client in front of a provider that speaks chat completions only."""

import asyncio

import anthropic
import msgspec
import pydantic
import pytest

from gateway.settings import Model, Routing, Settings
from tests.acceptance.answers import (
    CHAT,
    DONE,
    LAST_CHUNK,
    USAGE,
    chat_stream,
    delta,
    error,
    sse,
    stream_head,
)
from tests.gateways import RunningGateway
from tests.upstreams import CLOSE, RECEIVE, REPEAT, Pause, Until, answer, chunk, events, play

ASK = {"model": "gpt-x", "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}]}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOLS = [
    {
        "name": "look_up",
        "description": "Looks a city up.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "$defs": {"x": {"const": 1}}},
        "cache_control": {"type": "ephemeral"},
    }
]


def same(*parts: bytes):
    return play(RECEIVE, *parts, REPEAT)


def client_of(gateway: RunningGateway, **options) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(**({"api_key": gateway.key, "base_url": gateway.url, "max_retries": 0} | options))


def call_delta(index: int, *, arguments: str = "", **members) -> bytes:
    function = {key: members.pop(key) for key in ("name",) if key in members} | {"arguments": arguments}
    return delta(tool_calls=[{"index": index, "function": function, **members}])


async def test_an_answer_becomes_a_message(stage, server):
    """Case 93, not streamed."""
    body = msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1790000000,
            "model": "gpt-x-2026",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": 30,
                "completion_tokens": 12,
                "total_tokens": 42,
                "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 5},
                "completion_tokens_details": {"reasoning_tokens": 8},
            },
        }
    )
    gateway, upstream = await stage.gateway(same(answer(body)), server=server)

    async with client_of(gateway) as client:
        raw = await client.messages.with_raw_response.create(**ASK, extra_body={"top_k": 3})

    message = await raw.parse()
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-gateway-dropped"] == "top_k"
    assert message.id == "msg_chatcmpl-1"
    assert message.model == "gpt-x-2026"
    assert [block.text for block in message.content] == ["Hello."]
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens == 15
    assert message.usage.cache_read_input_tokens == 10
    assert message.usage.cache_creation_input_tokens == 5
    assert message.usage.output_tokens == 12
    assert message.usage.output_tokens_details.thinking_tokens == 8
    [sent] = upstream.requests
    assert sent.target == b"/v1/chat/completions"
    assert sent.header(b"anthropic-version") is None
    assert msgspec.json.decode(sent.body) == {
        "model": "gpt-x",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 64,
    }
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (30, 12, "reported")


async def test_a_stream_becomes_a_message(stage, server):
    """Case 93."""
    gateway, upstream = await stage.gateway(same(events(*chat_stream("One ", "two."))), server=server)

    async with client_of(gateway) as client, client.messages.stream(**ASK) as helper:
        kinds = [event.type async for event in helper]
        message = await helper.get_final_message()

    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert [block.text for block in message.content] == ["One two."]
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (20, 9)
    assert msgspec.json.decode(upstream.requests[0].body)["stream_options"] == {"include_usage": True}
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (20, 9, "reported")
    assert record.stream


async def test_two_calls_in_one_answer(stage):
    """Case 93: text, then two calls, their arguments in pieces of one character with escapes cut in the middle."""
    wanted = {f"call_{n}": {"city": f"caf\u00e9 {n}", "deep": {"n": [n, "}"]}} for n in range(2)}
    data = [delta(role="assistant", content=""), delta("Let me see.")]
    for index, (call_id, arguments) in enumerate(wanted.items()):
        data.append(call_delta(index, id=call_id, type="function", name="look_up"))
        text = msgspec.json.encode(arguments).decode().replace("\u00e9", "\\u00e9")
        data += [call_delta(index, arguments=piece) for piece in text]
    gateway, upstream = await stage.gateway(same(events(*data, delta(finish="tool_calls"), USAGE, DONE)))

    async with client_of(gateway) as client:
        choice = {"type": "any", "disable_parallel_tool_use": True}
        async with client.messages.stream(**ASK, tools=TOOLS, tool_choice=choice) as helper:
            seen = [event async for event in helper]
            message = await helper.get_final_message()

    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert {block.id: block.input for block in message.content[1:]} == wanted
    assert message.stop_reason == "tool_use"
    starts = [event.index for event in seen if event.type == "content_block_start"]
    stops = [event.index for event in seen if event.type == "content_block_stop"]
    assert starts == stops == [0, 1, 2]
    # Live, not at the end: the first call's arguments came in as many pieces as they were sent in.
    assert len([event for event in seen if event.type == "input_json"]) > 50
    sent = msgspec.json.decode(upstream.requests[0].body)
    assert sent["tool_choice"] == "required"
    assert sent["parallel_tool_calls"] is False
    [tool] = sent["tools"]
    assert tool["function"]["parameters"] == TOOLS[0]["input_schema"]


async def test_a_conversation_with_tools_and_pictures_is_carried_over(stage):
    """Cases 25 and 27 the other way round: results come first, in order, and pictures in them move to the user."""
    gateway, upstream = await stage.gateway(same(events(*chat_stream("Done."))))
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "call_1", "name": "look_up", "input": {"city": "Paris"}},
                {"type": "tool_use", "id": "call_2", "name": "look_up", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "call_1",
                    "content": [{"type": "text", "text": "A city."}, image],
                },
                {"type": "tool_result", "tool_use_id": "call_2", "content": "No.", "is_error": True},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    system = [
        {"type": "text", "text": "Be brief."},
        {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}},
    ]

    async with client_of(gateway) as client:
        request = {**ASK, "messages": messages}
        async with client.messages.stream(
            **request, system=system, tools=TOOLS, stop_sequences=["END"], metadata={"user_id": "u" * 100}
        ) as helper:
            await helper.get_final_message()
            dropped = helper.response.headers["x-gateway-dropped"]

    assert dropped == "cache_control"
    sent = msgspec.json.decode(upstream.requests[0].body)
    url = f"data:image/png;base64,{PNG}"
    picture = {"type": "image_url", "image_url": {"url": url}}
    called = [
        {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"city":"Paris"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "look_up", "arguments": "{}"}},
    ]
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": called},
        {"role": "tool", "tool_call_id": "call_1", "content": "A city."},
        {"role": "tool", "tool_call_id": "call_2", "content": "Error: No."},
        {"role": "user", "content": [picture, {"type": "text", "text": "And?"}]},
    ]
    assert sent["stop"] == ["END"]
    assert len(sent["user"]) == 64


async def test_reasoning_becomes_a_thinking_block(stage):
    data = [
        delta(role="assistant", content=""),
        delta(reasoning_content="Let me "),
        delta(reasoning_content="think."),
    ]
    data += [delta("Yes."), delta(finish="length"), USAGE, DONE]
    gateway, upstream = await stage.gateway(same(events(*data)))

    thinking = {"type": "enabled", "budget_tokens": 2048}
    async with client_of(gateway) as client, client.messages.stream(**ASK, thinking=thinking) as helper:
        message = await helper.get_final_message()

    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking == "Let me think."
    assert message.stop_reason == "max_tokens"
    assert msgspec.json.decode(upstream.requests[0].body)["reasoning_effort"] == "low"


class City(pydantic.BaseModel):
    name: str


async def test_an_answer_in_a_schema(stage):
    """Case 94 the other way round."""
    gateway, upstream = await stage.gateway(same(events(*chat_stream('{"name":', '"Paris"}'))))

    async with client_of(gateway) as client, client.messages.stream(**ASK, output_format=City) as helper:
        message = await helper.get_final_message()

    assert message.content[0].parsed_output == City(name="Paris")
    wanted = msgspec.json.decode(upstream.requests[0].body)["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["schema"]["required"] == ["name"]


async def test_what_anthropic_alone_can_do_is_refused(stage):
    gateway, upstream = await stage.gateway(same(events(*chat_stream("No."))))

    async with client_of(gateway) as client:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.create(**ASK, tools=[{"type": "web_search_20250305", "name": "web_search"}])

    assert "web_search_20250305" in caught.value.message
    assert upstream.requests == []


async def test_a_refusal_before_the_stream_is_an_error_of_the_dialect(stage):
    """Case 67: with a status, and with what the provider says."""
    said = error("This model's maximum context length is 10 tokens.", code="context_length_exceeded")
    gateway, _ = await stage.gateway(same(answer(said, status=400)))

    async with client_of(gateway) as client:
        with pytest.raises(anthropic.BadRequestError) as caught:
            async with client.messages.stream(**ASK) as helper:
                await helper.get_final_message()

    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert "maximum context length" in caught.value.body["error"]["message"]


async def test_an_error_as_the_first_event_has_a_status(stage):
    """Case 73."""
    first = b'{"error":{"message":"Slow down.","type":"requests","code":"rate_limit_exceeded"}}'
    gateway, _ = await stage.gateway(same(events(first)))

    async with client_of(gateway) as client:
        with pytest.raises(anthropic.RateLimitError) as caught:
            async with client.messages.stream(**ASK) as helper:
                await helper.get_final_message()

    assert "Slow down." in caught.value.message
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens) == (0, 0)


async def test_an_error_inside_the_stream_is_raised(stage, server):
    """Case 95."""
    broken = b'{"error":{"message":"Overloaded.","type":"server_error","code":503}}'
    heard = asyncio.Event()
    parts = [
        stream_head() + chunk(sse(delta(role="assistant", content=""), delta("One "))),
        Until(heard),
        chunk(sse(broken, DONE)) + LAST_CHUNK,
    ]
    gateway, _ = await stage.gateway(same(*parts), server=server)

    text = ""
    async with client_of(gateway) as client, client.messages.stream(**ASK) as helper:
        pieces = aiter(helper.text_stream)
        text += await anext(pieces)
        heard.set()
        with pytest.raises(anthropic.APIStatusError) as caught:
            await anext(pieces)

    assert text == "One "
    assert caught.value.body["error"]["type"] == "overloaded_error"
    assert caught.value.body["error"]["message"] == "Overloaded."
    [record] = await gateway.records(1)
    assert record.usage_source == "partial"


@pytest.mark.parametrize("end", [CLOSE, None], ids=["cut", "no terminator"])
async def test_a_stream_that_breaks_off_never_looks_finished(stage, server, end):
    """Cases 75 and 95."""
    start = stream_head() + chunk(sse(delta(role="assistant", content=""), delta("One "), delta("two")))
    script = play(RECEIVE, start, CLOSE) if end is CLOSE else play(RECEIVE, start + LAST_CHUNK, REPEAT)
    gateway, _ = await stage.gateway(script, server=server)

    async with client_of(gateway) as client:
        kinds = []
        with pytest.raises(anthropic.APIStatusError):
            async with client.messages.stream(**ASK) as helper:
                kinds = [event.type async for event in helper]

    assert "message_stop" not in kinds
    [record] = await gateway.records(1)
    assert record.usage_source == "partial"


async def test_events_leave_as_they_come(stage, server):
    second = asyncio.Event()
    parts = [
        stream_head(),
        chunk(sse(delta(role="assistant", content=""), delta("One "))),
        Until(second),
        chunk(sse(delta("two."), delta(finish="stop"), USAGE, DONE)) + LAST_CHUNK,
    ]
    gateway, _ = await stage.gateway(same(*parts), server=server)

    async with client_of(gateway) as client, client.messages.stream(**ASK) as helper:
        async for piece in helper.text_stream:
            second.set()
            assert piece in ("One ", "two.")
        message = await helper.get_final_message()

    assert message.content[0].text == "One two."


async def test_a_plain_body_where_a_stream_was_asked_for(stage):
    """Case 59."""
    body = (
        delta("Hello.", finish="stop")
        .replace(b'"delta"', b'"message"')
        .replace(b"null", b'{"prompt_tokens":3,"completion_tokens":2}')
    )
    gateway, _ = await stage.gateway(same(answer(body)))

    async with client_of(gateway) as client, client.messages.stream(**ASK) as helper:
        message = await helper.get_final_message()

    assert message.content[0].text == "Hello."
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 2)


async def test_tokens_are_counted_by_estimate_and_nobody_is_asked(stage, server):
    """Case 96."""
    gateway, upstream = await stage.gateway(same(answer(b"{}")), server=server)

    async with client_of(gateway) as client:
        short = await client.messages.count_tokens(model="gpt-x", messages=[{"role": "user", "content": "Hi"}])
        long = await client.messages.count_tokens(model="gpt-x", messages=[{"role": "user", "content": "Hi " * 1000}])
    async with client_of(gateway, api_key="gw_no_key") as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.count_tokens(model="gpt-x", messages=[])

    assert 0 < short.input_tokens < 100
    assert 700 < long.input_tokens < 2000
    assert upstream.connections == 0
    records = await gateway.records(3)
    assert [record.status for record in records] == [200, 200, 401]
    assert all((record.input_tokens, record.output_tokens, record.cost_nanos) == (0, 0, 0) for record in records)


async def test_models_are_listed_in_the_shape_of_who_asks(stage):
    """Case 96."""
    gateway, _ = await stage.gateway(same(answer(b"{}")), models={"gpt-x": Model(free=True, context_tokens=1000)})

    async with client_of(gateway) as client:
        page = await client.models.list()
        one = await client.models.retrieve("gpt-x")
    cards = await gateway.openai().models.list()

    assert [model.id for model in page.data] == [card.id for card in cards.data]
    assert page.has_more is False
    assert (one.id, one.type, one.max_input_tokens) == ("gpt-x", "model", 1000)


async def test_an_unknown_model_is_an_error_in_the_shape_of_who_asks(stage):
    """Case 96."""
    upstream = await stage.upstream(same(answer(CHAT)))
    provider = stage.provider(upstream, models=("gpt-x",))
    gateway, _ = await stage.gateway(same(answer(CHAT)), providers={"local": provider})

    async with client_of(gateway) as client:
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await client.models.retrieve("nobody/knows")
    async with client_of(gateway, api_key="gw_live_nobody") as stranger:
        with pytest.raises(anthropic.AuthenticationError) as unauthenticated:
            await stranger.models.list()

    for caught, kind in ((unknown.value, "not_found_error"), (unauthenticated.value, "authentication_error")):
        assert (caught.body["type"], caught.body["error"]["type"]) == ("error", kind)
        assert caught.request_id == caught.body["request_id"] == caught.response.headers["x-request-id"]
    assert "nobody/knows" in unknown.value.body["error"]["message"]


async def test_a_request_id_is_found_where_the_client_looks_for_it(stage, server):
    """Of answers, streams and refusals alike."""
    gateway, _ = await stage.gateway(
        play(RECEIVE, answer(CHAT), RECEIVE, events(*chat_stream("Hi")), RECEIVE, answer(error("No."), status=400)),
        server=server,
    )

    async with client_of(gateway) as client:
        whole = await client.messages.create(**ASK)
        async with client.messages.stream(**ASK) as streamed:
            await streamed.get_final_message()
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.create(**ASK)

    found = [whole._request_id, streamed.request_id, refused.value.request_id]
    records = await gateway.records(3)
    assert found == [record.id for record in records]


async def test_a_silent_stream_is_kept_alive_by_pings(stage, server):
    """Anthropic's own way, between two events; its client passes over them."""
    silent = play(
        RECEIVE,
        stream_head(),
        chunk(sse(delta(role="assistant", content=""), delta("Hel"))),
        Pause(0.6),
        chunk(sse(delta("lo"), delta(finish="stop"), USAGE, DONE)),
        b"0\r\n\r\n",
        REPEAT,
    )
    gateway, _ = await stage.gateway(silent, settings=Settings(routing=Routing(comment_s=0.1)), server=server)

    answered = await gateway.ask(msgspec.json.encode(ASK | {"stream": True}), path=b"/v1/messages")
    async with client_of(gateway) as client:
        seen = [event async for event in await client.messages.create(**ASK, stream=True)]

    assert answered.whole
    names = [block.partition(b"\n")[0] for block in answered.body.split(b"\n\n") if block]
    assert names.count(b"event: ping") >= 1
    assert names[0] == b"event: message_start"
    assert names[-1] == b"event: message_stop"
    assert b'event: ping\ndata: {"type":"ping"}\n\n' in answered.body
    texts = [event.delta.text for event in seen if event.type == "content_block_delta"]
    assert "".join(texts) == "Hello"
    assert (seen[0].type, seen[-1].type) == ("message_start", "message_stop")
