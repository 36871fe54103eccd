"""The journal: what every account was given and has used, in PostgreSQL, where it is the truth.

Rules:
- Entries are only ever added, under the lock of the account's balance, numbered without gaps. A trigger derives the
  balance from them and refuses whatever does not continue it.
- What grants or takes credit has an idempotency key, and happens once for each key: a repeat gets the first entry,
  another use of the same key is a conflict. Usage is entered by the settler alone, once for each request id.
- An entry made here goes to Redis through the outbox (`courier.py`), in the same transaction.

Nothing here looks at Redis: a balance read here lacks what is still in the usage streams, a second's worth or less.
"""

import uuid
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, TypeAlias

import asyncpg
import msgspec

from gateway.errors import CallerError, ConfigError
from gateway.infra.postgres import Database, Row, Session, load_queries
from gateway.kernel.money import MAX_NANOS, Nanos
from gateway.kernel.record import Attempt
from gateway.kernel.request_id import is_request_id, time_ms

#: What can be posted. A refund takes back what a purchase gave; transfers and adjustments go either way.
CreditType: TypeAlias = Literal[
    "trial",
    "purchase",
    "admin_credit",
    "admin_debit",
    "refund",
    "bonus",
    "coupon",
    "referral",
    "transfer",
    "adjustment",
]
EntryType: TypeAlias = CreditType | Literal["api_usage"]
TAKING: Final = frozenset({"admin_debit", "refund"})
EITHER_WAY: Final = frozenset({"transfer", "adjustment"})
#: Entries or accounts in one page.
PAGE_MAX: Final = 1000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_queries: Final = load_queries(Path(__file__).with_name("journal.sql"))


class UnknownAccount(CallerError):
    """There is no such account."""

    error_type = "caller_unknown_account"
    status = 404
    code = "account_not_found"


class KeyReused(CallerError):
    """The idempotency key was used for something else."""

    error_type = "caller_conflict"
    status = 409
    code = "idempotency_key_reused"


class BalanceOutOfBounds(CallerError):
    """The amount would carry the balance out of its bounds."""

    error_type = "caller_bad_request"
    status = 400
    code = "balance_out_of_bounds"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a balance."""

    account_id: int
    seq: int
    type: EntryType
    amount_nanos: Nanos
    balance_after_nanos: Nanos
    created_at: datetime
    request_id: uuid.UUID | None = None
    idempotency_key: str | None = None
    payment_id: str | None = None
    reason: str | None = None


class AccountBalance(msgspec.Struct, frozen=True, kw_only=True):
    """What PostgreSQL knows of an account. `credit_seq` numbers its last entry that is not usage."""

    account_id: int
    name: str
    balance_nanos: Nanos
    last_seq: int
    credit_seq: int
    overdraft_nanos: Nanos


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One ended request, as its caller may see it."""

    request_id: uuid.UUID
    created_at: datetime
    account_id: int
    key_id: str
    model: str
    provider: str
    upstream_model: str
    dialect: str
    route: str
    status: int
    outcome: str
    error_type: str
    stream: bool
    latency_ms: int
    first_token_ms: int | None
    usage_source: str
    input_tokens: int
    output_tokens: int
    input_cached_tokens: int
    input_cache_write_tokens: int
    output_reasoning_tokens: int
    cost_nanos: Nanos
    provider_cost_nanos: Nanos | None
    service_tier: str | None
    input_mtok_nanos: Nanos
    output_mtok_nanos: Nanos
    markup_permille: int
    attempts: tuple[Attempt, ...]
    tags: dict[str, str]
    own_key_id: str | None = None
    fee_permille: int | None = None


class UsageSum(msgspec.Struct, frozen=True, kw_only=True):
    """What a key used of a model."""

    account_id: int
    key_id: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_nanos: Nanos


async def credit(
    database: Database,
    account_id: int,
    *,
    type: CreditType,  # noqa: A002  the column's name, and the word for it
    amount_nanos: Nanos,
    idempotency_key: str,
    reason: str | None = None,
    payment_id: str | None = None,
) -> Entry:
    """Give credit to an account, or take it (a negative amount), once for each key: a repeat returns the first entry.

    Raises:
        UnknownAccount, KeyReused, BalanceOutOfBounds: nothing was entered.
        StoreUnavailable: whether it was is not known; repeat it with the same key.
    """
    async with database.transaction() as session:
        return await post(
            session,
            account_id,
            type=type,
            amount_nanos=amount_nanos,
            idempotency_key=idempotency_key,
            reason=reason,
            payment_id=payment_id,
        )


async def post(
    session: Session,
    account_id: int,
    *,
    type: CreditType,  # noqa: A002  as above
    amount_nanos: Nanos,
    idempotency_key: str,
    reason: str | None = None,
    payment_id: str | None = None,
) -> Entry:
    """`credit` within a transaction of the caller, which then happens together with it or not at all.

    It locks the account's balance until that transaction ends. Who posts to several accounts does so in the order of
    their ids, or may be refused for a deadlock.
    """
    check_amount(type, amount_nanos)
    balance = await session.fetch_row(_queries["lock_balance"], account_id)
    if balance is None:
        raise UnknownAccount
    if (found := await session.fetch_row(_queries["find_posted"], idempotency_key)) is not None:
        return _repeated(_entry(found), account_id, type, amount_nanos)
    after_nanos = balance["balance_nanos"] + amount_nanos
    if abs(after_nanos) > MAX_NANOS:
        raise BalanceOutOfBounds
    try:
        row = await session.fetch_row(
            _queries["add_entry"],
            account_id,
            balance["last_seq"] + 1,
            type,
            amount_nanos,
            after_nanos,
            idempotency_key,
            payment_id,
            reason,
            balance["credit_seq"],
        )
    except asyncpg.UniqueViolationError as error:
        # Just now, by a post to another account: ours was locked when we looked.
        raise KeyReused from error
    assert row is not None
    return _entry(row)


def check_amount(type_: CreditType, amount_nanos: Nanos) -> None:
    """Refuse an amount that has the wrong sign for its type.

    Raises:
        ValueError
    """
    taking = amount_nanos < 0
    if amount_nanos == 0 or abs(amount_nanos) > MAX_NANOS:
        raise ValueError(f"no amount to post: {amount_nanos}")
    if type_ not in EITHER_WAY and taking != (type_ in TAKING):
        raise ValueError(f"{type_} of {amount_nanos} nanos has the wrong sign")


async def list_entries(
    database: Database, account_id: int, *, before_seq: int = MAX_NANOS, limit: int = PAGE_MAX
) -> list[Entry]:
    """The latest entries of an account with numbers below `before_seq`, newest first."""
    rows = await database.fetch(_queries["list_entries"], account_id, before_seq, min(limit, PAGE_MAX))
    return [_entry(row) for row in rows]


async def read_balance(database: Database, account_id: int) -> AccountBalance:
    """What an account has.

    Raises:
        UnknownAccount
    """
    row = await database.fetch_row(_queries["read_balance"], account_id)
    if row is None:
        raise UnknownAccount
    return msgspec.convert(dict(row), AccountBalance)


async def list_balances(database: Database, *, after_id: int = 0, limit: int = PAGE_MAX) -> list[AccountBalance]:
    """What accounts with ids above `after_id` have, in the order of their ids."""
    rows = await database.fetch(_queries["list_balances"], after_id, min(limit, PAGE_MAX))
    return [msgspec.convert(dict(row), AccountBalance) for row in rows]


async def find_account(database: Database, key: str) -> int:
    """Whose key that is, by its public id or the name of a living one.

    Raises:
        ConfigError: no key is called so, or several are.
    """
    account_id: int = (await _find_key(database, key))["account_id"]
    return account_id


async def find_key_id(database: Database, key: str) -> str:
    """The public id of a key, by it or by the name of a living one.

    Raises:
        ConfigError: no key is called so, or several are.
    """
    key_id: str = (await _find_key(database, key))["id"]
    return key_id


async def find_usage(database: Database, request_id: str, *, key_id: str) -> UsageRow | None:
    """The record of a request, for the key that made it; None until it was settled, about a second after its end."""
    if not is_request_id(request_id):
        return None
    at = _EPOCH + timedelta(milliseconds=time_ms(request_id))
    row = await database.fetch_row(_queries["find_usage"], uuid.UUID(request_id), at, key_id)
    return None if row is None else _usage(row)


async def sum_usage(
    database: Database,
    *,
    since: date,
    account_id: int | None = None,
    key_id: str | None = None,
    limit: int = PAGE_MAX,
) -> list[UsageSum]:
    """Usage by account, key and model, from a day (UTC) on, the costliest first."""
    rows = await database.fetch(_queries["sum_usage"], since, account_id, key_id, min(limit, PAGE_MAX))
    return [msgspec.convert(dict(row), UsageSum) for row in rows]


async def _find_key(database: Database, key: str) -> Row:
    rows = await database.fetch(_queries["find_key"], key)
    if not rows:
        raise ConfigError("no key has that id or name; `gateway keys list` shows them all")
    if len(rows) > 1 and rows[0]["id"] != key:
        raise ConfigError("several keys have that name; give the key's id")
    return rows[0]


def _repeated(first: Entry, account_id: int, type_: CreditType, amount_nanos: Nanos) -> Entry:
    if (first.account_id, first.type, first.amount_nanos) != (account_id, type_, amount_nanos):
        raise KeyReused
    return first


def _entry(row: Row) -> Entry:
    return msgspec.convert(dict(row), Entry)


def _usage(row: Row) -> UsageRow:
    # asyncpg hands jsonb on as text.
    values = dict(row)
    values["attempts"] = msgspec.json.decode(values["attempts"], type=list[Attempt])
    values["tags"] = msgspec.json.decode(values["tags"])
    return msgspec.convert(values, UsageRow)
