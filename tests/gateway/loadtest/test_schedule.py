import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.loadtest.schedule import ClosedLoop, OpenLoop


def drain(schedule: OpenLoop | ClosedLoop, now_s: float) -> list[float]:
    due = []
    while len(due) < 10_000 and (at := schedule.take(now_s)) is not None:
        due.append(at)
    return due


def test_open_loop_hands_out_each_arrival_when_it_is_due() -> None:
    schedule = OpenLoop(rate=4.0, start_s=100.0)

    assert schedule.take(99.9) is None
    assert drain(schedule, 100.0) == [100.0]
    assert schedule.next_due_s(100.0) == 100.25
    assert drain(schedule, 100.6) == [100.25, 100.5]


def test_open_loop_does_not_shift_what_a_stall_has_delayed() -> None:
    schedule = OpenLoop(rate=10.0, start_s=0.0)
    schedule.take(0.0)

    after_a_stall = drain(schedule, 1.0)

    assert after_a_stall == [pytest.approx(number / 10) for number in range(1, 11)]


@given(rate=st.floats(0.1, 5_000), looks=st.lists(st.floats(0, 1.5), max_size=30))
def test_open_loop_never_drifts_however_irregularly_it_is_asked(rate: float, looks: list[float]) -> None:
    schedule = OpenLoop(rate=rate, start_s=0.0)

    taken = [due for now_s in sorted(looks) for due in drain(schedule, now_s)]

    assert taken == [pytest.approx(number / rate) for number in range(len(taken))]


@given(rate=st.floats(0.1, 5_000), now_s=st.floats(0, 1.5))
def test_overdue_is_what_taking_would_hand_out(rate: float, now_s: float) -> None:
    schedule = OpenLoop(rate=rate, start_s=0.0)

    overdue = schedule.overdue(now_s)

    # A due time and `now_s` may be the same instant but for the last bit.
    assert abs(overdue - len(drain(schedule, now_s))) <= 1


def test_nothing_is_overdue_before_the_start() -> None:
    assert OpenLoop(rate=10.0, start_s=50.0).overdue(20.0) == 0


def test_a_rate_is_positive() -> None:
    with pytest.raises(ValueError, match="rate"):
        OpenLoop(rate=0.0, start_s=0.0)


def test_closed_loop_spreads_the_first_requests_and_then_goes_on_at_once() -> None:
    schedule = ClosedLoop(streams=4, ramp_s=1.0, start_s=10.0)

    assert schedule.take(10.0) == 10.0
    assert schedule.take(10.1) is None
    assert schedule.next_due_s(10.1) == 10.25
    assert [schedule.take(11.0) for _ in range(3)] == [10.25, 10.5, 10.75]
    assert schedule.next_due_s(11.0) is None
    assert schedule.take(12.5) == 12.5
    assert schedule.overdue(99.0) == 0
