"""The security log: who was refused what, as structured lines of the logger `gateway.security`.

Rules:
- A line names an event from a closed list, whom it is about (a key's public id, a person, an address) and why, by the
  code that the caller was answered with. Never a secret, and nothing that a caller could write at will.
- Whoever is refused again and again gets `LINES_MAX` lines in a window and then none; when it ends, one more says how
  many were left out. So does everybody together, `LINES_ALL_MAX`, so that nobody fills a disk by being refused from
  many addresses.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, Literal

from gateway.infra.clock import Clock
from gateway.kernel.constraints import address_of
from gateway.wire.client_address import Network

Event = Literal["authentication_failed", "permission_refused", "key_misused", "tries_exhausted"]

#: Lines about one subject and event in a window, and about all.
LINES_MAX: Final = 5
LINES_ALL_MAX: Final = 1000
WINDOW_S: Final = 60.0
#: Subjects that are counted; beyond that the oldest are forgotten, with a line for what was left out of theirs.
SUBJECTS_MAX: Final = 10_000
#: Who calls from where no address is.
UNKNOWN: Final = "unknown"

log = logging.getLogger("gateway.security")


class _Window:
    __slots__ = ("count", "ends", "since_s")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.count = 0
        #: Says what was left out; once something was.
        self.ends: asyncio.TimerHandle | None = None


class SecurityLog:
    """Of one process."""

    def __init__(self, clock: Clock, *, trusted: Sequence[Network] = ()) -> None:
        """`trusted` are the proxies that are believed who their caller is."""
        self._clock = clock
        self._trusted = trusted
        #: By event and subject; both empty for all together.
        self._windows: dict[tuple[Event | Literal["all"], str], _Window] = {}

    def source_of(self, scope: Any) -> str:  # Any: ASGI's own mapping
        """The address that a request comes from, as far as proxies are to be believed."""
        address = address_of(scope, self._trusted)
        return UNKNOWN if address is None else str(address)

    def note(self, event: Event, subject: str, *, code: str | None, **facts: object) -> bool:
        """Write that `subject` was refused; `facts` become fields of the line. False if it was left out."""
        if not self._count((event, subject), LINES_MAX) or not self._count(("all", ""), LINES_ALL_MAX):
            return False
        extra: dict[str, object] = {"event": event, "subject": subject, "code": code, **facts}
        log.warning("%s: %s", event.replace("_", " "), code, extra=extra)
        return True

    def close(self) -> None:
        """Say what was left out so far."""
        for key in list(self._windows):
            self._end(key)

    def _count(self, key: tuple[Event | Literal["all"], str], most: int) -> bool:
        now_s = self._clock.monotonic()
        window = self._windows.get(key)
        if window is not None and now_s - window.since_s >= WINDOW_S:
            self._end(key)
            window = None
        if window is None:
            if len(self._windows) >= SUBJECTS_MAX:
                self._end(next(iter(self._windows)))
            window = self._windows[key] = _Window(now_s)
        window.count += 1
        if window.count <= most:
            return True
        if window.ends is None:
            left_s = window.since_s + WINDOW_S - now_s
            window.ends = asyncio.get_running_loop().call_later(left_s, self._end, key)
        return False

    def _end(self, key: tuple[Event | Literal["all"], str]) -> None:
        window = self._windows.pop(key)
        if window.ends is None:
            return
        window.ends.cancel()
        event, subject = key
        omitted = window.count - (LINES_ALL_MAX if event == "all" else LINES_MAX)
        extra = {"event": event, "subject": subject, "omitted": omitted}
        log.warning("%s: %d more", event.replace("_", " "), omitted, extra=extra)
