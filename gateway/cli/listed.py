"""What a command that lists models knows besides the configuration: what providers say that they have, and the prices
that administrators have set. Both stand in the database.

A command that only looks starts no servers and changes nothing: the database is the configured one, or that of a
gateway which runs on the data directory. Without either there is nothing to be read, and it says so.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gateway.catalogue.listing import ListedModel
from gateway.catalogue.lists import Lists, ListState, ListStore, read_lists
from gateway.catalogue.overrides import Override, read_overrides
from gateway.errors import StoreUnavailable
from gateway.infra.embedded import given_stores, join
from gateway.infra.postgres import Database
from gateway.settings import Settings

TIMEOUT_S = 10.0


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored; all empty where nothing could be read."""

    lists: Lists = msgspec.field(default_factory=Lists)
    #: The same in full, by the configuration's names of providers.
    models: Mapping[str, tuple[ListedModel, ...]] = {}
    overrides: Mapping[str, Override] = {}
    #: When each provider that can be asked was, and what became of it.
    states: tuple[ListState, ...] = ()
    #: Why nothing was read; empty where it was.
    missing: str = ""


def read_listed(settings: Settings) -> Listed:
    """All of it. What is missing is told, and no reason to fail."""
    dsn = given_stores(settings).database_dsn
    if not dsn and (running := join(Path(settings.server.data_dir))) is not None:
        dsn = running.database_dsn
    if not dsn:
        return Listed(missing="no gateway runs on this data directory, and no DATABASE_URL is set")
    try:
        return asyncio.run(_read(dsn))
    except StoreUnavailable as error:
        return Listed(missing=f"the database does not answer: {error.detail or error.message}")


async def _read(dsn: str) -> Listed:
    async with Database(dsn, pool_size=1, timeout_s=TIMEOUT_S, application="gateway models") as database:
        store = ListStore(database)
        states = await store.states()
        return Listed(
            lists=await read_lists(database),
            models={name: await store.read(name) for name in sorted(await store.digests())},
            overrides=await read_overrides(database),
            states=states,
        )
