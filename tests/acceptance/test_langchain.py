"""LangChain, which is how many applications meet a gateway."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import DefaultAsyncHttpxClient

from tests.acceptance.answers import chat_stream, embeddings
from tests.upstreams import RECEIVE, REPEAT, answer, events, play


def same(*parts: bytes):
    return play(RECEIVE, *parts, REPEAT)


@pytest.fixture
async def http() -> AsyncIterator[DefaultAsyncHttpxClient]:
    """LangChain leaves its own connections open."""
    async with DefaultAsyncHttpxClient() as client:
        yield client


@pytest.mark.parametrize("asked", [False, True], ids=["unasked", "stream_usage"])
async def test_a_chat_stream(stage, server, http, asked):
    """Case 4."""
    gateway, upstream = await stage.gateway(same(events(*chat_stream("One ", "two."))), server=server)
    chat = ChatOpenAI(
        model="gpt-x",
        base_url=f"{gateway.url}/v1",
        api_key=gateway.key,
        max_retries=0,
        stream_usage=asked,
        http_async_client=http,
    )

    parts = [part async for part in chat.astream("Hi")]

    assert "".join(part.text for part in parts) == "One two."
    usage = [part.usage_metadata for part in parts if part.usage_metadata]
    if asked:
        assert [(found["input_tokens"], found["output_tokens"]) for found in usage] == [(20, 9)]
    else:
        assert usage == []
    assert msgspec.json.decode(upstream.requests[0].body)["stream_options"] == {"include_usage": True}
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens) == (20, 9)


async def test_embeddings_of_tokens(stage, http):
    """Case 10: arrays of token numbers, and vectors in base64."""
    vectors = [[0.25, -1.5, 3.0]]
    gateway, upstream = await stage.gateway(same(answer(embeddings(*vectors, packed=True))))
    model = OpenAIEmbeddings(
        model="text-embedding-x",
        base_url=f"{gateway.url}/v1",
        api_key=gateway.key,
        max_retries=0,
        check_embedding_ctx_length=False,
        http_async_client=http,
    )

    found = await model.aembed_documents(["hello"])
    raw = await gateway.ask(
        b'{"model":"text-embedding-x","input":[[9906,0]],"encoding_format":"base64"}', path=b"/v1/embeddings"
    )

    assert found == vectors
    assert upstream.requests[1].body == b'{"model":"text-embedding-x","input":[[9906,0]],"encoding_format":"base64"}'
    assert raw.body == embeddings(*vectors, packed=True)
