"""Whether a stream is coming at a pace that will do: its first token, its rate, its silences.

    release     its beginning was held back long enough
    comment     nothing went to the caller for a while: write something that means nothing
    late        no event came within `first_token_s`
    slow        fewer bytes than `bytes_per_s_min` came, over `WINDOW_S`

Rules:
- Looked at every `tick_s`, by one timer, and only where at least one of these was asked for.
- Time in which the caller does not read counts for nothing: its slowness is not the provider's.
"""

from enum import Enum
from math import inf
from typing import Final

WINDOW_S: Final = 10.0
_TICK_MOST_S: Final = 1.0
_TICK_LEAST_S: Final = 0.02


class Sign(Enum):
    """What is to be done now."""

    NOTHING = "nothing"
    RELEASE = "release"
    COMMENT = "comment"
    LATE = "late"
    SLOW = "slow"


class Pace:
    """Keeps an eye on one stream. Limits that are 0 hold for ever."""

    __slots__ = (
        "_bytes",
        "_comment_s",
        "_first_due_s",
        "_quiet_bytes",
        "_quiet_s",
        "_rate_min",
        "_release_due_s",
        "_window_s",
        "tick_s",
    )

    def __init__(
        self,
        *,
        sent_s: float,
        now_s: float,
        hold_s: float = 0.0,
        first_token_s: float = 0.0,
        bytes_per_s_min: float = 0.0,
        comment_s: float = 0.0,
    ) -> None:
        """`sent_s` is when the request was sent; holding back is counted from `now_s`."""
        limits = [limit for limit in (hold_s, first_token_s, comment_s) if limit > 0]
        if bytes_per_s_min > 0:
            limits.append(WINDOW_S)
        #: 0 where there is nothing to look at.
        self.tick_s = min(_TICK_MOST_S, max(_TICK_LEAST_S, min(limits) / 4)) if limits else 0.0
        self._release_due_s = now_s + hold_s if hold_s > 0 else inf
        self._first_due_s = sent_s + first_token_s if first_token_s > 0 else inf
        self._rate_min = bytes_per_s_min
        self._window_s = now_s
        self._bytes = 0
        self._comment_s = comment_s if comment_s > 0 else inf
        self._quiet_s = now_s
        self._quiet_bytes = 0

    def look(self, now_s: float, *, bytes_out: int, begun: bool, held: bool, paused: bool) -> Sign:
        """How it stands: `begun` once an event came, `held` while none was let go."""
        if paused:
            self._window_s = now_s
            self._bytes = bytes_out
            return Sign.NOTHING
        if not begun and now_s >= self._first_due_s:
            return Sign.LATE
        if held:
            return Sign.RELEASE if now_s >= self._release_due_s else Sign.NOTHING
        if begun and self._rate_min > 0 and now_s - self._window_s >= WINDOW_S:
            rate = (bytes_out - self._bytes) / (now_s - self._window_s)
            if rate < self._rate_min:
                return Sign.SLOW
            self._window_s = now_s
            self._bytes = bytes_out
        elif not begun:
            # What comes before the first token has no rate.
            self._window_s = now_s
            self._bytes = bytes_out
        if bytes_out != self._quiet_bytes:
            self._quiet_bytes = bytes_out
            self._quiet_s = now_s
        elif now_s - self._quiet_s >= self._comment_s:
            self._quiet_s = now_s
            return Sign.COMMENT
        return Sign.NOTHING
