"""A store stops answering under a running gateway, and comes back."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from gateway.infra.embedded import EmbeddedServers, Stores
from gateway.infra.migrate import migrate
from gateway.infra.postgres import Database
from gateway.settings import Auth, Money, Server, Settings
from gateway.settings import Database as DatabaseSettings
from tests.acceptance.answers import ASK, ASK_STREAM, CHAT, chat_stream, delta, sse, stream_head
from tests.gateways import PATIENCE_S, Answer, RunningGateway, ServedGateway, connect
from tests.places import fast_place
from tests.upstreams import RECEIVE, REPEAT, ScriptedUpstream, Until, answer, chunk, play


class FrozenStores:
    """Servers of this module's own, whose processes can be stopped."""

    def __init__(self, stores: Stores, directory: Path) -> None:
        self.stores = stores
        self._directory = directory

    def postgres_pids(self) -> list[int]:
        """The server, then the processes of its connections."""
        [file] = self._directory.rglob("postmaster.pid")
        parent = int(file.read_text().split()[0])
        return [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]

    def valkey_pids(self) -> list[int]:
        client = redis.Redis(unix_socket_path=self.stores.redis_url.removeprefix("unix://"))
        try:
            return [client.info("server")["process_id"]]
        finally:
            client.close()


@contextlib.contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """They neither answer nor close their connections."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def fragile() -> Iterator[FrozenStores]:
    directory = Path(tempfile.mkdtemp(prefix="gw-fragile-", dir=fast_place()))
    servers = EmbeddedServers(directory, postgres=True, valkey=True)
    with warnings.catch_warnings():
        # Later Pythons warn of a fork beside threads, which are the test runner's; our child only executes.
        warnings.simplefilter("ignore", DeprecationWarning)
        stores = servers.start()
    try:
        asyncio.run(migrate(stores.database_dsn))
        yield FrozenStores(stores, directory)
    finally:
        servers.stop()
        shutil.rmtree(directory)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(play(RECEIVE, answer(CHAT), REPEAT)) as upstream:
        yield upstream


SETTINGS = Settings(auth=Auth(cache_s=0.05), database=DatabaseSettings(timeout_s=0.3))


async def test_without_the_database_known_keys_go_on(fragile, upstream):
    """And a key that nobody has met yet is a 503: whether it is good can't be told."""
    async with (
        RunningGateway(fragile.stores, providers={"local": upstream}, settings=SETTINGS) as gateway,
        Database(fragile.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database,
    ):
        stranger = (await gateway.make_key(database)).text
        assert (await gateway.ask(ASK)).status == 200

        with frozen(fragile.postgres_pids()):
            await asyncio.sleep(0.1)
            known = [await gateway.ask(ASK) for _ in range(3)]
            unknown = await gateway.ask(ASK, key=stranger)
            nonsense = await gateway.ask(ASK, key="nonsense")

        assert [answered.status for answered in known] == [200, 200, 200]
        assert unknown.status == 503
        assert unknown.error["code"] == "store_unavailable"
        assert nonsense.status == 401
        async with asyncio.timeout(PATIENCE_S):
            while (answered := await gateway.ask(ASK, key=stranger)).status != 200:
                assert answered.status == 503
                await asyncio.sleep(0.1)


async def test_without_redis_requests_are_refused_until_it_is_back(fragile, upstream):
    """The default: nothing is served that can't be accounted for, and it says when to come back."""
    async with RunningGateway(fragile.stores, providers={"local": upstream}) as gateway:
        assert (await gateway.ask(ASK)).status == 200

        with frozen(fragile.valkey_pids()):
            refused = await gateway.ask(ASK)
            again = await gateway.ask(ASK)
            listed = await gateway.ask(method=b"GET", path=b"/v1/models")

        assert [refused.status, again.status] == [503, 503]
        assert refused.error["code"] == "store_unavailable"
        assert listed.status == 200
        async with asyncio.timeout(PATIENCE_S):
            while (await gateway.ask(ASK)).status != 200:  # noqa: ASYNC110  it says when by serving
                await asyncio.sleep(0.1)
    assert len(upstream.requests) == 2


async def test_without_redis_requests_may_be_served_by_setting(fragile, upstream):
    """Limits are counted by the worker, and nothing that was served is forgotten."""
    settings = Settings(money=Money(when_redis_is_away="limit_locally"))
    async with RunningGateway(fragile.stores, providers={"local": upstream}, settings=settings) as gateway:
        assert (await gateway.ask(ASK)).status == 200

        with frozen(fragile.valkey_pids()):
            away = [(await gateway.ask(ASK)).status for _ in range(3)]

        assert away == [200, 200, 200]
        assert (await gateway.ask(ASK)).status == 200
    assert len(upstream.requests) == 5


@pytest.mark.parametrize("plane", ["all", "data"])
async def test_health_stays_well_and_readiness_names_what_is_away(fragile, upstream, plane):
    """All gateways share the stores: a balancer that went by them would take out every one."""
    async with RunningGateway(
        fragile.stores, providers={"local": upstream}, settings=Settings(server=Server(plane=plane))
    ) as gateway:
        for find_pids, missing in ((fragile.valkey_pids, b"redis"), (fragile.postgres_pids, b"postgresql")):
            await until_ready_says(gateway, b"")
            with frozen(find_pids()):
                ready = await until_ready_says(gateway, missing)
                health = await gateway.ask(method=b"GET", path=b"/health", key="")
            assert (ready.status, health.status) == (503, 200)
        await until_ready_says(gateway, b"")


async def until_ready_says(gateway: RunningGateway, missing: bytes) -> Answer:
    """What was found is remembered for a moment, and a store needs one to come back."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            ready = await gateway.ask(method=b"GET", path=b"/health/ready", key="")
            if missing in ready.body and (ready.status == 503) == bool(missing):
                return ready
            await asyncio.sleep(0.05)


async def test_a_stream_under_way_does_not_notice(fragile):
    """Neither store is asked for anything while bytes are relayed."""
    more = asyncio.Event()
    rest = sse(*chat_stream("two", usage=False))
    script = play(RECEIVE, stream_head(), chunk(sse(delta("One "))), Until(more), chunk(rest), b"0\r\n\r\n")
    async with (
        ScriptedUpstream(script) as upstream,
        RunningGateway(fragile.stores, providers={"local": upstream}) as gateway,
    ):
        connection = await gateway.connect()
        await connection.send(gateway.request(ASK_STREAM))
        await connection.receive_head()
        seen = b""
        with frozen([*fragile.postgres_pids(), *fragile.valkey_pids()]):
            async for piece in connection.pieces():
                seen += piece
                more.set()
                if seen.endswith(rest):
                    break

        assert seen == sse(delta("One ")) + rest


CONFIG = """
[providers.local]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:PROVIDER_KEY"
[models."*"]
free = true
"""


async def ask(gateway: ServedGateway, *, key: str) -> tuple[int, int]:
    """The status of one request on a connection of its own, and when it was asked, in the loop's milliseconds."""
    connection = await connect(gateway.port)
    asked_ms = int(asyncio.get_running_loop().time() * 1000)
    await connection.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (key.encode(), len(ASK), ASK)
    )
    answered = await connection.receive()
    connection.abort()
    return answered.status, asked_ms


async def test_a_revoked_key_is_refused_everywhere_within_a_second(both_stores, upstream):
    """By every worker of a running gateway, each of which has it in memory."""
    async with ServedGateway(both_stores, CONFIG.format(url=upstream.url), workers=2) as gateway:
        # New connections are spread over the workers: after so many, both have met the key.
        assert {(await ask(gateway, key=gateway.key))[0] for _ in range(24)} == {200}

        await gateway.command("keys", "revoke", gateway.key_id)
        revoked_ms = int(asyncio.get_running_loop().time() * 1000)
        results = []
        while not results or results[-1][1] < revoked_ms + 1500:
            results.append(await ask(gateway, key=gateway.key))

    late = [status for status, asked_ms in results if asked_ms > revoked_ms + 1000]
    assert late
    assert set(late) == {401}
