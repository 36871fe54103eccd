"""OpenAI's old completions in front of a provider that has chat completions only."""

import asyncio

import msgspec
import openai
import pytest

from tests.acceptance.answers import CHAT, LAST_CHUNK, chat_stream, delta, sse, stream_head
from tests.upstreams import CLOSE, RECEIVE, REPEAT, Until, answer, chunk, events, play

CHAT_ONLY = ("openai.chat", "openai.other")


async def gateway_of(stage, *parts: bytes, cut: bool = False, **options):
    upstream = await stage.upstream(play(RECEIVE, *parts, CLOSE if cut else REPEAT))
    provider = stage.provider(upstream, models=("*",), extra={"dialects": list(CHAT_ONLY)})
    gateway, _ = await stage.gateway(play(RECEIVE), providers={"local": provider}, **options)
    return gateway, upstream


async def test_an_answer_becomes_a_completion(stage, server):
    gateway, upstream = await gateway_of(stage, answer(CHAT), server=server)

    completion = await gateway.openai().completions.create(
        model="gpt-x", prompt="Say hello.", temperature=0.5, extra_body={"x_unknown": {"kept": 1.0}}
    )

    assert completion.object == "text_completion"
    assert completion.choices[0].text == "Hello."
    assert completion.choices[0].finish_reason == "stop"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (9, 2)
    assert upstream.requests[0].target == b"/v1/chat/completions"
    assert upstream.requests[0].body == (
        b'{"model":"gpt-x","messages":[{"role":"user","content":"Say hello."}],"max_completion_tokens":16,'
        b'"temperature":0.5,"x_unknown":{"kept":1.0}}'
    )
    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (9, 2, "reported")


@pytest.mark.parametrize("report", [False, True])
async def test_a_stream_becomes_one_of_completions(stage, server, report):
    gateway, _ = await gateway_of(stage, events(*chat_stream("One ", "two.")), server=server)
    options = {"stream_options": {"include_usage": True}} if report else {}

    chunks = await gateway.openai().completions.create(model="gpt-x", prompt="Hi", stream=True, **options)
    seen = [chunk async for chunk in chunks]

    choices = [chunk.choices[0] for chunk in seen if chunk.choices]
    assert "".join(choice.text for choice in choices) == "One two."
    assert [choice.finish_reason for choice in choices] == [None, None, "stop"]
    assert {(chunk.object, chunk.id, chunk.created) for chunk in seen} == {
        ("text_completion", "chatcmpl-1", 1790000000)
    }
    assert [chunk.usage.total_tokens for chunk in seen if chunk.usage] == ([29] if report else [])
    assert len(seen) == 4 if report else 3


async def test_several_answers_keep_apart_with_their_probabilities(stage):
    def place(token: str) -> dict[str, object]:
        return {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": token, "logprob": -0.5}]}

    def said(index: int, text: str) -> bytes:
        piece = msgspec.json.decode(delta(text, index=index))
        piece["choices"][0]["logprobs"] = {"content": [place(text)]}
        return msgspec.json.encode(piece)

    data = [said(0, "One"), said(1, "Un"), said(0, " two"), delta(index=1, finish="length"), delta(finish="stop")]
    gateway, upstream = await gateway_of(stage, events(*data, b"[DONE]"))

    chunks = await gateway.openai().completions.create(model="gpt-x", prompt="Hi", n=2, logprobs=1, stream=True)
    choices = [chunk.choices[0] async for chunk in chunks]

    assert "".join(choice.text for choice in choices if choice.index == 0) == "One two"
    assert [choice.logprobs.text_offset for choice in choices if choice.logprobs] == [[0], [0], [3]]
    assert choices[0].logprobs.top_logprobs == [{"One": -0.5}]
    assert sorted(choice.finish_reason for choice in choices if choice.finish_reason) == ["length", "stop"]
    sent = msgspec.json.decode(upstream.requests[0].body)
    assert (sent["n"], sent["logprobs"], sent["top_logprobs"]) == (2, True, 1)


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
    ],
)
async def test_what_a_chat_model_cannot_do_is_refused(stage, members, param):
    gateway, upstream = await gateway_of(stage, answer(CHAT))

    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.openai().completions.create(model="gpt-x", **members)

    assert caught.value.param == param
    assert upstream.requests == []


async def test_a_stream_that_breaks_off_raises(stage, server):
    """Case 75."""
    start = stream_head() + chunk(sse(delta(role="assistant", content=""), delta("One ")))
    gateway, _ = await gateway_of(stage, start, cut=True, server=server)

    chunks = aiter(await gateway.openai().completions.create(model="gpt-x", prompt="Hi", stream=True))
    assert (await anext(chunks)).choices[0].text == "One "
    with pytest.raises(openai.APIError):
        await anext(chunks)


async def test_an_error_inside_the_stream_raises(stage):
    heard = asyncio.Event()
    broken = b'{"error":{"message":"Overloaded.","type":"server_error","code":503}}'
    parts = [stream_head() + chunk(sse(delta("One "))), Until(heard), chunk(sse(broken)) + LAST_CHUNK]
    gateway, _ = await gateway_of(stage, *parts)

    chunks = aiter(await gateway.openai().completions.create(model="gpt-x", prompt="Hi", stream=True))
    assert (await anext(chunks)).choices[0].text == "One "
    heard.set()
    with pytest.raises(openai.APIError, match="Overloaded"):
        await anext(chunks)
