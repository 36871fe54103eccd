import asyncio
import threading

import pytest

from gateway.infra.clock import SystemClock
from gateway.loadtest.ticker import Ticker

CLOCK = SystemClock()


async def test_it_wakes_the_loop_in_the_loops_own_thread() -> None:
    woken = asyncio.Event()
    threads: list[int] = []

    def wake() -> None:
        threads.append(threading.get_ident())
        woken.set()

    ticker = Ticker(loop=asyncio.get_running_loop(), clock=CLOCK, next_due_s=lambda now_s: now_s + 0.001, wake=wake)
    ticker.start()
    await woken.wait()
    ticker.stop()

    assert set(threads) == {threading.get_ident()}


@pytest.mark.parametrize("wait_s", [None, 3600.0])
async def test_it_stops_at_once_however_far_the_next_request_is(wait_s: float | None) -> None:
    ticker = Ticker(
        loop=asyncio.get_running_loop(),
        clock=CLOCK,
        next_due_s=lambda now_s: None if wait_s is None else now_s + wait_s,
        wake=lambda: pytest.fail("nothing is due"),
    )
    ticker.start()

    ticker.stop()

    assert not any(thread.name == "loadtest-ticker" for thread in threading.enumerate())
