"""The setting that says how long a hold outlives its worker."""

import asyncio
import contextlib

import msgspec
import pytest
import redis.asyncio

from gateway.settings import Money, Settings
from tests.gateways import RunningGateway
from tests.upstreams import HANG, RECEIVE, ScriptedUpstream, play

pytestmark = pytest.mark.xdist_group("outages")

ASK = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})


async def leases(url: str) -> list[int]:
    """How many milliseconds each lease has left."""
    async with redis.asyncio.Redis.from_url(url) as valkey:
        seconds, micros = await valkey.time()
        now_ms = seconds * 1000 + micros // 1000
        keys = [key async for key in valkey.scan_iter("*:leases")]
        return [int(end) - now_ms for key in keys for _, end in await valkey.zrange(key, 0, -1, withscores=True)]


async def test_a_hold_is_leased_and_renewed_for_as_long_as_the_settings_say(own_stores):
    settings = Settings(money=Money(lease_s=600.0))
    async with (
        ScriptedUpstream(play(RECEIVE, HANG)) as upstream,
        RunningGateway(own_stores, providers={"local": upstream}, settings=settings) as gateway,
    ):
        connection = await gateway.connect()
        await connection.send(gateway.request(ASK))
        await upstream.received(1)

        (first_ms,) = await leases(own_stores.redis_url)
        assert 500_000 < first_ms <= 600_000

        # A renewal lifts it above anything that the admission can have left by now.
        left_ms = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                await asyncio.sleep(2.5)
                while left_ms <= 598_500:
                    await asyncio.sleep(0.05)
                    (left_ms,) = await leases(own_stores.redis_url)
        assert left_ms > 598_500
