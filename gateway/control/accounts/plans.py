"""The plan of an account: which it is on. What plans there are and allow is in `config/plans.toml`.

An account can be put on a plan that is configured, or on `unlimited`. Where a plan is taken out of the configuration
later, its accounts have what the row `none` allows, until they are given another.
"""

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gateway.control import audit
from gateway.control.accounts.key_facts import KeyLimits, show_limits
from gateway.control.accounts.people import publish_keys
from gateway.control.accounts.users import plan_limits
from gateway.control.audit import By
from gateway.control.errors import Conflict, Invalid, NotFound
from gateway.control.route import ID_MAX, Call, Nothing, Route
from gateway.infra.postgres import Session, load_queries
from gateway.settings import UNLIMITED, Settings

_queries: Final = load_queries(Path(__file__).with_name("plans.sql"))

Id = Annotated[int, Meta(ge=1, le=ID_MAX)]
PlanName = Annotated[str, Meta(min_length=1, max_length=64)]


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Which account is put on which plan. Of a person it is the one account that they own."""

    account_id: Id | None = None
    user_id: Id | None = None
    plan_id: PlanName
    reason: Annotated[str, Meta(max_length=1000)] | None = None


class Assigned(msgspec.Struct, frozen=True, kw_only=True):
    success: bool
    account_id: int
    old_plan: str
    plan_id: str
    rate_limits: KeyLimits
    #: Keys whose limits changed with it.
    keys: int


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What an assignment did; the keys are to be published."""

    old_plan: str
    key_ids: list[str]


async def assign_plan(
    session: Session, who: By, settings: Settings, *, account_id: int, plan: str, reason: str | None
) -> Moved:
    """Put an account on a plan.

    Raises:
        NotFound: there is no such account. Invalid: there is no such plan. Conflict: the account is closed.
    """
    if plan != UNLIMITED and plan not in settings.plans:
        names = ", ".join(sorted({*settings.plans, UNLIMITED}))
        raise Invalid(f"There is no plan {plan!r}; there are {names}.", loc=("body", "plan_id"))
    row = await session.fetch_row(_queries["lock_plan"], account_id)
    if row is None:
        raise NotFound
    if row["status"] == "closed":
        raise Conflict("This account is closed.", code="account_closed")
    await session.execute(_queries["set_plan"], account_id, plan)
    await audit.record(
        session,
        who,
        "plans.assign",
        ("account", account_id),
        account_id=account_id,
        before={"plan": row["plan"]},
        after={"plan": plan},
        reason=reason,
    )
    keys = await session.fetch(_queries["living_keys"], account_id)
    return Moved(old_plan=row["plan"], key_ids=[each["id"] for each in keys])


async def find_account(session: Session, user_id: int) -> int:
    """The one account that a person owns.

    Raises:
        NotFound: there is none. Conflict: there are several.
    """
    rows = await session.fetch(_queries["owned_accounts"], user_id)
    if not rows:
        raise NotFound
    if len(rows) > 1:
        raise Conflict("This person owns several accounts; name the one that is meant.", code="several_accounts")
    account_id: int = rows[0]["account_id"]
    return account_id


async def assign(call: Call[Assignment, Nothing]) -> Assigned:
    """Put an account on another plan. Its limits hold within a second for all of its keys."""
    parts, body = call.parts, call.body
    if (body.account_id is None) == (body.user_id is None):
        raise Invalid("Name either an account or a person.", loc=("body", "account_id"))
    async with parts.database.transaction() as session:
        account_id = body.account_id
        if account_id is None:
            assert body.user_id is not None
            account_id = await find_account(session, body.user_id)
        moved = await assign_plan(
            session, audit.by(call), parts.settings, account_id=account_id, plan=body.plan_id, reason=body.reason
        )
    await publish_keys(parts, moved.key_ids)
    return Assigned(
        success=True,
        account_id=account_id,
        old_plan=moved.old_plan,
        plan_id=body.plan_id,
        rate_limits=show_limits(plan_limits(parts, body.plan_id)),
        keys=len(moved.key_ids),
    )


ROUTES: Final = (
    Route(
        method="POST",
        path="/admin/assign-plan",
        aliases=("/plans/assign",),
        handler=assign,
        access="admin:plans:update",
        summary="Put an account on a plan",
        tag="plans",
        errors=(NotFound,),
    ),
)
