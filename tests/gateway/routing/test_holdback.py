"""Whether an answer with a good status is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.holdback import Held, Holdback, error_in, status_of
from gateway.wire.dialects import Dialect

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
ERROR = b'data: {"error":{"message":"Overloaded","code":503}}\n\n'
COMMENT = b": PROCESSING\n\n"
WAITING = [
    ROLE,
    COMMENT,
    b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
    b'event: response.created\ndata: {"type":"response.created","response":{"error":null}}\n\n',
    b'event: response.in_progress\ndata: {"type":"response.in_progress"}\n\n',
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{}}}\n\n',
    b'event: ping\ndata: {"type":"ping"}\n\n',
    b"event: ping\n\n",
]
GOOD = [
    WORD,
    b"data: [DONE]\n\n",
    b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[{"delta":{"reasoning_content":"Hm"}}]}\n\n',
    b'data: {"choices":[{"text":"Hi"}]}\n\n',
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hi"}\n\n',
    b'event: content_block_start\ndata: {"type":"content_block_start"}\n\n',
    b'data: {"candidates":[{"content":{"parts":[{"text":"Hi"}]}}]}\n\n',
    b"data: hello\n\n",
    b'data: {"error":null,"choices":[{"delta":{"content":"x"}}]}\n\n',
    b'data: ["a new shape"]\n\n',
    b'data: {"choices":7}\n\n',
    b"data: \xff\xfe\n\n",
]
BAD = [
    ERROR,
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n',
    b'event: error\ndata: {"message":"no"}\n\n',
    b'data: {"type":"response.failed","response":{"error":{"code":"server_error"}}}\n\n',
    b'data: {"choices":[{"delta":{"content":""},"finish_reason":"error"}],"error":{"code":502}}\n\n',
]


def holdback(*, events_max: int = 16, bytes_max: int = 65536) -> Holdback:
    return Holdback(Dialect.OPENAI_CHAT, events_max=events_max, bytes_max=bytes_max, wait_s=1.0)


@pytest.mark.parametrize("event", WAITING)
def test_what_says_nothing_waits(event):
    assert holdback().feed(event) is Held.WAIT


@pytest.mark.parametrize("event", GOOD)
def test_what_says_something_goes(event):
    assert holdback().feed(event) is Held.GO


@pytest.mark.parametrize("event", BAD)
def test_an_error_is_one_also_behind_a_preamble(event):
    assert holdback().feed(event) is Held.ERROR

    held = holdback()
    assert held.feed(COMMENT + ROLE) is Held.WAIT
    assert held.feed(event) is Held.ERROR
    assert held.error in event


def test_an_error_behind_a_word_is_the_stream_s_own():
    assert holdback().feed(ROLE + WORD + ERROR) is Held.GO


def test_it_is_bounded_in_events_and_bytes():
    by_events, by_bytes, by_size = holdback(events_max=3), holdback(bytes_max=200), holdback(bytes_max=300)

    assert [by_events.feed(ROLE) for _ in range(3)] == [Held.WAIT, Held.WAIT, Held.GO]
    assert [by_bytes.feed(ROLE) for _ in range(3)][-1] is Held.GO
    assert by_size.feed(b"data: " + b"x" * 400) is Held.GO


@given(st.sampled_from([*GOOD, *BAD]), st.lists(st.sampled_from(WAITING), max_size=4), st.data())
def test_the_verdict_does_not_depend_on_the_cut(event, before, data):
    stream = b"".join(before) + event
    whole = holdback().feed(stream)

    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    held, verdicts = holdback(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > start:
            verdicts.append(held.feed(stream[start:end]))

    assert next(verdict for verdict in verdicts if verdict is not Held.WAIT) is whole


@given(st.lists(st.binary(max_size=50), max_size=30))
def test_any_bytes_are_judged(pieces):
    held = holdback(bytes_max=200)

    for piece in pieces:
        assert held.feed(piece) in Held


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"message":"no"}}', True),
        (b'{"error":"no"}', True),
        (b'{"error":null,"choices":[]}', False),
        (b'{"choices":[{"message":{"content":"\\"error\\": bad"}}]}', False),
        (b'{"choices":[{"message":{}}],"error":{"code":502}}', False),
        (b'{"error":', False),
        (b"[]", False),
        (b"", False),
    ],
)
def test_a_plain_answer_that_is_an_error(body, expected):
    assert error_in(body) is expected


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b'{"error":{"code":503}}', 503),
        (b'{"error":{"code":"429"}}', 429),
        (b'{"error":{"status":"UNAVAILABLE","code":"x"}}', 503),
        (b'{"type":"error","error":{"type":"overloaded_error"}}', 529),
        (b'{"error":{"type":"rate_limit_error"}}', 429),
        (b'{"error":{"type":"insufficient_quota"}}', 429),
        (b'{"error":{"type":"invalid_request_error","code":"context_length_exceeded"}}', 400),
        (b'{"error":{"type":"authentication_error"}}', 401),
        (b'{"error":{"code":200}}', 500),
        (b'{"error":{"message":"?"}}', 500),
        (b'{"error":"text"}', 500),
        (b'{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded"}}}', 429),
        (b'{"type":"error","code":"server_error"}', 500),
        (b"nonsense", 500),
        (b"[1]", 500),
    ],
)
def test_an_error_in_an_answer_has_a_status(data, status):
    assert status_of(data) == status
