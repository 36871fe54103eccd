"""A chat completion read for those who say it in other words."""

from typing import Any

import msgspec
import pytest

from gateway.api import BadRequest, Call, Dialect, peek
from gateway_adapters.chat_request import (
    ChatRequest,
    Message,
    Part,
    ToolCall,
    arguments_of,
    data_of,
    dropped_members,
    parts_of,
    read_request,
    text_of,
    tools_of,
)

CARRIED = frozenset({"temperature"})
FUNCTIONS = [{"type": "function", "function": {"name": name}} for name in ("a", "b", "c")]


def request(body: bytes = b"{}", **members: Any) -> ChatRequest:
    body = msgspec.json.encode(members) if members else body
    return read_request(
        Call(
            id="1",
            dialect=Dialect.OPENAI_CHAT,
            method="POST",
            path=b"/chat/completions",
            query=b"",
            headers=[],
            body=body,
            peek=peek(body),
            model="m",
        )
    )


def test_numbers_keep_their_spelling() -> None:
    """Case 37."""
    read = request(b'{"temperature": 1.0, "seed": 9007199254740993, "top_p":1e-7}')

    assert [bytes(read.member(name) or b"") for name in ("temperature", "seed", "top_p")] == [
        b"1.0",
        b"9007199254740993",
        b"1e-7",
    ]
    assert read.member("stop") is None


def test_values_that_say_nothing_are_not_told_as_dropped() -> None:
    body = (
        b'{"model":"m","messages":[],"n":1,"logprobs":false,"store":false,"presence_penalty":0,"metadata":{},'
        b'"user":null,"stop":[],"service_tier":"auto","parallel_tool_calls":true,"temperature":0,"seed":1,"best_of":1}'
    )

    assert dropped_members(request(body).members, CARRIED, provider="X") == ("seed",)


@pytest.mark.parametrize("members", [{"n": 2}, {"logprobs": True}, {"audio": {"voice": "a"}}, {"functions": [1]}])
def test_what_the_answer_depends_on_is_refused(members: dict[str, Any]) -> None:
    """Case 23."""
    with pytest.raises(BadRequest, match="can't be had from X") as caught:
        dropped_members(request(**members).members, CARRIED, provider="X")

    assert caught.value.param == next(iter(members))


@pytest.mark.parametrize(
    ("choice", "names", "kind", "name"),
    [
        (None, "abc", "", ""),
        ("auto", "abc", "", ""),
        ("none", "abc", "none", ""),
        ("required", "abc", "required", ""),
        ({"type": "function", "function": {"name": "b"}}, "abc", "required", "b"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": FUNCTIONS[:2]}},
            "ab",
            "required",
            "",
        ),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": FUNCTIONS[2:]}}, "c", "", ""),
    ],
)
def test_tool_choices(choice: object, names: str, kind: str, name: str) -> None:
    tools = tools_of(request(tools=FUNCTIONS, tool_choice=choice))

    assert ("".join(tool.name for tool in tools.tools), tools.choice, tools.name) == (names, kind, name)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"a": 1.0}', b'{"a": 1.0}'),
        ("", b"{}"),
        (None, b"{}"),
        (" ", b"{}"),
        ("[1]", b'{"_raw":"[1]"}'),
        ("not json", b'{"_raw":"not json"}'),
        ('{"a":', b'{"_raw":"{\\"a\\":"}'),
    ],
)
def test_arguments_are_an_object_in_any_case(written: str | None, read: bytes) -> None:
    """Case 28."""
    call = ToolCall()
    call.function.arguments = written

    assert bytes(arguments_of(call)) == read


@pytest.mark.parametrize(
    ("url", "media_type"),
    [
        ("data:image/jpg;base64,/9j/4AAQSkZJRgABAQ==", "image/jpeg"),
        ("data:image/png;base64,/9j/4AAQSkZJRgABAQ==", "image/jpeg"),
        ("DATA:image/PNG;base64,iVBORw0KGgo=", "image/png"),
        ("data:;base64,JVBERi0xLjQ=", "application/pdf"),
        ("data:text/csv;charset=utf-8;base64,YSxi", "text/csv"),
        # Sound, which begins as a picture may.
        ("data:audio/wav;base64,UklGRiQAAABXQVZFZm10IA==", "audio/wav"),
    ],
)
def test_the_first_bytes_know_better_than_the_label(url: str, media_type: str) -> None:
    found = data_of(url)

    assert found == (media_type, url.partition(",")[2])


def test_another_url_is_no_data() -> None:
    assert data_of("https://x.example/a.png") is None


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("data:text/plain,a%20b", ("text/plain", "YSBi")),
        ("data:image/jpg;base64,/9j/\n4AAQ\r\nSkZJ", ("image/jpeg", "/9j/4AAQSkZJ")),
        ("data:;base64,JVBERi0x%4C%6A%51=", ("application/pdf", "JVBERi0xLjQ=")),
    ],
)
def test_data_is_read_however_it_is_written(url: str, found: tuple[str, str]) -> None:
    assert data_of(url) == found


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:image/png;base64,!!!!"])
def test_data_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        data_of(url)

    assert caught.value.param == "messages"


def test_empty_texts_are_left_out_and_refusals_are_text() -> None:
    parts = [Part(type="text", text=""), Part(type="refusal", refusal="No."), Part(type="text", text="x")]
    message = Message(role="assistant", content=parts, refusal="Really.")

    assert text_of(message) == "No.xReally."
    assert parts_of(Message(role="assistant", content="")) == []
    assert parts_of(Message(role="assistant")) == []


def test_a_mark_on_a_message_is_one_on_its_last_part() -> None:
    read = request(
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "cache_control": {"type": "ephemeral"},
            }
        ]
    )

    first, last = parts_of(read.messages[0])
    assert bytes(first.cache_control) == b""
    assert bytes(last.cache_control) == b'{"type":"ephemeral"}'


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"messages":[{"role":5}]}', "messages[0].role"),
        (b'{"messages":{}}', "messages"),
        (b'{"tools":[{"function":{"name":1}}]}', "tools[0].function.name"),
        (b'{"max_tokens":1.5}', "max_tokens"),
        (b'{"temperature":NaN}', None),
    ],
)
def test_a_member_of_the_wrong_kind_is_named(body: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        request(body)

    assert caught.value.param == param
    assert "$" not in caught.value.message
