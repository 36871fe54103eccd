"""Accounts with several members: who is in, as what, and how one comes in and goes.

Rules:
- Keys, balance and limits are the account's; a person works in one account at a time, which a session can change.
- An account always has an owner. Members are changed one after the other, under the account's lock, so that two
  owners can't make each other members at the same moment.
- Nobody is given a higher role than whoever gives it has, and nobody changes one that is higher than their own.
- An invitation is for the address it was sent to: it is accepted by somebody who has proved that address.
- Whoever leaves takes nothing along: their sessions there end, and unless it is asked otherwise the keys they made
  do.
"""

import secrets
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import asyncpg
import msgspec
from msgspec import Meta

from gateway.control import audit
from gateway.control.access import AccountRole, is_at_least
from gateway.control.accounts import letters
from gateway.control.accounts.people import clean_email, publish_keys, queries
from gateway.control.errors import Conflict, NotFound, NotPermitted
from gateway.control.paging import Limit, Number, Page
from gateway.control.route import Call, Done, Nothing, Route
from gateway.control.session import digest
from gateway.errors import BadRequest
from gateway.infra.postgres import Session, load_queries

#: Accounts that one person may own, by making them here.
OWNED_MAX: Final = 50
_TOKEN_BYTES: Final = 32
_TAG: Final = "teams"
_queries: Final = load_queries(Path(__file__).with_name("teams.sql"))

TeamName = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\S")]


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """An account."""

    id: int
    name: str
    status: str
    plan: str
    members: int
    created_at: datetime
    #: The caller's.
    role: AccountRole


class Teams(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[Team, ...]


class NewTeam(msgspec.Struct, frozen=True, kw_only=True):
    name: TeamName


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody in an account."""

    user_id: int
    role: AccountRole
    email: str | None
    username: str | None
    name: str | None
    status: str
    #: Since when.
    created_at: datetime
    last_login_at: datetime | None


class MemberPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of an account's members."""

    data: tuple[Member, ...]
    next_cursor: str | None


class MemberFilter(Page, frozen=True, kw_only=True):
    limit: Limit = 100


class RoleChange(msgspec.Struct, frozen=True, kw_only=True):
    role: AccountRole


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    #: Leave the keys that the member made as they are.
    keep_keys: bool = False


class NewInvitation(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asked to join, and as what."""

    email: Annotated[str, Meta(min_length=3, max_length=320)]
    role: Literal["admin", "member"] = "member"


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """An open one."""

    id: int
    email: str
    role: str
    invited_by: int | None
    created_at: datetime
    expires_at: datetime


class Invitations(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[Invitation, ...]


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    #: What was in the mail.
    token: Annotated[str, Meta(min_length=1, max_length=200)]


# -- rules
# -------------------------------------------------------------------------------------------------------------


def check_change(*, mine: AccountRole, theirs: AccountRole, wanted: AccountRole | None, is_self: bool) -> None:
    """Whether somebody of role `mine` may make a member of role `theirs` one of role `wanted`, or remove them (None).

    Raises:
        NotPermitted
    """
    if is_self and wanted is None:
        return
    if not is_at_least(mine, theirs) or (wanted is not None and not is_at_least(mine, wanted)):
        raise NotPermitted("Only an owner may do that to an owner.")


# -- handlers
# ----------------------------------------------------------------------------------------------------------


async def list_teams(call: Call[Nothing, Nothing]) -> Teams:
    """The accounts that you work in."""
    rows = await call.parts.database.fetch(_queries["list_accounts"], call.actor.person)
    return Teams(data=tuple(msgspec.convert(dict(row), Team) for row in rows))


async def create_team(call: Call[NewTeam, Nothing]) -> Team:
    """Make another account, of which you are the owner."""
    parts, user_id = call.parts, call.actor.person
    async with parts.database.transaction() as session:
        if await session.fetch_value(_queries["count_teams"], user_id) >= OWNED_MAX:
            raise Conflict(f"Nobody owns more than {OWNED_MAX} accounts.", code="too_many_accounts")
        account_id = await session.fetch_value(
            queries["create_account"], call.body.name.strip(), parts.settings.identity.plan
        )
        await session.execute(queries["add_member"], account_id, user_id, "owner")
        await audit.record(
            session, audit.by(call), "accounts.create", ("account", account_id), account_id=account_id, after={}
        )
        row = await session.fetch_row(_queries["read_team"], account_id)
    assert row is not None
    return msgspec.convert({**row, "role": "owner"}, Team)


async def show_team(call: Call[Nothing, Nothing]) -> Team:
    """The account that you work in now."""
    row = await call.parts.database.fetch_row(_queries["read_team"], call.actor.account_id)
    assert row is not None
    return msgspec.convert({**row, "role": call.actor.account_role}, Team)


async def rename_team(call: Call[NewTeam, Nothing]) -> Team:
    """Give the account another name."""
    account_id = call.actor.account_id
    async with call.parts.database.transaction() as session:
        await session.execute(_queries["rename"], account_id, call.body.name.strip())
        await audit.record(session, audit.by(call), "accounts.rename", ("account", account_id), account_id=account_id)
        row = await session.fetch_row(_queries["read_team"], account_id)
    assert row is not None
    return msgspec.convert({**row, "role": call.actor.account_role}, Team)


async def switch_team(call: Call[Nothing, Nothing]) -> Done:
    """Work in another of your accounts, with this session."""
    if call.actor.session_id is None:
        raise NotPermitted("A key belongs to one account; sign in to work in another.")
    found = await call.parts.database.fetch_value(
        _queries["switch_account"], call.actor.session_id, call.params["account_id"]
    )
    if found is None:
        raise NotFound
    return Done(message="This session works in that account now.")


async def list_members(call: Call[Nothing, MemberFilter]) -> MemberPage:
    """Who is in the account."""
    query = call.query
    after = query.after(tuple[Number]) or (0,)
    rows = await call.parts.database.fetch(_queries["list_members"], call.actor.account_id, *after, *query.window)
    page, next_cursor = query.cut(rows, "user_id")
    return MemberPage(data=tuple(msgspec.convert(dict(row), Member) for row in page), next_cursor=next_cursor)


async def change_member(call: Call[RoleChange, Nothing]) -> Done:
    """Give a member another role."""
    user_id, account_id, wanted = call.params["user_id"], call.actor.account_id, call.body.role
    async with call.parts.database.transaction() as session:
        theirs = await _lock_member(session, account_id, user_id)
        check_change(mine=call.actor.account_role, theirs=theirs, wanted=wanted, is_self=False)
        if theirs == "owner" and wanted != "owner":
            await _check_owner_left(session, account_id)
        await session.execute(_queries["set_role"], account_id, user_id, wanted)
        await audit.record(
            session,
            audit.by(call),
            "members.update",
            ("user", user_id),
            account_id=account_id,
            before={"role": theirs},
            after={"role": wanted},
        )
    return Done(message=f"The member is {wanted} now.")


async def remove_member(call: Call[Removal, Nothing]) -> Done:
    """Take a member out of the account, or leave it yourself. The keys they made end, unless they are to be kept."""
    user_id, account_id = call.params["user_id"], call.actor.account_id
    is_self = user_id == call.actor.user_id
    if not is_self:
        call.actor.check("teams:update", account_role="admin")
    revoked: list[str] = []
    async with call.parts.database.transaction() as session:
        theirs = await _lock_member(session, account_id, user_id)
        check_change(mine=call.actor.account_role, theirs=theirs, wanted=None, is_self=is_self)
        if theirs == "owner":
            await _check_owner_left(session, account_id)
        await session.execute(_queries["remove_member"], account_id, user_id)
        await session.execute(_queries["end_sessions"], account_id, user_id)
        if not call.body.keep_keys:
            revoked = [row["id"] for row in await session.fetch(_queries["revoke_members_keys"], account_id, user_id)]
        await audit.record(
            session,
            audit.by(call),
            "members.remove",
            ("user", user_id),
            account_id=account_id,
            before={"role": theirs},
            after={"keys_revoked": revoked},
        )
    await publish_keys(call.parts, revoked)
    return Done(message="The member is gone.")


async def invite(call: Call[NewInvitation, Nothing]) -> Invitation:
    """Ask somebody by mail to join the account."""
    parts, account_id = call.parts, call.actor.account_id
    email = clean_email(call.body.email)
    await parts.throttle.take(
        "invite",
        str(account_id),
        limit=parts.settings.identity.tries_per_client,
        window_s=parts.settings.identity.tries_window_s,
    )
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    async with parts.database.transaction() as session:
        account = await session.fetch_row(_queries["lock_account"], account_id)
        assert account is not None
        if await session.fetch_value(_queries["is_member_by_email"], account_id, email):
            raise Conflict("They are in this account already.", code="member_already")
        await session.execute(_queries["drop_expired_invitation"], account_id, email)
        try:
            row = await session.fetch_row(
                _queries["invite"],
                account_id,
                email,
                call.body.role,
                digest(token),
                call.actor.user_id,
                parts.settings.identity.invitation_s,
            )
        except asyncpg.UniqueViolationError as error:
            raise Conflict("They were asked already; withdraw that invitation first.", code="invited") from error
        assert row is not None
        await audit.record(
            session,
            audit.by(call),
            "invitations.create",
            ("invitation", row["id"]),
            account_id=account_id,
            after={"role": call.body.role},
        )
        parts.mail.post(letters.invitation(email, token, account=account["name"], url=parts.url))
    return Invitation(**row, email=email, role=call.body.role, invited_by=call.actor.user_id)


async def list_invitations(call: Call[Nothing, Nothing]) -> Invitations:
    """Who was asked and has not answered."""
    rows = await call.parts.database.fetch(_queries["list_invitations"], call.actor.account_id)
    return Invitations(data=tuple(msgspec.convert(dict(row), Invitation) for row in rows))


async def withdraw(call: Call[Nothing, Nothing]) -> Done:
    """Take an invitation back."""
    account_id, invitation_id = call.actor.account_id, call.params["invitation_id"]
    async with call.parts.database.transaction() as session:
        row = await session.fetch_row(_queries["withdraw"], invitation_id, account_id)
        if row is None:
            raise NotFound
        await audit.record(
            session,
            audit.by(call),
            "invitations.withdraw",
            ("invitation", invitation_id),
            account_id=account_id,
            before={"role": row["role"]},
        )
    return Done(message="The invitation is of no use any more.")


async def accept(call: Call[Acceptance, Nothing]) -> Team:
    """Join an account with what was in the mail."""
    user_id = call.actor.person
    async with call.parts.database.transaction() as session:
        person = await session.fetch_row(queries["read_person"], user_id)
        assert person is not None
        row = await session.fetch_row(_queries["accept"], digest(call.body.token))
        if row is None:
            raise BadRequest("This invitation is over, or was used already.", code="token_over")
        if not person["verified"] or (person["email"] or "").lower() != row["email"].lower():
            # Rolled back, so that whoever it was meant for can still use it.
            raise NotPermitted(
                "It was sent to another address than yours, or yours is not confirmed.", code="other_address"
            )
        await session.execute(queries["add_member"], row["account_id"], user_id, row["role"])
        await audit.record(
            session,
            audit.by(call),
            "members.join",
            ("user", user_id),
            account_id=row["account_id"],
            after={"role": row["role"], "invitation": row["id"]},
        )
        team = await session.fetch_row(_queries["read_team"], row["account_id"])
    assert team is not None
    return msgspec.convert({**team, "role": row["role"]}, Team)


async def _lock_member(session: Session, account_id: int, user_id: int) -> AccountRole:
    """A member's role, until the transaction ends.

    Raises:
        NotFound
    """
    await session.fetch_row(_queries["lock_account"], account_id)
    role: AccountRole | None = await session.fetch_value(_queries["find_member"], account_id, user_id)
    if role is None:
        raise NotFound
    return role


async def _check_owner_left(session: Session, account_id: int) -> None:
    if await session.fetch_value(_queries["count_owners"], account_id) < 2:
        raise Conflict("An account has an owner; make somebody else one first.", code="last_owner")


def _route(method: Any, path: str, handler: Any, summary: str, **options: Any) -> Route:  # Any: as in Route
    access = "teams:read" if method == "GET" else "teams:update"
    return Route(method=method, path=path, handler=handler, access=access, summary=summary, tag=_TAG, **options)


ROUTES: Final = (
    _route("GET", "/teams", list_teams, "Your accounts"),
    _route("POST", "/teams", create_team, "Make an account", errors=(Conflict,)),
    _route("POST", "/teams/{account_id:int}/switch", switch_team, "Work in another account"),
    _route("GET", "/team", show_team, "The account"),
    _route("PUT", "/team", rename_team, "Rename the account", account_role="admin"),
    _route("GET", "/team/members", list_members, "Members"),
    _route(
        "PUT",
        "/team/members/{user_id:int}",
        change_member,
        "Change a member's role",
        account_role="admin",
        errors=(Conflict,),
    ),
    _route("DELETE", "/team/members/{user_id:int}", remove_member, "Remove a member", errors=(Conflict,)),
    _route("GET", "/team/invitations", list_invitations, "Open invitations", account_role="admin"),
    _route("POST", "/team/invitations", invite, "Invite somebody", account_role="admin", errors=(Conflict,)),
    _route(
        "DELETE", "/team/invitations/{invitation_id:int}", withdraw, "Withdraw an invitation", account_role="admin"
    ),
    _route("POST", "/team/invitations/accept", accept, "Join an account"),
)
