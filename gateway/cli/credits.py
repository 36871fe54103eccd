"""`gateway credits add|show`: the credit of accounts, as the ledger in PostgreSQL has it."""

import argparse
import secrets
import sys
from collections.abc import Callable

from gateway.cli.connecting import with_database
from gateway.cli.loading import load_config
from gateway.cli.table import Printer
from gateway.control.audit import OPERATOR
from gateway.control.grants import grant
from gateway.errors import ConfigError
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.journal import (
    PAGE_MAX,
    AccountBalance,
    Entry,
    find_account,
    list_balances,
    list_entries,
    read_balance,
)
from gateway.kernel.money import Nanos, format_usd, parse_usd
from gateway.settings import Settings


def run(arguments: argparse.Namespace) -> int:
    """Do what `action` says.

    Raises:
        GatewayError: it could not be done.
    """
    settings = load_config(arguments).settings
    actions: dict[str, Callable[[argparse.Namespace, Settings], int]] = {"add": _add, "show": _show}
    return actions[arguments.action](arguments, settings)


def parse_amount(text: str, option: str) -> Nanos:
    """Dollars that were typed.

    Raises:
        ConfigError: they are none.
    """
    try:
        amount_nanos = parse_usd(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
    if amount_nanos == 0:
        raise ConfigError(f"{option}: nothing is nothing")
    return amount_nanos


def _add(arguments: argparse.Namespace, settings: Settings) -> int:
    amount_nanos = parse_amount(arguments.usd, "--usd")
    key = arguments.idempotency_key or f"command:{secrets.token_hex(12)}"
    if not 1 <= len(key) <= 200:
        raise ConfigError("--idempotency-key: it has 1 to 200 characters")

    async def add(database: Database, _: Stores) -> tuple[Entry, bool, AccountBalance]:
        account_id = await choose_account(database, arguments)
        async with database.transaction() as session:
            entry, is_new = await grant(
                session,
                OPERATOR,
                account_id,
                amount_nanos=amount_nanos,
                idempotency_key=key,
                reason=arguments.reason,
            )
        return entry, is_new, await read_balance(database, account_id)

    entry, is_new, balance = with_database(settings, add)
    verb = "credited" if amount_nanos > 0 else "debited"
    amount = format_usd(abs(entry.amount_nanos))
    done = f"{verb} {amount} USD" if is_new else f"{amount} USD was {verb} already with this idempotency key"
    print(f"{done}; account {balance.account_id} ({balance.name}) has {format_usd(balance.balance_nanos)} USD")
    return 0


def _show(arguments: argparse.Namespace, settings: Settings) -> int:
    out = Printer(sys.stdout)
    if arguments.key is None and arguments.account is None:
        balances = with_database(settings, lambda database, _: _all_balances(database))
        rows = [(str(each.account_id), each.name, format_usd(each.balance_nanos)) for each in balances]
        if not rows:
            out.line("there are no accounts; `gateway keys create --name NAME` makes the first one")
            return 0
        out.table(("ACCOUNT", "NAME", "BALANCE USD"), rows)
        return 0

    async def show(database: Database, _: Stores) -> tuple[AccountBalance, list[Entry]]:
        account_id = await choose_account(database, arguments)
        return await read_balance(database, account_id), await list_entries(
            database, account_id, limit=arguments.limit
        )

    balance, entries = with_database(settings, show)
    out.line(f"account {balance.account_id} ({balance.name}) has {format_usd(balance.balance_nanos)} USD")
    if entries:
        out.line()
        out.table(
            ("NUMBER", "TIME", "TYPE", "USD", "BALANCE", "FOR"),
            [
                (
                    str(entry.seq),
                    f"{entry.created_at:%Y-%m-%d %H:%M:%S}",
                    entry.type,
                    format_usd(entry.amount_nanos),
                    format_usd(entry.balance_after_nanos),
                    entry.reason or str(entry.request_id or entry.payment_id or entry.idempotency_key),
                )
                for entry in entries
            ],
        )
    return 0


async def choose_account(database: Database, arguments: argparse.Namespace) -> int:
    """The account that `--account` or `--key` names.

    Raises:
        ConfigError: there is no such key.
    """
    if arguments.account is not None:
        account_id: int = arguments.account
        return account_id
    return await find_account(database, arguments.key)


async def _all_balances(database: Database) -> list[AccountBalance]:
    found: list[AccountBalance] = []
    while page := await list_balances(database, after_id=found[-1].account_id if found else 0):
        found += page
        if len(page) < PAGE_MAX:
            break
    return found
