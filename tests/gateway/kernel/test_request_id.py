"""Request ids are UUIDv7, rise, and say when they were made."""

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.infra.clock import SystemClock
from gateway.kernel.request_id import RequestIds, is_request_id, time_ms


class StepClock:
    """Gives the readings it was made with, one after the other."""

    def __init__(self, readings: list[float]) -> None:
        self._readings = iter(readings)

    def now(self) -> float:
        return next(self._readings)

    def monotonic(self) -> float:
        raise AssertionError("ids are made from wall time")


@given(readings=st.lists(st.integers(0, 2**47).map(lambda us: us / 1_000_000), min_size=1, max_size=30))
def test_ids_rise_whatever_the_clock_does(readings: list[float]) -> None:
    ids = RequestIds(StepClock(readings))

    made = [ids.make() for _ in readings]

    assert made == sorted(set(made))
    for text in made:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)


@given(ms=st.integers(0, 2**42))
def test_the_time_comes_back_out(ms: int) -> None:
    text = RequestIds(StepClock([ms / 1000 + 0.0002])).make()

    assert is_request_id(text)
    assert time_ms(text) == ms


def test_many_ids_of_one_millisecond_rise_and_differ() -> None:
    ids = RequestIds(StepClock([1_700_000_000.0001] * 200_000))

    made = [ids.make() for _ in range(200_000)]

    assert made == sorted(made)
    assert len(set(made)) == 200_000
    assert time_ms(made[-1]) - time_ms(made[0]) < 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 36,
        str(uuid.UUID(int=0)),
        "01A204D6-E0BB-7919-A31E-282BE17F7949",
        "01a204d6-e0bb-7919-a31e-282be17f7949\n",
    ],
)
def test_other_text_is_no_request_id(text: str) -> None:
    assert not is_request_id(text)
    with pytest.raises(ValueError, match="not a request id"):
        time_ms(text)


def test_a_forked_child_does_not_repeat_its_parent() -> None:
    ids = RequestIds(SystemClock())
    ids.make()
    read, write = os.pipe()

    child = os.fork()
    if child == 0:
        os.write(write, "".join(ids.make() for _ in range(100)).encode())
        os._exit(0)
    os.close(write)
    mine = {ids.make() for _ in range(100)}
    with os.fdopen(read) as told:
        text = told.read()
    os.waitpid(child, 0)

    theirs = {text[at : at + 36] for at in range(0, len(text), 36)}
    assert len(theirs) == 100
    # The time may be the same; what was drawn is not.
    assert not {one[15:] for one in mine} & {one[15:] for one in theirs}
