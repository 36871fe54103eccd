"""Who calls: a person in a session, or a program with a gateway key.

Rules:
- A session's token is `gws_<random>_<mac>`: the mac is made with a key derived from the pepper, so what was made up
  is refused without asking the database, which knows the SHA-256 of the whole. Programs send it as a bearer token,
  pages have it in a cookie that scripts can't read.
- A cookie comes along whoever made the browser send the request. So whatever changes something needs, besides, the
  session's CSRF token in `x-csrf-token`, and an `origin`, where there is one, that is ours.
- Nothing is remembered between two calls: a session that is revoked and a person who is suspended are out at once.
- A key acts in the role of whoever made it, and only from where it may be used. One made by a command on the machine
  has no person behind it: it is a developer in its account.
"""

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers

from gateway.control.access import AccountRole, Role, is_at_least, is_in_scope, is_permitted
from gateway.control.errors import NotPermitted, SignInNeeded
from gateway.infra.clock import Clock
from gateway.infra.postgres import Database, Row, load_queries
from gateway.kernel.constraints import make_constraints, referrer_of
from gateway.kernel.keys import digest as key_digest
from gateway.kernel.keys import public_id
from gateway.wire.client_address import parse_address

COOKIE: Final = "gateway_session"
CSRF_COOKIE: Final = "gateway_csrf"
CSRF_HEADER: Final = "x-csrf-token"
#: Before the name of a cookie that only goes over TLS: no other host, and no page over plain HTTP, can set it.
HOST_PREFIX: Final = "__Host-"
TOKEN_PREFIX: Final = "gws_"  # noqa: S105  how a token begins, not one
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_RANDOM_BYTES: Final = 24
_TOKEN_LENGTH: Final = len(TOKEN_PREFIX) + 32 + 1 + 43

_queries: Final = load_queries(Path(__file__).with_name("session.sql"))


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, and as what."""

    kind: Literal["nobody", "session", "key"]
    #: None for nobody, and for keys that no person made.
    user_id: int | None = None
    #: 0 for nobody.
    account_id: int = 0
    role: Role = "user"
    account_role: AccountRole = "member"
    key_id: str | None = None
    session_id: int | None = None
    #: A key's; empty: not narrowed.
    scopes: Mapping[str, tuple[str, ...]] = {}

    def check(self, access: str, *, account_role: AccountRole = "member", writes: bool = True) -> None:
        """Refuse what this caller may not do.

        Raises:
            NotPermitted
        """
        if not is_permitted(self.role, access):
            raise NotPermitted
        if not is_at_least(self.account_role, account_role):
            raise NotPermitted(f"Only {account_role}s of the account may do that.")
        if not is_in_scope(self.scopes, access, writes=writes):
            raise NotPermitted("The scopes of this key do not include that.")

    @property
    def person(self) -> int:
        """The id of the person who calls.

        Raises:
            NotPermitted: it is a key that nobody made.
        """
        if self.user_id is None:
            raise NotPermitted("There is no person behind this key.")
        return self.user_id

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"


NOBODY: Final = Actor(kind="nobody")


class Sessions:
    """Knows callers by what they present."""

    def __init__(self, database: Database, *, pepper: bytes, clock: Clock, url: str) -> None:
        """`url` is where people reach the control plane; over TLS, cookies are bound to it."""
        self._database = database
        self._pepper = pepper
        self._key = hmac.digest(pepper, b"gateway: sessions", "sha256")
        self._clock = clock
        self._host = urlsplit(url).netloc.lower()
        self.secure = url.lower().startswith("https://")
        prefix = HOST_PREFIX if self.secure else ""
        self.cookie_name = prefix + COOKIE
        self.csrf_cookie_name = prefix + CSRF_COOKIE

    # -- what is handed out ----------------------------------------------------------------------------------------

    def mint(self) -> str:
        """The token of a new session; `digest` of it is what the table gets."""
        random = secrets.token_urlsafe(_RANDOM_BYTES)
        return f"{TOKEN_PREFIX}{random}_{self._mac(random)}"

    def csrf_token(self, token: str) -> str:
        """What pages of that session send along with whatever changes something."""
        return _text(hmac.digest(self._key, b"csrf:" + token.encode("ascii", "replace"), "sha256"))

    # -- what comes in ---------------------------------------------------------------------------------------------

    async def identify(
        self, headers: Headers, cookies: Mapping[str, str], *, method: str, ip: str | None = None
    ) -> Actor:
        """Who calls, from the address `ip`; `NOBODY` where nothing was presented.

        Raises:
            SignInNeeded: what was presented is worth nothing (any more).
            NotPermitted: it is a browser's session, and another site may have made the request; or the account is
                closed to it. Forbidden: the key may not be used from there.
            StoreUnavailable
        """
        scheme, _, text = headers.get("authorization", "").partition(" ")
        if not (scheme.lower() == "bearer" and text):
            text = headers.get("x-api-key", "")
        text = text.strip()
        if text.startswith(TOKEN_PREFIX):
            return await self._find_session(text)
        if text:
            return await self._find_key(text, headers, ip)
        if token := cookies.get(self.cookie_name):
            actor = await self._find_session(token, kind="cookie")
            if method not in SAFE_METHODS:
                self._check_origin(headers, token)
            return actor
        return NOBODY

    async def _find_session(self, token: str, *, kind: str | None = None) -> Actor:
        random = token[len(TOKEN_PREFIX) : -44]
        if len(token) != _TOKEN_LENGTH or not hmac.compare_digest(self._mac(random).encode(), token[-43:].encode()):
            raise SignInNeeded("This session is not known here; sign in again.", code="invalid_session")
        row = await self._database.fetch_row(_queries["find_session"], digest(token), kind)
        if row is None:
            raise SignInNeeded("This session is over; sign in again.", code="session_over")
        _check_account(row)
        return Actor(
            kind="session",
            user_id=row["user_id"],
            account_id=row["account_id"],
            role=row["role"],
            account_role=row["account_role"],
            session_id=row["id"],
        )

    async def _find_key(self, text: str, headers: Headers, ip: str | None) -> Actor:
        key_id = public_id(text)
        # Nothing that a caller typed goes further than the form of an id.
        row = None if key_id is None else await self._database.fetch_row(_queries["find_key_actor"], key_id)
        presented = key_digest(text, pepper=self._pepper)
        if row is None or not (
            hmac.compare_digest(presented, row["digest"])
            or (row["previous_digest"] is not None and hmac.compare_digest(presented, row["previous_digest"]))
        ):
            raise SignInNeeded("This API key is not known here.", code="invalid_api_key")
        if row["over"]:
            raise SignInNeeded("This API key has been revoked, switched off, or has expired.", code="invalid_api_key")
        _check_account(row)
        scopes = msgspec.json.decode(row["scopes"], type=dict[str, tuple[str, ...]])
        constraints = make_constraints(
            scopes={}, networks=row["networks"], referrers=row["referrers"], models=(), providers=()
        )
        if constraints is not None:
            constraints.check_caller(None if ip is None else parse_address(ip), referrer_of(headers.raw))
        return Actor(
            kind="key",
            user_id=row["user_id"],
            account_id=row["account_id"],
            role=row["role"] or "developer",
            account_role=row["account_role"] or ("admin" if row["user_id"] is None else "member"),
            key_id=key_id,
            scopes=scopes,
        )

    def _check_origin(self, headers: Headers, token: str) -> None:
        sent = headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(self.csrf_token(token).encode(), sent.encode("utf-8", "replace")):
            raise NotPermitted(f"Send the session's token in {CSRF_HEADER}.", code="csrf")
        if (origin := headers.get("origin")) is not None:
            ours = {self._host, headers.get("host", "").lower()} - {""}
            if urlsplit(origin).netloc.lower() not in ours:
                raise NotPermitted("Another site sent this.", code="csrf")

    def _mac(self, random: str) -> str:
        return _text(hmac.digest(self._key, random.encode("ascii", "replace"), "sha256"))


def digest(token: str) -> bytes:
    """What is stored of anything that is random, long and presented: its SHA-256."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _check_account(row: Row) -> None:
    if row["account_status"] != "active":
        raise NotPermitted(f"This account is {row['account_status']}.", code=f"account_{row['account_status']}")


def _text(digest_bytes: bytes) -> str:
    return urlsafe_b64encode(digest_bytes).decode("ascii").rstrip("=")
