"""`gateway serve`: hand the configuration to the supervisor, which runs until it is told to stop.

What is decided here is what a person sees: every mistake before anything starts, and once it runs, an address, and in
development a key and a first request to paste.
"""

import argparse
import logging
import sys
import textwrap
from functools import partial

from gateway import __version__
from gateway.app import create_app, keep_books
from gateway.cli.check import load_prices, load_registry
from gateway.cli.loading import load_config
from gateway.cli.table import Colour, Printer
from gateway.config import ECHO, Loaded, proxy_variables
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

_NAME_WIDTH = 12
_TEXT_WIDTH = 100

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
        out, settings = self._out, self._loaded.settings
        on = [name for name, each in settings.providers.items() if each.enabled]
        taken = {each.adapter for each in settings.providers.values()} | set(settings.providers)
        off = [each.variable for each in self._loaded.known.values() if each.variable and each.name not in taken]
        out.line(f"AI Gateway {__version__} is ready: {out.paint(address, Colour.GREEN)}")
        out.line()
        self._fact("base URL", f"{address}/v1")
        if self._key is not None:
            self._fact("key", f"{out.paint(self._key.text, Colour.GREEN)}  (shown this once)")
        self._fact("more keys", "gateway keys create --name NAME")
        self._fact("providers", ", ".join(on) or "none")
        if off:
            self._fact("turn on by", ", ".join(sorted(off)))
        out.line()
        key = "$GATEWAY_KEY" if self._key is None else self._key.text
        model = ECHO if ECHO in on else next((each for name in on for each in settings.providers[name].models), ECHO)
        body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'
        out.line(f"curl -N {address}/v1/chat/completions -H 'content-type: application/json' \\")
        out.line(f'  -H "authorization: Bearer {key}" \\')
        out.line(f"  -d '{body}'")
        self._key = None

    def _fact(self, name: str, text: str) -> None:
        """A name and what there is to say, in a column."""
        first, *rest = textwrap.wrap(text, width=_TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)
        self._out.line(f"  {self._out.paint(name.ljust(_NAME_WIDTH), Colour.DIM)}{first}")
        for line in rest:
            self._out.line(" " * (_NAME_WIDTH + 2) + line)
