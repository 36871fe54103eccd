import asyncio
import os
import time

from gateway.infra.clock import SystemClock
from gateway.infra.exposition import merge, render
from gateway.infra.metrics import Observations, Registry
from gateway.infra.process import LoopLag, collect_process, measure_loop_lag
from tests.gateway.infra.exposition_text import Exposition


def shown(registry: Registry) -> Exposition:
    return Exposition(render(merge([registry.snapshot()])).decode())


def test_a_process_tells_what_it_costs():
    registry = Registry(incarnation="a")
    collect_process(registry, SystemClock())

    text = shown(registry)
    with open(os.devnull) as one, open(os.devnull) as two:  # noqa: PTH123
        opened = shown(registry)
        assert not one.closed
        assert not two.closed

    assert text.value("process_cpu_seconds_total") > 0
    assert 5e6 < text.value("process_resident_memory_bytes") < 5e9
    assert opened.value("process_open_fds") - text.value("process_open_fds") == 2
    assert text.value("process_max_fds") >= text.value("process_open_fds")
    assert abs(text.value("process_start_time_seconds") - SystemClock.now()) < 60
    assert text.value("gateway_workers") == 1


class Watched(Observations):
    """Tells when there have been three."""

    def __init__(self) -> None:
        super().__init__((), [])
        self.seen: list[float] = []
        self.enough = asyncio.Event()

    def observe(self, value: float) -> None:
        self.seen.append(value)
        if len(self.seen) == 3:
            self.enough.set()


async def test_a_blocked_loop_shows_as_lag():
    watched = Watched()
    lag = LoopLag(watched, interval_s=0.01)
    lag.start()

    # A blocking sleep on purpose: it is the thing that is measured.
    time.sleep(0.3)  # noqa: ASYNC251
    async with asyncio.timeout(10):
        await watched.enough.wait()
    lag.stop()

    assert watched.seen[0] >= 0.28
    assert all(late >= 0 for late in watched.seen)


async def test_what_waits_behind_other_sockets_shows_although_timers_are_on_time(monkeypatch):
    watched = Watched()
    lag = LoopLag(watched, interval_s=0.02)
    # Nobody gets to the socket, in however many turns of the loop.
    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", lambda *_: None)
    lag.start()

    async with asyncio.timeout(10):
        await watched.enough.wait()
    lag.stop()

    first, second, third = watched.seen[:3]
    assert third > second > first
    assert third >= 0.03


async def test_the_lag_is_declared_and_stops():
    registry = Registry(incarnation="a")
    lag = measure_loop_lag(registry)

    lag.start()
    lag.stop()
    lag.stop()

    assert shown(registry).value("gateway_loop_lag_seconds_count") == 0
