"""Batches are charged exactly once though every process that could charge them is killed with -9, again and again.

They end one after the other while callers ask for them and pollers do too; workers and the keeper of the books die at
random moments, some of them between a charge and the note that it was made.
"""

import asyncio
import os
import random
import signal

import openai
import pytest
import uvloop

from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.journal import credit, find_account
from gateway.kernel.ledger import Ledger
from gateway.kernel.loader import Loader
from gateway.kernel.reconciler import Reconciler
from tests.crash.test_crash import processes
from tests.gateways import ServedGateway
from tests.keepers import Keeper
from tests.upstreams import ScriptedUpstream

pytestmark = pytest.mark.xdist_group("outages")

BATCHES = 16
KILLS = 8
PATIENCE_S = 90.0
USAGE = {"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500}
BATCH_NANOS = (1000 * 1000 + 500 * 2000) // 2
CREDIT_NANOS = 10**10
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","max_tokens":10}}\n'
CONFIG = """
[server]
grace_s = 1
[batches]
poll_s = 0.2
poll_most_s = 1.0
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


async def ask_again(client: openai.AsyncOpenAI, ids: list[str], stop: asyncio.Event) -> None:
    """Ask for batches, whatever becomes of the answers."""
    draw = random.Random(len(ids))
    while not stop.is_set():
        try:
            await client.batches.retrieve(draw.choice(ids), timeout=5)
        except openai.OpenAIError:
            await asyncio.sleep(0.1)


async def kill_at_random(gateway: ServedGateway, draw: random.Random) -> int:
    killed = 0
    while killed < KILLS:
        await asyncio.sleep(draw.uniform(0.3, 1.0))
        if pids := [*processes(gateway, "worker"), *processes(gateway, "books")]:
            os.kill(draw.choice(pids), signal.SIGKILL)
            killed += 1
    return killed


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_batches_are_charged_once_whoever_is_killed(own_stores):
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    draw = random.Random(seed)
    keeper = Keeper()
    async with (
        Database(own_stores.database_dsn, pool_size=2, timeout_s=PATIENCE_S) as database,
        ScriptedUpstream(keeper.serve) as upstream,
        ServedGateway(own_stores, CONFIG.format(url=upstream.url), workers=2) as gateway,
        openai.AsyncOpenAI(api_key=gateway.key, base_url=f"{gateway.url}/v1", max_retries=5) as client,
    ):
        account = await find_account(database, gateway.key_id)
        before = await database.fetch_value("select balance_nanos from balances where account_id = $1", account)
        await credit(database, account, type="bonus", amount_nanos=CREDIT_NANOS, idempotency_key="crash")
        file = await client.files.create(file=("in.jsonl", LINE), purpose="batch")
        ids = []
        for _ in range(BATCHES):
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            ids.append(batch.id)

        stop = asyncio.Event()
        asking = [asyncio.ensure_future(ask_again(client, ids, stop)) for _ in range(4)]
        killing = asyncio.ensure_future(kill_at_random(gateway, draw))
        for batch_id in ids:
            keeper.finish(batch_id, usage=USAGE)
            await asyncio.sleep(0.3)
        assert await killing == KILLS
        stop.set()
        await asyncio.gather(*asking)

        redis = Redis(own_stores.redis_url, timeout_s=10)
        await redis.connect()
        reconciler = Reconciler(database, redis, Loader(database, Ledger(redis)))
        async with asyncio.timeout(PATIENCE_S):
            while True:
                pending = await database.fetch_value("select count(*) from objects where charge_state = 'pending'")
                report = await reconciler.reconcile()
                if not pending and not report.unsettled_nanos and not report.drifts and not report.unread:
                    break
                await asyncio.sleep(0.25)
        costs = await database.fetch(
            "select r.cost_nanos from objects o join usage_records r on r.request_id = o.charge_id where o.id = any($1)",
            ids,
        )
        entries = await database.fetch("select amount_nanos from entries where type = 'api_usage'")
        after = await database.fetch_value("select balance_nanos from balances where account_id = $1", account)
        balance = await Ledger(redis).peek_balance(account)
        await redis.close()

    assert [row["cost_nanos"] for row in costs] == [BATCH_NANOS] * BATCHES
    assert [row["amount_nanos"] for row in entries] == [-BATCH_NANOS] * BATCHES
    assert after == before + CREDIT_NANOS - BATCHES * BATCH_NANOS
    assert balance is not None
    assert balance.held_nanos == 0
