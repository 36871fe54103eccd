from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.loadtest.events import EventCounter

#: Lines and fragments of lines as they occur in event streams, and as they do not.
fragments = st.lists(
    st.sampled_from(
        [
            b"data: x",
            b"data:",
            b"data",
            b"database",
            b"event: ping",
            b": comment",
            b"id: 1",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
        ]
    ),
    max_size=40,
).map(b"".join)


def reference(stream: bytes) -> int:
    """The standard's algorithm, on the whole stream and a line at a time."""
    events, has_data = 0, False
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for line in lines[:-1]:
        if line == b"":
            events += has_data
            has_data = False
        elif line == b"data" or line.startswith(b"data:"):
            has_data = True
    return events


@given(stream=fragments, cuts=st.lists(st.integers(min_value=0, max_value=200), max_size=8))
@example(stream=b"data: a\r\n\r\ndata: b\r\n\r\n", cuts=[8, 9, 10])
@example(stream=b"data: a\n\n\n\ndata: b\n\n", cuts=[])
@example(stream=b"data: a\r\n\r\n\ndata: b\n\n", cuts=[11])
def test_any_cutting_counts_what_the_standard_dispatches(stream: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    counter = EventCounter()

    counted = sum(counter.feed(stream[start:end]) for start, end in pairwise(edges))

    assert counted == reference(stream)


@given(stream=fragments)
def test_byte_by_byte_counts_the_same(stream: bytes) -> None:
    counter = EventCounter()

    assert sum(counter.feed(stream[i : i + 1]) for i in range(len(stream))) == reference(stream)


def test_whole_events_in_one_piece_are_counted_one_by_one() -> None:
    assert EventCounter().feed(b"data: a\n\n" * 50) == 50


def test_comments_are_no_events() -> None:
    counter = EventCounter()

    assert counter.feed(b": keep-alive\n\n") == 0
    assert counter.feed(b"data: a\n\n: keep-alive\n\ndata: b\n\n") == 2


def test_a_long_line_is_not_kept() -> None:
    counter = EventCounter()

    counter.feed(b"data: " + b"x" * 1_000_000)

    assert len(counter._line) < 10
    assert counter.feed(b"\n\n") == 1
