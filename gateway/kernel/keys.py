"""Gateway keys: their form, how they are stored, and how one is verified without asking the database.

A key is `gw_<environment>_<public id><secret>`: the environment says what it is for, the public id (12
characters) finds it, the secret (43 characters, 256 random bits) proves it. At rest there is only an HMAC-SHA256 of
the whole key under the server's pepper, so neither a stolen table nor a stolen pepper is enough to make one.

Rules of the `KeyRing`, the verifier each worker holds:
- A key is served from memory for `cache_s`; after that the database is asked again, once for all who wait.
- A key that was rotated keeps its id; its old text may be good for a while longer.
- A revocation (`forget`) takes effect at once. If notices may have been missed (`doubt`), every entry is asked anew.
- A database that does not answer is `StoreUnavailable` for a key never seen, and nothing at all for a known one,
  which goes on being served for `stale_s`. It is never a 401. After such a failure known keys do not wait again for
  `RETRY_S`.
- Unknown ids are remembered for `UNKNOWN_S`, so that guessing costs the database nothing.
"""

import asyncio
import hmac
import secrets
import string
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.errors import StoreUnavailable, Unauthenticated
from gateway.exchange import Principal
from gateway.infra.clock import Clock
from gateway.kernel.constraints import make_constraints
from gateway.kernel.limits import NO_LIMITS, Limits, combine_limits
from gateway.kernel.money import Nanos
from gateway.kernel.own_keys import SealedKey
from gateway.settings import NO_PLAN, UNLIMITED, Auth
from gateway.wire.client_address import Network

if TYPE_CHECKING:
    from gateway.routing.keychain import Keychain

ENVIRONMENTS: Final = ("live", "test", "staging", "dev")
#: Where a revoked or changed key's public id is published.
CHANNEL: Final = b"gateway:keys"
#: Published there in the place of an id: all of them.
EVERY_KEY: Final = b"*"

ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 43
UNKNOWN_S: Final = 2.0
UNKNOWN_MAX: Final = 10_000
RETRY_S: Final = 1.0

_ID_ALPHABET: Final = string.ascii_letters + string.digits
_PREFIXES: Final = {f"gw_{environment}_": environment for environment in ENVIRONMENTS}
_LENGTHS: Final = {len(prefix) + ID_LENGTH + SECRET_LENGTH: len(prefix) for prefix in _PREFIXES}


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the database knows it."""

    id: str
    account_id: int
    environment: str
    digest: bytes
    #: Of the text before it was rotated, and until when that is good (seconds since the epoch).
    previous_digest: bytes | None = None
    previous_until_s: float | None = None
    revoked: bool = False
    #: Switched off by its owner, and not for good.
    disabled: bool = False
    #: Seconds since the epoch, or None for never.
    expires_at_s: float | None = None
    #: active, suspended or closed.
    account_status: str = "active"
    #: The account's plan, by name.
    plan: str = UNLIMITED
    #: The key's own limits.
    limits: Limits = NO_LIMITS
    #: How far below zero the account may go.
    overdraft_nanos: Nanos = 0
    #: Requests of all its life.
    max_requests: int | None = None
    #: What it may be used for; see `constraints.py`.
    scopes: dict[str, tuple[str, ...]] = {}
    networks: tuple[str, ...] = ()
    referrers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    #: The provider keys that the account brings itself, and that are switched on.
    own_keys: tuple[SealedKey, ...] = ()


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key just made; `text` exists nowhere else."""

    id: str
    text: str
    digest: bytes
    last_four: str


class KeySummary(msgspec.Struct, frozen=True, kw_only=True):
    """What may be shown of a key."""

    id: str
    account_id: int
    name: str
    environment: str
    last_four: str
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None


def mint(environment: str, *, pepper: bytes, key_id: str | None = None) -> NewKey:
    """Make a new key, or another text for the one of that id."""
    if environment not in ENVIRONMENTS:
        raise ValueError(f"environment is one of {', '.join(ENVIRONMENTS)}, not {environment!r}")
    key_id = key_id or "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_LENGTH))
    secret = secrets.token_urlsafe(32)
    text = f"gw_{environment}_{key_id}{secret}"
    return NewKey(id=key_id, text=text, digest=digest(text, pepper=pepper), last_four=text[-4:])


def digest(text: str, *, pepper: bytes) -> bytes:
    """What is stored of a key: HMAC-SHA256 of its text under the pepper, 32 bytes."""
    return hmac.digest(pepper, text.encode("ascii", "replace"), "sha256")


def public_id(text: str) -> str | None:
    """The public id inside a well-formed key, or None."""
    start = _LENGTHS.get(len(text))
    if start is None or text[:start] not in _PREFIXES:
        return None
    return text[start : start + ID_LENGTH]


class _Entry:
    __slots__ = ("checked_s", "principal", "record")

    def __init__(
        self,
        record: KeyRecord,
        checked_s: float,
        plan: Limits,
        *,
        priority: int,
        trusted: tuple[Network, ...],
        keychain: "Keychain | None",
    ) -> None:
        self.record = record
        self.checked_s = checked_s
        self.principal = Principal(
            key_id=record.id,
            account_id=record.account_id,
            environment=record.environment,
            limits=combine_limits(
                plan=plan,
                key=record.limits,
                live=record.environment == "live",
                overdraft_nanos=record.overdraft_nanos,
                requests_max=record.max_requests,
            ),
            constraints=make_constraints(
                scopes=record.scopes,
                networks=record.networks,
                referrers=record.referrers,
                models=record.models,
                providers=record.providers,
                trusted=trusted,
            ),
            # What is tried out gives way to what is in use.
            priority=priority if record.environment == "live" else max(0, priority - 1),
            keychain=keychain,
        )


Fetch = Callable[[str], Awaitable[KeyRecord | None]]
#: Makes an account's own provider keys usable: `gateway/keychains.py`.
Unlock = Callable[[int, tuple[SealedKey, ...]], "Keychain | None"]


def _no_keychain(_: int, __: tuple[SealedKey, ...]) -> None:
    return None


class KeyRing:
    """Verifies keys from memory, and from the database behind it. See the rules above."""

    def __init__(
        self,
        settings: Auth,
        *,
        pepper: bytes,
        fetch: Fetch,
        clock: Clock,
        plans: Mapping[str, Limits] = MappingProxyType({}),
        trusted: tuple[Network, ...] = (),
        priorities: Mapping[str, int] = MappingProxyType({}),
        unlock: Unlock = _no_keychain,
    ) -> None:
        """`plans` are the limits of each plan, by name. One that is not in it has those of `none`; `unlimited` has
        none. `trusted` proxies are believed about their callers' addresses. `priorities` say how much the accounts of
        a plan matter; one that is not in it is normal.
        """
        self._unlock = unlock
        self._plans = plans
        self._trusted = trusted
        self._priorities = priorities
        self._settings = settings
        self._pepper = pepper
        self._fetch = fetch
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._unknown: dict[str, float] = {}
        self._fetching: dict[str, asyncio.Future[_Entry | None]] = {}
        self._retry_at_s = 0.0

    def __repr__(self) -> str:
        return f"<KeyRing: {len(self._entries)} known, {len(self._fetching)} being fetched>"

    def verify_known(self, text: str) -> Principal | None:
        """Who the key belongs to if memory alone can tell, else None: then `verify` must be asked.

        Raises:
            Unauthenticated: it is a known key's id with another secret, or the key is over.
        """
        key_id = public_id(text)
        entry = self._entries.get(key_id) if key_id is not None else None
        if entry is None or self._clock.monotonic() - entry.checked_s > self._settings.cache_s:
            return None
        return self._check(entry, text)

    async def verify(self, text: str) -> Principal:
        """Who the key belongs to.

        Raises:
            Unauthenticated: it is not a key, or not one any more.
            StoreUnavailable: the database does not answer and this key was not seen before.
        """
        key_id = public_id(text)
        if key_id is None:
            raise Unauthenticated
        now_s = self._clock.monotonic()
        entry = self._entries.get(key_id)
        if entry is None or now_s - entry.checked_s > self._settings.cache_s:
            entry = await self._refresh(key_id, entry)
        if entry is None:
            digest(text, pepper=self._pepper)  # the same work as for a known id
            raise Unauthenticated
        return self._check(entry, text)

    async def renew(self, principal: Principal) -> Principal:
        """The same caller as it is now, for what goes on for long after its key was presented.

        Raises:
            Unauthenticated: its key is over.
            StoreUnavailable
        """
        key_id, now_s = principal.key_id, self._clock.monotonic()
        entry = self._entries.get(key_id)
        if entry is None or now_s - entry.checked_s > self._settings.cache_s:
            entry = await self._refresh(key_id, entry)
        if entry is None:
            raise Unauthenticated
        self._check_state(entry.record)
        return entry.principal

    def forget(self, key_id: str) -> None:
        """The key was changed or revoked: ask the database at its next use."""
        self._entries.pop(key_id, None)
        self._unknown.pop(key_id, None)
        # A fetch under way may have read the row before it changed.
        self._fetching.pop(key_id, None)

    def doubt(self) -> None:
        """Notices may have been missed: ask the database about every key at its next use."""
        for entry in self._entries.values():
            entry.checked_s = min(entry.checked_s, self._clock.monotonic() - self._settings.cache_s - 1e-3)
        self._unknown.clear()
        # As in `forget`.
        self._fetching.clear()

    def _check(self, entry: _Entry, text: str) -> Principal:
        record = entry.record
        presented = digest(text, pepper=self._pepper)
        if not hmac.compare_digest(presented, record.digest):
            self._check_previous(record, presented)
        self._check_state(record)
        return entry.principal

    def _check_previous(self, record: KeyRecord, presented: bytes) -> None:
        """Whether it is what the key was before it was rotated."""
        if record.previous_digest is None or not hmac.compare_digest(presented, record.previous_digest):
            raise Unauthenticated
        if record.previous_until_s is None or record.previous_until_s <= self._clock.now():
            raise Unauthenticated("This API key has been rotated; use the new one.", over="key_rotated")

    def _check_state(self, record: KeyRecord) -> None:
        if record.revoked:
            raise Unauthenticated("This API key has been revoked.", over="key_revoked")
        if record.disabled:
            raise Unauthenticated("This API key is switched off.", code="api_key_disabled", over="key_disabled")
        if record.expires_at_s is not None and record.expires_at_s <= self._clock.now():
            raise Unauthenticated("This API key has expired.", over="key_expired")
        if record.account_status != "active":
            raise Unauthenticated(
                "The account of this API key is not active.", code="account_inactive", over="account_inactive"
            )

    async def _refresh(self, key_id: str, known: _Entry | None) -> _Entry | None:
        if (until_s := self._unknown.get(key_id)) is not None and self._clock.monotonic() < until_s:
            return None
        usable = known is not None and self._clock.monotonic() - known.checked_s <= self._settings.stale_s
        if usable and self._clock.monotonic() < self._retry_at_s:
            return known
        fetching = self._fetching.get(key_id)
        if fetching is None:
            fetching = asyncio.ensure_future(self._read(key_id))
            self._fetching[key_id] = fetching
            fetching.add_done_callback(lambda done: self._fetched(key_id, done))
        try:
            # One caller leaving must not cancel the look-up others wait for.
            return await asyncio.shield(fetching)
        except StoreUnavailable:
            self._retry_at_s = self._clock.monotonic() + RETRY_S
            if usable:
                return known
            raise

    def _fetched(self, key_id: str, done: "asyncio.Future[_Entry | None]") -> None:
        current = self._fetching.get(key_id) is done
        if current:
            del self._fetching[key_id]
        if done.cancelled() or done.exception() is not None or not current:
            return
        entry = done.result()
        if entry is not None:
            while len(self._entries) >= self._settings.cache_size:
                self._entries.pop(next(iter(self._entries)))
            self._entries[key_id] = entry
        else:
            self._entries.pop(key_id, None)
            while len(self._unknown) >= UNKNOWN_MAX:
                self._unknown.pop(next(iter(self._unknown)))
            self._unknown[key_id] = self._clock.monotonic() + UNKNOWN_S

    async def _read(self, key_id: str) -> _Entry | None:
        asked_s = self._clock.monotonic()
        record = await self._fetch(key_id)
        if record is None:
            return None
        return _Entry(
            record,
            asked_s,
            self._plan(record.plan),
            priority=self._priority(record.plan),
            trusted=self._trusted,
            keychain=self._unlock(record.account_id, record.own_keys),
        )

    def _priority(self, name: str) -> int:
        known = name if name == UNLIMITED or name in self._plans else NO_PLAN
        return self._priorities.get(known, 1)

    def _plan(self, name: str) -> Limits:
        if name == UNLIMITED:
            return NO_LIMITS
        found = self._plans.get(name)
        return self._plans.get(NO_PLAN, NO_LIMITS) if found is None else found
