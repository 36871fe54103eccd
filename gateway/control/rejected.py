"""Deals with usage records that were set aside, and leaves a line in the audit log; for routes and commands."""

from gateway.control import audit
from gateway.infra.postgres import Database, Session
from gateway.kernel.history import Commands
from gateway.kernel.rejects import Reject, discard_reject, retry_reject


async def retry(database: Database, redis: Commands, who: audit.By, reject_id: int, *, reason: str) -> Reject | None:
    """Have a record settled again; None if there is no such one.

    Raises:
        StoreUnavailable
    """
    async with database.transaction() as session:
        reject = await retry_reject(session, redis, reject_id)
        if reject is not None:
            await _record(session, who, "usage.retry", reject, reason)
    return reject


async def discard(database: Database, who: audit.By, reject_id: int, *, reason: str) -> Reject | None:
    """Forget a record; None if there is no such one.

    Raises:
        StoreUnavailable
    """
    async with database.transaction() as session:
        reject = await discard_reject(session, reject_id)
        if reject is not None:
            await _record(session, who, "usage.discard", reject, reason)
    return reject


async def _record(session: Session, who: audit.By, action: str, reject: Reject, reason: str) -> None:
    facts = {"request_id": reject.request_id, "cost_nanos": reject.cost_nanos, "set_aside": reject.reason}
    # An account that nobody knows can't be whose line it is, and numbers may be anything in what is no record.
    account_id = reject.account_id if reject.account_id is not None and 0 < reject.account_id < 2**63 else None
    await audit.record(
        session, who, action, ("reject", reject.id), account_id=account_id, before=facts, reason=reason
    )
