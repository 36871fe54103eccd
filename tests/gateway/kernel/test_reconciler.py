import asyncio

from gateway.kernel.reconciler import Drift, Misfit, check_books
from tests.books import CREDIT, PARTITIONS


def account_key(account: int) -> str:
    return f"{{p{account % PARTITIONS}}}:a:{account}"


async def test_books_in_order_show_no_drift(books):
    accounts = [await books.open_account(name=f"account {number}") for number in range(5)]
    for account in accounts[:4]:
        await books.serve(account, 10)
    await books.drain()
    await books.serve(accounts[0], 20)
    await books.give(accounts[1], 77, "on its way")

    report = await books.reconciler.reconcile()

    assert (report.accounts, report.loaded, report.drifts, report.unread) == (5, 4, [], [])
    assert report.book_nanos == 5 * CREDIT + 77 - 40
    assert report.unsettled_nanos == 20
    assert report.hot_nanos == 4 * CREDIT - 60


async def test_planted_drift_is_found_and_mended(books):
    account, sound = await books.open_account(), await books.open_account(name="sound")
    await books.serve(account, 10)
    await books.serve(sound, 10)
    await books.redis.execute("HINCRBY", account_key(account), "bal", 25)

    found = await books.reconciler.reconcile(fix=True)
    after = await books.reconciler.reconcile()

    assert found.drifts == [Drift(account_id=account, hot_nanos=CREDIT + 15, expected_nanos=CREDIT - 10)]
    assert found.drift_nanos == found.drifts[0].nanos == 25
    assert after.drifts == []
    assert await books.hot_nanos(account) == CREDIT - 10


async def test_credit_that_redis_lost_is_drift(books):
    account = await books.open_account()
    await books.loader.ensure_loaded(account)
    await books.give(account, 500, "k")
    await books.courier.carry_once()
    await books.redis.execute("HSET", account_key(account), "bal", CREDIT, "cseq", 1)

    report = await books.reconciler.reconcile(fix=True)

    assert [drift.nanos for drift in report.drifts] == [-500]
    assert await books.hot_nanos(account) == CREDIT + 500


async def test_no_drift_is_seen_while_everything_moves(books):
    accounts = [await books.open_account(name=f"account {number}") for number in range(6)]
    done = asyncio.Event()

    async def move() -> None:
        for number in range(40):
            await asyncio.gather(*(books.serve(account, 1 + number) for account in accounts))
            await books.give(accounts[number % 6], 3, f"k{number}")
            await books.courier.carry_once()
            await books.settler.settle_once()
        done.set()

    async def compare() -> int:
        count = 0
        while not done.is_set():
            report = await books.reconciler.reconcile()
            assert report.drifts == []
            count += report.loaded
        return count

    _, seen = await asyncio.gather(move(), compare())

    assert seen > 0


async def test_books_that_were_tampered_with_are_found(books):
    account = await books.open_account()
    await books.open_account(name="sound")
    await books.database.execute(
        "update balances set balance_nanos = balance_nanos + 5 where account_id = $1", account
    )

    found = await check_books(books.database)

    assert found == [Misfit(account_id=account, balance_nanos=CREDIT + 5, total_nanos=CREDIT)]


async def test_only_the_partition_that_is_asked_for_is_mended(books):
    accounts = [await books.open_account(name=f"account {number}") for number in range(2)]
    for account in accounts:
        await books.serve(account, 10)
        await books.redis.execute("HINCRBY", account_key(account), "bal", 25)

    report = await books.reconciler.mend(accounts[0] % PARTITIONS)

    assert len(report.drifts) == 1
    assert [await books.hot_nanos(account) for account in accounts] == [CREDIT - 10, CREDIT + 15]


async def test_look_at_a_stream_that_was_trimmed_beyond_its_cursor_is_refused(books):
    account = await books.open_account()
    stream = f"{{p{account % PARTITIONS}}}:usage".encode()
    keys = [stream, account_key(account).encode()]
    assert await books.reconciler._audit(keys, ("0-0", 10, account)) == [1, 0, 0, 0, 0]
    await books.serve(account, 10)
    first = (await books.redis.execute("XRANGE", stream, "-", "+"))[0][0]
    await books.serve(account, 20)
    assert (await books.reconciler._audit(keys, (first, 10, account)))[-1] == 20
    assert await books.reconciler._audit(keys, ("0-0", 1, account)) == [2]

    await books.drain()

    assert await books.reconciler._audit(keys, ("0-0", 10, account)) == [4]
    assert await books.reconciler._audit(keys, (first, 10, account)) == [4]
