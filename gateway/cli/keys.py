"""`gateway keys create|list|revoke|limits`: the keys that applications call the gateway with."""

import argparse
import sys
from collections.abc import Callable
from datetime import datetime

import msgspec

from gateway.cli.connecting import with_database
from gateway.cli.credits import parse_amount
from gateway.cli.key_limits import limit_key
from gateway.cli.loading import load_config
from gateway.cli.notices import Notices, warn_of_lost
from gateway.cli.table import Colour, Printer
from gateway.control.accounts.commands import note_key
from gateway.control.audit import OPERATOR
from gateway.control.grants import grant
from gateway.errors import ConfigError
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.journal import find_account
from gateway.kernel.key_store import create_key, list_keys, load_pepper, revoke_key
from gateway.kernel.keys import KeySummary
from gateway.kernel.money import Nanos, format_usd
from gateway.settings import Settings


def run(arguments: argparse.Namespace) -> int:
    """Do what `action` says.

    Raises:
        GatewayError: it could not be done.
    """
    settings = load_config(arguments).settings
    actions: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
        "create": _create,
        "list": _list,
        "revoke": _revoke,
        "limits": limit_key,
    }
    return actions[arguments.action](arguments, settings)


def _create(arguments: argparse.Namespace, settings: Settings) -> int:
    amount_nanos = None if arguments.credits is None else parse_amount(arguments.credits, "--credits")
    if amount_nanos is not None and amount_nanos < 0:
        raise ConfigError("--credits: a new key takes no credit away; see `gateway credits add`")
    name = arguments.name.strip()
    if not 1 <= len(name) <= 200:
        raise ConfigError("--name: a name has 1 to 200 characters")
    pepper = load_pepper(settings)

    async def create(database: Database, _: Stores) -> None:
        key = await create_key(database, name=name, pepper=pepper, note=note_key)
        # Shown before anything else can fail: it can't be shown again.
        Printer(sys.stdout).line(key.text)
        hint = Printer(sys.stderr)
        if not arguments.quiet:
            hint.line(f"This is the only time the key is shown. Its id is {key.id}.")
        if amount_nanos is not None:
            await _grant(database, key.id, amount_nanos)
            if not arguments.quiet:
                hint.line(f"Its account was credited {format_usd(amount_nanos)} USD.")

    with_database(settings, create, make=True)
    return 0


async def _grant(database: Database, key_id: str, amount_nanos: Nanos) -> None:
    account_id = await find_account(database, key_id)
    async with database.transaction() as session:
        await grant(
            session,
            OPERATOR,
            account_id,
            amount_nanos=amount_nanos,
            idempotency_key=f"key:{key_id}",
            reason=f"with key {key_id}",
        )


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    keys = with_database(settings, lambda database, _: list_keys(database))
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(keys), indent=2).decode() + "\n")
        return 0
    out = Printer(sys.stdout)
    if not keys:
        out.line("there are no keys; make one with `gateway keys create --name NAME`")
        return 0
    now = datetime.fromtimestamp(SystemClock().now()).astimezone()
    states = [_state(key, now) for key in keys]
    rows = [
        (state, key.id, key.name, str(key.account_id), key.environment, f"...{key.last_four}", _date(key.created_at))
        for key, state in zip(keys, states, strict=True)
    ]
    colours = [Colour.GREEN if state == "active" else Colour.DIM for state in states]
    out.table(("STATE", "ID", "NAME", "ACCOUNT", "ENVIRONMENT", "ENDS IN", "CREATED"), rows, colours=colours)
    return 0


def _revoke(arguments: argparse.Namespace, settings: Settings) -> int:
    async def revoke(database: Database, stores: Stores) -> tuple[list[str], bool]:
        async with Notices(stores.redis_url) as notices:
            return await revoke_key(database, notices, id_or_name=arguments.key, note=note_key), notices.lost

    revoked, lost = with_database(settings, revoke)
    if not revoked:
        raise ConfigError("no living key has that id or name; `gateway keys list` shows them all")
    for key_id in revoked:
        print(f"revoked {key_id}")
    return warn_of_lost(settings) if lost else 0


def _state(key: KeySummary, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"


def _date(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M")
