import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.infra.postgres import Database
from gateway.kernel.journal import (
    BalanceOutOfBounds,
    KeyReused,
    UnknownAccount,
    credit,
    find_account,
    list_balances,
    list_entries,
    post,
    read_balance,
)
from gateway.kernel.key_store import create_key
from gateway.kernel.money import MAX_NANOS

PEPPER = b"p" * 32


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    async with Database(database, pool_size=8, timeout_s=20.0) as opened:
        yield opened


async def open_account(db: Database, name: str = "acme") -> int:
    return await db.fetch_value("insert into accounts (name) values ($1) returning id", name)


async def give(db: Database, account_id: int, amount: int, key: str, kind="admin_credit"):
    return await credit(db, account_id, type=kind, amount_nanos=amount, idempotency_key=key)


async def test_every_account_has_a_balance_from_the_start(db):
    account = await open_account(db)

    balance = await read_balance(db, account)

    assert (balance.balance_nanos, balance.last_seq, balance.name) == (0, 0, "acme")


async def test_credit_is_entered_and_sent_on_its_way(db):
    account = await open_account(db)

    first = await give(db, account, 5_000, "a")
    second = await give(db, account, -2_000, "b", kind="refund")

    assert (first.seq, first.balance_after_nanos) == (1, 5_000)
    assert (second.seq, second.balance_after_nanos) == (2, 3_000)
    assert await list_entries(db, account) == [second, first]
    assert (await list_balances(db))[0].credit_seq == 2
    sent = await db.fetch("select seq, previous_seq, amount_nanos from credit_outbox order by seq")
    assert [tuple(row.values()) for row in sent] == [(1, 0, 5_000), (2, 1, -2_000)]


async def test_repeat_returns_the_first_entry(db):
    account = await open_account(db)
    first = await give(db, account, 5_000, "a")

    again = await asyncio.gather(*(give(db, account, 5_000, "a") for _ in range(8)))

    assert again == [first] * 8
    assert (await read_balance(db, account)).balance_nanos == 5_000


async def test_concurrent_first_use_of_a_key_enters_once(db):
    account = await open_account(db)

    entries = await asyncio.gather(*(give(db, account, 7, "same") for _ in range(20)))

    assert {entry.seq for entry in entries} == {1}
    assert (await read_balance(db, account)).balance_nanos == 7


async def test_key_of_another_use_is_a_conflict(db):
    account, other = await open_account(db), await open_account(db, "other")
    await give(db, account, 5_000, "a")

    for who, amount, kind in ((account, 6_000, "admin_credit"), (account, 5_000, "bonus"), (other, 5_000, "bonus")):
        with pytest.raises(KeyReused):
            await give(db, who, amount, "a", kind=kind)

    assert (await read_balance(db, other)).last_seq == 0


async def test_concurrent_use_of_a_key_for_two_accounts_credits_one(db):
    accounts = [await open_account(db, f"account {number}") for number in range(6)]

    results = await asyncio.gather(*(give(db, each, 9, "same") for each in accounts), return_exceptions=True)

    assert sorted(type(result).__name__ for result in results) == ["Entry"] + ["KeyReused"] * 5
    assert sum(each.balance_nanos for each in await list_balances(db)) == 9


async def test_numbers_stay_dense_under_concurrency(db):
    account = await open_account(db)

    await asyncio.gather(*(give(db, account, number, f"k{number}") for number in range(1, 61)))

    entries = (await list_entries(db, account))[::-1]
    assert [entry.seq for entry in entries] == list(range(1, 61))
    balance = 0
    for entry in entries:
        balance += entry.amount_nanos
        assert entry.balance_after_nanos == balance
    assert (await read_balance(db, account)).balance_nanos == balance == sum(range(1, 61))


@pytest.mark.parametrize(
    ("kind", "amount"), [("purchase", -1), ("admin_debit", 1), ("refund", 1), ("trial", 0), ("bonus", MAX_NANOS + 1)]
)
async def test_amount_must_suit_its_type(db, kind, amount):
    account = await open_account(db)

    with pytest.raises(ValueError, match=r"nanos|amount"):
        await give(db, account, amount, "k", kind=kind)


async def test_balance_stays_within_what_redis_can_count(db):
    account = await open_account(db)
    await give(db, account, MAX_NANOS, "a")

    with pytest.raises(BalanceOutOfBounds):
        await give(db, account, 1, "b")


async def test_unknown_account_is_refused(db):
    with pytest.raises(UnknownAccount):
        await give(db, 404, 1, "k")
    with pytest.raises(UnknownAccount):
        await read_balance(db, 404)


async def test_post_shares_the_fate_of_its_transaction(db):
    account = await open_account(db)

    async def redeem() -> None:
        async with db.transaction() as session:
            await post(session, account, type="coupon", amount_nanos=5, idempotency_key="c")
            raise RuntimeError("afterwards")

    with pytest.raises(RuntimeError, match="afterwards"):
        await redeem()

    assert (await read_balance(db, account)).last_seq == 0
    assert await db.fetch_value("select count(*) from credit_outbox") == 0


@pytest.mark.parametrize(
    "statement",
    [
        "update entries set amount_nanos = 1",
        "delete from entries",
        "truncate entries",
        "insert into entries values (1, 3, 'trial', 5, 10, null, 'x')",  # a gap
        "insert into entries values (1, 2, 'trial', 5, 11, null, 'x')",  # a wrong sum
        "insert into entries values (1, 2, 'trial', -5, 0, null, 'x')",  # a wrong sign
        "insert into entries values (1, 2, 'api_usage', -5, 0, null, 'x')",  # usage of no request
        "insert into entries values (1, 2, 'gift', 5, 10, null, 'x')",
        "insert into entries values (1, 2, 'trial', 5, 10, null, 'x'), (1, 3, 'trial', 5, 16, null, 'y')",
        "insert into entries values (404, 1, 'trial', 5, 5, null, 'x')",  # of nobody
    ],
)
async def test_database_itself_refuses_what_does_not_add_up(db, statement):
    account = await open_account(db)
    await give(db, account, 5, "a")
    assert account == 1

    with pytest.raises(asyncpg.PostgresError):
        await db.execute(statement)

    assert [entry.seq for entry in await list_entries(db, account)] == [1]


async def test_account_is_found_by_its_keys(db):
    key = await create_key(db, name="laptop", pepper=PEPPER)

    assert await find_account(db, "laptop") == await find_account(db, key.id) == 1


async def test_partitions_are_made_ahead_by_many_at_once(db):
    before = await db.fetch_value("select count(*) from pg_inherits")

    made = await asyncio.gather(*(db.fetch("select make_partitions(6)") for _ in range(6)))

    assert sum(len(rows) for rows in made) == 6
    assert await db.fetch_value("select count(*) from pg_inherits where inhparent = 'entries'::regclass") == 8
    assert await db.fetch_value("select count(*) from pg_inherits") > before
    assert not await db.fetch("select make_partitions(6)")


async def test_month_with_rows_in_the_default_partition_is_left_there(db):
    account = await open_account(db)
    await db.execute(
        "insert into entries (account_id, seq, type, amount_nanos, balance_after_nanos, idempotency_key, created_at) "
        "values ($1, 1, 'trial', 5, 5, 'x', now() + interval '5 months')",
        account,
    )

    made = [row["make_partitions"] for row in await db.fetch("select make_partitions(6)")]

    assert len([name for name in made if name.startswith("entries_")]) == 2
    assert len([name for name in made if name.startswith("usage_records_")]) == 3
