"""Request ids: UUIDv7 (RFC 9562, section 5.7) made here, so that the time inside can partition what is keyed by them.

Rules:
- Ids of one generator rise strictly, also within a millisecond and when the clock steps back: the 74 bits after the
  time are drawn afresh for each new millisecond, and within one the lowest 48 are raised by a random step
  (RFC 9562, section 6.2, method 2).
- A forked child draws anew: two workers never share a sequence.

Text is put together from slices of hexadecimal digits that were drawn in bulk; numbers are only made where a
millisecond is shared.
"""

import os
import re
import weakref

from gateway.infra.clock import Clock

#: Hexadecimal digits that one id consumes: 12 + 16 + 48 bits, of which the variant covers two.
_DRAW_DIGITS = 19
#: How many ids one call to the kernel's random source pays for.
_DRAWS = 512
_POOL_DIGITS = _DRAW_DIGITS * _DRAWS
_LOW_MASK = (1 << 47) - 1
_LOW_END = 1 << 48
_STEP_DIGITS = 8
#: Version nibble and variant of RFC 9562: the first digit of the fourth group is 8, 9, a or b.
_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
_TEXT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)


class RequestIds:
    """Makes request ids. One for each process; not for use by several threads at once."""

    __slots__ = ("__weakref__", "_at", "_clock", "_last_ms", "_low", "_next_s", "_pool", "_prefix")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pool = ""
        self._at = _POOL_DIGITS
        self._last_ms = -1
        #: The clock reading at which `_last_ms` is over.
        self._next_s = 0.0
        #: The last id without its last group, and that group as a number.
        self._prefix = ""
        self._low = 0
        _live.add(self)

    def make(self) -> str:
        """The next id, as lower-case text of 36 characters."""
        now_s = self._clock.now()
        at = self._at
        if at >= _POOL_DIGITS:
            self._pool = os.urandom(_POOL_DIGITS // 2).hex()
            at = 0
        self._at = at + _DRAW_DIGITS
        pool = self._pool
        if now_s < self._next_s:
            # The same millisecond as the last id, or an earlier one.
            low = self._low + 1 + int(pool[at : at + _STEP_DIGITS], 16)
            if low < _LOW_END:
                self._low = low
                return f"{self._prefix}{low:012x}"
            ms = self._last_ms + 1
        else:
            ms = max(int(now_s * 1000), self._last_ms + 1)
        self._last_ms = ms
        self._next_s = (ms + 1) / 1000
        time = f"{ms:012x}"
        middle = pool[at : at + 7]
        self._prefix = prefix = f"{time[:8]}-{time[8:]}-7{middle[:3]}-{_VARIANT[middle[3]]}{middle[4:]}-"
        # The highest bit stays clear, so that a busy millisecond has room to count.
        self._low = low = int(pool[at + 7 : at + 19], 16) & _LOW_MASK
        return f"{prefix}{low:012x}"

    def forget(self) -> None:
        """Draw anew: for a child that was forked off with this state."""
        self._at = _POOL_DIGITS
        self._next_s = 0.0


def is_request_id(text: str) -> bool:
    """Whether `text` has the form that `RequestIds.make` gives."""
    return _TEXT.fullmatch(text) is not None


def time_ms(request_id: str) -> int:
    """When the id was made, milliseconds since the Unix epoch.

    Raises:
        ValueError: not a request id.
    """
    if not is_request_id(request_id):
        raise ValueError(f"not a request id: {request_id[:60]!r}")
    return int(request_id[:8] + request_id[9:13], 16)


_live: "weakref.WeakSet[RequestIds]" = weakref.WeakSet()


def _forked() -> None:
    for generator in _live:
        generator.forget()


os.register_at_fork(after_in_child=_forked)
