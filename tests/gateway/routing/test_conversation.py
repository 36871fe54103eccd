"""The name of a conversation."""

import msgspec
import pytest

from gateway.exchange import Call
from gateway.routing.conversation import PREFIX_BYTES, conversation_of
from tests.gateway.routing.offers import call


def chat(*turns: str, **members: object) -> Call:
    messages = [{"role": "user", "content": turn} for turn in turns]
    return call(msgspec.json.encode({"model": "m", **members, "messages": messages}))


def named(one: Call, *headers: tuple[bytes, bytes]) -> Call:
    return msgspec.structs.replace(one, headers=[*headers])


def test_a_short_prompt_has_no_name():
    assert conversation_of(chat("Hi")) == b""
    assert conversation_of(call(b"{}")) == b""


def test_every_turn_has_the_name_of_the_first():
    first = "x" * PREFIX_BYTES

    assert conversation_of(chat(first)) == conversation_of(chat(first, "and", "so on")) != b""
    assert conversation_of(chat(first)) != conversation_of(chat("y" + first))


@pytest.mark.parametrize("name", ["session_id", "prompt_cache_key"])
def test_a_name_in_the_body_counts_for_more_than_the_prompt(name):
    one = conversation_of(chat("a" * PREFIX_BYTES, **{name: "s1"}))

    assert one == conversation_of(chat("b", **{name: "s1"}))
    assert one != conversation_of(chat("b", **{name: "s2"}))


def test_a_name_in_a_header_counts_most():
    one = named(chat("a", session_id="s1"), (b"x-session-id", b"h"))

    assert conversation_of(one) == conversation_of(named(chat("b", session_id="s2"), (b"x-session-id", b"h")))
    assert conversation_of(one) != conversation_of(chat("a", session_id="s1"))


def test_another_model_is_another_conversation():
    other = msgspec.structs.replace(chat("a", session_id="s"), model="n")

    assert conversation_of(other) != conversation_of(chat("a", session_id="s"))
