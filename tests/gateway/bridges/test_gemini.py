"""Google's generateContent from chat completions: what SDK tests over sockets do not show."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bridges.counting import COUNTERS
from gateway.bridges.gemini import Gemini
from gateway.errors import BadRequest
from gateway.wire.dialects import Dialect
from tests.gateway.bridges.streams import DELTAS, JSON_HEAD, call_of, chunk, events_of, report, run, sse, tap_of
from tests.gateway.bridges.test_messages import JUNK

BRIDGE = Gemini()
HI = {"role": "user", "parts": [{"text": "Hi"}]}


def ask(members=None, *, query=b"alt=sse", stream=False):
    return call_of(Dialect.GEMINI_GENERATE, {"contents": [HI]} | (members or {}), query=query, stream=stream)


def opened(members):
    found = BRIDGE.open(ask(members))
    return msgspec.json.decode(found.call.body), found.dropped


def user(*parts):
    return {"contents": [{"role": "user", "parts": list(parts)}]}


STREAM = ask(stream=True)


@given(deltas=DELTAS)
def test_every_event_is_an_answer_and_no_text_is_lost(deltas):
    tap = tap_of(BRIDGE, STREAM)
    out = tap.feed(sse(*map(chunk, deltas), chunk(finish="stop"), report(), b"[DONE]")) + tap.end()
    if tap.failure is not None:
        return

    events = events_of(out)
    parts = [part for event in events for part in event["candidates"][0].get("content", {}).get("parts", ())]
    assert "".join(part.get("text", "") for part in parts) == "".join(delta.get("content", "") for delta in deltas)
    assert all(event["responseId"] == "c1" and event["modelVersion"] == "m" for event in events)
    assert ["usageMetadata" in event for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["candidates"][0]["finishReason"] == "STOP"
    calls = [part["functionCall"] for part in parts if "functionCall" in part]
    assert all(isinstance(call["args"], dict) for call in calls)
    ids = [call["id"] for call in calls if "id" in call]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("query", [b"alt=sse&key=x", b"", b"alt=json"])
def test_a_stream_is_events_or_an_array(query):
    body = sse(chunk({"content": "One"}), chunk({"content": "two"}), chunk(finish="length"), report(), b"[DONE]")

    tap = tap_of(BRIDGE, ask(query=query, stream=True))
    out = tap.feed(body) + tap.end()

    events = events_of(out) if query.startswith(b"alt=sse") else msgspec.json.decode(out)
    assert (tap.content_type == b"application/json") == (not query.startswith(b"alt=sse"))
    assert len(events) == 3
    assert events[-1]["candidates"] == [{"finishReason": "MAX_TOKENS", "index": 0}]
    assert events[-1]["usageMetadata"] == {
        "promptTokenCount": 30,
        "cachedContentTokenCount": 10,
        "candidatesTokenCount": 4,
        "thoughtsTokenCount": 8,
        "totalTokenCount": 42,
    }


def test_several_candidates_keep_apart():
    """Case 23."""
    data = [
        chunk({"content": "a"}),
        chunk({"content": "b"}, index=1),
        chunk(index=1, finish="length"),
        chunk(finish="stop"),
    ]

    events = events_of(run(BRIDGE, STREAM, sse(*data, b"[DONE]")))

    assert [event["candidates"][0]["index"] for event in events[:2]] == [0, 1]
    assert events[-1]["candidates"] == [
        {"finishReason": "STOP", "index": 0},
        {"finishReason": "MAX_TOKENS", "index": 1},
    ]


def test_calls_keep_their_order_though_the_second_is_whole_first():
    data = [
        chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x":1.0}'}}]}),
        chunk(finish="tool_calls"),
    ]

    out = run(BRIDGE, STREAM, sse(*data, b"[DONE]"))

    [first, _] = events_of(out)
    assert first["candidates"][0]["content"]["parts"] == [
        {"functionCall": {"name": "f", "args": {"x": 1.0}, "id": "a"}},
        {"functionCall": {"name": "g", "args": {}, "id": "b"}},
    ]
    assert b'"args":{"x":1.0}' in out


def test_a_refusal_and_a_filter_are_safety():
    """Case 31."""
    body = msgspec.json.encode(
        {"id": "c", "choices": [{"message": {"refusal": "No."}, "finish_reason": "stop"}], "usage": None}
    )

    answer = msgspec.json.decode(run(BRIDGE, ask(), body, head=JSON_HEAD))

    assert answer["candidates"][0]["finishReason"] == "SAFETY"
    assert answer["candidates"][0]["content"]["parts"] == [{"text": "No."}]
    assert answer["modelVersion"] == "gpt-x"


def test_log_probabilities():
    """Case 24."""
    place = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Ho", "logprob": -1}]}
    choice = {"message": {"content": "Hi"}, "logprobs": {"content": [place]}, "finish_reason": "stop"}
    body = msgspec.json.encode({"choices": [choice]})

    answer = msgspec.json.decode(run(BRIDGE, ask(), body, head=JSON_HEAD))

    assert answer["candidates"][0]["logprobsResult"] == {
        "chosenCandidates": [{"token": "Hi", "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "Ho", "logProbability": -1}]}],
    }


# -- requests ------------------------------------------------------------------------------------------------


def test_members_are_read_with_underscores_too():
    chat, dropped = opened(
        {
            "system_instruction": {"parts": [{"text": "S"}]},
            "generation_config": {
                "max_output_tokens": "64",
                "top_p": 0.50,
                "top_k": 5,
                "candidate_count": 2,
                "stop_sequences": ["a"],
                "seed": 7,
                "presence_penalty": 1,
                "response_logprobs": True,
                "logprobs": 3,
                "thinking_config": {"thinking_level": "HIGH"},
            },
            "tool_config": {"function_calling_config": {"mode": "NONE"}},
            "tools": [{"function_declarations": [{"name": "f", "parameters_json_schema": {"type": "object"}}]}],
            "safety_settings": [{}],
        }
    )

    assert chat == {
        "model": "gpt-x",
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "none",
        "top_p": 0.5,
        "n": 2,
        "max_completion_tokens": 64,
        "stop": ["a"],
        "seed": 7,
        "presence_penalty": 1,
        "logprobs": True,
        "top_logprobs": 3,
        "reasoning_effort": "high",
    }
    assert dropped == ("safetySettings", "topK")


def test_media_are_parts():
    text = base64.urlsafe_b64encode("Body \u00ff?".encode()).decode()
    chat, dropped = opened(
        user(
            {"inlineData": {"mimeType": "image/png", "data": "-_8="}},
            {"inline_data": {"mime_type": "audio/mpeg", "data": "AA=="}},
            {"inlineData": {"mimeType": "application/pdf", "data": "AA==", "displayName": "a.pdf"}},
            {"inlineData": {"mimeType": "text/csv", "data": text}},
            {"fileData": {"mimeType": "image/png", "fileUri": "https://x/y.png"}, "mediaResolution": {}},
        )
    )

    assert chat["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,+/8="}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        {"type": "text", "text": "Body \u00ff?"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
    ]
    assert dropped == ("mediaResolution",)


def test_thoughts_and_signatures_stay_behind():
    parts = [{"text": "Hm.", "thought": True, "thoughtSignature": "x"}, {"text": "Yes.", "thoughtSignature": "x"}]

    chat, dropped = opened({"contents": [HI, {"role": "model", "parts": parts}]})

    assert chat["messages"][1] == {"role": "assistant", "content": "Yes."}
    assert dropped == ("thoughts", "thoughtSignature")


def test_results_with_an_id_find_their_calls_by_it():
    calls = [{"functionCall": {"name": "f", "id": name}} for name in "ab"]
    results = [{"functionResponse": {"name": "f", "id": name, "response": {}}} for name in "ba"]

    chat, _ = opened({"contents": [HI, {"role": "model", "parts": calls}, {"role": "user", "parts": results}]})

    assert [message["tool_call_id"] for message in chat["messages"][2:]] == ["b", "a"]


def test_a_schema_of_googles_becomes_json_schema():
    schema = {
        "type": "OBJECT",
        "propertyOrdering": ["a"],
        "properties": {
            "a": {"type": "ARRAY", "items": {"type": "STRING", "enum": ["x"]}, "minItems": "1", "nullable": True},
            "type": {"any_of": [{"type": "INTEGER", "format": "int32"}, {"type": "TYPE_UNSPECIFIED"}]},
        },
    }

    chat, _ = opened({"tools": [{"functionDeclarations": [{"name": "f", "parameters": schema}]}]})

    assert chat["tools"][0]["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"type": ["array", "null"], "items": {"type": "string", "enum": ["x"]}, "minItems": 1},
            "type": {"anyOf": [{"type": "integer", "format": "int32"}, {}]},
        },
    }


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"contents": None}, "contents"),
        ({"cachedContent": "c"}, "cachedContent"),
        ({"contents": [{"role": "tool", "parts": []}]}, "contents[0].role"),
        (user({"functionResponse": {"name": "f", "response": {}}}), "contents[0].parts[0].functionResponse.name"),
        (user({"executableCode": {}}), "contents[0].parts[0].executableCode"),
        (user({}), "contents[0].parts[0]"),
        (user({"inlineData": {"mimeType": "video/mp4", "data": ""}}), "contents[0].parts[0].inlineData.mimeType"),
        (user({"inlineData": {"mimeType": "text/plain", "data": "!"}}), "contents[0].parts[0].inlineData.data"),
        (user({"fileData": {"fileUri": "gs://x"}}), "contents[0].parts[0].fileData.fileUri"),
        ({"tools": [{"googleSearch": {}}]}, "tools[0].googleSearch"),
        ({"generationConfig": {"responseModalities": ["AUDIO"]}}, "generationConfig.responseModalities"),
        ({"generationConfig": {"responseMimeType": "text/x.enum"}}, "generationConfig.responseMimeType"),
        ({"generationConfig": {"maxOutputTokens": "many"}}, "generationConfig.maxOutputTokens"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(members, param):
    with pytest.raises(BadRequest) as caught:
        opened(members)

    assert caught.value.param == param


def test_a_schema_that_never_ends_is_refused():
    schema: dict[str, object] = {}
    for _ in range(100):
        schema = {"items": schema}

    with pytest.raises(BadRequest):
        opened({"generationConfig": {"responseMimeType": "application/json", "responseSchema": schema}})


PART = st.dictionaries(
    st.sampled_from(["text", "thought", "inlineData", "fileData", "functionCall", "functionResponse", "inline_data"]),
    JUNK,
    max_size=2,
)
NAMES = ["systemInstruction", "tools", "toolConfig", "generationConfig", "contents"]


@given(st.dictionaries(st.sampled_from(NAMES), JUNK))
def test_any_request_is_carried_or_refused(members):
    try:
        found = BRIDGE.open(ask(members))
    except BadRequest:
        return
    assert msgspec.json.decode(found.call.body)["messages"] is not None


@given(st.lists(st.tuples(st.sampled_from(["user", "model"]), st.lists(PART, max_size=3)), max_size=4))
def test_any_history_is_carried_or_refused(history):
    contents = [{"role": role, "parts": parts} for role, parts in history]
    try:
        found = BRIDGE.open(ask({"contents": contents}))
    except BadRequest:
        return
    assert found.call.dialect is Dialect.OPENAI_CHAT


def test_counting():
    request = {"generateContentRequest": {"contents": [HI]}}

    for members in ({"contents": [HI]}, request):
        call = call_of(Dialect.GEMINI_COUNT_TOKENS, members)
        assert msgspec.json.decode(COUNTERS[Dialect.GEMINI_COUNT_TOKENS](call))["totalTokens"] > 0
    for dialect in (Dialect.GEMINI_COUNT_TOKENS, Dialect.ANTHROPIC_COUNT_TOKENS):
        with pytest.raises(BadRequest):
            COUNTERS[dialect](call_of(dialect, {}))
