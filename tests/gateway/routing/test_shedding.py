"""When a worker refuses requests, and whose."""

import pytest

from gateway.errors import Overloaded
from gateway.routing.crowd import HIGH, LOW, NORMAL
from gateway.routing.shedding import LOOKS, Shedding, SheddingRules


def admits(shedding: Shedding, priority: int, in_flight: int) -> bool:
    try:
        shedding.admit(priority, in_flight, chance=0.25)
    except Overloaded as error:
        return error.retry_after_s != 1.25
    return True


def test_the_configured_bound_holds_for_everybody():
    shedding = Shedding(SheddingRules(requests_max=100))
    assert [admits(shedding, priority, 100) for priority in (LOW, NORMAL, HIGH)] == [False, True, True]
    assert [admits(shedding, priority, 101) for priority in (LOW, NORMAL, HIGH)] == [False, False, False]
    assert shedding.free == 80


def test_a_loop_that_is_late_for_a_second_narrows_the_bound_but_not_for_those_who_matter_most():
    shedding = Shedding(SheddingRules(lag_s=0.5))
    for _ in range(LOOKS):
        shedding.look(0.6, 1000)
    assert shedding.bound == 700
    assert [admits(shedding, priority, 701) for priority in (LOW, NORMAL, HIGH)] == [False, False, True]
    assert [admits(shedding, priority, 600) for priority in (LOW, NORMAL, HIGH)] == [False, True, True]


@pytest.mark.parametrize("lags", [[0.8, 0.8, 0.8], [5.0, 0.1, 5.0, 0.1] * 3])
def test_one_late_turn_says_nothing(lags):
    shedding = Shedding(SheddingRules())
    for lag_s in lags:
        shedding.look(lag_s, 1000)
    assert shedding.free >= 0.8 * 16384 - 1


@pytest.mark.parametrize(("lag_s", "bound"), [(0.51, 700), (1.0, 500), (60.0, 400)])
def test_the_later_the_loop_the_narrower_the_bound(lag_s, bound):
    shedding = Shedding(SheddingRules(lag_s=0.5))
    for _ in range(LOOKS):
        shedding.look(lag_s, 1000)
    assert shedding.bound == bound


def test_it_comes_back_by_itself():
    shedding = Shedding(SheddingRules(requests_max=1000))
    for _ in range(100):
        shedding.look(9.0, 10)
    assert shedding.bound == 16
    for _ in range(100):
        shedding.look(0.0, 10)
    assert shedding.bound == 1000


def test_it_finds_what_a_worker_can_do():
    """A loop that is a second late from two hundred in flight on: there are about as many, and not twenty."""
    shedding = Shedding(SheddingRules(lag_s=0.5))
    seen = []
    in_flight = 1000
    for number in range(2000):
        in_flight = min(1000, shedding.bound)
        shedding.look(in_flight / 200, in_flight) if in_flight > 100 else shedding.look(0.0, in_flight)
        if number > 200:
            seen.append(in_flight)
    assert min(seen) >= 60
    assert max(seen) <= 200


def test_it_can_be_switched_off():
    shedding = Shedding(SheddingRules(lag_s=0.0))
    for _ in range(100):
        shedding.look(9.0, 10)
    assert shedding.bound == 16384
