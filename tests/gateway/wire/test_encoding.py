"""Content codings undone, bombs refused."""

import gzip
import random
import zlib

import pytest

from gateway.errors import BodyTooLarge, UnsupportedEncoding, UpstreamMalformed
from gateway.wire.encoding import REQUEST_MEMBERS_MAX, BadCoding, inflate_request, request_inflater, response_inflater

TEXT = b'{"model":"m","messages":[]}' * 100
MB = 1024 * 1024


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        (b"gzip", gzip.compress(TEXT, mtime=0)),
        (b" GZip ", gzip.compress(TEXT, mtime=0)),
        pytest.param(b"x-gzip", gzip.compress(TEXT[:50]) + gzip.compress(TEXT[50:]) + b"\0\0\0", id="members"),
        (b"deflate", zlib.compress(TEXT)),
        (b"deflate", bare(TEXT)),
        (b"identity", TEXT),
        (b"", TEXT),
    ],
)
def test_case_52_a_coding_is_undone_whole_and_bytewise(coding: bytes, packed: bytes):
    assert inflate_request(packed, coding, size_bytes_max=MB) == TEXT

    inflater = request_inflater(coding, size_bytes_max=MB)
    if inflater is not None:
        out = b"".join(inflater.feed(packed[at : at + 1]) for at in range(len(packed)))
        inflater.end()
        assert out == TEXT


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"compress"])
def test_case_52_an_unknown_coding_is_refused(coding: bytes):
    with pytest.raises(UnsupportedEncoding) as caught:
        inflate_request(b"x", coding, size_bytes_max=MB)

    assert caught.value.status == 415
    with pytest.raises(UpstreamMalformed):
        response_inflater(coding, size_bytes_max=MB)


@pytest.mark.parametrize(
    "packed",
    [
        b"junk",
        gzip.compress(TEXT, mtime=0)[:-1],
        gzip.compress(TEXT, mtime=0)[:5],
        gzip.compress(TEXT, mtime=0) + b"x",
    ],
)
def test_a_body_that_is_not_of_its_coding_is_refused(packed: bytes):
    with pytest.raises(BadCoding):
        inflate_request(packed, b"gzip", size_bytes_max=MB)


def test_one_byte_of_deflate_is_cut_short():
    with pytest.raises(BadCoding):
        inflate_request(b"x", b"deflate", size_bytes_max=MB)


def test_an_empty_body_is_an_empty_body():
    assert inflate_request(b"", b"gzip", size_bytes_max=MB) == b""


def test_case_49_a_bomb_is_stopped_by_its_size():
    with pytest.raises(BodyTooLarge):
        inflate_request(gzip.compress(bytes(3 * MB)), b"gzip", size_bytes_max=2 * MB)


def test_case_49_a_bomb_is_stopped_by_its_ratio_before_it_is_large():
    inflater = response_inflater(b"gzip", size_bytes_max=10_000 * MB)
    assert inflater is not None
    packed = gzip.compress(bytes(64 * MB), compresslevel=9)

    with pytest.raises(UpstreamMalformed):
        inflater.feed(packed)


def test_text_that_repeats_itself_is_no_bomb():
    text = b'{"role":"user","content":"hello there"},' * 50_000

    assert inflate_request(gzip.compress(text, compresslevel=1), b"gzip", size_bytes_max=4 * MB) == text


def test_output_just_beyond_a_step_is_not_left_behind():
    packed = zlib.compress(random.Random(2).randbytes(MB - 100) + b"a" * 300)

    for cut in range(len(packed) - 14, len(packed)):
        inflater = response_inflater(b"deflate", size_bytes_max=2 * MB)
        assert inflater is not None
        assert inflater.feed(packed[:cut]) == zlib.decompressobj().decompress(packed[:cut])


def test_output_of_more_than_one_step_comes_out_at_once():
    text = bytes(random.Random(1).choices(b"abcdefgh", k=3 * MB + 17))
    packed = zlib.compress(text)

    assert inflate_request(packed, b"deflate", size_bytes_max=8 * MB) == text


def test_case_50_each_flushed_event_comes_out_at_once():
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    inflater = response_inflater(b"gzip", size_bytes_max=MB)
    assert inflater is not None

    for number in range(20):
        event = b"data: %d\n\n" % number
        assert inflater.feed(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)) == event
    inflater.feed(packer.flush())
    inflater.end()


def test_a_request_has_few_members():
    """Each costs a new state and a copy of what follows it: of empty ones, a body has room for millions."""
    empty, rest = gzip.compress(b"", mtime=0), gzip.compress(b"{}", mtime=0)

    whole = empty * (REQUEST_MEMBERS_MAX - 1) + rest
    assert inflate_request(whole, b"gzip", size_bytes_max=1000) == b"{}"
    with pytest.raises(BadCoding):
        inflate_request(empty + whole, b"gzip", size_bytes_max=1000)


def test_an_answer_may_have_any_number_of_members():
    """A provider may send each event as one, for hours."""
    inflater = response_inflater(b"gzip", size_bytes_max=1_000_000)
    assert inflater is not None

    packed = b"".join(gzip.compress(b"%d;" % number, mtime=0) for number in range(3 * REQUEST_MEMBERS_MAX))

    assert inflater.feed(packed) == b"".join(b"%d;" % number for number in range(3 * REQUEST_MEMBERS_MAX))
    inflater.end()


def test_what_repeats_itself_at_its_beginning_only_is_no_bomb():
    body = b"0" * (8 * MB) + random.Random(1).randbytes(MB)

    assert inflate_request(gzip.compress(body), b"gzip", size_bytes_max=16 * MB) == body
