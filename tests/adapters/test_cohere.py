"""Cohere: what its table takes, and streams that come in other shapes than the usual one."""

from typing import Any

import msgspec
import pytest

from gateway.api import BadRequest, Call, ConfigError, Dialect, Offer, ProviderConfig, ResponseHead, Secret, Tap, peek
from gateway.registry import known_providers
from gateway.testing.cases import play
from gateway_adapters.chat_answer import ANSWER_BYTES_MAX
from gateway_adapters.cohere import Cohere

STREAM = ResponseHead(200, [(b"content-type", b"text/event-stream")])
JSON = ResponseHead(200, [(b"content-type", b"application/json")])
BEGIN = b'data: {"type":"message-start","id":"c1","delta":{"message":{"role":"assistant"}}}\n\n'
END = b'data: {"type":"message-end","delta":{"finish_reason":"COMPLETE"}}\n\n'


def cohere(base_url: str | None = None, key: str | None = "k", **extra: object) -> Cohere:
    adapter = Cohere()
    adapter.configure(
        ProviderConfig(name="cohere", base_url=base_url, api_key=Secret(key) if key else None, extra=extra)
    )
    return adapter


def call(dialect: Dialect = Dialect.OPENAI_CHAT, **members: Any) -> Call:
    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **members})
    return Call(
        id="1",
        dialect=dialect,
        method="POST",
        path=b"/",
        query=b"",
        headers=[],
        body=body,
        peek=peek(body),
        model="m",
    )


def told(dialect: Dialect = Dialect.OPENAI_CHAT, adapter: Cohere | None = None, **members: Any) -> dict[str, Any]:
    sent = (adapter or cohere()).prepare(
        call(dialect, **members), Offer(model="m", provider="cohere", upstream_model="m")
    )
    assert isinstance(sent.body, bytes)
    return dict(msgspec.json.decode(sent.body))


def tap(head: ResponseHead = STREAM) -> Tap:
    return cohere().tap(call(stream=True), head)


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"key": None}, "api_key"),
        ({"key": "two\nlines"}, "api_key"),
        ({"base_url": "cohere"}, "base_url"),
        ({"input_type": 5}, "input_type"),
        ({"truncate": "END"}, "truncate"),
    ],
)
def test_a_wrong_table_is_refused(arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cohere(**arguments)

    assert caught.value.param == param


def test_its_usual_variable_turns_it_on() -> None:
    assert (known_providers()["cohere"].adapter, known_providers()["cohere"].variable) == ("cohere", "COHERE_API_KEY")


def test_a_deployment_of_ones_own_may_want_no_key() -> None:
    sent = cohere("http://cohere.internal:8080/v2", key=None).prepare(
        call(), Offer(model="m", provider="c", upstream_model="m")
    )

    assert b"authorization" not in dict(sent.headers)
    assert sent.target == b"/v2/chat"


def test_the_table_says_what_embeddings_are_for_unless_the_caller_does() -> None:
    adapter = cohere(input_type="search_query")

    assert told(Dialect.OPENAI_EMBEDDINGS, adapter, input="a")["input_type"] == "search_query"
    assert told(Dialect.OPENAI_EMBEDDINGS, adapter, input="a", input_type="clustering")["input_type"] == "clustering"


def test_thoughts_go_back_where_they_came_from() -> None:
    tool_call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = told(
        messages=[
            {"role": "assistant", "reasoning_content": "Hm.", "tool_calls": [tool_call]},
            {"role": "tool", "tool_call_id": "c", "content": "1"},
            {"role": "assistant", "reasoning_content": "So.", "content": "One."},
        ]
    )["messages"]

    assert messages[0]["tool_plan"] == "Hm."
    assert messages[2]["content"] == [{"type": "thinking", "thinking": "So."}, {"type": "text", "text": "One."}]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "system", "content": [{"type": "image_url", "image_url": "data:,"}]}],
        [{"role": "robot", "content": "x"}],
    ],
)
def test_what_it_can_not_take_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(BadRequest) as caught:
        told(messages=messages)

    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        (b'{"type":"message-end","delta":{"finish_reason":"TIMEOUT"}}', 504, "The provider ran out of time."),
        (b'{"type":"message-end","delta":{"finish_reason":"ERROR_TOXIC"}}', 502, "The provider failed to finish its"),
        (b'{"message":"internal server error"}', 502, "internal server error"),
        (b'{"type":"content-delta","delta":5}', 502, "could not be understood"),
        (b'{"type":"content-delta","delta":{"message":{"content":{"text":5}}}}', 502, "could not be understood"),
    ],
)
def test_a_stream_that_ends_in_an_error(end: bytes, status: int, message: str) -> None:
    for prefix in (b"data: ", b"event: content-delta\ndata: "):
        watched = tap()

        said = watched.feed(BEGIN + prefix + end + b"\n\n" + END) + watched.end()

        assert said.count(b"data: ") == 1
        assert watched.failure is not None
        assert watched.failure.status == status
        assert message in watched.failure.message
        assert watched.errored
        assert not watched.complete


def test_the_short_way_says_what_the_long_way_says() -> None:
    event = b'event: content-delta\ndata: {"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"%b"}}}}\n\n'
    events = [event % text for text in (b"a", b"", "ü🎉\\n".encode(), b"x" * 5000)]
    whole = BEGIN + b"".join(events) + END

    assert play(tap(), [BEGIN, *events, END], cut=False) == play(tap(), [whole], cut=False)


def test_a_last_event_without_its_blank_line_counts() -> None:
    """Case 47."""
    watched = tap()

    assert play(watched, [BEGIN + END.rstrip()], cut=False).endswith(b"data: [DONE]\n\n")
    assert watched.complete


def test_an_event_without_an_end_is_given_up() -> None:
    watched = tap()
    watched.feed(BEGIN)
    for _ in range(17):
        watched.feed(b"data: " + b"x" * 1024 * 1024)

    assert watched.failure is not None


def test_an_answer_without_an_end_is_given_up() -> None:
    watched = tap(JSON)
    piece = b" " * (8 * 1024 * 1024)
    for _ in range(ANSWER_BYTES_MAX // len(piece) + 1):
        assert watched.feed(piece) == b""

    assert watched.failure is not None
    assert watched.end() == b""


def test_what_was_not_reported_is_estimated() -> None:
    watched = tap()
    delta = b'data: {"type":"content-delta","delta":{"message":{"content":{"text":"%b"}}}}\n\n' % (b"x" * 400)
    watched.feed(BEGIN + delta)

    assert watched.usage() is None
    assert (watched.delivered().output_tokens, watched.delivered().source) == (100, "partial")
