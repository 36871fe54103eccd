import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from gateway.errors import InsufficientCredit, StoreUnavailable
from gateway.infra.children import FileLock
from gateway.infra.embedded import EmbeddedServers
from gateway.infra.postgres import Database, load_queries
from tests.stores import TestStores


@pytest_asyncio.fixture
async def db(empty_database: str) -> AsyncIterator[Database]:
    async with Database(empty_database, pool_size=2, timeout_s=30.0) as pool:
        await pool.execute("create table notes (id int generated always as identity, name text check (name <> ''))")
        yield pool


async def test_making_a_pool_connects_to_nothing(tmp_path: Path) -> None:
    db = Database(f"postgresql://postgres@/none?host={tmp_path}", pool_size=2, timeout_s=1.0)

    assert (db.size, db.idle) == (0, 0)
    await db.close()


async def test_values_rows_and_counts(db: Database) -> None:
    assert await db.execute("insert into notes (name) values ('one'), ('two')") == 2
    assert await db.fetch_value("select count(*) from notes") == 2
    row = await db.fetch_row("select name from notes where name = $1", "two")
    assert row is not None
    assert row["name"] == "two"
    assert await db.fetch_row("select 1 where false") is None
    assert [row["name"] for row in await db.fetch("select name from notes order by id")] == ["one", "two"]
    assert await db.execute("create table t (id int)") == 0
    assert await db.fetch_value("show timezone") == "UTC"


async def test_those_who_wait_for_a_connection_are_counted(db: Database) -> None:
    async with db.session(), db.session():
        third = asyncio.ensure_future(db.fetch_value("select 3"))
        # One turn to ask for it.
        await asyncio.sleep(0)
        assert (db.size, db.idle, db.waiting) == (2, 0, 1)

    assert await third == 3
    assert (db.size, db.idle, db.waiting) == (2, 2, 0)


async def test_transaction_commits_or_leaves_nothing(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute_many("insert into notes (name) values ($1)", [("one",), ("two",)])

    async def refuse() -> None:
        async with db.transaction() as tx:
            await tx.execute("delete from notes")
            raise InsufficientCredit

    with pytest.raises(InsufficientCredit):
        await refuse()

    assert await db.fetch_value("select count(*) from notes") == 2
    # The refusal had nothing to do with the connection, which is used again.
    assert (db.size, db.idle) == (1, 1)


async def test_errors_of_a_statement_are_the_callers(db: Database) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await db.execute("insert into notes (name) values ('')")
    with pytest.raises(asyncpg.UndefinedTableError):
        await db.fetch("select * from nothing")
    with pytest.raises(asyncpg.InterfaceError):
        await db.fetch_value("select $1::int")

    assert await db.fetch_value("select 1") == 1


async def test_database_that_is_not_there_is_unavailable(stores: TestStores, tmp_path: Path) -> None:
    for dsn in (f"postgresql://postgres@/gateway?host={tmp_path}", stores.dsn("nothing")):
        async with Database(dsn, pool_size=1, timeout_s=1.0) as db:
            with pytest.raises(StoreUnavailable) as caught:
                await db.fetch_value("select 1")
            assert str(tmp_path) not in caught.value.message


async def test_busy_pool_is_unavailable_after_its_timeout(database: str) -> None:
    async with Database(database, pool_size=1, timeout_s=0.2) as db:
        async with db.session():
            with pytest.raises(StoreUnavailable):
                await db.fetch_value("select 1")
        assert await db.fetch_value("select 1") == 1


async def test_slow_statement_is_cut_and_its_connection_thrown_away(database: str) -> None:
    async with Database(database, pool_size=1, timeout_s=0.2) as db:
        with pytest.raises(StoreUnavailable):
            await db.fetch_value("select pg_sleep(60)")

        assert db.size == 0
        assert await db.fetch_value("select 1") == 1


async def test_terminated_connection_is_replaced(db: Database) -> None:
    with pytest.raises(StoreUnavailable):
        await db.fetch_value("select pg_terminate_backend(pg_backend_pid())")

    assert await db.fetch_value("select 1") == 1


async def test_cancelled_caller_leaves_a_pool_that_works(db: Database) -> None:
    for count in range(5):
        # Each by a name of its own: what was cancelled before may still be going on, or be over.
        query = f"select pg_sleep(60) as sleep_{count}"
        task = asyncio.ensure_future(db.fetch_value(query))
        async with asyncio.timeout(30):
            while not await db.fetch_value(
                "select count(*) from pg_stat_activity where query = $1 and state = 'active'", query
            ):
                pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert await db.fetch_value("select 1") == 1


async def test_read_only_server_is_unavailable(db: Database) -> None:
    async with db.session() as session:
        await session.execute("set default_transaction_read_only = on")
        with pytest.raises(StoreUnavailable):
            await session.execute("insert into notes (name) values ('one')")


async def test_paused_server_hangs_nobody(tmp_path: Path) -> None:
    servers = EmbeddedServers(tmp_path, postgres=True, valkey=False)
    with servers as stores:
        db = Database(stores.database_dsn, pool_size=2, timeout_s=0.3)
        async with db.session() as held:
            pids = [await held.fetch_value("select pg_backend_pid()")]
            async with db.session() as other:
                pids.append(await other.fetch_value("select pg_backend_pid()"))
            pids.append(FileLock(tmp_path / "postgres.lock").holder())
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                async with asyncio.timeout(30):
                    # A pooled connection, one more, a new one after those were thrown away, and one in use.
                    for _ in range(3):
                        with pytest.raises(StoreUnavailable):
                            await db.fetch_value("select 1")
                    with pytest.raises(StoreUnavailable):
                        await held.execute("select 1")
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
        assert await db.fetch_value("select 1") == 1
        await db.close()


def write(path: Path, text: str) -> Path:
    file = path / "queries.sql"
    file.write_text(text)
    return file


def test_queries_have_names(tmp_path: Path) -> None:
    queries = load_queries(
        write(
            tmp_path,
            "-- Statements about keys.\n\n-- by_id: the gate looks a key up\nselect 1\n-- Why: not a new statement\n"
            "from keys;\n\n-- all_of: lists\nselect\n  2;\n",
        )
    )

    assert list(queries) == ["by_id", "all_of"]
    assert queries["by_id"] == "select 1\n-- Why: not a new statement\nfrom keys"
    assert queries["all_of"] == "select\n  2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("select 1;\n", "a statement without"),
        ("-- a: x\nselect 1;\n-- a: y\nselect 2;\n", "a is there twice"),
        ("-- a: x\n-- b: y\nselect 2;\n", "a has no statement"),
    ],
)
def test_file_that_is_not_a_list_of_queries_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_queries(write(tmp_path, text))
