"""What killed workers had passed on since they last told Redis, told by whoever finds their marks (`marks.py`).

Rules:
- Only Redis knows what a stream was charged when it was last renewed, and how many bytes had gone out by then. What
  went out later is charged as more of the same: as many tokens to a byte, at the same price.
- It is told as a renewal, whose lease ends at once: the next sweep charges it, and frees what was held, without
  waiting for a lease that nobody renews.
- What has no lease any more was charged by a sweep, or had ended in time; nothing is said of it.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from gateway.errors import StoreUnavailable
from gateway.kernel.ledger import Ledger
from gateway.kernel.marks import Left, find_marks
from gateway.kernel.money import MAX_NANOS, fee_nanos
from gateway.kernel.record import UsageRecord, decode_record, encode_record
from gateway.kernel.verbs import Renewal

log = logging.getLogger(__name__)

#: How often it is looked for what others left.
LOOK_EVERY_S: Final = 2.0
#: A lease that is over as soon as anybody looks.
_OVER_MS: Final = 1
#: The tag of an orphan's record that says how many bytes had gone out.
DELIVERED: Final = "delivered_bytes"
#: Tokens of a price, and thousandths of a markup.
_PER_MTOK_PERMILLE: Final = 1_000_000 * 1000


class Orphans:
    """Of one worker. `reachable` says whether Redis is worth a try."""

    def __init__(self, directory: Path, ledger: Ledger, *, reachable: Callable[[], bool]) -> None:
        self._directory = directory
        self._ledger = ledger
        self._reachable = reachable

    async def tell_forever(self) -> None:
        """Look for what the dead left, and tell it."""
        while True:
            try:
                await self.tell_once()
            except StoreUnavailable as error:
                log.info("marks of streams wait for Redis: %s", error.detail)
            except OSError as error:
                log.error("marks of streams can't be read: %s", error)  # noqa: TRY400  it will be tried again
            await asyncio.sleep(LOOK_EVERY_S)

    async def tell_once(self) -> int:
        """Tell what was left until now; of how many streams.

        Raises:
            StoreUnavailable: the rest is told by a later call, of any process.
            OSError: the same.
        """
        count = 0
        if not self._reachable():
            return count
        for file, left in find_marks(self._directory):
            try:
                for each in left:
                    count += await self._tell(each)
            except BaseException:
                file.release()
                raise
            file.remove()
        return count

    async def _tell(self, left: Left) -> bool:
        known = await self._ledger.progress(left.partition, left.request_id)
        renewal = Renewal(left.request_id) if known is None else continue_to(known, left.bytes_out)
        unknown = await self._ledger.renew(left.partition, [renewal], lease_ms=_OVER_MS)
        if not unknown:
            log.warning("request %s: its worker is gone, after %d bytes", left.request_id, left.bytes_out)
        return not unknown


def continue_to(known: Renewal, bytes_out: int) -> Renewal:
    """What the renewal would have said when so many bytes had gone out; itself, where that can't be told."""
    try:
        record = decode_record(known.record)
        before = int(record.tags.get(DELIVERED, "0"))
    except ValueError:
        return known
    # A report is of the whole answer.
    if record.usage_source == "reported" or before <= 0 or bytes_out <= before:
        return known
    more_tokens = record.output_tokens * (bytes_out - before) // before
    cost_nanos = min(record.cost_nanos + _price(record, more_tokens), MAX_NANOS)
    record = msgspec.structs.replace(
        record,
        output_tokens=record.output_tokens + more_tokens,
        cost_nanos=cost_nanos,
        tags={**record.tags, DELIVERED: str(bytes_out)},
    )
    return Renewal(known.request_id, cost_nanos, known.tokens + more_tokens, encode_record(record))


def _price(record: UsageRecord, tokens: int) -> int:
    """Of so many tokens more; what cost nothing goes on costing nothing."""
    if record.cost_nanos == 0:
        return 0
    cost = -(-tokens * record.output_mtok_nanos * record.markup_permille // _PER_MTOK_PERMILLE)
    # With an account's own key only the fee is asked.
    return cost if record.fee_permille is None else fee_nanos(cost, record.fee_permille)
