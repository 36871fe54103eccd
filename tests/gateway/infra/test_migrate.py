import asyncio
from pathlib import Path

import asyncpg
import pytest

from gateway.errors import StoreUnavailable
from gateway.infra import migrate as migrations
from gateway.infra.migrate import MigrationRefused, check, migrate, read_migrations


def script(directory: Path, name: str, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)


async def tables(dsn: str) -> set[str]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
        return {row["tablename"] for row in rows}
    finally:
        await connection.close()


async def test_our_migrations_apply_once(empty_database: str) -> None:
    names = [migration.name for migration in read_migrations()]

    assert await check(empty_database) == names
    assert await migrate(empty_database) == names
    assert await migrate(empty_database) == []
    assert await check(empty_database) == []
    assert {"accounts", "keys"} <= await tables(empty_database)


async def test_check_changes_nothing(empty_database: str) -> None:
    await check(empty_database)

    assert await tables(empty_database) == set()


async def test_of_four_runners_one_applies(empty_database: str, tmp_path: Path) -> None:
    script(tmp_path, "0001_kernel_pre_a.sql", "create table a (id int); select pg_sleep(0.2);")
    script(tmp_path, "0002_kernel_pre_b.sql", "create table b (id int)")

    applied = await asyncio.gather(*(migrate(empty_database, directory=tmp_path) for _ in range(4)))

    assert sorted(len(each) for each in applied) == [0, 0, 0, 2]


async def test_index_is_made_concurrently_beside_waiting_runners(empty_database: str, tmp_path: Path) -> None:
    script(tmp_path, "0001_kernel_pre_a.sql", "create table a (id int)")
    index = "-- no-transaction\ncreate index concurrently if not exists a_id on a (id)"
    script(tmp_path, "0002_kernel_pre_index.sql", index)

    async with asyncio.timeout(60):
        applied = await asyncio.gather(*(migrate(empty_database, directory=tmp_path) for _ in range(4)))

    assert sorted(len(each) for each in applied) == [0, 0, 0, 2]


async def test_file_that_fails_leaves_nothing_and_those_before_it_stay(empty_database: str, tmp_path: Path) -> None:
    script(tmp_path, "0001_kernel_pre_a.sql", "create table a (id int)")
    script(tmp_path, "0002_kernel_pre_b.sql", "create table b (id int); select 1 / 0;")

    with pytest.raises(MigrationRefused, match=r"0002_kernel_pre_b\.sql failed: division by zero"):
        await migrate(empty_database, directory=tmp_path)

    assert await tables(empty_database) == {"schema_migrations", "a"}
    assert await check(empty_database, directory=tmp_path) == ["0002_kernel_pre_b.sql"]


async def test_changed_file_is_refused(empty_database: str, tmp_path: Path) -> None:
    script(tmp_path, "0001_kernel_pre_a.sql", "create table a (id int)")
    await migrate(empty_database, directory=tmp_path)
    script(tmp_path, "0001_kernel_pre_a.sql", "create table a (id bigint)")

    for run in (migrate, check):
        with pytest.raises(MigrationRefused, match="was changed after it was applied"):
            await run(empty_database, directory=tmp_path)


async def test_database_of_a_newer_release_is_refused(empty_database: str, tmp_path: Path) -> None:
    script(tmp_path, "0001_kernel_pre_a.sql", "create table a (id int)")
    script(tmp_path, "0002_kernel_pre_b.sql", "create table b (id int)")
    await migrate(empty_database, directory=tmp_path)
    (tmp_path / "0002_kernel_pre_b.sql").unlink()

    for run in (migrate, check):
        with pytest.raises(MigrationRefused, match=r"0002_kernel_pre_b\.sql.*newer release"):
            await run(empty_database, directory=tmp_path)


@pytest.mark.parametrize(
    "name", ["1_kernel_pre_a.sql", "0001_kernel_a.sql", "0001_pre_a.sql", "0001_Kernel_pre_a.sql"]
)
def test_name_that_says_nothing_is_refused(tmp_path: Path, name: str) -> None:
    script(tmp_path, name, "select 1")

    with pytest.raises(MigrationRefused, match="is not named"):
        read_migrations(tmp_path)


def test_number_given_twice_is_refused(tmp_path: Path) -> None:
    script(tmp_path, "0001_kernel_pre_a.sql", "select 1")
    script(tmp_path, "0001_kernel_pre_b.sql", "select 1")

    with pytest.raises(MigrationRefused, match="the same number"):
        read_migrations(tmp_path)


async def test_runner_gives_up_waiting_for_another(empty_database: str, tmp_path: Path) -> None:
    script(tmp_path, "0001_kernel_pre_a.sql", "create table a (id int)")
    other = await asyncpg.connect(empty_database)
    await other.execute("select pg_advisory_lock($1)", migrations._LOCK_KEY)

    with pytest.raises(MigrationRefused, match="another migration"):
        await migrate(empty_database, directory=tmp_path, wait_s=0.1)

    await other.close()


async def test_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await migrate(f"postgresql://postgres@/gateway?host={tmp_path}")


async def insert_key(connection: asyncpg.Connection, key_id: str, name: str, digest: bytes = bytes(32)) -> None:
    await connection.execute(
        "insert into keys (id, account_id, name, environment, digest, last_four)"
        " select $1, min(id), $2, 'dev', $3, 'abcd' from accounts",
        key_id,
        name,
        digest,
    )


async def test_name_of_a_key_is_free_again_once_it_is_revoked(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("insert into accounts (name) values ('one')")
        await insert_key(connection, "key1", "ci")
        with pytest.raises(asyncpg.UniqueViolationError):
            await insert_key(connection, "key2", "ci")

        await connection.execute("update keys set revoked_at = now()")
        await insert_key(connection, "key2", "ci")

        with pytest.raises(asyncpg.CheckViolationError):
            await insert_key(connection, "key3", "short digest", b"x")
    finally:
        await connection.close()
