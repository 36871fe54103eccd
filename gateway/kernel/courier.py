"""The courier: carries credit and debit entries from PostgreSQL to the hot balances, in order, each once.

Rules:
- The outbox is written in the transaction of the entry and cleared when Redis has answered, so an entry may be
  carried twice; the script applies it once, by its number.
- Where Redis misses entries in between (it fell back to a replica), the account is loaded anew from PostgreSQL.
- An account that is not in Redis needs nothing carried: its next load brings it along. Redis remembers the number, so
  that no older snapshot is loaded in between.
- An account that Redis refuses (its balance would pass 2^53) is left in the outbox and logged; others go on.
"""

import logging
from itertools import groupby
from pathlib import Path
from typing import Final

from gateway.errors import GatewayError, StoreUnavailable
from gateway.infra.postgres import Database, Row, load_queries
from gateway.kernel.loader import Loader
from gateway.kernel.verbs import CreditGap, Verbs

log = logging.getLogger(__name__)

#: Entries in one round.
ROUND_MAX: Final = 500

_queries: Final = load_queries(Path(__file__).with_name("courier.sql"))


class Courier:
    """Carries what is in the outbox, a round at a time, for whoever calls `carry_once`."""

    def __init__(self, database: Database, ledger: Verbs, loader: Loader) -> None:
        self._database = database
        self._ledger = ledger
        self._loader = loader

    async def carry_once(self) -> int:
        """Carry at most `ROUND_MAX` entries; how many Redis has now.

        Raises:
            StoreUnavailable: a store is away; the rest stays in the outbox.
        """
        rows = await self._database.fetch(_queries["read_outbox"], ROUND_MAX)
        carried: list[Row] = []
        try:
            for account_id, entries in groupby(rows, key=lambda row: int(row["account_id"])):
                carried += await self._carry(account_id, list(entries))
        finally:
            if carried:
                await self._database.execute(
                    _queries["clear_outbox"], [row["account_id"] for row in carried], [row["seq"] for row in carried]
                )
        return len(carried)

    async def _carry(self, account_id: int, entries: list[Row]) -> list[Row]:
        try:
            for entry in entries:
                answer = await self._ledger.credit(
                    account_id,
                    seq=entry["seq"],
                    previous_seq=entry["previous_seq"],
                    amount_nanos=entry["amount_nanos"],
                )
                if isinstance(answer, CreditGap):
                    log.warning("account %d: Redis misses entries after %d, loading it anew", account_id, answer.seq)
                    await self._loader.ensure_loaded(account_id, force=True)
                    break
        except StoreUnavailable:
            raise
        except GatewayError as error:
            log.error("account %d: its credit can't be carried: %s", account_id, error.detail)  # noqa: TRY400
            return []
        return entries
