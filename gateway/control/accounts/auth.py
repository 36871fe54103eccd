"""Coming in: registration, sign-in, verification, new passwords, sessions.

Rules:
- Whether an address is known is told to nobody who asks for a password or a link: the answer is the same, what
  it takes to find out happens after it, and a wrong password costs as much as a right one.
- Registration does tell: it answers with a key, and of two who want one address the other has to hear of it. So it is
  counted for each client and each address, a stranger learns of few addresses, and the owner of a taken one is
  written to.
- A key is shown when it is made and never again: who comes back gets a session, and a key only by asking for a new
  one.
- Tries are counted for each address and for each client, before anything is looked up.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.control import audit
from gateway.control.access import PUBLIC, SIGNED_IN
from gateway.control.accounts import letters
from gateway.control.accounts.people import (
    EmailTaken,
    Made,
    NewPerson,
    Opened,
    SessionKind,
    UsernameTaken,
    check_password,
    clean_email,
    create_person,
    find_or_create,
    open_session,
    publish_keys,
    queries,
    send_proof,
)
from gateway.control.errors import Invalid, NotFound, NotPermitted, SignInNeeded
from gateway.control.issuers import IssuerAway
from gateway.control.parts import Parts
from gateway.control.passwords import LENGTH_MAX
from gateway.control.route import Call, Done, Nothing, Route
from gateway.control.session import digest
from gateway.errors import BadRequest, RateLimited
from gateway.kernel.journal import read_balance
from gateway.kernel.keys import mint
from gateway.kernel.money import usd

Email = Annotated[str, Meta(min_length=3, max_length=320)]
Password = Annotated[str, Meta(min_length=1, max_length=LENGTH_MAX)]
Token = Annotated[str, Meta(min_length=1, max_length=16 * 1024)]
Username = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
KeyName = Annotated[str, Meta(min_length=1, max_length=200)]
Environment = Literal["live", "test", "staging", "dev", "development"]

_TAG: Final = "auth"


class LinkedAccount(msgspec.Struct, frozen=True, kw_only=True):
    """What a client says of a person at Privy. Only to be shown: who somebody is, the token says."""

    type: str | None = None
    email: str | None = None
    name: str | None = None


class PrivyUser(msgspec.Struct, frozen=True, kw_only=True):
    """What a client says of a person at Privy."""

    id: str | None = None
    linked_accounts: tuple[LinkedAccount, ...] = ()


class SignIn(msgspec.Struct, frozen=True, kw_only=True):
    """Either an address and a password, or a token of another issuer."""

    email: Email | None = None
    password: Password | None = None
    #: A token of Privy or of an OpenID provider; also as `privy_access_token`.
    token: Token | None = None
    privy_access_token: Token | None = None
    user: PrivyUser | None = None
    #: How the session is handed out: as a token in the answer, or as a cookie for pages of this gateway.
    session: Literal["bearer", "cookie"] = "bearer"
    #: Also make a key, for whoever has one already.
    create_key: bool = False


class SignedIn(msgspec.Struct, frozen=True, kw_only=True):
    """Who came in, and with what to go on."""

    success: bool
    message: str
    user_id: int
    account_id: int
    #: Only of a key that was just made; it can't be shown again.
    api_key: str | None
    auth_method: str
    privy_user_id: str | None
    is_new_user: bool
    display_name: str
    email: str | None
    #: Dollars.
    credits: float
    timestamp: datetime
    #: `Authorization: Bearer ...` of a session; null where it is in a cookie.
    session_token: str | None
    session_expires_at: datetime
    #: What pages send as `x-csrf-token` with whatever changes something; null without a cookie.
    csrf_token: str | None


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody new."""

    email: Email
    username: Username | None = None
    #: Without one, the way back in is a link sent to the address.
    password: Password | None = None
    auth_method: Literal["email", "wallet", "google", "github"] = "email"
    environment_tag: Environment = "live"
    key_name: KeyName = "primary"


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """Who is new here."""

    user_id: int
    account_id: int
    username: str | None
    email: str
    #: Shown this once.
    api_key: str
    credits: float
    environment_tag: str
    scope_permissions: dict[str, tuple[str, ...]]
    subscription_status: str
    message: str
    timestamp: datetime
    session_token: str | None


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """To whom."""

    email: Email | None = None


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What was in a mail."""

    token: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class NewPassword(msgspec.Struct, frozen=True, kw_only=True):
    """A new password, and what was in the mail."""

    password: Password
    token: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class ChangedPassword(msgspec.Struct, frozen=True, kw_only=True):
    """A new password, and the one before; null where there was none."""

    new_password: Password
    current_password: Password | None = None


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """Where somebody is signed in."""

    id: int
    kind: str
    account_id: int
    created_at: datetime
    expires_at: datetime
    ip: str | None
    user_agent: str | None
    is_current: bool


class SessionList(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[SessionView, ...]


class Whoami(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, as this gateway sees it."""

    kind: str
    user_id: int | None
    account_id: int
    role: str
    account_role: str
    key_id: str | None
    session_id: int | None
    csrf_token: str | None


# -- handlers --------------------------------------------------------------------------------------------------------


async def sign_in(call: Call[SignIn, Nothing]) -> SignedIn:
    """With an address and a password, or with a token of Privy or an OpenID provider. Whoever a token is about and is
    not known yet is registered; its first key is in the answer, this once. Who comes back gets a session.
    """
    token = call.body.token or call.body.privy_access_token
    await count_client(call, "sign in")
    if token is not None:
        return await _sign_in_by_token(call, token)
    if call.body.email is None or call.body.password is None:
        raise Invalid("Give an address and a password, or a token.")
    return await _sign_in_by_password(call, clean_email(call.body.email), call.body.password)


async def register(call: Call[Registration, Nothing]) -> Registered:
    """Make a person, an account and its first key, which is shown this once. A link is sent to prove the address."""
    parts, body = call.parts, call.body
    if not parts.settings.identity.registration:
        raise NotPermitted("Nobody can register here; ask an administrator.", code="registration_closed")
    await count_client(call, "register")
    email = clean_email(body.email)
    await _count_address(call, "register", email)
    password_hash = None
    if body.password is not None:
        check_password(parts, body.password, email=email)
        password_hash = await parts.passwords.hash(body.password)
    new = NewPerson(
        email=email,
        username=None if body.username is None else body.username.strip() or None,
        password_hash=password_hash,
        role=parts.settings.identity.role,
        plan=parts.settings.identity.plan,
        key_name=body.key_name.strip() or "primary",
        environment="dev" if body.environment_tag == "development" else body.environment_tag,
    )
    try:
        made, opened = await _make(call, new, email)
    except EmailTaken:
        parts.tasks.spawn(_tell_owner(parts, email), name="send a link")
        raise
    return Registered(
        user_id=made.user_id,
        account_id=made.account_id,
        username=new.username,
        email=email,
        api_key=made.key.text,
        credits=await _credits(parts, made.account_id),
        environment_tag=new.environment,
        scope_permissions={},
        subscription_status="active",
        message="Welcome. The key is shown this once; a link to confirm your address is on its way.",
        timestamp=_now(parts),
        session_token=None if opened is None else opened.token,
    )


async def request_reset(call: Call[Address, Address]) -> Done:
    """Send a link that sets a new password, if the address is known; the answer is the same if it is not."""
    email = clean_email(call.body.email or call.query.email or "")
    await count_client(call, "reset")
    await _count_address(call, "reset", email)
    call.parts.tasks.spawn(_send_link(call.parts, email, "reset_password"), name="send a link")
    return Done(message="If there is an account with this address, a link is on its way. It works for an hour.")


async def request_verification(call: Call[Address, Nothing]) -> Done:
    """Send the link that proves an address once more, if it is known and was not proved; the answer is the same."""
    email = clean_email(call.body.email or "")
    await count_client(call, "verify")
    await _count_address(call, "verify", email)
    call.parts.tasks.spawn(_send_link(call.parts, email, "verify_email"), name="send a link")
    return Done(message="If there is something to confirm, a link is on its way.")


async def reset_password(call: Call[NewPassword, Proof]) -> Done:
    """Set a new password with what was in the mail. Every session ends. Where the address had not been proved
    before, so that the account may be another's making, its keys end as well.
    """
    parts = call.parts
    await count_client(call, "prove")
    token = call.body.token or call.query.token
    if token is None:
        raise Invalid("Give the token of the mail.", loc=("body", "token"))
    check_password(parts, call.body.password, email=None)
    password_hash = await parts.passwords.hash(call.body.password)
    revoked: list[str] = []
    async with parts.database.transaction() as session:
        row = await session.fetch_row(queries["use_token"], digest(token), "reset_password")
        if row is None or row["current_email"] is None or row["current_email"].lower() != row["email"].lower():
            raise BadRequest("This link is over, or was used already.", code="token_over")
        user_id, email = row["user_id"], row["email"]
        if not row["verified"]:
            keys = await session.fetch(queries["revoke_keys_of"], user_id)
            revoked = [each["id"] for each in keys]
            await session.execute(queries["verify_email"], user_id, email)
        await session.execute(queries["set_password"], user_id, password_hash)
        await session.execute(queries["close_sessions"], user_id, None)
        await audit.record(
            session,
            _as(call, user_id),
            "users.reset",
            ("user", user_id),
            account_id=None,
            after={"keys_revoked": revoked},
        )
    await publish_keys(parts, revoked)
    parts.mail.post(letters.password_changed(email))
    return Done(message="The new password is set. Sign in with it.")


async def verify_email(call: Call[Proof, Proof]) -> Done:
    """Prove an address with what was in the mail."""
    parts = call.parts
    await count_client(call, "prove")
    token = call.body.token or call.query.token
    if token is None:
        raise Invalid("Give the token of the mail.", loc=("body", "token"))
    async with parts.database.transaction() as session:
        row = await session.fetch_row(queries["use_token"], digest(token), "verify_email")
        if row is None:
            raise BadRequest("This link is over, or was used already.", code="token_over")
        user_id, email = row["user_id"], row["email"]
        taken = await session.fetch_row(queries["find_by_email"], email)
        if taken is not None and taken["id"] != user_id:
            if taken["verified"]:
                raise EmailTaken
            await session.execute(queries["give_up_email"], taken["id"])
        await session.execute(queries["verify_email"], user_id, email)
        is_first = await session.fetch_value(queries["note_welcome"], user_id)
        await audit.record(session, _as(call, user_id), "users.verify", ("user", user_id), account_id=None)
    if is_first:
        parts.mail.post(letters.welcome(email))
    return Done(message="Your address is confirmed.")


async def change_password(call: Call[ChangedPassword, Nothing]) -> Done:
    """Set a new password, knowing the old one. Every other session ends."""
    parts, user_id = call.parts, call.actor.person
    await call.parts.throttle.take(
        "change password",
        str(user_id),
        limit=parts.settings.identity.tries_per_address,
        window_s=parts.settings.identity.tries_window_s,
    )
    row = await parts.database.fetch_row(queries["read_password"], user_id)
    assert row is not None
    if row["password_hash"] is not None and not await parts.passwords.verify(
        row["password_hash"], call.body.current_password or ""
    ):
        raise NotPermitted("That is not your password.", code="wrong_password")
    check_password(parts, call.body.new_password, email=row["email"])
    password_hash = await parts.passwords.hash(call.body.new_password)
    async with parts.database.transaction() as session:
        await session.execute(queries["set_password"], user_id, password_hash)
        await session.execute(queries["close_sessions"], user_id, call.actor.session_id)
        await audit.record(session, audit.by(call), "users.change_login", ("user", user_id), account_id=None)
    if row["email"] is not None:
        parts.mail.post(letters.password_changed(row["email"]))
    return Done(message="The new password is set.")


async def show_caller(call: Call[Nothing, Nothing]) -> Whoami:
    """Who you are here, and the token that pages send with whatever changes something."""
    actor = call.actor
    cookie = call.cookies.get(call.parts.sessions.cookie_name)
    return Whoami(
        kind=actor.kind,
        user_id=actor.user_id,
        account_id=actor.account_id,
        role=actor.role,
        account_role=actor.account_role,
        key_id=actor.key_id,
        session_id=actor.session_id,
        csrf_token=call.parts.sessions.csrf_token(cookie) if actor.kind == "session" and cookie else None,
    )


async def sign_out(call: Call[Nothing, Nothing]) -> Done:
    """End this session."""
    if call.actor.session_id is None:
        raise NotPermitted("A key is no session; revoke it instead.")
    await call.parts.database.execute(queries["close_session"], call.actor.session_id, call.actor.person)
    sessions = call.parts.sessions
    for name in (sessions.cookie_name, sessions.csrf_cookie_name):
        call.reply_headers.append(("set-cookie", _cookie(call.parts, name, "", seconds=0, readable=False)))
    return Done(message="You are signed out.")


async def list_sessions(call: Call[Nothing, Nothing]) -> SessionList:
    """Where you are signed in."""
    rows = await call.parts.database.fetch(queries["list_sessions"], call.actor.person)
    current = call.actor.session_id
    views = [msgspec.convert({**row, "is_current": row["id"] == current}, SessionView) for row in rows]
    return SessionList(data=tuple(views))


async def close_session(call: Call[Nothing, Nothing]) -> Done:
    """End one of your sessions."""
    closed = await call.parts.database.fetch_value(
        queries["close_session"], call.params["session_id"], call.actor.person
    )
    if closed is None:
        raise NotFound
    return Done(message="The session is over.")


# -- how
# ---------------------------------------------------------------------------------------------------------------


async def _sign_in_by_token(call: Call[SignIn, Nothing], token: str) -> SignedIn:
    claims = await call.parts.issuers.verify(token)
    user_id, made = await find_or_create(call.parts, audit.by(call), claims)
    return await finish(
        call, user_id=user_id, made=made, kind=call.body.session, method=claims.kind, subject=claims.subject
    )


async def _sign_in_by_password(call: Call[SignIn, Nothing], email: str, password: str) -> SignedIn:
    parts = call.parts
    await _count_address(call, "sign in", email)
    row = await parts.database.fetch_row(queries["read_login"], email)
    stored = None if row is None else row["password_hash"]
    if not await parts.passwords.verify(stored, password) or row is None:
        raise SignInNeeded("That address and that password do not belong together.", code="wrong_password")
    if row["status"] != "active":
        raise NotPermitted(f"This user is {row['status']}.", code=f"user_{row['status']}")
    if parts.settings.identity.verify_email and not row["verified"]:
        raise NotPermitted("Confirm your address first; the link is in your mail.", code="email_not_verified")
    await parts.throttle.forgive("sign in", email)
    if stored is not None and parts.passwords.is_outdated(stored):
        fresh = await parts.passwords.hash(password)
        await parts.database.execute(queries["set_password"], row["id"], fresh)
    return await finish(call, user_id=row["id"], made=None, kind=call.body.session, method="email", subject=None)


async def finish(
    call: Call[Any, Any],  # Any: of the sign-in, or of an issuer's redirect
    *,
    user_id: int,
    made: Made | None,
    kind: SessionKind,
    method: str,
    subject: str | None,
) -> SignedIn:
    """Open the session of somebody who proved who they are."""
    parts = call.parts
    who = _as(call, user_id)
    key = None if made is None else made.key
    async with parts.database.transaction() as session:
        opened = await open_session(parts, session, who, user_id=user_id, kind=kind)
        person = await session.fetch_row(queries["read_person"], user_id)
        assert person is not None
        if key is None and getattr(call.body, "create_key", False):
            key = mint("live", pepper=parts.pepper)
            name = f"sign-in {_now(parts):%Y-%m-%d %H:%M:%S} {key.id[:4]}"
            await session.execute(
                queries["create_key"], key.id, opened.account_id, user_id, name, key.digest, key.last_four
            )
            await audit.record(
                session, who, "api_keys.create", ("key", key.id), account_id=opened.account_id, after={"name": name}
            )
    csrf = None
    if kind == "cookie":
        csrf = set_cookies(call, opened)
    return SignedIn(
        success=True,
        message="Welcome." if made is not None else "Welcome back.",
        user_id=user_id,
        account_id=opened.account_id,
        api_key=None if key is None else key.text,
        auth_method=method,
        privy_user_id=subject if method == "privy" else None,
        is_new_user=made is not None,
        display_name=person["name"] or person["username"] or (person["email"] or "").partition("@")[0] or "you",
        email=person["email"],
        credits=await _credits(parts, opened.account_id),
        timestamp=_now(parts),
        session_token=opened.token if kind == "bearer" else None,
        session_expires_at=opened.expires_at,
        csrf_token=csrf,
    )


def set_cookies(call: Call[Any, Any], opened: Opened) -> str:  # Any: as in `finish`
    """Hand the session to a browser; what its pages send along with changes."""
    parts = call.parts
    csrf = parts.sessions.csrf_token(opened.token)
    seconds = int(parts.settings.identity.session_s)
    for name, value, readable in (
        (parts.sessions.cookie_name, opened.token, False),
        (parts.sessions.csrf_cookie_name, csrf, True),
    ):
        header = _cookie(parts, name, value, seconds=seconds, readable=readable)
        call.reply_headers.append(("set-cookie", header))
    return csrf


def _cookie(parts: Parts, name: str, value: str, *, seconds: int, readable: bool) -> str:
    """RFC 6265bis: with `Lax` a link from elsewhere finds one signed in, and a form from elsewhere does not."""
    flags = "" if readable else "; HttpOnly"
    flags += "; Secure" if parts.sessions.secure else ""
    return f"{name}={value}; Path=/; Max-Age={seconds}; SameSite=Lax{flags}"


async def _make(call: Call[Registration, Nothing], new: NewPerson, email: str) -> tuple[Made, Opened | None]:
    """Somebody new, and their session unless the address has to be proved first.

    Raises:
        EmailTaken, UsernameTaken
    """
    parts, who = call.parts, audit.by(call)
    opened: Opened | None = None
    async with parts.database.transaction() as session:
        made = await create_person(parts.pepper, session, who, new)
        if not parts.settings.identity.verify_email:
            opened = await open_session(
                parts, session, who, user_id=made.user_id, kind="bearer", account_id=made.account_id
            )
        await send_proof(parts, session, user_id=made.user_id, email=email, purpose="verify_email")
    return made, opened


async def _tell_owner(parts: Parts, email: str) -> None:
    """Write to whoever has an address that somebody wanted to register; once in a while."""
    try:
        await parts.throttle.take("tell owner", email, limit=1, window_s=parts.settings.identity.tries_window_s)
    except RateLimited:
        return
    parts.mail.post(letters.address_taken(email))


async def _send_link(parts: Parts, email: str, purpose: Literal["verify_email", "reset_password"]) -> None:
    """Find out whether there is anybody to write to, after the answer went out, and write."""
    async with parts.database.transaction() as session:
        row = await session.fetch_row(queries["find_by_email"], email)
        if row is None or row["status"] != "active" or (purpose == "verify_email" and row["verified"]):
            return
        await send_proof(parts, session, user_id=row["id"], email=row["email"], purpose=purpose)


async def count_client(call: Call[Any, Any], what: str) -> None:  # Any: of any route
    """Count a try of whoever calls from that address.

    Raises:
        RateLimited, StoreUnavailable
    """
    identity = call.parts.settings.identity
    await call.parts.throttle.take(
        f"{what} from", call.ip or "nowhere", limit=identity.tries_per_client, window_s=identity.tries_window_s
    )


async def _count_address(call: Call[Any, Any], what: str, email: str) -> None:  # Any: of any route
    identity = call.parts.settings.identity
    await call.parts.throttle.take(what, email, limit=identity.tries_per_address, window_s=identity.tries_window_s)


async def _credits(parts: Parts, account_id: int) -> float:
    return usd((await read_balance(parts.database, account_id)).balance_nanos)


def _as(call: Call[Any, Any], user_id: int) -> audit.By:  # Any: of any route
    """The caller of a public route, once it is known who it is."""
    return msgspec.structs.replace(audit.by(call), kind="user", user_id=user_id)


def _now(parts: Parts) -> datetime:
    return datetime.fromtimestamp(parts.clock.now(), UTC)


ROUTES: Final = (
    Route(
        method="POST",
        path="/auth",
        aliases=("/auth/privy", "/auth/login"),
        handler=sign_in,
        access=PUBLIC,
        summary="Sign in",
        tag=_TAG,
        errors=(SignInNeeded, NotPermitted, EmailTaken, RateLimited, IssuerAway),
    ),
    Route(
        method="POST",
        path="/auth/register",
        aliases=("/create", "/admin/create"),
        handler=register,
        access=PUBLIC,
        summary="Register",
        tag=_TAG,
        errors=(EmailTaken, UsernameTaken, NotPermitted, RateLimited),
    ),
    Route(
        method="POST",
        path="/auth/password-reset",
        handler=request_reset,
        access=PUBLIC,
        summary="Ask for a new password",
        tag=_TAG,
        errors=(RateLimited,),
    ),
    Route(
        method="POST",
        path="/auth/reset-password",
        handler=reset_password,
        access=PUBLIC,
        summary="Set a new password",
        tag=_TAG,
        errors=(RateLimited,),
    ),
    Route(
        method="POST",
        path="/auth/verification",
        handler=request_verification,
        access=PUBLIC,
        summary="Ask for the link that proves an address",
        tag=_TAG,
        errors=(RateLimited,),
    ),
    Route(
        method="POST",
        path="/auth/verify-email",
        handler=verify_email,
        access=PUBLIC,
        summary="Prove an address",
        tag=_TAG,
        errors=(EmailTaken, RateLimited),
    ),
    Route(
        method="PUT",
        path="/user/password",
        handler=change_password,
        access="users:update",
        summary="Change your password",
        tag=_TAG,
        errors=(RateLimited,),
    ),
    Route(method="GET", path="/auth/session", handler=show_caller, access=SIGNED_IN, summary="Who you are", tag=_TAG),
    Route(method="DELETE", path="/auth/session", handler=sign_out, access=SIGNED_IN, summary="Sign out", tag=_TAG),
    Route(
        method="GET",
        path="/user/sessions",
        handler=list_sessions,
        access="users:read",
        summary="Your sessions",
        tag=_TAG,
    ),
    Route(
        method="DELETE",
        path="/user/sessions/{session_id:int}",
        handler=close_session,
        access="users:update",
        summary="End a session",
        tag=_TAG,
    ),
)
