"""The responses bridge: requests into chat completions, and chat completions into responses."""

import random
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.api import JSONTap, ResponseHead, SSETap, Tap
from gateway.bridges import BRIDGES
from gateway.bridges.reasoning import seal
from gateway.bridges.responses import ResponsesTap, Writer, wishes_of
from gateway.bridges.responses_output import Output
from gateway.errors import BadRequest
from gateway.exchange import Call
from gateway.wire.dialects import Dialect
from gateway.wire.peek import peek

BRIDGE = BRIDGES[Dialect.OPENAI_RESPONSES]
ID = "0197abcd-0000-7000-8000-000000000001"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
FUNCTION = {"type": "function", "name": "look_up", "parameters": {"type": "object"}, "strict": True}
CUSTOM = {"type": "custom", "name": "patch", "description": "Changes a file."}


def call_of(body: bytes | None = None, **members: Any) -> Call:
    body = body or msgspec.json.encode({"model": "gpt-x", "input": "Hi", **members})
    seen = peek(body)
    return Call(
        id=ID,
        dialect=Dialect.OPENAI_RESPONSES,
        method="POST",
        path=b"/responses",
        query=b"api-version=1",
        headers=[(b"content-type", b"application/json")],
        body=body,
        peek=seen,
        model=seen.model or "",
    )


def chat_of(**members: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The chat request that is made of a responses request, and what was dropped."""
    opened = BRIDGE.open(call_of(**members), frozenset({"reasoning_details"}))
    assert opened.call.dialect is Dialect.OPENAI_CHAT
    assert opened.call.path == b"/chat/completions"
    assert opened.call.peek == peek(opened.call.body)
    return msgspec.json.decode(opened.call.body), opened.dropped


def messages_of(*items: dict[str, Any], **members: Any) -> list[dict[str, Any]]:
    chat, dropped = chat_of(input=list(items), **members)
    assert dropped == ()
    messages: list[dict[str, Any]] = chat["messages"]
    return messages


def refusal_of(**members: Any) -> BadRequest:
    with pytest.raises(BadRequest) as raised:
        BRIDGE.open(call_of(**members))
    return raised.value


# -- requests ---------------------------------------------------------------------------------------------------


def test_a_string_is_what_the_user_says() -> None:
    chat, dropped = chat_of()

    assert chat == {"model": "gpt-x", "messages": [{"role": "user", "content": "Hi"}]}
    assert dropped == ()


def test_what_has_another_name_gets_it_and_what_has_not_keeps_its_bytes() -> None:
    body = (
        b'{"model":"gpt-x","instructions":"Be brief.","input":"Hi","max_output_tokens":64,"temperature":1.0,"top_p":1e-1,'
        b'"text":{"format":{"type":"json_schema","name":"n","schema":{"type":"object","x":1.50},"strict":true},'
        b'"verbosity":"low"},"reasoning":{"effort":"high","summary":"auto"},"service_tier":"flex","user":"u",'
        b'"safety_identifier":"s","prompt_cache_key":"k","top_logprobs":3,"stream":true,"metadata":{"a":"b"},'
        b'"store":false,"truncation":"disabled","include":[],"tools":null,"max_tool_calls":2,"top_k":40}'
    )

    opened = BRIDGE.open(call_of(body))

    assert opened.call.body == (
        b'{"model":"gpt-x","temperature":1.0,"top_p":1e-1,"service_tier":"flex","user":"u","safety_identifier":"s",'
        b'"prompt_cache_key":"k","stream":true,"messages":[{"role":"system","content":"Be brief."},'
        b'{"role":"user","content":"Hi"}],"verbosity":"low","response_format":{"type":"json_schema","json_schema":'
        b'{"name":"n","schema":{"type":"object","x":1.50},"strict":true}},"reasoning_effort":"high","max_tokens":64,'
        b'"logprobs":true,"top_logprobs":3,"top_k":40}'
    )
    assert opened.call.peek.stream
    assert opened.call.peek.max_output_tokens == 64
    assert opened.dropped == ()


def test_a_turn_of_an_assistant_is_one_message() -> None:
    messages = messages_of(
        {"role": "user", "content": "Compare."},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
            {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look_up", "arguments": '{"n":1}'},
        {"type": "function_call", "call_id": "c2", "name": "look_up", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "assistant", "content": "Done."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Thanks."},
    )  # fmt: skip

    def call(call_id: str, arguments: str) -> dict[str, Any]:
        return {"id": call_id, "type": "function", "function": {"name": "look_up", "arguments": arguments}}

    assert messages == [
        {"role": "user", "content": "Compare."},
        {"role": "assistant", "content": "I look.", "tool_calls": [call("c1", '{"n":1}'), call("c2", "{}")]},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "assistant", "content": "Done."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Thanks."},
    ]


def test_parts_become_the_parts_of_the_hub() -> None:
    [message, answer] = messages_of(
        {"role": "user", "content": [
            {"type": "input_text", "text": "Look:", "prompt_cache_breakpoint": {"mode": "explicit"}},
            {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
            {"type": "input_file", "file_id": "file_1"},
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        ]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "No."}]},
    )  # fmt: skip

    assert message["content"] == [
        {"type": "text", "text": "Look:", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        {"type": "file", "file": {"file_id": "file_1"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]
    assert answer["content"] == [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "No."}]


def test_tools_and_the_choice_between_them() -> None:
    weather = {"type": "function", "name": "weather", "description": None, "parameters": None, "strict": None}

    chat, dropped = chat_of(tools=[FUNCTION, weather], tool_choice="required", parallel_tool_calls=False)

    assert chat["tools"] == [
        {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}, "strict": True}},
        {"type": "function", "function": {"name": "weather"}},
    ]
    assert chat["tool_choice"] == "required"
    assert chat["parallel_tool_calls"] is False
    assert dropped == ()
    named = {"type": "function", "name": "weather"}
    chosen = chat_of(tools=[FUNCTION, weather], tool_choice=named)[0]["tool_choice"]
    assert chosen == {"type": "function", "function": {"name": "weather"}}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    chat, _ = chat_of(tools=[FUNCTION, weather], tool_choice=allowed)
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["weather"]
    assert chat["tool_choice"] == "required"


def test_without_tools_nothing_is_said_of_them() -> None:
    chat, _ = chat_of(tools=[], tool_choice="auto", parallel_tool_calls=True)

    assert chat.keys() == {"model", "messages"}


def test_a_custom_tool_is_a_function_of_one_text() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /a+/"}
    history = [
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": 'say "a"'},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
    ]

    chat, dropped = chat_of(input=history, tools=[{**CUSTOM, "format": grammar}])

    function = chat["tools"][0]["function"]
    assert function["name"] == "patch"
    assert function["description"].startswith("Changes a file.\n\n")
    assert "start: /a+/" in function["description"]
    assert list(function["parameters"]["properties"]) == function["parameters"]["required"] == ["input"]
    assert dropped == ("tools.format",)
    call = chat["messages"][0]["tool_calls"][0]
    assert call["type"] == "function"
    assert msgspec.json.decode(call["function"]["arguments"]) == {"input": 'say "a"'}
    assert chat["messages"][1] == {"role": "tool", "tool_call_id": "c1", "content": "done"}


def test_reasoning_goes_back_to_whom_it_came_from() -> None:
    ours = {"reasoning": "Hm.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "signature": "s"}]}
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}

    sealed = messages_of({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": seal(ours)}, call)
    open_ = messages_of(
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}, call
    )

    assert ours.items() <= sealed[0].items()
    assert sealed[0]["tool_calls"]
    assert open_[0]["reasoning_content"] == "Hm."


def test_reasoning_of_others_is_dropped_and_told() -> None:
    reasoning = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "Hm."}],
        "encrypted_content": "gAAA",
    }

    chat, dropped = chat_of(input=[reasoning, {"role": "user", "content": "Hi"}])

    assert chat["messages"] == [{"role": "user", "content": "Hi"}]
    assert dropped == ("input.reasoning",)


@pytest.mark.parametrize("encrypted", ["gw1.", "gw1.!!!!", "gw1.e30=", seal({"role": "system"}), "gw1.\u00e9"])
def test_a_seal_that_was_tampered_with_is_refused(encrypted: str) -> None:
    refused = refusal_of(input=[{"type": "reasoning", "summary": [], "encrypted_content": encrypted}])

    assert refused.param == "input[0].encrypted_content"


def test_what_only_tunes_is_dropped_and_told() -> None:
    _, dropped = chat_of(
        store=True,
        truncation="auto",
        client_metadata={"a": "b"},
        context_management=[{"type": "compaction"}],
        reasoning={"effort": "low", "context": "auto"},
        tools=[{**FUNCTION, "defer_loading": True}],
    )

    assert dropped == (
        "client_metadata",
        "context_management",
        "reasoning.context",
        "store",
        "tools.defer_loading",
        "truncation",
    )


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["Hi"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 7}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x"}]}]},
            "input[0].content[0].file_url",
        ),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"instructions": 7}, "instructions"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [FUNCTION, {"type": "mcp", "server_label": "x"}]}, "tools[1].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.tools"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": "json"}, "text"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"max_output_tokens": 5, "max_tokens": 6}, "max_tokens"),
        ({"include": [7]}, "include[0]"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(members: dict[str, Any], param: str) -> None:
    assert refusal_of(**members).param == param


def test_a_hosted_tool_is_named() -> None:
    assert "`code_interpreter`" in refusal_of(tools=[{"type": "code_interpreter"}]).message


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_WORDS = st.sampled_from(
    [
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "reasoning",
        "user",
        "assistant",
        "system",
        "input_text",
        "output_text",
        "input_image",
        "input_file",
        "refusal",
        "function",
        "custom",
        "allowed_tools",
        "json_schema",
        "json_object",
        "text",
        "auto",
        "required",
        "gw1.e30=",
    ]
)
_NAMES = st.sampled_from(
    [
        "type",
        "role",
        "content",
        "text",
        "call_id",
        "name",
        "arguments",
        "output",
        "summary",
        "encrypted_content",
        "image_url",
        "file_id",
        "file_data",
        "refusal",
        "tools",
        "mode",
        "format",
        "schema",
        "effort",
        "input",
    ]
)
_OBJECTS = st.recursive(
    _WORDS | _VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=5),
    max_leaves=20,
)
_WATCHED = ("input", "instructions", "tools", "tool_choice", "text", "reasoning", "include", "truncation")
_REQUESTS = st.fixed_dictionaries({"model": st.just("m")}, optional=dict.fromkeys(_WATCHED, _OBJECTS))


@given(_REQUESTS)
def test_any_request_is_carried_or_refused(request: dict[str, Any]) -> None:
    """Nothing a caller sends is an error of ours, and what is carried can be answered."""
    call = call_of(msgspec.json.encode(request))
    try:
        opened = BRIDGE.open(call)
    except BadRequest:
        return
    assert msgspec.json.decode(opened.call.body)["messages"]
    answer(call, CHAT)


# -- answers ----------------------------------------------------------------------------------------------------

CHAT = {
    "id": "chatcmpl-1",
    "created": 1790000000,
    "model": "gpt-x-2026",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    },
    "service_tier": "default",
}
HEAD = ResponseHead(200, [])


def play(tap: Tap, pieces: Iterable[bytes]) -> bytes:
    return b"".join([tap.feed(piece) for piece in pieces]) + tap.end()


def answer(call: Call, chat: dict[str, Any]) -> dict[str, Any]:
    """The response that a caller who does not stream gets, checked against the SDK's own model."""
    tap = BRIDGE.tap(call, HEAD, JSONTap(Dialect.OPENAI_CHAT))
    out = play(tap, [msgspec.json.encode(chat)])
    assert tap.failure is None
    assert tap.complete
    response: dict[str, Any] = msgspec.json.decode(out)
    assert response.keys() >= {name for name, field in Response.model_fields.items() if field.is_required()}
    return response


def message_of(**members: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **members}, "finish_reason": "stop"}
    return {**CHAT, "choices": [choice]}


def chunk(finish: str | None = None, *, logprobs: Any = None, **members: Any) -> bytes:
    choice = {"index": 0, "delta": members, "logprobs": logprobs, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "created": 1790000000, "model": "gpt-x-2026"}
    return b"data: " + msgspec.json.encode({**head, "choices": [choice], "usage": None}) + b"\n\n"


USAGE = b'data: {"choices":[],"usage":%b}\n\n' % msgspec.json.encode(CHAT["usage"])
DONE = b"data: [DONE]\n\n"


def tap_of(**members: Any) -> Tap:
    return BRIDGE.tap(call_of(stream=True, **members), HEAD, SSETap(Dialect.OPENAI_CHAT, strip_usage=True))


def events_in(out: bytes) -> list[dict[str, Any]]:
    """The events of a stream; checked: framing, numbers, names, and what the SDK's own models want."""
    assert not out or out.endswith(b"\n\n")
    events = []
    for number, block in enumerate(out.removesuffix(b"\n\n").split(b"\n\n") if out else ()):
        name, _, data = block.partition(b"\n")
        event = msgspec.json.decode(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        assert event["sequence_number"] == number
        EVENT.validate_python(event)
        events.append(event)
    return events


def stream(*pieces: bytes, **members: Any) -> list[dict[str, Any]]:
    tap = tap_of(**members)
    events = events_in(play(tap, [*pieces, USAGE, DONE]))
    assert tap.complete
    assert tap.failure is None
    return events


def kinds(events: Iterable[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_an_answer_is_a_whole_response() -> None:
    call = call_of(instructions="Be brief.", temperature=0.5, metadata={"a": "b"}, tools=[FUNCTION], store=True)

    response = answer(call, CHAT)

    Response.model_validate(response)
    assert response == {
        "id": "resp_0197abcd000070008000000000000001",
        "object": "response",
        "created_at": 1790000000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "gpt-x-2026",
        "output": [
            {
                "id": "msg_0197abcd00007000800000000000000100",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Hello.", "annotations": [], "logprobs": []}],
            }
        ],
        "usage": {
            "input_tokens": 9,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 14,
        },
        "service_tier": "default",
        "background": False,
        "instructions": "Be brief.",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "prompt_cache_retention": None,
        "safety_identifier": None,
        "temperature": 0.5,
        "tool_choice": "auto",
        "tools": [FUNCTION],
        "top_logprobs": 0,
        "top_p": None,
        "truncation": "disabled",
        "user": None,
        "store": False,
        "reasoning": {"effort": None, "summary": None},
        "text": {"format": {"type": "text"}},
    }


@pytest.mark.parametrize(
    ("finish", "status", "details"),
    [
        ("stop", "completed", None),
        ("eos", "completed", None),
        (None, "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
    ],
)
def test_how_it_ended(finish: str | None, status: str, details: dict[str, str] | None) -> None:
    chat = message_of(content="Hel")
    chat["choices"][0]["finish_reason"] = finish

    response = answer(call_of(), chat)

    assert (response["status"], response["incomplete_details"]) == (status, details)
    assert response["output"][0]["status"] == status


def test_everything_a_message_may_have_is_an_item_or_a_part() -> None:
    citation = {"start_index": 0, "end_index": 2, "title": "T", "url": "https://x"}
    probability = [{"token": "So", "logprob": -0.1, "bytes": [83], "top_logprobs": []}]
    chat = message_of(
        reasoning_content="Hm.",
        content="So",
        refusal="No.",
        annotations=[{"type": "url_citation", "url_citation": citation}],
        images=[{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
        tool_calls=[
            {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"a":"\u00e9"}'}},
            {"id": "c2", "type": "function", "function": {"name": "patch", "arguments": '{"input":"*** \\"x\\""}'}},
        ],
    )
    chat["choices"][0]["logprobs"] = {"content": probability, "refusal": None}

    response = answer(call_of(tools=[FUNCTION, CUSTOM], include=["message.output_text.logprobs"]), chat)

    Response.model_validate(response)
    reasoning, message, picture, function, custom = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert reasoning["summary"] == []
    text, refusal, *rest = message["content"]
    assert text["text"] == "So"
    assert text["logprobs"] == probability
    assert refusal == {"type": "refusal", "refusal": "No."}
    assert [part["annotations"] for part in rest] == [[{"type": "url_citation", **citation}]]
    assert picture == {
        "id": picture["id"], "type": "image_generation_call", "status": "completed", "output_format": "png",
        "result": "AA==",
    }  # fmt: skip
    assert (function["type"], function["call_id"], function["arguments"]) == ("function_call", "c1", '{"a":"\u00e9"}')
    assert (custom["type"], custom["call_id"], custom["input"]) == ("custom_tool_call", "c2", '*** "x"')


def test_reasoning_is_a_summary_for_whom_asks_for_one_and_is_sealed_for_whom_sends_it_back() -> None:
    details = [{"type": "reasoning.text", "text": "Hm.", "signature": "s"}]
    call = call_of(reasoning={"summary": "auto"}, include=["reasoning.encrypted_content"])

    response = answer(call, message_of(reasoning="Hm.", reasoning_details=details, content="So"))

    item = response["output"][0]
    assert item["summary"] == [{"type": "summary_text", "text": "Hm."}]
    assert "content" not in item
    again = messages_of(item, {"role": "assistant", "content": "So"})
    assert again == [{"role": "assistant", "reasoning": "Hm.", "reasoning_details": details, "content": "So"}]


def test_a_stream_has_every_event_in_order() -> None:
    events = stream(chunk(role="assistant", content=""), chunk(content="Hel"), chunk(content="lo."), chunk("stop"))

    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events[4:6]] == ["Hel", "lo."]
    assert events[6]["text"] == events[7]["part"]["text"] == "Hello."
    final = events[-1]["response"]
    assert final["output"] == [events[8]["item"]]
    assert final == answer(call_of(), CHAT) | {"service_tier": None}


def test_a_stream_tells_of_reasoning_refusals_and_calls() -> None:
    events = stream(
        chunk(reasoning_content="H"),
        chunk(reasoning_content="m."),
        chunk(refusal="N"),
        chunk(refusal="o."),
        chunk(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "look_up", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 1, "id": "c2", "function": {"name": "patch", "arguments": '{"inp'}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}]),
        chunk(tool_calls=[{"index": 1, "function": {"arguments": 'ut":"x\\ny"}'}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        chunk("tool_calls"),
        tools=[FUNCTION, CUSTOM],
    )

    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "refusal.delta",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call", "custom_tool_call"]
    assert done[2]["arguments"] == '{"a":1}'
    assert done[3]["input"] == "x\ny"


def test_calls_of_a_provider_that_gives_all_the_same_index() -> None:
    def whole(call_id: str) -> bytes:
        return chunk(tool_calls=[{"index": 0, "id": call_id, "function": {"name": "look_up", "arguments": "{}"}}])

    events = stream(whole("c1"), whole("c2"), chunk("tool_calls"))

    output = events[-1]["response"]["output"]
    assert [(item["call_id"], item["arguments"]) for item in output] == [("c1", "{}"), ("c2", "{}")]


def test_a_summary_streams_as_one() -> None:
    events = stream(chunk(reasoning="Hm."), chunk(content="So"), chunk("length"), reasoning={"summary": "auto"})

    assert kinds(events)[2:8] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    assert kinds(events)[-1] == "incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_pieces_of_a_reasoning_in_the_providers_form_are_put_together() -> None:
    events = stream(
        chunk(reasoning_content="Hm", reasoning_details=[{"type": "reasoning.text", "text": "H", "index": 0}]),
        chunk(reasoning_details=[{"type": "reasoning.text", "text": "m", "index": 0}]),
        chunk(reasoning_details=[{"type": "reasoning.text", "signature": "s", "index": 0}]),
        chunk(reasoning_details=[{"type": "reasoning.encrypted", "data": "d", "index": 1}]),
        chunk(content="So"),
        chunk("stop"),
        include=["reasoning.encrypted_content"],
    )

    [message] = messages_of(*events[-1]["response"]["output"])
    assert message["reasoning_details"] == [
        {"type": "reasoning.text", "text": "Hm", "index": 0, "signature": "s"},
        {"type": "reasoning.encrypted", "data": "d", "index": 1},
    ]


def test_logprobs_are_there_for_whom_asks() -> None:
    probability = {"token": "So", "logprob": -0.5, "bytes": [83, 111], "top_logprobs": []}
    pieces = (chunk(content="So", logprobs={"content": [probability]}), chunk("stop"))

    asked = stream(*pieces, top_logprobs=1)
    plain = stream(*pieces)

    assert asked[4]["logprobs"] == asked[5]["logprobs"] == [probability]
    assert asked[-1]["response"]["output"][0]["content"][0]["logprobs"] == [probability]
    assert plain[4]["logprobs"] == []


def test_a_plain_answer_to_a_stream_is_written_as_one() -> None:
    tap = BRIDGE.tap(call_of(stream=True), HEAD, JSONTap(Dialect.OPENAI_CHAT))

    events = events_in(play(tap, [b"\n\n", msgspec.json.encode(CHAT)]))

    assert kinds(events)[-1] == "completed"
    assert tap.content_type == b"text/event-stream; charset=utf-8"
    assert tap.complete


@pytest.mark.parametrize("pieces", [(), (chunk(role="assistant", content=""),), (chunk(content="Hel"),)])
def test_a_stream_that_was_cut_does_not_look_finished(pieces: tuple[bytes, ...]) -> None:
    tap = tap_of()

    events = events_in(play(tap, pieces))

    assert not tap.complete
    assert not {"completed", "incomplete", "failed"} & set(kinds(events))
    assert isinstance(tap, ResponsesTap)
    assert tap.events == len(events)


def test_an_error_in_the_stream_is_a_failure_and_no_text() -> None:
    tap = tap_of()

    out = tap.feed(chunk(content="Hel")) + tap.feed(b'data: {"error":{"code":503,"message":"Overloaded."}}\n\n')

    assert "output_text.delta" in kinds(events_in(out))
    assert tap.failure is not None
    assert tap.errored
    assert msgspec.json.decode(tap.failure.body) == {"error": {"code": 503, "message": "Overloaded."}}
    assert tap.feed(chunk(content="lo.")) == b""


@pytest.mark.parametrize("reason", ["error", "insufficient_system_resource"])
def test_a_provider_that_gave_up_did_not_finish(reason: str) -> None:
    tap = tap_of()

    tap.feed(chunk(content="Hel") + chunk(reason))

    assert tap.failure is not None
    assert not tap.complete


def test_an_answer_that_outgrows_what_is_kept_fails() -> None:
    wishes = wishes_of(call_of(stream=True))
    writer = Writer(wishes, output=Output(wishes, bytes_max=1000))
    tap = ResponsesTap(SSETap(Dialect.OPENAI_CHAT), writer, input_tokens=1)
    out = b"".join([tap.feed(chunk(content="x" * 90)) for _ in range(11)])
    assert tap.failure is None

    out += tap.feed(chunk(content="x" * 90))

    assert tap.failure is not None
    assert tap.failure.blame == "caller"
    assert tap.failure.status == 502
    assert "longer" in tap.failure.message
    assert tap.events == len(events_in(out))


def test_a_body_that_is_no_answer_is_a_failure() -> None:
    for body in (b"", b"<html>", b'{"choices":[]}', b'{"error":{"message":"no"}}', b'{"choices":[{"mess'):
        tap = BRIDGE.tap(call_of(), HEAD, JSONTap(Dialect.OPENAI_CHAT))
        assert play(tap, [body]) == b""
        assert tap.failure is not None


_TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
_CALLS = st.builds(
    lambda index, arguments: chunk(
        tool_calls=[{"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": arguments}}]
    ),
    st.integers(0, 2),
    _TEXTS,
)
_CHUNKS = st.lists(
    st.builds(lambda text: chunk(content=text), _TEXTS)
    | st.builds(lambda text: chunk(reasoning_content=text), _TEXTS)
    | st.builds(lambda text: chunk(refusal=text), _TEXTS)
    | _CALLS,
    max_size=12,
)


@given(_CHUNKS, st.integers(0, 2**32))
def test_it_comes_out_the_same_however_it_is_cut(chunks: list[bytes], seed: int) -> None:
    """And what the pieces say is what the last event says."""
    body = b"".join([*chunks, chunk("stop"), USAGE, DONE])
    chance = random.Random(seed)
    marks = sorted(chance.randrange(len(body) + 1) for _ in range(8))
    cut = [body[start:end] for start, end in zip([0, *marks], [*marks, len(body)], strict=True)]
    taps = [tap_of() for _ in range(3)]

    whole = play(taps[0], [body])

    assert play(taps[1], cut) == whole
    assert play(taps[2], [body[i : i + 1] for i in range(len(body))]) == whole
    assert all(tap.complete and tap.usage() == taps[0].usage() for tap in taps)
    events = events_in(whole)
    output = events[-1]["response"]["output"]
    assert output == [event["item"] for event in sorted(
        (event for event in events if event["type"] == "response.output_item.done"), key=lambda e: e["output_index"]
    )]  # fmt: skip
    for index, item in enumerate(output):
        said = "".join(event["delta"] for event in events if "delta" in event and event["output_index"] == index)
        parts = item.get("content", ())
        kept = "".join(part.get("text", "") + part.get("refusal", "") for part in parts) + item.get("arguments", "")
        assert said == kept


@given(st.lists(st.binary(max_size=60) | st.just(b'data: {"choices":[{"delta":') | _CALLS, max_size=8))
def test_no_answer_makes_it_raise(pieces: list[bytes]) -> None:
    for kind in (SSETap, JSONTap):
        for streams in (True, False):
            tap = BRIDGE.tap(call_of(stream=streams), HEAD, kind(Dialect.OPENAI_CHAT))
            out = play(tap, pieces)
            if streams:
                events_in(out)
