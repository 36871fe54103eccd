"""What requests ask for besides tokens, and what is made of reports that leave it out."""

import pytest

from gateway.errors import BadRequest
from gateway.wire.dialects import Dialect
from gateway.wire.form import scan_form
from gateway.wire.peek import peek
from gateway.wire.units import complete, estimate, units_of
from gateway.wire.usage import Usage


def units(dialect: Dialect, body: bytes):
    return units_of(dialect, body, peek(body))


def form(*parts: bytes):
    body = b"".join(b"--X\r\nContent-Disposition: form-data; name=%b" % part for part in parts) + b"--X--\r\n"
    return scan_form(body, b"multipart/form-data; boundary=X")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"model":"m","n":2}', ""),
        (b'{"model":"m","n":2,"size":"1024x1024"}', "1024x1024"),
        (b'{"model":"m","n":2,"quality":"HD","size":" 1024x1792"}', "hd 1024x1792"),
        (b'{"model":"m","n":2,"quality":"auto","size":null}', ""),
        (b'{"model":"m","n":2,"quality":7}', "7"),
    ],
)
def test_pictures_have_a_number_and_a_kind(body: bytes, kind: str):
    found = units(Dialect.OPENAI_IMAGES, body)

    assert (found.images, found.image_kind) == (2, kind)
    assert found.usage.output_tokens == found.output_tokens == 2 * 8_192


def test_a_picture_of_low_quality_is_held_for_as_such():
    assert units(Dialect.OPENAI_IMAGES, b'{"quality":"low"}').output_tokens == 512


def test_what_a_picture_is_paid_for_by_is_there_once():
    with pytest.raises(BadRequest):
        units(Dialect.OPENAI_IMAGES, b'{"model":"m","size":"1x1","size":"9x9"}')


def test_an_edit_takes_in_as_many_pictures_as_there_are_or_may_be():
    picture = b'image; filename="a"\r\n\r\nx\r\n'
    found = form(b"n\r\n\r\n3\r\n", picture, picture)

    assert units_of(Dialect.OPENAI_IMAGE_EDITS, b"", found.peek(), form=found).input_tokens == 2 * 1_600
    large = units_of(Dialect.OPENAI_IMAGE_EDITS, b"", found.peek(), form=found, upload_bytes=10**8)
    assert (large.images, large.input_tokens) == (3, 16 * 1_600)


def test_speech_is_counted_in_characters_not_bytes():
    found = units(Dialect.OPENAI_SPEECH, '{"input":"Grü\\u00dfe 世界"}'.encode())

    assert found.characters == found.usage.characters == 8
    assert found.output_tokens > found.usage.output_tokens > 0


@pytest.mark.parametrize(("documents", "searches"), [(0, 1), (1, 1), (100, 1), (101, 2), (1_000, 10)])
def test_a_search_has_a_hundred_documents(documents: int, searches: int):
    body = b'{"query":"q","documents":[%b]}' % b",".join([b'"d"'] * documents)

    assert units(Dialect.RERANK, body).searches == searches


def test_documents_that_are_no_list_are_the_providers_to_refuse():
    assert units(Dialect.RERANK, b'{"documents":"d"}').searches == 1


def test_a_recording_is_held_for_as_the_longest_it_can_be():
    found = form(b'file; filename="a.mp3"\r\n\r\n' + b"x" * 32_000 + b"\r\n")

    held = units_of(Dialect.OPENAI_TRANSCRIPTIONS, b"", found.peek(), form=found, upload_bytes=32_000)

    assert held.seconds == 16
    assert held.usage.seconds == 2
    assert held.input_tokens == 160 > held.usage.input_tokens


EXPECTED = Usage(images=2, image_kind="hd", seconds=3.0, characters=9, searches=1, source="estimated")


def test_a_report_without_units_gets_those_that_are_counted():
    reported = Usage(input_tokens=5)

    made = complete(reported, EXPECTED, needs=frozenset())

    assert (made.images, made.characters, made.seconds, made.searches) == (2, 9, 0.0, 0)
    assert (made.image_kind, made.source) == ("hd", "reported")


def test_what_is_guessed_is_only_filled_in_where_the_price_needs_it():
    made = complete(Usage(input_tokens=5), EXPECTED, needs=frozenset({"seconds"}))

    assert (made.seconds, made.searches, made.source) == (3.0, 0, "estimated")


def test_what_is_reported_stays():
    reported = Usage(images=1, seconds=1.0, characters=1, searches=1, image_kind="low")

    assert complete(reported, EXPECTED, needs=frozenset({"seconds", "searches"})) is reported


def test_of_pictures_those_that_came_are_charged():
    expected = units(Dialect.OPENAI_IMAGES, b'{"n":4,"quality":"low"}').usage

    some = estimate(Dialect.OPENAI_IMAGES, expected, Usage(images=3, source="estimated"))
    unseen = estimate(Dialect.OPENAI_IMAGES, expected, Usage(source="estimated"))
    cut = estimate(Dialect.OPENAI_IMAGES, expected, Usage(source="partial"))

    assert [(made.images, made.output_tokens, made.source) for made in (some, unseen, cut)] == [
        (3, 3 * 512, "estimated"),
        (4, 4 * 512, "estimated"),
        (0, 0, "partial"),
    ]


def test_what_was_read_out_or_heard_is_charged_whole():
    spoken = units(Dialect.OPENAI_SPEECH, b'{"input":"Hello"}').usage

    assert estimate(Dialect.OPENAI_SPEECH, spoken, Usage(source="partial")).characters == 5
    heard = Usage(seconds=9.0, output_tokens=36)
    made = estimate(Dialect.OPENAI_TRANSCRIPTIONS, heard, Usage(output_tokens=4, source="partial"))
    assert (made.seconds, made.output_tokens) == (9.0, 4)
