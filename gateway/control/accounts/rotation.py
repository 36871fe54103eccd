"""Rotation: a key gets another text, and stays the same key in everything else.

Rules:
- It keeps its id, and with that its name, limits, budgets, history and what it has used: nobody gets anything anew by
  rotating.
- The old text is refused from the next second on, or goes on being good for a while if that is asked for. The text
  before that one is refused in any case.
- Whoever rotates a key holds its text, so from then on it acts in their role here, not in that of whoever made it.
- Of several who rotate a key at the same time one has it, and the others are told so: a key that was just rotated
  can't be rotated again for `PAUSE_S`, or the winner's text would be of no use already.
"""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from gateway.control import audit
from gateway.control.accounts.key_facts import AnyEnvironment, KeyView, environment_of, facts_of, queries, view_of
from gateway.control.accounts.keys import (
    TAG,
    KeyChange,
    change_key,
    check_owner,
    check_reach,
    check_scopes,
    find_key,
    lock_key,
    now_of,
    only_of,
)
from gateway.control.accounts.people import publish_keys
from gateway.control.errors import Conflict, NotFound, NotPermitted
from gateway.control.route import Call, Nothing, Route
from gateway.infra.postgres import Row, Session
from gateway.kernel.key_store import NameTaken
from gateway.kernel.keys import mint

PAUSE_S: Final = 5.0
GRACE_S_MAX: Final = 30 * 86_400.0

Grace = Annotated[float, Meta(ge=0, le=GRACE_S_MAX, description="For how long the old text is good, in seconds.")]


class JustRotated(Conflict):
    """This was rotated a moment ago, perhaps by somebody else; the text that was shown then is what counts."""

    code = "just_rotated"


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    grace_s: Grace = 0.0


class BulkRotation(msgspec.Struct, frozen=True, kw_only=True):
    """All keys that can be used, or those of one environment."""

    environment_tag: AnyEnvironment | None = None
    grace_s: Grace = 0.0


class RotatedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key with another text. This is the only time that it is shown."""

    id: str
    key_name: str
    api_key: str
    #: Until when the old text is good; null where it is not any more.
    previous_until: datetime | None


class RotatedKeys(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    message: str
    rotated_keys: tuple[RotatedKey, ...]
    timestamp: datetime


class UpdatedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is now. Its text is there where that is new, and shown this once."""

    status: str
    message: str
    updated_key: KeyView
    api_key: str | None
    rotated_keys: tuple[RotatedKey, ...]
    timestamp: datetime


async def update_key(call: Call[KeyChange, Nothing]) -> UpdatedKey:
    """Change a key, or with `action` rotate it, or all keys. What is left out stays as it is; a change holds within a
    second.
    """
    parts, actor, body, key_id = call.parts, call.actor, call.body, call.params["key_id"]
    rotated: tuple[RotatedKey, ...] = ()
    message = "The key is changed."
    if body.action == "rotate":
        rotated = (await _rotate(call, key_id, body.grace_s),)
        message = "The key is rotated. This is the only time that it is shown."
    elif body.action == "bulk_rotate":
        await find_key(parts.database, actor, key_id)
        rotated = await _rotate_all(call, body.environment_tag, body.grace_s)
        message = "The keys are rotated. This is the only time that they are shown."
    else:
        async with parts.database.transaction() as session:
            row = await lock_key(session, actor, key_id)
            await check_reach(session, actor)
            await change_key(call, row, session)
        await publish_keys(parts, [key_id])
    now = now_of(parts)
    return UpdatedKey(
        status="success",
        message=message,
        updated_key=view_of(await find_key(parts.database, actor, key_id), now=now),
        api_key=next((each.api_key for each in rotated if each.id == key_id), None),
        rotated_keys=rotated,
        timestamp=now,
    )


async def rotate_key(call: Call[Rotation, Nothing]) -> RotatedKey:
    """Give a key another text. It stays the same key, with what it may and what it has used."""
    return await _rotate(call, call.params["key_id"], call.body.grace_s)


async def rotate_keys(call: Call[BulkRotation, Nothing]) -> RotatedKeys:
    """Give all keys of the account that can be used another text, or those of one environment. Whoever is no
    administrator of it rotates those they made. Keys that were rotated a moment ago are left as they are.
    """
    rotated = await _rotate_all(call, call.body.environment_tag, call.body.grace_s)
    return RotatedKeys(
        status="success",
        message=f"{len(rotated)} keys are rotated. This is the only time that they are shown.",
        rotated_keys=rotated,
        timestamp=now_of(call.parts),
    )


async def _rotate(call: Call[Any, Any], key_id: str, grace_s: float) -> RotatedKey:  # Any: of either route
    parts, actor = call.parts, call.actor
    async with parts.database.transaction() as session:
        row = await lock_key(session, actor, key_id)
        if actor.key_id != key_id:
            # Its text is shown, so it must not be worth more than what asks for it. For itself it is worth the same.
            await check_reach(session, actor)
            check_scopes(actor, facts_of(row).scopes)
        rotated = await _renew(call, session, row, grace_s)
    if rotated is None:
        raise JustRotated(retry_after_s=PAUSE_S)
    await publish_keys(parts, [key_id])
    return rotated


async def _rotate_all(
    call: Call[Any, Any],  # Any: of either route
    environment_tag: AnyEnvironment | None,
    grace_s: float,
) -> tuple[RotatedKey, ...]:
    parts, actor = call.parts, call.actor
    if actor.scopes:
        raise NotPermitted("A key with scopes rotates keys one by one.", code="scopes_above_own")
    environment = None if environment_tag is None else environment_of(environment_tag)
    rotated: list[RotatedKey] = []
    async with parts.database.transaction() as session:
        await check_reach(session, actor)
        rows = await session.fetch(queries["lock_rotatable"], actor.account_id, environment, only_of(actor), PAUSE_S)
        for row in rows:
            check_owner(actor, row)
            renewed = await _renew(call, session, row, grace_s)
            assert renewed is not None, "it is locked, and was rotatable"
            rotated.append(renewed)
    if not rotated:
        raise JustRotated("There is no key that can be rotated now.", code="nothing_to_rotate")
    await publish_keys(parts, [each.id for each in rotated])
    return tuple(rotated)


async def _renew(call: Call[Any, Any], session: Session, row: Row, grace_s: float) -> RotatedKey | None:
    """Another text for a locked key; None if it just got one."""
    parts, actor, key_id = call.parts, call.actor, row["id"]
    key = mint(row["environment"], pepper=parts.pepper, key_id=key_id)
    written = await session.fetch_row(
        queries["rotate_key"],
        key_id,
        actor.account_id,
        key.digest,
        key.last_four,
        actor.user_id,
        grace_s,
        PAUSE_S,
    )
    if written is None:
        return None
    await audit.record(
        session,
        audit.by(call),
        "api_keys.rotate",
        ("key", key_id),
        account_id=actor.account_id,
        before={"user_id": row["user_id"]},
        after={"user_id": actor.user_id, "previous_until": written["previous_until"]},
    )
    return RotatedKey(id=key_id, key_name=row["name"], api_key=key.text, previous_until=written["previous_until"])


ROUTES: Final = (
    Route(
        method="PUT",
        path="/user/api-keys/{key_id}",
        handler=update_key,
        access="api_keys:update",
        summary="Change or rotate a key",
        tag=TAG,
        errors=(NameTaken, JustRotated),
        idempotent=True,
    ),
    Route(
        method="POST",
        path="/user/api-keys/{key_id}/rotate",
        handler=rotate_key,
        access="api_keys:update",
        summary="Rotate a key",
        tag=TAG,
        errors=(JustRotated, NotFound),
    ),
    Route(
        method="POST",
        path="/user/api-keys/rotate",
        handler=rotate_keys,
        access="api_keys:update",
        summary="Rotate all keys",
        tag=TAG,
        errors=(JustRotated,),
    ),
)
