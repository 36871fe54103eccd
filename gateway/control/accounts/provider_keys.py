"""The provider keys that an account brings itself (BYOK): its requests go out with them, and cost a fee here.

Rules:
- The text of a key is taken in and never shown again; what is shown of it are the last four characters. It is kept
  encrypted (`kernel/vault.py`), and replaced by adding another and deleting this one.
- Members of an account see which there are, its administrators change them: a key serves, and is charged for by its
  provider, whatever member asks.
- A key goes with the name of a provider of the configuration, and is sent nowhere but to that provider's address.
- A change is told to every worker, as one of all gateway keys of the account, and holds there within a second.
- Deleting one deletes it. What was made with it at the provider can't be reached through here any more.
"""

import uuid
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.control import audit
from gateway.control.accounts.keys import check_reach
from gateway.control.accounts.people import publish_keys
from gateway.control.errors import Conflict, Invalid, NotFound
from gateway.control.parts import Parts
from gateway.control.route import Call, Done, Nothing, Route
from gateway.errors import CallerError, ConfigError
from gateway.infra.postgres import Row, Session, load_queries
from gateway.kernel.own_keys import TEXT_BYTES_MAX, Mode, fingerprint_of
from gateway.kernel.vault import Owner

TAG: Final = "provider keys"
LAST: Final = 4
#: Of so short a text four characters would tell too much.
SHOWN_LENGTH_MIN: Final = 12

_queries: Final = load_queries(Path(__file__).with_name("provider_keys.sql"))

Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\S")]
Provider = Annotated[str, Meta(min_length=1, max_length=200)]
Text = Annotated[str, Meta(min_length=1, max_length=TEXT_BYTES_MAX, pattern=r"\S")]


class OwnKeysOff(CallerError):
    """This gateway keeps no provider keys for its users: its operator has set no master key to keep them under."""

    error_type = "caller_unknown_route"
    status = 404
    code = "own_keys_off"


class SameKey(Conflict):
    """The account has this key already."""

    code = "same_key"


class TooManyProviderKeys(Conflict):
    """The account has as many provider keys as it can have; delete some."""

    code = "too_many_provider_keys"


class NewProviderKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that is to be added."""

    #: Which of the providers that the list names it is for.
    provider: Provider
    #: The key as the provider gave it out, or the JSON of what takes several: a service account, an access key.
    api_key: Text
    name: Name | None = None
    #: When it is used: before the operator's keys, after them, or in their place.
    mode: Mode = "first"
    enabled: bool = True


class ProviderKeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be changed; what is left out stays."""

    name: Name | UnsetType = UNSET
    mode: Mode | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class ProviderKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key, as far as it is shown."""

    id: uuid.UUID
    provider: str
    name: str
    #: Its end; empty of a short one.
    last_four: str
    mode: Mode
    enabled: bool
    #: Whether it could be used here right now, as far as that is told without asking the provider.
    usable: bool
    created_at: datetime
    updated_at: datetime


class ProviderKeyList(msgspec.Struct, frozen=True, kw_only=True):
    """All keys of the account, in the order in which they were added."""

    keys: tuple[ProviderKey, ...]
    #: What they can be for.
    providers: tuple[str, ...]
    #: What a request with one costs, in thousandths of what it would have cost without.
    fee_permille: int
    max_keys: int


async def create_provider_key(call: Call[NewProviderKey, Nothing]) -> ProviderKey:
    """Add a key. It is checked for its form, not asked for anything. This is the only time that its text passes."""
    parts, actor, body = call.parts, call.actor, call.body
    vault = parts.deps.keychains.vault
    if not vault.is_open:
        raise OwnKeysOff
    text = body.api_key.strip()
    _check(parts, body.provider, text)
    key_id = call.parts.new_id()
    sealed = vault.seal(text, Owner(account_id=actor.account_id, id=key_id, provider=body.provider))
    last_four = text[-LAST:] if len(text) >= SHOWN_LENGTH_MIN and not text.startswith("{") else ""
    async with parts.database.transaction() as session:
        await check_reach(session, actor)
        await session.execute(_queries["lock_account"], actor.account_id)
        most = parts.settings.own_keys.per_account_max
        if await session.fetch_value(_queries["count_provider_keys"], actor.account_id) >= most:
            raise TooManyProviderKeys
        try:
            await session.execute(
                _queries["create_provider_key"],
                key_id,
                actor.account_id,
                body.provider,
                (body.name or body.provider).strip(),
                body.mode,
                body.enabled,
                last_four,
                fingerprint_of(text, account_id=actor.account_id),
                sealed.master_id,
                sealed.nonce,
                sealed.sealed,
            )
        except asyncpg.UniqueViolationError as error:
            raise SameKey from error
        key = _found(
            parts, await session.fetch_row(_queries["read_provider_key"], uuid.UUID(key_id), actor.account_id)
        )
        await _record(session, call, "provider_keys.create", key, after=_shown(key) | {"provider": key.provider})
        told = await _gateway_keys(session, call)
    await publish_keys(parts, told)
    return key


async def list_provider_keys(call: Call[Nothing, Nothing]) -> ProviderKeyList:
    """The account's own provider keys, and which providers they can be for."""
    parts = call.parts
    rows = await parts.database.fetch(_queries["list_provider_keys"], call.actor.account_id)
    settings, keychains = parts.settings.own_keys, parts.deps.keychains
    return ProviderKeyList(
        keys=tuple(_view(parts, row) for row in rows),
        providers=tuple(keychains.providers()) if keychains.vault.is_open else (),
        fee_permille=settings.fee_permille,
        max_keys=settings.per_account_max,
    )


async def show_provider_key(call: Call[Nothing, Nothing]) -> ProviderKey:
    """One of them."""
    row = await call.parts.database.fetch_row(_queries["read_provider_key"], _id(call), call.actor.account_id)
    return _found(call.parts, row)


async def change_provider_key(call: Call[ProviderKeyChange, Nothing]) -> ProviderKey:
    """Switch it on or off, say when it is used, or rename it. Its text can't be changed: add another key."""
    parts, actor, body = call.parts, call.actor, call.body
    async with parts.database.transaction() as session:
        await check_reach(session, actor)
        before = _found(parts, await session.fetch_row(_queries["lock_provider_key"], _id(call), actor.account_id))
        name = before.name if body.name is UNSET else body.name.strip()
        mode = before.mode if body.mode is UNSET else body.mode
        enabled = before.enabled if body.enabled is UNSET else body.enabled
        await session.execute(_queries["update_provider_key"], before.id, actor.account_id, name, mode, enabled)
        after = _found(parts, await session.fetch_row(_queries["read_provider_key"], before.id, actor.account_id))
        old, new = _shown(before), _shown(after)
        changed = [each for each in new if new[each] != old[each]]
        if changed:
            await _record(
                session,
                call,
                "provider_keys.update",
                after,
                before={each: old[each] for each in changed},
                after={each: new[each] for each in changed},
            )
        told = await _gateway_keys(session, call)
    await publish_keys(parts, told)
    return after


async def delete_provider_key(call: Call[Nothing, Nothing]) -> Done:
    """Delete it for good. Within a second no request goes out with it; what was made with it at the provider stays
    there, and can't be reached through the gateway any more.
    """
    parts, actor = call.parts, call.actor
    async with parts.database.transaction() as session:
        await check_reach(session, actor)
        key = _found(parts, await session.fetch_row(_queries["lock_provider_key"], _id(call), actor.account_id))
        await session.execute(_queries["delete_provider_key"], key.id, actor.account_id)
        await _record(session, call, "provider_keys.delete", key, before=_shown(key) | {"provider": key.provider})
        told = await _gateway_keys(session, call)
    await publish_keys(parts, told)
    return Done(message="The provider key is deleted.")


def _check(parts: Parts, provider: str, text: str) -> None:
    """Refuse what can't be a key of that provider.

    Raises:
        Invalid
    """
    keychains = parts.deps.keychains
    if provider not in keychains.providers():
        names = ", ".join(keychains.providers()) or "none"
        raise Invalid(f"Own keys can be brought for these providers: {names}.", loc=("body", "provider"))
    try:
        keychains.check(provider, text)
    except ConfigError as error:
        if error.param not in (None, "api_key"):
            # Of the operator's own table, which is nobody else's business.
            raise Invalid("This provider can't be used with keys of one's own.", loc=("body", "provider")) from error
        raise Invalid(f"The key {error.message}.", loc=("body", "api_key")) from error


def _id(call: Call[Any, Nothing]) -> uuid.UUID:
    try:
        return uuid.UUID(call.params["provider_key_id"])
    except ValueError:
        raise NotFound from None


def _found(parts: Parts, row: Row | None) -> ProviderKey:
    """What was asked for together with the caller's account.

    Raises:
        NotFound
    """
    if row is None:
        raise NotFound
    return _view(parts, row)


def _view(parts: Parts, row: Row) -> ProviderKey:
    keychains = parts.deps.keychains
    usable = keychains.vault.knows(row["master_id"]) and row["provider"] in keychains.providers()
    values = {name: value for name, value in row.items() if name != "master_id"}
    return ProviderKey(**values, usable=usable)


def _shown(key: ProviderKey) -> dict[str, object]:
    """What the audit log is told of a key."""
    return {"name": key.name, "mode": key.mode, "enabled": key.enabled, "last_four": key.last_four}


async def _record(
    session: Session,
    call: Call[Any, Nothing],
    action: str,
    key: ProviderKey,
    *,
    before: object = None,
    after: object = None,
) -> None:
    await audit.record(
        session,
        audit.by(call),
        action,
        ("provider_key", str(key.id)),
        account_id=call.actor.account_id,
        before=before,
        after=after,
    )


async def _gateway_keys(session: Session, call: Call[Any, Nothing]) -> list[str]:
    return [row["id"] for row in await session.fetch(_queries["gateway_keys"], call.actor.account_id)]


_ONE: Final = "/user/provider-keys/{provider_key_id}"

ROUTES: Final = (
    Route(
        method="POST",
        path="/user/provider-keys",
        handler=create_provider_key,
        access="provider_keys:create",
        account_role="admin",
        summary="Bring a provider key of your own",
        tag=TAG,
        errors=(OwnKeysOff, SameKey, TooManyProviderKeys),
    ),
    Route(
        method="GET",
        path="/user/provider-keys",
        handler=list_provider_keys,
        access="provider_keys:list",
        summary="The account's own provider keys",
        tag=TAG,
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=show_provider_key,
        access="provider_keys:read",
        summary="One provider key",
        tag=TAG,
    ),
    Route(
        method="PATCH",
        path=_ONE,
        handler=change_provider_key,
        access="provider_keys:update",
        account_role="admin",
        summary="Change when a provider key is used",
        tag=TAG,
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=delete_provider_key,
        access="provider_keys:delete",
        account_role="admin",
        summary="Delete a provider key",
        tag=TAG,
    ),
)
