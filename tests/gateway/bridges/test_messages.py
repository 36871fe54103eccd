"""Anthropic's messages from chat completions: what SDK tests over sockets do not show."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bridges import blocks as blocks_module
from gateway.bridges.messages import Messages
from gateway.errors import BadRequest
from gateway.wire.dialects import Dialect
from tests.gateway.bridges.streams import (
    DELTAS,
    JSON_HEAD,
    USAGE,
    call_of,
    chunk,
    events_of,
    report,
    run,
    sse,
    tap_of,
)

BRIDGE = Messages()
HI = {"role": "user", "content": "Hi"}


def ask(**members):
    return call_of(Dialect.ANTHROPIC_MESSAGES, {"model": "m", "max_tokens": 5, "messages": [HI]} | members)


def opened(**members):
    found = BRIDGE.open(ask(**members))
    return msgspec.json.decode(found.call.body), found.dropped


def piece(index, arguments="", **members):
    function = {"arguments": arguments} | ({"name": members.pop("name")} if "name" in members else {})
    return {"tool_calls": [{"index": index, "function": function, **members}]}


STREAM = ask(stream=True)


def stream(*deltas, finish="stop"):
    return events_of(run(BRIDGE, STREAM, sse(*map(chunk, deltas), chunk(finish=finish), report(), b"[DONE]")))


@given(deltas=DELTAS)
def test_blocks_are_numbered_without_gaps_and_one_is_open_at_a_time(deltas):
    tap = tap_of(BRIDGE, STREAM)
    out = tap.feed(sse(*map(chunk, deltas), chunk(finish="stop"), b"[DONE]")) + tap.end()
    if tap.failure is not None:
        return

    events = events_of(out)
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    assert events[0]["type"] == "message_start"
    index, is_open = -1, False
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            index += 1
            assert not is_open
        assert event["index"] == index
        is_open = event["type"] != "content_block_stop"
    assert not is_open


@given(deltas=DELTAS)
def test_no_text_is_lost(deltas):
    tap = tap_of(BRIDGE, STREAM)
    out = tap.feed(sse(*map(chunk, deltas), chunk(finish="stop"), b"[DONE]")) + tap.end()
    if tap.failure is not None:
        return

    said = [event["delta"] for event in events_of(out) if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in said) == "".join(d.get("content", "") for d in deltas)
    assert "".join(delta.get("thinking", "") for delta in said) == "".join(
        d.get("reasoning_content", "") for d in deltas
    )


def test_pieces_of_calls_that_are_mixed_are_sorted():
    events = stream(
        piece(0, id="a", name="f"),
        piece(0, '{"x":'),
        piece(1, '{"y":', id="b", name="g"),
        piece(0, "1}"),
        piece(1, "2}"),
        {"content": "Done."},
    )

    calls = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(call["type"], call.get("id")) for call in calls] == [
        ("tool_use", "a"),
        ("tool_use", "b"),
        ("text", None),
    ]
    pieces = [
        (event["index"], event["delta"]["partial_json"])
        for event in events
        if event["type"] == "content_block_delta" and event["delta"]["type"] == "input_json_delta"
    ]
    assert pieces == [(0, '{"x":'), (0, "1}"), (1, '{"y":'), (1, "2}")]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_call_without_arguments_or_id_is_one_all_the_same():
    """Case 22."""
    events = stream(piece(0, name="f"), finish="tool_calls")

    [start] = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert start == {"type": "tool_use", "id": "toolu_c1_0", "name": "f", "input": {}}


def test_what_waits_for_a_call_is_bounded():
    tap = tap_of(BRIDGE, STREAM)
    tap.feed(sse(chunk(piece(0, "{", id="a", name="f"))))
    word = "x" * 65536
    for _ in range(blocks_module.WAITING_CHARS_MAX // len(word) + 1):
        tap.feed(sse(chunk({"content": word})))

    assert tap.failure is not None


def test_a_call_that_goes_on_after_its_end_is_a_failure():
    tap = tap_of(BRIDGE, STREAM)

    tap.feed(sse(chunk(piece(0, "{}", id="a", name="f")), chunk({"content": "x"}), chunk(piece(0, " "))))
    assert tap.failure is None
    tap.feed(sse(chunk(piece(0, "{}"))))
    assert tap.failure is not None


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("eos", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("model_length", "model_context_window_exceeded"),
        ("insufficient_system_resource", "end_turn"),
    ],
)
def test_finish_reasons(finish, reason):
    """Case 35."""
    assert stream({"content": "Hi"}, finish=finish)[-2]["delta"]["stop_reason"] == reason


def test_a_stop_sequence_is_named_where_the_provider_tells():
    last = msgspec.json.decode(chunk(finish="stop"))
    last["choices"][0]["stop_reason"] = "END"
    out = run(BRIDGE, STREAM, sse(chunk({"content": "Hi"}), msgspec.json.encode(last), b"[DONE]"))

    assert events_of(out)[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}


def test_a_refusal_is_told_as_text_and_as_the_reason():
    """Case 31."""
    events = stream({"refusal": "I'd rather not."})

    assert events[2]["delta"]["text"] == "I'd rather not."
    assert events[-2]["delta"]["stop_reason"] == "refusal"


def test_content_in_parts_and_arguments_as_an_object_are_understood():
    """Mistral's reasoning models, and Ollama's calls."""
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": "Yes."},
    ]
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    choice = {"index": 0, "message": {"content": content, "tool_calls": [call]}, "finish_reason": "stop"}
    body = msgspec.json.encode({"id": "c1", "model": "m", "choices": [choice], "usage": USAGE})

    message = msgspec.json.decode(run(BRIDGE, ask(), body, head=JSON_HEAD))

    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
    assert message["content"][2]["input"] == {"x": 1}
    assert message["stop_reason"] == "tool_use"
    assert message["usage"]["input_tokens"] == 20


@pytest.mark.parametrize("arguments", ['{"x":', "[1]", "1", "nonsense"])
def test_arguments_that_are_no_object_are_handed_on_as_text(arguments):
    """Case 28."""
    call = {"id": "a", "function": {"name": "f", "arguments": arguments}}
    choice = {"index": 0, "message": {"content": None, "tool_calls": [call]}, "finish_reason": "length"}
    body = msgspec.json.encode({"id": "c1", "model": "m", "choices": [choice]})

    message = msgspec.json.decode(run(BRIDGE, ask(), body, head=JSON_HEAD))

    assert message["content"][0]["input"] == {"_raw": arguments}


def test_text_that_is_no_proper_unicode_is_mended():
    body = sse(chunk({"content": "a"}).replace(b'"a"', b'"a\\ud83d"'), chunk(finish="stop"), b"[DONE]")
    body = body.replace(b'"id":"c1"', b'"id":"c\xff"', 1)

    assert "\ufffd" in run(BRIDGE, STREAM, body).decode()


# -- requests ------------------------------------------------------------------------------------------------


def test_numbers_keep_their_spelling():
    """Case 37."""
    body = b'{"model":"m","max_tokens":5,"messages":[],"temperature":1.0,"top_p":1e-1}'

    chat = BRIDGE.open(call_of(Dialect.ANTHROPIC_MESSAGES, body)).call.body

    assert b'"temperature":1.0' in chat
    assert b'"top_p":1e-1' in chat


def test_a_schema_keeps_its_bytes():
    """Case 29."""
    schema = b'{"type": "object", "properties": {"n": {"maximum": 9007199254740993.0}}, "$defs": {}}'
    body = b'{"model":"m","max_tokens":5,"messages":[],"tools":[{"name":"f","input_schema":' + schema + b"}]}"

    assert schema in BRIDGE.open(call_of(Dialect.ANTHROPIC_MESSAGES, body)).call.body


def test_files_are_carried_over():
    pdf = {
        "type": "document",
        "title": "a.pdf",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "AA"},
    }
    text = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "Body"}}
    found = {"type": "search_result", "title": "S", "source": "https://x", "content": [{"type": "text", "text": "C"}]}

    chat, _ = opened(messages=[{"role": "user", "content": [pdf, text, found]}])

    assert chat["messages"][0]["content"] == [
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
        {"type": "text", "text": "T\n\nBody"},
        {"type": "text", "text": "S\nhttps://x\nC"},
    ]


def test_a_result_that_is_a_picture_only_says_where_it_is():
    image = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [image]}

    chat, _ = opened(messages=[{"role": "user", "content": [result]}])

    assert [message["role"] for message in chat["messages"]] == ["tool", "user"]
    assert chat["messages"][0]["content"]
    assert chat["messages"][1]["content"] == [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8192}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8193}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "max"),
        ({"thinking": {"type": "disabled"}}, None),
    ],
)
def test_how_hard_to_think(members, wanted):
    assert opened(**members)[0].get("reasoning_effort") == wanted


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_which_tool_to_call(choice, wanted):
    tools = [{"name": "f", "input_schema": {"type": "object"}, "strict": True}]

    chat, _ = opened(tools=tools, tool_choice=choice)

    assert chat["tool_choice"] == wanted
    assert chat["tools"][0]["function"]["strict"] is True
    assert "tool_choice" not in opened(tools=[], tool_choice=choice)[0]


def test_what_cannot_be_carried_and_may_be_dropped_is_told():
    _, dropped = opened(
        top_k=5, context_management={"edits": []}, speed="fast", unheard_of=1, cache_control={"type": "ephemeral"}
    )

    assert set(dropped) == {"top_k", "context_management", "speed", "unheard_of", "cache_control"}


KEPT = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
MARKED = {
    "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind.", **KEPT}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi", **KEPT}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {}, **KEPT},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "Rain.", **KEPT}]},
    ],
    "tools": [{"name": "look", "input_schema": {"type": "object"}, **KEPT}],
}


def test_what_is_to_be_cached_is_handed_on_to_whom_it_tells_something():
    found = BRIDGE.open(ask(**MARKED), frozenset({"cache_control"}))
    chat = msgspec.json.decode(found.call.body)
    system, user, assistant, tool = chat["messages"]

    assert found.dropped == ()
    assert system["content"] == [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind.", **KEPT}]
    assert user["content"] == [{"type": "text", "text": "Hi", **KEPT}]
    assert {name: assistant[name] for name in ("content", "cache_control")} == {"content": "I look.", **KEPT}
    assert {name: tool[name] for name in ("content", "cache_control")} == {"content": "Rain.", **KEPT}
    assert chat["tools"][0]["cache_control"] == KEPT["cache_control"]


def test_what_is_to_be_cached_is_told_to_nobody_else():
    chat, dropped = opened(**MARKED)

    assert dropped == ("cache_control",)
    assert "cache_control" not in str(chat)
    assert chat["messages"][0]["content"] == "Be brief.\n\nBe kind."


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"stream": "true"}, "stream"),
        ({"temperature": "hot"}, "temperature"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}, "messages[0].content[0]"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "messages[0].content[0].source",
        ),
        ({"output_config": {"format": {"type": "grammar"}}}, "output_config.format"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(members, param):
    """Case 60 among them."""
    with pytest.raises(BadRequest) as caught:
        opened(**members)

    assert caught.value.param == param


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "text", "user", "assistant", "tool_use"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "text", "role", "content", "source", "id", "name", "input", "tool_use_id", "data", "format"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
NAMES = ["messages", "system", "tools", "tool_choice", "thinking", "output_config", "metadata", "stop_sequences"]


@given(st.dictionaries(st.sampled_from(NAMES), JUNK))
def test_any_request_is_carried_or_refused(members):
    try:
        found = BRIDGE.open(ask(**members))
    except BadRequest:
        return
    assert msgspec.json.decode(found.call.body)["messages"] is not None


BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "document", "tool_use", "tool_result", "thinking", "search_result"])},
    optional={
        "text": st.text(max_size=4),
        "id": st.text(max_size=4),
        "name": st.text(max_size=4),
        "tool_use_id": st.text(max_size=4),
        "input": JUNK,
        "content": JUNK,
        "source": JUNK,
        "is_error": st.booleans(),
    },
)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.lists(BLOCK, max_size=3)), max_size=4))
def test_any_history_is_carried_or_refused(history):
    messages = [{"role": role, "content": content} for role, content in history]
    try:
        found = BRIDGE.open(ask(messages=messages))
    except BadRequest:
        return
    assert found.call.dialect is Dialect.OPENAI_CHAT


@pytest.mark.parametrize("bad", [b"\xff", b'"\xff"', b'{"a":"\xff"}'])
def test_text_that_is_none_is_refused(bad):
    body = b'{"model":"m","max_tokens":5,"messages":[],"tools":[{"name":"f","input_schema":' + bad + b"}]}"
    call = call_of(Dialect.ANTHROPIC_MESSAGES, {"model": "m"})

    with pytest.raises(BadRequest):
        BRIDGE.open(msgspec.structs.replace(call, body=body))
