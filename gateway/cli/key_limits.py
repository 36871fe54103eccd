"""`gateway keys limits`: what one key may use, besides what its account may."""

import argparse
import sys
from typing import Final

import msgspec

from gateway.cli.connecting import with_database
from gateway.cli.notices import Notices, warn_of_lost
from gateway.cli.table import Printer
from gateway.control.accounts.commands import note_key
from gateway.errors import ConfigError
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.key_store import change_limits
from gateway.kernel.limits import BUDGET_WINDOWS, COUNTS, LIMIT_MAX, NO_LIMITS, Budget, Limits
from gateway.kernel.money import format_usd, parse_usd
from gateway.settings import Settings

NONE: Final = "none"


def limit_key(arguments: argparse.Namespace, settings: Settings) -> int:
    """Change what is named, and show what holds now.

    Raises:
        ConfigError: a limit can't be read, or there is no such key.
    """
    counts = {name: _parse_count(text, name) for name in COUNTS if (text := getattr(arguments, name)) is not None}
    budgets = {
        window: _parse_budget(text, window)
        for window in BUDGET_WINDOWS
        if (text := getattr(arguments, f"budget_{window}")) is not None
    }

    def change(limits: Limits) -> Limits:
        before = NO_LIMITS if arguments.clear else limits
        kept = [budget for budget in before.budgets if budget.window not in budgets]
        added = [
            Budget(window=window, limit_nanos=amount) for window, amount in budgets.items() if amount is not None
        ]
        return msgspec.structs.replace(before, **counts, budgets=(*kept, *added))

    async def work(database: Database, stores: Stores) -> tuple[tuple[str, Limits] | None, bool]:
        async with Notices(stores.redis_url) as notices:
            found = await change_limits(database, notices, id_or_name=arguments.key, change=change, note=note_key)
            return found, notices.lost

    found, lost = with_database(settings, work)
    if found is None:
        raise ConfigError("no living key has that id or name; `gateway keys list` shows them all")
    key_id, limits = found
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(limits), indent=2).decode() + "\n")
    else:
        _show(key_id, limits)
    return warn_of_lost(settings) if lost else 0


def _show(key_id: str, limits: Limits) -> None:
    out = Printer(sys.stdout)
    rows = [(name.replace("_", " "), f"{count}") for name in COUNTS if (count := getattr(limits, name)) is not None]
    for budget in limits.budgets:
        window = "in total" if budget.window == "total" else f"per {budget.window}"
        kind = "" if budget.hard else " (only gives notice)"
        rows.append((f"budget {window}", f"{format_usd(budget.limit_nanos)} USD{kind}"))
    if not rows:
        out.line(f"key {key_id} has no limits of its own")
        return
    out.line(f"key {key_id}")
    out.table(("LIMIT", "IS"), rows)


def _parse_count(text: str, name: str) -> int | None:
    if text == NONE:
        return None
    option = "--" + name.replace("_", "-")
    if not (text.isascii() and text.isdecimal()) or int(text) > LIMIT_MAX:
        raise ConfigError(f"{option}: expected a whole number from 0 to {LIMIT_MAX}, or `none`")
    return int(text)


def _parse_budget(text: str, window: str) -> int | None:
    if text == NONE:
        return None
    try:
        amount_nanos = parse_usd(text)
    except ValueError as error:
        raise ConfigError(f"--budget-{window}: {error}") from error
    if amount_nanos < 0:
        raise ConfigError(f"--budget-{window}: expected dollars, or `none`")
    return amount_nanos
