"""The keys of an account: making, showing, changing and ending them. Rotation is in `rotation.py`, what a key is said
to be in `key_facts.py`.

Rules:
- A key belongs to an account; members of it change those that they made, its owner and its administrators all.
- Through a key nobody gets more than it has: one that is narrowed makes and changes none, and what is made through
  one with scopes has no others.
- Of two that want the same name in an account one gets it, and the other is told so.
- A change is told to every worker when its transaction is over, and holds there within a second.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.control import audit
from gateway.control.access import is_at_least
from gateway.control.accounts.key_facts import (
    AnyEnvironment,
    Budgets,
    Days,
    Entries,
    KeyFacts,
    KeyLimits,
    KeyName,
    KeyView,
    RequestsMax,
    Scopes,
    check_below,
    clean_models,
    clean_networks,
    clean_providers,
    clean_referrers,
    clean_scopes,
    environment_of,
    expiry,
    facts_of,
    is_narrowed,
    is_within_scopes,
    kernel_limits,
    limits_text,
    plan_cap,
    queries,
    show_budgets,
    show_limits,
    view_of,
)
from gateway.control.accounts.people import publish_keys
from gateway.control.accounts.trail import in_utc
from gateway.control.accounts.users import plan_limits
from gateway.control.errors import Conflict, Invalid, NotFound, NotPermitted
from gateway.control.paging import Moment, Page
from gateway.control.parts import Parts
from gateway.control.route import Call, Nothing, Route
from gateway.control.session import Actor
from gateway.infra.postgres import Database, Row, Session
from gateway.kernel.key_store import NameTaken
from gateway.kernel.keys import mint

DELETE_WORD: Final = "DELETE_KEY"
#: Living keys of one account.
KEYS_MAX: Final = 1000
TAG: Final = "keys"


class TooManyKeys(Conflict):
    """The account has as many keys as it can have; revoke some."""

    code = "too_many_keys"


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that is to be made. What is left out does not narrow it."""

    key_name: KeyName
    environment_tag: AnyEnvironment = "live"
    #: {read, write or admin: [resource, ...]}. All of /v1 is the resource `inference`; `*` is every resource.
    scope_permissions: Scopes | None = None
    expiration_days: Days | None = None
    #: Requests in all its life; never more than the plan allows in a month.
    max_requests: RequestsMax | None = None
    #: Addresses and networks, such as 203.0.113.7 and 2001:db8::/32.
    ip_allowlist: Entries | None = None
    #: Hosts of the pages that may use it; `*.example.com` is everything below that.
    domain_referrers: Entries | None = None
    #: Names of models; `name*` is every one that begins so.
    model_allowlist: Entries | None = None
    provider_allowlist: Entries | None = None
    limits: KeyLimits | None = None
    budgets: Budgets = ()
    action: Literal["create"] = "create"


class KeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be changed; what is left out stays, and null lifts a bound. With another `action` than `update`,
    `grace_s` and `environment_tag` count and nothing else.
    """

    action: Literal["update", "rotate", "bulk_rotate"] = "update"
    key_name: KeyName | UnsetType = UNSET
    scope_permissions: Scopes | UnsetType | None = UNSET
    #: From now on.
    expiration_days: Days | UnsetType | None = UNSET
    max_requests: RequestsMax | UnsetType | None = UNSET
    ip_allowlist: Entries | UnsetType | None = UNSET
    domain_referrers: Entries | UnsetType | None = UNSET
    model_allowlist: Entries | UnsetType | None = UNSET
    provider_allowlist: Entries | UnsetType | None = UNSET
    limits: KeyLimits | UnsetType | None = UNSET
    budgets: Budgets | UnsetType | None = UNSET
    is_active: bool | UnsetType = UNSET
    #: Of `bulk_rotate`: only keys of this environment.
    environment_tag: AnyEnvironment | None = None
    #: Of a rotation: for how long the old text is good.
    grace_s: Annotated[float, Meta(ge=0, le=30 * 86_400)] = 0.0


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """That it is meant."""

    #: DELETE_KEY
    confirmation: str


class SecurityFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """What protects a key that was just made."""

    hashed_at_rest: bool
    shown_once: bool
    ip_restrictions: bool
    domain_restrictions: bool
    expiration: bool
    usage_limits: bool
    audit_logging: bool


class CreatedKey(KeyView, frozen=True, kw_only=True):
    """A new key. This is the only time that its text is shown."""

    status: str
    message: str
    #: The whole of it.
    api_key: str
    security_features: SecurityFeatures
    timestamp: datetime


class KeyFilter(Page, frozen=True, kw_only=True):
    """Which keys."""

    environment_tag: AnyEnvironment | None = None
    include_revoked: bool = False


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of them, newest first."""

    status: str
    #: Living ones, of every environment.
    total_keys: int
    keys: tuple[KeyView, ...]
    limit: int
    offset: int
    next_cursor: str | None
    timestamp: datetime


class DeletedKey(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    message: str
    deleted_key_id: str
    timestamp: datetime


# -- who may
# -----------------------------------------------------------------------------------------------------------


def only_of(actor: Actor) -> int | None:
    """The person whose keys alone the caller may change; None for everybody's in the account."""
    return None if is_at_least(actor.account_role, "admin") else actor.user_id


def check_owner(actor: Actor, row: Row) -> None:
    """Refuse to change what another member made.

    Raises:
        NotPermitted
    """
    owner = only_of(actor)
    if owner is not None and row["user_id"] != owner:
        raise NotPermitted("Another member of the account made this key; only its administrators may change it.")


async def check_reach(session: Session, actor: Actor) -> None:
    """Refuse to give more than the caller has, where that is a key which is itself narrowed.

    Raises:
        NotPermitted
    """
    if actor.key_id is None:
        return
    row = await session.fetch_row(queries["read_key"], actor.key_id, actor.account_id)
    if row is None or is_narrowed(facts_of(row)):
        raise NotPermitted("This key is narrowed, and so it makes and changes no others.", code="key_narrowed")


def check_scopes(actor: Actor, scopes: dict[str, tuple[str, ...]]) -> None:
    """Refuse scopes that the caller's own do not include.

    Raises:
        NotPermitted
    """
    if not is_within_scopes(scopes, dict(actor.scopes)):
        raise NotPermitted("These are more scopes than your key has.", code="scopes_above_own")


async def find_key(session: Session | Database, actor: Actor, key_id: str) -> Row:
    """A key of the caller's account.

    Raises:
        NotFound
    """
    row = await session.fetch_row(queries["read_key"], key_id, actor.account_id)
    if row is None:
        raise NotFound
    return row


async def lock_key(session: Session, actor: Actor, key_id: str) -> Row:
    """The same, which nobody else changes until the transaction is over, and which the caller may change.

    Raises:
        NotFound, NotPermitted
    """
    if await session.fetch_value(queries["lock_key"], key_id, actor.account_id) is None:
        raise NotFound
    row = await find_key(session, actor, key_id)
    check_owner(actor, row)
    return row


def now_of(parts: Parts) -> datetime:
    return datetime.fromtimestamp(parts.clock.now(), UTC)


# -- handlers
# ----------------------------------------------------------------------------------------------------------


async def create_key(call: Call[NewKey, Nothing]) -> CreatedKey:
    """Make a key. Its text is in this answer and nowhere else; the gateway keeps a keyed hash of it."""
    parts, actor, body = call.parts, call.actor, call.body
    environment = environment_of(body.environment_tag)
    facts = KeyFacts(
        name=body.key_name.strip(),
        # What is made through a key with scopes has these, where it says nothing else.
        scopes=dict(actor.scopes) if body.scope_permissions is None else clean_scopes(body.scope_permissions),
        expires_at=expiry(parts, body.expiration_days),
        max_requests=body.max_requests,
        networks=clean_networks(body.ip_allowlist or ()),
        referrers=clean_referrers(body.domain_referrers or ()),
        models=clean_models(body.model_allowlist or ()),
        providers=clean_providers(parts, body.provider_allowlist or ()),
        limits=kernel_limits(body.limits, body.budgets),
    )
    check_scopes(actor, facts.scopes)
    key = mint(environment, pepper=parts.pepper)
    async with parts.database.transaction() as session:
        await check_reach(session, actor)
        plan = await session.fetch_value(queries["lock_account"], actor.account_id)
        if await session.fetch_value(queries["count_living"], actor.account_id) >= KEYS_MAX:
            raise TooManyKeys
        check_below(facts.limits, plan_cap(parts, plan, environment))
        facts = _capped(parts, facts, plan)
        proof = (environment, key.digest, key.last_four)
        try:
            await session.execute(
                queries["create_key"], key.id, actor.account_id, actor.user_id, facts.name, *proof, *_columns(facts)
            )
        except asyncpg.UniqueViolationError as error:
            raise _taken(facts.name) from error
        row = await find_key(session, actor, key.id)
        await audit.record(
            session,
            audit.by(call),
            "api_keys.create",
            ("key", key.id),
            account_id=actor.account_id,
            after={**shown_facts(facts), "environment": environment},
        )
    # Somebody may have guessed at its id.
    await publish_keys(parts, [key.id])
    now = now_of(parts)
    return CreatedKey(
        **msgspec.structs.asdict(view_of(row, now=now)),
        status="success",
        message="This is the only time that the key is shown.",
        api_key=key.text,
        security_features=SecurityFeatures(
            hashed_at_rest=True,
            shown_once=True,
            ip_restrictions=bool(facts.networks),
            domain_restrictions=bool(facts.referrers),
            expiration=facts.expires_at is not None,
            usage_limits=facts.max_requests is not None,
            audit_logging=True,
        ),
        timestamp=now,
    )


async def list_keys(call: Call[Nothing, KeyFilter]) -> KeyList:
    """The keys of the account, newest first; revoked ones only if asked for."""
    rows, cursor = await read_page(call)
    now = now_of(call.parts)
    counted = await call.parts.database.fetch_row(queries["count_keys"], call.actor.account_id)
    assert counted is not None
    return KeyList(
        status="success",
        total_keys=counted["living"],
        keys=tuple(view_of(row, now=now) for row in rows),
        limit=call.query.limit,
        offset=call.query.offset,
        next_cursor=cursor,
        timestamp=now,
    )


async def read_page(call: Call[Any, Any]) -> tuple[Sequence[Row], str | None]:  # Any: a query that is a KeyFilter
    """A page of rows, and where the next one begins."""
    query: KeyFilter = call.query
    at, key_id = query.after(tuple[Moment, str]) or (None, None)
    rows = await call.parts.database.fetch(
        queries["list_keys"],
        call.actor.account_id,
        query.include_revoked,
        None if query.environment_tag is None else environment_of(query.environment_tag),
        in_utc(at, "cursor"),
        key_id,
        *query.window,
    )
    return query.cut(rows, "created_at", "id")


async def show_key(call: Call[Nothing, Nothing]) -> KeyView:
    """One key of the account, revoked ones too."""
    row = await find_key(call.parts.database, call.actor, call.params["key_id"])
    return view_of(row, now=now_of(call.parts))


async def change_key(call: Call[KeyChange, Nothing], row: Row, session: Session) -> KeyFacts:
    """Write what is to be changed of a locked key, and what it is then.

    Raises:
        NotPermitted, Invalid, NameTaken
    """
    parts, actor = call.parts, call.actor
    before = facts_of(row)
    after = _changed(parts, call.body, before)
    if after.scopes != before.scopes:
        check_scopes(actor, after.scopes)
    plan = await session.fetch_value(queries["read_plan"], actor.account_id)
    if after.limits != before.limits:
        check_below(after.limits, plan_cap(parts, plan, row["environment"]))
    if after.max_requests != before.max_requests:
        after = _capped(parts, after, plan)
    if after == before:
        return after
    columns = _columns(after)
    try:
        await session.execute(
            queries["update_key"], row["id"], actor.account_id, after.name, *columns, after.is_active
        )
    except asyncpg.UniqueViolationError as error:
        raise _taken(after.name) from error
    old, new = shown_facts(before), shown_facts(after)
    changed = [name for name in new if new[name] != old[name]]
    await audit.record(
        session,
        audit.by(call),
        "api_keys.update",
        ("key", row["id"]),
        account_id=actor.account_id,
        before={name: old[name] for name in changed},
        after={name: new[name] for name in changed},
    )
    return after


async def delete_key(call: Call[Deletion, Nothing]) -> DeletedKey:
    """End a key for good; within a second no request is let in with it. `confirmation` is `DELETE_KEY`."""
    if call.body.confirmation != DELETE_WORD:
        raise Invalid(f"To confirm, send {DELETE_WORD}.", loc=("body", "confirmation"))
    parts, actor, key_id = call.parts, call.actor, call.params["key_id"]
    async with parts.database.transaction() as session:
        row = await lock_key(session, actor, key_id)
        await session.execute(queries["revoke_key"], key_id, actor.account_id)
        await audit.record(
            session,
            audit.by(call),
            "api_keys.revoke",
            ("key", key_id),
            account_id=actor.account_id,
            before={"name": row["name"], "is_active": row["disabled_at"] is None},
            after={"revoked": True},
        )
    await publish_keys(parts, [key_id])
    return DeletedKey(status="success", message="The key is revoked.", deleted_key_id=key_id, timestamp=now_of(parts))


def shown_facts(facts: KeyFacts) -> dict[str, object]:
    """What the audit log keeps of a key."""
    return {
        "name": facts.name,
        "scopes": facts.scopes,
        "expires_at": facts.expires_at,
        "max_requests": facts.max_requests,
        "ip_allowlist": facts.networks,
        "domain_referrers": facts.referrers,
        "model_allowlist": facts.models,
        "provider_allowlist": facts.providers,
        "limits": show_limits(facts.limits),
        "budgets": show_budgets(facts.limits),
        "is_active": facts.is_active,
    }


def _changed(parts: Parts, body: KeyChange, before: KeyFacts) -> KeyFacts:
    limits = before.limits
    if body.limits is not UNSET:
        limits = msgspec.structs.replace(kernel_limits(body.limits, ()), budgets=limits.budgets)
    if body.budgets is not UNSET:
        limits = msgspec.structs.replace(limits, budgets=kernel_limits(None, body.budgets or ()).budgets)
    return KeyFacts(
        name=before.name if body.key_name is UNSET else body.key_name.strip(),
        scopes=before.scopes if body.scope_permissions is UNSET else clean_scopes(body.scope_permissions),
        expires_at=before.expires_at if body.expiration_days is UNSET else expiry(parts, body.expiration_days),
        max_requests=before.max_requests if body.max_requests is UNSET else body.max_requests,
        networks=before.networks if body.ip_allowlist is UNSET else clean_networks(body.ip_allowlist or ()),
        referrers=(
            before.referrers if body.domain_referrers is UNSET else clean_referrers(body.domain_referrers or ())
        ),
        models=before.models if body.model_allowlist is UNSET else clean_models(body.model_allowlist or ()),
        providers=(
            before.providers
            if body.provider_allowlist is UNSET
            else clean_providers(parts, body.provider_allowlist or ())
        ),
        limits=limits,
        is_active=before.is_active if body.is_active is UNSET else body.is_active,
    )


def _capped(parts: Parts, facts: KeyFacts, plan: str) -> KeyFacts:
    """With no more requests in its life than the plan allows in a month."""
    most = plan_limits(parts, plan).requests_per_month
    if facts.max_requests is None or most is None or facts.max_requests <= most:
        return facts
    return msgspec.structs.replace(facts, max_requests=max(1, most))


def _columns(facts: KeyFacts) -> tuple[object, ...]:
    """Of `create_key` and `update_key`, in their order."""
    return (
        msgspec.json.encode(facts.scopes).decode(),
        facts.expires_at,
        facts.max_requests,
        facts.networks,
        facts.referrers,
        facts.models,
        facts.providers,
        limits_text(facts.limits),
    )


def _taken(name: str) -> NameTaken:
    return NameTaken(f"There is a key named {name!r} already; revoke it or choose another name.")


ROUTES: Final = (
    Route(
        method="POST",
        path="/user/api-keys",
        handler=create_key,
        access="api_keys:create",
        summary="Make a key",
        tag=TAG,
        errors=(NameTaken, TooManyKeys),
    ),
    Route(
        method="GET",
        path="/user/api-keys",
        handler=list_keys,
        access="api_keys:list",
        summary="The keys of the account",
        tag=TAG,
    ),
    Route(
        method="GET",
        path="/user/api-keys/{key_id}",
        handler=show_key,
        access="api_keys:read",
        summary="One key",
        tag=TAG,
    ),
    Route(
        method="DELETE",
        path="/user/api-keys/{key_id}",
        handler=delete_key,
        access="api_keys:delete",
        summary="Revoke a key",
        tag=TAG,
    ),
)
