"""`gateway accounts list|plan`: who pays, and what they may use."""

import argparse
import sys

import msgspec

from gateway.cli.connecting import with_database
from gateway.cli.loading import load_config
from gateway.cli.notices import Notices, warn_of_lost
from gateway.cli.table import Colour, Printer
from gateway.control.accounts.commands import PAGE, Account, list_accounts, move_account
from gateway.control.accounts.plans import Moved
from gateway.errors import ConfigError
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.keys import CHANNEL
from gateway.settings import UNLIMITED, Settings

_DIGITS_MAX = 18


def run(arguments: argparse.Namespace) -> int:
    """Do what `action` says.

    Raises:
        GatewayError: it could not be done.
    """
    settings = load_config(arguments).settings
    return {"list": _list, "plan": _plan}[arguments.action](arguments, settings)


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    async def read(database: Database, _: Stores) -> list[Account]:
        accounts = await list_accounts(database)
        while len(page := accounts[-PAGE:]) == PAGE and (more := await list_accounts(database, after_id=page[-1].id)):
            accounts += more
        return accounts

    accounts = with_database(settings, read)
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(accounts), indent=2).decode() + "\n")
        return 0
    out = Printer(sys.stdout)
    if not accounts:
        out.line("there are no accounts; the first key makes one, and so does every person")
        return 0
    rows = [(str(each.id), each.name, each.status, each.plan, str(each.keys), str(each.members)) for each in accounts]
    colours = [Colour.GREEN if each.status == "active" else Colour.DIM for each in accounts]
    out.table(("ID", "NAME", "STATUS", "PLAN", "KEYS", "MEMBERS"), rows, colours=colours)
    if odd := sorted({each.plan for each in accounts} - {*settings.plans, UNLIMITED}):
        out.line(f"no such plan is configured, so that the row `none` holds: {', '.join(odd)}")
    return 0


def _plan(arguments: argparse.Namespace, settings: Settings) -> int:
    if not (arguments.account.isdecimal() and len(arguments.account) <= _DIGITS_MAX):
        raise ConfigError("an account is named by its number; `gateway accounts list` shows them all")
    account_id = int(arguments.account)

    async def move(database: Database, stores: Stores) -> tuple[Moved, bool]:
        moved = await move_account(database, settings, account_id=account_id, plan=arguments.plan)
        async with Notices(stores.redis_url) as notices:
            for key_id in moved.key_ids:
                await notices.publish(CHANNEL, key_id.encode())
            return moved, notices.lost

    moved, lost = with_database(settings, move)
    print(f"account {account_id} is on {arguments.plan} now (was on {moved.old_plan})")
    return warn_of_lost(settings) if lost else 0
