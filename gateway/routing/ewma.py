"""Averages that forget: how slow an offer is, and how fast its tokens come; and how slow it usually is at most.

Rules:
- The weight of a sample halves with time, not with the number of samples after it: an idle offer is forgotten too.
- A latency that is worse than the average becomes the average at once, one that is better pulls it down slowly. So
  the first slow answer moves traffic away, and one lucky answer does not bring it all back.
- Read later, a latency has decayed towards zero: an offer that nobody asked for a while is asked again.
"""

from bisect import insort
from math import exp
from typing import Final

#: After this long a sample has lost 63 % of its weight.
DECAY_S: Final = 10.0
#: A rate nobody measured for this long is unknown again.
STALE_S: Final = 60.0
#: The latest answers that a usual time is worked out from, and the fewest.
SAMPLES_MAX: Final = 128
SAMPLES_MIN: Final = 20
#: Nineteen in twenty.
PERMILLE: Final = 950


class PeakEwma:
    """Seconds, quick to rise and slow to fall."""

    __slots__ = ("_at_s", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._at_s = 0.0

    def observe(self, seconds: float, now_s: float) -> None:
        value = self.value
        if seconds >= value:
            self.value = seconds
        else:
            kept = exp((self._at_s - now_s) / DECAY_S) if now_s > self._at_s else 1.0
            self.value = seconds + (value - seconds) * kept
        self._at_s = now_s

    def read(self, now_s: float) -> float:
        """The average as it is worth now; 0 where nothing was measured."""
        return self.value * exp((self._at_s - now_s) / DECAY_S) if now_s > self._at_s else self.value


class RateEwma:
    """Tokens each second."""

    __slots__ = ("_at_s", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._at_s = 0.0

    def observe(self, rate: float, now_s: float) -> None:
        if not self._value or now_s - self._at_s > STALE_S:
            self._value = rate
        else:
            # A burst of answers within one moment still moves it: each has the weight of a second.
            kept = exp(-max(now_s - self._at_s, 1.0) / DECAY_S)
            self._value = rate + (self._value - rate) * kept
        self._at_s = now_s

    def read(self, now_s: float) -> float | None:
        """The average, or None where nothing was measured lately."""
        return self._value if self._value and now_s - self._at_s <= STALE_S else None


class UsualTime:
    """Seconds in which nineteen of twenty of the latest answers had begun."""

    __slots__ = ("_next", "_ranked", "_samples")

    def __init__(self) -> None:
        self._samples: list[float] = []
        self._ranked: list[float] = []
        self._next = 0

    def observe(self, seconds: float) -> None:
        if len(self._samples) < SAMPLES_MAX:
            self._samples.append(seconds)
        else:
            self._ranked.remove(self._samples[self._next])
            self._samples[self._next] = seconds
            self._next = (self._next + 1) % SAMPLES_MAX
        insort(self._ranked, seconds)

    def read(self) -> float | None:
        """The time, or None where too few answers were seen."""
        count = len(self._ranked)
        return None if count < SAMPLES_MIN else self._ranked[min(count - 1, count * PERMILLE // 1000)]
