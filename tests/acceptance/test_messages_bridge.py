"""Anthropic's official client in front of a provider that speaks chat completions only."""

import asyncio

import anthropic
import msgspec
import pydantic
import pytest

from tests.acceptance.answers import (
    DONE,
    LAST_CHUNK,
    USAGE,
    chat_stream,
    delta,
    error,
    sse,
    stream,
    stream_head,
)
from tests.gateways import RunningGateway
from tests.upstreams import CLOSE, RECEIVE, REPEAT, Until, answer, chunk, events, play

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
