import asyncio

import pytest

from gateway.errors import StoreUnavailable
from gateway.kernel.journal import UnknownAccount
from gateway.kernel.ledger import pack_counters
from gateway.kernel.limits import Budget, Limits, pack_limits
from gateway.kernel.loader import Loader, take_snapshot
from gateway.kernel.verbs import Loaded, NotLoaded, OverBudget, Spent, Stale
from tests.books import CREDIT, PARTITIONS


async def test_account_is_loaded_once_for_all_that_wait(books):
    account = await books.open_account()
    calls = []

    class Counting:
        async def load(self, account_id, snapshot, *, key_id="", force=False):
            calls.append(account_id)
            return await books.ledger.load(account_id, snapshot, key_id=key_id, force=force)

    loader = Loader(books.database, Counting(), partitions=PARTITIONS)

    results = await asyncio.gather(*(loader.ensure_loaded(account) for _ in range(50)))

    assert {result.balance_nanos for result in results} == {CREDIT}
    assert calls == [account]
    await loader.close()


async def test_cancelled_waiter_does_not_cancel_the_others(books):
    account = await books.open_account()

    first = asyncio.ensure_future(books.loader.ensure_loaded(account))
    second = asyncio.ensure_future(books.loader.ensure_loaded(account))
    await asyncio.sleep(0)
    first.cancel()

    assert (await second).balance_nanos == CREDIT
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_loading_counts_what_the_stream_still_holds(books):
    account = await books.open_account()
    await books.serve(account, 10)
    await books.drain()
    await books.serve(account, 20)

    await books.redis.execute("DEL", f"{{p{account % PARTITIONS}}}:a:{account}")
    loaded = await books.loader.ensure_loaded(account)

    assert loaded == Loaded(CREDIT - 30, already=False)
    assert (await books.loader.ensure_loaded(account)).already


async def test_forced_load_is_exact_while_requests_and_settling_go_on(books):
    account = await books.open_account()
    await books.loader.ensure_loaded(account)
    done = asyncio.Event()

    async def serve() -> None:
        for cost in range(1, 120):
            await books.serve(account, cost)
        done.set()

    async def load() -> None:
        while not done.is_set():
            await books.loader.ensure_loaded(account, force=True)

    async def settle() -> None:
        while not done.is_set():
            await books.settler.settle_once()
            await asyncio.sleep(0)

    await asyncio.gather(serve(), load(), settle())

    assert await books.hot_nanos(account) == CREDIT - sum(range(1, 120))
    await books.drain()
    await books.assert_balanced()


async def test_budget_counters_come_back_with_the_account(books):
    account = await books.open_account()
    limits = Limits(budgets=(Budget("day", 100), Budget("total", 500)))
    await books.serve(account, 60)
    await books.drain()
    await books.serve(account, 30)
    await books.redis.execute(
        "DEL", f"{{p{account % PARTITIONS}}}:a:{account}", f"{{p{account % PARTITIONS}}}:k:key-1"
    )
    scopes = books.ledger.scopes(
        account_id=account,
        key_id="key-1",
        limits=pack_limits(account=limits, key=Limits(budgets=(Budget("month", 95),))),
    )

    await books.loader.ensure_loaded(account, key_id="key-1")
    refused = await books.ledger.admit(books.new_id(), scopes, hold_nanos=11, tokens=1)
    by_key = await books.ledger.admit(books.new_id(), scopes, hold_nanos=6, tokens=1)

    assert isinstance(refused, OverBudget)
    assert (refused.scope, refused.window, refused.spent_nanos) == ("account", "day", 90)
    assert isinstance(by_key, OverBudget)
    assert (by_key.scope, by_key.window, by_key.spent_nanos) == ("key", "month", 90)


async def test_an_account_that_is_loaded_anew_takes_the_counters_of_its_keys_along(books):
    """As after a failover that lost a charge: the key had spent more than Redis knows."""
    account = await books.open_account()
    await books.database.execute(
        "insert into keys (id, account_id, name, environment, digest, last_four) values ('key-1', $1, 'k', 'live', $2, 'four')",
        account,
        b"d" * 32,
    )
    scopes = books.ledger.scopes(
        account_id=account, key_id="key-1", limits=pack_limits(key=Limits(budgets=(Budget("total", 100),)))
    )
    await books.serve(account, 90)
    await books.drain()
    partition = account % PARTITIONS
    # What it had: nothing spent, in the account and in the key.
    await books.redis.execute("HINCRBY", f"{{p{partition}}}:a:{account}", "bal", 90)
    nothing = pack_counters(Spent(as_of_us=int(books.clock.now() * 1e6)))
    await books.redis.execute("HSET", f"{{p{partition}}}:k:key-1", "spent", nothing)

    report = await books.reconciler.mend(partition)
    asked = await books.ledger.admit(books.new_id(), scopes, hold_nanos=50, tokens=1)
    await books.loader.ensure_loaded(account, key_id="key-1")
    refused = await books.ledger.admit(books.new_id(), scopes, hold_nanos=50, tokens=1)

    assert [drift.nanos for drift in report.drifts] == [90]
    assert asked == NotLoaded("key")
    assert isinstance(refused, OverBudget)
    assert (refused.scope, refused.spent_nanos) == ("key", 90)


async def test_snapshot_of_an_emptied_redis_is_stale_until_the_settler_noticed(books):
    account = await books.open_account()
    await books.serve(account, 10)
    await books.drain()
    await books.redis.execute("FLUSHALL", "SYNC")

    snapshot = await take_snapshot(books.database, account, partitions=PARTITIONS)
    stale = await books.ledger.load(account, snapshot)
    await books.settler.settle_once()
    loaded = await books.loader.ensure_loaded(account)

    assert isinstance(stale, Stale)
    assert loaded.balance_nanos == CREDIT - 10


async def test_what_never_fits_is_given_up(books):
    account = await books.open_account()

    class Never:
        async def load(self, account_id, snapshot, *, key_id="", force=False):
            return Stale(0)

    loader = Loader(books.database, Never(), partitions=PARTITIONS, snapshot_pause_s=0.0)

    with pytest.raises(StoreUnavailable):
        await loader.ensure_loaded(account)
    await loader.close()


async def test_unknown_account_is_nobody(books):
    with pytest.raises(UnknownAccount):
        await books.loader.ensure_loaded(404)
