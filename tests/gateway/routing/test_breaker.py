"""A breaker opens on enough failures, lets one request find out, and comes back by itself."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.routing.breaker import PROBES_MAX, TRANSITIONS, Breaker, BreakerRules, Event, State

RULES = BreakerRules(requests_min=10, failure_percent=50.0, window_s=20.0, rest_s=10.0)


def tripped(now_s: float = 0.0) -> Breaker:
    breaker = Breaker(RULES)
    for _ in range(RULES.requests_min):
        breaker.fail(now_s, probe=breaker.enter())
    assert breaker.state is State.OPEN
    return breaker


@pytest.mark.parametrize(("state", "event"), [*itertools.product(State, Event)])
def test_every_event_in_every_state_is_decided(state, event):
    expected = {
        (State.CLOSED, Event.TRIPPED): State.OPEN,
        (State.OPEN, Event.RESTED): State.HALF_OPEN,
        (State.OPEN, Event.HEALED): State.CLOSED,
        (State.HALF_OPEN, Event.HEALED): State.CLOSED,
        (State.HALF_OPEN, Event.RELAPSED): State.OPEN,
    }

    assert TRANSITIONS.get((state, event), state) is expected.get((state, event), state)


def test_a_few_failures_prove_nothing():
    breaker = Breaker(RULES)

    for _ in range(RULES.requests_min - 1):
        breaker.fail(0.0, probe=breaker.enter())

    assert breaker.admits(0.0)


@pytest.mark.parametrize(
    ("failures", "successes", "opens"), [(5, 5, True), (4, 6, False), (10, 0, True), (6, 7, False)]
)
def test_the_share_of_failures_decides(failures, successes, opens):
    breaker = Breaker(RULES)

    for _ in range(successes):
        breaker.succeed(1.0, probe=breaker.enter())
    for _ in range(failures):
        breaker.fail(1.0, probe=breaker.enter())

    assert (breaker.state is State.OPEN) is opens


def test_old_failures_are_forgotten():
    breaker = Breaker(RULES)
    for _ in range(9):
        breaker.fail(0.0, probe=breaker.enter())

    for now_s in (RULES.window_s, RULES.window_s + 1):
        breaker.fail(now_s, probe=breaker.enter())

    assert breaker.state is State.CLOSED


def test_the_half_before_still_counts():
    breaker = Breaker(RULES)
    for _ in range(9):
        breaker.fail(9.0, probe=breaker.enter())

    breaker.fail(11.0, probe=breaker.enter())

    assert breaker.state is State.OPEN


def test_one_request_finds_out_after_the_rest():
    breaker = tripped()

    assert not breaker.admits(RULES.rest_s - 0.1)
    assert breaker.admits(RULES.rest_s)
    assert breaker.enter()
    assert not breaker.admits(RULES.rest_s), "one at a time"

    breaker.succeed(RULES.rest_s, probe=True)

    assert breaker.state is State.CLOSED
    assert not breaker.enter(), "an ordinary request again"


def test_a_probe_that_fails_begins_the_rest_anew():
    breaker = tripped()
    assert breaker.admits(10.0)

    breaker.fail(12.0, probe=breaker.enter())

    assert not breaker.admits(21.9)
    assert breaker.admits(22.0)


def test_a_probe_that_says_nothing_makes_room_for_another():
    breaker = tripped()
    assert breaker.admits(10.0)

    breaker.leave(probe=breaker.enter())

    assert breaker.admits(10.0)


def test_what_began_before_it_opened_says_nothing():
    breaker = Breaker(RULES)
    early = breaker.enter()
    for _ in range(10):
        breaker.fail(0.0, probe=breaker.enter())

    breaker.succeed(1.0, probe=early)

    assert breaker.state is State.OPEN


def test_a_last_resort_that_works_closes_it_at_once():
    breaker = tripped()

    breaker.succeed(1.0, probe=breaker.enter())

    assert breaker.state is State.CLOSED


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=60))
def test_whatever_happened_it_admits_again_after_the_rest(happened):
    """Nothing is put aside for ever."""
    breaker = Breaker(RULES)
    now_s = 0.0
    for good, passed_s in happened:
        now_s += passed_s
        if breaker.admits(now_s):
            probe = breaker.enter()
            (breaker.succeed if good else breaker.fail)(now_s, probe=probe)

    assert breaker.admits(now_s + RULES.rest_s)


class Traffic(RuleBasedStateMachine):
    """Requests that begin and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(BreakerRules(requests_min=3, failure_percent=50.0, window_s=10.0, rest_s=5.0))
        self.now_s = 0.0
        self.under_way: list[bool] = []

    @rule(passed_s=st.floats(0, 20))
    def wait(self, passed_s):
        self.now_s += passed_s

    @rule(force=st.booleans())
    def begin(self, force):
        if self.breaker.admits(self.now_s) or force:
            self.under_way.append(self.breaker.enter())

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), how=st.sampled_from(["succeed", "fail", "leave"]))
    def end(self, data, how):
        probe = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        if how == "leave":
            self.breaker.leave(probe=probe)
        else:
            getattr(self.breaker, how)(self.now_s, probe=probe)

    @invariant()
    def nothing_is_refused_for_ever(self):
        if self.breaker.state is State.OPEN:
            assert not self.breaker.admits(self.now_s) or self.breaker.state is State.HALF_OPEN

    @invariant()
    def probes_are_bounded(self):
        if self.breaker.state is State.HALF_OPEN and self.breaker.admits(self.now_s):
            assert self.breaker._probes < PROBES_MAX

    def teardown(self):
        while self.under_way:
            self.breaker.leave(probe=self.under_way.pop())
        # A little more than the rest: sums of floats may fall short of it.
        assert self.breaker.admits(self.now_s + 5.001)


TestTraffic = Traffic.TestCase
