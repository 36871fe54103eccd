"""Timers for thousands of exchanges from one loop timer.

A `call_later` for each request and each read would cost more than parsing the read. Instead, whoever has a deadline
is in a set, and one timer looks at all of them every `TICK_S`; a read only marks its exchange as `touched`.

Rules:
- A deadline is noticed at most `TICK_S` after it passed (idle limits, which are restarted by a mark rather than a
  time stamp, at most two ticks after), never before it.
- Nothing runs while nobody is watched. While only idle connections are, the timer runs every `REST_S`.
- `check` may add and discard entries.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

TICK_S = 0.1
REST_S = 1.0


class Watched(Protocol):
    """Something with a deadline."""

    def check(self, now_s: float) -> None:
        """Act if a deadline has passed; `now_s` is the loop's time."""
        ...


class Deadlines:
    """The watched exchanges, and the one timer that looks at them.

    `rest` is called every `REST_S` at most with the loop's time and says whether there is still something to look
    after when nothing is watched.
    """

    __slots__ = ("_handle", "_loop", "_rest", "_rested_s", "_resting", "watched")

    def __init__(self, rest: Callable[[float], bool]) -> None:
        self.watched: set[Watched] = set()
        self._rest = rest
        self._rested_s = 0.0
        self._handle: asyncio.TimerHandle | None = None
        #: True while the timer is stopped or slow, so that the next exchange has to start it.
        self._resting = True
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self, entry: Watched) -> None:
        """Check `entry` from now on, until it is discarded from `watched`."""
        self.watched.add(entry)
        if self._resting:
            self._start(TICK_S)

    def look_after_idle(self) -> None:
        """See to it that `rest` is called although nothing is watched."""
        if self._handle is None:
            self._start(REST_S)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self._resting = True
        self.watched.clear()

    def _start(self, delay_s: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._rested_s = self._loop.time()
        self._resting = delay_s > TICK_S
        self._handle = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        assert self._loop is not None
        self._handle = None
        now_s = self._loop.time()
        for entry in tuple(self.watched):
            entry.check(now_s)
        busy = bool(self.watched)
        idle = True
        if now_s - self._rested_s >= REST_S:
            # Slowing down here, not at the first empty tick: one request after another would restart the timer each.
            self._rested_s = now_s
            idle = self._rest(now_s)
            if not busy:
                if idle:
                    self._start(REST_S)
                else:
                    self._resting = True
                return
        if self._handle is None:
            self._start(TICK_S)
