"""How many requests an offer is found to take, against servers of known size; and who waits for a place."""

import asyncio
import heapq

import pytest

from gateway.errors import Overloaded
from gateway.infra.tasks import TaskGroup
from gateway.routing.crowd import HIGH, LOW, NORMAL, Crowd, CrowdRules


class Server:
    """So many at a time, each `service_s` long; the others wait in it. Arrivals are even, time is counted."""

    def __init__(self, *, places: int, service_s: float, rules: CrowdRules | None = None) -> None:
        self.crowd = Crowd(rules or CrowdRules())
        self.places = places
        self.service_s = service_s
        self.now_s = 0.0
        self.outstanding = 0
        self.served = self.shed = 0
        self.seconds: list[float] = []
        self._ends: list[tuple[float, float]] = []
        self._free = [0.0] * places

    def run(self, rate: float, duration_s: float) -> None:
        """`rate` requests a second arrive; those that find no place are sent away at once."""
        self.served = self.shed = 0
        self.seconds = []
        until_s = self.now_s + duration_s
        due_s = self.now_s
        while due_s < until_s:
            while self._ends and self._ends[0][0] <= due_s:
                self._end()
            self.now_s = due_s
            if self.outstanding < self.crowd.limit:
                begin_s = max(due_s, heapq.heappop(self._free))
                end_s = begin_s + self.service_s
                heapq.heappush(self._free, end_s)
                heapq.heappush(self._ends, (end_s, due_s))
                self.outstanding += 1
            else:
                self.shed += 1
            due_s += 1 / rate

    def _end(self) -> None:
        end_s, begun_s = heapq.heappop(self._ends)
        self.served += 1
        self.seconds.append(end_s - begun_s)
        self.crowd.observe(end_s - begun_s, 0, stream=True, outstanding=self.outstanding, now_s=end_s)
        self.outstanding -= 1


def test_nothing_is_limited_before_it_is_too_much():
    server = Server(places=100, service_s=1.0)
    server.run(rate=90.0, duration_s=60.0)
    assert server.shed == 0
    assert server.crowd.limit == CrowdRules().most


def test_at_three_times_what_it_can_do_a_server_does_all_it_can_and_answers_in_time():
    """A hundred places of a second each: a hundred a second, whatever comes; and no answer takes a minute."""
    server = Server(places=100, service_s=1.0)
    server.run(rate=90.0, duration_s=30.0)
    server.run(rate=300.0, duration_s=60.0)
    server.run(rate=300.0, duration_s=300.0)

    assert server.served > 0.95 * 100 * 300
    assert max(server.seconds) < 6.0
    assert server.shed > 0


def test_when_the_rush_is_over_nothing_is_refused_any_more():
    server = Server(places=50, service_s=1.0)
    server.run(rate=40.0, duration_s=30.0)
    server.run(rate=200.0, duration_s=120.0)
    server.run(rate=40.0, duration_s=30.0)
    server.run(rate=40.0, duration_s=60.0)
    assert server.shed == 0


def test_a_server_that_becomes_slower_for_good_is_not_limited_for_good():
    """What it takes five times as long for is the new measure, once it is seen that fewer requests change nothing."""
    server = Server(places=100_000, service_s=1.0)
    server.run(rate=60.0, duration_s=30.0)
    server.service_s = 8.0
    server.run(rate=60.0, duration_s=180.0)
    server.run(rate=60.0, duration_s=60.0)
    assert server.shed == 0


def test_slow_answers_of_a_server_that_was_always_slow_are_no_sign():
    server = Server(places=100_000, service_s=30.0)
    server.run(rate=20.0, duration_s=300.0)
    assert server.crowd.limit == CrowdRules().most


def test_who_says_that_it_is_too_much_is_believed_and_then_asked_for_more():
    crowd = Crowd(CrowdRules())
    for number in range(40):
        crowd.overload(outstanding=40, now_s=number * 0.05)
    assert 4 <= crowd.limit <= 20

    limits = []
    for number in range(2000):
        crowd.observe(0.1, 0, stream=True, outstanding=crowd.limit, now_s=3.0 + number * 0.05)
        limits.append(crowd.limit)
    assert limits[20:] == sorted(limits[20:])
    assert crowd.limit > 1000


def test_a_few_failures_among_many_answers_change_nothing():
    crowd = Crowd(CrowdRules())
    for number in range(1000):
        if number % 20:
            crowd.observe(0.1, 0, stream=True, outstanding=50, now_s=number * 0.01)
        else:
            crowd.overload(outstanding=50, now_s=number * 0.01)
    assert crowd.limit == CrowdRules().most


def test_long_answers_are_not_taken_for_slow_ones():
    """Plain answers are compared for their length: a thousand tokens take longer than ten."""
    crowd = Crowd(CrowdRules())
    for number in range(400):
        tokens = 10 if number < 200 else 1000
        crowd.observe(0.5 + tokens * 0.02, tokens, stream=False, outstanding=50, now_s=number * 0.2)
    assert crowd.limit == CrowdRules().most


def test_it_can_be_switched_off():
    crowd = Crowd(CrowdRules(adaptive=False))
    for number in range(100):
        crowd.overload(outstanding=40, now_s=number * 0.1)
    assert crowd.limit == CrowdRules().most


class Queue:
    """Requests that wait at an offer with `limit` places, all taken."""

    def __init__(self, **rules) -> None:
        self.crowd = Crowd(CrowdRules(most=1, **({"wait_s": 30.0} | rules)))
        self.outstanding = 1
        self.order: list[str] = []
        self.refused: list[str] = []
        self.retry_after_s: float | None = None
        self.tasks = TaskGroup()

    async def come(self, name: str, priority: int) -> asyncio.Task[None]:
        async def request() -> None:
            try:
                await self.crowd.wait(priority, chance=0.5)
            except Overloaded as error:
                self.refused.append(name)
                self.retry_after_s = error.retry_after_s
            else:
                self.outstanding += 1
                self.order.append(name)

        before = self.crowd.waiting
        task = self.tasks.spawn(request(), name=name)
        for _ in range(5):
            await asyncio.sleep(0)
        assert self.crowd.waiting in (before, before + 1)
        return task

    async def leave(self) -> None:
        self.outstanding -= 1
        self.crowd.wake(self.outstanding)
        for _ in range(5):
            await asyncio.sleep(0)


async def test_who_matters_more_goes_first_and_of_equals_who_came_first():
    queue = Queue()
    for name, priority in [("a", LOW), ("b", NORMAL), ("c", NORMAL), ("d", HIGH), ("e", LOW)]:
        await queue.come(name, priority)
    for _ in range(5):
        await queue.leave()
    assert queue.order == ["d", "b", "c", "a", "e"]
    assert queue.crowd.waiting == queue.crowd.given == 0


async def test_a_full_queue_sends_the_last_of_those_away_who_matter_less():
    queue = Queue(waiting_max=2)
    await queue.come("low", LOW)
    await queue.come("lower", LOW)
    await queue.come("high", HIGH)
    assert queue.refused == ["lower"]
    await queue.come("late", LOW)
    assert queue.refused == ["lower", "late"]
    await queue.leave()
    await queue.leave()
    assert queue.order == ["high", "low"]


async def test_nobody_waits_for_long():
    queue = Queue(wait_s=0.02)
    task = await queue.come("one", NORMAL)
    await asyncio.wait([task], timeout=10)
    assert queue.refused == ["one"]
    assert queue.retry_after_s == 1.5
    assert queue.crowd.waiting == 0


@pytest.mark.parametrize("given", [False, True])
async def test_who_leaves_while_waiting_takes_no_place_with_it(given):
    queue = Queue()
    first = await queue.come("first", NORMAL)
    await queue.come("second", NORMAL)
    if given:
        # Its turn comes, and it leaves before it hears of it.
        queue.outstanding -= 1
        queue.crowd.wake(queue.outstanding)
    first.cancel()
    await asyncio.wait([first])
    if given:
        queue.crowd.wake(queue.outstanding)
        await asyncio.sleep(0.01)
    else:
        await queue.leave()
    assert queue.order == ["second"]
    assert queue.crowd.waiting == queue.crowd.given == 0
