"""Roles: who is an administrator, a developer, a user, and what that permits. What each may do is in `access.py`.

The last administrator can't give the role up; see `standing.py`.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from gateway.control import audit
from gateway.control.access import PERMISSIONS, ROLES, Role
from gateway.control.accounts.standing import keep_an_administrator
from gateway.control.audit import By
from gateway.control.errors import Conflict, NotFound
from gateway.control.paging import Limit, Number, Page
from gateway.control.route import ID_MAX, Call, Nothing, Route
from gateway.infra.postgres import Session, load_queries

_TAG: Final = "roles"
queries: Final = load_queries(Path(__file__).with_name("roles.sql"))

UserId = Annotated[int, Meta(ge=1, le=ID_MAX)]


class RoleUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """Whose role is to be what, and why."""

    user_id: UserId
    new_role: Role
    reason: Annotated[str, Meta(max_length=1000)] | None = None


class RoleUpdated(msgspec.Struct, frozen=True, kw_only=True):
    success: bool
    user_id: int
    old_role: Role
    new_role: Role


class RoleView(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's role, and what it permits."""

    user_id: int
    role: Role
    permissions: tuple[str, ...]


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    role: Role
    resource: str
    action: str
    allowed: bool


class Permissions(msgspec.Struct, frozen=True, kw_only=True):
    role: Role
    permissions: tuple[Permission, ...]


class RoleHolder(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    email: str | None
    username: str | None
    name: str | None
    role: Role
    status: str
    created_at: datetime


class RoleFilter(Page, frozen=True, kw_only=True):
    limit: Limit = 100


class RoleHolders(msgspec.Struct, frozen=True, kw_only=True):
    role: Role
    users: tuple[RoleHolder, ...]
    total: int
    next_cursor: str | None


class ChangeFilter(Page, frozen=True, kw_only=True):
    user_id: UserId | None = None


class RoleChanged(msgspec.Struct, frozen=True, kw_only=True):
    """One change."""

    id: int
    user_id: int
    previous_role: str | None
    new_role: str | None
    changed_by: int | None
    actor_kind: str
    reason: str | None
    ip: str | None
    request_id: str | None
    timestamp: datetime


class RoleChanges(msgspec.Struct, frozen=True, kw_only=True):
    logs: tuple[RoleChanged, ...]
    next_cursor: str | None


async def change_role(session: Session, who: By, *, user_id: int, role: Role, reason: str | None) -> Role:
    """Give somebody a role; the one they had.

    Raises:
        NotFound. Conflict: there would be no administrator any more.
    """
    if role != "admin":
        await keep_an_administrator(session, user_id)
    row = await session.fetch_row(queries["find_role"], user_id)
    if row is None:
        raise NotFound
    before: Role = row["role"]
    await session.execute(queries["set_role"], user_id, role)
    await audit.record(
        session,
        who,
        "roles.update",
        ("user", user_id),
        account_id=None,
        before={"role": before},
        after={"role": role},
        reason=reason,
    )
    return before


async def update_role(call: Call[RoleUpdate, Nothing]) -> RoleUpdated:
    """Give somebody another role. It holds from their next request on."""
    body = call.body
    async with call.parts.database.transaction() as session:
        before = await change_role(
            session, audit.by(call), user_id=body.user_id, role=body.new_role, reason=body.reason
        )
    return RoleUpdated(success=True, user_id=body.user_id, old_role=before, new_role=body.new_role)


async def show_role(call: Call[Nothing, Nothing]) -> RoleView:
    """Somebody's role, and what it permits."""
    row = await call.parts.database.fetch_row(queries["read_role"], call.params["user_id"])
    if row is None:
        raise NotFound
    permissions = tuple(sorted(PERMISSIONS[row["role"]]))
    return RoleView(user_id=row["id"], role=row["role"], permissions=permissions)


async def list_holders(call: Call[Nothing, RoleFilter]) -> RoleHolders:
    """Who has a role."""
    role, query, database = _role(call), call.query, call.parts.database
    after = query.after(tuple[Number]) or (0,)
    rows = await database.fetch(queries["list_by_role"], role, *after, *query.window)
    page, next_cursor = query.cut(rows, "id")
    return RoleHolders(
        role=role,
        users=tuple(msgspec.convert(dict(row), RoleHolder) for row in page),
        total=await database.fetch_value(queries["count_by_role"], role),
        next_cursor=next_cursor,
    )


async def list_permissions(call: Call[Nothing, Nothing]) -> Permissions:
    """What a role permits."""
    role = _role(call)
    split = [permission.partition(":") for permission in sorted(PERMISSIONS[role])]
    rows = [Permission(role=role, resource=left, action=right, allowed=True) for left, _, right in split]
    return Permissions(role=role, permissions=tuple(rows))


async def list_changes(call: Call[Nothing, ChangeFilter]) -> RoleChanges:
    """Who gave whom which role, and why; newest first."""
    query = call.query
    after = query.after(tuple[Number]) or (None,)
    user_id = None if query.user_id is None else str(query.user_id)
    rows = await call.parts.database.fetch(queries["list_role_changes"], user_id, *after, *query.window)
    page, next_cursor = query.cut(rows, "id")
    return RoleChanges(logs=tuple(_changed(row) for row in page), next_cursor=next_cursor)


def _changed(row: Any) -> RoleChanged:  # Any: a row
    before, after = (msgspec.json.decode(row[name] or "{}", type=dict[str, str]) for name in ("before", "after"))
    return RoleChanged(
        id=row["id"],
        user_id=int(row["object_id"]),
        previous_role=before.get("role"),
        new_role=after.get("role"),
        changed_by=row["actor_user_id"],
        actor_kind=row["actor_kind"],
        reason=row["reason"],
        ip=row["ip"],
        request_id=row["request_id"],
        timestamp=row["at"],
    )


def _role(call: Call[Any, Any]) -> Role:  # Any: of either list
    for role in ROLES:
        if role == call.params["role"]:
            return role
    raise NotFound(f"Roles are {', '.join(ROLES)}.")


ROUTES: Final = (
    Route(
        method="POST",
        path="/admin/roles/update",
        handler=update_role,
        access="admin:roles:update",
        summary="Give somebody a role",
        tag=_TAG,
        errors=(NotFound, Conflict),
    ),
    Route(
        method="GET",
        path="/admin/roles/audit/log",
        handler=list_changes,
        access="admin:roles:list",
        summary="Changes of roles",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/admin/roles/list/{role}",
        handler=list_holders,
        access="admin:roles:list",
        summary="Who has a role",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/admin/roles/permissions/{role}",
        handler=list_permissions,
        access="admin:roles:read",
        summary="What a role permits",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/admin/roles/{user_id:int}",
        handler=show_role,
        access="admin:roles:read",
        summary="Somebody's role",
        tag=_TAG,
    ),
)
