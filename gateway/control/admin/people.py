"""People and accounts, for administrators: finding them, and shutting them out and letting them in again.

Rules:
- What becomes of who is shut out is told in `accounts/standing.py`. Workers are told of each key when it is done, so
  it holds for live traffic at once. What was begun goes on to its end and is paid for.
- Nobody suspends themselves.
- A search is by how an address, a user name or a name begins, in any case, or by a whole id.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.control import audit
from gateway.control.access import AccountRole, Role
from gateway.control.accounts.people import publish_keys
from gateway.control.accounts.standing import Standing, change_account, change_person
from gateway.control.errors import Conflict, NotFound
from gateway.control.paging import Number, Page
from gateway.control.route import Call, Nothing, Route
from gateway.infra.postgres import Row, load_queries
from gateway.kernel.money import usd

PersonStatus = Literal["active", "suspended", "deleted"]
AccountStatus = Literal["active", "suspended", "closed"]
Reason = Annotated[str, Meta(min_length=1, max_length=1000)]
#: Above every character, so the end of what begins with a text is the text and this.
LAST: Final = "\U0010ffff"
_TAG: Final = "administration"
_queries: Final = load_queries(Path(__file__).with_name("people.sql"))


class PersonFilter(Page, frozen=True, kw_only=True):
    """Whom to list."""

    search: Annotated[str, Meta(min_length=1, max_length=320)] | None = None
    role: Role | None = None
    status: PersonStatus | None = None


class PersonRow(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody, and the account they joined first."""

    id: int
    email: str | None
    username: str | None
    name: str | None
    role: Role
    status: PersonStatus
    verified: bool
    created_at: datetime
    last_login_at: datetime | None
    account_id: int | None
    account_name: str | None
    account_status: AccountStatus | None
    plan: str | None
    #: Dollars.
    credits: float | None


class People(msgspec.Struct, frozen=True, kw_only=True):
    """A page of them."""

    users: tuple[PersonRow, ...]
    #: Of all pages.
    total: int
    limit: int
    offset: int
    next_cursor: str | None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """An account somebody works in."""

    account_id: int
    name: str
    role: AccountRole
    plan: str
    status: AccountStatus
    credits: float


class PersonView(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody."""

    id: int
    email: str | None
    username: str | None
    name: str | None
    role: Role
    status: PersonStatus
    verified: bool
    created_at: datetime
    updated_at: datetime
    last_login_at: datetime | None
    accounts: tuple[Place, ...]


class AccountFilter(Page, frozen=True, kw_only=True):
    """Which accounts to list."""

    search: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    status: AccountStatus | None = None
    plan: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """An account, with its first owner."""

    account_id: int
    name: str
    plan: str
    status: AccountStatus
    #: Dollars.
    credits: float
    #: Living ones.
    keys: int
    user_id: int | None
    email: str | None
    created_at: datetime


class Accounts(msgspec.Struct, frozen=True, kw_only=True):
    """A page of them."""

    status: str
    accounts: tuple[AccountRow, ...]
    #: Of all pages.
    total: int
    limit: int
    offset: int
    next_cursor: str | None


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A member of an account."""

    user_id: int
    role: AccountRole
    email: str | None
    status: PersonStatus


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """What may be shown of a key."""

    id: str
    name: str
    environment: str
    last_four: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    disabled_at: datetime | None


class AccountView(msgspec.Struct, frozen=True, kw_only=True):
    """An account; of more than a thousand members or keys the first."""

    account_id: int
    name: str
    plan: str
    status: AccountStatus
    credits: float
    #: How far below zero it may go.
    overdraft: float
    created_at: datetime
    members: tuple[Worker, ...]
    keys: tuple[KeyRow, ...]


class Because(msgspec.Struct, frozen=True, kw_only=True):
    """Why; it stands in the audit log."""

    reason: Reason


async def list_people(call: Call[Nothing, PersonFilter]) -> People:
    """People, in the order of their ids. Find some by how their address, user name or name begins, or by id."""
    query, database = call.query, call.parts.database
    text = None if query.search is None else query.search.strip().lower()
    number = int(text) if text and text.isascii() and text.isdecimal() and len(text) < 19 else None
    wanted = (text, None if text is None else text + LAST, number, query.role, query.status)
    after = query.after(tuple[Number]) or (0,)
    rows = await database.fetch(_queries["list_people"], *wanted, *after, *query.window)
    page, next_cursor = query.cut(rows, "id")
    return People(
        users=tuple(_person(row) for row in page),
        total=await database.fetch_value(_queries["count_people"], *wanted),
        limit=query.limit,
        offset=query.offset,
        next_cursor=next_cursor,
    )


async def show_person(call: Call[Nothing, Nothing]) -> PersonView:
    """Somebody, and where they work."""
    return await _view_person(call)


async def suspend_person(call: Call[Because, Nothing]) -> PersonView:
    """Shut somebody out: their sessions end, and the keys they made are refused from now on."""
    return await _change_person(call, "suspended")


async def activate_person(call: Call[Because, Nothing]) -> PersonView:
    """Let somebody in again, and with them the keys they made."""
    return await _change_person(call, "active")


async def list_accounts(call: Call[Nothing, AccountFilter]) -> Accounts:
    """Accounts and what they have, in the order of their ids."""
    query, database = call.query, call.parts.database
    text = None if query.search is None else query.search.lower()
    wanted = (query.status, query.plan, text, None if text is None else text + LAST)
    after = query.after(tuple[Number]) or (0,)
    rows = await database.fetch(_queries["list_accounts"], *wanted, *after, *query.window)
    page, next_cursor = query.cut(rows, "id")
    return Accounts(
        status="success",
        accounts=tuple(_account(row) for row in page),
        total=await database.fetch_value(_queries["count_accounts"], *wanted),
        limit=query.limit,
        offset=query.offset,
        next_cursor=next_cursor,
    )


async def show_account(call: Call[Nothing, Nothing]) -> AccountView:
    """An account, its members and its keys."""
    return await _view_account(call)


async def suspend_account(call: Call[Because, Nothing]) -> AccountView:
    """Refuse all keys of an account from now on."""
    return await _change_account(call, "suspended")


async def activate_account(call: Call[Because, Nothing]) -> AccountView:
    """Accept the keys of an account again."""
    return await _change_account(call, "active")


async def _change_person(call: Call[Because, Nothing], standing: Standing) -> PersonView:
    user_id: int = call.params["user_id"]
    if user_id == call.actor.user_id:
        raise Conflict("Nobody suspends themselves.", code="yourself")
    async with call.parts.database.transaction() as session:
        keys = await change_person(
            session, audit.by(call), user_id=user_id, standing=standing, reason=call.body.reason
        )
    await publish_keys(call.parts, keys)
    return await _view_person(call)


async def _change_account(call: Call[Because, Nothing], standing: Standing) -> AccountView:
    account_id: int = call.params["account_id"]
    if account_id == call.actor.account_id:
        raise Conflict("Nobody suspends their own account.", code="yourself")
    async with call.parts.database.transaction() as session:
        keys = await change_account(
            session, audit.by(call), account_id=account_id, standing=standing, reason=call.body.reason
        )
    await publish_keys(call.parts, keys)
    return await _view_account(call)


async def _view_person(call: Call[Any, Nothing]) -> PersonView:  # Any: with a body or without one
    database, user_id = call.parts.database, call.params["user_id"]
    row = await database.fetch_row(_queries["read_person"], user_id)
    if row is None:
        raise NotFound
    places = await database.fetch(_queries["read_memberships"], user_id)
    accounts = tuple(
        msgspec.convert({**each, "credits": usd(each["balance_nanos"])}, Place) for each in map(dict, places)
    )
    return msgspec.convert({**row, "accounts": accounts}, PersonView)


async def _view_account(call: Call[Any, Nothing]) -> AccountView:  # Any: as above
    database, account_id = call.parts.database, call.params["account_id"]
    row = await database.fetch_row(_queries["read_account"], account_id)
    if row is None:
        raise NotFound
    members = await database.fetch(_queries["read_members"], account_id)
    keys = await database.fetch(_queries["read_keys"], account_id)
    return AccountView(
        account_id=row["id"],
        name=row["name"],
        plan=row["plan"],
        status=row["status"],
        credits=usd(row["balance_nanos"]),
        overdraft=usd(row["overdraft_nanos"]),
        created_at=row["created_at"],
        members=tuple(msgspec.convert(dict(each), Worker) for each in members),
        keys=tuple(msgspec.convert(dict(each), KeyRow) for each in keys),
    )


def _person(row: Row) -> PersonRow:
    balance = row["balance_nanos"]
    return msgspec.convert({**row, "credits": None if balance is None else usd(balance)}, PersonRow)


def _account(row: Row) -> AccountRow:
    return msgspec.convert({**row, "account_id": row["id"], "credits": usd(row["balance_nanos"])}, AccountRow)


ROUTES: Final = (
    Route(
        method="GET",
        path="/admin/users",
        handler=list_people,
        access="admin:users:list",
        summary="People",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/admin/users/{user_id:int}",
        handler=show_person,
        access="admin:users:read",
        summary="Somebody",
        tag=_TAG,
    ),
    Route(
        method="POST",
        path="/admin/users/{user_id:int}/suspend",
        handler=suspend_person,
        access="admin:users:update",
        summary="Shut somebody out",
        tag=_TAG,
        errors=(NotFound, Conflict),
    ),
    Route(
        method="POST",
        path="/admin/users/{user_id:int}/activate",
        handler=activate_person,
        access="admin:users:update",
        summary="Let somebody in again",
        tag=_TAG,
        errors=(NotFound, Conflict),
    ),
    Route(
        method="GET",
        path="/admin/balance",
        handler=list_accounts,
        access="admin:credits:read",
        summary="Accounts and what they have",
        tag=_TAG,
        aliases=("/admin/accounts",),
    ),
    Route(
        method="GET",
        path="/admin/accounts/{account_id:int}",
        handler=show_account,
        access="admin:users:read",
        summary="An account",
        tag=_TAG,
    ),
    Route(
        method="POST",
        path="/admin/accounts/{account_id:int}/suspend",
        handler=suspend_account,
        access="admin:users:update",
        summary="Refuse an account's keys",
        tag=_TAG,
        errors=(NotFound, Conflict),
    ),
    Route(
        method="POST",
        path="/admin/accounts/{account_id:int}/activate",
        handler=activate_account,
        access="admin:users:update",
        summary="Accept an account's keys again",
        tag=_TAG,
        errors=(NotFound, Conflict),
    ),
)
