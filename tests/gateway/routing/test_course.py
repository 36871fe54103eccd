"""From offer to offer: what is tried next, and when to stop."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.breaker import State
from gateway.routing.budget import BudgetRules, RetryBudget
from gateway.routing.choose import Asked
from gateway.routing.course import Course, CourseRules, Failed, begin, end, fail, succeed
from gateway.routing.health import Health
from gateway.routing.menu import Candidate, Group, Menu
from gateway.routing.verdict import RULES, Verdict
from tests.gateway.routing.offers import RULES as BREAKER
from tests.gateway.routing.offers import offer

ALL = CourseRules(attempts_max=20, refused_s=60.0, throttled_s=5.0)
PLENTY = BudgetRules(share=10.0, floor_per_s=1000.0, burst=1000.0)


def menu(*own: str, spare=(), context=(), policy=(), keys=1, sole_try=False) -> Menu:
    """Groups are given as `provider/model` names; the own ones in order of priority."""
    health = Health(BREAKER)

    def make(names: tuple[str, ...]) -> Group:
        candidates = []
        for place, name in enumerate(names):
            provider, _, model = name.partition("/")
            if provider not in health._providers:
                health.know(provider, keys=keys if isinstance(keys, int) else keys.get(provider, 1))
            made = offer(provider, model or "m", priority=place)
            candidates.append(Candidate(made, health.offer(made.model, provider)))
        return Group(tuple(candidates), strategy="priority")

    return Menu(
        make(own),
        spare=tuple(make((name,)) for name in spare),
        context=tuple(make((name,)) for name in context),
        policy=tuple(make((name,)) for name in policy),
        sole_try=sole_try,
    )


class Walk:
    """A request on its course, with a clock of its own."""

    def __init__(self, chosen: Menu, *, rules: CourseRules = ALL, budget: BudgetRules = PLENTY) -> None:
        self.rules = rules
        self.now_s = 0.0
        self.budget = RetryBudget(budget, now_s=0.0)
        self.course = Course(
            chosen,
            asked=Asked(),
            rules=rules,
            budget=self.budget,
            chance=random.Random(1).random,
            started_s=0.0,
        )
        self.steps: list[tuple[str, int]] = []

    def go(self, *verdicts: Verdict, **facts) -> list[str]:
        """Fail so, one after the other; the providers asked, the one that is left to answer included."""
        step = self.course.first(self.now_s)
        for verdict in verdicts:
            self._note(step)
            failed = Failed(verdict=verdict, **facts)
            begin(step)
            fail(step, failed, self.now_s, self.rules)
            end(step)
            step = self.course.after(step, failed, self.now_s)
            if step is None:
                return self.providers
            self.now_s += step.wait_s
        self._note(step)
        return [*self.providers, "?"]

    def _note(self, step) -> None:
        self.steps.append((step.candidate.offer.provider, step.key.number))

    @property
    def providers(self) -> list[str]:
        return [provider for provider, _ in self.steps]


@pytest.mark.parametrize(
    ("verdict", "asked"),
    [
        (Verdict.CALLER, ["a"]),
        (Verdict.CONTEXT, ["a"]),
        (Verdict.POLICY, ["a"]),
        (Verdict.KEY, ["a", "b", "?"]),
        (Verdict.THROTTLED, ["a", "b", "?"]),
        (Verdict.PROVIDER, ["a", "b", "?"]),
        (Verdict.NETWORK, ["a", "b", "?"]),
        (Verdict.SATURATED, ["a", "b", "?"]),
        (Verdict.UNFIT, ["a", "b", "?"]),
    ],
)
def test_where_a_failure_leads(verdict, asked):
    assert Walk(menu("a", "b")).go(verdict) == asked


def test_every_offer_once_and_then_the_fallbacks():
    walk = Walk(menu("a", "b", spare=("c/n", "d/o")))

    assert walk.go(*[Verdict.PROVIDER] * 9) == ["a", "b", "c", "d"]


def test_a_model_without_another_offer_is_tried_once():
    assert Walk(menu("a")).go(Verdict.PROVIDER) == ["a"]


@pytest.mark.parametrize(
    ("verdict", "asked"), [(Verdict.CONTEXT, ["a", "large", "?"]), (Verdict.POLICY, ["a", "bold", "?"])]
)
def test_context_and_policy_have_fallbacks_of_their_own(verdict, asked):
    walk = Walk(menu("a", "b", spare=("c/n",), context=("large/l",), policy=("bold/p",)))

    assert walk.go(verdict) == asked


def test_a_context_fallback_that_is_too_small_as_well_is_followed_by_the_next():
    walk = Walk(menu("a", context=("x/l", "y/k")))

    assert walk.go(Verdict.CONTEXT, Verdict.CONTEXT, Verdict.CONTEXT) == ["a", "x", "y"]


def test_a_throttled_key_is_followed_by_the_next_key_of_the_same_provider():
    walk = Walk(menu("a", "b", keys={"a": 3}))

    walk.go(*[Verdict.THROTTLED] * 9)

    assert walk.providers == ["a", "a", "a", "b"]
    assert len({key for provider, key in walk.steps if provider == "a"}) == 3


def test_a_refused_key_is_out_for_every_model_and_a_forbidden_model_is_not():
    chosen = menu("a", "b", spare=("a/n",))
    Walk(chosen).go(Verdict.KEY)
    sibling = chosen.spare[0].candidates[0].health
    assert not sibling.admits(59.0)
    assert sibling.admits(60.0)

    chosen = menu("a", "b", spare=("a/n",))
    Walk(chosen).go(Verdict.KEY, model_only=True)
    assert chosen.spare[0].candidates[0].health.admits(0.0)
    assert not chosen.own.candidates[0].health.admits(59.0)


def test_a_throttled_key_comes_back_when_the_provider_said():
    chosen = menu("a", "b")

    Walk(chosen).go(Verdict.THROTTLED, retry_after_s=30.0)

    health = chosen.own.candidates[0].health
    assert not health.admits(29.0)
    assert health.admits(30.0)


def test_what_is_put_aside_is_passed_over():
    chosen = menu("a", "b")
    Walk(chosen).go(Verdict.THROTTLED)

    assert Walk(chosen).go() == ["b", "?"]


def test_what_is_put_aside_is_asked_last_and_never_refused():
    chosen = menu("a", "b", spare=("c/n",))
    for candidate in (*chosen.own.candidates, *chosen.spare[0].candidates):
        candidate.health.provider.keys[0].until_s = 1000.0

    assert Walk(chosen).go(*[Verdict.PROVIDER] * 9) == ["a", "b", "c"]


def test_an_open_breaker_moves_traffic_and_one_probe_brings_it_back():
    chosen = menu("a", "b")
    for _ in range(BREAKER.requests_min):
        Walk(chosen).go(Verdict.PROVIDER)
    assert chosen.own.candidates[0].health.breaker.state is State.OPEN

    later = Walk(chosen)
    assert later.go() == ["b", "?"]

    later = Walk(chosen)
    later.now_s = BREAKER.rest_s
    step = later.course.first(later.now_s)
    begin(step)
    assert (step.candidate.offer.provider, step.probe) == ("a", True)
    second = Walk(chosen)
    second.now_s = later.now_s
    assert second.go() == ["b", "?"], "one at a time"

    succeed(step, later.now_s)
    end(step)

    assert Walk(chosen).go() == ["a", "?"]


def test_a_probe_whose_caller_left_makes_room():
    chosen = menu("a", "b")
    for _ in range(BREAKER.requests_min):
        Walk(chosen).go(Verdict.NETWORK)
    walk = Walk(chosen)
    walk.now_s = BREAKER.rest_s
    step = walk.course.first(walk.now_s)
    begin(step)

    end(step)

    again = Walk(chosen)
    again.now_s = walk.now_s
    assert again.go() == ["a", "?"]


@pytest.mark.parametrize("verdict", [Verdict.CALLER, Verdict.CONTEXT, Verdict.POLICY, Verdict.KEY, Verdict.THROTTLED])
def test_what_is_not_the_provider_s_fault_opens_no_breaker(verdict):
    chosen = menu("a", "b")

    for _ in range(50):
        Walk(chosen).go(verdict)

    assert chosen.own.candidates[0].health.breaker.state is State.CLOSED


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_attempts_are_bounded():
    walk = Walk(menu(*"abcdef"), rules=CourseRules(attempts_max=3))

    assert walk.go(*[Verdict.NETWORK] * 9) == ["a", "b", "c"]


def test_who_can_t_be_told_was_not_tried():
    """Neither the number of tries nor the retry budget is spent on writing a request that nobody was sent."""
    walk = Walk(
        menu(*"abcdef"), rules=CourseRules(attempts_max=2), budget=BudgetRules(share=0.0, floor_per_s=0.0, burst=1.0)
    )

    assert walk.go(*[Verdict.UNFIT] * 3, *[Verdict.NETWORK] * 3) == ["a", "b", "c", "d", "e"]


def test_after_the_deadline_no_other_try_begins():
    walk = Walk(menu("a", "b"), rules=CourseRules(deadline_s=10.0))
    step = walk.course.first(0.0)

    assert walk.course.has_more(9.9)
    assert not walk.course.has_more(10.0)
    assert walk.course.after(step, Failed(verdict=Verdict.NETWORK), 10.0) is None


def test_an_empty_budget_ends_it():
    walk = Walk(menu("a", "b", "c"), budget=BudgetRules(share=0.0, floor_per_s=0.0, burst=1.0))

    assert walk.go(*[Verdict.NETWORK] * 9) == ["a", "b"]


def test_the_same_offer_is_asked_again_where_that_is_wanted():
    walk = Walk(menu("a", "b"), rules=CourseRules(attempts_max=9, repeats=2, backoff_s=0.1))

    assert walk.go(*[Verdict.PROVIDER] * 9) == ["a", "a", "a", "b", "b", "b"]
    # Between the first and the second try of each at least 50 ms, then at least 100.
    assert 0.3 <= walk.now_s <= 0.6


def test_a_wait_is_never_shorter_than_the_provider_asked_for():
    rules = CourseRules(repeats=1, backoff_s=0.1, backoff_most_s=4.0)

    walk = Walk(menu("a"), rules=rules)
    assert walk.go(Verdict.THROTTLED, retry_after_s=3.0) == ["a", "a", "?"]
    assert walk.now_s >= 3.0

    assert Walk(menu("a"), rules=rules).go(Verdict.THROTTLED, retry_after_s=30.0) == ["a"]
    assert Walk(menu("a", "b"), rules=rules).go(Verdict.THROTTLED, retry_after_s=30.0) == ["a", "b", "?"]


def test_a_caller_who_wants_no_second_provider_gets_none():
    assert Walk(menu("a", "b", sole_try=True)).go(Verdict.NETWORK) == ["a"]
    assert not Walk(menu("a", "b", sole_try=True)).course.has_more(0.0)
    walk = Walk(menu("a", "b", keys={"a": 2}, sole_try=True))
    assert walk.go(*[Verdict.THROTTLED] * 3) == ["a", "a"]


def test_it_knows_whether_there_is_more():
    walk = Walk(menu("a", spare=("b/n",)))
    step = walk.course.first(0.0)
    assert walk.course.has_more(0.0)

    walk.course.after(step, Failed(verdict=Verdict.NETWORK), 0.0)

    assert not walk.course.has_more(0.0)


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(["e/n", "f/o", "a/p"]), max_size=3, unique=True),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from([*Verdict]), st.none() | st.floats(0, 10)), max_size=40),
)
def test_every_course_ends_within_its_bounds(  # noqa: PLR0917  hypothesis gives them by position
    own, spare, keys, repeats, attempts_max, failures
):
    rules = CourseRules(attempts_max=attempts_max, repeats=repeats, deadline_s=100.0)
    chosen = menu(*own, spare=spare, context=tuple(spare), keys=keys)
    walk = Walk(chosen, rules=rules)

    step, tried = walk.course.first(0.0), []
    for verdict, retry_after_s in failures:
        begin(step)
        tried.append((step.candidate, step.key.number))
        failed = Failed(verdict=verdict, retry_after_s=retry_after_s)
        fail(step, failed, walk.now_s, rules)
        end(step)
        step = walk.course.after(step, failed, walk.now_s)
        if step is None:
            break
        assert RULES[verdict].next.value != "stop"
        assert step.wait_s <= rules.backoff_most_s
        walk.now_s += step.wait_s

    asked = len(tried) - sum(verdict is Verdict.UNFIT for verdict, _ in failures[: len(tried)])
    assert asked <= attempts_max
    assert walk.now_s < rules.deadline_s
    for pair in tried:
        assert tried.count(pair) <= 1 + repeats
    for group in (chosen.own, *chosen.spare, *chosen.context):
        for candidate in group.candidates:
            assert candidate.health.outstanding == 0
            assert all(key.outstanding == 0 for key in candidate.health.provider.keys)
