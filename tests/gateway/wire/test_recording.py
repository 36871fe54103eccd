"""How long recordings are: by their own words where those can be true, else by their size."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.recording import HEAD_BYTES, LEAST_BYTES_PER_S, USUAL_BYTES_PER_S, Recording


def heard(data: bytes, *, each: int = 1_000) -> Recording:
    recording = Recording()
    for at in range(0, len(data), each):
        recording.feed(data[at : at + each])
    return recording


def wav(seconds: float, *, rate: int = 16_000, channels: int = 2, bits: int = 16, junk: int = 0) -> bytes:
    each = channels * bits // 8
    size = int(seconds * rate) * each
    extra = b"LIST" + struct.pack("<I", junk) + bytes(junk) if junk else b""
    shape = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * each, each, bits)
    # The sizes may be anything: nobody knows them when a recording is begun.
    return b"RIFF\xff\xff\xff\xffWAVEfmt " + shape + extra + b"data\xff\xff\xff\xff" + bytes(size)


def flac(seconds: int, rate: int, size: int) -> bytes:
    packed = rate << 44 | 1 << 41 | 15 << 36 | seconds * rate
    head = b"fLaC\0\0\0\x22" + bytes(10) + packed.to_bytes(8, "big")
    return head + bytes(size - len(head))


def ogg(seconds: int, size: int) -> bytes:
    head = b"OggS\0\2" + bytes(8) + bytes(14) + b"OpusHead\1\1" + struct.pack("<HI", 312, 16_000)
    last = b"OggS\0\4" + struct.pack("<q", seconds * 48_000 + 312) + bytes(200)
    return head + bytes(size - len(head) - len(last)) + last


def mp4(seconds: int, size: int, *, at_end: bool, long: bool = False) -> bytes:
    times = (
        struct.pack(">B3xQQIQ", 1, 0, 0, 600, seconds * 600)
        if long
        else struct.pack(">B3xIIII", 0, 0, 0, 600, seconds * 600)
    )
    movie = b"mvhd" + times + bytes(80)
    start = b"\0\0\0\x18ftypM4A "
    filler = bytes(size - len(start) - len(movie))
    return start + filler + movie if at_end else start + movie + filler


def mp3(size: int, *, kbits: int = 64, tag: int = 0, frames: int | None = None) -> bytes:
    rates = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128)
    frame = bytes((0xFF, 0xFB, rates.index(kbits) << 4, 0xC4)) + bytes(32)
    if frames is not None:
        frame += b"Xing\0\0\0\1" + struct.pack(">I", frames)
    head = b"ID3\4\0\0" + bytes((0, 0, tag >> 7, tag & 127)) + b"\xff\xfb" * (tag // 2) if tag else b""
    return head + frame + bytes(size - len(head) - len(frame))


def webm(seconds: float, size: int) -> bytes:
    head = (
        b"\x1a\x45\xdf\xa3"
        + bytes(20)
        + b"\x2a\xd7\xb1\x83\x0f\x42\x40"
        + b"\x44\x89\x88"
        + struct.pack(">d", seconds * 1_000)
    )
    return head + bytes(size - len(head))


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (wav(3), 3),
        (wav(1.5, rate=44_100, channels=1, bits=24), 1.5),
        (wav(2, junk=4_000), 2),
        (flac(10, 44_100, 500_000), 10),
        (ogg(20, 60_000), 20),
        (mp4(30, 300_000, at_end=False), 30),
        (mp4(30, 300_000, at_end=True, long=True), 30),
        (mp3(80_000), 10),
        (mp3(80_000 + 10, tag=2_000), (80_000 - 2_000) / 8_000),
        (mp3(80_000, frames=1_000), 1_000 * 1_152 / 44_100),
        (webm(12.5, 100_000), 12.5),
        # Slower than anything that is held for.
        (ogg(100, 60_000), 30),
        # Nothing that says how long it is, or a lie.
        (b"text" * 8_000, 2),
        (flac(100_000, 44_100, 16_000), 1),
        (flac(0, 44_100, 16_000), 1),
        (b"RIFF\0\0\0\0WAVEfmt " + bytes(16_000 - 16), 1),
        (b"", 0),
    ],
)
@pytest.mark.parametrize("each", [7, 1_000, 10**6])
def test_how_long_it_is(data: bytes, seconds: float, each: int):
    assert heard(data, each=each).seconds() == pytest.approx(seconds, rel=0.005, abs=0.001)


def test_the_most_that_it_can_be_believes_a_wav_alone():
    assert heard(wav(3)).longest_s(64_000 * 100) == 100
    assert heard(flac(10, 44_100, 500_000)).longest_s(500_000) == 500_000 / LEAST_BYTES_PER_S


@given(
    st.sampled_from(
        [
            b"RIFF....WAVEfmt ",
            b"fLaC",
            b"OggS",
            b"....ftyp",
            b"\x1a\x45\xdf\xa3",
            b"ID3\4\0\0",
            b"\xff\xfb\x90\xc4",
            b"",
        ]
    ),
    st.binary(max_size=200),
    st.sampled_from([b"", b"mvhd", b"OpusHead", b"\x01vorbis", b"\x44\x89\x88", b"Xing", b"OggS", b"data"]),
    st.binary(max_size=40),
)
def test_whatever_comes_has_a_length_that_its_size_allows(start: bytes, middle: bytes, mark: bytes, end: bytes):
    data = start + middle + mark + end

    recording = heard(data, each=9)

    assert 0 <= recording.seconds() <= recording.longest_s(len(data)) <= len(data) / LEAST_BYTES_PER_S
    assert USUAL_BYTES_PER_S > LEAST_BYTES_PER_S


def test_what_is_kept_does_not_grow():
    recording = heard(ogg(20, 4_000_000), each=50_000)

    assert recording.size_bytes == 4_000_000
    assert sum(len(getattr(recording, name)) for name in ("_head", "_tail")) <= HEAD_BYTES + 65_307
