"""Event streams cut into frames."""

import pytest

from gateway.wire.sse import EventTooLong, Frame, FrameScanner, cut, parse


def scan(*chunks: bytes) -> list[Frame]:
    scanner = FrameScanner()
    frames = [frame for chunk in chunks for frame in scanner.feed(chunk)]
    rest = scanner.finish()
    return frames if rest is None else [*frames, rest]


def bytewise(text: bytes) -> list[Frame]:
    return scan(*(text[index : index + 1] for index in range(len(text))))


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
def test_an_event_ends_at_a_blank_line_of_any_kind(eol: bytes):
    text = eol.join([b"event: a", b"data: 1", b"", b"data: 2", b"", b""])

    frames = bytewise(text)

    assert [(frame.event, frame.data) for frame in frames] == [(b"a", b"1"), (b"", b"2")]
    assert b"".join(frame.raw for frame in frames) == text


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\n\r", b"\r\n\r"])
def test_mixed_line_ends_end_an_event(blank: bytes):
    text = b"data: 1" + blank + b"data: 2" + blank

    assert [frame.data for frame in bytewise(text)] == [b"1", b"2"]
    assert bytewise(text) == scan(text)


def test_a_boundary_inside_crlf_is_one_line_end():
    scanner = FrameScanner()

    first = scanner.feed(b"data: 1\r")
    second = scanner.feed(b"\ndata: 2\r\n\r")
    third = scanner.feed(b"\n")

    assert (first, second) == ([], [])
    assert [frame.data for frame in third] == [b"1\n2"]


def test_a_bare_cr_waits_for_the_byte_after_it():
    scanner = FrameScanner()

    assert scanner.feed(b"data: 1\r\r") == []
    assert [frame.raw for frame in scanner.feed(b"d")] == [b"data: 1\r\r"]
    assert scanner.finish() == Frame(b"d", b"", b"")


def test_several_data_lines_are_joined():
    assert parse(b"data: a\ndata:b\ndata\ndata:  c\n\n").data == b"a\nb\n\n c"


def test_one_space_after_the_colon_is_taken_off():
    assert parse(b"data:x\n\n").data == b"x"
    assert parse(b"data: x\n\n").data == b"x"
    assert parse(b"data:  x\n\n").data == b" x"


def test_comments_and_unknown_fields_say_nothing():
    frame = parse(b": OPENROUTER PROCESSING\nfoo: bar\nid: 1\nretry: 2\n\n")

    assert (frame.event, frame.data) == (b"", b"")


def test_a_byte_order_mark_hides_no_field():
    frames = scan(b"\xef\xbb\xbfdata: 1\n\n")

    assert frames == [Frame(b"\xef\xbb\xbfdata: 1\n\n", b"", b"1")]


def test_case_43_line_separators_inside_strings_end_nothing():
    text = 'data: {"a":"x\u2028y\u2029z\u0085\x0b\x0c"}\n\n'.encode()

    (frame,) = bytewise(text)

    assert frame.raw == text


def test_stray_blank_lines_are_frames_of_their_own():
    frames = scan(b"\n\r\ndata: 1\n\n\n")

    assert [frame.raw for frame in frames] == [b"\n", b"\r\n", b"data: 1\n\n", b"\n"]


def test_what_is_left_at_the_end_can_still_be_read():
    assert scan(b"data: 1\n\ndata: [DONE]")[-1] == Frame(b"data: [DONE]", b"", b"[DONE]")


def test_nothing_left_is_nothing():
    scanner = FrameScanner()
    scanner.feed(b"data: 1\n\n")

    assert scanner.finish() is None


@pytest.mark.parametrize("size", [1, 7, 64])
def test_an_event_beyond_the_bound_is_an_error_whole_or_not(size: int):
    text = b"data: " + b"x" * 100 + b"\n\n"
    scanner = FrameScanner(event_bytes_max=64)

    with pytest.raises(EventTooLong):
        _ = [scanner.feed(text[at : at + size]) for at in range(0, len(text), size)]


def test_a_whole_event_beyond_the_bound_is_an_error():
    with pytest.raises(EventTooLong):
        FrameScanner(event_bytes_max=64).feed(b"data: " + b"x" * 100 + b"\n\n")


def test_many_short_events_in_one_feed_are_within_the_bound():
    assert len(FrameScanner(event_bytes_max=16).feed(b"data: 1\n\n" * 100)) == 100


def test_a_long_event_is_not_searched_twice():
    # One byte at a time, a scanner that starts over each time would look at 12 million bytes here.
    held = bytearray(b"data: ")
    scanned = 0
    for _ in range(5000):
        held += b"x"
        assert cut(held, 0, scanned) == -1
        scanned = len(held)

    assert cut(held + b"\n\n", 0, scanned) == len(held) + 2
    # What was scanned is not looked at: a blank line planted there is not seen.
    held[10:12] = b"\n\n"
    assert cut(held, 0, scanned) == -1
