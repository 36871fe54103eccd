"""Answers that are kept for a while, for accounts that ask exactly the same again.

Rules:
- In the memory of one worker, at most `bytes_max` of it: what was not asked for longest goes first. Redis keeps money
  and must never be full, so answers are not kept there.
- A key names the account: no answer is ever given to another one.
- Where the same is asked again while its answer is under way, one may wait for it (`flights`).
"""

import asyncio
from collections import OrderedDict

import msgspec

from gateway.exchange import Headers
from gateway.kernel.money import Nanos

#: What an entry costs besides its bytes, roughly.
_ENTRY_BYTES = 1024


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole good answer, as it went to its first caller."""

    status: int
    headers: Headers
    body: bytes
    streaming: bool
    provider: str
    #: What was charged for it.
    cost_nanos: Nanos
    #: On the clock's monotonic seconds.
    made_s: float


class Answers:
    """What one worker keeps."""

    def __init__(self, *, bytes_max: int, ttl_s: float) -> None:
        #: Answers under way, for those who wait for them: done when they have ended, however they did.
        self.flights: dict[bytes, asyncio.Future[None]] = {}
        self.size_bytes = 0
        self._bytes_max = bytes_max
        self._ttl_s = ttl_s
        self._kept: OrderedDict[bytes, Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: bytes, now_s: float, *, age_most_s: float | None = None) -> Answer | None:
        """The answer for a key, not older than is asked for."""
        found = self._kept.get(key)
        if found is None:
            return None
        age_s = now_s - found.made_s
        if age_s > self._ttl_s:
            self._drop(key)
            return None
        if age_most_s is not None and age_s > age_most_s:
            return None
        self._kept.move_to_end(key)
        return found

    def keep(self, key: bytes, answer: Answer) -> None:
        """Keep an answer in the place of any other for this key, unless it is larger than all the room."""
        self._drop(key)
        size_bytes = _size(answer)
        if size_bytes > self._bytes_max:
            return
        while self.size_bytes + size_bytes > self._bytes_max:
            self._drop(next(iter(self._kept)))
        self._kept[key] = answer
        self.size_bytes += size_bytes

    def _drop(self, key: bytes) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self.size_bytes -= _size(dropped)


def _size(answer: Answer) -> int:
    return len(answer.body) + _ENTRY_BYTES
