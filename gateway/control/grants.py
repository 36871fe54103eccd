"""Credit that administrators and operators give and take, for routes and commands: an entry of the ledger and
a line in the audit log.
"""

from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

from gateway.control import audit
from gateway.infra.postgres import Session, load_queries
from gateway.kernel.journal import Entry, post
from gateway.kernel.money import Nanos

_queries: Final = load_queries(Path(__file__).with_name("grants.sql"))


class Granted(NamedTuple):
    """The entry, and whether this made it: a repeat from before gets the first one, and leaves no line."""

    entry: Entry
    is_new: bool


async def grant(
    session: Session,
    who: audit.By,
    account_id: int,
    *,
    amount_nanos: Nanos,
    idempotency_key: str,
    reason: str | None,
) -> Granted:
    """Give an account credit, or take it (a negative amount), once for each key.

    Raises:
        UnknownAccount, KeyReused, BalanceOutOfBounds: nothing was entered.
    """
    entry = await post(
        session,
        account_id,
        type="admin_credit" if amount_nanos > 0 else "admin_debit",
        amount_nanos=amount_nanos,
        idempotency_key=idempotency_key,
        reason=reason,
    )
    is_new = entry.created_at == await session.fetch_value(_queries["now"])
    if is_new:
        await audit.record(
            session,
            who,
            "credits.add" if amount_nanos > 0 else "credits.deduct",
            ("account", account_id),
            account_id=account_id,
            before={"credits": _text(entry.balance_after_nanos - entry.amount_nanos)},
            after={"credits": _text(entry.balance_after_nanos), "entry": entry.seq},
            reason=reason,
        )
    return Granted(entry, is_new)


def _text(nanos: Nanos) -> str:
    """Dollars, exactly."""
    return format((Decimal(nanos) / 10**9).normalize(), "f")
