import asyncio

import pytest

from gateway.infra.redis import Redis
from gateway.infra.redis.lease import Lease


@pytest.fixture
async def redis(redis_url):
    client = Redis(redis_url, timeout_s=10.0)
    await client.connect()
    yield client
    await client.close()


async def test_one_of_many_holds_it_and_keeps_it(redis):
    leases = [Lease(redis, b"work", ttl_s=60) for _ in range(5)]

    held = await asyncio.gather(*(lease.hold() for lease in leases))
    again = await asyncio.gather(*(lease.hold() for lease in leases))

    assert sum(held) == 1
    assert again == held


async def test_dropped_lease_is_free_at_once(redis):
    first, second = (Lease(redis, b"work", ttl_s=60) for _ in range(2))
    assert await first.hold()

    await first.drop()

    assert await second.hold()
    assert not await first.hold()


async def test_only_the_holder_can_drop_it(redis):
    first, second = (Lease(redis, b"work", ttl_s=60) for _ in range(2))
    assert await first.hold()

    await second.drop()

    assert not await second.hold()


async def test_lease_of_a_holder_that_is_gone_ends(redis):
    first, second = Lease(redis, b"work", ttl_s=0.05), Lease(redis, b"work", ttl_s=60)
    assert await first.hold()

    async with asyncio.timeout(30):
        while not await second.hold():  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.01)
