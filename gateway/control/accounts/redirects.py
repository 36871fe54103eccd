"""Signing in at the console through another issuer: the authorization code flow with PKCE.

`/auth/login/{issuer}` sends the browser to the issuer, `/auth/callback/{issuer}` takes it back (OpenID Connect Core
1.0, section 3.1; RFC 7636; RFC 9700).

Rules:
- What must match when the browser comes back (state, nonce, verifier, which issuer, where to go then) travels in a
  cookie that only we can read and write: it is encrypted, good for `LOGIN_S`, and taken away at the first use.
- The page to go to is one of ours: a path, never another host.
- The issuer is the one of the path, from the configuration; nothing that comes back in the query chooses it.
"""

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from gateway.control import audit
from gateway.control.access import PUBLIC
from gateway.control.accounts.auth import count_client, finish
from gateway.control.accounts.people import find_or_create
from gateway.control.errors import NotFound, NotPermitted, SignInNeeded
from gateway.control.issuers import IssuerAway
from gateway.control.parts import Parts
from gateway.control.route import Call, Nothing, Raw, Route
from gateway.errors import BadRequest, RateLimited
from gateway.kernel.sealing import Box, Tampered

if TYPE_CHECKING:
    from gateway.control.issuer import OneIssuer

COOKIE: Final = "gateway_login"
#: How long somebody may take at the issuer.
LOGIN_S: Final = 600
CODE_MAX: Final = 4096
_TAG: Final = "auth"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    #: Where to go then: a path of this gateway.
    next: Annotated[str, Meta(max_length=500)] = "/"


class Back(msgspec.Struct, frozen=True, kw_only=True):
    """What the issuer sends along (RFC 6749, section 4.1.2)."""

    state: Annotated[str, Meta(max_length=200)] = ""
    code: Annotated[str, Meta(max_length=CODE_MAX)] = ""
    error: Annotated[str, Meta(max_length=200)] = ""


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A sign-in that is on its way."""

    issuer: str
    state: str
    nonce: str
    verifier: str
    next: str
    ends_s: float


def is_own_page(path: str) -> bool:
    """Whether a browser that is sent to `path` stays here; it takes a backslash for a slash, and two lead away."""
    return path.startswith("/") and path[1:2] != "/" and "\\" not in path and path.isascii() and path.isprintable()


def seal(pepper: bytes, pending: Pending) -> str:
    """What the cookie holds."""
    sealed = _box(pepper).seal(msgspec.json.encode(pending), COOKIE.encode())
    return urlsafe_b64encode(sealed).decode("ascii").rstrip("=")


def unseal(pepper: bytes, text: str, *, now_s: float) -> Pending:
    """What was sealed.

    Raises:
        SignInNeeded: it was not, or it is over.
    """
    try:
        sealed = urlsafe_b64decode(text.encode("ascii", "replace") + b"=" * (-len(text) % 4))
        opened = _box(pepper).open(sealed, COOKIE.encode())
        pending = msgspec.json.decode(opened, type=Pending)
    except (ValueError, Tampered, msgspec.DecodeError) as error:
        raise SignInNeeded("This sign-in was not begun here; begin again.", code="no_login") from error
    if pending.ends_s < now_s:
        raise SignInNeeded("This took too long; begin again.", code="no_login")
    return pending


async def start_login(call: Call[Nothing, Start]) -> Raw:
    """Go to an issuer to sign in there."""
    parts, issuer = call.parts, _issuer(call)
    await count_client(call, "log in")
    where = (await issuer.discover()).authorization_endpoint
    if not where:
        raise IssuerAway(detail=f"{issuer.name}: its discovery document names no authorization endpoint")
    verifier = secrets.token_urlsafe(48)
    pending = Pending(
        issuer=issuer.name,
        state=secrets.token_urlsafe(24),
        nonce=secrets.token_urlsafe(24),
        verifier=verifier,
        next=call.query.next if is_own_page(call.query.next) else "/",
        ends_s=parts.clock.now() + LOGIN_S,
    )
    challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    query = {
        "response_type": "code",
        "client_id": issuer.settings.audience,
        "redirect_uri": _redirect_uri(parts, issuer),
        "scope": " ".join(issuer.settings.scopes),
        "state": pending.state,
        "nonce": pending.nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    call.reply_headers.append(("set-cookie", _cookie(parts, seal(parts.pepper, pending), LOGIN_S)))
    return _go(f"{where}{'&' if '?' in where else '?'}{urlencode(query)}")


async def finish_login(call: Call[Nothing, Back]) -> Raw:
    """Come back from an issuer, signed in."""
    parts, issuer = call.parts, _issuer(call)
    await count_client(call, "log in")
    pending = unseal(parts.pepper, call.cookies.get(COOKIE, ""), now_s=parts.clock.now())
    call.reply_headers.append(("set-cookie", _cookie(parts, "", 0)))
    if pending.issuer != issuer.name or not hmac.compare_digest(pending.state.encode(), call.query.state.encode()):
        raise SignInNeeded("This is not the sign-in that was begun here; begin again.", code="no_login")
    if call.query.error or not call.query.code:
        raise SignInNeeded("The issuer did not sign you in.", code="login_refused")
    claims = await issuer.exchange(
        call.query.code, verifier=pending.verifier, redirect_uri=_redirect_uri(parts, issuer), nonce=pending.nonce
    )
    user_id, made = await find_or_create(parts, audit.by(call), claims)
    await finish(call, user_id=user_id, made=made, kind="cookie", method=claims.kind, subject=claims.subject)
    return _go(pending.next)


def _issuer(call: Call[Any, Any]) -> "OneIssuer":  # Any: of either
    issuer = call.parts.issuers.by_name.get(call.params["issuer"])
    if issuer is None or issuer.settings.kind != "oidc":
        raise NotFound("There is no such issuer to sign in at.")
    return issuer


def _redirect_uri(parts: Parts, issuer: "OneIssuer") -> str:
    """What the issuer knows us by.

    Raises:
        BadRequest: nobody said where we are.
    """
    url = parts.url
    if not url:
        raise BadRequest("control.url is not set, so no issuer can send anybody back.", code="no_url")
    return f"{url.rstrip('/')}/auth/callback/{issuer.name}"


def _go(where: str) -> Raw:
    return Raw(b"", media_type="text/plain", status=303, headers=(("location", where),))


def _cookie(parts: Parts, value: str, seconds: int) -> str:
    secure = "; Secure" if parts.sessions.secure else ""
    return f"{COOKIE}={value}; Path=/auth/callback; Max-Age={seconds}; SameSite=Lax; HttpOnly{secure}"


def _box(pepper: bytes) -> Box:
    return Box(hmac.digest(pepper, b"gateway: login", "sha256"))


_ERRORS: Final = (NotFound, SignInNeeded, NotPermitted, BadRequest, RateLimited, IssuerAway)

ROUTES: Final = (
    Route(
        method="GET",
        path="/auth/login/{issuer}",
        handler=start_login,
        access=PUBLIC,
        summary="Sign in at an issuer",
        tag=_TAG,
        status=303,
        errors=_ERRORS,
        media_type="text/plain",
    ),
    Route(
        method="GET",
        path="/auth/callback/{issuer}",
        handler=finish_login,
        access=PUBLIC,
        summary="Come back from an issuer",
        tag=_TAG,
        status=303,
        errors=_ERRORS,
        media_type="text/plain",
    ),
)
