"""The echo provider's files are real ones, and its other answers can be counted by hand."""

import base64
import io
import struct
import wave
import zlib

import msgspec
import pytest

from gateway.wire.form import scan_form
from gateway_adapters.echo_answers import Answer, answer
from gateway_adapters.echo_media import picture, read_form, recorded_s, sound

FORM = (
    b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\necho\r\n'
    b'--XX\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n--XX--\r\n'
)


def ask(path: str, **members: object) -> Answer:
    return answer(b"POST", path.encode(), msgspec.json.encode(members))


def whole(made: Answer) -> bytes:
    return b"".join(data for _, data in made.frames)


def events(made: Answer) -> list[dict]:
    assert made.content_type.startswith(b"text/event-stream")
    return [msgspec.json.decode(data.partition(b"data: ")[2]) for _, data in made.frames]


def test_a_picture_is_a_png() -> None:
    data = picture(b"cat")

    assert data == picture(b"cat") != picture(b"dog")
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at = 8
    kinds = []
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + size]
        assert zlib.crc32(body) == struct.unpack_from(">I", data, at + 8 + size)[0]
        kinds.append(body[:4])
        at += 12 + size
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]


def test_speech_is_a_wav_with_a_tone_for_each_word() -> None:
    made = ask("/v1/audio/speech", model="echo-slow", input="One two three.")
    frames = list(made.frames)

    assert made.content_type == b"audio/wav"
    assert [pause for pause, _ in frames] == [0.0, 0.0, 0.1, 0.1]
    with wave.open(io.BytesIO(b"".join(data for _, data in frames))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8_000)
        assert file.getnframes() == 2_400


def test_speech_in_events_reports_its_usage() -> None:
    seen = events(ask("/v1/audio/speech", input="One two", stream_format="sse"))

    assert [event["type"] for event in seen] == ["speech.audio.delta"] * 2 + ["speech.audio.done"]
    assert seen[-1]["usage"] == {"input_tokens": 2, "output_tokens": 2, "total_tokens": 4}


def test_pictures_are_as_many_as_were_asked_for() -> None:
    made = msgspec.json.decode(whole(ask("/v1/images/generations", prompt="A red cat", n=3)))

    assert len({each["b64_json"] for each in made["data"]}) == 3
    assert base64.b64decode(made["data"][0]["b64_json"]).startswith(b"\x89PNG")
    assert made["usage"]["input_tokens"] == 3
    assert made["usage"]["output_tokens"] == 300


def test_pictures_can_be_streamed() -> None:
    seen = events(ask("/v1/images/generations", prompt="A cat", stream=True))

    assert [event["type"] for event in seen] == ["image_generation.partial_image", "image_generation.completed"]
    assert seen[-1]["usage"]["output_tokens"] == 100


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("json", b'{"text":"A recording of 8044 bytes.","usage":{"type":"duration","seconds":0.5}}'),
        ("text", b"A recording of 8044 bytes.\n"),
        ("srt", b"1\n00:00:00,000 --> 00:00:00,500\nA recording of 8044 bytes.\n\n"),
        ("vtt", b"WEBVTT\n\n00:00:00.000 --> 00:00:00.500\nA recording of 8044 bytes.\n\n"),
    ],
)
def test_a_transcript_says_how_long_the_recording_is(form: str, text: bytes) -> None:
    file = b"".join(sound(["a", "b", "c", "d", "e"]))

    made = answer(b"POST", b"/v1/audio/transcriptions", FORM % (b"response_format", form.encode(), file))

    assert whole(made) == text


def test_a_transcript_can_be_streamed() -> None:
    seen = events(answer(b"POST", b"/v1/audio/translations", FORM % (b"stream", b"true", b"x" * 16_000)))

    assert "".join(event.get("delta", "") for event in seen) == seen[-1]["text"] == "A recording of 16000 bytes."
    assert seen[-1]["usage"] == {"type": "duration", "seconds": 1.0}


def test_nothing_is_flagged() -> None:
    made = msgspec.json.decode(whole(ask("/v1/moderations", input=["a", "b"])))

    assert [result["flagged"] for result in made["results"]] == [False, False]


def test_documents_are_ranked_by_the_words_they_share() -> None:
    documents = ["nothing", {"text": "the red cat"}, "red"]

    made = msgspec.json.decode(whole(ask("/v1/rerank", query="red cat", documents=documents, top_n=2)))

    assert made["results"] == [{"index": 1, "relevance_score": 1.0}, {"index": 2, "relevance_score": 0.5}]
    assert made["meta"]["billed_units"] == {"search_units": 1}


def test_a_form_is_read_as_the_gateway_reads_it() -> None:
    file = bytes(range(256)) * 8
    body = FORM % (b"n", b"3", file)

    read = read_form(body)

    assert (read["model"], read["n"], read["file"]) == (b"echo", b"3", file)
    assert scan_form(body, b"multipart/form-data; boundary=XX").fields == {"model": "echo", "n": "3"}
    assert read_form(b"{}") == {}
    assert recorded_s(b"") == 0.0
