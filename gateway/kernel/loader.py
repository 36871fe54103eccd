"""Brings accounts into Redis: their balance, and what they spent in the windows of their budgets.

Rules:
- A snapshot is one statement, so one view of PostgreSQL: balance, number of the last credit and settled cursor belong
  together. The script takes from the balance what the usage stream holds beyond the cursor, which makes it exact at
  any moment, also while requests and the settler go on.
- Where an account is loaded anew because Redis was found to be wrong about it, it is not believed about what its keys
  spent either: that is forgotten, and loaded for each of them when it is needed.
- Of several that want the same account at once, one asks; all get its result, or its failure.
- A snapshot that Redis calls stale is taken again, for a bounded time: the stream moved on, or it is another stream
  and the settler has not noted it yet.
"""

import asyncio
from pathlib import Path
from typing import Final

from gateway.errors import GatewayError, StoreUnavailable
from gateway.infra.postgres import Database, Row, load_queries
from gateway.infra.tasks import TaskGroup
from gateway.kernel.journal import UnknownAccount
from gateway.kernel.verbs import PARTITIONS, Loaded, Snapshot, Spent, Verbs

#: Snapshots before a load gives up, and the time between two.
SNAPSHOTS_MAX: Final = 30
SNAPSHOT_PAUSE_S: Final = 0.1
#: Keys whose counters are forgotten in one call.
KEYS_PAGE: Final = 500

_queries: Final = load_queries(Path(__file__).with_name("loader.sql"))


class Loader:
    """Loads on demand. `close` it before the stores."""

    def __init__(
        self,
        database: Database,
        ledger: Verbs,
        *,
        partitions: int = PARTITIONS,
        snapshot_pause_s: float = SNAPSHOT_PAUSE_S,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._partitions = partitions
        self._snapshot_pause_s = snapshot_pause_s
        self._tasks = TaskGroup()
        self._running: dict[tuple[int, str, bool], asyncio.Future[Loaded]] = {}

    async def ensure_loaded(self, account_id: int, *, key_id: str = "", force: bool = False) -> Loaded:
        """Load an account, and the budget counters of one of its keys, unless they are loaded; by `force` anew.

        Raises:
            UnknownAccount: PostgreSQL knows none of that id.
            StoreUnavailable: a store is away, or no snapshot fitted.
        """
        wanted = (account_id, key_id, force)
        # A forced load that has begun may have taken its snapshot before the change that this caller knows of.
        result = None if force else self._running.get(wanted)
        if result is None:
            result = asyncio.get_running_loop().create_future()
            # Whoever waits is told; nobody waiting is no failure.
            result.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._running[wanted] = result
            self._tasks.spawn(self._share(wanted, result), name=f"load account {account_id}")
        return await asyncio.shield(result)

    async def close(self) -> None:
        """Give up what is being loaded."""
        await self._tasks.close()

    async def _share(self, wanted: tuple[int, str, bool], result: "asyncio.Future[Loaded]") -> None:
        account_id, key_id, force = wanted
        try:
            result.set_result(await self._load(account_id, key_id, force=force))
        except GatewayError as error:
            result.set_exception(error)
        finally:
            result.cancel()  # of no effect unless this ended in any other way
            if self._running.get(wanted) is result:
                del self._running[wanted]

    async def _load(self, account_id: int, key_id: str, *, force: bool) -> Loaded:
        if force:
            # Before the load: what is cut off here finds the account as wrong as it was, and begins anew.
            await self._forget_keys(account_id)
        for attempt in range(SNAPSHOTS_MAX):
            if attempt > 0:
                await asyncio.sleep(self._snapshot_pause_s)
            snapshot = await take_snapshot(self._database, account_id, key_id=key_id, partitions=self._partitions)
            loaded = await self._ledger.load(account_id, snapshot, key_id=key_id, force=force)
            if isinstance(loaded, Loaded):
                return loaded
        raise StoreUnavailable(detail=f"account {account_id}: none of {SNAPSHOTS_MAX} snapshots fitted Redis")

    async def _forget_keys(self, account_id: int) -> None:
        after_id = ""
        while rows := await self._database.fetch(_queries["list_keys"], account_id, after_id, KEYS_PAGE):
            await self._ledger.forget_spent(account_id, [row["id"] for row in rows])
            after_id = rows[-1]["id"]


async def take_snapshot(
    database: Database, account_id: int, *, key_id: str = "", partitions: int = PARTITIONS
) -> Snapshot:
    """An account as PostgreSQL knows it now.

    Raises:
        UnknownAccount, StoreUnavailable
    """
    row = await database.fetch_row(_queries["take_snapshot"], account_id, account_id % partitions, key_id)
    if row is None:
        raise UnknownAccount
    return Snapshot(
        balance_nanos=row["balance_nanos"],
        seq=row["credit_seq"],
        cursor=row["cursor"],
        account_spent=_spent(row, ""),
        key_spent=_spent(row, "key_") if key_id else None,
    )


def _spent(row: Row, prefix: str) -> Spent:
    return Spent(
        as_of_us=row["as_of_us"],
        day_nanos=row[f"{prefix}day_nanos"],
        week_nanos=row[f"{prefix}week_nanos"],
        month_nanos=row[f"{prefix}month_nanos"],
        total_nanos=row[f"{prefix}total_nanos"],
        requests=row[f"{prefix}requests"],
    )
