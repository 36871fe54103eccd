"""What is somebody's own: balance, usage, limits, profile, credit, and the end of it all.

Rules:
- What is shown of limits is what the limiter counts, of usage what was settled; nothing is added up in here.
- A person who leaves is forgotten: name, address, password, sessions, identities. Accounts that nobody else owns are
  closed, their keys end at once, and the provider keys that they brought are deleted. What was paid and used stays,
  as numbers, because the books must.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from gateway.control import audit
from gateway.control.accounts.people import EmailTaken, clean_email, publish_keys, queries, send_proof
from gateway.control.accounts.standing import keep_an_administrator
from gateway.control.errors import Conflict, Invalid
from gateway.control.paging import Number, Page
from gateway.control.parts import Parts
from gateway.control.route import Call, Done, Nothing, Route
from gateway.infra.postgres import load_queries
from gateway.kernel.journal import EntryType, read_balance
from gateway.kernel.levels import read_account_levels
from gateway.kernel.limits import COUNTS, NO_LIMITS, Limits
from gateway.kernel.money import usd
from gateway.settings import NO_PLAN, UNLIMITED

DELETE_WORD: Final = "DELETE_ACCOUNT"
#: Of what people keep here about themselves.
NOTES_BYTES_MAX: Final = 16 * 1024
_TAG: Final = "user"
_queries: Final = load_queries(Path(__file__).with_name("users.sql"))

Name = Annotated[str, Meta(min_length=1, max_length=200)]


class BalanceView(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to spend."""

    #: How the key that asks begins; null for a session.
    api_key: str | None
    #: Dollars.
    credits: float
    status: str
    user_id: int | None
    account_id: int
    plan: str
    tokens_remaining: int | None
    requests_remaining: int | None
    trial_end_date: datetime | None


class UsageMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What was used; costs are dollars."""

    total_requests: int
    total_tokens: int
    total_cost: float
    requests_today: int
    tokens_today: int
    cost_today: float
    requests_this_month: int
    tokens_this_month: int
    cost_this_month: float
    average_tokens_per_request: float
    most_used_model: str | None
    last_request_time: datetime | None


class RateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the account may use in a window; null is not limited."""

    requests_per_minute: int | None
    requests_per_hour: int | None
    requests_per_day: int | None
    tokens_per_minute: int | None
    tokens_per_hour: int | None
    tokens_per_day: int | None


class Monitor(msgspec.Struct, frozen=True, kw_only=True):
    """An account at a glance."""

    user_id: int | None
    account_id: int
    credits: float
    usage_metrics: UsageMetrics
    rate_limits: RateLimits


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken of each limit now."""

    requests_per_minute: float | None = None
    requests_per_hour: float | None = None
    requests_per_day: float | None = None
    tokens_per_minute: float | None = None
    tokens_per_hour: float | None = None
    tokens_per_day: float | None = None
    concurrent_requests: int = 0


class Resets(msgspec.Struct, frozen=True, kw_only=True):
    """When each limit is whole again if nothing more is used."""

    requests_per_minute: datetime | None = None
    requests_per_hour: datetime | None = None
    requests_per_day: datetime | None = None
    tokens_per_minute: datetime | None = None
    tokens_per_hour: datetime | None = None
    tokens_per_day: datetime | None = None


class LimitView(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the account, and how much of them is used."""

    user_id: int | None
    account_id: int
    plan: str
    concurrency: int | None
    current_limits: RateLimits
    current_usage: Counted
    reset_times: Resets


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A person."""

    user_id: int
    account_id: int
    username: str | None
    email: str | None
    email_verified: bool
    name: str | None
    role: str
    account_role: str
    status: str
    has_password: bool
    credits: float
    preferences: dict[str, Any]  # Any: whatever JSON the person keeps there
    settings: dict[str, Any]  # Any: as above
    created_at: datetime
    updated_at: datetime
    last_login_at: datetime | None
    #: What else happened.
    message: str = ""


class ProfileChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be changed; at least one of these."""

    name: Name | None = None
    #: It counts once it was confirmed by the link that is sent there.
    email: Annotated[str, Meta(min_length=3, max_length=320)] | None = None
    preferences: dict[str, Any] | None = None  # Any: as in Profile
    settings: dict[str, Any] | None = None  # Any: as in Profile


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """That it is meant."""

    #: DELETE_ACCOUNT
    confirmation: str


class EntryFilter(Page, frozen=True, kw_only=True):
    """Which entries."""

    transaction_type: EntryType | None = None


class Transaction(msgspec.Struct, frozen=True, kw_only=True):
    """One change of the balance; amounts are dollars."""

    id: int
    amount: float
    type: EntryType
    description: str
    balance_before: float
    balance_after: float
    created_at: datetime
    payment_id: str | None
    metadata: dict[str, str]


class TypeSum(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    amount: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Of all entries of the account, whatever the page shows."""

    total_transactions: int
    total_credits_added: float
    total_credits_used: float
    by_type: dict[str, TypeSum]


class Transactions(msgspec.Struct, frozen=True, kw_only=True):
    """A page of them."""

    transactions: tuple[Transaction, ...]
    total: int
    limit: int
    offset: int
    next_cursor: str | None
    summary: Summary


# -- rules
# -------------------------------------------------------------------------------------------------------------


def plan_limits(parts: Parts, plan: str) -> Limits:
    """What an account of that plan may use."""
    if plan == UNLIMITED:
        return NO_LIMITS
    plans = parts.settings.plans
    found = plans.get(plan) or plans.get(NO_PLAN)
    return NO_LIMITS if found is None else Limits(**{name: getattr(found, name) for name in COUNTS})


# -- handlers
# ----------------------------------------------------------------------------------------------------------


async def show_balance(call: Call[Nothing, Nothing]) -> BalanceView:
    """What the account has to spend."""
    actor, database = call.actor, call.parts.database
    balance = await read_balance(database, actor.account_id)
    account = await database.fetch_row(_queries["read_account"], actor.account_id, actor.key_id)
    assert account is not None
    prefix = None if actor.key_id is None else f"gw_{account['environment']}_{actor.key_id}"[:10]
    return BalanceView(
        api_key=prefix,
        credits=usd(balance.balance_nanos),
        status=account["status"],
        user_id=actor.user_id,
        account_id=actor.account_id,
        plan=account["plan"],
        tokens_remaining=None,
        requests_remaining=None,
        trial_end_date=None,
    )


async def show_monitor(call: Call[Nothing, Nothing]) -> Monitor:
    """Credit, usage and limits of the account."""
    account_id, database = call.actor.account_id, call.parts.database
    balance = await read_balance(database, account_id)
    account = await database.fetch_row(_queries["read_account"], account_id, None)
    used = await database.fetch_row(_queries["sum_usage"], account_id)
    assert used is not None
    assert account is not None
    metrics = UsageMetrics(
        total_requests=used["requests"],
        total_tokens=used["tokens"],
        total_cost=usd(used["cost_nanos"]),
        requests_today=used["day_requests"],
        tokens_today=used["day_tokens"],
        cost_today=usd(used["day_cost_nanos"]),
        requests_this_month=used["month_requests"],
        tokens_this_month=used["month_tokens"],
        cost_this_month=usd(used["month_cost_nanos"]),
        average_tokens_per_request=round(used["tokens"] / used["requests"], 2) if used["requests"] else 0.0,
        most_used_model=await database.fetch_value(_queries["top_model"], account_id),
        last_request_time=await database.fetch_value(_queries["last_request"], account_id),
    )
    return Monitor(
        user_id=call.actor.user_id,
        account_id=account_id,
        credits=usd(balance.balance_nanos),
        usage_metrics=metrics,
        rate_limits=_six(plan_limits(call.parts, account["plan"])),
    )


async def show_limit(call: Call[Nothing, Nothing]) -> LimitView:
    """The account's limits, what is used of them at this moment, and when they are whole again."""
    parts, account_id = call.parts, call.actor.account_id
    account = await parts.database.fetch_row(_queries["read_account"], account_id, None)
    assert account is not None
    limits = plan_limits(parts, account["plan"])
    now = datetime.fromtimestamp(parts.clock.now(), UTC)
    levels = await read_account_levels(parts.redis, account_id, limits, now_s=parts.clock.now())
    shown = {name: level for name, level in levels.buckets.items() if name in RateLimits.__struct_fields__}
    return LimitView(
        user_id=call.actor.user_id,
        account_id=account_id,
        plan=account["plan"],
        concurrency=limits.concurrency,
        current_limits=_six(limits),
        current_usage=Counted(
            **{name: round(level.used, 3) for name, level in shown.items()}, concurrent_requests=levels.concurrency
        ),
        reset_times=Resets(**{name: now + timedelta(seconds=level.reset_s) for name, level in shown.items()}),
    )


async def show_profile(call: Call[Nothing, Nothing]) -> Profile:
    """Who you are."""
    return await _profile(call)


async def change_profile(call: Call[ProfileChange, Nothing]) -> Profile:
    """Change what you say of yourself. A new address counts once it was confirmed by the link that is sent there."""
    parts, body, user_id = call.parts, call.body, call.actor.person
    if body == ProfileChange():
        raise Invalid("Nothing is to be changed; give at least one field.")
    notes = [None if each is None else msgspec.json.encode(each) for each in (body.preferences, body.settings)]
    for field, note in zip(("preferences", "settings"), notes, strict=True):
        if note is not None and len(note) > NOTES_BYTES_MAX:
            raise Invalid(f"These are more than {NOTES_BYTES_MAX} bytes.", loc=("body", field))
    message = ""
    async with parts.database.transaction() as session:
        texts = [None if note is None else note.decode() for note in notes]
        await session.execute(queries["update_profile"], user_id, body.name, *texts)
        changed = [name for name in ("name", "preferences", "settings") if getattr(body, name) is not None]
        if body.email is not None:
            email = clean_email(body.email)
            taken = await session.fetch_row(queries["find_by_email"], email)
            if taken is None or not taken["verified"] or taken["id"] == user_id:
                await send_proof(parts, session, user_id=user_id, email=email, purpose="verify_email")
            # Whose an address is, is for the one who reads its mail to know: the answer is the same.
            changed.append("address")
            message = "The new address counts once it was confirmed by the link that is on its way there."
        await audit.record(
            session,
            audit.by(call),
            "users.update",
            ("user", user_id),
            account_id=call.actor.account_id,
            after={"changed": changed},
        )
    return msgspec.structs.replace(await _profile(call), message=message)


async def delete_account(call: Call[Confirmation, Nothing]) -> Done:
    """Leave for good. Accounts that nobody else is in are closed and their keys end; what is personal is forgotten,
    what was paid and used stays in the books. `confirmation` is `DELETE_ACCOUNT`.
    """
    if call.body.confirmation != DELETE_WORD:
        raise Invalid(f"To confirm, send {DELETE_WORD}.", loc=("body", "confirmation"))
    revoked = await forget_person(call.parts, audit.by(call), call.actor.person)
    await publish_keys(call.parts, revoked)
    return Done(message="The account is deleted.")


async def list_transactions(call: Call[Nothing, EntryFilter]) -> Transactions:
    """Every change of the balance, newest first, with sums over all of them."""
    query, database, account_id = call.query, call.parts.database, call.actor.account_id
    after = query.after(tuple[Number]) or (None,)
    rows = await database.fetch(_queries["list_entries"], account_id, query.transaction_type, *after, *query.window)
    page, next_cursor = query.cut(rows, "seq")
    sums = {row["type"]: row for row in await database.fetch(_queries["sum_entries"], account_id)}
    counted = sums.values() if query.transaction_type is None else [sums.get(query.transaction_type)]
    return Transactions(
        transactions=tuple(_transaction(row) for row in page),
        total=sum(row["count"] for row in counted if row is not None),
        limit=query.limit,
        offset=query.offset,
        next_cursor=next_cursor,
        summary=Summary(
            total_transactions=sum(row["count"] for row in sums.values()),
            total_credits_added=usd(sum(max(0, row["amount_nanos"]) for row in sums.values())),
            total_credits_used=usd(-sum(min(0, row["amount_nanos"]) for row in sums.values())),
            by_type={
                name: TypeSum(count=row["count"], amount=usd(row["amount_nanos"])) for name, row in sums.items()
            },
        ),
    )


async def forget_person(parts: Parts, who: audit.By, user_id: int) -> list[str]:
    """Delete a person. The ids of the keys that ended, to be published.

    Raises:
        Conflict: an account with others in it would be left without an owner, or there would be no administrator.
    """
    revoked: list[str] = []
    async with parts.database.transaction() as session:
        await keep_an_administrator(session, user_id)
        person = await session.fetch_row(queries["read_person"], user_id)
        assert person is not None
        for owned in await session.fetch(queries["list_owned"], user_id):
            if owned["others"]:
                raise Conflict(
                    f"Account {owned['account_id']} has other members; make one of them its owner first.",
                    code="last_owner",
                )
            rows = await session.fetch(queries["revoke_account_keys"], owned["account_id"])
            revoked += [row["id"] for row in rows]
            await session.execute(queries["close_account"], owned["account_id"])
            await session.execute(queries["delete_provider_keys"], owned["account_id"])
            await audit.record(
                session,
                who,
                "accounts.close",
                ("account", owned["account_id"]),
                account_id=owned["account_id"],
                before={"status": "active"},
                after={"status": "closed"},
            )
        await session.execute(queries["forget_identities"], user_id)
        await session.execute(queries["forget_sessions"], user_id)
        await session.execute(queries["forget_tokens"], user_id)
        await session.execute(queries["forget_memberships"], user_id)
        if person["email"] is not None:
            await session.execute(queries["forget_invitations"], person["email"])
        await session.execute(queries["forget_person"], user_id)
        await audit.record(
            session,
            who,
            "users.delete",
            ("user", user_id),
            account_id=None,
            before={"role": person["role"], "status": person["status"]},
            after={"status": "deleted"},
        )
    return revoked


async def _profile(call: Call[Any, Any]) -> Profile:  # Any: of either of the two above
    user_id = call.actor.person
    row = await call.parts.database.fetch_row(queries["read_person"], user_id)
    assert row is not None
    balance = await read_balance(call.parts.database, call.actor.account_id)
    return Profile(
        user_id=user_id,
        account_id=call.actor.account_id,
        username=row["username"],
        email=row["email"],
        email_verified=row["verified"],
        name=row["name"],
        role=row["role"],
        account_role=call.actor.account_role,
        status=row["status"],
        has_password=row["has_password"],
        credits=usd(balance.balance_nanos),
        preferences=msgspec.json.decode(row["preferences"]),
        settings=msgspec.json.decode(row["settings"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        last_login_at=row["last_login_at"],
    )


def _transaction(row: Any) -> Transaction:  # Any: a row
    facts = {"request_id": row["request_id"], "idempotency_key": row["idempotency_key"]}
    return Transaction(
        id=row["seq"],
        amount=usd(row["amount_nanos"]),
        type=row["type"],
        description=row["reason"] or row["type"].replace("_", " "),
        balance_before=usd(row["balance_after_nanos"] - row["amount_nanos"]),
        balance_after=usd(row["balance_after_nanos"]),
        created_at=row["created_at"],
        payment_id=row["payment_id"],
        metadata={name: str(value) for name, value in facts.items() if value is not None},
    )


def _six(limits: Limits) -> RateLimits:
    return RateLimits(**{name: getattr(limits, name) for name in RateLimits.__struct_fields__})


ROUTES: Final = (
    Route(method="GET", path="/user/balance", handler=show_balance, access="users:read", summary="Balance", tag=_TAG),
    Route(
        method="GET",
        path="/user/monitor",
        handler=show_monitor,
        access="usage:read",
        summary="Credit, usage and limits",
        tag=_TAG,
    ),
    Route(
        method="GET",
        path="/user/limit",
        handler=show_limit,
        access="usage:read",
        summary="Limits, and what is used of them",
        tag=_TAG,
    ),
    Route(method="GET", path="/user/profile", handler=show_profile, access="users:read", summary="Profile", tag=_TAG),
    Route(
        method="PUT",
        path="/user/profile",
        handler=change_profile,
        access="users:update",
        summary="Change the profile",
        tag=_TAG,
        errors=(EmailTaken,),
    ),
    Route(
        method="DELETE",
        path="/user/account",
        handler=delete_account,
        access="users:delete",
        summary="Leave for good",
        tag=_TAG,
        errors=(Conflict,),
    ),
    Route(
        method="GET",
        path="/user/credit-transactions",
        handler=list_transactions,
        access="usage:read",
        summary="Changes of the balance",
        tag=_TAG,
    ),
)
