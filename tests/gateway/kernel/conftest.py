"""The ledger's two sides on real stores."""

from collections.abc import AsyncIterator

import pytest

from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from tests.books import Books


@pytest.fixture
async def books(database: str, redis_url: str) -> AsyncIterator[Books]:
    redis = Redis(redis_url, timeout_s=10.0)
    await redis.connect()
    async with Database(database, pool_size=8, timeout_s=20.0) as opened:
        kept = Books(opened, redis)
        yield kept
        await kept.loader.close()
    await redis.close()
