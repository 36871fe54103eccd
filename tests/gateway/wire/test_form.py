"""Form bodies: the model found and renamed, the files left alone."""

import pytest

from gateway.errors import BadRequest
from gateway.wire.form import peek_form, rewrite_form

TYPE = b"multipart/form-data; boundary=XX"


def part(disposition: bytes, content: bytes, *more: bytes) -> bytes:
    lines = [b"Content-Disposition: form-data; " + disposition, *more]
    return b"--XX\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XX--\r\n"


FILE = part(
    b'name="file"; filename="a.wav"', bytes(range(256)) + b"\r\n--XY\r\n--XXL\r\n", b"Content-Type: audio/wav"
)
MODEL = part(b'name="model"', b"whisper-1")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (body(MODEL, FILE), TYPE),
        (body(FILE, MODEL), TYPE),
        (body(FILE, MODEL), b'Multipart/Form-Data; charset=utf-8; Boundary="XX"'),
        (b"preamble\r\n" + body(MODEL) + b"epilogue", TYPE),
        (b"\r\n" + body(MODEL), TYPE),
        (body(part(b"name=model", b"whisper-1")), TYPE),
        (body(part(b'name="model"', b"whisper-1", b"Content-Type: text/plain")), TYPE),
        (body(b'--XX  \r\ncontent-disposition:form-data;name="model"\r\n\r\nwhisper-1\r\n'), TYPE),
        (body(part(b'name="x"; filename="a \\" name=model; \xc3\xa9.png"', b"1"), MODEL), TYPE),
        (body(part(b"name=\"file\"; filename*=UTF-8''%e2%82%ac.png", b""), MODEL), TYPE),
        (body(b"--XX\r\n\r\nno headers\r\n", MODEL), TYPE),
    ],
)
def test_case_62_the_model_is_found_and_renamed_and_nothing_else_changes(text: bytes, kind: bytes):
    found = peek_form(text, kind)

    assert found.model == "whisper-1"
    assert rewrite_form(text, found, model="other") == text.replace(b"whisper-1", b"other")
    assert rewrite_form(text, found, model="whisper-1") is text


def test_stream_and_n_are_read():
    found = peek_form(body(FILE, part(b'name="stream"', b"true"), part(b'name="n"', b"3")), TYPE)

    assert (found.model, found.stream, found.n) == (None, True, 3)
    assert rewrite_form(b"x", found, model="y") == b"x"


@pytest.mark.parametrize("value", [b"false", b"1", b""])
def test_only_true_streams(value: bytes):
    assert peek_form(body(part(b'name="stream"', value)), TYPE).stream is False


def test_no_parts_at_all():
    assert peek_form(b"--XX--", TYPE).model is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nothing",
        MODEL,
        MODEL[:-2],
        MODEL + b"--XX",
        FILE + b"--XX\r\n",
        b"--XX\r\nno end of headers\r\n--XX--\r\n",
        b"--XX\r\n--XX--\r\n",
        b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\n--XX--\r\n',
        b"--XXjunk\r\n\r\n\r\n--XX--",
        body(MODEL).replace(b"\r\n", b"\n"),
        b"--XX\r\nContent-Disposition: form-data; name=x; y=" + b"y" * 20_000 + b"\r\n\r\n1\r\n--XX--",
        body(*[part(b'name="f"', b"1")] * 1001),
        body(part(b'name="model"', b"m" * 2000)),
        body(part(b'name="model"', b"\xff")),
    ],
)
def test_case_62_a_body_that_is_not_whole_is_refused(text: bytes):
    with pytest.raises(BadRequest):
        peek_form(text, TYPE)


@pytest.mark.parametrize(
    "text",
    [
        body(MODEL, MODEL),
        body(MODEL, part(b'name="MODEL"', b"x")),
        body(part(b'name="x"; name="model"', b"x")),
        body(part(b'name="model"; name="x"', b"x")),
        body(part(b'name="model"; filename="x"', b"x")),
        body(part(b'name="model"', b"eA==", b"Content-Transfer-Encoding: base64")),
        body(part(b'name="x"', b"x", b'Content-Disposition: form-data; name="model"')),
        body(part(b'name="mod\\el"', b"x")),
    ],
)
def test_case_61_a_model_that_two_parsers_could_read_differently_is_refused(text: bytes):
    with pytest.raises(BadRequest) as caught:
        peek_form(text, TYPE)

    assert caught.value.param == "model"


@pytest.mark.parametrize(
    "kind",
    [
        b"",
        b"multipart/form-data",
        b"application/json; boundary=XX",
        b"multipart/form-data; boundary=XX; boundary=YY",
        b"multipart/form-data; boundary=" + b"X" * 300,
    ],
)
def test_a_content_type_without_one_boundary_is_refused(kind: bytes):
    with pytest.raises(BadRequest):
        peek_form(body(MODEL), kind)


def test_a_name_with_line_ends_does_not_go_into_a_body():
    found = peek_form(body(MODEL), TYPE)

    with pytest.raises(ValueError, match="line ends"):
        rewrite_form(body(MODEL), found, model="a\r\n--XX--")
