"""What routing costs each request, in microseconds: finding the menu, choosing, and remembering how it went.

Run `python -m benchmarks.routing_micro`. Each figure is the best of many short rounds on one core. "One offer" is
what most requests pay: a model with one provider, one key and no fallbacks. The rest is paid only for a choice.
"""

import argparse
import random
import timeit
from collections.abc import Callable
from functools import partial

from gateway.exchange import Offer
from gateway.kernel.money import Price
from gateway.routing.breaker import BreakerRules
from gateway.routing.budget import BudgetRules, RetryBudget
from gateway.routing.choose import Asked
from gateway.routing.course import Course, CourseRules, Failed, Step, begin, end, fail, succeed
from gateway.routing.health import Health
from gateway.routing.holdback import Holdback
from gateway.routing.menu import Menus
from gateway.routing.preferences import read_preferences
from gateway.routing.verdict import Verdict
from gateway.settings import Model, Strategy
from gateway.wire.dialects import Dialect
from gateway.wire.peek import peek

CHAT = Dialect.OPENAI_CHAT
STRATEGIES: tuple[Strategy, ...] = ("priority", "least_outstanding", "latency", "cost", "throughput")
WISHES = b'{"model":"m","models":["n"],"provider":{"order":["p3"],"sort":"price"},"messages":[]}'
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" the"}}]}\n\n'
RULES = CourseRules()


class Bench:
    """The menus of some models, and requests that go through them."""

    def __init__(self) -> None:
        self.chance = random.Random(1).random
        self.budget = RetryBudget(BudgetRules(share=1.0, floor_per_s=1e9, burst=1e9), now_s=0.0)
        health = Health(BreakerRules())
        for number in range(10):
            health.know(f"p{number}", keys=1)
        health.know("keys", keys=3)
        price = Price(input_mtok_nanos=1_000_000, output_mtok_nanos=4_000_000)
        offers: dict[str, tuple[Offer, ...]] = {
            "one": (self._offer("one", "p0", price),),
            "keys": (self._offer("keys", "keys", price),),
            "two": tuple(self._offer("two", f"p{number}", price) for number in range(2)),
        }
        models: dict[str, Model] = {}
        for strategy in STRATEGIES:
            offers[strategy] = tuple(self._offer(strategy, f"p{number}", price) for number in range(10))
            models[strategy] = Model(routing=strategy)
        dialects = {offer.provider: frozenset({CHAT}) for several in offers.values() for offer in several}
        self.menus = Menus(find=lambda name: offers.get(name, ()), dialects=dialects, models=models, health=health)

    @staticmethod
    def _offer(model: str, provider: str, price: Price) -> Offer:
        return Offer(model=model, provider=provider, upstream_model=model, price=price)

    def short_way(self) -> None:
        """What `route` does where there is nothing to choose."""
        menu = self.menus.find("one", CHAT)
        self.budget.begun += 1
        assert menu.alone is not None
        step = Step(menu.alone, menu.alone.health.provider.keys[0])
        begin(step)
        succeed(step, 1.0)
        end(step)

    def course(self, model: str, key: bytes = b"") -> Course:
        return Course(
            self.menus.find(model, CHAT),
            asked=Asked(stream=True, input_tokens=100, output_tokens=1000, key=key),
            rules=RULES,
            budget=self.budget,
            chance=self.chance,
            started_s=0.0,
        )

    def served(self, model: str, key: bytes = b"") -> None:
        """A request that is answered at once."""
        course = self.course(model, key)
        step = course.first(1.0)
        begin(step)
        course.has_more(1.0)
        succeed(step, 1.0)
        step.candidate.health.first_token.observe(0.2, 1.0)
        end(step)

    def fallen_back(self, model: str) -> None:
        """A request whose first try was refused."""
        course = self.course(model)
        step = course.first(1.0)
        failed = Failed(verdict=Verdict.SATURATED)
        begin(step)
        fail(step, failed, 1.0, RULES)
        end(step)
        following = course.after(step, failed, 1.0)
        assert following is not None
        begin(following)
        succeed(following, 1.0)
        end(following)


def cases() -> list[tuple[str, Callable[[], object]]]:
    bench = Bench()
    peeked = peek(WISHES)
    found: list[tuple[str, Callable[[], object]]] = [
        ("one offer: found, entered, remembered", bench.short_way),
        ("one offer of these: finding the menu", lambda: bench.menus.find("one", CHAT)),
        ("one offer with three keys", lambda: bench.served("keys")),
        ("two offers", lambda: bench.served("two")),
        ("two offers, and the first one fails", lambda: bench.fallen_back("two")),
    ]
    found += [(f"ten offers, {strategy}", partial(bench.served, strategy)) for strategy in STRATEGIES]
    found += [
        ("ten offers, back to where it was", lambda: bench.served("priority", b"conversation")),
        ("holding back one event", lambda: Holdback(CHAT, events_max=16, bytes_max=65536, wait_s=1.0).feed(EVENT)),
        ("reading a caller's wishes", lambda: read_preferences(WISHES, peeked)),
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500, help="short rounds for each figure; the best one counts")
    rounds: int = parser.parse_args().rounds
    for name, run in cases():
        timer = timeit.Timer(run)
        once_s = min(timer.repeat(repeat=3, number=1))
        number = max(1, int(0.0005 / max(once_s, 1e-7)))
        best_s = min(timer.repeat(repeat=rounds, number=number)) / number
        print(f"{best_s * 1e6:10.2f} us  {name}")


if __name__ == "__main__":
    main()
