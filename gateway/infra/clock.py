"""Time, through one seam: the only caller of `time`, so that tests and the simulation can own it."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where seconds come from."""

    def now(self) -> float:
        """Wall clock, seconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's clocks."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
