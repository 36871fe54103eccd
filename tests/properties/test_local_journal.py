"""Whatever happens to the bytes of a journal, every entry that was not touched is read, and nothing else is."""

import os

from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel.local_journal import Gap, make_frame, read_frames

KEY = bytes(range(16))
OTHER_KEY = bytes(16)

# Payloads that hold marks, and whole frames under a key that is not the file's: what a caller might try.
hostile = st.sampled_from([b"\xf5\x1eJ\xe2", make_frame(b"a forged entry", OTHER_KEY), b"\xf5\x1eJ", b""])
payloads = st.lists(
    st.one_of(st.binary(max_size=80), hostile, st.builds(bytes.__add__, hostile, hostile)), max_size=12
)


def lay_out(payloads: list[bytes]) -> tuple[bytes, list[range]]:
    """A file, and where each frame is in it."""
    data, places = b"", []
    for payload in payloads:
        frame = make_frame(payload, KEY)
        places.append(range(len(data), len(data) + len(frame)))
        data += frame
    return data, places


def read(data: bytes) -> list[bytes]:
    return [found for found in read_frames(data, KEY) if not isinstance(found, Gap)]


@given(payloads)
def test_what_was_written_is_read(written):
    data, _ = lay_out(written)

    assert list(read_frames(data, KEY)) == written


@given(payloads, st.data())
def test_a_cut_costs_the_entry_it_goes_through(written, data):
    whole, places = lay_out(written)
    end = data.draw(st.integers(0, len(whole)))

    found = list(read_frames(whole[:end], KEY))

    kept = [payload for payload, place in zip(written, places, strict=True) if place.stop <= end]
    assert [each for each in found if not isinstance(each, Gap)] == kept
    assert all(each.torn for each in found if isinstance(each, Gap))


@given(payloads.filter(bool), st.data())
def test_flipped_bits_cost_the_entries_they_are_in(written, data):
    whole, places = lay_out(written)
    flips = data.draw(st.dictionaries(st.integers(0, len(whole) - 1), st.integers(1, 255), min_size=1, max_size=5))
    damaged = bytearray(whole)
    for at, bits in flips.items():
        damaged[at] ^= bits

    found = read(bytes(damaged))

    touched = [any(at in place for at in flips) for place in places]
    assert found == [payload for payload, hit in zip(written, touched, strict=True) if not hit]


@given(payloads, st.binary(max_size=200), st.data())
def test_foreign_bytes_cost_the_entry_they_are_put_into(written, junk, data):
    whole, places = lay_out(written)
    at = data.draw(st.integers(0, len(whole)))

    damaged = whole[:at] + junk + whole[at:]
    found = read(damaged)

    # Junk may repeat what it is put beside: then nothing is split.
    around = [damaged[place.start : place.stop + len(junk)] for place in places]
    whole_ones = [
        make_frame(payload, KEY) in bytes_there for payload, bytes_there in zip(written, around, strict=True)
    ]
    assert found == [payload for payload, is_whole in zip(written, whole_ones, strict=True) if is_whole]


@given(st.binary(max_size=2000))
def test_noise_is_no_entry(noise):
    assert read(noise) == []


@given(payloads.filter(bool))
def test_the_key_of_another_file_reads_nothing(written):
    data, _ = lay_out(written)

    assert all(isinstance(found, Gap) for found in read_frames(data, os.urandom(16)))
