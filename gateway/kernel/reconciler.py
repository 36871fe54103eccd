"""The reconciler: holds the hot balances against the books, and the books against themselves.

What a hot balance has to be is exact at any moment: the balance in PostgreSQL, less what the usage stream still holds
beyond the settled cursor, less the credit that is still on its way. Everything that differs is drift. It compares;
only `fix` changes anything, and only Redis: PostgreSQL is the truth.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.infra.postgres import Database, Row, load_queries
from gateway.kernel.ledger import ScriptHost, source
from gateway.kernel.loader import Loader
from gateway.kernel.money import Nanos
from gateway.kernel.verbs import PARTITIONS, name_account, usage_key

#: Accounts in one look, and unsettled entries that such a look may read: both hold up the server while it runs.
PAGE: Final = 200
ENTRIES_MAX: Final = 5000
#: Looks before a page is given up: the settler is too far behind, or away.
LOOKS_MAX: Final = 20
LOOK_PAUSE_S: Final = 0.1

_queries: Final = load_queries(Path(__file__).with_name("reconciler.sql"))


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """An account whose hot balance is not what it has to be."""

    account_id: int
    hot_nanos: Nanos
    expected_nanos: Nanos

    @property
    def nanos(self) -> Nanos:
        """How much too high the hot balance is."""
        return self.hot_nanos - self.expected_nanos


class Misfit(msgspec.Struct, frozen=True, kw_only=True):
    """An account whose balance in PostgreSQL is not the sum of its entries."""

    account_id: int
    balance_nanos: Nanos
    total_nanos: Nanos


class Report(msgspec.Struct):
    """What was compared. `unread` partitions could not be: too much of them is not settled yet."""

    accounts: int = 0
    #: Those of them that are in Redis.
    loaded: int = 0
    hot_nanos: Nanos = 0
    book_nanos: Nanos = 0
    unsettled_nanos: Nanos = 0
    drifts: list[Drift] = msgspec.field(default_factory=list)
    unread: list[int] = msgspec.field(default_factory=list)

    @property
    def drift_nanos(self) -> Nanos:
        """All drifts, whichever way they go."""
        return sum(abs(drift.nanos) for drift in self.drifts)


class Reconciler:
    """Compares, and loads anew what differs where it is told to."""

    def __init__(
        self, database: Database, redis: ScriptHost, loader: Loader, *, partitions: int = PARTITIONS
    ) -> None:
        self._database = database
        self._loader = loader
        self._partitions = partitions
        self._audit = redis.script(source("audit"))

    async def reconcile(self, *, fix: bool = False) -> Report:
        """Compare every account; `fix` loads those that drift anew.

        Raises:
            StoreUnavailable: a store is away.
        """
        report = Report()
        for partition in range(self._partitions):
            await self._reconcile_partition(partition, report)
        if fix:
            for drift in report.drifts:
                await self._loader.ensure_loaded(drift.account_id, force=True)
        return report

    async def mend(self, partition: int) -> Report:
        """Load anew what drifts in one partition, as far as it can be compared; what was found."""
        report = Report()
        await self._reconcile_partition(partition, report)
        for drift in report.drifts:
            await self._loader.ensure_loaded(drift.account_id, force=True)
        return report

    async def _reconcile_partition(self, partition: int, report: Report) -> None:
        after_id = 0
        while True:
            page = await self._look(partition, after_id)
            if page is None:
                report.unread.append(partition)
                return
            rows, seen = page
            if not rows:
                return
            for row, (loaded, hot, seq, unsettled) in zip(rows, seen, strict=True):
                _compare(row, report, loaded=loaded == 1, hot_nanos=hot, seq=seq, unsettled_nanos=unsettled)
            after_id = rows[-1]["account_id"]

    async def _look(
        self, partition: int, after_id: int
    ) -> tuple[Sequence[Row], list[tuple[int, int, int, int]]] | None:
        """Both sides of a page of accounts, as they were in one moment."""
        for _ in range(LOOKS_MAX):
            rows = await self._database.fetch(_queries["read_page"], partition, self._partitions, after_id, PAGE)
            if not rows:
                return rows, []
            ids = [row["account_id"] for row in rows]
            keys = [usage_key(partition), *(name_account(partition, account_id) for account_id in ids)]
            # The script's answer: see audit.lua.
            reply: Any = await self._audit(keys, (rows[0]["cursor"], ENTRIES_MAX, *ids))
            if reply[0] != 1:
                await asyncio.sleep(LOOK_PAUSE_S)
                continue
            seen = [tuple(reply[at : at + 4]) for at in range(1, len(reply), 4)]
            # Redis has later credit than this view of PostgreSQL: it was given in between.
            if all(seq <= row["credit_seq"] for row, (_, _, seq, _) in zip(rows, seen, strict=True)):
                return rows, seen
        return None


async def check_books(database: Database) -> list[Misfit]:
    """Accounts whose balance is not the sum of their entries; reads all entries there are."""
    rows = await database.fetch(_queries["sum_books"])
    return [
        Misfit(
            account_id=row["account_id"] or 0,
            balance_nanos=row["balance_nanos"] or 0,
            total_nanos=row["total_nanos"],
        )
        for row in rows
    ]


def _compare(row: Row, report: Report, *, loaded: bool, hot_nanos: int, seq: int, unsettled_nanos: int) -> None:
    report.accounts += 1
    report.book_nanos += row["balance_nanos"]
    report.unsettled_nanos += unsettled_nanos
    if not loaded:
        return
    on_its_way = sum(amount for sent, amount in zip(row["sent_seqs"], row["sent_amounts"], strict=True) if sent > seq)
    expected_nanos = row["balance_nanos"] - unsettled_nanos - on_its_way
    report.loaded += 1
    report.hot_nanos += hot_nanos
    if hot_nanos != expected_nanos:
        report.drifts.append(Drift(account_id=row["account_id"], hot_nanos=hot_nanos, expected_nanos=expected_nanos))
