"""A master that is replaced by its replica, as a real Sentinel arranges it."""

import asyncio

import pytest

from gateway.errors import StoreUnavailable
from gateway.infra.redis import Redis
from tests.valkey_cluster import wait_until, watched_pair

WAIT_S = 60


@pytest.mark.slow
async def test_the_new_master_is_found_after_a_failover():
    with watched_pair() as (master, replica, sentinel):
        # The first Sentinel does not answer; the second does.
        client = Redis(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/main", timeout_s=0.5)
        await client.connect()
        assert await client.execute("SET", b"key", b"x") == b"OK"
        info = await client.execute("INFO", "server")
        assert b"tcp_port:%d\r\n" % master.port in info

        # It takes the Sentinel a moment to find the replica fit for it.
        await asyncio.to_thread(wait_until, lambda: sentinel.answers("SENTINEL", "FAILOVER", "main") == b"OK")

        async def port_written_to() -> bytes | None:
            try:
                await client.execute("SET", b"key", b"y")
                return await client.execute("INFO", "server")
            except StoreUnavailable:
                return None

        async with asyncio.timeout(WAIT_S):
            while b"tcp_port:%d\r\n" % replica.port not in (await port_written_to() or b""):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert replica.ask("GET", "key") == b"y"
        await client.close()


async def test_a_master_nobody_knows_is_told():
    with watched_pair() as (_, _, sentinel):
        client = Redis(f"redis+sentinel://127.0.0.1:{sentinel.port}/other", timeout_s=0.5)

        with pytest.raises(StoreUnavailable) as caught:
            await client.connect()

        assert "'other'" in caught.value.detail
        await client.close()
