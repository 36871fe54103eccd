"""What balancing and hedging bring about over time: the real parts, against providers whose times are counted."""

import heapq
import random

from gateway.routing.choose import Asked, choose
from gateway.routing.course import Step, begin, end
from gateway.routing.ewma import UsualTime
from gateway.routing.hedge import HedgeBudget, HedgeRules
from tests.gateway.routing.offers import group, offer

STREAM = Asked(stream=True)


class Traffic:
    """Fifty requests a second between offers that are equally fast, until one is told to be slower."""

    def __init__(self) -> None:
        self.group = group(offer("a"), offer("b"), offer("c"), strategy="latency")
        self.seconds = dict.fromkeys("abc", 0.3)
        self.now_s = 0.0
        self._chance = random.Random(7)
        self._ends: list[tuple[float, int, float, Step]] = []
        self._count = 0

    def run(self, duration_s: float) -> dict[str, float]:
        """The share that each got."""
        until_s = self.now_s + duration_s
        asked = dict.fromkeys("abc", 0)
        while self.now_s < until_s:
            while self._ends and self._ends[0][0] <= self.now_s:
                end_s, _, took_s, step = heapq.heappop(self._ends)
                step.candidate.health.first_token.observe(took_s, end_s)
                end(step)
            several = self.group
            candidate = choose(several, several.candidates, STREAM, self.now_s, self._chance.random)
            step = Step(candidate, candidate.health.provider.keys[0])
            begin(step)
            name = candidate.offer.provider
            asked[name] += 1
            self._count += 1
            took_s = self.seconds[name] * self._chance.uniform(0.8, 1.2)
            heapq.heappush(self._ends, (self.now_s + took_s, self._count, took_s, step))
            self.now_s += 0.02
        total = sum(asked.values())
        return {name: count / total for name, count in asked.items()}


def test_most_traffic_leaves_a_provider_that_becomes_ten_times_slower_and_comes_back():
    traffic = Traffic()
    traffic.run(20.0)
    assert all(0.2 < share < 0.5 for share in traffic.run(20.0).values())

    traffic.seconds["a"] *= 10
    traffic.run(3.0)
    assert traffic.run(5.0)["a"] < 0.1
    assert traffic.run(30.0)["a"] < 0.1

    traffic.seconds["a"] /= 10
    traffic.run(30.0)
    assert traffic.run(10.0)["a"] > 0.2


def test_hedging_cuts_the_slowest_answers_at_least_fivefold_for_at_most_five_per_cent_more_load():
    """One answer in fifty takes five seconds where the others take a tenth of one."""
    chance = random.Random(3)

    def answer_s() -> float:
        return 5.0 if chance.random() < 0.02 else chance.uniform(0.08, 0.12)

    usual, budget = UsualTime(), HedgeBudget(HedgeRules(share=0.05, least_s=0.05))
    alone, hedged, count = [], [], 10_000
    for _ in range(count):
        budget.earn()
        first_s = answer_s()
        alone.append(first_s)
        usual_s = usual.read()
        after_s = None if usual_s is None else max(usual_s, budget.rules.least_s)
        if after_s is not None and first_s > after_s and budget.spend():
            second_s = answer_s()
            usual.observe(first_s if first_s <= after_s + second_s else second_s)
            hedged.append(min(first_s, after_s + second_s))
        else:
            usual.observe(first_s)
            hedged.append(first_s)

    def p99(seconds: list[float]) -> float:
        return sorted(seconds)[count * 99 // 100]

    assert p99(alone) >= 5 * p99(hedged)
    assert budget.spent <= 0.05 * count
