"""PostgreSQL, as far as money needs it: the statements of the settler, the loader, the courier and the reconciler,
obeyed on plain tables; transactions that happen whole or not at all; and a server that goes away in their middle.
"""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.errors import StoreUnavailable
from gateway.kernel import courier, loader, reconciler, settler
from tests.simulation.clockwork import Process, SimClock

LATENCY_S = (0.0005, 0.01)


@dataclass
class Account:
    """Its row of `balances`, and its entries: (seq, amount, request or ''), in order."""

    balance_nanos: int = 0
    credit_seq: int = 0
    entries: list[tuple[int, int, str]] = field(default_factory=list)

    def enter(self, amount_nanos: int, request_id: str = "") -> int:
        seq = len(self.entries) + 1
        self.entries.append((seq, amount_nanos, request_id))
        self.balance_nanos += amount_nanos
        return seq


class ColdStore:
    """The server."""

    def __init__(self, clock: SimClock, draw: random.Random) -> None:
        self.up = True
        self.accounts: dict[int, Account] = {}
        self.usage: dict[str, dict[str, Any]] = {}
        self.cursors: dict[int, str] = {}
        #: (account, seq): (seq of the credit before, amount)
        self.outbox: dict[tuple[int, int], tuple[int, int]] = {}
        self.rejects: list[str] = []
        self.clock = clock
        self.draw = draw
        #: The locks on cursors and balances, coarser than they are.
        self.locks = asyncio.Lock()

    def credit(self, account_id: int, amount_nanos: int) -> None:
        """What `journal.credit` does, in its one transaction."""
        account = self.accounts.setdefault(account_id, Account())
        seq = account.enter(amount_nanos)
        self.outbox[account_id, seq] = (account.credit_seq, amount_nanos)
        account.credit_seq = seq


class Database:
    """What one process has of it: the methods of `infra.postgres.Database`."""

    def __init__(self, process: Process, store: ColdStore) -> None:
        self._process = process
        self._store = store

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator["Session"]:
        await self.trip()
        yield Session(self, self._store)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator["Session"]:
        await self.trip()
        session = Session(self, self._store, later=[])
        try:
            yield session
            await self.trip()
            assert session.later is not None
            for change in session.later:
                change()
        finally:
            session.unlock()
        if self._store.draw.random() < 0.03:
            raise StoreUnavailable(detail="the answer to the commit was lost")

    async def fetch(self, query: str, *args: Any) -> Sequence[Any]:
        async with self.session() as session:
            return await session.fetch(query, *args)

    async def fetch_row(self, query: str, *args: Any) -> Any:
        rows = await self.fetch(query, *args)
        return rows[0] if rows else None

    async def execute(self, query: str, *args: Any) -> int:
        async with self.session() as session:
            return await session.execute(query, *args)

    async def close(self) -> None:
        pass

    async def trip(self) -> None:
        """There and back."""
        if not self._process.step():
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self._store.draw.uniform(*LATENCY_S))
        if not self._store.up:
            raise StoreUnavailable(detail="postgres is away")


class Session:
    """Statements, each at once, or in a transaction (`later`) at its end."""

    def __init__(
        self, database: Database, store: ColdStore, *, later: list[Callable[[], object]] | None = None
    ) -> None:
        self.later = later
        self._database = database
        self._store = store
        self._locked = False

    async def fetch(self, query: str, *args: Any) -> Any:
        await self._database.trip()
        return await _STATEMENTS[query](self, *args)

    async def execute(self, query: str, *args: Any) -> int:
        result = await self.fetch(query, *args)
        return result if isinstance(result, int) else 0

    def change(self, work: Callable[[], object]) -> None:
        if self.later is None:
            work()
        else:
            self.later.append(work)

    def unlock(self) -> None:
        if self._locked:
            self._locked = False
            self._store.locks.release()

    # -- the settler's -------------------------------------------------------------------------------------------

    async def seed_cursors(self, partitions: list[int]) -> int:
        for partition in partitions:
            self._store.cursors.setdefault(partition, settler.START)
        return 0

    async def read_cursors(self, partitions: list[int]) -> list[Any]:
        return [{"partition": each, "last_id": self._store.cursors[each]} for each in partitions]

    async def lock_cursors(self, partitions: list[int]) -> list[Any]:
        await self._store.locks.acquire()
        self._locked = True
        return await self.read_cursors(partitions)

    async def move_cursors(self, partitions: list[int], ids: list[str]) -> int:
        self.change(lambda: self._store.cursors.update(zip(partitions, ids, strict=True)))
        return len(ids)

    async def rewind_cursor(self, partition: int, cursor: str) -> int:
        if self._store.cursors[partition] != cursor:
            return 0
        self._store.cursors[partition] = settler.START
        return 1

    async def lock_balances(self, ids: list[int]) -> list[Any]:
        return [{"account_id": each} for each in ids if each in self._store.accounts]

    async def settle_batch(self, text: str) -> list[Any]:
        rows = msgspec.json.decode(text)
        store = self._store
        fresh = {row["request_id"]: row for row in rows if row["request_id"] not in store.usage}
        repeated = {row["account_id"] for row in rows if row.get("cost_nanos") and row["request_id"] not in fresh}
        assert len(fresh) + len([row for row in rows if row["request_id"] in store.usage]) == len(rows)

        def enter() -> None:
            for request_id, row in fresh.items():
                assert request_id not in store.usage
                store.usage[request_id] = row
                if cost_nanos := row.get("cost_nanos", 0):
                    store.accounts[row["account_id"]].enter(-cost_nanos, request_id)

        self.change(enter)
        return [{"account_id": each} for each in repeated]

    async def reject(self, partition: int, entry_id: str, packed: bytes, reason: str) -> int:
        self.change(lambda: self._store.rejects.append(reason))
        return 1

    async def known_requests(self, ids: list[str], since: object, until: object) -> list[Any]:
        return [{"request_id": uuid.UUID(each)} for each in ids if each in self._store.usage]

    # -- the others' ---------------------------------------------------------------------------------------------

    async def take_snapshot(self, account_id: int, partition: int, key_id: str) -> list[Any]:
        account = self._store.accounts[account_id]
        spent = dict.fromkeys(
            [f"{key}{window}_nanos" for key in ("", "key_") for window in ("day", "week", "month", "total")], 0
        )
        row = {
            "balance_nanos": account.balance_nanos,
            "credit_seq": account.credit_seq,
            "cursor": self._store.cursors.get(partition, settler.START),
            "as_of_us": self._store.clock.now_us(),
        }
        return [row | spent | {"requests": 0, "key_requests": 0}]

    async def list_keys(self, account_id: int, after_id: str, most: int) -> list[Any]:
        # Their budgets are not part of these worlds.
        return []

    async def read_outbox(self, most: int) -> list[Any]:
        return [
            {"account_id": account_id, "seq": seq, "previous_seq": previous, "amount_nanos": amount}
            for (account_id, seq), (previous, amount) in sorted(self._store.outbox.items())[:most]
        ]

    async def clear_outbox(self, ids: list[int], seqs: list[int]) -> int:
        for account_id, seq in zip(ids, seqs, strict=True):
            self._store.outbox.pop((account_id, seq), None)
        return len(ids)

    async def read_page(self, partition: int, partitions: int, after_id: int, most: int) -> list[Any]:
        rows = []
        for account_id in sorted(self._store.accounts):
            if account_id % partitions != partition or account_id <= after_id:
                continue
            account = self._store.accounts[account_id]
            sent = sorted(
                (seq, amount) for (owner, seq), (_, amount) in self._store.outbox.items() if owner == account_id
            )
            rows.append(
                {
                    "account_id": account_id,
                    "balance_nanos": account.balance_nanos,
                    "credit_seq": account.credit_seq,
                    "cursor": self._store.cursors.get(partition, settler.START),
                    "sent_seqs": [seq for seq, _ in sent],
                    "sent_amounts": [amount for _, amount in sent],
                }
            )
        return rows[:most]

    async def make_partitions(self, months: int) -> list[Any]:
        return []


_STATEMENTS: dict[str, Any] = {
    **{
        text: getattr(Session, name)
        for queries in (settler.queries, loader._queries, courier._queries, reconciler._queries)
        for name, text in queries.items()
        if hasattr(Session, name)
    },
    "select make_partitions($1)": Session.make_partitions,
}
