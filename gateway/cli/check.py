"""`gateway check`: would `gateway serve` start on this configuration?"""

import argparse
import sys
from pathlib import Path

from gateway.catalogue.overrides import pricer_with
from gateway.catalogue.prices import Catalogue
from gateway.catalogue.rows import Pricer
from gateway.cli.listed import Listed
from gateway.cli.loading import load_config
from gateway.cli.table import Colour, Printer
from gateway.config import Loaded, proxy_variables
from gateway.errors import ConfigError
from gateway.infra.clock import SystemClock
from gateway.plugins import Plugged, load_plugins
from gateway.registry import Registry
from gateway.upstream.proxy import Proxies
from gateway.upstream.tls import client_context

_MODELS_SHOWN_MAX = 4


def run(arguments: argparse.Namespace) -> int:
    """Print a summary.

    Raises:
        ConfigError: what is wrong.
    """
    loaded = load_config(arguments)
    load_way_out(loaded)
    load_registry(loaded)
    plugged = load_hooks(loaded)
    odd_prices = load_prices(loaded).objections(SystemClock().now())
    out = Printer(sys.stdout)
    where = ", ".join(loaded.files) or "no file, the defaults"
    out.line(f"{out.paint('ok', Colour.GREEN)}: {where}")
    for note in loaded.notes:
        out.line(f"note: {note}")
    for warning in (*loaded.warnings, *(f"{key}: {why}; not used" for key, why in odd_prices.items())):
        out.line(f"{out.paint('warning', Colour.YELLOW)}: {warning}")
    out.line()
    print_providers(loaded, out)
    if plugged:
        out.line()
        rows = [(each.name, each.package, ", ".join(sorted(each.hooks)), body_use(each)) for each in plugged]
        out.table(("PLUGIN", "PACKAGE", "HOOKS", "BODIES"), rows)
    return 0


def load_way_out(loaded: Loaded) -> None:
    """Try what leads to providers, the proxies and the authorities that are trusted: a worker would fail on them.

    Raises:
        ConfigError: with file and line, or the variable, that is to blame.
    """
    upstream = loaded.settings.upstream
    try:
        if upstream.proxy_from_environment:
            Proxies(proxy_variables())
        if upstream.ca_file:
            client_context(upstream.ca_file)
    except ConfigError as error:
        raise ConfigError(loaded.explain(error), param=error.param) from error


def load_registry(loaded: Loaded) -> Registry:
    """The adapters of the configuration, each set up.

    Raises:
        ConfigError: with file and line where a setting is to blame.
    """
    try:
        return Registry.load(loaded.settings)
    except ConfigError as error:
        raise ConfigError(loaded.explain(error), param=error.param) from error


def load_hooks(loaded: Loaded) -> tuple[Plugged, ...]:
    """The plugins of the configuration, each set up, in the order in which they are called.

    Raises:
        ConfigError: with file and line where a setting is to blame.
    """
    try:
        return load_plugins(loaded.settings)
    except ConfigError as error:
        raise ConfigError(loaded.explain(error), param=error.param) from error


def body_use(each: Plugged) -> str:
    """What a plugin does with bodies; empty where it never sees one."""
    return "rewritten" if each.rewrites_body else "read" if each.reads_body else ""


def load_prices(loaded: Loaded, *, keep: bool = False, listed: Listed | None = None) -> Pricer:
    """The prices of the configuration. The catalogue they are over is kept where there is a data directory; with
    `keep` one is made. With `listed`, what the database has is laid over both.

    Raises:
        ConfigError: with file and line where a setting is to blame.
    """
    settings = loaded.settings
    try:
        data_dir = Path(settings.server.data_dir)
        catalogue = Catalogue.open(data_dir, keep=keep or data_dir.is_dir())
        if listed is None:
            return Pricer(settings, catalogue)
        return pricer_with(settings, catalogue, listed.overrides, listed.lists)
    except ConfigError as error:
        raise ConfigError(loaded.explain(error), param=error.param, detail=error.detail) from error


def print_providers(loaded: Loaded, out: Printer) -> None:
    """A row for each provider: what it is, where, and which models it takes."""
    rows = []
    for name, provider in loaded.settings.providers.items():
        models = ", ".join(provider.models[:_MODELS_SHOWN_MAX])
        if more := len(provider.models) - _MODELS_SHOWN_MAX:
            models += f", and {more} more" if more > 0 else ""
        state = "set" if provider.api_key else "none"
        rows.append(
            (name if provider.enabled else f"{name} (off)", provider.adapter, state, models, provider.base_url)
        )
    if rows:
        out.table(("PROVIDER", "ADAPTER", "KEY", "MODELS", "BASE URL"), rows)
    else:
        out.line("no provider is configured: add a [providers.NAME] table, or set a variable such as OPENAI_API_KEY")
