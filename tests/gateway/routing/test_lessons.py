"""A field of ours that a provider refuses is not sent to it for an hour."""

import pytest

from gateway.errors import RequestRefused
from gateway.exchange import Offer
from gateway.routing.lessons import LESSONS_MAX, REMEMBERED_S, Lessons, names_our_field
from tests.gateway.routing.offers import call, offer

OFFER = offer("a")
STREAM = b'{"model":"m","stream":true}'


def refused(body: bytes | None, status: int = 400) -> RequestRefused:
    return RequestRefused(status=status, body=body, blame="caller")


@pytest.mark.parametrize(
    ("status", "answer", "asked", "ours"),
    [
        (400, b'{"error":"Unknown field: stream_options"}', STREAM, True),
        (422, b'{"detail":[{"loc":["body","stream_options","include_usage"]}]}', STREAM, True),
        (400, b'{"error":"temperature"}', STREAM, False),
        (400, None, STREAM, False),
        (404, b'{"error":"stream_options"}', STREAM, False),
        (400, b'{"error":"stream_options"}', b'{"model":"m"}', False),
        (400, b'{"error":"stream_options"}', b'{"model":"m","stream":true,"stream_options":{"x":1}}', False),
    ],
)
def test_only_what_the_gateway_added_is_tried_without(status, answer, asked, ours):
    assert names_our_field(refused(answer, status), call(asked), OFFER) is ours


def test_what_was_said_to_callers_of_another_dialect_teaches_too():
    """They get no body of the provider's."""
    told = RequestRefused("Unknown field: stream_options", status=400, body=None, blame="caller")

    assert names_our_field(told, call(STREAM), OFFER)


def test_what_was_not_asked_for_is_not_taken_back():
    knowing = Offer(model="m", provider="a", upstream_model="m", ask_usage=False)

    assert not names_our_field(refused(b'{"error":"stream_options"}'), call(STREAM), knowing)


def test_a_lesson_is_for_one_model_of_one_provider_and_for_an_hour():
    lessons = Lessons()
    assert not lessons.know(OFFER, 0.0)

    lessons.learn(OFFER, 10.0)

    assert lessons.know(OFFER, 11.0)
    assert not lessons.know(offer("b"), 11.0)
    assert not lessons.know(offer("a", "n"), 11.0)
    assert lessons.know(OFFER, 10.0 + REMEMBERED_S - 1)
    assert not lessons.know(OFFER, 10.0 + REMEMBERED_S)


def test_lessons_are_bounded():
    lessons = Lessons()

    for number in range(LESSONS_MAX + 10):
        lessons.learn(offer("a", f"m{number}"), 0.0)

    assert len(lessons._until_s) == LESSONS_MAX
