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


def test_documents_count_by_their_size_and_are_capped():
    small = b'{"file_data":"data:application/pdf;base64,%b"}' % (b"QUJD" * 10_000)
    large = b'{"file_data":"data:application/pdf;base64,%b"}' % (b"QUJD" * 6_000_000)

    assert around(estimate_input_tokens(small), 1_000)
    assert around(estimate_input_tokens(large), 500_000)


def test_files_elsewhere_count():
    assert around(estimate_input_tokens(b'{"file":{"file_id":"file-1"}}'), FILE_TOKENS)


def test_a_data_url_without_an_end_is_text():
    body = b'{"url":"data:image/png;base64,' + b"A" * 3300

    assert around(estimate_input_tokens(body), 1000)
