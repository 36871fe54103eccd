"""Whether the stores answer now: what `/health/ready` says, in either plane.

Rules:
- It asks both, at once and briefly, and remembers the answer for a moment, so that nobody can keep the stores busy by
  asking; of many who ask together one does.
- It is not what a load balancer should go by: while Redis is away, requests of known keys are served all the same
  where the configuration allows it, and a balancer that takes every gateway out for a store they share makes an
  outage of a hiccup. That one asks `/health`, which says that this worker takes requests and asks nobody. This is for
  whoever brings up a release, or looks for what is wrong.
"""

import asyncio
import logging
from typing import Final

from gateway.errors import GatewayError
from gateway.infra.clock import Clock
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 1.0
REMEMBERED_S: Final = 1.0


class Readiness:
    """Of one worker."""

    def __init__(self, database: Database, redis: Redis, *, clock: Clock) -> None:
        self._database = database
        self._redis = redis
        self._clock = clock
        self._asking: asyncio.Future[tuple[str, ...]] | None = None
        self._asked_s = float("-inf")
        self._missing: tuple[str, ...] = ()

    async def find_missing(self) -> tuple[str, ...]:
        """The names of the stores that do not answer."""
        if self._asking is None and self._clock.monotonic() - self._asked_s < REMEMBERED_S:
            return self._missing
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
        # One caller leaving must not cancel what others wait for.
        return await asyncio.shield(self._asking)

    async def _ask(self) -> tuple[str, ...]:
        try:
            answers = await asyncio.gather(self._reach_database(), self._reach_redis())
            self._missing = tuple(
                name for name, well in zip(("postgresql", "redis"), answers, strict=True) if not well
            )
            self._asked_s = self._clock.monotonic()
        finally:
            self._asking = None
        return self._missing

    async def _reach_database(self) -> bool:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await self._database.fetch_value("select 1")
        except (GatewayError, TimeoutError) as error:
            log.warning("postgresql does not answer: %s", error)
            return False
        return True

    async def _reach_redis(self) -> bool:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await self._redis.execute("PING")
        except (GatewayError, TimeoutError) as error:
            log.warning("redis does not answer: %s", error)
            return False
        return True


def say_missing(missing: tuple[str, ...]) -> str:
    """For people."""
    return f"Not ready: {' and '.join(missing)} {'do' if len(missing) > 1 else 'does'} not answer."
