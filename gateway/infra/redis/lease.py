"""A lease: at most one of many processes does a thing at a time, and another takes over when that one is gone.

It is a convenience, not a fence: a process that was stopped for longer than the lease may believe for a moment that
it still has it. What must not happen twice needs a guard of its own.
"""

import secrets
from typing import Final

from gateway.infra.redis.client import Redis

# Takes the lease, or renews it if it is ours; 1 if we have it.
_HOLD: Final = b"""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_DROP: Final = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Lease:
    """One holder's view of the lease `name`. Call `hold` more often than every `ttl_s`."""

    def __init__(self, redis: Redis, name: bytes, *, ttl_s: float) -> None:
        self._name = name
        self._ttl_ms = int(ttl_s * 1000)
        self._token = secrets.token_hex(16)
        self._hold = redis.script(_HOLD)
        self._drop = redis.script(_DROP)

    async def hold(self) -> bool:
        """Take or keep it; whether it is ours now.

        Raises:
            StoreUnavailable: Redis is away, and nothing is known.
        """
        return await self._hold((self._name,), (self._token, self._ttl_ms)) == 1

    async def drop(self) -> None:
        """Give it up, if it is ours.

        Raises:
            StoreUnavailable: it ends by itself.
        """
        await self._drop((self._name,), (self._token,))
