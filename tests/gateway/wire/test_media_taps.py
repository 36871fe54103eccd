"""Answers that are no text: what they came to."""

import pytest

from gateway.wire.dialects import Dialect
from gateway.wire.media_taps import PicturesTap, RanksTap, TranscriptTap
from gateway.wire.usage import Usage

PICTURES = (
    b'{"data":[{"url" : "https://x/1","b64_json":null},{"url":"u2","revised_prompt":"say \\"url\\":\\"x\\""}],"n":2}'
)


@pytest.mark.parametrize("size", [1, 3, 7, 50, 1_000])
@pytest.mark.parametrize(
    ("body", "images"),
    [
        (PICTURES, 2),
        (b'{"data":[{"b64_json":"aaaa"},{"b64_json": "bbbb"},{"b64_json"\n:\n"cc"}]}', 3),
        (b'{"data":[{"url":"u","b64_json":"aaaa"}]}', 1),
        (b'{"data":[]}', 0),
    ],
)
def test_pictures_are_counted_wherever_they_are_cut(body: bytes, images: int, size: int):
    tap = PicturesTap(Dialect.OPENAI_IMAGES)

    assert b"".join(tap.feed(body[at : at + size]) for at in range(0, len(body), size)) == body
    tap.end()

    assert tap.usage() is None
    assert tap.delivered() == Usage(images=images, source="estimated")


def test_pictures_too_large_to_be_kept_are_counted_and_their_usage_is_found():
    tap = PicturesTap(Dialect.OPENAI_IMAGES)
    picture = b'{"b64_json":"' + b"QUJD" * 200_000 + b'"}'
    body = b'{"data":[%b,%b],"usage":{"input_tokens":1,"output_tokens":2,"total_tokens":3}}' % (picture, picture)
    for at in range(0, len(body), 65_536):
        tap.feed(body[at : at + 65_536])
    tap.end()

    assert tap.usage() == Usage(input_tokens=1, output_tokens=2, images=2)
    assert tap.complete


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"text":"a","usage":{"type":"duration","seconds":9}}', Usage(seconds=9.0)),
        (b'{"duration":8.5,"text":"a"}', Usage(seconds=8.5)),
        (b'{"duration":"8.5","text":"a"}', Usage(seconds=8.5)),
        (b'{"duration":8.5,"text":"a","usage":{"type":"duration","seconds":9}}', Usage(seconds=9.0)),
        (
            b'{"usage":{"type":"tokens","input_tokens":4,"input_token_details":{"audio_tokens":3},"output_tokens":1}}',
            Usage(input_tokens=4, input_audio_tokens=3, output_tokens=1),
        ),
        (b'{"text":"a","duration":"long"}', None),
        (b'{"text":"a"}', None),
        (b'{"error":{"message":"no"},"duration":3}', None),
        (b"[1]", None),
    ],
)
def test_a_transcript_tells_how_long_it_was(body: bytes, usage: Usage | None):
    tap = TranscriptTap(Dialect.OPENAI_TRANSCRIPTIONS)
    tap.feed(body)
    tap.end()

    assert tap.usage() == usage


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"results":[],"meta":{"billed_units":{"search_units":2}}}', Usage(searches=2)),
        (b'{"results":[],"usage":{"total_tokens":7}}', Usage(input_tokens=7)),
        (b'{"results":[],"usage":{"search_units":1,"total_tokens":7}}', Usage(input_tokens=7, searches=1)),
        (b'{"results":[],"meta":{}}', None),
        (b'{"results":[],"meta":7}', None),
        (b"no", None),
    ],
)
def test_ranks_report_searches_or_tokens(body: bytes, usage: Usage | None):
    tap = RanksTap(Dialect.RERANK)
    tap.feed(body)
    tap.end()

    assert tap.usage() == usage
    assert tap.delivered().output_tokens == 0
