"""The course of one request from offer to offer: what is tried next, and when to stop.

Rules:
- A failure is judged first (`verdict.py`); whose fault it is decides where the next try may go.
- No candidate is asked twice in one request, but with another of its keys, or `repeats` times where the failure may
  pass by itself; only then is there a wait, with jitter, and never shorter than the provider asked for.
- What is put aside (a breaker that is open, keys that are out) is passed over while there is anything else, and asked
  last: memory moves traffic, it never refuses what nobody else could serve.
- Further tries are bounded four times: by their number, by the deadline, by the retry budget of the worker, and by
  what there is to try.
- A candidate that can't be told what is asked costs nothing but its place: it was never sent anything.
- A context or policy failure goes to the fallbacks for it, and nowhere where there are none.

Pure: times and chance come in, a `Step` comes out. What a step taught is told to the health of its candidate here.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.routing.budget import RetryBudget, backoff_s
from gateway.routing.choose import Asked, Chance, choose
from gateway.routing.health import KeyHealth
from gateway.routing.menu import Candidate, Group, Menu
from gateway.routing.verdict import RULES, Next, Verdict

_NO_KEYS: Final[frozenset[int]] = frozenset()


class CourseRules(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds, as configured."""

    attempts_max: int = 4
    repeats: int = 0
    deadline_s: float = 600.0
    backoff_s: float = 0.1
    backoff_most_s: float = 4.0
    #: How long a key is left alone when it was refused, and when it was throttled without being told for how long.
    refused_s: float = 60.0
    throttled_s: float = 5.0


class Step:
    """One try: this candidate with this key, after a wait."""

    __slots__ = ("candidate", "key", "probe", "wait_s")

    def __init__(self, candidate: Candidate, key: KeyHealth, wait_s: float = 0.0) -> None:
        self.candidate = candidate
        self.key = key
        self.wait_s = wait_s
        #: It is the request by which a breaker that was open finds out.
        self.probe = False

    def __repr__(self) -> str:
        return f"<Step: {self.candidate!r} with key {self.key.number}, after {self.wait_s:g} s>"


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a step that did not succeed."""

    verdict: Verdict
    #: When the provider wants to be asked again, where it said so.
    retry_after_s: float | None = None
    #: The refusal is about the model, not the whole key.
    model_only: bool = False


class Course:
    """The tries of one request. `first`, then `after` for each that failed, until it gives None."""

    __slots__ = (
        "_asked",
        "_budget",
        "_chance",
        "_groups",
        "_menu",
        "_repeated",
        "_rules",
        "_spent",
        "_started_s",
        "_tried",
        "attempts",
        "group",
    )

    def __init__(
        self, menu: Menu, *, asked: Asked, rules: CourseRules, budget: RetryBudget, chance: Chance, started_s: float
    ) -> None:
        #: Where the last step was from.
        self.group = menu.own
        #: Steps taken so far.
        self.attempts = 0
        self._menu = menu
        self._asked = asked
        self._rules = rules
        self._budget = budget
        self._chance = chance
        self._started_s = started_s
        self._groups: Sequence[Group] = menu.groups
        #: Candidates that are not to be asked any more.
        self._spent: tuple[Candidate, ...] = ()
        self._tried: dict[str, frozenset[int]] | None = None
        self._repeated = 0

    def first(self, now_s: float) -> Step:
        """Where to begin; there is always somewhere."""
        own = self.group
        candidate = choose(own, own.candidates, self._asked, now_s, self._chance)
        if candidate.health.admits(now_s) and not candidate.health.is_full:
            # The usual case: nobody else need be looked at.
            return self._step(candidate, now_s)
        step = self._next(now_s)
        assert step is not None, "a menu without candidates"
        return step

    def after(self, step: Step, failed: Failed, now_s: float) -> Step | None:
        """Where to go from a step that failed; None where the caller is to hear of it."""
        rule = RULES[failed.verdict]
        candidate = step.candidate
        if rule.next is Next.STOP:
            return None
        if rule.next in (Next.CONTEXT, Next.POLICY):
            chain = self._menu.context if rule.next is Next.CONTEXT else self._menu.policy
            self._spent += (candidate,)
            self._groups = [group for group in chain if group is not self.group]
        elif rule.next is Next.KEY and self._other_key(candidate, step.key, now_s):
            pass
        elif rule.passing and self._repeated < self._rules.repeats:
            return self._repeat(step, failed, now_s)
        elif self._menu.sole_try:
            return None
        else:
            self._spent += (candidate,)
        self._repeated = 0
        unasked = failed.verdict is Verdict.UNFIT
        self.attempts -= unasked
        if not self._may_go_on(now_s):
            return None
        following = self._next(now_s)
        return None if following is None or not (unasked or self._budget.spend(now_s)) else following

    def beside(self, step: Step, now_s: float) -> Step:
        """Where to go as well as where `step` goes: to another candidate that is well, else to the same one."""
        for group in self._groups:
            left = [
                candidate
                for candidate in group.candidates
                if candidate is not step.candidate and candidate not in self._spent and candidate.health.admits(now_s)
            ]
            if left:
                return self._step(choose(group, left, self._asked, now_s, self._chance), now_s)
        return self._step(step.candidate, now_s)

    def has_more(self, now_s: float) -> bool:
        """Whether a failure of the step under way could still be mended elsewhere."""
        if self._menu.sole_try or not self._may_go_on(now_s):
            return False
        if not self._spent:
            return self._menu.count > 1
        left = 0
        for group in self._groups:
            left += sum(candidate not in self._spent for candidate in group.candidates)
        # The one that is being asked is among them.
        return left > 1

    def _may_go_on(self, now_s: float) -> bool:
        return self.attempts < self._rules.attempts_max and now_s - self._started_s < self._rules.deadline_s

    def _next(self, now_s: float) -> Step | None:
        """The best of what is left: what is well and has room, group by group; then what has none; then the rest."""
        spent = self._spent
        for well, roomy in ((True, True), (True, False), (False, False)):
            for group in self._groups:
                left = [
                    candidate
                    for candidate in group.candidates
                    if candidate not in spent
                    and (not well or candidate.health.admits(now_s))
                    and not (roomy and candidate.health.is_full)
                ]
                if left:
                    self.group = group
                    return self._step(choose(group, left, self._asked, now_s, self._chance), now_s)
        return None

    def _step(self, candidate: Candidate, now_s: float, wait_s: float = 0.0) -> Step:
        self.attempts += 1
        provider = candidate.health.provider
        if len(provider.keys) == 1:
            return Step(candidate, provider.keys[0], wait_s)
        if self._tried is None:
            self._tried = {}
        tried = self._tried.get(provider.name, _NO_KEYS)
        key = candidate.health.key_for(now_s, tried=tried)
        self._tried[provider.name] = tried | {key.number}
        return Step(candidate, key, wait_s)

    def _repeat(self, step: Step, failed: Failed, now_s: float) -> Step | None:
        rules = self._rules
        self._repeated += 1
        wait_s = backoff_s(self._repeated, base_s=rules.backoff_s, most_s=rules.backoff_most_s, chance=self._chance())
        wait_s = max(wait_s, failed.retry_after_s or 0.0)
        if wait_s > rules.backoff_most_s or not self._may_go_on(now_s + wait_s):
            # Too long to wait for: whoever else there is.
            self._spent += (step.candidate,)
            self._repeated = 0
            if self._menu.sole_try or not self._may_go_on(now_s):
                return None
            following = self._next(now_s)
            return None if following is None or not self._budget.spend(now_s) else following
        return self._step(step.candidate, now_s, wait_s) if self._budget.spend(now_s) else None

    def _other_key(self, candidate: Candidate, refused: KeyHealth, now_s: float) -> bool:
        """Whether this candidate has a key left that can be used and was not tried."""
        health = candidate.health
        tried = _NO_KEYS if self._tried is None else self._tried.get(health.provider.name, _NO_KEYS)
        return any(
            key is not refused and key.number not in tried and health.is_ready(key, now_s)
            for key in health.provider.keys
        )


# -- what a step teaches -------------------------------------------------------------------------------------


def begin(step: Step) -> None:
    """It is being sent."""
    health = step.candidate.health
    health.outstanding += 1
    step.key.outstanding += 1
    step.probe = health.breaker.enter()


def succeed(step: Step, now_s: float) -> None:
    """It is being answered: the breaker need not wait for the end of a long stream to hear of it."""
    step.candidate.health.breaker.succeed(now_s, probe=step.probe)
    step.probe = False


def fail(step: Step, failed: Failed, now_s: float, rules: CourseRules) -> None:
    """It failed, before or after it had begun to be answered."""
    health = step.candidate.health
    lesson = RULES[failed.verdict].breaker
    if lesson == "success":
        health.breaker.succeed(now_s, probe=step.probe)
    elif lesson == "failure":
        health.breaker.fail(now_s, probe=step.probe)
    else:
        health.breaker.leave(probe=step.probe)
    step.probe = False
    if failed.verdict is Verdict.KEY:
        until_s = now_s + max(rules.refused_s, failed.retry_after_s or 0.0)
        if failed.model_only:
            health.cool(step.key, until_s)
        else:
            step.key.until_s = max(step.key.until_s, until_s)
    elif failed.verdict is Verdict.THROTTLED:
        after_s = rules.throttled_s if failed.retry_after_s is None else failed.retry_after_s
        health.cool(step.key, now_s + after_s)


def end(step: Step) -> None:
    """Nothing of it is under way any more."""
    health = step.candidate.health
    health.outstanding -= 1
    step.key.outstanding -= 1
    if health.crowd.waiting:
        health.crowd.wake(health.outstanding)
    if step.probe:
        health.breaker.leave(probe=True)
        step.probe = False
