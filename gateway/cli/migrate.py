"""`gateway migrate`: bring the database to the shape this release needs."""

import argparse
import asyncio
import sys

from gateway.cli.loading import load_config
from gateway.cli.table import Printer
from gateway.errors import ConfigError
from gateway.infra.embedded import open_stores
from gateway.infra.migrate import check, migrate
from gateway.settings import Settings


def run(arguments: argparse.Namespace) -> int:
    """Apply what is missing; with `--check` only say what, and 1 if anything.

    Raises:
        GatewayError: the database can't be reached or migrated.
    """
    settings = load_config(arguments).settings
    out = Printer(sys.stdout)
    with open_stores(settings, make=not arguments.check) as stores:
        names = asyncio.run((check if arguments.check else migrate)(stores.database_dsn))
    for name in names:
        out.line(f"{'missing' if arguments.check else 'applied'} {name}")
    if not names:
        out.line("nothing to do: the database has every migration")
    return 1 if names and arguments.check else 0


async def require_migrated(settings: Settings, dsn: str) -> None:
    """Bring an embedded database up to date; a configured one must be so already.

    Raises:
        ConfigError: `gateway migrate` has to be run first.
        GatewayError: the database can't be reached or migrated.
    """
    if settings.database.url is None:
        await migrate(dsn)
    elif await check(dsn):
        raise ConfigError("the database lacks migrations of this release: run `gateway migrate` first")
