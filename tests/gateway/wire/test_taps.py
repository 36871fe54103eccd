"""Taps: bytes in, the same bytes out, and what was used."""

import msgspec
import pytest

from gateway.wire.dialects import DONE, Dialect
from gateway.wire.sse_tap import HELD_BYTES_MAX, TAIL_BYTES, SSETap
from gateway.wire.taps import JSONTap, PassTap
from gateway.wire.usage import Usage

CHAT = Dialect.OPENAI_CHAT
RESPONSES = Dialect.OPENAI_RESPONSES


def sse(*lines: str) -> bytes:
    return "".join(f"{line}\n\n" for line in lines).encode()


ROLE = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790000000,"model":"gpt-x",'
    '"service_tier":"default","system_fingerprint":null,"choices":[{"index":0,"delta":{"role":"assistant",'
    '"content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"a8Z"}'
)
CALL = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790000000,"model":"gpt-x","choices":'
    '[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\":1}"}}]},"finish_reason":null}],'
    '"usage":null}'
)
FINISH = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790000000,"model":"gpt-x",'
    '"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}],"usage":null}'
)
USAGE = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790000000,"model":"gpt-x","choices":[],'
    '"usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29,"prompt_tokens_details":'
    '{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    '"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}'
)
END = "data: [DONE]"
A1 = sse(ROLE, CALL, FINISH, USAGE, END)
A1_STRIPPED = sse(ROLE, CALL, FINISH, END)

A2 = sse(
    'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1",'
    '"object":"response","status":"in_progress","model":"gpt-x","max_output_tokens":null,"error":null,"output":[],"usage":null}}',
    'event: response.output_item.added\ndata: {"type":"response.output_item.added","sequence_number":1,'
    '"output_index":0,"item":{"id":"msg_1","type":"message","status":"in_progress","role":"assistant","content":[]}}',
    'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":2,'
    '"item_id":"msg_1","output_index":0,"content_index":0,"delta":"Hi","logprobs":[]}',
    'event: response.completed\ndata: {"type":"response.completed","sequence_number":3,"response":{"id":"resp_1",'
    '"object":"response","status":"completed","model":"gpt-x","service_tier":"flex","output":[{"id":"msg_1",'
    '"type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hi",'
    '"annotations":[]}]}],"usage":{"input_tokens":8,"input_tokens_details":{"cached_tokens":0},"output_tokens":2,'
    '"output_tokens_details":{"reasoning_tokens":0},"total_tokens":10},"tool_usage":{"web_search":{"num_requests":1}}}}',
)
A3 = (
    'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,'
    '"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}'
)
A4 = (
    'data: {"id":"gen-1","object":"chat.completion.chunk","created":1790000000,"model":"v/m","provider":"P",'
    '"error":{"code":502,"message":"Provider disconnected","metadata":{"error_type":"provider_unavailable"}},'
    '"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error","native_finish_reason":"error"}]}'
)
A5 = (
    'data: {"id":"chatcmpl-2","object":"chat.completion.chunk","created":1790000000,"model":"llama","choices":'
    '[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"req_1","usage":{"queue_time":0.01,'
    '"prompt_tokens":5,"prompt_time":0.001,"completion_tokens":2,"completion_time":0.01,"total_tokens":7,'
    '"total_time":0.011}}}'
)


def running(tokens: int) -> str:
    return (
        'data: {"id":"cmpl-3","object":"chat.completion.chunk","created":1790000000,"model":"q","choices":[{"index":0,'
        f'"delta":{{"content":"a"}},"finish_reason":null}}],"usage":{{"prompt_tokens":5,"total_tokens":{5 + tokens},'
        f'"completion_tokens":{tokens}}}}}'
    )


def content(text: str) -> str:
    encoded = msgspec.json.encode(text).decode()
    return f'data: {{"id":"c","choices":[{{"index":0,"delta":{{"content":{encoded}}},"finish_reason":null}}]}}'


def run(tap: SSETap | JSONTap, *chunks: bytes) -> bytes:
    return b"".join([*(tap.feed(chunk) for chunk in chunks), tap.end()])


def bytewise(text: bytes) -> list[bytes]:
    return [text[at : at + 1] for at in range(len(text))]


# -- golden streams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [lambda text: [text], bytewise, lambda text: text.splitlines(keepends=True)])
def test_a_chat_stream_passes_unchanged(pieces):
    tap = SSETap(CHAT)

    assert run(tap, *pieces(A1)) == A1
    assert tap.usage() == Usage(input_tokens=20, output_tokens=9)
    assert (tap.complete, tap.errored, tap.mid_event, tap.repairs, tap.events) == (True, False, False, 0, 5)


@pytest.mark.parametrize("pieces", [lambda text: [text], bytewise, lambda text: text.splitlines(keepends=True)])
def test_a_usage_chunk_we_asked_for_is_taken_out_and_nothing_else(pieces):
    tap = SSETap(CHAT, strip_usage=True)

    assert run(tap, *pieces(A1)) == A1_STRIPPED
    assert tap.usage() == Usage(input_tokens=20, output_tokens=9)
    assert (tap.complete, tap.repairs) == (True, 0)


@pytest.mark.parametrize("pieces", [lambda text: [text], bytewise, lambda text: text.splitlines(keepends=True)])
def test_a_responses_stream_passes_unchanged(pieces):
    tap = SSETap(RESPONSES)

    assert run(tap, *pieces(A2)) == A2
    assert tap.usage() == Usage(input_tokens=8, output_tokens=2, service_tier="flex", searches=1)
    assert (tap.complete, tap.errored, tap.repairs) == (True, False, 0)


def test_case_103_azures_first_chunk_is_not_the_usage_chunk():
    text = sse(A3, ROLE, FINISH, END)

    assert run(SSETap(CHAT, strip_usage=True), text) == text
    # Nor is it with a null or a count somewhere else in it.
    other = sse(A3[:-1] + ',"usage":null,"x_tokens":1}', ROLE, FINISH, END)
    assert run(SSETap(CHAT, strip_usage=True), *bytewise(other)) == other


def test_case_44_comments_pass_and_are_no_first_token():
    tap = SSETap(CHAT)
    comment = b": OPENROUTER PROCESSING\n\n"

    for _ in range(50):
        assert tap.feed(comment) == comment
    assert tap.feed(b": keep-alive\n") == b": keep-alive\n"
    assert not tap.first_token
    assert tap.feed(b"\n") + tap.feed(sse(ROLE)) == b"\n" + sse(ROLE)
    assert tap.first_token


def test_an_error_inside_the_stream_is_seen():
    for text in (
        sse(ROLE, A4),
        sse(ROLE, A4, END),
        sse(ROLE, 'data: {"error":"overloaded"}'),
        sse(ROLE, "event: error\ndata: {}"),
        sse(ROLE, 'data: {"choices":[],"x_groq":{"error":"x"}}'),
        sse('event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"x"}}}'),
        sse('data: {"type":"error","code":"x","message":"m"}'),
    ):
        for pieces in ([text], bytewise(text)):
            tap = SSETap(CHAT)
            assert run(tap, *pieces) == text
            assert tap.errored


def test_the_word_error_is_no_error():
    tap = SSETap(CHAT)
    run(tap, sse(content('the "error" failed: {"error":1}'), 'data: {"error":null,"choices":[]}', END))

    assert not tap.errored


def test_case_104_groqs_usage_counts_once():
    tap = SSETap(CHAT, strip_usage=True)
    both = A5[:-1] + ',"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}'

    assert run(tap, sse(ROLE, both)) == sse(ROLE, both)
    assert tap.usage() == Usage(input_tokens=5, output_tokens=2)
    assert tap.complete
    alone = SSETap(CHAT)
    run(alone, sse(ROLE, A5))
    assert alone.usage() == Usage(input_tokens=5, output_tokens=2)


def test_case_100_running_usage_is_replaced_not_added():
    tap = SSETap(CHAT, strip_usage=True)
    text = sse(*(running(count) for count in range(1, 20)), END)

    assert run(tap, text) == text
    assert tap.usage() == Usage(input_tokens=5, output_tokens=19)


def test_anthropic_reports_are_merged():
    tap = SSETap(Dialect.ANTHROPIC_MESSAGES)
    text = sse(
        'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":25,'
        '"cache_read_input_tokens":5,"output_tokens":1}}}',
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}',
        'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        '"usage":{"input_tokens":null,"output_tokens":89}}',
        'event: message_stop\ndata: {"type":"message_stop"}',
    )

    assert run(tap, *bytewise(text)) == text
    assert tap.usage() == Usage(input_tokens=30, output_tokens=89, input_cached_tokens=5)
    assert tap.complete


def named(kind, **members):
    return f"event: {kind}\ndata: {msgspec.json.encode({'type': kind, **members}).decode()}"


ANTHROPIC_START = named("message_start", message={"id": "m", "usage": {"input_tokens": 25, "output_tokens": 1}})


def test_what_anthropic_delivered_before_a_cut_is_estimated():
    tap = SSETap(Dialect.ANTHROPIC_MESSAGES)
    delta = named("content_block_delta", index=0, delta={"type": "text_delta", "text": "four"})

    tap.feed(sse(ANTHROPIC_START, *[delta] * 50))

    assert tap.usage() == Usage(input_tokens=25, output_tokens=50, source="partial")


def test_anthropic_uses_nothing_for_an_error_before_any_text():
    tap = SSETap(Dialect.ANTHROPIC_MESSAGES)
    failed = named("error", error={"type": "overloaded_error", "message": "Overloaded"})

    run(tap, sse(ANTHROPIC_START, failed))

    assert tap.usage() is None
    assert tap.errored


# -- bytes ---------------------------------------------------------------------------------------------------


def test_a_usual_chunk_is_the_same_object():
    tap = SSETap(CHAT, strip_usage=True)

    for chunk in (sse(ROLE), sse(CALL), sse(FINISH), sse(ROLE, CALL, FINISH), DONE):
        assert tap.feed(chunk) is chunk
    named = SSETap(RESPONSES)
    delta = A2.split(b"\n\n")[2] + b"\n\n"
    assert named.feed(delta) is delta
    three = delta * 3
    assert named.feed(three) is three


def test_case_39_text_in_any_script_passes_bytewise():
    text = sse(content("žluťoučký 漢字 🏳️‍🌈 \u2028\u2029\u0085"), END)
    tap = SSETap(CHAT, strip_usage=True)

    assert run(tap, *bytewise(text)) == text
    assert tap.repairs == 0


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("strip", [False, True])
def test_case_40_any_line_end_in_any_pieces(eol: bytes, strip: bool):
    text = A1.replace(b"\n", eol)
    expected = A1_STRIPPED.replace(b"\n", eol) if strip else text

    for pieces in ([text], bytewise(text), [text[:-1], text[-1:]]):
        tap = SSETap(CHAT, strip_usage=strip)
        assert run(tap, *pieces) == expected
        assert tap.usage() == Usage(input_tokens=20, output_tokens=9)
        assert tap.complete
        assert tap.repairs == 0


def test_case_42_text_about_streams_is_text():
    tap = SSETap(CHAT, strip_usage=True)
    text = sse(
        content('data: [DONE]\n\ndata: {"choices":[],"usage":{"prompt_tokens":1,"total_tokens":2}}\n\n'),
        content('"finish_reason":"stop"'),
        content('\\"usage\\":{ _tokens"'),
    )

    assert run(tap, *bytewise(text)) == text
    assert tap.usage() is None
    assert not tap.complete


def test_case_45_id_and_retry_lines_are_taken_out():
    tap = SSETap(CHAT)
    text = b"retry: 3000\n\nid: 5\n" + sse(ROLE) + b"id\nevent: x\n" + sse(END) + b"retry:1\r\n\r\n"

    assert run(tap, *bytewise(text)) == sse(ROLE) + b"event: x\n" + sse(END)
    assert tap.repairs == 4


def test_events_without_data_are_taken_out_and_comments_stay():
    tap = SSETap(CHAT)
    text = b"event: ping\n\n: hi\nevent: ping\n\n" + sse(END)

    assert run(tap, text) == b": hi\n" + sse(END)
    assert tap.repairs == 2


def test_names_that_only_begin_like_those_stay():
    text = b"idle: 1\nretrying: 2\n" + sse(END)

    assert run(SSETap(CHAT), text) == text


@pytest.mark.parametrize("pieces", [lambda text: [text], bytewise])
def test_case_46_a_byte_order_mark_is_taken_off(pieces):
    tap = SSETap(CHAT)

    assert run(tap, *pieces(b"\xef\xbb\xbf" + A1)) == A1
    assert tap.repairs == 1


def test_a_stream_of_less_than_a_byte_order_mark():
    assert run(SSETap(CHAT, repair=False), b"\xef\xbb") == b"\xef\xbb"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (sse(ROLE) + b"data: [DONE]", sse(ROLE, END)),
        (sse(ROLE) + b"data: [DONE]\n", sse(ROLE, END)),
        (sse(ROLE) + b"data: [DONE]\r\n", sse(ROLE) + b"data: [DONE]\r\n\n"),
        (sse(ROLE) + FINISH.encode(), sse(ROLE, FINISH)),
    ],
)
def test_case_47_a_last_event_without_its_blank_line_gets_it(text: bytes, expected: bytes):
    for pieces in ([text], bytewise(text)):
        tap = SSETap(CHAT)
        assert run(tap, *pieces) == expected
        assert (tap.repairs, tap.complete, tap.mid_event) == (1, True, False)


def test_case_47_usage_in_an_event_without_its_blank_line_counts():
    for strip in (False, True):
        tap = SSETap(CHAT, strip_usage=strip)
        out = run(tap, sse(ROLE, FINISH), USAGE.encode() + b"\n")
        assert out == (sse(ROLE, FINISH) if strip else sse(ROLE, FINISH, USAGE))
        assert tap.usage() == Usage(input_tokens=20, output_tokens=9)


def test_half_an_event_at_the_end_is_not_sent():
    tap = SSETap(CHAT)

    assert run(tap, sse(ROLE) + CALL.encode()[:50]) == sse(ROLE)
    assert (tap.complete, tap.mid_event, tap.repairs) == (False, False, 1)


def test_a_last_comment_passes():
    assert run(SSETap(CHAT), sse(END) + b": bye") == sse(END) + b": bye"
    assert run(SSETap(CHAT), sse(END) + b"event: x") == sse(END)


def test_case_48_no_space_after_the_colon():
    text = b'data:{"choices":[{"delta":{"content":"a"}}]}\n\ndata:[DONE]\n\n'
    tap = SSETap(CHAT)

    assert run(tap, text) == text
    assert tap.complete


def test_without_repairs_every_byte_passes():
    text = b"\xef\xbb\xbfretry: 1\n\nid: 2\nevent: x\n\n" + A1 + b"data: {"

    for pieces in ([text], bytewise(text)):
        tap = SSETap(CHAT, repair=False)
        assert run(tap, *pieces) == text
        assert (tap.repairs, tap.mid_event) == (0, True)


# -- aborts and size -----------------------------------------------------------------------------------------


def test_between_two_feeds_the_caller_is_never_inside_an_event():
    tap = SSETap(CHAT)
    sent = b""
    for piece in bytewise(A1):
        sent += tap.feed(piece)
        assert not tap.mid_event
        assert sent == b"" or sent.endswith(b"\n\n")
    assert sent == A1


def long_event(size: int) -> bytes:
    image = b"QUJD" * (size // 4)
    return (
        b'event: response.completed\ndata: {"type":"response.completed","sequence_number":9,"response":{"id":"r",'
        b'"status":"completed","output":[{"type":"image_generation_call","result":"' + image + b'"}],'
        b'"service_tier":"default","usage":{"input_tokens":8,"output_tokens":2,"total_tokens":10},"user":null}}\n\n'
    )


@pytest.mark.parametrize("step", [1400, 65536, 20_000_000])
def test_case_41_a_very_long_event_passes_and_its_usage_is_found(step: int):
    size = 12_000_000 if step > 1400 else 1_000_000
    text = A2[: A2.rindex(b"event: ")] + long_event(size) + b": bye\n\n"
    tap = SSETap(RESPONSES)
    out = []
    for at in range(0, len(text), step):
        out.append(tap.feed(text[at : at + step]))
        # What waits is bounded: the caller is never behind by more than what may be held.
        assert at + step - sum(map(len, out)) <= HELD_BYTES_MAX + step

    assert b"".join(out) + tap.end() == text
    assert tap.usage() == Usage(input_tokens=8, output_tokens=2, service_tier="default")
    assert (tap.complete, tap.mid_event, tap.repairs) == (True, False, 0)


def test_a_long_event_that_is_cut_leaves_the_caller_inside_it():
    tap = SSETap(RESPONSES)
    text = long_event(200_000)

    out = b"".join(tap.feed(text[at : at + 1000]) for at in range(0, 150_000, 1000))

    assert out == text[:150_000]
    assert tap.mid_event
    assert not tap.complete
    assert tap.end() == b""
    assert tap.mid_event


def test_a_long_last_event_without_its_blank_line_gets_it():
    text = long_event(200_000)
    for missing in (1, 2):
        tap = SSETap(RESPONSES)
        cut = text[:-missing]
        assert run(tap, *(cut[at : at + 1000] for at in range(0, len(cut), 1000))) == text
        assert tap.usage() is not None
        assert (tap.complete, tap.mid_event, tap.repairs) == (True, False, 1)


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
def test_the_end_of_a_long_event_is_seen_in_any_pieces(eol: bytes):
    text = (long_event(HELD_BYTES_MAX) + long_event(HELD_BYTES_MAX)).replace(b"\n", eol)
    start = len(text) // 2 - 300
    tap = SSETap(RESPONSES)

    out = run(tap, text[:start], *bytewise(text[start : start + 600]), text[start + 600 :])

    assert out == text
    assert tap.events == 2


def test_state_does_not_grow_with_the_stream():
    tap = SSETap(CHAT)
    event = sse(content("x" * 50_000))
    for _ in range(50):
        assert tap.feed(event * 3) == event * 3
    kept = len(tap._last) + len(tap._before) + len(tap._held) + len(tap._long_tail)
    assert kept < 100_000


# -- estimates -----------------------------------------------------------------------------------------------


def test_what_was_delivered_is_counted_by_events():
    tap = SSETap(CHAT)
    for word in ["", *(["x"] * 30)]:
        tap.feed(sse(content(word)))

    assert tap.delivered() == Usage(output_tokens=30, source="partial")


def test_what_was_delivered_is_counted_by_text_where_events_are_long():
    tap = SSETap(CHAT)
    tap.feed(sse(*[content("word " * 200)] * 10))
    for _ in range(10):
        tap.feed(sse(content("word " * 200)))

    delivered = tap.delivered()

    assert abs(delivered.output_tokens - 20 * 250) < 50
    assert delivered.source == "partial"


def test_padding_is_not_counted_as_text():
    tap = SSETap(CHAT)
    for _ in range(11):
        tap.feed(sse(content("x")[:-1] + ',"obfuscation":"' + "z" * 400 + '"}'))

    assert tap.delivered().output_tokens == 10


def test_a_whole_answer_without_a_report_is_an_estimate():
    tap = SSETap(CHAT)
    run(tap, sse(ROLE, content("a"), FINISH, END))

    assert tap.usage() is None
    assert tap.delivered().source == "estimated"


def test_responses_are_counted_by_their_deltas():
    tap = SSETap(RESPONSES)
    delta = A2.split(b"\n\n")[2] + b"\n\n"
    done = (
        b'event: response.output_text.done\ndata: {"type":"response.output_text.done","text":"'
        + b"x" * 9000
        + b'"}\n\n'
    )
    for _ in range(12):
        tap.feed(delta)
    tap.feed(delta * 9)
    tap.feed(done)

    assert tap.delivered().output_tokens == 20


def test_nothing_delivered_is_nothing():
    assert SSETap(CHAT).delivered() == Usage(source="partial")
    embeddings = SSETap(Dialect.OPENAI_EMBEDDINGS)
    embeddings.feed(sse(content("x")))
    assert embeddings.delivered().output_tokens == 0


# -- plain bodies --------------------------------------------------------------------------------------------

ANSWER = (
    b'{"id":"c","object":"chat.completion","choices":[{"message":{"content":"\\"usage\\":{"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7},"service_tier":"flex"}'
)


@pytest.mark.parametrize("text", [ANSWER, b"\n" * 2000 + ANSWER + b"\n"])
def test_a_json_body_passes_and_reports(text: bytes):
    for pieces in ([text], bytewise(text)):
        tap = JSONTap(CHAT)
        assert run(tap, *pieces) == text
        assert tap.usage() == Usage(input_tokens=3, output_tokens=4, service_tier="flex")
        assert (tap.complete, tap.errored, tap.first_token) == (True, False, True)


def test_a_json_chunk_is_the_same_object():
    assert JSONTap(CHAT).feed(ANSWER) is ANSWER


@pytest.mark.parametrize("step", [5000, 65536, 30_000_000])
def test_a_large_body_is_read_from_its_end(step: int):
    text = (
        b'{"object":"list","data":[{"embedding":"'
        + b"QUJD" * 5_000_000
        + b'"}],"model":"e","usage":{"prompt_tokens":8,"total_tokens":8}}'
    )
    tap = JSONTap(Dialect.OPENAI_EMBEDDINGS)
    for at in range(0, len(text), step):
        piece = text[at : at + step]
        assert tap.feed(piece) is piece
        assert sum(map(len, tap._parts)) <= 2 * TAIL_BYTES + step
    tap.end()

    assert tap.usage() == Usage(input_tokens=8)
    assert tap.complete
    assert tap.delivered() == Usage(source="estimated")


def test_a_large_body_without_usage_reports_nothing():
    tap = JSONTap(CHAT)
    run(tap, b'{"choices":["' + b"x" * 3 * TAIL_BYTES + b'"]}')

    assert tap.usage() is None


@pytest.mark.parametrize("text", [b"", b"<html>", b'{"usage":', b"[1]", b'{"a":1}', b'{"usage":null}', b"\xff"])
def test_a_body_without_a_report_is_none(text: bytes):
    tap = JSONTap(CHAT)
    run(tap, text)

    assert tap.usage() is None


def test_a_cut_json_body_is_not_whole():
    tap = JSONTap(CHAT)
    tap.feed(ANSWER[:-10])

    assert not tap.complete
    assert tap.delivered() == Usage(output_tokens=len(ANSWER[:-10]) // 4, source="partial")
    tap.end()
    assert not tap.complete


def test_an_error_in_a_good_answer_is_seen():
    tap = JSONTap(CHAT)
    run(tap, b'{"error":{"message":"no"},"usage":null}')

    assert tap.usage() is None
    assert tap.errored
    assert tap.delivered() == Usage(source="estimated")


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"choices":[{"message":{"role":"assistant","content":"four and more"},"logprobs":{"content":[1,2]}}]}', 4),
        (b'{"choices":[{"message":{"content":"four"}},{"message":{"content":"four"}}]}', 2),
        (b'{"choices":[{"text":"x"}]}', 1),
        (b'{"choices":[{"message":{"content":null,"tool_calls":[{"function":{"arguments":"{\\"a\\":1}"}}]}}]}', 2),
        (b'{"choices":[{"message":{"content":"","reasoning_content":"12345678"}}]}', 2),
        (b'{"output":[{"content":[{"text":"four"}],"summary":[]},{"summary":[{"text":"four"}]}]}', 2),
        (b'{"output":[{"arguments":"{}"}],"text":{"format":{}}}', 1),
        (b'{"choices":[{}],"said":"elsewhere, somehow"}', 11),
        (b'{"choices":[1],"output":{}}', 6),
    ],
)
def test_a_body_without_a_report_is_estimated_by_its_text(body: bytes, tokens: int):
    tap = JSONTap(CHAT)
    run(tap, body)

    assert tap.delivered() == Usage(output_tokens=tokens, source="estimated")


@pytest.mark.parametrize("mark", [b"", b"data: [DONE]\n\n"])
def test_case_73_a_stream_of_nothing_but_an_error_delivered_nothing(mark: bytes):
    tap = SSETap(CHAT)
    run(tap, b'data: {"error":{"message":"no","code":"boom"}}\n\n' + mark)

    assert tap.errored
    assert tap.delivered().output_tokens == 0


def test_an_error_after_some_text_leaves_the_text_delivered():
    tap = SSETap(CHAT)
    run(tap, b'data: {"choices":[{"delta":{"content":"some text"}}]}\n\n' + b'data: {"error":{"message":"no"}}\n\n')

    assert tap.errored
    assert tap.delivered().output_tokens > 0


def test_case_59_a_stream_labelled_json_still_reports():
    tap = JSONTap(CHAT)

    assert run(tap, A1) == A1
    assert tap.usage() == Usage(input_tokens=20, output_tokens=9)


def test_a_provider_s_charge_is_read_where_trusted():
    body = b'{"usage":{"prompt_tokens":1,"cost":0.5}}'
    for trust, nanos in ((True, 500_000_000), (False, None)):
        for tap in (JSONTap(CHAT, trust_cost=trust), SSETap(CHAT, trust_cost=trust)):
            run(tap, body if isinstance(tap, JSONTap) else b"data: " + body + b"\n\n")
            usage = tap.usage()
            assert usage is not None
            assert usage.provider_cost_nanos == nanos


def test_other_bodies_just_pass():
    tap = PassTap()
    audio = bytes(range(256))

    assert tap.feed(audio) is audio
    assert (tap.complete, tap.usage(), tap.first_token) == (False, None, True)
    assert tap.delivered().source == "partial"
    assert tap.end() == b""
    assert (tap.complete, tap.delivered().source) == (True, "estimated")


def test_transcripts_report_seconds():
    tap = SSETap(Dialect.OPENAI_OTHER)
    text = sse(
        'data: {"type":"transcript.text.delta","delta":"Hi"}',
        'data: {"type":"transcript.text.done","text":"Hi","usage":{"type":"duration","seconds":3}}',
    )

    assert run(tap, text) == text
    assert tap.usage() == Usage(seconds=3.0)
    assert tap.complete


# -- where the short way must not be taken -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"data: x\nid: 5\n\n", b"data: x\n\n"),
        (b"data: x\n\ndata: y\nid: 5\n\n", b"data: x\n\ndata: y\n\n"),
        (b"data: x\n\nid: 5\n\n", b"data: x\n\n"),
        (b"data: x\rid: 5\n\n", b"data: x\r\n"),
        (b"event: a\n\nevent: b\ndata: x\ndata: y\n\n", b"event: b\ndata: x\ndata: y\n\n"),
        (b"event: a\ndata: x\n\nid: 1\ndata: y\n\n", b"event: a\ndata: x\n\ndata: y\n\n"),
        (b"event: a\nretry: 1\n\n", b""),
        (b"event: a\ndata: x\nid: 1\nevent: b\ndata: y\n\n", b"event: a\ndata: x\nevent: b\ndata: y\n\n"),
    ],
)
def test_a_chunk_that_only_looks_usual_is_repaired(text: bytes, expected: bytes):
    for pieces in ([text], bytewise(text)):
        tap = SSETap(CHAT)
        tap.feed(sse(ROLE))
        assert b"".join(tap.feed(piece) for piece in pieces) + tap.end() == expected
        assert tap.repairs == 1


def test_an_error_is_relayed_even_where_usage_comes_with_it():
    text = sse(ROLE, USAGE[:-1] + ',"error":{"message":"no"}}')
    tap = SSETap(CHAT, strip_usage=True)

    assert run(tap, text) == text
    assert tap.errored


def test_a_line_inside_a_long_event_is_no_event():
    tap = SSETap(CHAT)

    tap.feed(b"data: " + b"x" * HELD_BYTES_MAX + b"\n")
    assert tap.mid_event
    tap.feed(b"data: y\n")
    tap.feed(b"data: z\n\n")

    assert (tap.events, tap.mid_event) == (1, False)


def test_many_unusual_events_after_half_an_event_are_no_deep_recursion():
    text = b"id: 1\ndata: x\n\n" * 5000

    assert run(SSETap(CHAT), b"data: ", b"y\n\n" + text) == b"data: y\n\n" + b"data: x\n\n" * 5000


# -- media ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [Dialect.OPENAI_IMAGES, Dialect.OPENAI_SPEECH, Dialect.OPENAI_TRANSCRIPTIONS])
def test_a_stream_of_media_is_whole_at_a_clean_end(dialect: Dialect):
    tap = SSETap(dialect)
    tap.feed(b'data: {"type":"x.done","usage":{"type":"duration","seconds":2}}\n\n')
    tap.end()

    assert tap.complete
    assert tap.usage() == Usage(seconds=2.0)
