"""Who is in good standing: shutting people and accounts out, and letting them in again. For administrators and for
commands on the machine alike.

Rules:
- A person who is suspended signs in nowhere, and the keys they made are refused; an account that is suspended has all
  its keys refused, whoever made them.
- There is always an active administrator. Whatever could leave none (a suspension, another role, a deletion) asks
  `keep_an_administrator` first, whose lock puts all of these one after the other.
- What is deleted or closed stays so.
- Callers publish the keys that are answered with once the transaction is over; so it holds for live traffic.
"""

from pathlib import Path
from typing import Final, Literal

from gateway.control import audit
from gateway.control.audit import By
from gateway.control.errors import Conflict, NotFound
from gateway.infra.postgres import Session, load_queries

Standing = Literal["active", "suspended"]
_queries: Final = load_queries(Path(__file__).with_name("standing.sql"))
_VERBS: Final = {"active": "activate", "suspended": "suspend"}


async def keep_an_administrator(session: Session, user_id: int) -> None:
    """Until this transaction ends, nobody else changes who is an administrator.

    Raises:
        Conflict: this is the last one.
    """
    admins = await session.fetch(_queries["lock_admins"])
    if [row["id"] for row in admins] == [user_id]:
        raise Conflict("There has to be an administrator; make somebody else one first.", code="last_admin")


async def change_person(
    session: Session, who: By, *, user_id: int, standing: Standing, reason: str | None
) -> list[str]:
    """Suspend somebody, which ends their sessions, or let them in again. The ids of the keys they made.

    Raises:
        NotFound. Conflict: there would be no administrator any more.
    """
    if standing == "suspended":
        await keep_an_administrator(session, user_id)
    row = await session.fetch_row(_queries["lock_person"], user_id)
    if row is None or row["status"] == "deleted":
        raise NotFound
    await session.execute(_queries["set_person_status"], user_id, standing)
    if standing == "suspended":
        await session.execute(_queries["end_sessions"], user_id)
    await audit.record(
        session,
        who,
        f"users.{_VERBS[standing]}",
        ("user", user_id),
        account_id=None,
        before={"status": row["status"]},
        after={"status": standing},
        reason=reason,
    )
    return [each["id"] for each in await session.fetch(_queries["keys_of_person"], user_id)]


async def change_account(
    session: Session, who: By, *, account_id: int, standing: Standing, reason: str | None
) -> list[str]:
    """Suspend an account, or let it in again. The ids of its keys.

    Raises:
        NotFound. Conflict: it is closed.
    """
    row = await session.fetch_row(_queries["lock_account"], account_id)
    if row is None:
        raise NotFound
    if row["status"] == "closed":
        raise Conflict("This account is closed for good.", code="account_closed")
    await session.execute(_queries["set_account_status"], account_id, standing)
    await audit.record(
        session,
        who,
        f"accounts.{_VERBS[standing]}",
        ("account", account_id),
        account_id=account_id,
        before={"status": row["status"]},
        after={"status": standing},
        reason=reason,
    )
    return [each["id"] for each in await session.fetch(_queries["keys_of_account"], account_id)]
