"""`gateway serve`: hand the configuration to the supervisor, which runs until it is told to stop.

What is decided here is what a person sees: every mistake before anything starts, and once it runs, an address, and in
development a key and a first request to paste.
"""

import argparse
import logging
import sys
from functools import partial

from gateway import __version__
from gateway.app import create_app, keep_books
from gateway.cli.check import load_prices, load_registry
from gateway.cli.loading import load_config
from gateway.cli.table import Colour, Printer
from gateway.config import Loaded, proxy_variables
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.logs import configure
from gateway.infra.postgres import Database
from gateway.kernel.key_store import ensure_development_key, load_pepper
from gateway.kernel.keys import NewKey
from gateway.kernel.money import parse_usd
from gateway.server import supervisor
from gateway.settings import Settings

log = logging.getLogger(__name__)

#: Before the first worker runs, nobody waits for an answer.
_BOOTSTRAP_TIMEOUT_S = 30.0


def run(arguments: argparse.Namespace) -> int:
    """The exit status of the supervisor.

    Raises:
        GatewayError: it could not start.
    """
    loaded = load_config(arguments)
    load_registry(loaded)
    configure(level=loaded.settings.log.level)
    for note in loaded.notes:
        log.info(note)
    for warning in loaded.warnings:
        log.warning(warning)
    # Kept in the data directory, so that no worker has to make the catalogue.
    for key, why in load_prices(loaded, keep=True).objections(SystemClock().now()).items():
        log.warning("%s: %s; not used", key, why)
    welcome = Welcome(loaded, Printer(sys.stderr))
    return supervisor.run(
        loaded,
        app_factory=partial(create_app, proxies=proxy_variables()),
        bootstrap=welcome.prepare,
        announce=welcome.announce,
        service=keep_books,
    )


class Welcome:
    """Makes the first key of a development database, and says how to use the gateway once it runs."""

    def __init__(self, loaded: Loaded, out: Printer) -> None:
        self._loaded = loaded
        self._out = out
        self._key: NewKey | None = None

    async def prepare(self, settings: Settings, stores: Stores) -> None:
        """Runs on a migrated database, before any worker."""
        pepper = load_pepper(settings)
        if settings.server.development:
            async with Database(stores.database_dsn, pool_size=1, timeout_s=_BOOTSTRAP_TIMEOUT_S) as database:
                self._key = await ensure_development_key(
                    database, pepper=pepper, credit_nanos=parse_usd(repr(settings.money.development_usd))
                )

    def announce(self, address: str) -> None:
        """Runs once all workers accept connections."""
        out = self._out
        providers = ", ".join(name for name, each in self._loaded.settings.providers.items() if each.enabled)
        out.line(f"AI Gateway {__version__} is ready: {out.paint(address, Colour.GREEN)}")
        out.line(f"  providers: {providers or 'none'}")
        if self._key is None:
            return
        out.line("  A key was made for this new database. It is not shown again:")
        out.line(f"    {self._key.text}")
        out.line("  Try it:")
        out.line(f"    curl {address}/v1/chat/completions -H 'content-type: application/json' \\")
        out.line(f"      -H 'authorization: Bearer {self._key.text}' \\")
        out.line("""      -d '{"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}'""")
        self._key = None
