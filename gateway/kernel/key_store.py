"""Keys in PostgreSQL: making, listing, limiting, revoking, and finding the one a worker asks about.

The pepper that the stored digests depend on comes from the configuration, or in development from a file made on first
use in the data directory. Losing it makes every key unusable; it can't be read back from the database.
"""

import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import asyncpg
import msgspec

from gateway.errors import CallerError, ConfigError
from gateway.infra.postgres import Database, Row, Session, load_queries
from gateway.kernel.journal import credit, find_account
from gateway.kernel.keys import CHANNEL, KeyRecord, KeySummary, NewKey, mint
from gateway.kernel.limits import NO_LIMITS, Limits, pack_limits
from gateway.kernel.money import Nanos
from gateway.kernel.own_keys import SealedKey
from gateway.settings import PEPPER_BYTES_MIN, Settings

PEPPER_FILE: Final = "pepper"
DEVELOPMENT_ACCOUNT: Final = "development"
DEVELOPMENT_KEY: Final = "development"

_queries: Final = load_queries(Path(__file__).with_name("keys.sql"))
_decode_own_keys: Final = msgspec.json.Decoder(tuple[SealedKey, ...]).decode


class NameTaken(CallerError):
    """A living key of this account has that name already."""

    error_type = "caller_conflict"
    status = 409
    code = "name_taken"


class Note(Protocol):
    """Writes down what was done to a key, in the transaction that does it: see the control plane's audit log."""

    def __call__(
        self,
        session: Session,
        action: str,
        key_id: str,
        *,
        account_id: int,
        before: object = None,
        after: object = None,
    ) -> Awaitable[None]: ...


class Publisher(Protocol):
    """Tells every worker; a Redis client."""

    async def publish(self, channel: bytes, message: bytes) -> object: ...


def load_pepper(settings: Settings) -> bytes:
    """The pepper of the configuration, or the one in the data directory, made there if there is none.

    Raises:
        ConfigError: it is too short, or there is none and this is not a development set-up.
    """
    if settings.auth.pepper is not None:
        pepper = settings.auth.pepper.reveal().encode()
        if len(pepper) < PEPPER_BYTES_MIN:
            raise ConfigError(
                f"auth.pepper is shorter than {PEPPER_BYTES_MIN} bytes; make one with `openssl rand -hex 32`"
            )
        return pepper
    if not settings.server.development:
        raise ConfigError('auth.pepper is not set; make one with `openssl rand -hex 32` and give it as "env:NAME"')
    path = Path(settings.server.data_dir) / PEPPER_FILE
    if not path.exists():
        _make_pepper(path)
    return path.read_bytes().strip()


def _make_pepper(path: Path) -> None:
    """Written beside and linked, so that of two first starts one wins and neither reads half of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{PEPPER_FILE}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(fresh)
    finally:
        fresh.unlink(missing_ok=True)


async def find_key(database: Database, key_id: str) -> KeyRecord | None:
    """What is known of a public id; None if nothing.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    row = await database.fetch_row(_queries["find_key"], key_id)
    return None if row is None else _record(row)


async def create_key(
    database: Database,
    *,
    name: str,
    pepper: bytes,
    environment: str = "live",
    account_id: int | None = None,
    note: Note | None = None,
) -> NewKey:
    """Make a key. Without an account it is the first one's, which is made if there is none.

    Raises:
        NameTaken: the account has a living key of that name.
        StoreUnavailable: the database does not answer.
    """
    key = mint(environment, pepper=pepper)
    async with database.transaction() as session:
        if account_id is None:
            account_id = await session.fetch_value(_queries["first_account"])
        if account_id is None:
            account_id = await session.fetch_value(_queries["create_account"], DEVELOPMENT_ACCOUNT)
        try:
            await session.execute(
                _queries["create_key"], key.id, account_id, name, environment, key.digest, key.last_four
            )
        except asyncpg.UniqueViolationError as error:
            raise NameTaken(f"There is a key named {name!r} already; revoke it or choose another name.") from error
        if note is not None:
            assert account_id is not None
            after = {"name": name, "environment": environment}
            await note(session, "create", key.id, account_id=account_id, after=after)
    return key


async def list_keys(database: Database) -> list[KeySummary]:
    """Every key, newest first."""
    rows = await database.fetch(_queries["list_keys"])
    return [msgspec.convert(dict(row), KeySummary) for row in rows]


async def revoke_key(
    database: Database, publisher: Publisher, *, id_or_name: str, note: Note | None = None
) -> list[str]:
    """Revoke by public id or by name, and tell every worker. The ids that were revoked; none if there was none."""
    async with database.transaction() as session:
        rows = await session.fetch(_queries["revoke_key"], id_or_name)
        for row in rows:
            if note is not None:
                await note(session, "revoke", row["id"], account_id=row["account_id"], after={"revoked": True})
    revoked: list[str] = [row["id"] for row in rows]
    for key_id in revoked:
        await publisher.publish(CHANNEL, key_id.encode())
    return revoked


async def change_limits(
    database: Database,
    publisher: Publisher,
    *,
    id_or_name: str,
    change: Callable[[Limits], Limits],
    note: Note | None = None,
) -> tuple[str, Limits] | None:
    """Change what a key may use, and tell every worker. Its id and what it may use now; None if there is no such key.

    Raises:
        ConfigError: several keys have that name.
        ValueError: a limit is out of bounds.
    """
    async with database.transaction() as session:
        rows = await session.fetch(_queries["lock_limits"], id_or_name)
        if not rows:
            return None
        if len(rows) > 1:
            raise ConfigError("keys of several accounts have that name; give the key's id")
        key_id: str = rows[0]["id"]
        before = _limits(rows[0]["limits"])
        limits = change(before)
        pack_limits(key=limits)  # refuses what could not be kept
        if limits != before:
            text = msgspec.json.encode(limits, order="deterministic").decode()
            await session.execute(_queries["set_limits"], key_id, None if limits == NO_LIMITS else text)
            if note is not None:
                account_id = rows[0]["account_id"]
                await note(session, "update", key_id, account_id=account_id, before=before, after=limits)
    if limits != before:
        await publisher.publish(CHANNEL, key_id.encode())
    return key_id, limits


def _record(row: Row) -> KeyRecord:
    # asyncpg hands jsonb on as text.
    own_keys = () if row["own_keys"] is None else _decode_own_keys(row["own_keys"])
    values = {**row, "limits": _limits(row["limits"]), "scopes": msgspec.json.decode(row["scopes"])}
    return msgspec.convert({**values, "own_keys": own_keys}, KeyRecord)


def _limits(text: str | None) -> Limits:
    # asyncpg hands jsonb on as text.
    return NO_LIMITS if text is None else msgspec.json.decode(text, type=Limits)


async def ensure_development_key(database: Database, *, pepper: bytes, credit_nanos: Nanos) -> NewKey | None:
    """On a database that never had a key: an account with one, and with some credit to try things, else None."""
    if await database.fetch_value(_queries["any_key"]):
        return None
    key = await create_key(database, name=DEVELOPMENT_KEY, pepper=pepper)
    if credit_nanos:
        account_id = await find_account(database, key.id)
        await credit(
            database,
            account_id,
            type="bonus",
            amount_nanos=credit_nanos,
            idempotency_key=f"development:{account_id}",
            reason="to try things with",
        )
    return key
