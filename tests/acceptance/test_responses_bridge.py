"""The official OpenAI client calls `responses` at a provider that serves chat completions only."""

import asyncio
from typing import Any

import langchain_openai
import msgspec
import openai
import pydantic
import pytest

from gateway.secret import Secret
from gateway.settings import Provider
from tests.acceptance.answers import DONE, LAST_CHUNK, USAGE, chat_stream, delta, sse, stream_head
from tests.gateways import RunningGateway
from tests.upstreams import CLOSE, RECEIVE, REPEAT, ScriptedUpstream, Until, answer, chunk, events, play

LOOK_UP = {
    "type": "function",
    "name": "look_up",
    "description": "Looks a city up.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
#: A provider with nothing but chat completions, which wants to be given back what its models thought.
_EXTRA = {"dialects": ["openai.chat"], "extensions": ["reasoning_details"]}


def same(*parts: bytes):
    return play(RECEIVE, *parts, REPEAT)


@pytest.fixture
def bridged(stage):
    """Puts up a gateway in front of a provider that plays `scripts` and has nothing but chat completions."""

    async def put_up(*scripts: Any, **options: Any) -> tuple[RunningGateway, ScriptedUpstream]:
        upstream = await stage.upstream(*scripts)
        provider = stage.provider(upstream, models=("*",), extra=_EXTRA)
        # The provider that this one comes with is not asked.
        gateway, _ = await stage.gateway(*scripts, providers={"local": provider}, **options)
        return gateway, upstream

    return put_up


def completion(finish: str = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1790000000, "model": "gpt-x-2026"}
    return msgspec.json.encode({**head, "choices": [choice], "usage": usage})


def call_delta(index: int, arguments: str = "", **members: Any) -> bytes:
    function = {name: members.pop(name) for name in ("name",) if name in members} | {"arguments": arguments}
    return delta(tool_calls=[{"index": index, "function": function, **members}])


async def test_a_response(bridged, server):
    """Case 8, bridged: not streamed."""
    gateway, upstream = await bridged(same(answer(completion(content="Hello."))), server=server)

    raw = await gateway.openai().responses.with_raw_response.create(
        model="gpt-x", input="Hi", instructions="Be brief.", store=True, temperature=0.5
    )

    response = raw.parse()
    assert response.output_text == "Hello."
    assert response.status == "completed"
    assert response.model == "gpt-x-2026"
    assert response.temperature == 0.5
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (20, 9)
    assert raw.headers["x-gateway-dropped"] == "store"
    assert raw.headers["content-type"] == "application/json"
    [request] = upstream.requests
    assert request.target == b"/v1/chat/completions"
    assert msgspec.json.decode(request.body) == {
        "model": "gpt-x",
        "temperature": 0.5,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (20, 9, "reported")
    assert response.id == "resp_" + record.id.replace("-", "")


async def test_a_stream_of_a_response(bridged, server):
    """Case 8, bridged and streamed: names and numbers of the events, no `[DONE]`, usage in the last one."""
    gateway, upstream = await bridged(same(events(*chat_stream("One ", "two."))), server=server)

    seen = [event async for event in await gateway.openai().responses.create(model="gpt-x", input="Hi", stream=True)]
    raw = await gateway.ask(b'{"model":"gpt-x","input":"Hi","stream":true}', path=b"/v1/responses")

    assert [event.sequence_number for event in seen] == list(range(10))
    assert [event.type for event in seen][:2] == ["response.created", "response.in_progress"]
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "One two."
    last = seen[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "One two."
    assert last.response.usage is not None
    assert last.response.usage.total_tokens == 29
    assert raw.header(b"content-type") == b"text/event-stream; charset=utf-8"
    assert b"[DONE]" not in raw.body
    assert raw.body.startswith(b"event: response.created\ndata: {")
    assert raw.whole
    assert msgspec.json.decode(upstream.requests[0].body)["stream_options"] == {"include_usage": True}
    records = await gateway.records(2)
    assert [(record.input_tokens, record.output_tokens) for record in records] == [(20, 9)] * 2


async def test_the_blocking_client(bridged):
    """Case 8, with the other client."""
    gateway, _ = await bridged(same(answer(completion(content="Hello."))))
    client = gateway.blocking_openai()

    response = await asyncio.to_thread(client.responses.create, model="gpt-x", input="Hi")

    assert response.output_text == "Hello."


async def test_the_stream_helper_puts_the_answer_together(bridged, server):
    """Every index and id has to fit, or it raises. Arguments of two calls come in turns."""
    data = [
        delta(role="assistant", content=""),
        delta(reasoning_content="Hm."),
        delta("One "),
        delta("two."),
        call_delta(0, id="call_1", name="look_up"),
        call_delta(0, '{"city":'),
        call_delta(1, id="call_2", name="look_up"),
        call_delta(1, '{"city":"Rome"}'),
        call_delta(0, '"Oslo"}'),
        delta(finish="tool_calls"),
        USAGE,
        DONE,
    ]
    gateway, _ = await bridged(same(events(*data)), server=server)

    async with gateway.openai().responses.stream(model="gpt-x", input="Hi", tools=[LOOK_UP]) as helper:
        snapshots = [event.snapshot async for event in helper if event.type == "response.output_text.delta"]
        final = await helper.get_final_response()

    assert snapshots == ["One ", "One two."]
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    calls = [item for item in final.output if item.type == "function_call"]
    assert [(call.call_id, call.arguments) for call in calls] == [
        ("call_1", '{"city":"Oslo"}'),
        ("call_2", '{"city":"Rome"}'),
    ]


class City(pydantic.BaseModel):
    name: str
    people: int


async def test_an_answer_in_the_form_of_a_model(bridged):
    gateway, upstream = await bridged(same(answer(completion(content='{"name":"Oslo","people":700000}'))))

    response = await gateway.openai().responses.parse(model="gpt-x", input="Oslo?", text_format=City)

    assert response.output_parsed == City(name="Oslo", people=700000)
    sent = msgspec.json.decode(upstream.requests[0].body)["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["name"] == "City"
    assert sent["json_schema"]["strict"] is True


async def test_a_loop_with_tools_of_two_turns(bridged):
    """What comes out of the first turn goes into the second as it is, reasoning and all."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"city":"Oslo"}'}}
    details = [{"type": "reasoning.text", "text": "Hm.", "signature": "c2ln"}]
    first = completion("tool_calls", reasoning="Hm.", reasoning_details=details, content="I look.", tool_calls=[call])
    gateway, upstream = await bridged(play(RECEIVE, answer(first), RECEIVE, answer(completion(content="Cold."))))
    client = gateway.openai()
    turns: list[Any] = [{"role": "user", "content": "Oslo?"}]
    options: Any = {"model": "gpt-x", "tools": [LOOK_UP], "include": ["reasoning.encrypted_content"], "store": False}

    response = await client.responses.create(input=turns, **options)
    turns += response.output
    turns += [
        {"type": "function_call_output", "call_id": item.call_id, "output": "-3"}
        for item in response.output
        if item.type == "function_call"
    ]
    response = await client.responses.create(input=turns, **options)

    assert response.output_text == "Cold."
    _, assistant, tool = msgspec.json.decode(upstream.requests[1].body)["messages"]
    assert assistant == {
        "role": "assistant",
        "reasoning": "Hm.",
        "reasoning_details": details,
        "content": "I look.",
        "tool_calls": [call],
    }
    assert tool == {"role": "tool", "tool_call_id": "call_1", "content": "-3"}


async def test_a_custom_tool(bridged):
    arguments = msgspec.json.encode({"input": "*** Begin\n+x"}).decode()
    data = [call_delta(0, id="call_1", name="patch"), call_delta(0, arguments), delta(finish="tool_calls"), DONE]
    gateway, _ = await bridged(same(events(*data)))
    tools: Any = [{"type": "custom", "name": "patch"}]

    stream = await gateway.openai().responses.create(model="gpt-x", input="Change it.", tools=tools, stream=True)
    last = [event async for event in stream][-1]

    assert last.type == "response.completed"
    [item] = last.response.output
    assert item.type == "custom_tool_call"
    assert (item.call_id, item.input) == ("call_1", "*** Begin\n+x")


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"background": True}, "background"),
    ],
)
async def test_what_cannot_be_carried_never_reaches_the_provider(bridged, members, param):
    gateway, upstream = await bridged(same(answer(completion(content="Hello."))))

    with pytest.raises(openai.BadRequestError) as raised:
        await gateway.openai().responses.create(model="gpt-x", input="Hi", **members)

    assert raised.value.param == param
    assert upstream.requests == []


async def test_a_stream_that_breaks_off_ends_in_the_error_event(bridged, server):
    """Case 75, bridged: with the number after the last event's; it never looks finished."""
    parts = [stream_head(), chunk(sse(delta("One ")))]
    gateway, _ = await bridged(play(RECEIVE, *parts, CLOSE), server=server)

    stream = await gateway.openai().responses.create(model="gpt-x", input="Hi", stream=True)
    seen = [event async for event in stream]

    assert [event.sequence_number for event in seen] == list(range(6))
    assert [event.type for event in seen[-2:]] == ["response.output_text.delta", "error"]
    assert seen[-1].code is not None
    [record] = await gateway.records(1)
    assert record.aborted_by == "provider"
    assert record.usage_source == "partial"
    assert record.output_tokens >= 1


async def test_a_stream_that_only_ends_was_not_finished(bridged):
    """Case 75, bridged: a clean end without a finish reason."""
    gateway, _ = await bridged(same(events(delta("One "))))

    stream = await gateway.openai().responses.create(model="gpt-x", input="Hi", stream=True)

    assert [event.type async for event in stream][-1] == "error"


async def test_an_error_before_the_first_event_has_its_status(bridged):
    """Case 73, bridged."""
    error = b'{"error":{"message":"Slow down.","type":"requests","code":"rate_limit_exceeded"}}'
    gateway, _ = await bridged(same(events(error, DONE)))

    with pytest.raises(openai.RateLimitError, match="Slow down"):
        await gateway.openai().responses.create(model="gpt-x", input="Hi", stream=True)


async def test_an_error_within_the_stream_is_the_last_event(bridged):
    """Case 74, bridged."""
    error = b'{"error":{"message":"The engine is on fire.","type":"server_error","code":null}}'
    begun = asyncio.Event()
    script = play(RECEIVE, stream_head(), chunk(sse(delta("One "))), Until(begun), chunk(sse(error)), LAST_CHUNK)
    gateway, _ = await bridged(script)

    seen = []
    async for event in await gateway.openai().responses.create(model="gpt-x", input="Hi", stream=True):
        seen.append(event)
        begun.set()

    assert seen[-1].type == "error"
    assert seen[-1].message == "The engine is on fire."
    assert [event.sequence_number for event in seen] == list(range(len(seen)))


async def test_a_providers_refusal_is_told_in_words(bridged):
    """Case 67, bridged."""
    body = b'{"error":{"message":"Too long.","type":"invalid_request_error","code":"context_length_exceeded"}}'
    gateway, _ = await bridged(same(answer(body, status=400)))

    with pytest.raises(openai.BadRequestError) as raised:
        await gateway.openai().responses.create(model="gpt-x", input="Hi")

    assert raised.value.code == "context_length_exceeded"
    assert "Too long." in raised.value.message


async def test_events_are_passed_on_one_by_one(bridged, server):
    """Nothing waits for the end of the answer."""
    more = asyncio.Event()
    rest = chunk(sse(delta("two."), delta(finish="stop"), USAGE, DONE)) + LAST_CHUNK
    gateway, _ = await bridged(
        play(RECEIVE, stream_head(), chunk(sse(delta("One "))), Until(more), rest), server=server
    )

    stream = await gateway.openai().responses.create(model="gpt-x", input="Hi", stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            assert event.delta == ("two." if more.is_set() else "One ")
            more.set()

    assert event.type == "response.completed"
    assert event.response.output_text == "One two."


async def test_a_plain_body_where_a_stream_was_asked_for(bridged):
    """Case 59, bridged: official clients would see an empty stream."""
    gateway, _ = await bridged(same(answer(completion(content="Hello."))))

    stream = await gateway.openai().responses.create(model="gpt-x", input="Hi", stream=True)
    seen = [event async for event in stream]

    assert seen[-1].type == "response.completed"
    assert seen[-1].response.output_text == "Hello."


@pytest.mark.parametrize("model", ["echo", "echo-tokens-200"])
async def test_the_echo_provider_says_the_same_either_way(stage, model):
    """Once in its own responses, once through a second gateway to which it has chat completions only."""
    behind, _ = await stage.gateway(same(b""), providers={"echo": Provider(adapter="echo", models=("*",))})
    there = Provider(
        adapter="openai",
        base_url=f"{behind.url}/v1",
        api_key=Secret(behind.key),
        models=("*",),
        extra={"dialects": ["openai.chat"]},
    )
    before, _ = await stage.gateway(same(b""), providers={"behind": there})

    async def say(gateway: RunningGateway) -> tuple[Any, list[str]]:
        async with gateway.openai().responses.stream(model=model, input="Hello there") as helper:
            kinds = [event.type async for event in helper]
            return await helper.get_final_response(), kinds

    native, native_kinds = await say(behind)
    bridged, bridged_kinds = await say(before)

    assert bridged.output_text == native.output_text
    assert bridged.usage.total_tokens == native.usage.total_tokens
    assert bridged_kinds == native_kinds


async def test_langchain(bridged):
    """Which leaves its own connections open."""
    gateway, _ = await bridged(same(events(*chat_stream("One ", "two."))))
    whole = None
    async with openai.DefaultAsyncHttpxClient() as http:
        chat = langchain_openai.ChatOpenAI(
            model="gpt-x",
            api_key=gateway.key,
            base_url=f"{gateway.url}/v1",
            use_responses_api=True,
            max_retries=0,
            http_async_client=http,
        )
        async for piece in chat.astream("Hi"):
            whole = piece if whole is None else whole + piece

    assert whole is not None
    assert whole.text == "One two."
    assert whole.usage_metadata["total_tokens"] == 29


async def test_input_tokens_are_estimated_where_nobody_counts_them(bridged):
    gateway, upstream = await bridged(same(answer(b"{}")))
    client = gateway.openai()

    short = await client.responses.input_tokens.count(model="gpt-x", input="Hi")
    long = await client.responses.input_tokens.count(model="gpt-x", input="Hi " * 1000)

    assert short.object == "response.input_tokens"
    assert 0 < short.input_tokens < 50
    assert 500 < long.input_tokens < 2000
    assert upstream.requests == []
    records = await gateway.records(2)
    assert [(record.input_tokens, record.output_tokens, record.cost_nanos) for record in records] == [(0, 0, 0)] * 2


async def test_input_tokens_are_counted_where_somebody_does(stage):
    counted = b'{"object":"response.input_tokens","input_tokens":11}'
    gateway, upstream = await stage.gateway(same(answer(counted)))

    count = await gateway.openai().responses.input_tokens.count(model="gpt-x", input="Hi")

    assert count.input_tokens == 11
    assert upstream.requests[0].target == b"/v1/responses/input_tokens"
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.cost_nanos) == (0, 0, 0)
