"""Removes what is over: sessions, what mails prove, invitations, first answers of requests.

Rules:
- Whatever has an expiry is refused from that moment by the statement that reads it; this only gives the room back.
- Every worker does it, at times of its own, in pieces of `PIECE` rows that others' locks are passed over for: whoever
  comes second finds less to do. A piece that was full is followed by the next after `BUSY_S`, so that no backlog,
  however long, holds up the one connection it is removed by.
- What somebody may still ask about (where was I signed in, who asked me to join) stays for `REMEMBERED_S`.

Objects that providers keep expire as well; `gateway/poller.py` purges them. Keys that are over stay, with what was
used of them.
"""

import asyncio
import logging
import random
from pathlib import Path
from typing import Final

from gateway.control.idempotency import KEPT_S
from gateway.errors import StoreUnavailable
from gateway.infra.postgres import Database, load_queries

log = logging.getLogger(__name__)

#: Rows of one table that one statement removes.
PIECE: Final = 1000
#: Between two rounds: while there is more, and while there is none; the latter give or take a third.
BUSY_S: Final = 1.0
IDLE_S: Final = 600.0
#: After its end.
REMEMBERED_S: Final = 30 * 86_400.0

_queries: Final = load_queries(Path(__file__).with_name("expiry.sql"))
#: Each statement with how long after its end, or for answers after its beginning, a row goes.
SWEEPS: Final = (
    (_queries["sweep_sessions"], REMEMBERED_S),
    (_queries["sweep_tokens"], 0.0),
    (_queries["sweep_invitations"], REMEMBERED_S),
    (_queries["sweep_answers"], KEPT_S),
)


async def sweep_once(database: Database, *, piece: int = PIECE) -> bool:
    """Remove `piece` rows of each table that are over; whether there may be more.

    Raises:
        StoreUnavailable
    """
    more = False
    for statement, seconds in SWEEPS:
        more |= await database.execute(statement, seconds, piece) >= piece
    return more


async def sweep_forever(database: Database) -> None:
    """For as long as the control plane runs."""
    more = False
    while True:
        # At first as well, so that workers that start together don't sweep together.
        await asyncio.sleep(BUSY_S if more else IDLE_S * random.uniform(2 / 3, 4 / 3))
        try:
            more = await sweep_once(database)
        except StoreUnavailable as error:
            more = False
            log.warning("what is over stays for now: %s", error.detail)
