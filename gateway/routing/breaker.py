"""When an offer is left alone after failing, and when it is asked again.

    from        event       to          because
    closed      tripped     open        of the requests in the window, enough were seen and too many failed
    open        rested      half open   it was left alone for `rest_s`
    open        healed      closed      somebody had no other choice, asked it, and it worked
    half open   healed      closed      a probe succeeded
    half open   relapsed    open        a probe failed

Every other event changes nothing. Rules:
- A probe is an ordinary request: nothing is ever asked for the sake of asking, since every call is paid for. At most
  `PROBES_MAX` of them are under way at a time.
- What began before the breaker opened says nothing about now: its end counts only while the breaker is closed.
- A window is two halves, the one that runs and the one before it, so that a count is a few additions.
- It comes back by itself: nobody has to reset it, and no failure makes it stay away longer.
"""

from enum import Enum, IntEnum
from typing import Final

import msgspec

PROBES_MAX: Final = 1


class State(IntEnum):
    """The numbers are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Event(Enum):
    """What moves a breaker."""

    TRIPPED = "tripped"
    RESTED = "rested"
    HEALED = "healed"
    RELAPSED = "relapsed"


TRANSITIONS: Final = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.RESTED): State.HALF_OPEN,
    (State.OPEN, Event.HEALED): State.CLOSED,
    (State.HALF_OPEN, Event.HEALED): State.CLOSED,
    (State.HALF_OPEN, Event.RELAPSED): State.OPEN,
}


class BreakerRules(msgspec.Struct, frozen=True, kw_only=True):
    """When it trips and for how long."""

    #: Fewer requests than this in the window prove nothing.
    requests_min: int = 10
    #: Per cent of them that must have failed.
    failure_percent: float = 50.0
    window_s: float = 20.0
    rest_s: float = 10.0


class Breaker:
    """One circuit breaker. `admits` before a request, `enter` when it is sent, and then exactly one of `succeed`,
    `fail` and `leave`, with what `enter` returned.
    """

    __slots__ = (
        "_before_failures",
        "_before_requests",
        "_failures",
        "_half_s",
        "_halved_s",
        "_opened_s",
        "_probes",
        "_requests",
        "_rules",
        "state",
        "trips",
    )

    def __init__(self, rules: BreakerRules) -> None:
        self.state = State.CLOSED
        #: How often it opened.
        self.trips = 0
        self._rules = rules
        self._half_s = rules.window_s / 2
        self._opened_s = 0.0
        self._probes = 0
        self._requests = self._failures = 0
        self._before_requests = self._before_failures = 0
        self._halved_s = 0.0

    def __repr__(self) -> str:
        requests = self._requests + self._before_requests
        return f"<Breaker {self.state.name.lower()}: {self._failures + self._before_failures} of {requests} failed>"

    def admits(self, now_s: float) -> bool:
        """Whether a request may go here, where another could serve it as well."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN and now_s - self._opened_s >= self._rules.rest_s:
            self._move(Event.RESTED, now_s)
        return self.state is State.HALF_OPEN and self._probes < PROBES_MAX

    def enter(self) -> bool:
        """A request goes here; True if it is a probe."""
        if self.state is State.CLOSED:
            return False
        self._probes += 1
        return True

    def succeed(self, now_s: float, *, probe: bool) -> None:
        """It was answered."""
        if probe:
            self._probes = max(0, self._probes - 1)
            if self.state is not State.CLOSED:
                self._move(Event.HEALED, now_s)
        elif self.state is State.CLOSED:
            if now_s - self._halved_s >= self._half_s:
                self._halve(now_s)
            self._requests += 1

    def fail(self, now_s: float, *, probe: bool) -> None:
        """It was not."""
        if probe:
            self._probes = max(0, self._probes - 1)
            self._move(Event.RELAPSED, now_s)
        if self.state is not State.CLOSED:
            return
        if now_s - self._halved_s >= self._half_s:
            self._halve(now_s)
        self._requests += 1
        self._failures += 1
        requests = self._requests + self._before_requests
        failures = self._failures + self._before_failures
        if requests >= self._rules.requests_min and failures * 100 >= requests * self._rules.failure_percent:
            self._move(Event.TRIPPED, now_s)

    def leave(self, *, probe: bool) -> None:
        """It ended without saying anything about the provider."""
        if probe:
            self._probes = max(0, self._probes - 1)

    def _move(self, event: Event, now_s: float) -> None:
        after = TRANSITIONS.get((self.state, event), self.state)
        if after is self.state:
            return
        self.state = after
        if after is State.OPEN:
            self._opened_s = now_s
            self.trips += 1
        elif after is State.CLOSED:
            self._forget(now_s)
        if after is not State.HALF_OPEN:
            self._probes = 0

    def _halve(self, now_s: float) -> None:
        """Begin the next half of the window; what is older than a whole one is forgotten."""
        if now_s - self._halved_s >= 2 * self._half_s:
            self._forget(now_s)
            return
        self._before_requests, self._before_failures = self._requests, self._failures
        self._requests = self._failures = 0
        self._halved_s = now_s

    def _forget(self, now_s: float) -> None:
        self._requests = self._failures = 0
        self._before_requests = self._before_failures = 0
        self._halved_s = now_s
