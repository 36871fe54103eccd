"""Anthropic behind the gateway: its own clients relayed, OpenAI's and LangChain's translated."""

import asyncio
import base64

import anthropic
import msgspec
import openai
import pydantic
import pytest
from anthropic import AsyncAnthropic
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import DefaultAsyncHttpxClient

from gateway.bridges.reasoning import hidden, seal_details
from gateway.infra.postgres import Database
from gateway.kernel.journal import credit, find_account
from gateway.settings import Model
from tests.acceptance.answers import LAST_CHUNK, MESSAGES, chat_stream, stream, stream_head
from tests.gateways import PATIENCE_S
from tests.upstreams import CLOSE, RECEIVE, REPEAT, Until, answer, chunk, events, play

MODEL = "claude-opus-4-5"
OLD_MODEL = "claude-3-5-sonnet-20241022"
FREE = Model(free=True)
ASK = {"max_tokens": 64, "model": MODEL, "messages": MESSAGES}
USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 300,
    "cache_read_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
    "output_tokens": 1,
}


def same(*parts: bytes):
    return play(RECEIVE, *parts, REPEAT)


def event(kind: str, **members: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **members}))


def start(**usage: object) -> bytes:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 25, "output_tokens": 1, **usage},
    }
    return event("message_start", message=message)


def block(index: int, opened: dict[str, object], *deltas: dict[str, object]) -> bytes:
    return (
        event("content_block_start", index=index, content_block=opened)
        + b"".join(event("content_block_delta", index=index, delta=delta) for delta in deltas)
        + event("content_block_stop", index=index)
    )


def text(index: int, *words: str) -> bytes:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": word} for word in words))


def call(index: int, call_id: str, name: str, *pieces: str) -> bytes:
    deltas = ({"type": "input_json_delta", "partial_json": piece} for piece in pieces)
    return block(index, {"type": "tool_use", "id": call_id, "name": name, "input": {}}, *deltas)


def finish(reason: str = "end_turn", **usage: object) -> bytes:
    report = {"output_tokens": 89, **usage}
    delta = {"stop_reason": reason, "stop_sequence": None}
    return event("message_delta", delta=delta, usage=report) + event("message_stop")


WHOLE = msgspec.json.encode(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {**USAGE, "output_tokens": 9},
        "x_unknown": {"kept": 1},
    }
)
SPOKEN = (
    start(**USAGE)
    + block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm."},
        {"type": "signature_delta", "signature": "c2ln"},
    )
    + event("ping")
    + block(
        1,
        {"type": "text", "text": "", "citations": []},
        {"type": "text_delta", "text": "Grüße"},
        {
            "type": "citations_delta",
            "citation": {
                "type": "web_search_result_location",
                "cited_text": "x",
                "url": "https://a.example",
                "title": "A",
                "encrypted_index": "ZQ==",
            },
        },
    )
    + call(2, "toolu_1", "get_weather", "", '{"city":"caf\\u00', 'e9"}')
    + finish("tool_use")
)


@pytest.fixture
async def house(stage):
    """A gateway in front of an Anthropic that plays scripts, and its clients."""

    async def build(*scripts, model: Model = FREE, **options):
        upstream = await stage.upstream(*scripts)
        provider = stage.provider(upstream, adapter="anthropic", base_url=upstream.url, models=("*",))
        models = {MODEL: model, OLD_MODEL: model}
        gateway, _ = await stage.gateway(play(RECEIVE), providers={"anthropic": provider}, models=models, **options)
        if model is not FREE:
            async with Database(stage.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
                account = await find_account(database, gateway.key_id)
                key = f"for {gateway.key_id}"
                await credit(database, account, type="bonus", amount_nanos=10**12, idempotency_key=key)
        return gateway, upstream

    return build


def client(gateway, **options) -> AsyncAnthropic:
    return AsyncAnthropic(**({"api_key": gateway.key, "base_url": gateway.url, "max_retries": 0} | options))


# -- Anthropic's own client ----------------------------------------------------------------------------------


async def test_a_message_is_the_providers_byte_for_byte(house, server):
    """Case 91, as the client of today sends it."""
    gateway, upstream = await house(same(answer(WHOLE, headers=[(b"request-id", b"req_own")])), server=server)

    async with client(gateway) as own:
        raw = await own.messages.with_raw_response.create(**ASK)
        message = await raw.parse()

    assert await raw.read() == WHOLE
    assert raw.headers.get_list("request-id") == ["req_own"]
    assert raw.headers["x-request-id"] == raw.headers["x-gateway-request-id"]
    assert message.content[0].text == "Hello."
    [request] = upstream.requests
    assert request.target == b"/v1/messages"
    assert request.header(b"x-api-key") == b"sk-provider-0123456789abcdef"
    assert request.header(b"authorization") is None
    assert request.header(b"anthropic-version")
    assert msgspec.json.decode(request.body)["model"] == MODEL
    assert gateway.key.encode() not in request.head


async def test_what_another_maker_thought_is_not_told_as_its_own(house, server):
    """A conversation that began at another provider: what the gateway sealed then would be refused as a forgery."""
    gateway, upstream = await house(same(answer(WHOLE)), server=server)
    sealed = seal_details([hidden("c2ln", 0, form="google-gemini-v1", call_id="fc1")])
    own = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
    said = [{"type": "redacted_thinking", "data": sealed}, own, {"type": "text", "text": "Yes."}]
    turns = [*MESSAGES, {"role": "assistant", "content": said}, {"role": "user", "content": "And?"}]

    async with client(gateway) as anthropics:
        await anthropics.messages.create(**{**ASK, "messages": turns})

    [request] = upstream.requests
    assert msgspec.json.decode(request.body)["messages"][-2]["content"] == said[1:]


async def test_an_old_client_is_served_too(house):
    """Case 91, with its key where it used to be, and the version of then."""
    gateway, upstream = await house(same(stream(SPOKEN)))
    body = msgspec.json.encode({**ASK, "stream": True})
    headers = [
        (b"x-api-key", gateway.key.encode()),
        (b"anthropic-version", b"2023-06-01"),
        (b"anthropic-beta", b"a,b"),
    ]

    got = await gateway.ask(body, path=b"/v1/v1/messages", headers=headers, key="")

    assert got.status == 200
    assert got.body == SPOKEN
    assert upstream.requests[0].body == body
    assert upstream.requests[0].header(b"anthropic-version") == b"2023-06-01"
    assert upstream.requests[0].header(b"anthropic-beta") == b"a,b"


async def test_a_stream_of_everything_is_relayed_and_charged(house, server):
    """Case 92: each kind of cached token has a price of its own."""
    price = Model(
        input_usd_per_mtok=3,
        output_usd_per_mtok=15,
        input_cached_usd_per_mtok=0.3,
        input_cache_write_usd_per_mtok=3.75,
        input_cache_write_1h_usd_per_mtok=6,
    )
    gateway, _ = await house(same(stream(SPOKEN)), model=price, server=server)

    async with client(gateway) as own, own.messages.stream(**ASK) as events:
        message = await events.get_final_message()

    assert [each.type for each in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[0].signature == "c2ln"
    assert message.content[1].citations[0].url == "https://a.example"
    assert message.content[2].input == {"city": "café"}
    assert message.usage.output_tokens == 89
    assert message.usage.cache_read_input_tokens == 2000
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (2310, 89, "reported")
    # 10 at 3, 100 at 3.75, 200 at 6, 2000 at 0.3 and 89 at 15, in dollars for a million.
    assert record.cost_nanos == 10 * 3000 + 100 * 3750 + 200 * 6000 + 2000 * 300 + 89 * 15000


async def test_an_error_under_way_is_anthropics_own(house):
    """Case 95."""
    failed = start() + text(0, "One ") + event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    gateway, _ = await house(same(stream(failed)))

    async with client(gateway) as own:
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            async with own.messages.stream(**ASK) as events:
                await events.get_final_message()


async def test_a_stream_that_breaks_off_ends_in_an_error(house):
    """Case 95: the client would take its silent end for the end of the answer."""
    gateway, _ = await house(play(RECEIVE, stream_head(), chunk(start() + text(0, "One ")), LAST_CHUNK, CLOSE))

    async with client(gateway) as own:
        with pytest.raises(anthropic.APIStatusError):
            async with own.messages.stream(**ASK) as events:
                await events.get_final_message()

    [record] = await gateway.records(1)
    assert (record.input_tokens, record.usage_source) == (25, "partial")


async def test_overload_is_told_as_it_is(house):
    """Case 70, for Anthropic's client."""
    body = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}'
    gateway, _ = await house(same(answer(body, status=529)))

    async with client(gateway) as own:
        with pytest.raises(anthropic.InternalServerError) as caught:
            await own.messages.create(**ASK)

    assert caught.value.status_code == 529
    assert caught.value.body == msgspec.json.decode(body)


async def test_tokens_are_counted_for_nothing(house):
    """Case 96."""
    price = Model(input_usd_per_mtok=3, output_usd_per_mtok=15)
    gateway, upstream = await house(same(answer(b'{"input_tokens":14}')), model=price)

    async with client(gateway) as own:
        counted = await own.messages.count_tokens(model=MODEL, messages=MESSAGES)

    assert counted.input_tokens == 14
    assert upstream.requests[0].target == b"/v1/messages/count_tokens"
    [record] = await gateway.records(1)
    assert (record.cost_nanos, record.input_tokens) == (0, 0)


# -- OpenAI's client -----------------------------------------------------------------------------------------

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(24)).decode()


async def test_a_loop_of_tools(house, server):
    """Cases 94, 22 and 27: pictures, stop sequences, two calls, their results, and usage with what was cached."""
    asked = (
        text(0, "Let me see.")
        + call(1, "toolu_1", "get_weather", '{"city":', '"Paris"}')
        + call(2, "toolu_2", "get_weather")
    )
    gateway, upstream = await house(
        play(RECEIVE, stream(start(**USAGE) + asked + finish("tool_use")), RECEIVE, stream(start() + text(0, "Sunny.") + finish())),
        server=server,
    )  # fmt: skip
    chat = gateway.openai().chat.completions
    history: list[dict[str, object]] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Weather?"},
                {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PNG}"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}},
            ],
        },
    ]
    options = {"model": MODEL, "tools": TOOLS, "stop": ["END"], "stream_options": {"include_usage": True}}

    async with chat.stream(messages=history, **options) as events:
        first = await events.get_final_completion()
    message = first.choices[0].message
    history.append(message.model_dump(exclude_none=True))
    history += [{"role": "tool", "tool_call_id": each.id, "content": "21"} for each in message.tool_calls]
    async with chat.stream(messages=history, **options) as events:
        second = await events.get_final_completion()

    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content == "Let me see."
    assert [(each.id, each.function.arguments) for each in message.tool_calls] == [
        ("toolu_1", '{"city":"Paris"}'),
        ("toolu_2", "{}"),
    ]
    assert first.usage.prompt_tokens == 2310
    assert first.usage.prompt_tokens_details.cached_tokens == 2000
    assert second.choices[0].message.content == "Sunny."
    sent = [msgspec.json.decode(request.body) for request in upstream.requests]
    assert sent[0]["stop_sequences"] == ["END"]
    assert [each["type"] for each in sent[0]["messages"][0]["content"]] == ["text", "image", "image"]
    assert [each["role"] for each in sent[1]["messages"]] == ["user", "assistant", "user"]
    assert [each["type"] for each in sent[1]["messages"][1]["content"]] == ["text", "tool_use", "tool_use"]
    assert [each["tool_use_id"] for each in sent[1]["messages"][2]["content"]] == ["toolu_1", "toolu_2"]
    assert upstream.requests[0].header(b"content-type") == b"application/json"
    assert upstream.requests[0].header(b"openai-organization") is None


async def test_a_plain_answer_and_its_price(house, server):
    """Case 94: what is charged is the same in either dialect."""
    price = Model(input_usd_per_mtok=3, output_usd_per_mtok=15, input_cached_usd_per_mtok=0.3)
    gateway, _ = await house(same(answer(WHOLE)), model=price, server=server)

    raw = await gateway.openai().chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, seed=1)
    completion = raw.parse()

    assert completion.choices[0].message.content == "Hello."
    assert completion.object == "chat.completion"
    assert completion.usage.prompt_tokens == 2310
    assert raw.headers["x-gateway-dropped"] == "seed"
    assert raw.headers["content-type"] == "application/json"
    cost = 310 * 3000 + 2000 * 300 + 9 * 15000
    assert raw.headers["x-gateway-cost-usd"] == f"{cost / 1e9:.9f}".rstrip("0")
    [record] = await gateway.records(1)
    assert record.cost_nanos == cost


@pytest.mark.parametrize("asked", [False, True])
async def test_a_stream_without_a_chunk_too_many(house, asked):
    """Case 94: usage comes where it was asked for, and is counted in any case."""
    gateway, _ = await house(same(stream(SPOKEN)))
    options = {"stream_options": {"include_usage": True}} if asked else {}

    chunks = await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **options)
    seen = [each async for each in chunks]

    assert [bool(each.choices) for each in seen] == [True] * (len(seen) - asked) + [False] * asked
    assert len({each.id for each in seen}) == 1
    assert seen[0].choices[0].delta.role == "assistant"
    assert (seen[-1].usage is not None) is asked
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (2310, 89, "reported")


class Place(pydantic.BaseModel):
    city: str


@pytest.mark.parametrize("model", [MODEL, OLD_MODEL], ids=["native", "by_tool"])
async def test_a_parsed_answer(house, model):
    """Case 94: the schema is kept by the provider, or by a tool that has to be called."""
    native = {"type": "text", "text": '{"city":"Paris"}'}
    by_tool = {"type": "tool_use", "id": "t", "name": "json_output", "input": {"city": "Paris"}}
    message = {**msgspec.json.decode(WHOLE), "content": [native if model == MODEL else by_tool]}
    gateway, upstream = await house(same(answer(msgspec.json.encode(message))))

    completion = await gateway.openai().chat.completions.parse(model=model, messages=MESSAGES, response_format=Place)

    assert completion.choices[0].message.parsed == Place(city="Paris")
    assert completion.choices[0].finish_reason == "stop"
    sent = msgspec.json.decode(upstream.requests[0].body)
    schema = sent["output_config"]["format"]["schema"] if model == MODEL else sent["tools"][0]["input_schema"]
    assert schema["additionalProperties"] is False


async def test_schemas_of_tools_arrive_whole(house):
    """Case 29."""
    schema = {
        "type": "object",
        "$defs": {"größe": {"enum": ["s", "m"]}},
        "properties": {"a": {"$ref": "#/$defs/größe"}, "b": {"anyOf": [{"type": "null"}, {"type": "number"}]}},
        "additionalProperties": False,
    }
    gateway, upstream = await house(same(answer(WHOLE)))

    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, tools=tools)

    assert msgspec.json.decode(upstream.requests[0].body)["tools"][0]["input_schema"] == schema


async def test_thoughts_come_back_with_their_signature(house):
    """Case 32: what the client got from a stream it may send back as it is."""
    gateway, upstream = await house(same(stream(SPOKEN)))
    chat = gateway.openai().chat.completions

    async with chat.stream(model=MODEL, messages=MESSAGES, reasoning_effort="high") as events:
        first = await events.get_final_completion()
    message = first.choices[0].message
    history = [*MESSAGES, message.model_dump(exclude_none=True, exclude={"parsed"})]
    history.append({"role": "tool", "tool_call_id": "toolu_1", "content": "21"})
    await chat.create(model=MODEL, messages=history, stream=True, reasoning_effort="high")

    assert message.model_extra["reasoning_content"] == "Hm."
    sent = msgspec.json.decode(upstream.requests[1].body)
    assert sent["thinking"]["type"] == "enabled"
    assert sent["messages"][1]["content"][0] == {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}


async def test_a_refusal_is_told_by_its_finish_reason(house):
    """Case 31."""
    gateway, _ = await house(same(stream(start() + finish("refusal"))))

    chunks = await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)

    assert [each.choices[0].finish_reason async for each in chunks][-1] == "content_filter"


async def test_several_choices_are_refused(house):
    """Case 23."""
    gateway, upstream = await house(same(answer(WHOLE)))

    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, n=2)

    assert caught.value.param == "n"
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("status", "message", "raised", "code"),
    [
        (400, "prompt is too long: 9 > 8", openai.BadRequestError, "context_length_exceeded"),
        (404, "model: claude-x", openai.NotFoundError, "model_not_found"),
        (429, "Slow down", openai.RateLimitError, "rate_limit_exceeded"),
        (529, "Overloaded", openai.InternalServerError, "server_is_overloaded"),
    ],
)
async def test_errors_are_openais(house, status, message, raised, code):
    """Cases 67 and 70."""
    body = msgspec.json.encode({"type": "error", "error": {"type": "some_error", "message": message}})
    gateway, _ = await house(same(answer(body, status=status)))

    with pytest.raises(raised, match=message) as caught:
        await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES)

    assert caught.value.code == code
    assert caught.value.status_code == (503 if status == 529 else status)


async def test_the_operators_key_is_not_the_callers_trouble(house):
    body = b'{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}'
    gateway, _ = await house(same(answer(body, status=401)))

    with pytest.raises(openai.InternalServerError) as caught:
        await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES)

    assert caught.value.status_code == 502
    assert "x-api-key" not in caught.value.message


async def test_an_error_that_comes_first_in_a_stream_has_a_status(house):
    """Case 73."""
    failed = start() + event("ping") + event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    gateway, _ = await house(same(stream(failed)))

    with pytest.raises(openai.InternalServerError, match="Overloaded") as caught:
        await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)

    assert caught.value.status_code == 503
    [record] = await gateway.records(1)
    assert record.cost_nanos == 0
    assert record.usage_source == "none"


async def test_an_error_that_comes_first_leads_to_another_provider(stage):
    """Case 73, where there is another: of any kind, and nothing of the first is seen or charged."""
    failed = start() + event("ping") + event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    first = await stage.upstream(same(stream(failed)))
    second = await stage.upstream(same(events(*chat_stream("Yes."))))
    providers = {
        "anthropic": stage.provider(first, adapter="anthropic", base_url=first.url, models=("*",), priority=0),
        "other": stage.provider(second, models=("*",), priority=1),
    }
    gateway, _ = await stage.gateway(play(RECEIVE), providers=providers, models={MODEL: FREE})

    raw = await gateway.openai().chat.completions.with_raw_response.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    seen = [each async for each in raw.parse()]

    assert raw.headers["x-gateway-provider"] == "other"
    assert "".join(each.choices[0].delta.content or "" for each in seen if each.choices) == "Yes."
    [record] = await gateway.records(1)
    assert (record.attempts, record.input_tokens, record.output_tokens) == (2, 20, 9)


@pytest.mark.parametrize(
    "ending", [event("error", error={"type": "api_error", "message": "Internal"}), b""], ids=["error", "cut"]
)
async def test_an_answer_that_fails_under_way_raises(house, ending):
    """Case 73, later: what came before is delivered and charged."""
    heard = asyncio.Event()
    begun = chunk(start() + text(0, "One ", "two "))
    rest = chunk(ending) if ending else b""
    gateway, _ = await house(play(RECEIVE, stream_head(), begun, Until(heard), rest + LAST_CHUNK, CLOSE))

    chunks = await gateway.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    seen: list[str] = []

    async def read() -> None:
        async for each in chunks:
            heard.set()
            seen.append(each.choices[0].delta.content or "")

    with pytest.raises(openai.APIError):
        await read()

    assert "".join(seen) == "One two "
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.usage_source) == (25, "partial")
    assert record.output_tokens >= 2


async def test_a_stream_cut_into_single_bytes(house, server):
    """Cases 39 and 40, translated."""
    gateway, _ = await house(play(RECEIVE, stream(SPOKEN), REPEAT, each=1), server=server)

    async with gateway.openai().chat.completions.stream(model=MODEL, messages=MESSAGES) as events:
        completion = await events.get_final_completion()

    message = completion.choices[0].message
    assert message.content == "Grüße"
    assert message.tool_calls[0].function.arguments == '{"city":"caf\\u00e9"}'


# -- LangChain -----------------------------------------------------------------------------------------------


async def test_langchain_calls_tools(house):
    gateway, upstream = await house(same(stream(SPOKEN)))
    async with DefaultAsyncHttpxClient() as http:
        model = ChatOpenAI(
            model=MODEL,
            base_url=f"{gateway.url}/v1",
            api_key=gateway.key,
            max_retries=0,
            stream_usage=True,
            http_async_client=http,
        ).bind_tools(TOOLS)

        parts = [part async for part in model.astream([HumanMessage("Weather?")])]
        whole = parts[0]
        for part in parts[1:]:
            whole += part
        told = AIMessage(content=whole.content, tool_calls=whole.tool_calls)
        async for _ in model.astream([HumanMessage("Weather?"), told, ToolMessage("21", tool_call_id="toolu_1")]):
            pass

    assert whole.tool_calls[0]["args"] == {"city": "café"}
    assert whole.usage_metadata["input_tokens"] == 2310
    sent = msgspec.json.decode(upstream.requests[1].body)
    assert sent["messages"][2]["content"][0]["tool_use_id"] == "toolu_1"
