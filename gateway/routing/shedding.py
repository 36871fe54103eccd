"""When a worker refuses requests that it could only serve late, and whose: a bound on what is in flight.

How much a worker can do shows in how late its event loop is. While it is late, the bound shrinks, from what was
really in flight; while it is not, the bound grows again, until there is none but the configured one.

    who matters   is let in up to
    low           four fifths of the bound
    normal        the bound
    high          the configured bound, however late the loop is

Rules:
- One late turn says nothing: the loop is late when every look of a second found it so.
- What is refused is refused by its head alone (`gateway/gate.py`).
- What is in flight already is never touched.
- A worker that ends, and has no successor here, lets nobody in.
"""

from collections import deque
from typing import Final

import msgspec

from gateway.errors import Overloaded
from gateway.routing.crowd import HIGH, LOW

#: The latest looks that must agree; the loop is looked at four times a second.
LOOKS: Final = 4
#: What those hear who are refused.
CROWDED: Final = "This gateway has more to do than it can; try again shortly."
#: No bound is lower.
LEAST: Final = 16
#: What those who matter least leave for the others.
_LOW_SHARE: Final = 0.8
#: What is left of a bound when it shrinks, at most and at least: the less, the later the loop is.
_SHRINK: Final = 0.7
_SHRINK_MOST: Final = 0.4


class SheddingRules(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds, as configured."""

    #: Later than this the loop is late; 0: it never is.
    lag_s: float = 0.5
    #: As many may be in flight whatever the loop does.
    requests_max: int = 16384


class Shedding:
    """The bound of one worker."""

    __slots__ = ("_bound", "_closed", "_lags", "_rules", "free")

    def __init__(self, rules: SheddingRules) -> None:
        self._rules = rules
        self._lags: deque[float] = deque(maxlen=LOOKS)
        self._bound = rules.requests_max
        self._closed = False
        #: Up to so many in flight nobody is refused, and nothing else need be asked.
        self.free = self._share(LOW)

    @property
    def closed(self) -> bool:
        """Nobody is let in any more."""
        return self._closed

    @property
    def bound(self) -> int:
        """How many may be in flight, for those who matter as much as most do."""
        return self._bound

    def close(self) -> None:
        """This worker ends: let nobody in any more."""
        self._closed = True
        self.free = -1

    def look(self, lag_s: float, in_flight: int) -> None:
        """The event loop is so late, with so many in flight."""
        rules = self._rules
        if not rules.lag_s or self._closed:
            return
        self._lags.append(lag_s)
        if len(self._lags) == LOOKS and min(self._lags) > rules.lag_s:
            # What waits grows with what is in flight.
            shrink = min(_SHRINK, max(_SHRINK_MOST, rules.lag_s / min(self._lags)))
            self._bound = max(min(LEAST, rules.requests_max), int(min(self._bound, in_flight) * shrink))
            # What follows from it must be seen before it is judged.
            self._lags.clear()
        elif lag_s <= rules.lag_s and self._bound < rules.requests_max:
            self._bound = min(rules.requests_max, self._bound + 1 + self._bound // 16)
        self.free = self._share(LOW)

    def admit(self, priority: int, in_flight: int, *, chance: float) -> None:
        """Let a request in; `in_flight` counts it. `chance` (from 0 to 1) spreads those who come back.

        Raises:
            Overloaded: there is no room for it.
        """
        if self._closed:
            raise Overloaded("This gateway is stopping; try again shortly.", retry_after_s=round(1 + chance, 3))
        if not self.takes(priority, in_flight):
            raise Overloaded(CROWDED, retry_after_s=round(1 + chance, 3))

    def takes(self, priority: int, in_flight: int) -> bool:
        """Whether there is room for a request; `in_flight` counts it."""
        return in_flight <= self._share(priority)

    def _share(self, priority: int) -> int:
        if priority >= HIGH:
            return self._rules.requests_max
        return int(self._bound * _LOW_SHARE) if priority == LOW else self._bound
