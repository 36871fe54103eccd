"""What Anthropic is sent for what a chat client asks; the golden cases show whole requests."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api import BadRequest
from gateway_adapters.anthropic.request import BUDGET_MIN, translate

HI = {"role": "user", "content": "Hi"}
WEATHER = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
BUDGET, ADAPTIVE, ALWAYS, OLD = (
    "claude-sonnet-4-5",
    "claude-opus-5",
    "claude-sonnet-5-5",
    "claude-3-5-sonnet-20241022",
)


def turns(chat: Any, *messages: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat.sent({"messages": messages})["messages"]
    return found


# -- messages ------------------------------------------------------------------------------------------------


def test_results_of_tools_come_before_what_the_user_says(chat):
    """Case 27: four results are one turn."""
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for n in range(4)]
    results = [{"role": "tool", "tool_call_id": f"c{n}", "content": str(n)} for n in range(4)]

    found = turns(chat, HI, {"role": "assistant", "tool_calls": calls}, HI, *results, HI)

    assert [turn["role"] for turn in found] == ["user", "assistant", "user"]
    kinds = [block["type"] for block in found[2]["content"]]
    assert kinds == ["tool_result"] * 4 + ["text"] * 2
    assert [block["tool_use_id"] for block in found[2]["content"][:4]] == ["c0", "c1", "c2", "c3"]


@pytest.mark.parametrize(
    "content", [{}, {"content": None}, {"content": ""}, {"content": [{"type": "text", "text": " "}]}]
)
def test_an_assistant_that_only_calls_has_no_text(chat, content):
    """Case 25."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}

    found = turns(chat, HI, {"role": "assistant", **content, "tool_calls": [call]})

    assert [block["type"] for block in found[1]["content"]] == ["tool_use"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
        ("", {}),
        ("null", {}),
        ("{bad", {"_raw": "{bad"}),
        ("[1]", {"_raw": "[1]"}),
        ('"text"', {"_raw": '"text"'}),
        ("{" * 100_000, {"_raw": "{" * 100_000}),
        ({"a": 1}, {"a": 1}),
    ],
)
def test_arguments_are_an_object(chat, arguments, expected):
    """Case 28."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}

    found = turns(chat, HI, {"role": "assistant", "tool_calls": [call]})

    assert found[1]["content"][0]["input"] == expected


def test_numbers_in_arguments_and_schemas_keep_their_digits(chat):
    body = (
        b'{"messages":[{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":'
        b'{"name":"f","arguments":"{\\"n\\": 1.0, \\"m\\": 12345678901234567890123}"}}]}],'
        b'"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","x": 1e-7, "maximum":1.00}}}]}'
    )

    sent = chat.send(body).body

    assert b'"input":{"n": 1.0, "m": 12345678901234567890123}' in sent
    assert b'"input_schema":{"type":"object","x": 1e-7, "maximum":1.00}' in sent


def test_functions_of_the_old_kind_get_an_id(chat):
    asked = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}

    found = turns(chat, HI, asked, {"role": "function", "name": "f", "content": "21"})

    assert found[1]["content"][0]["id"] == found[2]["content"][0]["tool_use_id"] == "call_fn_1"


def test_what_the_system_says_goes_in_front_in_order(chat):
    """Case 30."""
    said = [{"role": role, "content": text} for role, text in [("system", "1"), ("developer", "2"), ("user", "Hi")]]

    sent = chat.sent({"messages": [*said, {"role": "system", "content": "3"}]})

    assert [block["text"] for block in sent["system"]] == ["1", "2", "3"]
    assert sent["messages"] == [{"role": "user", "content": "Hi"}]


def test_what_the_assistant_is_to_go_on_from_ends_in_no_space(chat):
    assert turns(chat, HI, {"role": "assistant", "content": "So: \n"})[-1]["content"] == "So:"


def test_thoughts_of_another_provider_stay_out(chat):
    details = [
        {"type": "reasoning.text", "text": "a", "signature": "s", "format": "google-gemini-v1"},
        {"type": "reasoning.text", "text": "b", "signature": "t"},
        {"type": "reasoning.summary", "summary": "c"},
    ]

    found = turns(chat, HI, {"role": "assistant", "content": "Yes", "reasoning_details": details}, HI)

    assert found[1]["content"][0] == {"type": "thinking", "thinking": "b", "signature": "t"}
    assert len(found[1]["content"]) == 2


def test_blocks_of_thoughts_go_back_as_they_are(chat):
    blocks = [{"type": "thinking", "thinking": "a", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]

    assert (
        turns(chat, HI, {"role": "assistant", "content": "b", "thinking_blocks": blocks})[1]["content"][:2] == blocks
    )


# -- pictures and files --------------------------------------------------------------------------------------

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"


def part(chat: Any, **members: object) -> Any:
    return turns(chat, {"role": "user", "content": [members]})[0]["content"][0]


@pytest.mark.parametrize(
    ("url", "kind", "data"),
    [
        (f"data:image/jpeg;base64,{PNG}", "image/png", PNG),
        ("data:image/jpg;base64,AAAA", "image/jpeg", "AAAA"),
        ("data:image/webp;charset=x;base64,AA\nAA", "image/webp", "AAAA"),
        ("data:image/gif,GIF89a%00", "image/gif", "R0lGODlhAA=="),
    ],
)
def test_a_picture_is_what_its_beginning_says(chat, url, kind, data):
    block = part(chat, type="image_url", image_url={"url": url})

    assert block == {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def test_files(chat):
    text = part(chat, type="file", file={"file_data": "data:text/csv;base64,YSxi", "filename": "a.csv"})
    bare = part(chat, type="file", file={"file_data": "JVBERi0xLjQK"})
    kept = chat.send({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file_01"}}]}]})

    assert text["source"] == {"type": "text", "media_type": "text/plain", "data": "a,b"}
    assert text["title"] == "a.csv"
    assert bare["source"]["media_type"] == "application/pdf"
    assert b'"source":{"type":"file","file_id":"file_01"}' in kept.body
    assert (b"anthropic-beta", b"files-api-2025-04-14") in kept.headers


@pytest.mark.parametrize(
    "content",
    [
        {"type": "image_url", "image_url": {"url": "ftp://a/b.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,PHN2Zz4="}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64"}},
        {"type": "image_url"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-abc"}},
        {"type": "video_url", "video_url": {"url": "https://a/b"}},
    ],
)
def test_what_there_is_no_block_for_is_refused_by_name(chat, content):
    with pytest.raises(BadRequest) as caught:
        turns(chat, HI, {"role": "user", "content": [{"type": "text", "text": "x"}, content]})

    assert caught.value.param == "messages[1].content[1]"


# -- how to answer -------------------------------------------------------------------------------------------


def test_the_bound_of_the_answer(chat):
    body = {"messages": [HI]}

    assert chat.sent(body, model=BUDGET)["max_tokens"] == 64_000
    assert chat.sent(body, model=BUDGET, bound=1000)["max_tokens"] == 1000
    assert chat.sent({**body, "max_tokens": 5, "max_completion_tokens": 7}, bound=1000)["max_tokens"] == 7
    assert chat.sent({**body, "max_tokens": None}, bound=1000)["max_tokens"] == 1000


@pytest.mark.parametrize(
    ("model", "effort", "thinking", "level"),
    [
        (OLD, "high", None, None),
        (BUDGET, "low", {"type": "enabled", "budget_tokens": 1024}, None),
        (BUDGET, "max", {"type": "enabled", "budget_tokens": 32_000}, None),
        (BUDGET, "none", None, None),
        ("claude-opus-4-5", "xhigh", {"type": "enabled", "budget_tokens": 32_000}, "high"),
        ("claude-opus-4-6", "xhigh", {"type": "adaptive", "display": "summarized"}, "high"),
        (ADAPTIVE, "minimal", {"type": "adaptive", "display": "summarized"}, "low"),
        (ADAPTIVE, "none", {"type": "disabled"}, None),
        (ALWAYS, "xhigh", {"type": "adaptive", "display": "summarized"}, "xhigh"),
        (ALWAYS, "none", None, None),
    ],
)
def test_effort_by_family(chat, model, effort, thinking, level):
    sent = chat.sent({"messages": [HI], "reasoning_effort": effort}, model=model)

    assert sent.get("thinking") == thinking
    assert sent.get("output_config", {}).get("effort") == level


@pytest.mark.parametrize("bound", [1, 1024, 1025, 2000, 4000, 100_000])
def test_a_budget_leaves_room_for_the_answer(chat, bound):
    request = chat.send({"messages": [HI], "reasoning_effort": "high", "max_tokens": bound}, model=BUDGET)

    thinking = msgspec.json.decode(request.body).get("thinking")
    if bound <= BUDGET_MIN:
        assert thinking is None
        assert "reasoning_effort" in request.dropped
    else:
        assert BUDGET_MIN <= thinking["budget_tokens"] < bound


def test_a_model_with_a_budget_does_not_think_about_what_it_did_not_think_before(chat):
    """It would refuse; and most chat clients lose its thoughts."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    loop = [HI, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "x"}]
    body = {"reasoning_effort": "high", "tools": [WEATHER]}

    inside = chat.send({"messages": loop, **body}, model=BUDGET)

    assert b'"thinking"' not in inside.body
    assert inside.dropped == ("reasoning_effort",)
    assert "thinking" in chat.sent({"messages": [*loop, HI], **body}, model=BUDGET)
    assert "thinking" in chat.sent({"messages": loop, **body}, model=ADAPTIVE)


def test_thinking_makes_way_for_a_tool_that_must_be_called(chat):
    body = {"messages": [HI], "reasoning_effort": "high", "tools": [WEATHER], "tool_choice": "required"}

    assert "thinking" not in chat.sent(body, model=BUDGET)
    adaptive = chat.sent(body, model=ADAPTIVE)
    assert "thinking" not in adaptive
    assert adaptive["output_config"] == {"effort": "high"}


def test_openrouters_wish_to_reason(chat):
    def thinking(wish: object) -> object:
        return chat.sent({"messages": [HI], "reasoning": wish}, model=BUDGET).get("thinking")

    assert thinking({"max_tokens": 2000}) == {"type": "enabled", "budget_tokens": 2000}
    assert thinking({"effort": "medium"}) == {"type": "enabled", "budget_tokens": 4096}
    assert thinking({"enabled": True}) == {"type": "enabled", "budget_tokens": 4096}
    assert thinking({"enabled": False}) is None


def test_anthropics_own_members_are_told(chat):
    own = {"thinking": {"type": "enabled", "budget_tokens": 5000}, "mcp_servers": [{"url": "x"}], "top_k": 3}

    sent = chat.sent({"messages": [HI], **own, "reasoning_effort": "low", "temperature": 0.3}, model=BUDGET)

    assert sent["thinking"] == own["thinking"]
    assert sent["mcp_servers"] == own["mcp_servers"]
    assert "temperature" not in sent
    assert "top_k" not in sent


@pytest.mark.parametrize(
    ("model", "given", "sent", "dropped"),
    [
        (OLD, {"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5, "top_p": 0.5}, ()),
        (OLD, {"temperature": 1.7}, {"temperature": 1.0}, ("temperature",)),
        (BUDGET, {"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5}, ("top_p",)),
        (BUDGET, {"temperature": 0.5, "top_p": 1}, {"temperature": 0.5}, ()),
        (BUDGET, {"top_p": 0.5}, {"top_p": 0.5}, ()),
        (ADAPTIVE, {"temperature": 0.5, "top_p": 0.5}, {}, ("temperature", "top_p")),
        (ADAPTIVE, {"temperature": 1, "top_p": 1}, {}, ()),
        ("kimi-k3", {"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5, "top_p": 0.5}, ()),
    ],
)
def test_sampling_by_family(chat, model, given, sent, dropped):
    request = chat.send({"messages": [HI], **given}, model=model)

    made = msgspec.json.decode(request.body)
    assert {name: made[name] for name in ("temperature", "top_p") if name in made} == sent
    assert request.dropped == dropped


# -- tools ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("none", {"type": "none"}),
        ("auto", {"type": "auto"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}),
    ],
)
def test_which_tool_to_call(chat, choice, sent):
    body = {"messages": [HI], "tool_choice": choice}

    assert chat.sent({**body, "tools": [WEATHER]})["tool_choice"] == sent
    assert "tool_choice" not in chat.sent(body)


def test_tools_that_may_not_be_called_are_not_told(chat):
    tools = [{"type": "function", "function": {"name": name}} for name in "abc"]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]}

    sent = chat.sent(
        {"messages": [HI], "tools": tools, "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}
    )

    assert [tool["name"] for tool in sent["tools"]] == ["b"]
    assert sent["tool_choice"] == {"type": "any"}


def test_tools_of_anthropics_own_are_told_as_they_are(chat):
    own = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}

    assert chat.sent({"messages": [HI], "tools": [own, WEATHER]})["tools"][0] == own
    with pytest.raises(BadRequest) as caught:
        chat.sent({"messages": [HI], "tools": [{"type": "code_interpreter"}]})
    assert caught.value.param == "tools[0].type"


def test_a_schema_is_told_in_the_way_that_the_model_knows(chat):
    body = {"messages": [HI], "response_format": SCHEMA}

    assert chat.sent(body, model=BUDGET)["output_config"]["format"]["type"] == "json_schema"
    assert chat.sent(body, model=OLD)["tool_choice"]["name"] == "json_output"
    both = chat.sent({**body, "tools": [WEATHER]}, model=OLD)
    assert [tool["name"] for tool in both["tools"]] == ["f", "json_output"]
    assert both["tool_choice"] == {"type": "any"}
    named = chat.send({**body, "tools": [WEATHER], "tool_choice": "required"}, model=OLD)
    assert named.dropped == ("response_format",)


def test_json_without_a_schema_is_asked_for_in_words(chat):
    sent = chat.sent({"messages": [HI], "response_format": {"type": "json_object"}})

    assert "JSON" in sent["system"][0]["text"]


@pytest.mark.parametrize("member", [{"n": 2}, {"best_of": 3}, {"logprobs": True}, {"modalities": ["text", "audio"]}])
def test_what_no_answer_could_satisfy_is_refused(chat, member):
    """Case 23."""
    with pytest.raises(BadRequest) as caught:
        chat.sent({"messages": [HI], **member})

    assert caught.value.param in member


def test_what_says_nothing_is_not_worth_a_word(chat):
    idle = {"n": 1, "logprobs": False, "presence_penalty": 0, "logit_bias": {}, "store": False, "seed": None}

    assert chat.send({"messages": [HI], **idle, "modalities": ["text"], "verbosity": "medium"}).dropped == ()


# -- anything ------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PARTS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=5)),
    st.builds(
        lambda url: {"type": "image_url", "image_url": {"url": url}},
        st.sampled_from(["https://a/b", f"data:image/png;base64,{PNG}", "x"]),
    ),
    VALUES,
)
CONTENTS = st.one_of(st.none(), st.text(max_size=6), st.lists(PARTS, max_size=3), VALUES)
IDS = st.sampled_from(["c1", "c2", "c:3", ""])
CALLS = st.builds(
    lambda call_id, name, arguments: {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    },
    IDS,
    st.sampled_from(["f", "a.b", ""]),
    st.sampled_from(["{}", '{"a":1}', "{", ""]) | VALUES,
)
MESSAGES = st.one_of(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "system", "developer", "user", "x"]),
        CONTENTS,
    ),
    st.builds(
        lambda content, calls: {"role": "assistant", "content": content, "tool_calls": calls},
        CONTENTS,
        st.lists(CALLS, max_size=3) | VALUES,
    ),
    st.builds(lambda call_id, content: {"role": "tool", "tool_call_id": call_id, "content": content}, IDS, CONTENTS),
    st.builds(lambda content: {"role": "function", "name": "f", "content": content}, CONTENTS),
    VALUES,
)
SOUND = st.one_of(
    st.builds(lambda text: {"role": "user", "content": text}, st.text(max_size=4)),
    st.builds(
        lambda text, calls: {"role": "assistant", "content": text, "tool_calls": calls},
        st.text(max_size=4),
        st.lists(
            st.builds(
                lambda call_id: {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}},
                st.sampled_from(["a", "b", "c"]),
            ),
            max_size=3,
        ),
    ),
    st.builds(
        lambda call_id, text: {"role": "tool", "tool_call_id": call_id, "content": text},
        st.sampled_from(["a", "b", "c"]),
        st.text(max_size=4),
    ),
    st.builds(lambda text: {"role": "system", "content": text}, st.text(max_size=4)),
)
MEMBERS = st.dictionaries(
    st.sampled_from(["tools", "tool_choice", "response_format", "stop", "reasoning_effort", "reasoning", "thinking", "temperature",
                     "top_p", "user", "metadata", "n", "max_tokens", "output_config", "web_search_options", "functions", "function_call",
                     "service_tier", "modalities", "parallel_tool_calls", "x"]),
    VALUES | st.sampled_from(["auto", "high", [WEATHER], {"type": "function", "function": {"name": "f"}}, SCHEMA, 1, "x"]),
    max_size=5,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(MESSAGES, max_size=6) | VALUES, MEMBERS, st.sampled_from([OLD, BUDGET, ADAPTIVE, ALWAYS, "other"]))
def test_anything_is_told_or_refused(messages, members, model):
    """Never an error of ours: 500 is not for what a caller wrote."""
    body = msgspec.json.encode({"messages": messages, **members})
    refused: BadRequest | None = None

    try:
        made = translate(body, model=model, output_tokens_max=None)
    except BadRequest as error:
        refused = error

    if refused is None:
        _check_turns(msgspec.json.decode(made.body)["messages"])
    else:
        assert refused.param


@settings(max_examples=300, deadline=None)
@given(st.lists(SOUND, max_size=10))
def test_history_is_always_told(messages):
    made = translate(msgspec.json.encode({"messages": messages}), model=ADAPTIVE, output_tokens_max=None)

    sent = msgspec.json.decode(made.body)["messages"]
    _check_turns(sent)
    told = [block["text"] for turn in sent for block in _blocks(turn) if block["type"] == "text"]
    users = [m["content"] for m in messages if m["role"] == "user" and m["content"].strip()]
    assert [text for text in told if text in users] or not users
    results = [block["tool_use_id"] for turn in sent for block in _blocks(turn) if block["type"] == "tool_result"]
    assert results == [m["tool_call_id"] for m in messages if m["role"] == "tool"]


def _blocks(turn: dict[str, Any]) -> list[dict[str, Any]]:
    content = turn["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _check_turns(sent: list[dict[str, Any]]) -> None:
    """No empty turn, no empty text, and in a user's turn the results of tools before anything else."""
    for before, turn in zip([{"role": ""}, *sent], sent, strict=False):
        blocks = _blocks(turn)
        assert blocks
        assert all(block["text"].strip() for block in blocks if block["type"] == "text")
        kinds = [block["type"] == "tool_result" for block in blocks]
        assert kinds == sorted(kinds, reverse=True)
        if turn["role"] == "user":
            assert before["role"] != "user"
