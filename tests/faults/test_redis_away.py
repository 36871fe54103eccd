"""Redis is killed, paused, emptied and lost under traffic through the real `gateway serve`; then the books are read.

What must hold, whatever happened to it:
- Nobody waits for it longer than the timeout says; who is refused is told when to come back.
- It comes back into use by itself.
- Every answer that a caller saw whole is charged once, at its price; the books add up, and Redis agrees with them.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.holds import RENEW_S, YOUNG_S
from gateway.kernel.ledger import Ledger
from gateway.kernel.loader import Loader
from gateway.kernel.reconciler import Reconciler, check_books
from tests.crash.crowd import CREDIT_NANOS, MODEL, Account, Crowd, Sight, open_accounts, tell
from tests.faults.servers import FragileValkey
from tests.gateways import ServedGateway
from tests.upstreams import ScriptedUpstream

pytestmark = pytest.mark.xdist_group("outages")

WORKERS: Final = 2
ACCOUNTS: Final = 6
STREAMS: Final = 16
PLAIN: Final = 8
#: What the outages last: longer than the timeout, shorter than the lease.
AWAY_S: Final = 2.0
PATIENCE_S: Final = 60.0
#: As configured, and what a busy machine may add to it.
TIMEOUT_S: Final = 0.5
BUSY_S: Final = 5.0
#: What a renewal may come late by on a machine that has other things to do.
LATE_S: Final = 2.0

CONFIG: Final = """
[providers.local]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:PROVIDER_KEY"
models = ["m"]
[money]
when_redis_is_away = "{mode}"
lease_s = {lease_s}
[log]
level = "info"
access = ""
"""


class Scene:
    """A served gateway, its provider, its accounts and their callers."""

    def __init__(self, gateway: ServedGateway, valkey: FragileValkey, database: Database, redis: Redis) -> None:
        self.gateway = gateway
        self.valkey = valkey
        self.database = database
        self._redis = redis
        self.reconciler = Reconciler(database, redis, Loader(database, Ledger(redis)))
        self.accounts: list[Account] = []
        self.crowd: Crowd

    async def ask(self, *, stream: bool = False) -> Sight:
        """One request beside those of the crowd."""
        return await self.crowd.ask_once(self.accounts[0], tokens=3, stream=stream, pace_ms=1)

    async def served(self) -> None:
        """Until a request succeeds again."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.ask()).status != 200:  # noqa: ASYNC110  it is asked, not told
                await asyncio.sleep(0.1)

    async def connected(self) -> None:
        """Until this test's own connection is back."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._redis.connected:  # noqa: ASYNC110  as above
                await asyncio.sleep(0.05)

    async def settled(self) -> None:
        """Until every answer that was seen whole is in the books, and nothing is on its way to them."""
        wanted = {sight.request_id for sight in self.crowd.sights if sight.whole and sight.status == 200}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                rows = await self.database.fetch("select request_id::text as id from usage_records")
                report = await self.reconciler.reconcile()
                if wanted <= {row["id"] for row in rows} and not report.unsettled_nanos and not report.unread:
                    return
                await asyncio.sleep(0.25)

    async def agreed(self) -> None:
        """Until Redis agrees with the books."""
        async with asyncio.timeout(PATIENCE_S):
            while (report := await self.reconciler.reconcile()).drifts or report.unread:  # noqa: ASYNC110  as above
                await asyncio.sleep(0.25)

    async def judge(self) -> None:
        """Read the books."""
        await self.connected()
        await self.settled()
        await self.agreed()
        rows = await self.database.fetch(
            "select request_id::text as id, account_id, cost_nanos, outcome from usage_records"
        )
        entries = await self.database.fetch(
            "select request_id::text as id, count(*) as count from entries where type = 'api_usage' group by 1"
        )
        costs = {row["id"]: row["cost_nanos"] for row in rows}
        wrong = [
            (sight.request_id, sight.price_nanos, costs.get(sight.request_id))
            for sight in self.crowd.sights
            if sight.status == 200 and sight.whole and costs.get(sight.request_id) != sight.price_nanos
        ]
        assert wrong == []
        assert [entry["id"] for entry in entries if entry["count"] != 1] == []
        assert {entry["id"] for entry in entries} == {row["id"] for row in rows if row["cost_nanos"]}
        # Nobody pays for what was refused.
        refused = {sight.request_id for sight in self.crowd.sights if sight.status not in {0, 200}}
        assert [key for key in refused if costs.get(key)] == []
        assert await check_books(self.database) == []
        spent = {account.id: 0 for account in self.accounts}
        for row in rows:
            spent[row["account_id"]] += row["cost_nanos"]
        for account in self.accounts:
            balance = await self.database.fetch_value(
                "select balance_nanos from balances where account_id = $1", account.id
            )
            assert balance == CREDIT_NANOS - spent[account.id]
        assert b"Traceback" not in self.gateway.log, self.gateway.log.decode()

    async def costs(self) -> dict[str, int]:
        rows = await self.database.fetch("select request_id::text as id, cost_nanos from usage_records")
        return {row["id"]: row["cost_nanos"] for row in rows}

    async def metric(self, name: str) -> float:
        """A value of `/metrics` that has no labels, of all workers together."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n")
        text = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
        values = [line.split()[1] for line in text.decode().splitlines() if line.startswith(f"{name} ")]
        return float(values[0])

    def workers(self) -> list[int]:
        """The processes that serve."""
        parent = self.gateway._process.pid
        pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text().startswith("gw-worker")]

    def journals(self) -> list[Path]:
        """Files that still wait to be told."""
        return [path for path in (self.gateway._dir / "data" / "journal").glob("usage-*") if path.stat().st_size]

    def count(self) -> dict[int, int]:
        """Answers seen, by status; 0 is a connection that broke."""
        seen: dict[int, int] = {}
        for sight in self.crowd.sights:
            seen[sight.status] = seen.get(sight.status, 0) + 1
        return seen


@pytest.fixture
async def play(database, valkey):
    """Puts a scene up for a mode, with the crowd already asking."""
    async with contextlib.AsyncExitStack() as stack:

        async def play(mode: str, *, lease_s: float = 60.0) -> Scene:
            opened = await stack.enter_async_context(Database(database, pool_size=4, timeout_s=PATIENCE_S))
            upstream = await stack.enter_async_context(ScriptedUpstream(tell))
            stores = Stores(database, valkey.url)
            config = CONFIG.format(url=upstream.url, mode=mode, lease_s=lease_s) + MODEL
            gateway = await stack.enter_async_context(ServedGateway(stores, config, workers=WORKERS))
            redis = Redis(valkey.url, timeout_s=10)
            await redis.connect()
            stack.push_async_callback(redis.close)
            scene = Scene(gateway, valkey, opened, redis)
            scene.accounts = await open_accounts(opened, ACCOUNTS)
            scene.crowd = Crowd(gateway.port, scene.accounts, seed=1)
            scene.crowd.start(streams=STREAMS, plain=PLAIN)
            await scene.served()
            await asyncio.sleep(2)
            return scene

        yield play


async def kill(scene: Scene) -> None:
    scene.valkey.kill()
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(scene.valkey.start)


async def pause(scene: Scene) -> None:
    scene.valkey.pause()
    await asyncio.sleep(AWAY_S)
    scene.valkey.resume()


async def empty(scene: Scene) -> None:
    scene.valkey.empty()


Fault = Callable[[Scene], Awaitable[None]]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["refuse", "limit_locally"])
@pytest.mark.parametrize(
    ("valkey", "fault"),
    [("", kill), ("forgetful", kill), ("", pause), ("", empty)],
    ids=["killed", "killed and emptied", "paused", "emptied"],
    indirect=["valkey"],
)
async def test_every_token_is_charged_once_whatever_happens_to_redis(play, valkey, fault: Fault, mode):
    scene = await play(mode)

    for _ in range(2):
        await fault(scene)
        await scene.served()
        await asyncio.sleep(1)
    await scene.crowd.finish()

    print(f"\n{scene.count()}")
    await scene.judge()
    assert scene.count()[200] > 50
    # A caller may meet a store that is away, or an account that is being loaded, and nothing else.
    assert set(scene.count()) <= {200, 503}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_an_outage_longer_than_the_leases_costs_nobody_a_token(play, valkey, how):
    """The leases of all that is under way have run out when Redis is back; it must hear of them before it is swept."""
    scene = await play("refuse", lease_s=5.0)

    valkey.kill() if how == "killed" else valkey.pause()
    await asyncio.sleep(8)
    await asyncio.to_thread(valkey.start if how == "killed" else valkey.resume)
    await scene.served()
    await scene.crowd.finish()

    await scene.judge()
    assert b"had ended already" not in scene.gateway.log


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["refuse", "limit_locally"])
async def test_workers_that_die_while_redis_is_away_leave_what_they_knew(play, valkey, mode):
    scene = await play(mode)
    valkey.kill()
    await asyncio.sleep(3)

    for pid in scene.workers():
        os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(2)
    await asyncio.to_thread(valkey.start)
    await scene.served()
    await scene.crowd.finish()

    await scene.judge()
    cut = [sight for sight in scene.crowd.sights if sight.status == 200 and not sight.whole]
    costs = await scene.costs()
    # All but what was delivered in the last moments was written down.
    long = [sight for sight in cut if sight.ended_s - sight.asked_s > RENEW_S + YOUNG_S + LATE_S]
    assert long
    assert [sight.request_id for sight in long if not costs.get(sight.request_id)] == []
    async with asyncio.timeout(PATIENCE_S):
        while scene.journals():  # noqa: ASYNC110  other processes remove them
            await asyncio.sleep(0.25)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_who_is_refused_is_told_at_once_and_when_to_come_back(play, valkey, how):
    scene = await play("refuse")
    loop = asyncio.get_running_loop()
    valkey.kill() if how == "killed" else valkey.pause()

    began_s = loop.time()
    sight = await scene.ask()
    took_s = loop.time() - began_s
    answers = [await refusal(scene) for _ in range(3)]

    assert sight.status == 503
    assert took_s < TIMEOUT_S * 1.25 + BUSY_S
    for head, body in answers:
        assert b"HTTP/1.1 503" in head
        assert b"\r\nretry-after: 1\r\n" in head
        assert b"\r\nretry-after-ms: 1000\r\n" in head
        assert b"x-ratelimit" not in head
        assert b'"code":"store_unavailable"' in body
    valkey.start() if how == "killed" else valkey.resume()
    await scene.served()
    await scene.crowd.finish()
    await scene.judge()


@pytest.mark.timeout(120)
async def test_with_the_setting_callers_notice_nothing(play, valkey):
    scene = await play("limit_locally")
    valkey.kill()
    before = len(scene.crowd.sights)

    answers = [await scene.ask(stream=number % 2 == 0) for number in range(20)]
    await asyncio.sleep(1)

    assert [each.status for each in answers] == [200] * 20
    assert all(each.whole for each in answers)
    assert len(scene.crowd.sights) > before + 20
    await asyncio.to_thread(valkey.start)
    await scene.crowd.finish()
    await scene.judge()
    assert set(scene.count()) == {200}
    assert await scene.metric("gateway_admitted_locally_total") >= 20
    assert await scene.metric("gateway_ends_journaled_total") >= 20
    # Nothing stays behind.
    async with asyncio.timeout(PATIENCE_S):
        while await scene.metric("gateway_local_journal_bytes"):  # noqa: ASYNC110  it is asked, not told
            await asyncio.sleep(0.25)


async def refusal(scene: Scene) -> tuple[bytes, bytes]:
    """Head and body of an answer, as they came."""
    body = b'{"model":"m","messages":[],"user":"0","max_tokens":1}'
    reader, writer = await asyncio.open_connection("127.0.0.1", scene.gateway.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (scene.accounts[0].key.encode(), len(body), body)
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    rest = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return head, rest
