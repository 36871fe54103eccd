"""When requests are due.

Open loop: arrivals at a constant rate, whatever the server does. A request that could not start when it was due
starts late and its latency counts from when it was due, so that a server that stalls cannot hide the stall by keeping
the generator from sending (coordinated omission).

Closed loop: so many requests at a time; the next is due when one has ended. That finds the highest throughput, and
its latencies hold for callers who wait for each answer before they ask again.

Times are seconds of one monotonic clock. Nothing here waits or knows about connections.
"""

from typing import Protocol


class Schedule(Protocol):
    """Hands out due times, in order."""

    def take(self, now_s: float) -> float | None:
        """When the next request was due, if that is not later than `now_s`; it is thereby handed out."""
        ...

    def next_due_s(self, now_s: float) -> float | None:
        """When to ask again; None when requests become due by others ending."""
        ...

    def overdue(self, now_s: float) -> int:
        """How many requests were due by `now_s` and have not been handed out."""
        ...


class OpenLoop:
    """`rate` arrivals a second, evenly spaced, the first at `start_s`."""

    def __init__(self, *, rate: float, start_s: float) -> None:
        if rate <= 0:
            raise ValueError("a rate is more than 0")
        self._rate = rate
        self._start_s = start_s
        self._taken = 0

    def take(self, now_s: float) -> float | None:
        due_s = self._start_s + self._taken / self._rate
        if due_s > now_s:
            return None
        self._taken += 1
        return due_s

    def next_due_s(self, now_s: float) -> float:
        return self._start_s + self._taken / self._rate

    def overdue(self, now_s: float) -> int:
        if now_s < self._start_s:
            return 0
        return max(0, int((now_s - self._start_s) * self._rate) + 1 - self._taken)


class ClosedLoop:
    """The first `streams` requests are spread over `ramp_s` from `start_s` on; later ones are due whenever asked for.

    The ramp keeps a thousand callers from connecting in the same millisecond, and their streams from beating in time.
    """

    def __init__(self, *, streams: int, ramp_s: float, start_s: float) -> None:
        self._streams = streams
        self._spacing_s = ramp_s / streams
        self._start_s = start_s
        self._taken = 0

    def take(self, now_s: float) -> float | None:
        due_s = now_s
        if self._taken < self._streams:
            due_s = self._start_s + self._taken * self._spacing_s
            if due_s > now_s:
                return None
        self._taken += 1
        return due_s

    def next_due_s(self, now_s: float) -> float | None:
        return self._start_s + self._taken * self._spacing_s if self._taken < self._streams else None

    def overdue(self, now_s: float) -> int:
        return 0
