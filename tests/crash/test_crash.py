"""The real thing: `gateway serve`, hundreds of streams, and processes killed with -9 at random; then the books.

What must hold, whatever was killed and when:
- The entries of every account sum to its balance, which is its balance in Redis.
- A request whose answer a caller saw whole is charged exactly once, at exactly its price.
- No request is charged twice.
- A stream that was cut by the death of its worker is charged for what was delivered up to its last renewal, at the
  least; `test_marks.py` has the rest.
- Nothing stays held, and no slot stays taken.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
import redis.asyncio as plain_redis
import uvloop

from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.holds import RENEW_S, YOUNG_S
from gateway.kernel.ledger import Ledger
from gateway.kernel.loader import Loader
from gateway.kernel.reconciler import Reconciler, Report, check_books
from tests.crash.crowd import CREDIT_NANOS, INPUT_NANOS, MODEL, OUTPUT_NANOS, Crowd, Sight, open_accounts, tell
from tests.gateways import ServedGateway
from tests.upstreams import ScriptedUpstream

pytestmark = pytest.mark.xdist_group("outages")

WORKERS = 4
ACCOUNTS = 24
STREAMS = 220
PLAIN = 30
#: Of killing, and between two kills.
KILLING_S = 30.0
KILL_EVERY_S = (0.8, 2.2)
#: What a renewal may come late by on a machine that has other things to do.
LATE_S = 2.0
PATIENCE_S = 60.0

CONFIG = """
[server]
grace_s = 2
[money]
lease_s = 5
[providers.local]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:PROVIDER_KEY"
models = ["m"]
[log]
level = "error"
access = ""
"""


def pytest_asyncio_loop_factories():
    return {"uvloop": uvloop.new_event_loop}


def processes(gateway: ServedGateway, kind: str) -> list[int]:
    """The processes of one kind, worker or books, that run now."""
    parent = gateway._process.pid
    found = []
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            name = Path(f"/proc/{pid}/comm").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name.startswith(f"gw-{kind}"):
            found.append(int(pid))
    return found


async def kill_at_random(gateway: ServedGateway, draw: random.Random) -> Counter[str]:
    """For `KILLING_S`; how many of each kind."""
    loop = asyncio.get_running_loop()
    killed: Counter[str] = Counter()
    end_s = loop.time() + KILLING_S
    while loop.time() < end_s:
        await asyncio.sleep(draw.uniform(*KILL_EVERY_S))
        kind = "books" if killed["worker"] >= 5 and not killed["books"] else "worker"
        if pids := processes(gateway, kind):
            os.kill(draw.choice(pids), signal.SIGKILL)
            killed[kind] += 1
    return killed


class Stores:
    """Both stores, as they are when it is over."""

    def __init__(self, database: Database, redis: Redis, valkey: "plain_redis.Redis[bytes]") -> None:
        self.database = database
        self.valkey = valkey
        loader = Loader(database, Ledger(redis))
        self.reconciler = Reconciler(database, redis, loader)

    async def settled(self) -> Report:
        """Wait until no lease is left and everything is in PostgreSQL."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                leases = [await self.valkey.zcard(key) for key in await self._keys("leases")]
                report = await self.reconciler.reconcile()
                if not any(leases) and not report.unsettled_nanos and not report.unread and not await self._waiting():
                    return report
                await asyncio.sleep(0.25)

    async def held(self) -> Counter[str]:
        """What is still taken, of all accounts and keys."""
        taken: Counter[str] = Counter()
        for kind in ("a", "k"):
            for key in await self._keys(f"{kind}:*"):
                held, slots = await self.valkey.hmget(key, "held", "conc")
                taken["nanos"] += int(held or 0)
                taken["slots"] += int(slots or 0)
        for key in await self._keys("progress"):
            taken["progress"] += await self.valkey.hlen(key)
        return taken

    async def _waiting(self) -> int:
        """Records that are not in the books, free ones too."""
        rows = await self.database.fetch("select partition, last_id from settle_cursors")
        count = 0
        for row in rows:
            count += len(await self.valkey.xrange(f"{{p{row['partition']}}}:usage", f"({row['last_id']}", "+"))
        return count

    async def _keys(self, tail: str) -> list[bytes]:
        return [key async for key in self.valkey.scan_iter(f"{{p*}}:{tail}")]


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_nothing_is_lost_or_charged_twice_when_workers_are_killed(own_stores):
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    draw = random.Random(seed)
    async with (
        Database(own_stores.database_dsn, pool_size=4, timeout_s=PATIENCE_S) as database,
        ScriptedUpstream(tell) as upstream,
        ServedGateway(own_stores, CONFIG.format(url=upstream.url) + MODEL, workers=WORKERS) as gateway,
        plain_redis.Redis.from_url(own_stores.redis_url) as valkey,
    ):
        accounts = await open_accounts(database, ACCOUNTS)
        crowd = Crowd(gateway.port, accounts, seed=seed)
        crowd.start(streams=STREAMS, plain=PLAIN)
        killed = await kill_at_random(gateway, draw)
        await crowd.finish()

        redis = Redis(own_stores.redis_url, timeout_s=10)
        await redis.connect()
        stores = Stores(database, redis, valkey)
        report = await stores.settled()
        taken = await stores.held()
        said = await gateway.command("reconcile")
        misfits = await check_books(database)
        rows = await database.fetch(
            "select request_id::text, account_id, cost_nanos, input_tokens, output_tokens, outcome from usage_records"
        )
        entries = await database.fetch(
            "select request_id::text, count(*) as count from entries where type = 'api_usage' group by 1"
        )
        spent = await database.fetch(
            "select account_id, sum(cost_nanos)::bigint as nanos from usage_records group by 1"
        )
        balances = await database.fetch("select account_id, balance_nanos from balances")
        await redis.close()

    verdict = judge(crowd.sights, {row["request_id"]: row for row in rows})
    print(table(crowd.sights, rows, killed, verdict))

    assert killed["worker"] >= 5
    assert killed["books"] == 1
    assert verdict.wrong == []
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert [entry["request_id"] for entry in entries if entry["count"] != 1] == []
    assert {e["request_id"] for e in entries} == {row["request_id"] for row in rows if row["cost_nanos"]}
    assert misfits == []
    assert report.drifts == []
    assert "no drift" in said
    costs = {row["account_id"]: row["nanos"] for row in spent}
    balance_nanos = {row["account_id"]: row["balance_nanos"] for row in balances}
    for account in accounts:
        assert balance_nanos[account.id] == CREDIT_NANOS - costs[account.id]
    assert +taken == Counter()
    assert b"Traceback" not in gateway.log, gateway.log.decode()


class Verdict:
    """What became of the requests that callers saw something of."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.outcomes: Counter[str] = Counter()
        #: Of streams that were cut: seconds between the last token that was charged and the cut.
        self.missing_s: list[float] = []


def judge(sights: list[Sight], rows: dict) -> Verdict:
    verdict = Verdict()
    for sight in sights:
        row = rows.get(sight.request_id)
        cost = None if row is None else row["cost_nanos"]
        if sight.whole and sight.status == 200:
            verdict.outcomes["whole"] += 1
            if cost != sight.price_nanos:
                verdict.wrong.append(f"whole, {sight.price_nanos} due: {describe(sight, row)}")
        elif not sight.token_s:
            verdict.outcomes["nothing seen"] += 1
        else:
            verdict.outcomes["cut"] += 1
            judge_cut(sight, row, verdict)
    return verdict


def judge_cut(sight: Sight, row, verdict: Verdict) -> None:
    """A stream whose worker was killed: due is what was out one renewal before that."""
    due_s = sight.ended_s - RENEW_S - LATE_S
    due = sum(at_s <= due_s for at_s in sight.token_s)
    # The first renewal comes when a hold is no longer young.
    if sight.ended_s - sight.asked_s < YOUNG_S + RENEW_S + LATE_S:
        due = 0
    if row is None or not row["cost_nanos"]:
        if due:
            verdict.wrong.append(f"{due} tokens are free: {describe(sight, row)}")
        else:
            verdict.outcomes["cut, young and free"] += 1
        return
    if row["cost_nanos"] != row["input_tokens"] * INPUT_NANOS + row["output_tokens"] * OUTPUT_NANOS:
        verdict.wrong.append(f"not the price of what it says: {describe(sight, row)}")
    # An estimate leaves one event out: the one that only names the role.
    if row["cost_nanos"] < sight.part_nanos(due - 1):
        verdict.wrong.append(f"cut, {due} tokens due: {describe(sight, row)}")
    if row["cost_nanos"] > max(sight.price_nanos, sight.part_nanos(sight.tokens)):
        verdict.wrong.append(f"dearer than the whole: {describe(sight, row)}")
    charged = min(row["output_tokens"], len(sight.token_s) - 1)
    verdict.missing_s.append(sight.ended_s - sight.token_s[charged])


def describe(sight: Sight, row) -> str:
    kind = "stream" if sight.stream else "plain"
    lived_s = sight.ended_s - sight.asked_s
    return (
        f"{kind} {sight.request_id}, {len(sight.token_s)} of {sight.tokens} tokens seen in {lived_s:.1f} s: "
        f"{None if row is None else dict(row)}"
    )


def table(sights: list[Sight], rows, killed: Counter[str], verdict: Verdict) -> str:
    late = sorted(verdict.missing_s)
    lines = {
        "killed": ", ".join(f"{count} {kind}" for kind, count in killed.items()),
        "asked": len(sights),
        **verdict.outcomes,
        "records in the books": len(rows),
        "of them orphaned": sum(row["outcome"] == "orphaned" for row in rows),
        "charged, USD": f"{sum(row['cost_nanos'] for row in rows) / 1e9:.6f}",
        "cut, seconds not charged": f"{late[len(late) // 2]:.2f} median, {late[-1]:.2f} most" if late else "none",
        "wrong": len(verdict.wrong),
    }
    return "\n".join(f"  {name:<26} {value}" for name, value in lines.items())
