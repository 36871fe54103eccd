"""Paths, error bodies and error events of each dialect."""

import msgspec
import pytest

from gateway.wire.dialects import DONE, Dialect, dialect_of, error_body, error_event, error_status
from gateway.wire.sse import FrameScanner

ERROR = {"status": 503, "type": "server_error", "code": "x", "message": 'no "luck"', "request_id": "r1"}


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        (b"/chat/completions", Dialect.OPENAI_CHAT),
        (b"/chat/completions/", Dialect.OPENAI_CHAT),
        (b"/completions", Dialect.OPENAI_COMPLETIONS),
        (b"/responses", Dialect.OPENAI_RESPONSES),
        (b"/embeddings", Dialect.OPENAI_EMBEDDINGS),
        (b"/messages", Dialect.ANTHROPIC_MESSAGES),
        (b"/models/gemini-x:generateContent", Dialect.GEMINI_GENERATE),
        (b"/models/gemini-x:streamGenerateContent", Dialect.GEMINI_GENERATE),
        (b"/models/gemini-x", Dialect.OPENAI_OTHER),
        (b"/images/generations", Dialect.OPENAI_IMAGES),
        (b"/images/edits", Dialect.OPENAI_IMAGE_EDITS),
        (b"/images/variations", Dialect.OPENAI_IMAGE_EDITS),
        (b"/audio/speech", Dialect.OPENAI_SPEECH),
        (b"/audio/transcriptions/", Dialect.OPENAI_TRANSCRIPTIONS),
        (b"/audio/translations", Dialect.OPENAI_TRANSCRIPTIONS),
        (b"/moderations", Dialect.OPENAI_MODERATIONS),
        (b"/rerank", Dialect.RERANK),
        (b"/images", Dialect.OPENAI_OTHER),
        (b"/responses/resp_1", Dialect.OPENAI_OTHER),
        (b"", Dialect.OPENAI_OTHER),
        (b"/", Dialect.OPENAI_OTHER),
    ],
)
def test_the_path_tells_the_dialect(path: bytes, dialect: Dialect):
    assert dialect_of(path) is dialect


def test_an_openai_error_has_the_four_members_and_the_request_id():
    body = msgspec.json.decode(error_body(Dialect.OPENAI_CHAT, **ERROR, param="model"))

    assert body == {
        "error": {"message": 'no "luck"', "type": "server_error", "param": "model", "code": "x", "request_id": "r1"}
    }


def test_an_anthropic_error_is_told_by_its_status():
    body = msgspec.json.decode(error_body(Dialect.ANTHROPIC_MESSAGES, **ERROR))

    assert body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": 'no "luck"'},
        "request_id": "r1",
    }
    assert error_status(Dialect.ANTHROPIC_MESSAGES, 503) == 529


@pytest.mark.parametrize(("status", "kind"), [(418, "invalid_request_error"), (502, "api_error"), (599, "api_error")])
def test_anthropic_statuses_without_a_type_of_their_own(status: int, kind: str):
    body = error_body(Dialect.ANTHROPIC_MESSAGES, status=status, type="t", code=None, message="m")

    assert msgspec.json.decode(body)["error"]["type"] == kind


def test_a_gemini_error_has_googles_shape():
    body = msgspec.json.decode(error_body(Dialect.GEMINI_GENERATE, **ERROR))

    assert body["error"]["code"] == 503
    assert body["error"]["status"] == "UNAVAILABLE"
    assert error_status(Dialect.GEMINI_GENERATE, 402) == 429


@pytest.mark.parametrize("dialect", list(Dialect))
def test_an_error_event_is_whole_and_readable(dialect: Dialect):
    frames = FrameScanner().feed(error_event(dialect, **ERROR))

    assert b"".join(frame.raw for frame in frames) == error_event(dialect, **ERROR)
    assert msgspec.json.decode(frames[0].data)
    assert (frames[-1].raw == DONE) == (dialect in (Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS))


def test_a_responses_error_event_is_flat_and_numbered():
    (frame,) = FrameScanner().feed(error_event(Dialect.OPENAI_RESPONSES, **ERROR, sequence_number=7))

    assert frame.event == b"error"
    assert msgspec.json.decode(frame.data) == {
        "type": "error",
        "code": "x",
        "message": 'no "luck"',
        "param": None,
        "sequence_number": 7,
        "request_id": "r1",
    }


def test_no_request_id_is_no_member():
    plain = {"status": 400, "type": "t", "code": None, "message": "m"}

    for dialect in Dialect:
        assert b"request" not in error_body(dialect, **plain).lower().replace(b"invalid_request", b"")
