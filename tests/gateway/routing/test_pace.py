"""A stream's first token, its rate and its silences."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.pace import WINDOW_S, Pace, Sign


def look(pace: Pace, now_s: float, **facts) -> Sign:
    return pace.look(now_s, **({"bytes_out": 0, "begun": True, "held": False, "paused": False} | facts))


def test_nothing_to_look_at_needs_no_timer():
    assert Pace(sent_s=0.0, now_s=0.0).tick_s == 0.0
    assert 0 < Pace(sent_s=0.0, now_s=0.0, comment_s=0.2).tick_s <= 0.1


def test_what_is_held_is_let_go_in_time():
    pace = Pace(sent_s=0.0, now_s=5.0, hold_s=2.0)

    assert look(pace, 6.9, held=True) is Sign.NOTHING
    assert look(pace, 7.0, held=True) is Sign.RELEASE
    assert look(pace, 9.0, held=False) is Sign.NOTHING


def test_a_first_token_is_due_from_the_request_on():
    pace = Pace(sent_s=0.0, now_s=3.0, first_token_s=4.0, hold_s=10.0)

    assert look(pace, 3.9, begun=False, held=True) is Sign.NOTHING
    assert look(pace, 4.0, begun=False, held=True) is Sign.LATE
    assert look(pace, 4.0, begun=True) is Sign.NOTHING


def test_too_few_bytes_over_a_window_are_too_slow():
    pace = Pace(sent_s=0.0, now_s=0.0, bytes_per_s_min=100.0)

    assert look(pace, WINDOW_S, bytes_out=1000) is Sign.NOTHING
    assert look(pace, 2 * WINDOW_S - 0.1, bytes_out=1001) is Sign.NOTHING
    assert look(pace, 2 * WINDOW_S, bytes_out=1999) is Sign.SLOW


def test_thinking_before_the_first_token_is_not_slow():
    pace = Pace(sent_s=0.0, now_s=0.0, bytes_per_s_min=100.0)

    for second in range(60):
        assert look(pace, float(second), begun=False) is Sign.NOTHING
    assert look(pace, 60.0, begun=True) is Sign.NOTHING
    assert look(pace, 59.0 + WINDOW_S, begun=True, bytes_out=10) is Sign.SLOW


def test_a_caller_who_does_not_read_makes_nobody_slow():
    pace = Pace(sent_s=0.0, now_s=0.0, bytes_per_s_min=100.0)

    for second in range(60):
        assert look(pace, float(second), paused=True, bytes_out=7) is Sign.NOTHING
    assert look(pace, 60.0, bytes_out=7) is Sign.NOTHING


def test_silence_is_filled_every_so_often():
    pace = Pace(sent_s=0.0, now_s=0.0, comment_s=1.0)

    signs = [look(pace, second / 2, bytes_out=0) for second in range(7)]

    assert [sign is Sign.COMMENT for sign in signs] == [False, False, True, False, True, False, True]
    assert look(pace, 4.2, bytes_out=10) is Sign.NOTHING
    assert look(pace, 5.1, bytes_out=10) is Sign.NOTHING
    assert look(pace, 5.3, bytes_out=10) is Sign.COMMENT


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 500), st.booleans()), max_size=50))
def test_a_stream_that_is_fast_enough_is_never_cut(steps):
    pace, now_s, bytes_out = Pace(sent_s=0.0, now_s=0.0, bytes_per_s_min=10.0), 0.0, 0

    for passed_s, more, paused in steps:
        now_s += passed_s
        bytes_out += more + round(passed_s * 11) + 1
        assert look(pace, now_s, bytes_out=bytes_out, paused=paused) is not Sign.SLOW
