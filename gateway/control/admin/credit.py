"""Credit and limits that administrators give and take.

Rules:
- Every grant has a reason and is at most `control.grant_usd_max`, so that a slip of the hand stays small; more takes
  several, each of which is on record. So is what is taken.
- It is an entry of the ledger, made once for each `idempotency-key` however often the request is repeated, and at the
  gateways within a second.
- An account is named by its number, by somebody in it, or by a key: its id, or the whole key, of which only the id is
  looked at and nothing is kept.
"""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.control import audit
from gateway.control.accounts.people import publish_keys
from gateway.control.accounts.trail import in_utc
from gateway.control.admin.people import Reason
from gateway.control.errors import Conflict, Invalid, NotFound
from gateway.control.grants import grant
from gateway.control.idempotency import HEADER
from gateway.control.paging import Moment, Number, Page
from gateway.control.route import ID_MAX, Call, Nothing, Route
from gateway.infra.postgres import Row, Session, load_queries
from gateway.kernel.journal import (
    BalanceOutOfBounds,
    CreditType,
    EntryType,
    KeyReused,
    UnknownAccount,
)
from gateway.kernel.keys import public_id
from gateway.kernel.limits import COUNTS, NO_LIMITS, Limits, pack_limits
from gateway.kernel.money import parse_usd, usd

USD_MAX: Final = 1_000_000.0
LIMIT_MAX: Final = 2**53 - 1
_TAG: Final = "administration"
_queries: Final = load_queries(Path(__file__).with_name("credit.sql"))

Id = Annotated[int, Meta(ge=1, le=ID_MAX)]
KeyText = Annotated[str, Meta(min_length=1, max_length=200)]
Count = Annotated[int, Meta(ge=0, le=LIMIT_MAX)]


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to give credit or to take it from: one of the three; how much, and why."""

    #: Dollars.
    credits: Annotated[float, Meta(gt=0, le=USD_MAX)]
    reason: Reason
    api_key: KeyText | None = None
    account_id: Id | None = None
    user_id: Id | None = None


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it."""

    status: str
    message: str
    #: The entry of the ledger, by its number in the account.
    transaction_id: int
    account_id: int
    user_id: int | None
    #: Dollars; less than zero where it was taken.
    credits_added: float
    new_balance: float


class CreditFilter(Page, frozen=True, kw_only=True):
    """Which entries."""

    account_id: Id | None = None
    transaction_type: EntryType | None = None
    from_: datetime | None = msgspec.field(name="from", default=None)
    to: datetime | None = None


class CreditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry; amounts are dollars."""

    id: int
    account_id: int
    type: EntryType
    amount: float
    balance_before: float
    balance_after: float
    description: str | None
    payment_id: str | None
    created_at: datetime


class CreditEntries(msgspec.Struct, frozen=True, kw_only=True):
    """A page of them, newest first."""

    transactions: tuple[CreditEntry, ...]
    limit: int
    offset: int
    next_cursor: str | None


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may use besides what its account may; what is left out stays as it is, and null is not limited."""

    api_key: KeyText
    requests_per_minute: Count | msgspec.UnsetType | None = msgspec.UNSET
    requests_per_hour: Count | msgspec.UnsetType | None = msgspec.UNSET
    requests_per_day: Count | msgspec.UnsetType | None = msgspec.UNSET
    tokens_per_minute: Count | msgspec.UnsetType | None = msgspec.UNSET
    tokens_per_hour: Count | msgspec.UnsetType | None = msgspec.UNSET
    tokens_per_day: Count | msgspec.UnsetType | None = msgspec.UNSET
    concurrency: Count | msgspec.UnsetType | None = msgspec.UNSET


class LimitsSet(msgspec.Struct, frozen=True, kw_only=True):
    """What the key may use now; null is not limited."""

    status: str
    key_id: str
    account_id: int
    limits: dict[str, int | None]


async def add_credit(call: Call[Grant, Nothing]) -> Granted:
    """Give an account credit. Of one `idempotency-key` it gets it once."""
    return await _post(call, 1)


async def deduct_credit(call: Call[Grant, Nothing]) -> Granted:
    """Take credit from an account, which may leave it with less than nothing."""
    return await _post(call, -1)


async def list_credit(call: Call[Nothing, CreditFilter]) -> CreditEntries:
    """What all accounts were given, bought, or lost, but for usage; newest first."""
    query = call.query
    at, account_id, seq = query.after(tuple[Moment, Number, Number]) or (None, None, None)
    rows = await call.parts.database.fetch(
        _queries["list_credit"],
        query.account_id,
        query.transaction_type,
        in_utc(query.from_, "from"),
        in_utc(query.to, "to"),
        in_utc(at, "cursor"),
        account_id,
        seq,
        *query.window,
    )
    page, next_cursor = query.cut(rows, "created_at", "account_id", "seq")
    return CreditEntries(
        transactions=tuple(_entry(row) for row in page),
        limit=query.limit,
        offset=query.offset,
        next_cursor=next_cursor,
    )


async def set_limits(call: Call[KeyLimits, Nothing]) -> LimitsSet:
    """Change what a key may use, from its next request on."""
    asked = {name: getattr(call.body, name, msgspec.UNSET) for name in COUNTS}
    given = {name: value for name, value in asked.items() if value is not msgspec.UNSET}
    if not given:
        raise Invalid("Nothing is to be changed; give at least one limit.")
    async with call.parts.database.transaction() as session:
        row = await session.fetch_row(_queries["lock_key"], _key_id(call.body.api_key))
        if row is None:
            raise NotFound("There is no such key, or it is revoked.")
        before = NO_LIMITS if row["limits"] is None else msgspec.json.decode(row["limits"], type=Limits)
        limits = msgspec.structs.replace(before, **given)
        try:
            pack_limits(key=limits)
        except ValueError as error:
            raise Invalid(str(error)) from error
        text = None if limits == NO_LIMITS else msgspec.json.encode(limits, order="deterministic").decode()
        await session.execute(_queries["set_limits"], row["id"], text)
        await audit.record(
            session,
            audit.by(call),
            "api_keys.set_limits",
            ("key", row["id"]),
            account_id=row["account_id"],
            before={name: getattr(before, name) for name in given},
            after=given,
        )
    await publish_keys(call.parts, [row["id"]])
    shown = {name: getattr(limits, name) for name in COUNTS}
    return LimitsSet(status="success", key_id=row["id"], account_id=row["account_id"], limits=shown)


async def _post(call: Call[Grant, Nothing], sign: Literal[1, -1]) -> Granted:
    body, parts = call.body, call.parts
    most = parts.settings.control.grant_usd_max
    if body.credits > most:
        raise Invalid(f"At most {most:g} dollars at a time.", loc=("body", "credits"))
    try:
        # The shortest text that stands for the float is what was written.
        nanos = parse_usd(repr(body.credits))
    except ValueError as error:
        raise Invalid(str(error), loc=("body", "credits")) from error
    # Of two administrators the same text is two keys; hashed, because it may be as long as a key may be.
    given = f"{call.actor.user_id or call.actor.key_id}:{call.headers.get(HEADER) or call.request_id}"
    type_: CreditType = "admin_credit" if sign > 0 else "admin_debit"
    key = f"{type_}:{hashlib.sha256(given.encode()).hexdigest()}"
    async with parts.database.transaction() as session:
        account_id = await _find_account(session, body)
        entry, _ = await grant(
            session,
            audit.by(call),
            account_id,
            amount_nanos=sign * nanos,
            idempotency_key=key,
            reason=body.reason,
        )
        user_id = await session.fetch_value(_queries["first_owner"], account_id)
    done = "added" if sign > 0 else "taken"
    return Granted(
        status="success",
        message=f"{body.credits:g} dollars {done}.",
        transaction_id=entry.seq,
        account_id=account_id,
        user_id=user_id,
        credits_added=usd(entry.amount_nanos),
        new_balance=usd(entry.balance_after_nanos),
    )


async def _find_account(session: Session, body: Grant) -> int:
    """Whose credit it is.

    Raises:
        Invalid: nobody is named, or more than one. NotFound.
    """
    if sum(each is not None for each in (body.api_key, body.account_id, body.user_id)) != 1:
        raise Invalid("Give `account_id`, `user_id` or `api_key`, and only one of them.")
    if body.account_id is not None:
        return body.account_id
    if body.user_id is not None:
        account_id: int | None = await session.fetch_value(_queries["first_account"], body.user_id)
        if account_id is None:
            raise NotFound("There is nobody of that id, or they are in no account.")
        return account_id
    assert body.api_key is not None
    row = await session.fetch_row(_queries["find_key"], _key_id(body.api_key))
    if row is None:
        raise NotFound("There is no such key.")
    found: int = row["account_id"]
    return found


def _key_id(text: str) -> str:
    """The id of a key; of what is none, itself."""
    return public_id(text.strip()) or text.strip()


def _entry(row: Row) -> CreditEntry:
    after = row["balance_after_nanos"]
    return CreditEntry(
        id=row["seq"],
        account_id=row["account_id"],
        type=row["type"],
        amount=usd(row["amount_nanos"]),
        balance_before=usd(after - row["amount_nanos"]),
        balance_after=usd(after),
        description=row["reason"],
        payment_id=row["payment_id"],
        created_at=row["created_at"],
    )


def _route(path: str, handler: Any, summary: str) -> Route:  # Any: as in Route
    return Route(
        method="POST",
        path=path,
        handler=handler,
        access="admin:credits:create",
        summary=summary,
        tag=_TAG,
        errors=(UnknownAccount, NotFound, KeyReused, BalanceOutOfBounds),
    )


ROUTES: Final = (
    _route("/admin/add_credits", add_credit, "Give credit"),
    _route("/admin/deduct_credits", deduct_credit, "Take credit"),
    Route(
        method="GET",
        path="/admin/credit-transactions",
        handler=list_credit,
        access="admin:credits:read",
        summary="What accounts were given",
        tag=_TAG,
    ),
    Route(
        method="POST",
        path="/admin/limit",
        aliases=("/admin/rate-limits",),
        handler=set_limits,
        access="admin:rate_limits:update",
        summary="Limit a key",
        tag=_TAG,
        errors=(NotFound, Conflict),
    ),
)
