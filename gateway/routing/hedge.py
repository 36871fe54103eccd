"""A second try beside a first one that takes longer than it usually does; the first good answer wins.

Of providers whose slowest answers are many times slower than the others, the slow few are what callers remember.
Where a model is hedged, a request whose answer has not begun when nineteen in twenty have is sent once more, to
another offer if there is one; whichever answers first is the answer, and the other connection is closed.

Rules:
- Nothing was sent to the caller yet: an answer that has begun is never exchanged.
- The caller is charged once, for the answer that it got. The hold covers it: it is made for the dearest offer.
- There is a cap on what this costs the operator: a share of all requests, saved up a little.
- Until enough answers were seen, nothing is hedged.

Who else is asked is `stages/route.py`'s to say; both tries are made by `stages/attempt.py`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from gateway.errors import GatewayError
from gateway.infra.tasks import TaskGroup
from gateway.routing.course import Step

T = TypeVar("T")


class HedgeRules(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds, as configured."""

    #: The share of requests that may be sent a second time.
    share: float = 0.05
    #: No second try before this.
    least_s: float = 0.05
    #: As many may be saved up.
    burst: float = 10.0


class HedgeBudget:
    """How many second tries there may be; empty at the start."""

    __slots__ = ("_balance", "rules", "spent")

    def __init__(self, rules: HedgeRules) -> None:
        self.rules = rules
        self.spent = 0
        self._balance = 0.0

    def earn(self) -> None:
        """A request begins."""
        self._balance = min(self.rules.burst, self._balance + self.rules.share)

    def spend(self) -> bool:
        """Take a second try; False where there is none left."""
        # The shares of twenty requests do not add up to one to the last bit.
        if self._balance < 1 - 1e-9:
            return False
        self._balance -= 1
        self.spent += 1
        return True


class Runner(Generic[T]):
    """One of two: what came of it, once it has ended."""

    __slots__ = ("error", "result", "second", "task")

    def __init__(self, *, second: bool) -> None:
        self.second = second
        self.result: T | None = None
        self.error: GatewayError | None = None
        self.task: asyncio.Task[None] | None = None

    async def run(self, work: Awaitable[T]) -> None:
        try:
            self.result = await work
        except GatewayError as error:
            self.error = error

    def take(self) -> T:
        """The result, or what it raised."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


async def race(
    first: Awaitable[T],
    *,
    after_s: float,
    second: Callable[[], Awaitable[T] | None],
    good: Callable[[T], bool],
    discard: Callable[[T], None],
    tasks: TaskGroup,
) -> tuple[Runner[T], Runner[T] | None]:
    """Run `first`, and beside it what `second` gives, where `first` has not ended after `after_s` seconds.

    `good` says whether a result ends the race. Gives the winner and the other one, if there was one; where neither
    is good, the first is the winner. What is not wanted is cancelled, and given to `discard` where it came all the
    same; so is everything where this is cancelled.
    """
    one: Runner[T] = Runner(second=False)
    two: Runner[T] | None = None
    winner: Runner[T] | None = None
    try:
        one.task = tasks.spawn(one.run(first), name="first try")
        await asyncio.wait((one.task,), timeout=after_s)
        if not one.task.done() and (other := second()) is not None:
            two = Runner(second=True)
            two.task = tasks.spawn(two.run(other), name="second try")
        running = {each.task for each in (one, two) if each is not None and each.task is not None}
        while running and winner is None:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            winner = next(
                (each for each in (one, two) if each and each.result is not None and good(each.result)), None
            )
        winner = winner or one
    finally:
        for each in (one, two):
            if each is not None and each is not winner:
                _drop(each, discard)
    return winner, one if winner is two else two


def _drop(runner: Runner[T], discard: Callable[[T], None]) -> None:
    def ended(_: object = None) -> None:
        if runner.result is not None:
            discard(runner.result)

    if runner.task is None or runner.task.done():
        ended()
    else:
        runner.task.cancel()
        runner.task.add_done_callback(ended)


class Hedge:
    """What one request may do about a first try that takes long."""

    __slots__ = ("_begin", "_observe", "after_s", "first", "lost", "step", "won")

    def __init__(
        self,
        after_s: float,
        *,
        first: Step,
        begin: Callable[[], Step | None],
        observe: Callable[[Step, float], None],
    ) -> None:
        #: How long the first try has to itself; without end where too little is known of it.
        self.after_s = after_s
        self.first = first
        #: The second try, once there is one, and whether its answer is the answer.
        self.step: Step | None = None
        self.won = False
        #: Why the one that lost did, where it failed of itself.
        self.lost: GatewayError | None = None
        self._begin = begin
        self._observe = observe

    def begin(self) -> Step | None:
        """Where to send it a second time; None where it may not be."""
        self.step = self._begin()
        return self.step

    def observe(self, step: Step, seconds: float) -> None:
        """An answer of a step has begun after so long."""
        self._observe(step, seconds)
