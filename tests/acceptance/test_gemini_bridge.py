"""Google's official client in front of a provider that speaks chat completions only."""

import msgspec
import pytest
from google import genai
from google.genai import errors, types

from tests.acceptance.answers import DONE, LAST_CHUNK, USAGE, chat_stream, delta, error, sse, stream, stream_head
from tests.gateways import RunningGateway
from tests.upstreams import CLOSE, RECEIVE, REPEAT, answer, chunk, events, play


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
