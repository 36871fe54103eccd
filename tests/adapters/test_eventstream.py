"""Frames of AWS' event streams, cut anywhere and damaged anywhere."""

import itertools
import uuid
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.testing.cases import frame
from gateway_adapters.eventstream import DamagedStream, EventStreamParser, read_headers

#: As the specification has it: a frame without headers, its payload `{'foo':'bar'}`.
PLAIN = bytes.fromhex("0000001d00000000fd528c5a7b27666f6f273a27626172277dc3653936")
EMPTY = bytes.fromhex("000000100000000005c248eb7d98c8ff")

headers = st.dictionaries(st.text("abc:-", min_size=1, max_size=8), st.text(max_size=12), max_size=4)
messages = st.lists(st.tuples(headers, st.binary(max_size=64)), max_size=6)


def cuts(data: bytes, marks: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(mark % (len(data) + 1) for mark in marks)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def test_the_frames_of_the_specification() -> None:
    parser = EventStreamParser()

    empty, plain = parser.feed(EMPTY + PLAIN)

    assert (empty.headers, empty.payload) == ({}, b"")
    assert (plain.headers, plain.payload) == ({}, b"{'foo':'bar'}")
    assert parser.resting


@given(messages=messages, marks=st.lists(st.integers(0, 10_000), max_size=12))
def test_any_cut_gives_the_same_frames(messages: list[tuple[dict[str, str], bytes]], marks: list[int]) -> None:
    """Case 99."""
    data = b"".join(frame(*message) for message in messages)
    parser = EventStreamParser()

    frames = [found for piece in cuts(data, marks) for found in parser.feed(piece)]

    assert [(found.headers, found.payload) for found in frames] == messages
    assert parser.resting


def test_byte_by_byte() -> None:
    """Case 99."""
    data = frame({":event-type": "a"}, b"one") + frame({":event-type": "b"}, b"") + PLAIN
    parser = EventStreamParser()

    frames = [found for at in range(len(data)) for found in parser.feed(data[at : at + 1])]

    assert [found.payload for found in frames] == [b"one", b"", b"{'foo':'bar'}"]
    assert [found.text(":event-type") for found in frames] == ["a", "b", ""]


@settings(max_examples=200)
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255), marks=st.lists(st.integers(0, 10_000), max_size=4))
def test_any_damaged_byte_is_noticed(place: int, flip: int, marks: list[int]) -> None:
    """Case 99: what came before the damage stays good, and nothing after it is believed."""
    good = frame({":event-type": "a"}, b"one")
    data = bytearray(frame({":event-type": "b"}, b"two") + PLAIN)
    data[place % len(data)] ^= flip
    parser = EventStreamParser()
    seen = []

    with pytest.raises(DamagedStream) as caught:  # noqa: PT012 - which piece finds it depends on the cuts
        for piece in cuts(good + bytes(data), marks):
            seen += parser.feed(piece)
        # A length that grew by so little that the rest would fit is waited for.
        parser.feed(b"\0" * 512)
    seen += caught.value.frames

    assert seen[0].payload == b"one"
    assert all(found.payload in (b"one", b"two") for found in seen)
    with pytest.raises(DamagedStream):
        parser.feed(PLAIN)


@pytest.mark.parametrize(("size", "headers_size"), [(15, 0), (20, 8), (2**31, 0), (1025, 0), (16, 2**32 - 1)])
def test_lengths_that_can_not_be(size: int, headers_size: int) -> None:
    prelude = size.to_bytes(4, "big") + headers_size.to_bytes(4, "big")
    prelude += zlib.crc32(prelude).to_bytes(4, "big")

    with pytest.raises(DamagedStream):
        EventStreamParser(frame_bytes_max=1024).feed(prelude)


def test_headers_of_every_type() -> None:
    one = uuid.UUID(int=7)
    written = (
        b"\x01a\x00" b"\x01b\x01" b"\x01c\x02\xff" b"\x01d\x03\x00\x02" b"\x01e\x04\x00\x00\x00\x03"
        b"\x01f\x05\x00\x00\x00\x00\x00\x00\x00\x04" b"\x01g\x06\x00\x02\x00\xff" b"\x01h\x07\x00\x03\xe2\x82\xac"
        b"\x01i\x08\x00\x00\x00\x00\x00\x00\x00\x05" b"\x01j\x09" + one.bytes
    )  # fmt: skip

    assert read_headers(written) == {
        "a": True,
        "b": False,
        "c": -1,
        "d": 2,
        "e": 3,
        "f": 4,
        "g": b"\x00\xff",
        "h": "€",
        "i": 5,
        "j": one,
    }


@pytest.mark.parametrize(
    "written", [b"\x01", b"\x01a", b"\x01a\x0a", b"\x01a\x07\x00\x05x", b"\x01a\x05\x00", b"\x02\xff\xfe\x00"]
)
def test_headers_that_are_none(written: bytes) -> None:
    with pytest.raises(DamagedStream):
        read_headers(written)
