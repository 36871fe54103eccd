"""PostgreSQL is stopped, paused and full: who is known goes on being served, and what is used waits; never a 401."""

import asyncio
import contextlib
from typing import Final

import asyncpg
import pytest

from gateway import __version__
from gateway.errors import StoreUnavailable
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.metrics import Registry
from gateway.infra.migrate import migrate
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.bookkeeping import Bookkeeping
from gateway.kernel.journal import credit, find_account
from gateway.kernel.key_store import create_key
from gateway.kernel.ledger import Ledger
from gateway.kernel.loader import Loader
from gateway.kernel.reconciler import Reconciler, check_books
from gateway.settings import Auth, Model, Settings
from gateway.settings import Database as DatabaseSettings
from gateway.telemetry import Telemetry
from tests.acceptance.answers import ASK, CHAT
from tests.faults.servers import FragilePostgres
from tests.gateways import PEPPER, RunningGateway
from tests.upstreams import RECEIVE, REPEAT, ScriptedUpstream, answer, play

PRICES: Final = {"gpt-x": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)}
#: 9 tokens in, 2 out.
COST_NANOS: Final = 9 * 1000 + 2 * 2000
CREDIT_NANOS: Final = 10**10
TIMEOUT_S: Final = 0.5
#: Keys are asked about again all the time, so that every request is one that would like to.
CACHE_S: Final = 0.001
#: What a busy machine may add to a timeout.
BUSY_S: Final = 8.0
PATIENCE_S: Final = 60.0

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("outages")]


class Scene:
    """A gateway on a PostgreSQL that may be broken, and who keeps the books."""

    def __init__(self, gateway: RunningGateway, postgres: FragilePostgres, redis: Redis) -> None:
        self.gateway = gateway
        self.postgres = postgres
        self.redis = redis
        self.paid = 0
        #: Of an account and a key that the gateway has never seen.
        self.stranger = ""

    async def ask(self, key: str | None = None):
        """One request, and how long it took."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        answered = await self.gateway.ask(ASK, key=key)
        assert loop.time() - began_s < TIMEOUT_S * 4 + BUSY_S
        self.paid += answered.status == 200
        return answered

    async def ask_many(self, count: int, key: str | None = None) -> list[int]:
        return [each.status for each in await asyncio.gather(*(self.ask(key) for _ in range(count)))]

    async def waiting(self) -> int:
        """Records in the streams."""
        lengths = await asyncio.gather(*(self.redis.execute("XLEN", f"{{p{number}}}:usage") for number in range(64)))
        return sum(int(str(length)) for length in lengths)

    async def served(self, key: str) -> None:
        """Until a request with that key succeeds."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.ask(key)).status != 200:  # noqa: ASYNC110  it is asked, not told
                await asyncio.sleep(0.1)

    async def judge(self) -> None:
        """Every request that was answered is in the books, once, and Redis agrees with them."""
        async with Database(self.postgres.dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
            reconciler = Reconciler(database, self.redis, Loader(database, Ledger(self.redis)))
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    count = await database.fetch_value("select count(*) from usage_records")
                    report = await reconciler.reconcile()
                    if count >= self.paid and not report.unsettled_nanos and not report.unread:
                        break
                    await asyncio.sleep(0.1)
            assert count == self.paid
            assert report.drifts == []
            assert await check_books(database) == []
            spent = await database.fetch_value("select sum(-amount_nanos) from entries where type = 'api_usage'")
            assert spent == self.paid * COST_NANOS


@pytest.fixture
async def scene(postgres, redis_url):
    await migrate(postgres.dsn)
    stores = Stores(postgres.dsn, redis_url)
    settings = Settings(auth=Auth(cache_s=CACHE_S), database=DatabaseSettings(pool_size=2, timeout_s=TIMEOUT_S))
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream(play(RECEIVE, answer(CHAT), REPEAT)))
        gateway = await stack.enter_async_context(
            RunningGateway(stores, providers={"local": upstream}, models=PRICES, settings=settings)
        )
        redis = Redis(redis_url, timeout_s=10)
        await redis.connect()
        stack.push_async_callback(redis.close)
        scene = Scene(gateway, postgres, redis)
        async with Database(postgres.dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
            account_id = await find_account(database, gateway.key_id)
            await credit(database, account_id, type="bonus", amount_nanos=CREDIT_NANOS, idempotency_key="one")
            other_id = await database.fetch_value("insert into accounts (name) values ('other') returning id")
            await credit(database, other_id, type="bonus", amount_nanos=CREDIT_NANOS, idempotency_key="two")
            key = await create_key(database, name="stranger", pepper=PEPPER.encode(), account_id=other_id)
            scene.stranger = key.text
        # As in production: a process of its own has a pool of its own.
        keeping = await stack.enter_async_context(Database(postgres.dsn, pool_size=4, timeout_s=TIMEOUT_S))
        telemetry = Telemetry(Registry(incarnation="test"), version=__version__)
        books = Bookkeeping(keeping, redis, ledger=Ledger(redis), telemetry=telemetry, clock=SystemClock())
        books.start()
        stack.push_async_callback(books.stop)
        await scene.served(gateway.key)
        yield scene


async def assert_goes_on(scene: Scene) -> None:
    """What holds while PostgreSQL is away, however it is."""
    before = await scene.waiting()
    known = await scene.ask_many(20)
    stranger = await scene.ask(scene.stranger)
    nobody = await scene.ask("gw_live_" + "a" * 55)

    assert known == [200] * 20
    assert await scene.waiting() >= before + 20
    for refused in (stranger, nobody):
        assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
        assert refused.header(b"retry-after") == b"1"
    # What is known to be wrong needs no database.
    assert (await scene.ask("not a key")).status == 401
    assert (await scene.ask(scene.gateway.key[:-1] + "-")).status == 401


async def test_stopped_and_started(scene, postgres):
    await asyncio.to_thread(postgres.stop)
    await assert_goes_on(scene)

    await asyncio.to_thread(postgres.start)

    await scene.served(scene.stranger)
    await scene.judge()


async def test_paused_and_resumed(scene, postgres):
    postgres.pause()
    await assert_goes_on(scene)

    postgres.resume()

    await scene.served(scene.stranger)
    await scene.judge()


async def take_every_connection(dsn: str, stack: contextlib.AsyncExitStack) -> None:
    """Have all connections that there are: others lose theirs until none comes back before it is taken here."""
    mine: list[int] = []
    first: asyncpg.Connection | None = None
    while True:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                connection = await asyncpg.connect(dsn)
                stack.push_async_callback(connection.close)
                mine.append(connection.get_server_pid())
                first = first or connection
        assert first is not None
        others = await first.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where backend_type = 'client backend' and pid <> all($1::int[])",
            mine,
        )
        if not others:
            return


async def test_no_connection_left(scene, postgres):
    async with contextlib.AsyncExitStack() as taken:
        await take_every_connection(postgres.dsn, taken)
        with pytest.raises(StoreUnavailable, match=r"store"):
            async with Database(postgres.dsn, pool_size=1, timeout_s=TIMEOUT_S) as database:
                await database.fetch("select 1")
        await assert_goes_on(scene)

    await scene.served(scene.stranger)
    await scene.judge()


async def test_a_known_key_of_an_account_that_redis_lost_is_not_refused_for_its_key(scene, postgres):
    await asyncio.to_thread(postgres.stop)
    await scene.redis.execute("DEL", "{p1}:a:1")

    refused = await scene.ask()

    assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
    await asyncio.to_thread(postgres.start)
    await scene.served(scene.gateway.key)
    await scene.judge()
