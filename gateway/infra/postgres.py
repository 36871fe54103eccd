"""PostgreSQL: a bounded pool that connects when it is first needed, and never waits longer than it was told.

Rules:
- Every failure of the store itself (away, paused, full, shutting down, refusing us) is `StoreUnavailable`, mapped
  here and nowhere else. Errors of a statement (a constraint, a type) pass through as asyncpg raised them.
- A connection on which a command timed out is thrown away, not given back: what it still has in flight is unknown.
- Statements live in `.sql` files and have names; see `load_queries`.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

import asyncpg

from gateway.errors import StoreUnavailable

T = TypeVar("T")
#: One row: by position or by column name. asyncpg has no types of its own.
Row = Mapping[str, Any]

#: By SQLSTATE class: connection (08), resources (53), operator (57), system (58), authorisation (28); a primary that
#: became a replica (25006); a database that is not there (3D000).
_UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ReadOnlySQLTransactionError,
)
#: Connections idle for longer are closed, so that a quiet worker holds none.
_IDLE_S = 300.0
#: Statements that a connection keeps prepared.
STATEMENTS_MAX = 100
_QUERY_HEADER = re.compile(r"-- ([a-z][a-z0-9_]*): \S.*")


class Session:
    """What one can do with a connection; obtained from `Database.session` or `Database.transaction`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Any) -> None:  # asyncpg's proxy has no types
        self._connection = connection

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """All rows."""
        rows: Sequence[Row] = await _mapped(self._connection.fetch(query, *args))
        return rows

    async def fetch_row(self, query: str, *args: object) -> Row | None:
        """The first row, or None."""
        row: Row | None = await _mapped(self._connection.fetchrow(query, *args))
        return row

    async def fetch_value(self, query: str, *args: object) -> Any:  # the column's type is the statement's
        """The first column of the first row, or None."""
        return await _mapped(self._connection.fetchval(query, *args))

    async def execute(self, query: str, *args: object) -> int:
        """Run it; the number of rows it touched (0 where that means nothing)."""
        status: str = await _mapped(self._connection.execute(query, *args))
        count = status.rpartition(" ")[2]
        return int(count) if count.isdecimal() else 0

    async def execute_many(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        """Run it for each of `rows`, in one batch and one transaction."""
        await _mapped(self._connection.executemany(query, rows))


class Database:
    """The pool. Making one connects to nothing; `close` it when the worker ends."""

    def __init__(
        self, dsn: str, *, pool_size: int, timeout_s: float, application: str = "gateway", prepared: bool = True
    ) -> None:
        """`prepared` keeps statements, which spares a round trip; after some calls PostgreSQL then plans them for any
        argument at all. Without, each is planned for the arguments it has: for lists with filters that may be left
        out, where the one plan for all reads everything there is.
        """
        self._dsn = dsn
        self._statements = STATEMENTS_MAX if prepared else 0
        self._pool_size = pool_size
        self._timeout_s = timeout_s
        self._application = application
        self._opening = asyncio.Lock()
        self._pool: Any = None  # asyncpg has no types
        #: How many wait for a connection.
        self.waiting = 0

    @property
    def size(self) -> int:
        """Connections that are open."""
        return 0 if self._pool is None else int(self._pool.get_size())

    @property
    def idle(self) -> int:
        """Those of them that nobody uses."""
        return 0 if self._pool is None else int(self._pool.get_idle_size())

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection for some statements, each its own transaction.

        Raises: StoreUnavailable, within about `timeout_s`.
        """
        if self._pool is None:
            await self._open()
        self.waiting += 1
        try:
            connection = await _mapped(self._pool.acquire(timeout=self._timeout_s))
        finally:
            self.waiting -= 1
        try:
            yield Session(connection)
        except BaseException as error:
            # Cancelled or timed out in the middle of a statement: asking the server to stop it could wait as well.
            if isinstance(error, StoreUnavailable) or not isinstance(error, Exception):
                # The driver may have noticed first, and taken it back.
                with contextlib.suppress(asyncpg.InterfaceError):
                    connection.terminate()
            raise
        finally:
            with contextlib.suppress(*_UNAVAILABLE, asyncpg.InterfaceError):
                await self._pool.release(connection, timeout=self._timeout_s)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """A connection in a transaction: committed at the end, rolled back by any exception.

        Raises: StoreUnavailable; when it was raised by the commit itself, whether it took effect is not known.
        """
        async with self.session() as session, _Transaction(session):
            yield session

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        async with self.session() as session:
            return await session.fetch(query, *args)

    async def fetch_row(self, query: str, *args: object) -> Row | None:
        async with self.session() as session:
            return await session.fetch_row(query, *args)

    async def fetch_value(self, query: str, *args: object) -> Any:  # the column's type is the statement's
        async with self.session() as session:
            return await session.fetch_value(query, *args)

    async def execute(self, query: str, *args: object) -> int:
        async with self.session() as session:
            return await session.execute(query, *args)

    async def close(self) -> None:
        """Close all connections: politely for at most the timeout, then at once."""
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _open(self) -> None:
        async with self._opening:
            if self._pool is None:
                # In the loop that will use it; with a minimum of 0 this makes the bookkeeping and no connection.
                self._pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=0,
                    max_size=self._pool_size,
                    timeout=self._timeout_s,
                    command_timeout=self._timeout_s,
                    max_inactive_connection_lifetime=_IDLE_S,
                    statement_cache_size=self._statements,
                    server_settings={"application_name": self._application, "timezone": "UTC"},
                )


class _Transaction:
    """asyncpg's transaction, with its own statements mapped and bounded like any other."""

    __slots__ = ("_inner",)

    def __init__(self, session: Session) -> None:
        self._inner = session._connection.transaction()  # noqa: SLF001  one file, one idea

    async def __aenter__(self) -> None:
        await _mapped(self._inner.start())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await _mapped(self._inner.commit())
        elif isinstance(error, Exception) and not isinstance(error, StoreUnavailable):
            await _mapped(self._inner.rollback())
        # Else the connection is thrown away, and PostgreSQL rolls back by itself.


def load_queries(path: Path) -> Mapping[str, str]:
    """Read statements from a `.sql` file, where each begins with a line `-- name: purpose`; the texts by name.

    Raises: ValueError for text before the first name, a name given twice, or one without a statement.
    """
    bodies: dict[str, list[str]] = {}
    body: list[str] | None = None
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if header := _QUERY_HEADER.fullmatch(line):
            if header[1] in bodies:
                raise ValueError(f"{path}:{number}: {header[1]} is there twice")
            body = bodies[header[1]] = []
        elif body is not None:
            body.append(line)
        elif line.strip() and not line.startswith("--"):
            raise ValueError(f"{path}:{number}: a statement without a `-- name: purpose` line")
    queries = {name: "\n".join(lines).strip().rstrip(";") for name, lines in bodies.items()}
    for name, text in queries.items():
        if not text:
            raise ValueError(f"{path}: {name} has no statement")
    return MappingProxyType(queries)


async def _mapped(work: Awaitable[T]) -> T:
    """Await `work`; what says that the store is away becomes StoreUnavailable."""
    try:
        return await work
    except _UNAVAILABLE as error:
        raise StoreUnavailable(detail=f"postgres: {type(error).__name__}: {error}") from error
    except asyncpg.InterfaceError as error:
        # Also what asyncpg raises for misuse; only a connection that went away under us is the store's fault.
        if "closed" in str(error) or "closing" in str(error):
            raise StoreUnavailable(detail=f"postgres: {error}") from error
        raise
