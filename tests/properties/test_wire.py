"""What holds for every body and every stream, however they are written or cut."""

import string
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.wire.dialects import Dialect
from gateway.wire.form import FormScanner, peek_form, rewrite_form
from gateway.wire.peek import WATCHED, peek, rewrite, splice
from gateway.wire.ratelimit import format_duration, parse_duration
from gateway.wire.sse import FrameScanner
from gateway.wire.sse_tap import SSETap
from gateway.wire.taps import JSONTap
from gateway.wire.usage import Usage, normalise, parse_usage, read_report

# -- JSON bodies ---------------------------------------------------------------------------------------------

SPACE = st.text(" \t\r\n", max_size=2)
# Text that looks like the structure around it is the most likely to be taken for it.
TRAPS = st.sampled_from(
    ['"model":"x"', '\\"', "\\", '"}', '",', "]}", '{"a":', "\u2028", "\\u006d", "é", "𝄞", "model"]
)
TEXT = st.lists(st.one_of(st.text(max_size=6), TRAPS), max_size=4).map("".join)
NAMES = st.one_of(st.sampled_from(sorted(WATCHED)), st.sampled_from(["messages", "foo", "include_usage"]), TEXT)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def spelled(draw: st.DrawFn, text: str) -> str:
    """A JSON string for `text`, some characters of it escaped as no encoder would."""
    plain = msgspec.json.encode(text).decode()
    letters = []
    for letter in plain[1:-1] if "\\" not in plain else "":
        escaped = letter in string.ascii_letters and draw(st.integers(0, 9)) == 0
        letters.append(f"\\u{ord(letter):04x}" if escaped else letter)
    return f'"{"".join(letters)}"' if letters else plain


@st.composite
def written(draw: st.DrawFn, value: Any) -> str:
    """JSON text for a value, with white space anywhere."""
    if isinstance(value, dict):
        members = [
            f"{draw(spelled(name))}{draw(SPACE)}:{draw(SPACE)}{draw(written(inner))}" for name, inner in value.items()
        ]
        inside = f"{draw(SPACE)},{draw(SPACE)}".join(members)
        return "{" + draw(SPACE) + inside + draw(SPACE) + "}"
    if isinstance(value, list):
        return "[" + draw(SPACE) + ",".join([draw(written(inner)) for inner in value]) + "]"
    return draw(spelled(value)) if isinstance(value, str) else msgspec.json.encode(value).decode()


def folds(name: str) -> bool:
    return name.casefold() != name and name.casefold() in WATCHED


OBJECTS = st.dictionaries(NAMES, VALUES, max_size=7).map(
    lambda found: found | {"model": str(found.get("model", "m"))}
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    found = draw(OBJECTS)
    found = {name: value for name, value in found.items() if not folds(name)}
    order = draw(st.permutations(list(found)))
    return (draw(SPACE) + draw(written({name: found[name] for name in order})) + draw(SPACE)).encode(), found


@given(bodies())
def test_every_body_is_read_as_a_parser_reads_it(given_: tuple[bytes, dict[str, Any]]):
    body, expected = given_

    found = peek(body)

    assert found.model == expected["model"]
    assert found.stream is (expected.get("stream") is True)
    assert found.model_span is not None
    assert msgspec.json.decode(body[slice(*found.model_span)]) == expected["model"]
    assert body[found.end : found.end + 1] == b"}"
    assert not body[found.end + 1 :].strip()


@given(bodies(), TEXT)
def test_a_renamed_model_changes_its_span_alone(given_: tuple[bytes, dict[str, Any]], model: str):
    body, expected = given_
    found = peek(body)

    out = rewrite(body, found, model=model)

    assert msgspec.json.decode(out) == expected | {"model": model}
    assert found.model_span is not None
    start, end = found.model_span
    assert (out[:start], out[len(out) - (len(body) - end) :]) == (body[:start], body[end:])


@given(bodies(), st.sampled_from([None, {}, {"include_usage": False}, {"include_usage": None, "x": 1}, {"x": [{}]}]))
def test_a_stream_is_asked_for_usage_and_nothing_else_changes(given_: tuple[bytes, dict[str, Any]], options: Any):
    _, found = given_
    found = {**found, "stream": True, "stream_options": options}
    body = msgspec.json.encode(found)

    out = msgspec.json.decode(rewrite(body, peek(body), include_usage=True))

    assert out == found | {"stream_options": (options or {}) | {"include_usage": True}}


@given(bodies(), st.data())
def test_members_are_dropped_and_renamed(given_: tuple[bytes, dict[str, Any]], data: st.DataObject):
    body, expected = given_
    drop = data.draw(st.sets(st.sampled_from(sorted(expected)), max_size=4))
    source = data.draw(st.sampled_from(sorted(expected)))
    found = peek(body)

    out = msgspec.json.decode(rewrite(body, found, drop=drop, rename={source: "fresh name"}))

    assert out == {
        ("fresh name" if name == source else name): value for name, value in expected.items() if name not in drop
    }


@given(bodies(), st.data())
def test_a_watched_member_twice_is_refused_wherever_it_stands(
    given_: tuple[bytes, dict[str, Any]], data: st.DataObject
):
    _, found = given_
    name = data.draw(st.sampled_from(sorted(WATCHED)))
    found.setdefault(name, "v")
    members = [(key, msgspec.json.encode(value)) for key, value in found.items()]
    again = data.draw(st.sampled_from([name, name.upper(), name.capitalize()]))
    members.insert(data.draw(st.integers(0, len(members))), (again, data.draw(VALUES.map(msgspec.json.encode))))
    body = "{" + ",".join([f"{data.draw(spelled(key))}:{value.decode()}" for key, value in members]) + "}"

    with pytest.raises(BadRequest) as caught:
        peek(body.encode())

    assert caught.value.param in (name, "model")


@given(bodies(), st.data())
def test_repeated_unknown_members_do_not_mislead(given_: tuple[bytes, dict[str, Any]], data: st.DataObject):
    _, found = given_
    members = [(key, value) for key, value in found.items()]
    unknown = st.sampled_from(["x", "messages", "", "a b"])
    for _ in range(data.draw(st.integers(1, 4))):
        members.insert(data.draw(st.integers(0, len(members))), (data.draw(unknown), data.draw(VALUES)))
    body = "{" + ",".join([f"{data.draw(spelled(key))}:{data.draw(written(value))}" for key, value in members]) + "}"

    peeked = peek(body.encode())

    assert peeked.model == found["model"]
    assert peeked.stream is (found.get("stream") is True)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes):
    try:
        found = peek(body)
    except BadRequest:
        return
    assert body[found.end : found.end + 1] == b"}"


@given(bodies(), st.data())
def test_a_damaged_body_is_read_or_refused(given_: tuple[bytes, dict[str, Any]], data: st.DataObject):
    body, _ = given_
    at = data.draw(st.integers(0, len(body)))
    damaged = body[:at] + data.draw(st.binary(max_size=3)) + body[at + data.draw(st.integers(0, 3)) :]

    try:
        found = peek(damaged)
    except BadRequest:
        return
    assert found.model_span is None or damaged[found.model_span[0] : found.model_span[0] + 1] == b'"'


@given(st.binary(max_size=40), st.data())
def test_splices_put_each_piece_where_it_belongs(text: bytes, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    edits = [(span, b"<%d>" % number) for number, span in enumerate(spans)]

    expected, at = b"", 0
    for (start, end), new in edits:
        expected, at = expected + text[at:start] + new, end

    assert splice(text, edits) == expected + text[at:]


# -- form bodies ---------------------------------------------------------------------------------------------

HEAD = b'Content-Disposition: form-data; name="model"\r\n\r\n'
FILE_HEAD = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
CONTENT = st.lists(
    st.sampled_from([b"\r\n", b"--XX", b"--", b"\r", b"XX", b"\r\n\r\n", b"a", b"\xff"]), max_size=8
).map(b"".join)


def is_content(text: bytes) -> bool:
    return b"\r\n--XX" not in b"\r\n" + text


@given(st.lists(CONTENT.filter(is_content), max_size=4), st.integers(0, 4), st.text(string.ascii_letters, min_size=1))
def test_a_form_is_read_in_any_order_and_only_the_model_changes(files: list[bytes], at: int, model: str):
    parts = [b'Content-Disposition: form-data; name="file"; filename="model"\r\n\r\n' + text for text in files]
    parts.insert(at, b'Content-Disposition: form-data; name="model"\r\n\r\n@')
    body = b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + b"--XX--\r\n"

    found = peek_form(body, b"multipart/form-data; boundary=XX")

    assert found.model == "@"
    assert found.model_span is not None
    assert rewrite_form(body, found, model=model) == splice(body, [(found.model_span, model.encode())])


@given(
    st.lists(
        st.sampled_from([b"--XX", b"--XX--", b"\r\n", b" ", b"-", b"--", b"x", b"--XXY", b"\r", HEAD, FILE_HEAD]),
        max_size=24,
    ).map(b"".join),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_a_form_reads_the_same_in_any_pieces(body: bytes, marks: list[int]):
    def read(pieces: list[bytes]) -> object:
        scanner = FormScanner(b"multipart/form-data; boundary=XX")
        try:
            for piece in pieces:
                scanner.feed(piece)
            scanner.finish()
        except BadRequest as error:
            return error.param
        return scanner.fields, scanner.spans, scanner.files, scanner.recording.size_bytes

    cuts = sorted(min(mark, len(body)) for mark in marks)
    some = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    whole = read([body])

    assert read(some) == whole
    assert read([body[at : at + 1] for at in range(len(body))]) == whole


# -- event streams -------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"data:", b"data: x", b"event: a", b": c", b"id: 1", b"retry: 1", b"", b":", b" "),
        *(
            b"\xef\xbb\xbf",
            "é\u2028\x85".encode(),
            b"\x0b\x0c\x1c",
            b'x_tokens"',
            b"data: [DONE]",
            b'data: {"error":{}}',
        ),
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"total_tokens":3}}',
        b'data: {"choices":[{"finish_reason":"stop"}]}',
    ]
)
STREAMS = st.lists(PIECES, max_size=25).map(b"".join)


@st.composite
def cut_up(draw: st.DrawFn, text: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(STREAMS, st.data())
def test_the_same_frames_come_out_however_a_stream_is_cut(text: bytes, data: st.DataObject):
    whole, cut, single = FrameScanner(), FrameScanner(), FrameScanner()

    frames = whole.feed(text)
    rest = whole.finish()

    assert b"".join(frame.raw for frame in frames) + (rest.raw if rest else b"") == text
    assert [frame for piece in data.draw(cut_up(text)) for frame in cut.feed(piece)] == frames
    assert [frame for at in range(len(text)) for frame in single.feed(text[at : at + 1])] == frames
    assert cut.finish() == single.finish() == rest


def relay(tap: SSETap, pieces: list[bytes]) -> tuple[bytes, object]:
    out = b"".join([*(tap.feed(piece) for piece in pieces), tap.end()])
    return out, (tap.usage(), tap.repairs, tap.mid_event)


@settings(max_examples=200)
@given(STREAMS, st.data(), st.booleans(), st.booleans())
def test_a_tap_gives_the_same_bytes_and_counts_however_a_stream_is_cut(
    text: bytes, data: st.DataObject, strip: bool, repair: bool
):
    def tap() -> SSETap:
        return SSETap(Dialect.OPENAI_CHAT, strip_usage=strip, repair=repair)

    whole = relay(tap(), [text])

    assert relay(tap(), data.draw(cut_up(text))) == whole
    assert relay(tap(), [text[at : at + 1] for at in range(len(text))]) == whole


@given(STREAMS, st.data())
def test_without_leave_to_repair_a_tap_changes_no_byte(text: bytes, data: st.DataObject):
    out, _ = relay(SSETap(Dialect.OPENAI_CHAT, repair=False), data.draw(cut_up(text)))

    assert out == text


EVENTS = st.lists(
    st.sampled_from(
        [
            b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}],"usage":null}',
            b'data: {"choices":[{"delta":{"content":"\\"usage\\":{\\"total_tokens\\":5}"}}]}',
            b'data: {"choices":[],"prompt_filter_results":[],"usage":null}',
            b": keep-alive",
            b"event: x\ndata: {}",
            b"data: [DONE]",
        ]
    ),
    max_size=12,
)
REPORT = b'data: {"choices": [ ] , "usage": {"prompt_tokens":3,"total_tokens":3}}'


@given(EVENTS, EVENTS, st.data())
def test_of_a_sound_stream_the_usage_chunk_alone_is_taken_out(
    before: list[bytes], after: list[bytes], data: st.DataObject
):
    def stream(events: list[bytes]) -> bytes:
        return b"".join(event + b"\n\n" for event in events)

    stripping = SSETap(Dialect.OPENAI_CHAT, strip_usage=True)
    keeping = SSETap(Dialect.OPENAI_CHAT)
    text = stream([*before, REPORT, *after])

    out, facts = relay(stripping, data.draw(cut_up(text)))
    kept, also = relay(keeping, data.draw(cut_up(text)))

    assert (out, kept) == (stream([*before, *after]), text)
    assert facts == also == (Usage(input_tokens=3), 0, False)


@given(st.binary(max_size=80), st.data())
def test_any_bytes_pass_a_json_tap(text: bytes, data: st.DataObject):
    tap = JSONTap(Dialect.OPENAI_CHAT)

    out = b"".join([*(tap.feed(piece) for piece in data.draw(cut_up(text))), tap.end()])

    assert out == text
    tap.usage()


# -- counts --------------------------------------------------------------------------------------------------

COUNTS = st.one_of(st.none(), st.integers(-5, 10**13), st.floats(), st.text(max_size=2), st.booleans())
DETAILS = st.dictionaries(
    st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "reasoning_tokens"]),
    COUNTS,
)
REPORTS = st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens", "cost"]),
    COUNTS,
).flatmap(
    lambda report: st.fixed_dictionaries(
        {
            "prompt_tokens_details": st.one_of(DETAILS, COUNTS),
            "completion_tokens_details": st.one_of(DETAILS, COUNTS),
        }
    ).map(lambda details: report | details)
)


@given(REPORTS)
def test_parts_add_up_to_no_more_than_their_total(report: dict[str, object]):
    usage = parse_usage(msgspec.json.encode(report), trust_cost=True)

    if usage is None:
        return
    parts = (
        usage.input_cached_tokens,
        usage.input_cache_write_tokens,
        usage.input_cache_write_1h_tokens,
        usage.input_audio_tokens,
        usage.input_image_tokens,
    )
    assert all(part >= 0 for part in parts)
    assert sum(parts) <= usage.input_tokens
    assert (
        usage.output_reasoning_tokens + usage.output_audio_tokens + usage.output_image_tokens <= usage.output_tokens
    )


SMALL = st.one_of(st.none(), st.integers(-1, 4))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"], SMALL),
            **dict.fromkeys(["total_tokens", "reasoning_tokens", "seconds", "cache_read_input_tokens"], SMALL),
            **dict.fromkeys(
                [
                    "prompt_tokens_details",
                    "completion_tokens_details",
                    "input_tokens_details",
                    "output_tokens_details",
                ],
                st.one_of(st.none(), st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), SMALL)),
            ),
        },
    )
)
def test_the_short_way_through_a_report_leads_where_the_long_one_does(report: dict[str, object]):
    raw = msgspec.json.encode(report)

    assert parse_usage(raw) == normalise(read_report(raw) or {})


@given(st.floats(0, 10**7))
def test_a_duration_written_is_read_and_never_shorter(seconds: float):
    read = parse_duration(format_duration(seconds))

    assert read is not None
    assert seconds - 1e-6 <= read <= seconds + 0.0011
