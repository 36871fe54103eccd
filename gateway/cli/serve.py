"""`gateway serve`: hand the configuration to the supervisor, which runs until it is told to stop.

What is decided here is what a person sees: every mistake before anything starts, and once it runs, an address, and in
development a key and a first request to paste.
"""

import argparse
import asyncio
import logging
import os
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gateway import __version__
from gateway.app import create_app
from gateway.books import keep_books
from gateway.cli.check import load_hooks, load_prices, load_registry, load_way_out
from gateway.cli.loading import load_config
from gateway.cli.table import Colour, Printer
from gateway.coherence import ECHO
from gateway.config import Loaded, proxy_variables
from gateway.errors import GatewayError
from gateway.infra.children import die_with_parent
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.logs import configure
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.key_store import ensure_development_key, load_pepper
from gateway.kernel.keys import NewKey
from gateway.kernel.money import parse_usd
from gateway.server import supervisor
from gateway.settings import Settings

log = logging.getLogger(__name__)

PROGRAM = "gateway"

_NAME_WIDTH = 12
_TEXT_WIDTH = 100

#: It is near, or it is not there.
_REDIS_TIMEOUT_S = 3.0
#: Before the first worker runs, nobody waits for an answer.
_BOOTSTRAP_TIMEOUT_S = 30.0


def run(arguments: argparse.Namespace) -> int:
    """The exit status of the supervisor.

    Raises:
        GatewayError: it could not start.
    """
    if arguments.with_parent:
        die_with_parent(os.getppid(), signal.SIGTERM)
    loaded = load_config(arguments)
    load_way_out(loaded)
    load_registry(loaded)
    load_hooks(loaded)
    configure(level=loaded.settings.log.level)
    for note in loaded.notes:
        log.info(note)
    for warning in loaded.warnings:
        log.warning(warning)
    # Kept in the data directory, so that no worker has to make the catalogue.
    for key, why in load_prices(loaded, keep=True).objections(SystemClock().now()).items():
        log.warning("%s: %s; not used", key, why)
    welcome = Welcome(
        loaded, Printer(sys.stderr), program=program_name(sys.argv[0]), options=joining_options(arguments)
    )
    return supervisor.run(
        loaded,
        app_factory=partial(create_app, proxies=proxy_variables()),
        bootstrap=welcome.prepare,
        announce=welcome.announce,
        service=partial(keep_books, proxies=proxy_variables()),
    )


def program_name(started_as: str) -> str:
    """What to type to run this program again, from the directory it was started in."""
    if Path(started_as).name != PROGRAM:
        return f"{shlex.quote(sys.executable)} -m {PROGRAM}"
    found = shutil.which(PROGRAM)
    if found is not None and Path(found).resolve() == Path(started_as).resolve():
        return PROGRAM
    return shlex.quote(started_as)


def joining_options(arguments: argparse.Namespace) -> str:
    """The options that lead another command to this gateway's stores."""
    given = {"--config": arguments.config, "--data-dir": arguments.data_dir}
    return "".join(f" {name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None)


class Welcome:
    """Makes the first key of a development database, and says how to use the gateway once it runs."""

    def __init__(self, loaded: Loaded, out: Printer, *, program: str = PROGRAM, options: str = "") -> None:
        """`program` and `options` are what other commands for this gateway begin and end with."""
        self._loaded = loaded
        self._out = out
        self._program = program
        self._options = options
        self._key: NewKey | None = None
        #: Why Redis can't be reached; empty where it can.
        self._missing = ""

    async def prepare(self, settings: Settings, stores: Stores) -> None:
        """Runs on a migrated database, before any worker."""
        pepper = load_pepper(settings)
        if settings.server.development:
            async with Database(stores.database_dsn, pool_size=1, timeout_s=_BOOTSTRAP_TIMEOUT_S) as database:
                self._key = await ensure_development_key(
                    database, pepper=pepper, credit_nanos=parse_usd(repr(settings.money.development_usd))
                )
        self._missing = await _why_no_redis(stores.redis_url)

    def announce(self, address: str) -> None:
        """Runs once all workers accept connections."""
        out, settings = self._out, self._loaded.settings
        on = [name for name, each in settings.providers.items() if each.enabled]
        taken = {each.adapter for each in settings.providers.values()} | set(settings.providers)
        off = [each.variable for each in self._loaded.known.values() if each.variable and each.name not in taken]
        if self._missing:
            self._warn(address)
        else:
            out.line(f"AI Gateway {__version__} is ready: {out.paint(address, Colour.GREEN)}")
        out.line()
        plane = settings.server.plane
        if plane != "control":
            self._fact("base URL", f"{address}/v1")
        if plane != "data":
            self._fact("accounts", f"{address}/docs")
            self._fact("first admin", self._command("users create --admin --password --email ADDRESS"))
        if self._key is not None:
            self._fact("key", f"{out.paint(self._key.text, Colour.GREEN)}  (shown this once)")
        self._fact("more keys", self._command("keys create --name NAME"))
        self._fact("providers", ", ".join(on) or "none")
        if off:
            self._fact("turn on by", ", ".join(sorted(off)))
        if on and plane != "control":
            self._show_request(address, model=_example(settings, on))
        self._key = None

    def _warn(self, address: str) -> None:
        """It runs, and comes right by itself once Redis does; until then nobody should take it for ready."""
        out, settings = self._out, self._loaded.settings
        out.line(out.paint(f"AI Gateway {__version__} runs at {address}, but Redis does not answer.", Colour.RED))
        self._fact("why", self._missing)
        refuses = settings.money.when_redis_is_away == "refuse"
        meanwhile = "requests are refused with 503" if refuses else "each worker limits by itself and keeps a journal"
        self._fact("meanwhile", meanwhile)
        self._fact("look at", f"redis.url (REDIS_URL), and {self._command('doctor')}")
        log.error("Redis does not answer: %s", self._missing)

    def _show_request(self, address: str, *, model: str) -> None:
        out = self._out
        if not model:
            model = "MODEL"
            self._fact("models", f"{self._command('models')} lists what can be called")
        out.line()
        key = "$GATEWAY_KEY" if self._key is None else self._key.text
        body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'
        out.line(f"curl -N {address}/v1/chat/completions -H 'content-type: application/json' \\")
        out.line(f'  -H "authorization: Bearer {key}" \\')
        out.line(f"  -d '{body}'")

    def _command(self, what: str) -> str:
        return f"{self._program} {what}{self._options}"

    def _fact(self, name: str, text: str) -> None:
        """A name and what there is to say, in a column."""
        first, *rest = textwrap.wrap(text, width=_TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)
        self._out.line(f"  {self._out.paint(name.ljust(_NAME_WIDTH), Colour.DIM)}{first}")
        for line in rest:
            self._out.line(" " * (_NAME_WIDTH + 2) + line)


async def _why_no_redis(url: str) -> str:
    """Why Redis can't be reached now; empty where it can."""
    client = Redis(url, timeout_s=_REDIS_TIMEOUT_S)
    try:
        async with asyncio.timeout(_REDIS_TIMEOUT_S):
            await client.connect()
            await client.execute("PING")
    except TimeoutError:
        return f"no answer within {_REDIS_TIMEOUT_S:g} s"
    except GatewayError as error:
        return error.detail or error.message
    finally:
        await client.close()
    return ""


def _example(settings: Settings, on: Sequence[str]) -> str:
    """A model that can be called; empty where providers name none."""
    if ECHO in on:
        return ECHO
    names = (model for provider in on for model in settings.providers[provider].models)
    return next((name for name in names if not name.endswith("*")), "")
