"""The security log: who was refused what, as structured lines of the logger `gateway.security`.

Rules:
- A line names an event from a closed list, whom it is about (a key's public id, an account, an address) and why, by
  the code that the caller was answered with. Never a secret, and nothing that a caller could write at will.
- Whoever is refused again and again gets so many lines in a while and then none: the next line says how many were
  left out. So nobody fills a disk by being refused.
"""

import logging
from typing import Final, Literal

from gateway.infra.clock import Clock

Event = Literal["authentication_failed", "permission_refused", "key_misused"]

#: Lines about one subject and event in a window.
LINES_MAX: Final = 5
WINDOW_S: Final = 60.0
#: Subjects that are counted; beyond that the oldest are forgotten.
SUBJECTS_MAX: Final = 10_000

log = logging.getLogger("gateway.security")


class SecurityLog:
    """Of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: By event and subject: when its window began, and how many there were.
        self._seen: dict[tuple[Event, str], tuple[float, int]] = {}

    def note(self, event: Event, subject: str, *, code: str | None, **facts: object) -> bool:
        """Write that `subject` was refused; `facts` become fields of the line. False if it was left out."""
        now_s = self._clock.monotonic()
        since_s, count = self._seen.pop((event, subject), (now_s, 0))
        omitted = 0
        if now_s - since_s >= WINDOW_S:
            omitted, since_s, count = max(0, count - LINES_MAX), now_s, 0
        if len(self._seen) >= SUBJECTS_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[event, subject] = (since_s, count + 1)
        if count >= LINES_MAX:
            return False
        extra: dict[str, object] = {"event": event, "subject": subject, "code": code, **facts}
        if omitted:
            extra["omitted"] = omitted
        log.warning("%s: %s", event.replace("_", " "), code, extra=extra)
        return True
