"""Real stores for tests: one PostgreSQL and one Valkey for each test process, started when first asked for.

Under pytest-xdist each worker has its own, so no test ever meets another's data. A test gets a fresh copy of a
migrated database (about 30 ms) and an empty Valkey.
"""

import asyncio
import contextlib
import shutil
import socket
import tempfile
import warnings
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import asyncpg

from gateway.infra.embedded import EmbeddedServers, Stores
from gateway.infra.migrate import migrate
from tests.places import fast_place

_TEMPLATE = "gateway"


class TestStores:
    """The servers of one test process, and what makes them fresh for each test."""

    __test__ = False

    def __init__(self) -> None:
        # Short and outside of pytest's own directories: the path of a socket has room for about a hundred bytes.
        self._dir = Path(tempfile.mkdtemp(prefix="gw-stores-", dir=fast_place()))
        self._servers = EmbeddedServers(self._dir, postgres=True, valkey=True)
        self._loop = asyncio.new_event_loop()
        self._count = 0
        with warnings.catch_warnings():
            # Later Pythons warn of a fork beside threads, which are the test runner's; our child only executes.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.stores: Stores = self._servers.start()
        self._run(migrate(self.stores.database_dsn))
        self._admin = self._run(asyncpg.connect(self.dsn("postgres")))
        # Nothing here has to survive the machine, nor may it fill a memory.
        for setting in ("fsync = off", "min_wal_size = '32MB'", "max_wal_size = '128MB'"):
            self._run(self._admin.execute(f"alter system set {setting}"))
        self._run(self._admin.execute("select pg_reload_conf()"))
        # Older servers know one way only, which is this.
        self._copy = "strategy file_copy" if self._admin.get_server_version().major >= 15 else ""

    def dsn(self, name: str) -> str:
        """The address of database `name`."""
        return self.stores.database_dsn.replace(f"/{_TEMPLATE}?", f"/{name}?")

    @contextlib.contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """The address of a database of one's own: with our tables, or empty."""
        self._count += 1
        name = f"test_{self._count}"
        template = _TEMPLATE if migrated else "template0"
        self._run(self._admin.execute(f"create database {name} template {template} {self._copy}"))
        try:
            yield self.dsn(name)
        finally:
            # By force: a test may have left connections open, and one that failed will have.
            self._run(self._admin.execute(f"drop database {name} with (force)"))

    def execute(self, dsn: str, statement: str) -> None:
        """Run one statement in a database."""

        async def work() -> None:
            connection = await asyncpg.connect(dsn)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        self._run(work())

    def flush(self) -> str:
        """The address of Valkey, without keys, scripts or functions."""
        commands = (b"FLUSHALL SYNC", b"SCRIPT FLUSH SYNC", b"FUNCTION FLUSH SYNC")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.stores.redis_url.removeprefix("unix://"))
            client.sendall(b"".join(command + b"\r\n" for command in commands))
            answers = b""
            while answers.count(b"\r\n") < len(commands):
                answers += client.recv(4096)
        assert answers == b"+OK\r\n" * len(commands), answers
        return self.stores.redis_url

    def close(self) -> None:
        self._run(self._admin.close())
        self._loop.close()
        self._servers.stop()
        shutil.rmtree(self._dir)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)
