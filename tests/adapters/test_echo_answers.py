"""The echo provider's answers, from bytes to bytes."""

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_adapters.echo_answers import DEFAULT_TEXT, Answer, Script, answer, script_of


def ask(path: str, **members: object) -> Answer:
    return answer(b"POST", path.encode(), msgspec.json.encode(members))


def chat(text: object, model: str = "echo", **members: object) -> Answer:
    return ask("/v1/chat/completions", model=model, messages=[{"role": "user", "content": text}], **members)


def document(made: Answer) -> dict:
    body = b"".join(data for _, data in made.frames)
    assert len(body) == made.size_bytes
    return msgspec.json.decode(body)


def events(made: Answer) -> list:
    assert made.content_type.startswith(b"text/event-stream")
    assert made.size_bytes is None
    frames = [data for _, data in made.frames]
    assert all(frame.endswith(b"\n\n") and frame.count(b"\n\n") == 1 for frame in frames)
    datas = [frame.partition(b"data: ")[2].strip() for frame in frames]
    return [data if data == b"[DONE]" else msgspec.json.decode(data) for data in datas]


def test_chat_says_back_the_last_user_message() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "what"},
        {"role": "user", "content": [{"type": "text", "text": "good  old\nfriend"}, {"type": "image_url"}]},
    ]

    made = document(ask("/v1/chat/completions", model="echo", messages=messages))

    assert made["choices"][0]["message"] == {"role": "assistant", "content": "good  old\nfriend", "refusal": None}
    assert made["choices"][0]["finish_reason"] == "stop"
    assert made["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["c", "f"]}, "x": {}},
    "required": ["city", "days", "unit"],
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("weather", "news")]


@pytest.mark.parametrize(
    ("said", "tool_choice", "called"),
    [
        ("hi", "required", "weather"),
        ("hi", {"type": "function", "function": {"name": "news"}}, "news"),
        ("please call news", None, "news"),
        ("please call news", "none", None),
        ("call nobody", None, None),
        ("hi", "auto", None),
    ],
)
def test_a_tool_is_called_where_that_is_asked_for(said: str, tool_choice: object, called: str | None) -> None:
    members = {"tools": TOOLS, "tool_choice": tool_choice}
    choice = document(chat(said, **members))["choices"][0]
    streamed = events(chat(said, stream=True, **members))[:-1]

    deltas = [event["choices"][0]["delta"] for event in streamed]
    parts = [part for delta in deltas for part in delta.get("tool_calls", [])]
    if called is None:
        assert (choice["finish_reason"], choice["message"]["content"], parts) == ("stop", said, [])
        return
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == called
    assert msgspec.json.decode(call["function"]["arguments"]) == {"city": "", "days": 0, "unit": "c"}
    assert parts[0]["function"] == call["function"]
    assert choice["finish_reason"] == streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_stop_and_n_are_obeyed() -> None:
    made = document(chat("one two three", stop=["three", " two"], n=2))

    assert [(each["index"], each["message"]["content"]) for each in made["choices"]] == [(0, "one"), (1, "one")]
    assert made["usage"]["completion_tokens"] == 2
    indices = [event["choices"][0]["index"] for event in events(chat("a", n=2, stream=True))[:-1]]
    assert indices == [0, 0, 0, 1, 1, 1]


def test_a_stream_is_the_same_answer_word_by_word() -> None:
    first, *words, finish, usage, done = events(chat("a b  c", stream=True, stream_options={"include_usage": True}))

    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [word["choices"][0]["delta"]["content"] for word in words] == ["a ", "b  ", "c"]
    assert finish["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert done == b"[DONE]"
    assert {event["id"] for event in (first, *words, finish, usage)} == {first["id"]}


def test_usage_comes_only_when_asked_for() -> None:
    assert not any("usage" in event for event in events(chat("a", stream=True))[:-1])
    assert not any("usage" in e for e in events(chat("a", stream=True, stream_options={"include_usage": False}))[:-1])


def test_the_same_request_gets_the_same_bytes() -> None:
    for stream in (False, True):
        assert list(chat("hello", stream=stream).frames) == list(chat("hello", stream=stream).frames)
    assert document(chat("a"))["id"] != document(chat("b"))["id"]


@pytest.mark.parametrize("text", ["", "  ", None, []])
def test_silence_gets_a_friendly_text(text: object) -> None:
    assert document(chat(text))["choices"][0]["message"]["content"] == DEFAULT_TEXT


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_cuts_the_answer_short(limit: str) -> None:
    made = document(chat("a b c", **{limit: 2}))

    assert made["choices"][0]["message"]["content"] == "a b "
    assert made["choices"][0]["finish_reason"] == "length"
    assert made["usage"]["completion_tokens"] == 2


def test_as_many_tokens_as_asked_for() -> None:
    made = document(chat("a b", model="echo-tokens-5"))

    assert made["choices"][0]["message"]["content"] == "a b a b a "
    assert made["usage"]["completion_tokens"] == 5


def test_completions_plain_and_streamed() -> None:
    plain = document(ask("/v1/completions", model="echo", prompt="x y"))
    *words, finish, done = events(ask("/v1/completions", model="echo", prompt="x y", stream=True))

    assert plain["choices"][0]["text"] == "x y"
    assert plain["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert "".join(word["choices"][0]["text"] for word in words) == "x y"
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert done == b"[DONE]"


@pytest.mark.parametrize(
    "given_input", ["x y", [{"role": "user", "content": [{"type": "input_text", "text": "x y"}]}]]
)
def test_responses_plain_and_streamed(given_input: object) -> None:
    plain = document(ask("/v1/responses", model="echo", input=given_input))
    streamed = events(ask("/v1/responses", model="echo", input=given_input, stream=True))

    assert plain["status"] == "completed"
    assert plain["output"][0]["content"][0]["text"] == "x y"
    assert plain["usage"]["output_tokens"] == 2
    assert [event["sequence_number"] for event in streamed] == list(range(len(streamed)))
    assert [event["type"] for event in streamed][0 :: len(streamed) - 1] == ["response.created", "response.completed"]
    assert "".join(e["delta"] for e in streamed if e["type"] == "response.output_text.delta") == "x y"
    assert streamed[-1]["response"]["usage"] == plain["usage"]


def test_responses_cut_short_are_incomplete() -> None:
    *_, last = events(ask("/v1/responses", model="echo", input="a b c", max_output_tokens=1, stream=True))

    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_embeddings_depend_on_the_text_alone() -> None:
    both = document(ask("/v1/embeddings", model="echo", input=["a", "b"]))
    one = document(ask("/v1/embeddings", model="echo", input="b", user="x"))
    packed = document(ask("/v1/embeddings", model="echo", input="b", encoding_format="base64"))
    numbers = document(ask("/v1/embeddings", model="echo", input=[1, 2, 3], dimensions=4))

    assert both["data"][1]["embedding"] == one["data"][0]["embedding"]
    assert both["data"][0]["embedding"] != one["data"][0]["embedding"]
    assert both["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    raw = msgspec.convert(packed["data"][0]["embedding"], bytes)
    assert struct.unpack("<8f", raw) == pytest.approx(one["data"][0]["embedding"])
    assert len(numbers["data"][0]["embedding"]) == 4
    assert numbers["usage"]["prompt_tokens"] == 3


def test_models_are_listed() -> None:
    assert next(model["id"] for model in document(answer(b"GET", b"/v1/models", b""))["data"]) == "echo"


@pytest.mark.parametrize(
    ("model", "script"),
    [
        ("echo", Script()),
        ("gpt-4o-mini", Script()),
        ("echoes-fail-500", Script()),
        ("echo-slow", Script(delay_s=0.1)),
        ("echo-delay-250ms", Script(delay_s=0.25)),
        ("echo-ttft-2s", Script(ttft_s=2)),
        ("echo-ttft-1.5s-cut-3", Script(ttft_s=1.5, cut=3)),
        ("echo-tokens-100-delay-20ms", Script(tokens=100, delay_s=0.02)),
        ("echo-stall-5", Script(stall=5)),
        ("echo-fail-429", Script(fail=429)),
        ("echo-", None),
        ("echo-fast", None),
        ("echo-delay-5", None),
        ("echo-cut-5x", None),
    ],
)
def test_the_name_of_the_model_tells_what_to_do(model: str, script: Script | None) -> None:
    assert script_of(model) == script


def test_pauses_come_between_words_and_a_plain_answer_takes_as_long() -> None:
    streamed = chat("a b c", model="echo-delay-20ms-ttft-1s", stream=True)
    plain = chat("a b c", model="echo-delay-20ms-ttft-1s")

    assert streamed.wait_s == plain.wait_s == 1
    assert [pause for pause, _ in streamed.frames] == [0, 0, 0.02, 0.02, 0, 0]
    assert sum(pause for pause, _ in plain.frames) == pytest.approx(0.04)


def test_failing_on_request() -> None:
    throttled = chat("a", model="echo-fail-429-ttft-1s")
    broken = chat("a", model="echo-fail-500", stream=True)

    assert (throttled.status, throttled.wait_s) == (429, 1)
    assert throttled.headers == ((b"retry-after", b"1"),)
    assert document(throttled)["error"]["code"] == "rate_limit_exceeded"
    assert broken.status == 500
    assert document(broken)["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        (b"GET", b"/v1/chat/completions", b"", 405),
        (b"POST", b"/v1/audio/nothing", b"{}", 404),
        (b"POST", b"/v1/chat/completions", b"", 400),
        (b"POST", b"/v1/chat/completions", b'{"messages":{}}', 400),
        (b"POST", b"/v1/chat/completions", b"[" * 100_000, 400),
        (b"POST", b"/v1/chat/completions", b'{"messages":[{"\xd4":1}]}', 400),
        (b"POST", b"/v1/batches", b'{"endpoint":"\xd4"}', 400),
        (b"GET", b"/v1/responses/resp_1", b"", 404),
        (b"POST", b"/v1/chat/completions", b'{"model":"echo-fast","messages":[]}', 404),
        (b"POST", b"/v1/chat/completions", b'{"model":"echo-tokens-9999999","messages":[]}', 404),
        (b"POST", b"/v1/chat/completions", b'{"model":"echo-fail-200","messages":[]}', 404),
    ],
)
def test_what_it_refuses(method: bytes, path: bytes, body: bytes, status: int) -> None:
    refused = answer(method, path, body)

    assert refused.status == status
    assert document(refused)["error"]["message"]


@given(st.dictionaries(st.sampled_from(["model", "messages", "prompt", "input", "stream"]), st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner | st.just("user")),
    max_leaves=8)))  # fmt: skip
def test_any_json_gets_a_whole_answer(members: dict) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"):
        made = ask(path, **members)
        size = sum(len(data) for _, data in made.frames)
        assert made.size_bytes in (None, size)
