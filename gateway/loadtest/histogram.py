"""Durations, kept so that any percentile can be asked for later.

Buckets are log-linear: 128 to each power of two, so that a value comes back at most 0.8 % too high and never too low,
whatever its size. Recording costs a bit length and an addition; memory does not depend on how much was recorded.

Rules: values are whole nanoseconds; negative ones count as 0 (clocks of two processors may differ by that little);
what exceeds `LIMIT_NS` counts as that, and `max_ns` still tells the truth.
"""

from collections.abc import Iterator
from typing import Final

_SUB_BITS: Final = 7
_SUB: Final = 1 << _SUB_BITS
#: About 19 hours: longer than any run.
LIMIT_NS: Final = (1 << 46) - 1
_BUCKETS: Final = (46 - _SUB_BITS + 1) << _SUB_BITS


class Histogram:
    """Counts of durations in nanoseconds."""

    __slots__ = ("_counts", "_max", "_sum", "_total")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._total = 0
        self._sum = 0
        self._max = 0

    def __len__(self) -> int:
        return self._total

    def record(self, value_ns: int, *, times: int = 1) -> None:
        value_ns = max(value_ns, 0)
        self._max = max(self._max, value_ns)
        self._total += times
        self._sum += value_ns * times
        value_ns = min(value_ns, LIMIT_NS)
        # The leading one and the seven bits after it choose the bucket; values below 256 have one of their own.
        shift = value_ns.bit_length() - _SUB_BITS - 1
        self._counts[value_ns if shift <= 0 else (shift << _SUB_BITS) + (value_ns >> shift)] += times

    @property
    def max_ns(self) -> int:
        """The largest value, exactly; 0 when empty."""
        return self._max

    @property
    def mean_ns(self) -> float:
        """Exact; 0.0 when empty."""
        return self._sum / self._total if self._total else 0.0

    def percentile_ns(self, percent: float) -> int:
        """The smallest recorded value that at least `percent` of all values do not exceed; 0 when empty.

        It is the upper end of that value's bucket, but never more than the largest value.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"{percent} is not a percentage")
        # Whole numbers, so that p99.9 of 1,000 values is the 999th of them and not the 1,000th by a rounding error.
        wanted = max(1, -(-self._total * round(percent * 1_000_000) // 100_000_000))
        seen = 0
        for highest, count in self.buckets():
            seen += count
            if seen >= wanted:
                return min(highest, self._max)
        return self._max

    def buckets(self) -> Iterator[tuple[int, int]]:
        """`(highest value, count)` of every bucket that is not empty, ascending."""
        for index, count in enumerate(self._counts):
            if count:
                yield _highest(index), count


def _highest(index: int) -> int:
    """The largest value that falls into the bucket."""
    if index < 2 * _SUB:
        return index
    shift = (index >> _SUB_BITS) - 1
    return ((index - (shift << _SUB_BITS) + 1) << shift) - 1
