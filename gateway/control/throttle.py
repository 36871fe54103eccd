"""How often something may be tried: counted in Redis, for all gateways together, in windows of a fixed length.

It counts tries, not failures, and before they are made: of a thousand at once none passes that should not. Without
Redis nothing may be tried; a way in that nobody counts is a way to guess.
"""

import hashlib
from typing import Final

from gateway.errors import RateLimited
from gateway.infra.redis import Redis

_SCRIPT: Final = b"""
local count = redis.call('incr', KEYS[1])
if count == 1 then redis.call('pexpire', KEYS[1], ARGV[1]) end
return {count, redis.call('pttl', KEYS[1])}
"""


class Throttle:
    """Of all workers: what it counts is in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = redis.script(_SCRIPT)

    async def take(self, what: str, whose: str, *, limit: int, window_s: float) -> None:
        """Count a try.

        Raises:
            RateLimited: it is one too many; says when the window ends.
            StoreUnavailable
        """
        reply = await self._take([_name(what, whose)], [int(window_s * 1000)])
        assert isinstance(reply, list)
        count, left_ms = reply
        if count > limit:
            raise RateLimited("Too many tries; come back later.", retry_after_s=max(1.0, left_ms / 1000))

    async def forgive(self, what: str, whose: str) -> None:
        """Begin anew: whoever it was has proved to be the right one."""
        await self._redis.execute("DEL", _name(what, whose))


def _name(what: str, whose: str) -> bytes:
    # Addresses of people are no names of keys: hashed, and of one length.
    return b"gateway:tries:" + what.encode() + b":" + hashlib.sha256(whose.lower().encode()).hexdigest()[:32].encode()
