"""How many requests one offer takes at a time before it gets slower for all of them, and who waits for a place.

Nobody tells a gateway how much a provider can take, so it is found out. Answers are looked at in windows of time:

    a window is                            the limit
    bad: too many overloaded or too slow   shrinks, from what was really under way
    good, and the limit was reached        grows by an eighth
    neither                                stays

Rules:
- Overloaded is who says so (503, 529) or does not answer in time. Slow is what takes `tolerance` times as long as it
  did with room to spare, and longer than `slow_s`: first tokens of streams, plain answers for their length.
- Nothing is limited before it was seen to be too much: the limit begins at its most.
- Where answers stay as slow with a quarter as many under way, or with the fewest that there may be, it is not the
  crowd that slows them down: they are the new measure. So nothing is limited for good.
- A request that finds no place waits: who matters more goes first, and of equals who came first. The queue is bounded
  in length and time; where it is full, the last of those who matter least gives way. Who gives up is told when to
  come back.
"""

import asyncio
import contextlib
from collections import deque
from typing import Final

import msgspec

from gateway.errors import Overloaded

#: How much a key matters: keys of plans for trying things out, all others, and those that are served at all costs.
LOW: Final = 0
NORMAL: Final = 1
HIGH: Final = 2
PRIORITIES: Final = {"low": LOW, "normal": NORMAL, "high": HIGH}
#: Their names, by number.
PRIORITY_NAMES: Final = tuple(PRIORITIES)
#: How many times as long as all others those who matter most wait for a place.
PATIENCE: Final = 10

#: A window is at least so long, longer than its answers took, and has at least so many of them.
WINDOW_S: Final = 0.5
SAMPLES_MIN: Final = 10
#: One overloaded answer in so many is too many.
OVERLOADED_SHARE: Final = 10
#: An answer of so many tokens takes twice as long as one of none; roughly, and good enough to compare by.
_TOKENS: Final = 64
#: How much one window of quicker, and of slower answers moves the measure of them.
_FALL: Final = 0.5
_RISE: Final = 0.002
#: Bad windows leave at least, and at most, so much.
_SHRINK_MOST: Final = 0.5
_SHRINK_LEAST: Final = 0.9


class CrowdRules(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds, as configured."""

    #: False: every offer takes `most`, whatever happens.
    adaptive: bool = True
    least: int = 4
    most: int = 2048
    tolerance: float = 3.0
    slow_s: float = 2.0
    #: How long a request waits for a place, and how many do.
    wait_s: float = 1.0
    waiting_max: int = 1024


class Crowd:
    """The limit of one offer and the requests that wait for a place; who is under way is counted elsewhere."""

    __slots__ = (
        "_count",
        "_measures",
        "_overloaded",
        "_peak",
        "_queues",
        "_rules",
        "_since_s",
        "_slow_from",
        "_sums",
        "given",
        "limit",
        "waiting",
    )

    def __init__(self, rules: CrowdRules) -> None:
        #: As many may be under way.
        self.limit = rules.most
        #: How many wait, and how many were given a place that they have not taken yet.
        self.waiting = 0
        self.given = 0
        self._rules = rules
        self._queues: tuple[deque[asyncio.Future[None]], ...] = ()
        #: Seconds with room to spare: of plain answers and of streams; 0 where nothing is known.
        self._measures = [0.0, 0.0]
        self._since_s = -1.0
        #: How many were under way when it began to be slow, and how slow it was then.
        self._slow_from = (0, 0.0)
        # Of the window: answers, those of each kind with their seconds, who was overloaded, and the most under way.
        self._count = 0
        self._sums = [0.0, 0.0, 0, 0]
        self._overloaded = 0
        self._peak = 0

    def __repr__(self) -> str:
        return f"<Crowd: at most {self.limit}, {self.waiting} waiting>"

    # -- what answers teach ------------------------------------------------------------------------------------

    def observe(self, seconds: float, tokens: int, *, stream: bool, outstanding: int, now_s: float) -> None:
        """An answer came after so long: a stream to its first token, a plain one of so many tokens to its end.

        `outstanding` is how many were under way, this one among them.
        """
        sums = self._sums
        if stream:
            sums[1] += seconds
            sums[3] += 1
        else:
            sums[0] += seconds * _TOKENS / (_TOKENS + tokens)
            sums[2] += 1
        self._note(outstanding, now_s)

    def overload(self, *, outstanding: int, now_s: float) -> None:
        """An answer did not come in time, or said that it is too much."""
        self._overloaded += 1
        self._note(outstanding, now_s)

    def _note(self, outstanding: int, now_s: float) -> None:
        self._count += 1
        self._peak = max(self._peak, outstanding)
        if self._since_s < 0:
            self._since_s = now_s
        elif self._count >= SAMPLES_MIN and now_s - self._since_s >= WINDOW_S:
            self._judge(now_s)

    def _judge(self, now_s: float) -> None:
        """The end of a window."""
        means = [self._sums[kind] / self._sums[kind + 2] if self._sums[kind + 2] else 0.0 for kind in (0, 1)]
        if now_s - self._since_s < max(means):
            # What follows from the last decision can't be seen yet.
            return
        rules, limit, peak = self._rules, self.limit, self._peak
        slow = max(self._slowness(mean, measure) for mean, measure in zip(means, self._measures, strict=True))
        overloaded = self._overloaded * OVERLOADED_SHARE > self._count
        full = peak * 5 >= limit * 4
        if peak > limit + limit // 8:
            # More are under way than may be: those of before the last decision.
            pass
        elif slow <= 1 and not overloaded:
            self._learn(means, rising=not full or limit == rules.most)
            self._slow_from = (0, 0.0)
            if full:
                self.limit = min(rules.most, limit + 1 + limit // 8)
        elif not overloaded and self._is_ordinary(limit, peak, slow):
            self._measures = [mean or measure for mean, measure in zip(means, self._measures, strict=True)]
            self._slow_from = (0, 0.0)
        elif rules.adaptive:
            kept = _SHRINK_MOST if overloaded else min(_SHRINK_LEAST, max(_SHRINK_MOST, 1 / slow))
            self.limit = min(limit, max(rules.least, int(peak * kept)))
        self._since_s = now_s
        self._count = self._overloaded = self._peak = 0
        self._sums = [0.0, 0.0, 0, 0]

    def _slowness(self, mean: float, measure: float) -> float:
        """How many times as long as they may take answers took; 1 and less is good."""
        return mean / max(self._rules.slow_s, measure * self._rules.tolerance) if measure else 0.0

    def _is_ordinary(self, limit: int, peak: int, slow: float) -> bool:
        """Whether answers are slow however few there are: then it is not the crowd that makes them so."""
        since_peak, since_slow = self._slow_from
        if limit <= self._rules.least:
            return True
        if not since_peak:
            self._slow_from = (peak, slow)
        elif limit * 4 > since_peak:
            self._slow_from = (since_peak, max(since_slow, slow))
        elif slow * 1.4 > since_slow:
            return True
        else:
            self._slow_from = (limit, slow)
        return False

    def _learn(self, means: list[float], *, rising: bool) -> None:
        for kind, mean in enumerate(means):
            measure = self._measures[kind]
            if not measure:
                self._measures[kind] = mean
            elif mean and (mean < measure or rising):
                self._measures[kind] = measure + (mean - measure) * (_FALL if mean < measure else _RISE)

    # -- who waits ---------------------------------------------------------------------------------------------

    async def wait(self, priority: int, *, chance: float) -> None:
        """Wait for a place. Whoever comes back from here must take it before anything else happens.

        Raises:
            Overloaded: there was none in time, or too many wait. `chance` (from 0 to 1) spreads those who come back.
        """
        rules = self._rules
        if not self._queues:
            self._queues = tuple(deque() for _ in PRIORITIES)
        if self.waiting >= rules.waiting_max and not self._make_way(priority):
            raise _full(chance)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues[priority]
        queue.append(turn)
        self.waiting += 1
        try:
            async with asyncio.timeout(rules.wait_s * (PATIENCE if priority >= HIGH else 1)):
                await turn
        except TimeoutError:
            # Its turn may have come in the same moment.
            if turn.cancelled():
                raise _full(chance) from None
        finally:
            if turn.cancelled():
                with contextlib.suppress(ValueError):
                    queue.remove(turn)
                    self.waiting -= 1
            elif turn.exception() is None:
                self.given -= 1

    def wake(self, outstanding: int) -> None:
        """Give the places that are free to those who wait. Call it whenever one may have become free."""
        while self.waiting and outstanding + self.given < self.limit:
            queue = next(queue for queue in reversed(self._queues) if queue)
            turn = queue.popleft()
            self.waiting -= 1
            if not turn.done():
                turn.set_result(None)
                self.given += 1

    def _make_way(self, priority: int) -> bool:
        """Send the last of those who matter less away; False where there is none."""
        for queue in self._queues[:priority]:
            while queue:
                turn = queue.pop()
                self.waiting -= 1
                if not turn.done():
                    turn.set_exception(_full(0.5))
                    return True
        return False


def _full(chance: float) -> Overloaded:
    return Overloaded("The providers of this model are busy; try again shortly.", retry_after_s=round(1 + chance, 3))
