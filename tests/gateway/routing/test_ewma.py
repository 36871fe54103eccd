"""Averages that forget."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.ewma import DECAY_S, SAMPLES_MAX, SAMPLES_MIN, STALE_S, PeakEwma, RateEwma, UsualTime

samples = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 60)), min_size=1, max_size=50)


def test_a_slow_answer_is_believed_at_once_and_a_quick_one_is_not():
    average = PeakEwma()
    average.observe(0.1, 0.0)

    average.observe(5.0, 1.0)
    assert average.value == 5.0

    average.observe(0.1, 1.1)
    assert average.value > 4.9


def test_it_decays_while_nobody_asks():
    average = PeakEwma()
    average.observe(1.0, 0.0)

    assert average.read(DECAY_S) == pytest.approx(math.exp(-1))
    assert average.read(20 * DECAY_S) < 1e-8


@given(samples)
def test_it_stays_between_the_samples(observed):
    average, now_s = PeakEwma(), 0.0

    for seconds, passed_s in observed:
        now_s += passed_s
        average.observe(seconds, now_s)

        assert seconds * (1 - 1e-9) <= average.value <= max(each for each, _ in observed)


@given(samples)
def test_a_clock_that_stands_still_or_goes_back_breaks_nothing(observed):
    average, rate = PeakEwma(), RateEwma()

    for seconds, now_s in observed:
        average.observe(seconds, now_s)
        rate.observe(seconds, now_s)

        assert math.isfinite(average.read(0.0))
        assert math.isfinite(rate.read(now_s) or 0.0)


def test_a_rate_nobody_measured_lately_is_unknown():
    rate = RateEwma()

    assert rate.read(0.0) is None
    rate.observe(50.0, 1.0)
    assert rate.read(STALE_S) == 50.0
    assert rate.read(STALE_S + 2) is None


def test_a_rate_follows_both_ways():
    rate = RateEwma()
    rate.observe(100.0, 0.0)

    for second in range(1, 60):
        rate.observe(10.0, second)

    assert rate.read(60.0) == pytest.approx(10.0, abs=1.0)


@given(st.lists(st.floats(0, 100), max_size=3 * SAMPLES_MAX))
def test_a_usual_time_is_that_of_nineteen_in_twenty_of_the_latest(observed):
    usual = UsualTime()

    for seconds in observed:
        usual.observe(seconds)

    latest = sorted(observed[-SAMPLES_MAX:])
    if len(latest) < SAMPLES_MIN:
        assert usual.read() is None
    else:
        assert usual.read() == latest[len(latest) * 95 // 100]
