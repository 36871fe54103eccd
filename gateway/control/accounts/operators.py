"""What whoever runs the machine may do to people without signing in: `gateway users ...` calls this."""

from datetime import datetime
from typing import Final

import msgspec

from gateway.control import audit
from gateway.control.access import Role
from gateway.control.accounts.people import NewPerson, clean_email, create_person
from gateway.control.accounts.people import queries as people_queries
from gateway.control.accounts.roles import change_role, queries
from gateway.control.accounts.standing import Standing, change_person
from gateway.control.errors import Conflict
from gateway.errors import ConfigError
from gateway.infra.postgres import Database, Session
from gateway.kernel.keys import NewKey
from gateway.settings import UNLIMITED

PAGE: Final = 500


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """What a list of people shows."""

    id: int
    email: str | None
    username: str | None
    role: Role
    status: str
    verified: bool
    created_at: datetime
    last_login_at: datetime | None


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """Who was made; no key where they were here already."""

    user_id: int
    account_id: int | None
    key: NewKey | None


async def create(
    database: Database,
    *,
    pepper: bytes,
    email: str,
    password_hash: str | None,
    role: Role,
    plan: str = UNLIMITED,
    name: str | None = None,
) -> Created:
    """Make somebody, whose address needs no proof: the operator vouches for it. Whoever is here already can be made
    an administrator, with a new password: the way back in when nobody is one any more.

    Raises:
        ConfigError: it is no address. Conflict: the address is taken.
    """
    email = clean_email(email)
    async with database.transaction() as session:
        found = await session.fetch_row(queries["find_by_address"], email)
        if found is not None:
            if role != "admin" or found["status"] != "active":
                raise Conflict(f"User {found['id']} has that address, and is {found['status']}.")
            await change_role(session, audit.OPERATOR, user_id=found["id"], role=role, reason="by a command")
            await session.execute(queries["make_admin"], found["id"], role, password_hash)
            # Whoever was signed in was it under the old password.
            if password_hash is not None:
                await session.execute(people_queries["close_sessions"], found["id"], None)
            return Created(user_id=found["id"], account_id=None, key=None)
        new = NewPerson(email=email, verified=True, name=name, password_hash=password_hash, role=role, plan=plan)
        made = await create_person(pepper, session, audit.OPERATOR, new)
    return Created(user_id=made.user_id, account_id=made.account_id, key=made.key)


async def list_people(database: Database, *, after_id: int = 0, limit: int = PAGE) -> list[Person]:
    """People with ids above `after_id`, in the order of their ids."""
    rows = await database.fetch(queries["list_people"], after_id, limit)
    return [msgspec.convert(dict(row), Person) for row in rows]


async def set_standing(database: Database, *, who: str, standing: Standing) -> tuple[int, list[str]]:
    """Suspend somebody, and so every key they made, or let them in again; their id, and the keys to tell workers of.

    Raises:
        ConfigError: there is no such person. Conflict: it is the last administrator.
    """
    async with database.transaction() as session:
        user_id = await _find(session, who)
        keys = await change_person(session, audit.OPERATOR, user_id=user_id, standing=standing, reason="by a command")
    return user_id, keys


async def set_role(database: Database, *, who: str, role: Role) -> int:
    """Give somebody a role; their id.

    Raises:
        ConfigError: there is no such person. Conflict: it is the last administrator.
    """
    async with database.transaction() as session:
        user_id = await _find(session, who)
        await change_role(session, audit.OPERATOR, user_id=user_id, role=role, reason="by a command")
    return user_id


async def _find(session: Session, who: str) -> int:
    """Somebody by id or address.

    Raises:
        ConfigError
    """
    if who.isdecimal():
        found = await session.fetch_row(queries["find_role"], int(who))
    else:
        found = await session.fetch_row(queries["find_by_address"], who)
    if found is None:
        raise ConfigError("nobody has that id or address; `gateway users list` shows them all")
    user_id: int = found["id"]
    return user_id
