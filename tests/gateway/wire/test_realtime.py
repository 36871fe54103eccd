"""What the gateway reads in the messages of a conversation."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.realtime import Event, error_event, presented_by, public, read_event, sendable


def said(**members) -> str:
    return msgspec.json.encode(members).decode()


def test_a_report_is_read_from_the_end_of_an_answer():
    usage = {
        "total_tokens": 150,
        "input_tokens": 100,
        "output_tokens": 50,
        "input_token_details": {
            "text_tokens": 20,
            "audio_tokens": 80,
            "cached_tokens": 50,
            "cached_tokens_details": {"text_tokens": 10, "audio_tokens": 40},
        },
        "output_token_details": {"text_tokens": 10, "audio_tokens": 40},
    }

    event = read_event(said(event_id="e", type="response.done", response={"id": "r", "usage": usage}))

    assert event.kind == "done"
    assert event.usage is not None
    assert (event.usage.input_tokens, event.usage.output_tokens) == (100, 50)
    # What was kept is not counted as audio once more: 10 of text are left.
    assert (event.usage.input_cached_tokens, event.usage.input_audio_tokens) == (50, 40)
    assert event.usage.output_audio_tokens == 40


def test_an_answer_without_a_report_is_no_charge():
    assert read_event(said(type="response.done", response={"status": "failed", "usage": None})).usage is None
    assert read_event(said(type="response.done")).usage is None


def test_pieces_are_only_measured():
    audio = read_event(said(type="response.output_audio.delta", response_id="r", delta="A" * 64_000))
    text = read_event(said(event_id="e", type="response.output_text.delta", delta="word " * 100))

    assert audio.audio
    assert 18 <= audio.tokens <= 20
    assert not text.audio
    assert 50 <= text.tokens <= 125


def test_what_is_inside_a_message_is_not_what_it_is():
    inner = {"type": "response.output_audio.delta", "note": "not one"}

    assert read_event(said(item=inner, type="response.done", response={})).kind == "done"
    assert read_event(said(item=inner, type="other")) == Event()


def test_sessions_say_who_speaks_and_who_writes():
    new = read_event(
        said(type="session.updated", session={"model": "m", "audio": {"input": {"transcription": {"model": "w"}}}})
    )
    old = read_event(
        said(type="session.created", session={"model": "m", "input_audio_transcription": {"model": "w"}})
    )

    assert (new.kind, new.model, new.transcriber) == (old.kind, old.model, old.transcriber) == ("session", "m", "w")


@given(st.text())
def test_nothing_that_is_said_is_a_fault(text):
    read_event(text)


@pytest.mark.parametrize(
    ("code", "sent"),
    [(1000, 1000), (1005, 1000), (1006, 1011), (1015, 1011), (4000, 4000), (999, 1011), (2000, 1011)],
)
def test_codes_that_may_not_be_sent_become_others(code, sent):
    assert sendable(code) == sent


def test_a_key_among_subprotocols_is_for_the_gateway_alone():
    offered = ["realtime", "openai-insecure-api-key.gw_live_x", "openai-organization.o", "openai-beta.realtime-v1"]

    assert presented_by(offered) == "gw_live_x"
    assert presented_by(["realtime"]) == ""
    assert public(offered) == ["realtime", "openai-beta.realtime-v1"]


def test_the_error_event_is_what_clients_read():
    event = msgspec.json.decode(error_event(type="t", code="c", message="m", event_id="e"))

    assert event["type"] == "error"
    assert event["error"] == {"type": "t", "code": "c", "message": "m", "param": None, "event_id": None}
