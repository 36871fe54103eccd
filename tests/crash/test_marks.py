"""A stream whose worker was killed with -9 is charged to the chunk it had come to, and soon."""

import asyncio
import os
import signal

import httpx2
import msgspec
import redis.asyncio
import uvloop

from gateway.infra.postgres import Database
from gateway.kernel.journal import credit, find_account
from gateway.kernel.orphans import DELIVERED
from tests.crash.test_crash import processes
from tests.gateways import ServedGateway
from tests.upstreams import Peer, ScriptedUpstream, chunk

PATIENCE_S = 60.0
EVERY_S = 0.02
#: Events after the last renewal: about half a second of them.
BEYOND = 25
#: Chunks that were on their way when it was killed.
ON_THE_WAY = 6
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
ASK = {"model": "m", "stream": True, "max_tokens": 1000, "messages": [{"role": "user", "content": "Hi"}]}
CONFIG = """
[providers.local]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:PROVIDER_KEY"
models = ["m"]
[models.m]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[log]
level = "error"
access = ""
"""


def pytest_asyncio_loop_factories():
    return {"uvloop": uvloop.new_event_loop}


async def talk_without_end(peer: Peer) -> None:
    await peer.receive()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await peer.send(chunk(EVENT))
        await asyncio.sleep(EVERY_S)


async def was_renewed(url: str) -> bool:
    """Whether Redis knows how far a stream has come."""
    async with redis.asyncio.Redis.from_url(url) as valkey:
        return bool([key async for key in valkey.scan_iter("*:progress")])


async def test_a_stream_is_charged_to_where_it_was_when_its_worker_was_killed(own_stores):
    async with (
        Database(own_stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database,
        ScriptedUpstream(talk_without_end) as upstream,
        ServedGateway(own_stores, CONFIG.format(url=upstream.url)) as gateway,
        httpx2.AsyncClient(timeout=PATIENCE_S) as client,
    ):
        account = await find_account(database, gateway.key_id)
        await credit(database, account, type="bonus", amount_nanos=10**10, idempotency_key="marks")
        received_bytes, look_at, kill_at = 0, 0, 0
        headers = {"authorization": f"Bearer {gateway.key}"}
        try:
            async with client.stream(
                "POST", f"{gateway.url}/v1/chat/completions", json=ASK, headers=headers
            ) as answer:
                async for data in answer.aiter_raw():
                    received_bytes += len(data)
                    if not kill_at and received_bytes >= look_at:
                        look_at += 10 * len(EVENT)
                        if await was_renewed(own_stores.redis_url):
                            kill_at = received_bytes + BEYOND * len(EVENT)
                    if kill_at and received_bytes >= kill_at:
                        [worker] = processes(gateway, "worker")
                        os.kill(worker, signal.SIGKILL)
                        kill_at = 2**63
        except httpx2.RemoteProtocolError:
            pass

        row = None
        async with asyncio.timeout(PATIENCE_S):
            while row is None:
                await asyncio.sleep(0.1)
                row = await database.fetch_row("select * from usage_records where outcome = 'orphaned'")
        least = received_bytes // len(EVENT)
        counted = int(msgspec.json.decode(row["tags"])[DELIVERED]) // len(EVENT)
        # "word " is two tokens by estimate, or one: whatever it is, it is the same for each.
        each = row["output_tokens"] / counted

        assert kill_at == 2**63
        assert least <= counted <= least + ON_THE_WAY
        assert 1.0 <= each <= 3.0
        assert row["cost_nanos"] == row["input_tokens"] * 1000 + row["output_tokens"] * 2000
