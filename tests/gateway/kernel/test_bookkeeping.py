"""The loops together, over stores that come and go, and processes that are killed."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.errors import StoreUnavailable
from gateway.infra.embedded import EmbeddedServers
from gateway.infra.migrate import migrate
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.bookkeeping import Bookkeeping
from gateway.kernel.record import encode_record
from gateway.kernel.settler import CHANNEL
from gateway.kernel.unsettled import Unsettled, find_known
from gateway.kernel.verbs import Renewal
from tests.books import CREDIT, PARTITIONS, Books

#: Far more than anything here takes, on any machine.
PATIENCE_S = 30


async def until(fact: Callable[[], object]) -> None:
    """Wait for something that others do."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = fact()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def watching(own: EmbeddedServers):
    """What a supervisor does: start again what died."""

    async def watch() -> None:
        while True:
            own.check()
            await asyncio.sleep(0.05)

    task = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        task.cancel()


@asynccontextmanager
async def keeping(books: Books):
    work = Bookkeeping(
        books.database,
        books.redis,
        ledger=books.ledger,
        telemetry=books.telemetry,
        clock=books.clock,
        partitions=PARTITIONS,
    )
    work.start()
    try:
        yield work
    finally:
        await work.stop()


async def settled(books: Books) -> int:
    return await books.database.fetch_value("select count(*) from usage_records")


async def test_work_is_done_by_one_and_taken_over(books):
    account = await books.open_account()
    async with keeping(books) as second:
        await until(lambda: second.is_ours)
        async with keeping(books) as third:
            await books.serve(account, 10)
            await until(lambda: _equals(books, settled, 1))
            assert not third.is_ours
            await second.stop()
            await until(lambda: third.is_ours)
            await books.serve(account, 20)
            await books.give(account, 500, "k")
            await until(lambda: _equals(books, settled, 2))
            await until(lambda: _hot(books, account, CREDIT + 470))
    await books.assert_balanced()


async def test_hold_of_a_dead_worker_is_settled_at_what_it_said_last(books):
    account = await books.open_account()
    record = books.record(account, 70, outcome="orphaned")
    scopes = books.scopes(account)
    await books.loader.ensure_loaded(account)
    await books.ledger.admit(record.request_id, scopes, hold_nanos=100, tokens=7, lease_ms=1)
    renewal = Renewal(record.request_id, 70, 7, encode_record(record))
    await books.ledger.renew(account % PARTITIONS, [renewal], lease_ms=1)
    silent = books.record(account, 50)
    await books.ledger.admit(silent.request_id, scopes, hold_nanos=50, tokens=7, lease_ms=1)

    async with keeping(books):
        await until(lambda: _equals(books, settled, 1))
        await until(lambda: books.telemetry.holds_expired[0] == 2)

    assert await books.book_nanos(account) == await books.hot_nanos(account) == CREDIT - 70
    balance = await books.ledger.peek_balance(account)
    assert (balance.held_nanos, balance.in_flight) == (0, 0)
    await books.assert_balanced()


async def test_charges_that_come_again_are_mended_in_redis(books):
    account = await books.open_account()
    await books.loader.ensure_loaded(account)
    record = books.record(account, 100)
    await books.settle(record)
    await books.drain()
    # As if Redis had forgotten the request: it charges again.
    await books.redis.execute("DEL", f"{{p{account % PARTITIONS}}}:h:{record.request_id}")
    await books.settle(record)
    assert await books.hot_nanos(account) == CREDIT - 200

    async with keeping(books):
        await until(lambda: _hot(books, account, CREDIT - 100))

    await books.assert_balanced()


async def test_credit_that_redis_forgot_is_brought_again(books):
    """It comes back with a state in which the credit had not arrived; the outbox is cleared, and nothing else comes."""
    account = await books.open_account()
    await books.loader.ensure_loaded(account)
    key = f"{{p{account % PARTITIONS}}}:a:{account}"
    before = await books.redis.execute("HMGET", key, "bal", "cseq")
    async with keeping(books) as work:
        await books.give(account, 500, "k")
        await until(lambda: _hot(books, account, CREDIT + 500))
        await until(lambda: _equals(books, waiting, 0))
        await until(lambda: not work._doubted)
        await books.redis.execute("HSET", key, "bal", before[0], "cseq", before[1])
        # What a restart does to those who listen.
        await books.redis.execute("CLIENT", "KILL", "TYPE", "PUBSUB")

        await until(lambda: _hot(books, account, CREDIT + 500))

    await books.assert_balanced()


async def waiting(books: Books) -> int:
    return await books.database.fetch_value("select count(*) from credit_outbox")


async def test_redis_that_fell_back_is_mended(books):
    """A replica takes over that knows nothing of what was settled since: its balance is too high."""
    account = await books.open_account()
    await books.serve(account, 10)
    await books.drain()
    tag = f"{{p{account % PARTITIONS}}}"
    before = await books.redis.execute("HGET", f"{tag}:a:{account}", "bal")
    await books.serve(account, 20)
    await books.drain()
    await books.redis.execute("DEL", f"{tag}:usage")
    await books.redis.execute("HSET", f"{tag}:a:{account}", "bal", before)

    async with keeping(books):
        await until(lambda: _hot(books, account, CREDIT - 30))

    await books.assert_balanced()


async def _equals(books: Books, what, expected: int) -> bool:
    return await what(books) == expected


async def _caught(books: Books, what, expected: int) -> bool:
    """The same, of a store that may still be away."""
    try:
        return await what(books) == expected
    except StoreUnavailable:
        return False


async def _hot(books: Books, account: int, expected: int) -> bool:
    return await books.hot_nanos(account) == expected


# -- stores that go away -------------------------------------------------------------------------------------


def family_of(backend_pid: int) -> list[int]:
    """PostgreSQL's first process and all that it started."""
    parent = parent_of(backend_pid)
    everyone = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [parent, *(pid for pid in everyone if parent_of(pid) == parent)]


def parent_of(pid: int) -> int:
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2].split()[1])
    except FileNotFoundError:
        return 0


@pytest.fixture
def servers(tmp_path_factory):
    own = EmbeddedServers(tmp_path_factory.mktemp("s"), postgres=True, valkey=True)
    own_stores = own.start()
    try:
        yield own, own_stores
    finally:
        own.stop()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes through /proc")
async def test_postgres_that_hangs_holds_nothing_up_and_everything_is_settled_after(servers):
    _, stores = servers
    await migrate(stores.database_dsn)
    redis = Redis(stores.redis_url, timeout_s=10.0)
    await redis.connect()
    async with Database(stores.database_dsn, pool_size=8, timeout_s=1.0) as database:
        books = Books(database, redis)
        account = await books.open_account()
        await books.serve(account, 1)
        family = family_of(await database.fetch_value("select pg_backend_pid()"))
        async with keeping(books):
            await until(lambda: _equals(books, settled, 1))
            for pid in family:
                os.kill(pid, signal.SIGSTOP)
            try:
                for cost in range(2, 50):
                    await books.serve(account, cost)
                assert await books.hot_nanos(account) == CREDIT - sum(range(1, 50))
            finally:
                for pid in family:
                    os.kill(pid, signal.SIGCONT)
            await until(lambda: _caught(books, settled, 49))
        await books.assert_balanced()
        await books.loader.close()
    await redis.close()


@pytest.mark.parametrize("keeps_its_file", [True, False])
async def test_redis_that_is_killed_loses_nothing_that_a_worker_still_has(servers, keeps_its_file):
    own, stores = servers
    await migrate(stores.database_dsn)
    redis = Redis(stores.redis_url, timeout_s=10.0)
    await redis.connect()
    async with Database(stores.database_dsn, pool_size=8, timeout_s=20.0) as database:
        books = Books(database, redis)
        account = await books.open_account(credit_nanos=CREDIT)
        await books.loader.ensure_loaded(account)
        unsettled = Unsettled(books.ledger, find_known(database), clock=books.clock)
        unsettled.start(redis.subscribe(CHANNEL))
        if not keeps_its_file:
            await redis.execute("CONFIG", "SET", "appendonly", "no")

        async def settle(cost: int) -> None:
            """As a worker does: kept when it is sent, and sent until it is answered."""
            record = books.record(account, cost)
            unsettled.keep(
                record.request_id, books.scopes(account), cost_nanos=cost, tokens=7, record=encode_record(record)
            )
            while True:
                try:
                    await books.settle(record)
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    return

        async with keeping(books), watching(own):
            for round_ in range(3):
                await asyncio.gather(*(settle(cost) for cost in range(1, 101)))
                if round_ == 1:
                    info = await redis.execute("INFO", "server")
                    pid = next(line for line in info.decode().splitlines() if line.startswith("process_id:"))
                    if not keeps_its_file:
                        folder = (await redis.execute("CONFIG", "GET", "dir"))[1].decode()
                        shutil.rmtree(Path(folder) / "appendonlydir")
                    os.kill(int(pid.partition(":")[2]), signal.SIGKILL)
            await until(lambda: _caught(books, settled, 300))
            await until(lambda: len(unsettled) == 0)
            await books.loader.ensure_loaded(account)
            await until(lambda: _hot(books, account, CREDIT - 3 * sum(range(1, 101))))
        await unsettled.stop()
        await books.assert_balanced()
        await books.loader.close()
    await redis.close()


SETTLER = """
import asyncio, sys
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from tests.books import Books

async def main(dsn, url):
    redis = Redis(url, timeout_s=10.0)
    await redis.connect()
    async with Database(dsn, pool_size=2, timeout_s=20.0) as database:
        books = Books(database, redis)
        print("ready", flush=True)
        while True:
            done = await books.settler.settle_once()
            if done.settled:
                print(done.settled, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_killed_settlers_lose_and_double_nothing(books, database, redis_url):
    accounts = [await books.open_account(name=f"account {number}") for number in range(8)]
    for account in accounts:
        await books.loader.ensure_loaded(account)
    total, kills, served = 6000, 8, 0
    root = Path(__file__).parents[3]

    async def serve(count: int) -> None:
        nonlocal served
        for _ in range(count // 100):
            records = [books.record(accounts[(served + n) % 8], 1 + n % 9) for n in range(100)]
            await asyncio.gather(*(books.settle(record) for record in records))
            served += 100

    for _ in range(kills):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SETTLER, database, redis_url, cwd=root, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        serving = asyncio.ensure_future(serve(total // kills // 100 * 100))
        # Somewhere in the middle of whatever comes after its first batch.
        await process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await serving

    repeated = await books.drain()

    assert repeated == set()
    assert await settled(books) == served
    await books.assert_balanced()
