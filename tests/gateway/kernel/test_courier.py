import asyncio

from gateway.errors import StoreUnavailable
from gateway.kernel.courier import Courier
from tests.books import CREDIT, PARTITIONS


async def outbox(books) -> int:
    return await books.database.fetch_value("select count(*) from credit_outbox")


async def test_credit_reaches_a_loaded_account(books):
    account = await books.open_account()
    await books.courier.carry_once()
    await books.loader.ensure_loaded(account)
    await books.give(account, 500, "a")
    await books.give(account, -200, "b")

    assert await books.courier.carry_once() == 2

    assert await books.hot_nanos(account) == CREDIT + 300
    assert await outbox(books) == 0
    await books.assert_balanced()


async def test_account_that_is_not_loaded_gets_it_with_its_load(books):
    account = await books.open_account()

    assert await books.courier.carry_once() == 1

    assert await outbox(books) == 0
    assert await books.hot_nanos(account) is None
    assert (await books.loader.ensure_loaded(account)).balance_nanos == CREDIT


async def test_credit_is_applied_once_however_often_it_is_carried(books):
    account = await books.open_account()
    await books.loader.ensure_loaded(account)
    for number in range(50):
        await books.give(account, 10, f"k{number}")

    await asyncio.gather(*(books.courier.carry_once() for _ in range(5)))

    assert await books.hot_nanos(account) == CREDIT + 500
    await books.assert_balanced()


async def test_courier_that_died_before_clearing_changes_nothing(books):
    account = await books.open_account()
    await books.loader.ensure_loaded(account)
    await books.give(account, 10, "k")
    rows = await books.database.fetch("select * from credit_outbox")
    await books.courier.carry_once()
    for row in rows:
        await books.database.execute(
            "insert into credit_outbox (account_id, seq, previous_seq, amount_nanos) values ($1, $2, $3, $4)",
            *(row[name] for name in ("account_id", "seq", "previous_seq", "amount_nanos")),
        )

    await books.courier.carry_once()

    assert await books.hot_nanos(account) == CREDIT + 10


async def test_gap_makes_it_load_the_account_anew(books):
    account = await books.open_account()
    await books.loader.ensure_loaded(account)
    await books.give(account, 10, "lost")
    await books.courier.carry_once()
    # As a replica would know it that had not heard of that.
    key = f"{{p{account % PARTITIONS}}}:a:{account}"
    await books.redis.execute("HSET", key, "bal", CREDIT, "cseq", 1)
    await books.give(account, 5, "next")

    await books.courier.carry_once()

    assert await books.hot_nanos(account) == CREDIT + 15
    await books.assert_balanced()


async def test_failure_leaves_the_rest_in_the_outbox(books):
    first, second = await books.open_account(), await books.open_account(name="second")

    class FailsOnce:
        def __init__(self) -> None:
            self.carried = []

        async def credit(self, account_id, **entry):
            if self.carried:
                raise StoreUnavailable(detail="redis")
            self.carried.append(account_id)
            return await books.ledger.credit(account_id, **entry)

    ledger = FailsOnce()
    courier = Courier(books.database, ledger, books.loader)

    try:
        await courier.carry_once()
    except StoreUnavailable:
        failed = True

    assert failed
    assert ledger.carried == [first]
    assert await outbox(books) == 1
    assert await books.courier.carry_once() == 1
    assert (await books.loader.ensure_loaded(second)).balance_nanos == CREDIT


async def test_account_that_redis_refuses_does_not_hold_up_others(books):
    broken, sound = await books.open_account(), await books.open_account(name="sound")
    await books.loader.ensure_loaded(sound)
    await books.redis.execute("SET", f"{{p{broken % PARTITIONS}}}:a:{broken}", "not a hash")
    await books.give(sound, 10, "k")

    await books.courier.carry_once()

    assert await books.hot_nanos(sound) == CREDIT + 10
    assert await outbox(books) == 1
