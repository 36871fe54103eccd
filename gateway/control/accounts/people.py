"""People: making one, signing in, and proving an address. What routes do with it is in `auth.py` and `users.py`.

Rules:
- A person is made with an account, of which they are the owner, and its first key, all in one transaction. Of two
  that want the same address or name one gets it, and the other is told so.
- At another issuer, a person is who that issuer says. Only an address that it has verified leads to a person who is
  here already, and only to one whose address was verified here as well: else whoever registers other people's
  addresses first would be given their accounts. Such an address is taken away from whoever never proved it.
- What a mail proves is stored as a hash, is of use once, and proves the address it was sent to and no other.
"""

import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import asyncpg
import msgspec

from gateway.control import audit
from gateway.control.access import Role
from gateway.control.accounts import letters
from gateway.control.audit import By
from gateway.control.errors import Conflict, Invalid, NotPermitted
from gateway.control.issuers import Claims
from gateway.control.parts import Parts
from gateway.control.session import digest
from gateway.errors import StoreUnavailable
from gateway.infra.postgres import Session, load_queries
from gateway.kernel.keys import CHANNEL, NewKey, mint

queries: Final = load_queries(Path(__file__).with_name("people.sql"))
_queries: Final = queries

EMAIL: Final = r"^[!-?A-~]{1,64}@[A-Za-z0-9.\-]{1,253}$"
PRIMARY_KEY: Final = "primary"
Purpose = Literal["verify_email", "reset_password"]
SessionKind = Literal["cookie", "bearer"]
_TOKEN_BYTES: Final = 32


class NewPerson(msgspec.Struct, frozen=True, kw_only=True):
    """Who is to be made."""

    email: str | None
    verified: bool = False
    username: str | None = None
    name: str | None = None
    password_hash: str | None = None
    role: Role
    plan: str
    key_name: str = PRIMARY_KEY
    environment: str = "live"


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """Who was made."""

    user_id: int
    account_id: int
    key: NewKey


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A session; `token` exists nowhere else."""

    id: int
    token: str
    account_id: int
    expires_at: datetime


class EmailTaken(Conflict):
    """There is an account with this address already."""

    code = "email_taken"


class UsernameTaken(Conflict):
    """There is an account with this name already."""

    code = "username_taken"


def clean_email(text: str) -> str:
    """An address as it is kept: without space around it, in lower case.

    Raises:
        Invalid
    """
    email = text.strip().lower()
    if re.fullmatch(EMAIL[1:-1], email) is None:
        raise Invalid("This is no e-mail address.", loc=("body", "email"))
    return email


async def create_person(pepper: bytes, session: Session, who: By, new: NewPerson) -> Made:
    """Somebody with an account and its first key.

    Raises:
        EmailTaken, UsernameTaken: the transaction is of no use any more.
    """
    label = new.username or new.name or "account"
    try:
        user = await session.fetch_row(
            _queries["create_user"],
            new.email,
            new.username,
            new.name,
            new.password_hash,
            new.role,
            new.verified,
        )
    except asyncpg.UniqueViolationError as error:
        raise (UsernameTaken if error.constraint_name == "users_username" else EmailTaken) from error
    assert user is not None
    user_id: int = user["id"]
    account_id: int = await session.fetch_value(_queries["create_account"], label, new.plan)
    await session.execute(_queries["add_member"], account_id, user_id, "owner")
    key = mint(new.environment, pepper=pepper)
    await session.execute(
        _queries["create_primary_key"],
        key.id,
        account_id,
        user_id,
        new.key_name,
        new.environment,
        key.digest,
        key.last_four,
    )
    after = {"role": new.role, "plan": new.plan, "verified": new.verified}
    itself = msgspec.structs.replace(who, kind="user", user_id=user_id) if who.kind == "system" else who
    await audit.record(session, itself, "users.create", ("user", user_id), account_id=account_id, after=after)
    await audit.record(
        session,
        itself,
        "api_keys.create",
        ("key", key.id),
        account_id=account_id,
        after={"name": new.key_name, "environment": new.environment, "is_primary": True},
    )
    return Made(user_id=user_id, account_id=account_id, key=key)


async def find_or_create(parts: Parts, who: By, claims: Claims) -> tuple[int, Made | None]:
    """Who an issuer's word is about, and what was made where nobody was known.

    Raises:
        NotPermitted: the person is suspended, or nobody may register.
        Conflict: the same person signs in for the first time twice at once; once more will do.
    """
    email = None if claims.email is None else clean_email(claims.email)
    async with parts.database.transaction() as session:
        row = await session.fetch_row(_queries["find_by_identity"], claims.issuer, claims.subject, email)
        if row is not None:
            _check_status(row["status"])
            return row["id"], None
        if email is not None:
            found = await session.fetch_row(_queries["find_by_email"], email)
            if found is not None and found["verified"]:
                _check_status(found["status"])
                await session.execute(_queries["add_identity"], claims.issuer, claims.subject, found["id"], email)
                await audit.record(
                    session,
                    msgspec.structs.replace(who, kind="user", user_id=found["id"]),
                    "users.link",
                    ("user", found["id"]),
                    account_id=None,
                    after={"issuer": claims.issuer},
                )
                return found["id"], None
            if found is not None:
                # Whoever registered it never proved that it is theirs, and now somebody else has.
                await session.execute(_queries["give_up_email"], found["id"])
        if not parts.settings.identity.registration:
            raise NotPermitted("Nobody can register here; ask an administrator.", code="registration_closed")
        identity = parts.settings.identity
        new = NewPerson(
            email=email,
            verified=email is not None,
            name=(claims.name or "").strip()[:200] or None,
            role=identity.role,
            plan=identity.plan,
        )
        made = await create_person(parts.pepper, session, who, new)
        mine = await session.fetch_value(_queries["add_identity"], claims.issuer, claims.subject, made.user_id, email)
        if not mine:
            raise Conflict("This person is just being made; try again.", code="try_again", retry_after_s=1.0)
        return made.user_id, made


async def open_session(
    parts: Parts, session: Session, who: By, *, user_id: int, kind: SessionKind, account_id: int | None = None
) -> Opened:
    """Sign somebody in.

    Raises:
        NotPermitted: there is no account left to work in.
    """
    if account_id is None:
        account_id = await session.fetch_value(_queries["first_account"], user_id)
    if account_id is None:
        raise NotPermitted("There is no account that is open to you.", code="no_account")
    token = parts.sessions.mint()
    row = await session.fetch_row(
        _queries["open_session"],
        digest(token),
        user_id,
        account_id,
        kind,
        parts.settings.identity.session_s,
        who.ip,
        who.user_agent,
    )
    assert row is not None
    await session.execute(_queries["note_login"], user_id)
    return Opened(id=row["id"], token=token, account_id=account_id, expires_at=row["expires_at"])


async def send_proof(parts: Parts, session: Session, *, user_id: int, email: str, purpose: Purpose) -> None:
    """Send the link that proves an address, or sets a new password; what was sent before is of no use any more.

    Raises:
        Overloaded: too many letters wait.
    """
    identity, url = parts.settings.identity, parts.url
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    seconds = identity.verification_s if purpose == "verify_email" else identity.reset_s
    await session.execute(_queries["drop_tokens"], user_id, purpose)
    await session.execute(_queries["add_token"], digest(token), user_id, purpose, email, seconds)
    write = letters.verification if purpose == "verify_email" else letters.reset
    parts.mail.post(write(email, token, url=url))


async def publish_keys(parts: Parts, key_ids: list[str]) -> None:
    """Tell every worker that these keys changed; call it when the transaction is over. Without Redis nobody need be
    told: workers that lost it ask about every key once it is back.
    """
    for key_id in key_ids:
        try:
            await parts.redis.execute("PUBLISH", CHANNEL, key_id)
        except StoreUnavailable:
            return


def check_password(parts: Parts, password: str, *, email: str | None) -> None:
    """Refuse what is easily guessed. Length is what counts; there are no rules about characters.

    Raises:
        Invalid
    """
    least = parts.settings.identity.password_length_min
    if len(password) < least:
        raise Invalid(f"A password has at least {least} characters.", loc=("body", "password"))
    if len(set(password)) < least // 3:
        raise Invalid("This password repeats itself too much.", loc=("body", "password"))
    if email is not None and password.strip().lower() in (email, email.partition("@")[0]):
        raise Invalid("A password is not one's address.", loc=("body", "password"))


def _check_status(status: str) -> None:
    if status != "active":
        raise NotPermitted(f"This user is {status}.", code=f"user_{status}")
