"""A stream of Anthropic's as a chat client gets it; the golden cases show whole ones."""

import json
import random
import sys
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api import ResponseHead, Usage
from gateway_adapters.anthropic.answer import CITATIONS_MAX
from gateway_adapters.anthropic.customs import CustomInput
from gateway_adapters.anthropic.stream import ChunkTap
from gateway_adapters.chat_answer import ANSWER_BYTES_MAX, unreadable

JSON = ResponseHead(200, [(b"content-type", b"application/json")])


def event(kind: str, **members: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **members}))


def start(**usage: object) -> bytes:
    report = {"input_tokens": 25, "output_tokens": 1, **usage}
    return event("message_start", message={"id": "msg_1", "model": "claude-x", "content": [], "usage": report})


def delta(kind: str, **members: object) -> bytes:
    return event("content_block_delta", index=0, delta={"type": kind, **members})


def block(kind: str, *pieces: bytes, **members: object) -> bytes:
    opened = event("content_block_start", index=0, content_block={"type": kind, **members})
    return opened + b"".join(pieces) + event("content_block_stop", index=0)


def text(*pieces: str) -> bytes:
    return block("text", *(delta("text_delta", text=piece) for piece in pieces), text="")


def finish(reason: str | None = "end_turn", **usage: object) -> bytes:
    report = {"output_tokens": 9, **usage}
    return event("message_delta", delta={"stop_reason": reason}, usage=report) + event("message_stop")


def chunks(data: bytes) -> list[dict[str, Any]]:
    """What an SDK makes of it; every event is whole."""
    assert data == b"" or data.endswith(b"\n\n")
    events = [each for each in data.split(b"\n\n") if each and not each.startswith(b":")]
    assert all(each.startswith(b"data: ") for each in events)
    return [msgspec.json.decode(each[6:]) for each in events if each != b"data: [DONE]"]


def content(data: bytes) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks(data) if chunk["choices"])


def play(tap: Any, *pieces: bytes) -> bytes:
    return b"".join([*(tap.feed(piece) for piece in pieces), tap.end()])


# -- what comes through --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "finished"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("tool_use", "stop"),
        ("something_new", "stop"),
    ],
)
def test_why_it_ended(chat, said, finished):
    """Case 35. A tool's use is one only where a tool of the caller's was used."""
    found = chunks(play(chat.tap(), start() + text("a") + finish(said)))

    assert found[-1]["choices"][0]["finish_reason"] == finished
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in found[:-1])


def test_a_call_without_arguments(chat):
    """Case 22."""
    called = block("tool_use", delta("input_json_delta", partial_json=""), id="t1", name="f", input={})

    calls = [
        call
        for chunk in chunks(play(chat.tap(), start() + called + called + finish("tool_use")))
        for call in chunk["choices"][0]["delta"].get("tool_calls", [])
    ]

    assert [(call["index"], call["function"]["arguments"]) for call in calls] == [
        (0, ""),
        (0, "{}"),
        (1, ""),
        (1, "{}"),
    ]


def test_a_call_that_comes_whole(chat):
    """Some servers send no pieces."""
    called = block("tool_use", id="t1", name="f", input={"a": "é"})

    found = chunks(play(chat.tap(), start() + called + finish("tool_use")))

    assert found[2]["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] == '{"a":"é"}'
    assert len(found) == 4


def test_line_ends_and_a_byte_order_mark(chat):
    whole = start() + text("One ", "two") + finish()

    for data in (whole.replace(b"\n", b"\r\n"), whole.replace(b"\n", b"\r"), b"\xef\xbb\xbf" + whole, whole[:-2]):
        tap = chat.tap()
        assert content(play(tap, data)) == "One two"
        assert tap.complete


def test_what_is_not_understood_says_nothing(chat):
    odd = b"event: x\ndata: nonsense\n\n" + event("new_kind") + block("new_block", delta("new_delta", text="z"))
    broken = b'event: content_block_delta\ndata: {"delta":\n\n'

    tap = chat.tap()
    found = play(tap, start() + odd + text("a"), broken, text("b") + finish())

    assert content(found) == "ab"
    assert tap.complete


def test_a_stream_without_a_beginning(chat):
    tap = chat.tap()

    assert content(play(tap, text("a") + finish())) == "a"
    assert tap.complete


def test_usage_has_a_chunk_of_its_own_only_where_it_was_asked_for(chat):
    """Case 94: what was kept and read is inside the prompt."""
    stream = start(cache_read_input_tokens=5, cache_creation_input_tokens=7) + text("a") + finish(input_tokens=26)

    asked = chunks(play(chat.tap(usage=True), stream))
    unasked = chunks(play(chat.tap(), stream))

    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["prompt_tokens"] == 38
    assert asked[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 5, "cache_write_tokens": 7}
    assert asked[-1]["usage"]["total_tokens"] == 47
    assert [chunk["usage"] for chunk in asked[:-1]] == [None] * (len(asked) - 1)
    assert all("usage" not in chunk for chunk in unasked)


def test_usage_where_nothing_was_reported(chat):
    opened = event("message_start", message={"id": "m", "model": "x"})
    ended = event("message_delta", delta={"stop_reason": "end_turn"}) + event("message_stop")
    tap = chat.tap(usage=True)

    found = chunks(play(tap, opened + text(*["four"] * 40) + ended))

    assert tap.usage() is None
    assert tap.delivered() == Usage(output_tokens=60, source="estimated")
    assert found[-1]["usage"]["completion_tokens"] == 60


def test_the_last_report_wins_member_by_member(chat):
    tap = chat.tap()

    play(
        tap,
        start(cache_creation_input_tokens=30, cache_creation={"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}),
        text("a"),
        finish(input_tokens=None, output_tokens_details={"thinking_tokens": 4}, server_tool_use={"web_search_requests": 2}),
    )  # fmt: skip

    assert tap.usage() == Usage(
        input_tokens=55,
        output_tokens=9,
        input_cache_write_tokens=10,
        input_cache_write_1h_tokens=20,
        output_reasoning_tokens=4,
        searches=2,
    )


# -- errors and cuts -----------------------------------------------------------------------------------------


def test_an_error_before_anything_was_said_has_sent_nothing(chat):
    """Case 73."""
    tap = chat.tap()

    sent = tap.feed(start() + event("ping") + event("error", error={"type": "overloaded_error", "message": "Full"}))

    assert sent == b""
    assert (tap.failure.blame, tap.failure.status, tap.failure.message) == ("provider", 529, "Full")
    assert tap.usage() is None
    assert tap.errored


def test_an_error_under_way_leaves_whole_chunks(chat):
    tap = chat.tap()
    failed = event("error", error={"type": "invalid_request_error", "message": "prompt is too long"})

    sent = tap.feed(start() + text("One ") + failed + text("never"))

    assert content(sent) == "One "
    assert (tap.failure.blame, tap.failure.code) == ("context", "context_length_exceeded")
    assert tap.feed(text("never")) == tap.end() == b""
    assert tap.usage().source == "partial"
    assert not tap.complete


def test_a_cut_stream_is_not_complete(chat):
    tap = chat.tap()

    tap.feed(start() + text(*["four"] * 50))

    assert not tap.complete
    assert tap.usage() == Usage(input_tokens=25, output_tokens=75, source="partial")


def test_an_event_that_is_too_long_is_a_failure(chat):
    tap = chat.tap()
    tap.feed(start())

    for _ in range(17):
        tap.feed(b"data: " + b"x" * 1024 * 1024)

    assert tap.failure.blame == "provider"


# -- an answer that is no stream -----------------------------------------------------------------------------


def test_an_error_with_a_good_status(chat):
    tap = chat.tap(stream=False)

    assert play(tap, b'{"type":"error","error":{"type":"overloaded_error","message":"Full"}}') == b""
    assert tap.failure.status == 529
    assert not tap.complete


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"content":[{"text":1}]}', b'{"content":'])
def test_an_answer_that_can_not_be_read(chat, body):
    tap = chat.tap(stream=False)

    assert play(tap, body) == b""
    assert tap.failure.blame == "provider"
    assert tap.usage() is None


def test_an_answer_that_is_too_long(chat):
    tap = chat.tap(stream=False)
    piece = b" " * (ANSWER_BYTES_MAX // 4)

    assert play(tap, *[piece] * 5) == b""
    assert tap.failure is not None


def test_whole_and_streamed_say_the_same(chat):
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "text", "text": "It is ", "citations": None},
        {"type": "text", "text": "sünny", "citations": [{"url": "https://a", "title": "A"}, {"document_index": 0}]},
        {"type": "tool_use", "id": "t1", "name": "a_x2E_b", "input": {"n": 1}},
        {"type": "tool_use", "id": "t2", "name": "custom_tool__sh", "input": {"input": 'say "é"\n'}},
        {"type": "tool_use", "id": "t3", "name": "f", "input": {}},
    ]
    message = {
        "id": "m",
        "model": "x",
        "content": blocks,
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 1, "output_tokens": 2},
    }
    body = msgspec.json.encode(message)

    whole = msgspec.json.decode(play(chat.tap(stream=False), body))["choices"][0]
    tap = chat.adapter.tap(chat.call({"stream": True, "web_search_options": {}}), JSON)
    streamed = assembled(chunks(play(tap, body)))

    said = whole["message"]
    assert streamed["content"] == said["content"] == "It is sünny"
    assert [call.get("function") or call["custom"] for call in streamed["tool_calls"]] == [
        call.get("function") or call["custom"] for call in said["tool_calls"]
    ]
    assert said["tool_calls"][1]["custom"] == {"name": "sh", "input": 'say "é"\n'}
    assert [{k: v for k, v in a.items() if k != "index"} for a in streamed["annotations"]] == said["annotations"]
    assert said["annotations"][0]["url_citation"]["start_index"] == 6
    assert streamed["reasoning_details"] == said["reasoning_details"]
    assert whole["finish_reason"] == streamed["finish_reason"] == "tool_calls"


def assembled(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What openai's stream helper makes of chunks: texts are added up, lists merged by index."""
    message: dict[str, Any] = {}
    for chunk in found:
        for choice in chunk["choices"]:
            _add(message, choice["delta"])
            message["finish_reason"] = choice["finish_reason"] or message.get("finish_reason")
    return message


def _add(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        if whole.get(name) is None or name in ("index", "type"):
            whole[name] = value
        elif isinstance(value, str):
            whole[name] += value
        elif isinstance(value, list):
            for entry in value:
                at = entry["index"]
                assert at <= len(whole[name])
                if at == len(whole[name]):
                    whole[name].append(entry)
                else:
                    _add(whole[name][at], entry)
        elif isinstance(value, dict):
            _add(whole[name], value)


# -- anything, cut anywhere ----------------------------------------------------------------------------------

WORDS = st.text(max_size=6)
PIECES = st.one_of(
    st.builds(lambda word: delta("text_delta", text=word), WORDS),
    st.builds(lambda word: delta("thinking_delta", thinking=word), WORDS),
    st.builds(lambda word: delta("signature_delta", signature=word), WORDS),
    st.builds(lambda word: delta("input_json_delta", partial_json=word), WORDS),
    st.builds(lambda word: delta("citations_delta", citation={"url": word, "title": None}), WORDS),
    st.sampled_from(
        [delta("x"), event("ping"), event("content_block_delta"), b": hello\n\n", b"retry: 5\n\n", b"\n"]
    ),
)
BLOCKS = st.builds(
    lambda kind, name, pieces: block(kind, *pieces, id="t", name=name),
    st.sampled_from(["text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "x"]),
    st.sampled_from(["f", "json_output", "custom_tool__f", "a_x2E_b"]),
    st.lists(PIECES, max_size=5),
)
ENDS = st.sampled_from(
    [finish(), finish(None), b"", event("message_stop"), event("error", error={"type": "api_error"})]
)


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        lambda begun, blocks, ended, line_end: (begun + b"".join(blocks) + ended).replace(b"\n", line_end),
        st.sampled_from([start(), b""]),
        st.lists(BLOCKS | PIECES, max_size=6),
        ENDS,
        st.sampled_from([b"\n", b"\r\n"]),
    ),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_however_it_is_cut_the_same_comes_out(data, usage, seed):
    chance = random.Random(seed)
    marks = sorted(chance.randrange(len(data) + 1) for _ in range(8))
    cut = [data[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True)]

    whole, bytewise, pieces = new_tap(usage), new_tap(usage), new_tap(usage)
    out = play(whole, data)

    assert play(bytewise, *(data[i : i + 1] for i in range(len(data)))) == out
    assert play(pieces, *cut) == out
    assert whole.usage() == bytewise.usage() == pieces.usage()
    assert whole.delivered() == bytewise.delivered()
    assert whole.complete is pieces.complete
    assembled(chunks(out))


def new_tap(usage: bool) -> ChunkTap:
    return ChunkTap(created=0, usage_asked=usage, counts=True, blame=lambda _: unreadable("x"))


def test_state_does_not_grow(chat):
    tap = chat.tap(web_search_options={})
    tap.feed(start() + event("content_block_start", index=0, content_block={"type": "text"}))
    pieces = delta("text_delta", text="word " * 20) + delta("citations_delta", citation={"url": "https://a"})

    def weigh() -> int:
        return sum(sys.getsizeof(getattr(tap, name)) for name in ChunkTap.__slots__)

    for _ in range(CITATIONS_MAX + 1):
        tap.feed(pieces)
    before = weigh()
    for _ in range(2000):
        tap.feed(pieces)

    assert weigh() <= before + 64


@given(st.text(max_size=40), st.integers(0, 2**32), st.booleans())
def test_the_text_of_a_call_comes_out_whole(said, seed, spaced):
    """However its JSON is cut, no escape sequence is."""
    body = json.dumps({"input": said}, separators=(", ", ": ") if spaced else (",", ":"), ensure_ascii=seed % 2 == 0)
    chance = random.Random(seed)
    marks = sorted(chance.randrange(len(body) + 1) for _ in range(5))
    custom = CustomInput()

    pieces = [custom.feed(body[a:b]) for a, b in zip([0, *marks], [*marks, len(body)], strict=True)]

    assert "".join(json.loads(f'"{piece}"') for piece in pieces) == said
