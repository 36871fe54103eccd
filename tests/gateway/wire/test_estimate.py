"""Input tokens before anyone has counted."""

import pytest

from gateway.wire.estimate import FILE_TOKENS, IMAGE_TOKENS, estimate_input_tokens


def around(value: int, expected: float) -> bool:
    return abs(value - expected) <= 90


def test_text_counts_by_its_bytes():
    assert estimate_input_tokens(b"") == 1
    assert estimate_input_tokens(b"x" * 330) == 100


def test_case_56_encoded_pictures_count_as_pictures():
    picture = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}' % (b"QUJD" * 250_000)

    for count in (1, 3):
        body = b'{"messages":[{"content":[%b]}]}' % b",".join([picture] * count)
        assert around(estimate_input_tokens(body), count * IMAGE_TOKENS)


@pytest.mark.parametrize(
    "part",
    [
        b'{"type":"image_url","image_url":{"url":"https://a.example/x.png","detail":"low"}}',
        b'{"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}',
        b'{"type":"input_image","image_url":"https://a.example/x.png"}',
    ],
)
def test_linked_pictures_count(part: bytes):
    assert around(estimate_input_tokens(b"[%b,%b]" % (part, part)), 2 * IMAGE_TOKENS)


def test_recordings_count_by_their_length():
    data = b"QUJD" * 52_500
    body = b'{"type":"input_audio","input_audio":{"format":"wav", "data": "%b"}}' % data

    assert around(estimate_input_tokens(body), 100)
    assert around(estimate_input_tokens(body.replace(b'"format":"wav", ', b"")), 100)


@pytest.mark.parametrize(
    "part",
    [
        b'{"inlineData":{"mimeType":"image/png","data":"%b"}}',
        b'{"inline_data": {"data": "%b", "mime_type": "image/png"}}',
        b'{"type":"image","source":{"type":"base64","media_type":"image/png","data":"%b"}}',
    ],
)
def test_media_beside_which_its_type_stands_counts_as_what_it_is(part: bytes):
    picture = part % (b"QUJD" * 250_000)

    assert around(estimate_input_tokens(b"[%b,%b]" % (picture, picture)), 2 * IMAGE_TOKENS)
    assert around(estimate_input_tokens(picture.replace(b"image/png", b"audio/wav")), 476)
    assert around(estimate_input_tokens(picture.replace(b"image/png", b"application/pdf")), 25_000)


def test_data_of_no_known_kind_is_text():
    assert around(estimate_input_tokens(b'{"data":"%b","data":5,"data' % (b"A" * 3300)), 1000)
    assert around(estimate_input_tokens(b'{"inlineData":{"mimeType":"image/png","data":"%b' % (b"A" * 3300)), 1000)


def test_documents_count_by_their_size_and_are_capped():
    small = b'{"file_data":"data:application/pdf;base64,%b"}' % (b"QUJD" * 10_000)
    large = b'{"file_data":"data:application/pdf;base64,%b"}' % (b"QUJD" * 6_000_000)

    assert around(estimate_input_tokens(small), 1_000)
    assert around(estimate_input_tokens(large), 500_000)


def test_files_elsewhere_count():
    assert around(estimate_input_tokens(b'{"file":{"file_id":"file-1"}}'), FILE_TOKENS)
    assert around(estimate_input_tokens(b'{"fileData":{"fileUri":"gs://a/b.mp4"}}'), FILE_TOKENS)


def test_a_data_url_without_an_end_is_text():
    body = b'{"url":"data:image/png;base64,' + b"A" * 3300

    assert around(estimate_input_tokens(body), 1000)


@pytest.mark.parametrize(
    "part",
    [
        b'{"type":"image","source":{"type":"base64","media_type":"image/png","data":"%b"}}',
        b'{"type":"image","source":{"data": "%b", "media_type": "image/png", "type": "base64"}}',
        b'{"inlineData":{"mimeType":"image/png","data":"%b"}}',
        b'{"inline_data":{"data":"%b","mime_type":"image/png"}}',
    ],
)
def test_pictures_of_anthropics_and_googles_count_as_pictures(part: bytes):
    """Case 56 in the dialects that write base64 bare."""
    picture = part % (b"QUJD" * 250_000)

    assert around(estimate_input_tokens(b"[%b,%b]" % (picture, picture)), 2 * IMAGE_TOKENS)


def test_a_bare_document_counts_by_its_size_and_a_text_by_its_bytes():
    data = b"QUJD" * 10_000
    source = b'{"source":{"type":"base64","media_type":"application/pdf","data":"%b"}}'

    assert around(estimate_input_tokens(source % data), 1_000)
    text = b'{"source":{"type":"text","media_type":"text/plain","data":"%b"}}' % (b"word " * 2_000)
    assert around(estimate_input_tokens(text), 3_030)
    assert around(estimate_input_tokens(b'{"input":{"data":"%b"}}' % (b"word " * 2_000)), 3_030)
