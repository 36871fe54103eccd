"""`gateway reconcile`: hold the balances in Redis against the ledger, and the ledger against itself."""

import argparse
import sys

from gateway.cli.connecting import with_database
from gateway.cli.loading import load_config
from gateway.cli.table import Colour, Printer
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.ledger import Ledger
from gateway.kernel.loader import Loader
from gateway.kernel.money import format_usd
from gateway.kernel.reconciler import Misfit, Reconciler, Report, check_books

REDIS_TIMEOUT_S = 5.0
#: All entries are read.
DATABASE_TIMEOUT_S = 600.0


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print what differs; 1 if anything does, or did and was not mended.

    Raises:
        GatewayError: a store can't be reached.
    """
    settings = load_config(arguments).settings

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
