"""The stores of a command that works on the ledger or the keys: opened, brought up to date, and closed after it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.cli.migrate import require_migrated
from gateway.infra.embedded import Stores, open_stores
from gateway.infra.postgres import Database
from gateway.settings import Settings

T = TypeVar("T")
TIMEOUT_S = 10.0


def with_database(
    settings: Settings,
    work: Callable[[Database, Stores], Awaitable[T]],
    *,
    application: str = "gateway command",
    timeout_s: float = TIMEOUT_S,
    make: bool = False,
) -> T:
    """Run `work` on a database that is up to date, whoever's it is. Only with `make` it may be a new one.

    Raises:
        GatewayError: a store can't be reached, or lacks migrations.
    """

    async def connected(stores: Stores) -> T:
        await require_migrated(settings, stores.database_dsn)
        async with Database(
            stores.database_dsn, pool_size=2, timeout_s=timeout_s, application=application
        ) as database:
            return await work(database, stores)

    with open_stores(settings, make=make) as stores:
        return asyncio.run(connected(stores))
