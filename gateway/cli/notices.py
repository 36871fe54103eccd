"""Telling running gateways that a key was changed, from a command."""

import sys
from typing import Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.settings import Settings


class Notices:
    """Tells running gateways. What could not be told is remembered in `lost`: by then the key is changed."""

    def __init__(self, url: str) -> None:
        self._client = Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
        self.lost = False

    async def publish(self, channel: bytes, message: bytes) -> None:
        try:
            await self._client.publish(channel, message)
        except (RedisError, OSError):
            self.lost = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()


def warn_of_lost(settings: Settings) -> int:
    """Say that gateways were not told; the exit status."""
    wait_s = settings.auth.cache_s
    print(f"gateway: Redis does not answer: running gateways may take {wait_s:g} s to notice", file=sys.stderr)
    return 1
