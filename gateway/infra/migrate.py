"""Brings the database to the shape this code knows: numbered SQL files, forward only, each applied once.

Rules:
- A file is `NNNN_<module>_<pre|post>_<what>.sql`: `pre` ones must suit the release that is still running, `post` ones
  may assume that it is gone. They run in order of their number, each in a transaction with the note that it ran.
- A file whose first line is `-- no-transaction` holds one statement that PostgreSQL refuses in a transaction (an
  index made concurrently) and must be repeatable (`if not exists`): it may have run when its note was not written.
- What was applied is never edited: another checksum is refused, and so is a database that is ahead of the code.
- One runner at a time. The lock is polled: a session that waits in `pg_advisory_lock` holds a snapshot, for which
  `create index concurrently` waits in turn, and both wait for ever. It is a lock of the session, so a pooler in
  transaction mode must not stand between.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from gateway.errors import GatewayError, StoreUnavailable
from gateway.infra.clock import Clock, SystemClock

DIRECTORY = Path(__file__).parent.parent / "migrations"
LOCK_WAIT_S = 120.0
CONNECT_TIMEOUT_S = 10.0
#: How long a statement may wait behind running transactions before it gives up rather than hold up those after it.
STATEMENT_LOCK_TIMEOUT = "10s"
_LOCK_POLL_S = 0.05
#: "gateway" in bytes, as a number: the key must only differ from those of other programs in the same database.
_LOCK_KEY = int.from_bytes(b"gateway", "big")
_FILE_NAME = re.compile(r"(\d{4})_[a-z]+_(?:pre|post)_[a-z0-9_]+\.sql")
_NO_TRANSACTION = "-- no-transaction"
_TABLE = """
create table if not exists schema_migrations (
    version integer primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default now()
)
"""


class MigrationRefused(GatewayError):
    """The database can't be migrated."""

    error_type = "gateway_config"


class Migration(NamedTuple):
    """One file."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def transactional(self) -> bool:
        return not self.text.startswith(_NO_TRANSACTION)


def read_migrations(directory: Path = DIRECTORY) -> list[Migration]:
    """The files of `directory`, in order.

    Raises: MigrationRefused for a name that says nothing, or a number given twice.
    """
    found: dict[int, Migration] = {}
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationRefused(f"{path.name} is not named NNNN_<module>_<pre|post>_<what>.sql")
        version = int(match[1])
        if version in found:
            raise MigrationRefused(f"{path.name} and {found[version].name} have the same number")
        found[version] = Migration(version, path.name, path.read_text("utf-8"))
    return list(found.values())


async def migrate(
    dsn: str, *, directory: Path = DIRECTORY, wait_s: float = LOCK_WAIT_S, clock: Clock | None = None
) -> list[str]:
    """Apply what is missing; the names of the files that were. A failed file leaves nothing behind.

    Raises: MigrationRefused, StoreUnavailable.
    """
    migrations = read_migrations(directory)
    connection = await _connect(dsn)
    try:
        await _lock(connection, wait_s, clock or SystemClock())
        await connection.execute(_TABLE)
        await connection.execute(f"set lock_timeout = '{STATEMENT_LOCK_TIMEOUT}'")
        pending = _pending(migrations, await _applied(connection))
        for migration in pending:
            await _apply(connection, migration)
        return [migration.name for migration in pending]
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError) as error:
        raise StoreUnavailable(detail=f"postgres: {error}") from error
    finally:
        await _close(connection)


async def check(dsn: str, *, directory: Path = DIRECTORY) -> list[str]:
    """The names of the files that `migrate` would apply. Changes nothing.

    Raises: MigrationRefused, StoreUnavailable.
    """
    migrations = read_migrations(directory)
    connection = await _connect(dsn)
    try:
        known = await connection.fetchval("select to_regclass('schema_migrations') is not null")
        applied = await _applied(connection) if known else []
        return [migration.name for migration in _pending(migrations, applied)]
    finally:
        await _close(connection)


class _Applied(NamedTuple):
    version: int
    name: str
    checksum: str


def _pending(migrations: Sequence[Migration], applied: Sequence[_Applied]) -> list[Migration]:
    """What is left to do.

    Raises: MigrationRefused when what was done is not what the files say.
    """
    known = {migration.version: migration for migration in migrations}
    for done in applied:
        migration = known.get(done.version)
        if migration is None:
            newest = max(known, default=0)
            raise MigrationRefused(
                f"the database has migration {done.name}, which this release (up to {newest:04}) does not know: "
                "it was migrated by a newer release; run that one, or restore a backup"
            )
        if migration.checksum != done.checksum:
            raise MigrationRefused(
                f"{migration.name} was changed after it was applied; put its change into a new file"
            )
    versions = {done.version for done in applied}
    return [migration for migration in migrations if migration.version not in versions]


async def _connect(dsn: str) -> Any:  # asyncpg has no types
    try:
        return await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, server_settings={"application_name": "migrate"})
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # InterfaceError: the URL says something that asyncpg does not understand.
        raise StoreUnavailable(detail=f"postgres: {type(error).__name__}: {error}") from error


async def _lock(connection: Any, wait_s: float, clock: Clock) -> None:
    deadline = clock.monotonic() + wait_s
    while not await connection.fetchval("select pg_try_advisory_lock($1)", _LOCK_KEY):
        if clock.monotonic() >= deadline:
            raise MigrationRefused(f"another migration has been running for more than {wait_s:g} s")
        await asyncio.sleep(_LOCK_POLL_S)


async def _applied(connection: Any) -> list[_Applied]:
    rows = await connection.fetch("select version, name, checksum from schema_migrations order by version")
    return [_Applied(*row) for row in rows]


async def _apply(connection: Any, migration: Migration) -> None:
    note = "insert into schema_migrations (version, name, checksum) values ($1, $2, $3)"
    values = (migration.version, migration.name, migration.checksum)
    try:
        if migration.transactional:
            async with connection.transaction():
                await connection.execute(migration.text)
                await connection.execute(note, *values)
        else:
            await connection.execute(migration.text)
            await connection.execute(note, *values)
    except (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError):
        raise
    except asyncpg.PostgresError as error:
        raise MigrationRefused(f"{migration.name} failed: {error} (SQLSTATE {error.sqlstate})") from error


async def _close(connection: Any) -> None:
    try:
        await connection.close(timeout=CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        connection.terminate()
