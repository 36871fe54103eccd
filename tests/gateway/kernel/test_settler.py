import asyncio
import contextlib
import random

import msgspec
import pytest

from gateway.errors import StoreUnavailable
from gateway.infra.postgres import Database
from gateway.kernel.journal import find_usage, sum_usage
from gateway.kernel.record import Attempt, encode_record
from gateway.kernel.rejects import retry_reject
from gateway.kernel.settler import BATCH_MAX, CHANNEL, PIECE, Settler
from gateway.kernel.unsettled import Unsettled, find_known
from tests.books import CREDIT, PARTITIONS


async def test_request_is_settled_into_the_books(books):
    account = await books.open_account()
    request_id = await books.serve(account, 250)

    done = await books.settler.settle_once()

    assert (done.settled, done.rejected, done.repeated) == (1, 0, set())
    assert await books.book_nanos(account) == await books.hot_nanos(account) == CREDIT - 250
    row = await books.database.fetch_row("select * from entries where type = 'api_usage'")
    assert (str(row["request_id"]), row["amount_nanos"], row["seq"]) == (request_id, -250, 2)
    await books.assert_balanced()


async def test_every_field_of_a_record_arrives(books):
    account = await books.open_account()
    numbers = iter(range(1, 100))
    record = books.record(account, 10)
    values = {
        name: next(numbers)
        for name, value in msgspec.structs.asdict(record).items()
        if type(value) is int and name not in {"account_id", "version"}
    }
    record = msgspec.structs.replace(
        record,
        **values,
        model='sp"oken\0',
        provider="openai",
        first_token_ms=77,
        provider_cost_nanos=78,
        service_tier="flex",
        stream=True,
        attempts=(Attempt("a", "provider_timeout"), Attempt("openai", "ok")),
        tags={"team": "\\u0000 naïve"},
    )

    await books.append(account % PARTITIONS, [encode_record(record)])
    await books.drain()

    row = dict(await books.database.fetch_row("select * from usage_records"))
    kept = msgspec.structs.asdict(record) | {"model": 'sp"oken\ufffd'}
    for name in ("version", "started_ms", "attempts", "tags", "request_id"):
        kept.pop(name)
    assert {name: row[name] for name in kept} == kept
    assert msgspec.json.decode(row["attempts"]) == [["a", "provider_timeout"], ["openai", "ok"]]
    found = await find_usage(books.database, record.request_id, key_id="key-1")
    assert found is not None
    assert found.attempts == record.attempts
    assert int(found.created_at.timestamp() * 1000) == int(record.request_id.replace("-", "")[:12], 16)
    assert await find_usage(books.database, record.request_id, key_id="key-2") is None
    assert await find_usage(books.database, "nonsense", key_id="key-1") is None


async def test_what_is_left_out_on_the_way_arrives_as_it_was(books):
    account = await books.open_account()
    zero = books.record(
        account, 0, first_token_ms=0, provider_cost_nanos=0, input_tokens=0, output_tokens=0, model=""
    )
    absent = books.record(account, 0)

    await books.append(account % PARTITIONS, [encode_record(zero), encode_record(absent)])
    await books.drain()

    rows = await books.database.fetch("select * from usage_records order by request_id")
    for row, record in zip(rows, (zero, absent), strict=True):
        kept = msgspec.structs.asdict(record)
        for name in ("version", "started_ms", "attempts", "tags", "request_id"):
            kept.pop(name)
        assert {name: row[name] for name in kept} == kept
        assert (row["attempts"], row["tags"]) == ("[]", "{}")


async def test_free_request_leaves_a_record_and_no_entry(books):
    account = await books.open_account()
    await books.serve(account, 0)

    await books.drain()

    assert await books.database.fetch_value("select count(*) from usage_records") == 1
    assert await books.database.fetch_value("select count(*) from entries where type = 'api_usage'") == 0
    await books.assert_balanced()


async def test_entries_follow_the_order_of_the_stream(books):
    account, other = await books.open_account(), await books.open_account(name="other")
    costs = {account: [], other: []}
    for cost in random.Random(7).sample(range(1, 400), 40):
        costs[account if cost % 2 else other].append(cost)
        await books.serve(account if cost % 2 else other, cost)

    await books.drain()

    for each, expected in costs.items():
        rows = await books.database.fetch("select * from entries where account_id = $1 order by seq", each)
        assert [row["seq"] for row in rows] == list(range(1, len(expected) + 2))
        assert [-row["amount_nanos"] for row in rows[1:]] == expected
    await books.assert_balanced()


async def test_stream_is_trimmed_to_the_entry_at_the_cursor(books):
    account = await books.open_account()
    for _ in range(5):
        await books.serve(account, 1)

    await books.drain()

    stream = await books.redis.execute("XRANGE", f"{{p{account % PARTITIONS}}}:usage", "-", "+")
    cursor = await books.database.fetch_value("select last_id from settle_cursors where partition = $1", account % 4)
    assert [entry[0].decode() for entry in stream] == [cursor]
    assert (await books.settler.settle_once()).settled == 0


async def test_two_settlers_at_once_charge_once(books):
    accounts = [await books.open_account(name=f"account {number}") for number in range(6)]
    for number in range(300):
        await books.serve(accounts[number % 6], 1 + number % 5)

    await asyncio.gather(*(books.drain(books.new_settler()) for _ in range(4)))

    assert await books.database.fetch_value("select count(*) from usage_records") == 300
    await books.assert_balanced()


async def test_settling_goes_on_beside_credit_and_requests(books):
    accounts = [await books.open_account(name=f"account {number}") for number in range(4)]
    served = asyncio.Event()

    async def serve(account: int) -> None:
        for cost in range(1, 60):
            await books.serve(account, cost)

    async def give(account: int) -> None:
        for number in range(30):
            await books.give(account, 5 if number % 2 else -3, f"{account} {number}")
            await books.courier.carry_once()

    async def settle() -> None:
        while not served.is_set():
            await books.settler.settle_once()
            await asyncio.sleep(0)

    settling = asyncio.ensure_future(settle())
    await asyncio.gather(*(serve(each) for each in accounts), *(give(each) for each in accounts))
    served.set()
    await settling
    await books.drain()
    while await books.courier.carry_once():
        pass

    for account in accounts:
        expected = CREDIT - sum(range(1, 60)) + 15 * 5 - 15 * 3
        assert await books.book_nanos(account) == await books.hot_nanos(account) == expected
    await books.assert_balanced()


async def test_settler_that_died_before_trimming_is_taken_over(books):
    account = await books.open_account()
    partition = account % PARTITIONS
    for cost in (1, 2, 3):
        await books.serve(account, cost)
    stream = f"{{p{partition}}}:usage"
    kept = await books.redis.execute("XRANGE", stream, "-", "+")
    await books.drain()
    # As it was before the trim.
    await books.redis.execute("DEL", stream)
    for entry_id, fields in kept:
        await books.redis.execute("XADD", stream, entry_id, *fields)
    await books.serve(account, 4)

    done = await books.new_settler().settle_once()

    assert (done.settled, done.rewound, done.repeated) == (1, [], set())
    assert await books.database.fetch_value("select count(*) from usage_records") == 4
    await books.assert_balanced()


async def test_what_is_no_record_is_set_aside_and_holds_nothing_up(books):
    account = await books.open_account()
    partition = account % PARTITIONS
    unknown = encode_record(books.record(account + PARTITIONS * 100, 5))
    foreign_id = encode_record(books.record(account, 5, request_id="req-1"))
    huge = encode_record(books.record(account, 5, input_tokens=2**63))
    negative = encode_record(books.record(account, -5))
    good = [encode_record(books.record(account, cost)) for cost in range(1, 8)]
    bad = [b"", b"\xc1", b"\x93\x01\x02\x03", unknown, foreign_id, huge, negative]
    mixed = [packed for pair in zip(good, bad, strict=True) for packed in pair]

    await books.append(partition, mixed)
    await books.drain()

    rejects = await books.database.fetch("select record, reason from settle_rejects")
    assert {row["record"] for row in rejects} == set(bad)
    assert all(row["reason"] for row in rejects)
    assert await books.database.fetch_value("select count(*) from usage_records") == 7
    assert await books.book_nanos(account) == CREDIT - sum(range(1, 8))
    assert books.telemetry.records_rejected[0] == len(bad)
    await books.assert_balanced()


@pytest.mark.timeout(60)
async def test_workers_drop_their_copies_of_what_is_set_aside(books):
    """Else they offer it again, whenever Redis has forgotten the request, and Redis charges it each time."""
    account = await books.open_account()
    partition = account % PARTITIONS
    await books.loader.ensure_loaded(account)
    unsettled = Unsettled(books.ledger, find_known(books.database), clock=books.clock)
    notices = books.redis.subscribe(CHANNEL)
    await anext(aiter(notices))
    refused = books.record(account, 5, input_tokens=2**63)
    await books.append(partition, [encode_record(refused)])
    unsettled.keep(refused.request_id, books.scopes(account), cost_nanos=5, tokens=1, record=encode_record(refused))

    await books.drain()
    while len(unsettled):
        message = await anext(aiter(notices))
        unsettled.hear(None if message is None else message.data)
    notices.close()

    assert (
        await books.database.fetch_value("select count(*) from settle_rejects where partition = $1", partition) == 1
    )


async def test_the_account_of_a_record_that_was_put_back_is_reported(books):
    """It was loaded anew meanwhile, without that charge."""
    account = await books.open_account()
    await books.loader.ensure_loaded(account)
    reject_id = await books.database.fetch_value(
        "insert into settle_rejects (partition, stream_id, record, reason) values ($1, '1-0', $2, 'no account') "
        "returning id",
        account % PARTITIONS,
        encode_record(books.record(account, 70)),
    )

    async with books.database.transaction() as session:
        await retry_reject(session, books.redis, reject_id)
    reported = await books.drain()
    for each in reported:
        await books.loader.ensure_loaded(each, force=True)

    assert reported == {account}
    assert await books.hot_nanos(account) == CREDIT - 70
    await books.assert_balanced()


async def test_loading_survives_what_is_no_record(books):
    account = await books.open_account()
    await books.append(account % PARTITIONS, [b"\xc1", b"\x05", encode_record(books.record(account, 30))])

    loaded = await books.loader.ensure_loaded(account)

    assert loaded.balance_nanos == CREDIT - 30


async def test_record_twice_in_the_stream_is_charged_once_and_its_account_reported(books):
    account = await books.open_account()
    record = books.record(account, 40)
    packed = encode_record(record)

    await books.append(account % PARTITIONS, [packed, packed])
    first = await books.drain()
    await books.append(account % PARTITIONS, [packed])
    second = await books.drain()

    assert (first, second) == (set(), {account})
    assert await books.book_nanos(account) == CREDIT - 40
    await books.assert_balanced()


async def test_emptied_redis_is_noticed_and_accounts_come_back_exact(books):
    account = await books.open_account()
    await books.serve(account, 100)
    await books.drain()
    await books.redis.execute("FLUSHALL", "SYNC")

    done = await books.settler.settle_once()
    await books.serve(account, 50)

    assert done.rewound == [account % PARTITIONS]
    assert await books.hot_nanos(account) == CREDIT - 150
    await books.drain()
    await books.assert_balanced()


class Unheard(Database):
    """PostgreSQL, whose answer to a commit is lost when `lose` says so."""

    lose = False

    @contextlib.asynccontextmanager
    async def transaction(self):
        async with super().transaction() as session:
            yield session
        if self.lose:
            self.lose = False
            raise StoreUnavailable(detail="the answer to the commit was lost")


async def test_a_charge_that_came_again_is_reported_although_the_commit_was_not_heard(books, database):
    account = await books.open_account()
    record = encode_record(books.record(account, 100))
    await books.append(account % PARTITIONS, [record])
    await books.drain()
    await books.append(account % PARTITIONS, [record])
    async with Unheard(database, pool_size=1, timeout_s=20.0) as unheard:
        settler = Settler(
            unheard, books.redis, clock=books.clock, telemetry=books.telemetry, partitions=range(PARTITIONS)
        )
        unheard.lose = True
        with pytest.raises(StoreUnavailable):
            await settler.settle_once()

        done = await settler.settle_once()

    assert done.repeated == {account}
    assert (await books.settler.settle_once()).repeated == set()


async def test_record_offered_again_to_an_emptied_redis_is_charged_once(books):
    account = await books.open_account()
    await books.loader.ensure_loaded(account)
    settled, lost = books.record(account, 100), books.record(account, 30)
    await books.settle(settled)
    await books.drain()
    await books.settle(lost)
    await books.redis.execute("FLUSHALL", "SYNC")
    await books.settler.settle_once()
    await books.loader.ensure_loaded(account)

    await books.settle(settled)
    await books.settle(lost)
    repeated = await books.drain()

    assert repeated == {account}
    for each in repeated:
        await books.loader.ensure_loaded(each, force=True)
    assert await books.book_nanos(account) == await books.hot_nanos(account) == CREDIT - 130
    await books.assert_balanced()


async def test_stream_that_fell_back_is_settled_whatever_its_ids(books):
    """A replica takes over that had not heard of the last entries, and whose clock is behind."""
    account = await books.open_account()
    await books.serve(account, 1)
    stream = f"{{p{account % PARTITIONS}}}:usage"
    await books.drain()
    later = encode_record(books.record(account, 2))
    await books.redis.execute("DEL", stream)
    await books.redis.execute("XADD", stream, "5-1", "r", later)

    done = await books.settler.settle_once()

    assert (done.rewound, done.settled) == ([account % PARTITIONS], 1)
    assert await books.book_nanos(account) == CREDIT - 3


async def test_usage_is_summed_by_key_and_model(books):
    account = await books.open_account()
    records = [
        books.record(account, cost, key_id=key, model=model)
        for cost, key, model in ((5, "key-1", "a"), (6, "key-1", "a"), (7, "key-1", "b"), (8, "key-2", "a"))
    ]
    await books.append(account % PARTITIONS, [encode_record(record) for record in records[:2]])
    await books.drain()
    await books.append(account % PARTITIONS, [encode_record(record) for record in records[2:]])
    await books.drain()

    today = await books.database.fetch_value("select (now() at time zone 'UTC')::date")
    sums = await sum_usage(books.database, since=today, account_id=account)
    only = await sum_usage(books.database, since=today, key_id="key-2")

    assert [(each.key_id, each.model, each.requests, each.cost_nanos) for each in sums] == [
        ("key-1", "a", 2, 11),
        ("key-2", "a", 1, 8),
        ("key-1", "b", 1, 7),
    ]
    assert [each.cost_nanos for each in only] == [8]


async def test_long_backlog_is_drained_in_bounded_batches(books):
    account = await books.open_account()
    count = PIECE * 2 + 10
    assert count > BATCH_MAX
    await books.append(account % PARTITIONS, [encode_record(books.record(account, 1)) for _ in range(count)])

    first = await books.settler.settle_once()
    await books.drain()

    assert (first.settled, first.more) == (PIECE, True)
    assert await books.book_nanos(account) == CREDIT - count
    await books.assert_balanced()


async def test_lag_grows_while_postgres_is_away(books):
    account = await books.open_account()
    await books.serve(account, 1)
    lag = books.telemetry.settle_lag.cell()

    class Away:
        """PostgreSQL, but for transactions."""

        session = books.database.session

        def transaction(self):
            raise StoreUnavailable(detail="away")

    settler = Settler(Away(), books.redis, clock=books.clock, telemetry=books.telemetry, partitions=range(PARTITIONS))

    seen = []
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await settler.settle_once()
        seen.append(lag[0])
    await books.drain()

    assert 0 < seen[0] < seen[1]
    assert lag[0] == 0


@pytest.mark.slow
async def test_twenty_thousand_records_are_drained(books):
    accounts = [await books.open_account(credit_nanos=10**12, name=f"account {number}") for number in range(50)]
    count, piece = 20_000, 2000
    for start in range(0, count, piece):
        chosen = [accounts[number % len(accounts)] for number in range(start, start + piece)]
        await asyncio.gather(
            *(
                books.redis.execute(
                    "XADD",
                    f"{{p{account % PARTITIONS}}}:usage",
                    "*",
                    "r",
                    encode_record(books.record(account, 1000 + account)),
                )
                for account in chosen
            )
        )

    began_s = books.clock.monotonic()
    await books.drain()
    took_s = books.clock.monotonic() - began_s

    print(f"{count / took_s:,.0f} records a second")
    assert await books.database.fetch_value("select count(*) from usage_records") == count
    await books.assert_balanced()
