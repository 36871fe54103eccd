"""Wakes an event loop to the tenth of a millisecond, which its own timers can't: they count whole milliseconds.

A thread sleeps until the next request is due and then calls into the loop. It takes no decision: the loop takes from
the schedule whatever is due by then.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Final

from gateway.infra.clock import Clock

#: Requests due within this of one another are started together: so many wake-ups a second at most, at any rate.
GRAIN_S: Final = 0.0005


class Ticker:
    """Calls `wake` in `loop` at the times that `next_due_s` names, until `stop`.

    `next_due_s` runs in the thread: it may only read what changes by single assignments.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        next_due_s: Callable[[float], float | None],
        wake: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._next_due_s = next_due_s
        self._wake = wake
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loadtest-ticker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return once nothing more will be called; to be called in the loop, before it ends."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            now_s = self._clock.monotonic()
            due_s = self._next_due_s(now_s)
            # None: nothing is due before something ends, and whoever sees the end asks the schedule itself.
            wait_s = max(due_s - now_s, GRAIN_S) if due_s is not None else 0.1
            if self._stopped.wait(wait_s):
                return
            if due_s is not None:
                self._loop.call_soon_threadsafe(self._wake)
