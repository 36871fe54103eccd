"""What adapters share that write chat completions."""

import pytest

from gateway.api import ResponseHead
from gateway_adapters.chat_answer import created_s

NOON = 1_795_348_800


@pytest.mark.parametrize(
    ("date", "received_s", "created"),
    [
        (b"Sun, 22 Nov 2026 12:00:00 GMT", 5.9, NOON),
        (None, NOON + 0.9, NOON),
        (b"yesterday", NOON + 0.9, NOON),
        (b"Sun, 22 Nov 999999 12:00:00 GMT", 0.0, 0),
        (None, 0.0, 0),
    ],
)
def test_an_answer_is_as_old_as_its_head_says_or_as_it_is_known(date, received_s: float, created: int) -> None:
    headers = [] if date is None else [(b"date", date)]

    assert created_s(ResponseHead(200, headers, received_s)) == created
