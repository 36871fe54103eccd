"""`gateway reconcile`: hold the balances in Redis against the ledger, and the ledger against itself."""

import argparse
import sys

from gateway.cli.connecting import with_database
from gateway.cli.loading import load_config
from gateway.cli.table import Colour, Printer
from gateway.control.audit import OPERATOR
from gateway.control.rejected import discard, retry
from gateway.errors import ConfigError
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.ledger import Ledger
from gateway.kernel.loader import Loader
from gateway.kernel.money import format_usd
from gateway.kernel.reconciler import Misfit, Reconciler, Report, check_books
from gateway.kernel.rejects import Reject, count_rejects, list_rejects

REDIS_TIMEOUT_S = 5.0
ALL = "all"
#: What the audit log says of what is done here.
BY_COMMAND = "by a command"
REASON_SHOWN_MAX = 120
#: All entries are read.
DATABASE_TIMEOUT_S = 600.0


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print what differs; 1 if anything does, or did and was not mended.

    Raises:
        GatewayError: a store can't be reached.
    """
    settings = load_config(arguments).settings
    if arguments.rejects or arguments.retry or arguments.discard:
        return with_database(settings, lambda database, stores: _deal_with_rejects(arguments, database, stores))

    async def compare(database: Database, stores: Stores) -> tuple[Report, Report | None, list[Misfit]]:
        redis = Redis(stores.redis_url, timeout_s=REDIS_TIMEOUT_S)
        ledger = Ledger(redis)
        loader = Loader(database, ledger)
        reconciler = Reconciler(database, redis, loader)
        await redis.connect()
        try:
            found = await reconciler.reconcile(fix=arguments.fix)
            after = await reconciler.reconcile() if arguments.fix and found.drifts else None
            return found, after, await check_books(database)
        finally:
            await loader.close()
            await redis.close()

    found, after, misfits = with_database(settings, compare, timeout_s=DATABASE_TIMEOUT_S)
    out = Printer(sys.stdout)
    _print(out, found, misfits)
    left = found if after is None else after
    if after is not None:
        out.line(f"loaded {len(found.drifts)} accounts anew; {len(after.drifts)} still drift")
    return 1 if left.drifts or left.unread or misfits else 0


async def _deal_with_rejects(arguments: argparse.Namespace, database: Database, stores: Stores) -> int:
    """Show what was set aside, or deal with it; 1 if any of it is left."""
    out = Printer(sys.stdout)
    if not arguments.rejects:
        redis = Redis(stores.redis_url, timeout_s=REDIS_TIMEOUT_S)
        try:
            if arguments.retry:
                await redis.connect()
            await _deal_with(arguments, database, redis, out)
        finally:
            await redis.close()
    rejects = await list_rejects(database)
    if rejects:
        _print_rejects(out, rejects, await count_rejects(database))
    else:
        out.line("no record is set aside")
    return 1 if rejects else 0


async def _deal_with(arguments: argparse.Namespace, database: Database, redis: Redis, out: Printer) -> None:
    wanted: str = arguments.retry or arguments.discard
    if wanted != ALL and not wanted.isdecimal():
        raise ConfigError(
            f"{wanted!r} is neither the number of a record nor `all`; see `gateway reconcile --rejects`"
        )
    # Found before any is dealt with: what still can't be settled comes back under another number.
    ids = await _all_ids(database) if wanted == ALL else [int(wanted)]
    done = 0
    for reject_id in ids:
        if arguments.retry:
            found = await retry(database, redis, OPERATOR, reject_id, reason=BY_COMMAND)
        else:
            found = await discard(database, OPERATOR, reject_id, reason=BY_COMMAND)
        if found is None and wanted != ALL:
            raise ConfigError(f"there is no record {wanted}; `gateway reconcile --rejects` shows them all")
        done += found is not None
    out.line(f"{done} records {'put back, to be settled within a second' if arguments.retry else 'forgotten'}")


async def _all_ids(database: Database) -> list[int]:
    ids: list[int] = []
    while page := await list_rejects(database, after_id=ids[-1] if ids else 0):
        ids += [each.id for each in page]
    return ids


def _print_rejects(out: Printer, rejects: list[Reject], count: int) -> None:
    rows = [
        (
            str(each.id),
            each.created_at.strftime("%Y-%m-%d %H:%M"),
            "" if each.account_id is None else str(each.account_id),
            each.request_id or "",
            "" if each.cost_nanos is None else format_usd(each.cost_nanos),
            each.reason[:REASON_SHOWN_MAX],
        )
        for each in rejects
    ]
    out.table(("ID", "SET ASIDE", "ACCOUNT", "REQUEST", "USD", "WHY"), rows, colours=[Colour.RED] * len(rows))
    if count > len(rows):
        out.line(f"and {count - len(rows)} more")


def _print(out: Printer, report: Report, misfits: list[Misfit]) -> None:
    rows = [
        (
            "drift",
            str(drift.account_id),
            format_usd(drift.hot_nanos),
            format_usd(drift.expected_nanos),
            format_usd(drift.nanos),
        )
        for drift in report.drifts
    ]
    rows += [
        (
            "ledger",
            str(misfit.account_id),
            format_usd(misfit.balance_nanos),
            format_usd(misfit.total_nanos),
            format_usd(misfit.balance_nanos - misfit.total_nanos),
        )
        for misfit in misfits
    ]
    if rows:
        out.table(("WHAT", "ACCOUNT", "HAS USD", "MUST HAVE", "TOO MUCH"), rows, colours=[Colour.RED] * len(rows))
        out.line()
    out.line(
        f"{report.accounts} accounts with {format_usd(report.book_nanos)} USD; "
        f"{report.loaded} of them in Redis with {format_usd(report.hot_nanos)} USD; "
        f"{format_usd(report.unsettled_nanos)} USD used and not entered yet"
    )
    for partition in report.unread:
        out.line(f"partition {partition} could not be compared: too much is not settled; is a gateway running?")
    if not rows:
        out.line("no drift" if not report.unread else "no drift in the others")
