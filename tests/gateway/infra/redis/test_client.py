"""One server, as callers of `Redis` see it: the real Valkey, killed, stopped, restarted and made to forget."""

import asyncio
import signal

import pytest

from gateway.errors import StoreUnavailable
from gateway.infra.redis import CommandRefused, Redis, subscribe
from gateway.infra.redis.connection import PENDING_MAX
from tests.valkey_cluster import Server, valkey

WAIT_S = 30


@pytest.fixture
async def redis(redis_url):
    client = Redis(redis_url, timeout_s=5)
    await client.connect()
    yield client
    await client.close()


@pytest.fixture
def server():
    with valkey() as running:
        yield running


async def open_to(server: Server, *, timeout_s: float = 0.5, **options) -> Redis:
    client = Redis(server.url, timeout_s=timeout_s, **options)
    await client.connect()
    return client


async def until_connected(client: Redis) -> None:
    async with asyncio.timeout(WAIT_S):
        while not client.connected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_every_kind_of_reply(redis):
    assert await redis.execute("SET", b"key", "välue") == b"OK"
    assert await redis.execute("GET", "key") == "välue".encode()
    assert await redis.execute("GET", b"none") is None
    assert await redis.execute("INCRBY", b"n", 41) == 41
    assert await redis.execute("HSET", b"h", b"a", 1, b"b", 2.5) == 2
    assert await redis.execute("HGETALL", b"h") == [b"a", b"1", b"b", b"2.5"]
    assert await redis.execute("EVAL", "return {1, {2, 'x'}, false}", 0) == [1, [2, b"x"], None]


async def test_large_values_come_back_whole(redis):
    value = bytes(range(256)) * 40_000

    await redis.execute("SET", b"key", value)

    assert await asyncio.gather(*(redis.execute("GET", b"key") for _ in range(5))) == [value] * 5


async def test_many_callers_get_their_own_replies(redis):
    async def caller(name: int) -> list[object]:
        return [await redis.execute("ECHO", f"{name}-{turn}") for turn in range(50)]

    replies = await asyncio.gather(*(caller(name) for name in range(64)))

    assert replies == [[f"{name}-{turn}".encode() for turn in range(50)] for name in range(64)]


async def test_commands_of_one_turn_share_one_write(redis):
    def writes() -> int:
        return sum(len(sent) > 0 for sent in written)

    written: list[bytes] = []
    transport = redis._connection._transport

    class Counting:
        def write(self, data: bytes) -> None:
            written.append(data)
            transport.write(data)

        def __getattr__(self, name: str) -> object:
            return getattr(transport, name)

    redis._connection._transport = Counting()

    await asyncio.gather(*(redis.execute("INCR", b"n") for _ in range(100)))

    assert writes() == 1


async def test_a_refused_command_says_why_and_costs_only_itself(redis):
    await redis.execute("SET", b"key", b"text")
    good, bad, after = (
        redis.execute("GET", b"key"),
        redis.execute("LPUSH", b"key", b"x"),
        redis.execute("GET", b"key"),
    )

    with pytest.raises(CommandRefused) as caught:
        await bad

    assert caught.value.prefix == "WRONGTYPE"
    assert "WRONGTYPE" not in caught.value.message
    assert await good == await after == b"text"


async def test_an_argument_that_cannot_be_sent_disturbs_nobody(redis):
    with pytest.raises(TypeError):
        redis.execute("SET", b"key", object())  # type: ignore[arg-type]

    assert await redis.execute("PING") == b"PONG"


async def test_a_cancelled_caller_loses_its_reply_and_nobody_elses(redis):
    async def call(name: str) -> object:
        return await redis.execute("ECHO", name)

    tasks = [asyncio.ensure_future(call(str(index))) for index in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()

    replies = await asyncio.gather(*tasks, return_exceptions=True)

    assert [isinstance(reply, asyncio.CancelledError) for reply in replies] == [True, False] * 10
    assert replies[1::2] == [str(index).encode() for index in range(1, 20, 2)]
    assert await redis.execute("ECHO", b"after") == b"after"


# -- scripts -----------------------------------------------------------------------------------------------------


async def test_a_script_has_keys_and_arguments(redis):
    script = redis.script(b"return {KEYS[1], ARGV[1], ARGV[2]}")

    assert await script([b"key"], [b"a", 7]) == [b"key", b"a", b"7"]
    assert len(script.digest) == 40


async def test_a_forgotten_script_is_loaded_once_for_all_who_call_it(redis):
    script = redis.script(b"return redis.call('INCR', KEYS[1])")
    await script([b"n"], [])
    await redis.execute("SCRIPT", "FLUSH", "SYNC")
    await redis.execute("CONFIG", "RESETSTAT")

    replies = await asyncio.gather(*(script([b"n"], []) for _ in range(50)))

    assert sorted(replies) == list(range(2, 52))
    stats = await redis.execute("INFO", "commandstats")
    assert b"cmdstat_script|load:calls=1," in stats
    assert b"cmdstat_evalsha:calls=100," in stats


async def test_scripts_are_forgotten_again_and_again_during_traffic(redis):
    script = redis.script(b"return redis.call('INCR', KEYS[1])")

    async def caller() -> int:
        for _ in range(100):
            await script([b"n"], [])
        return 100

    async def forgetter() -> int:
        for _ in range(20):
            await redis.execute("SCRIPT", "FLUSH", "SYNC")
        return 0

    calls = sum(await asyncio.gather(*(caller() for _ in range(10)), forgetter()))

    assert await redis.execute("GET", b"n") == str(calls).encode()


async def test_a_script_that_fails_or_does_not_parse_is_refused(redis):
    failing = redis.script(b"return redis.call('LPUSH', KEYS[1])")
    broken = redis.script(b"return (")

    for script in (failing, broken):
        with pytest.raises(CommandRefused):
            await script([b"key"], [])
    with pytest.raises(CommandRefused) as caught:
        await redis.execute("EVALSHA", "0" * 40, 0)
    assert caught.value.prefix == "NOSCRIPT"


# -- a server that is away ---------------------------------------------------------------------------------------


async def test_a_killed_server_fails_what_waits_and_is_found_again(server):
    client = await open_to(server)
    script = client.script(b"return 'alive'")
    await script([], [])
    server.signal(signal.SIGSTOP)
    waiting = [client.execute("INCR", b"n") for _ in range(100)]
    await asyncio.sleep(0)
    server.kill()

    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert not client.connected
    with pytest.raises(StoreUnavailable):
        client.execute("PING")

    await asyncio.to_thread(server.start)
    await until_connected(client)
    assert await script([], []) == b"alive"
    stats = await client.execute("INFO", "errorstats")
    assert b"NOSCRIPT" not in stats, "a new connection loads the scripts before it is used"
    await client.close()


async def test_no_call_hangs_on_a_server_that_stopped_answering(server):
    client = await open_to(server, timeout_s=0.2, connect_timeout_s=0.5)
    server.signal(signal.SIGSTOP)

    async with asyncio.timeout(WAIT_S):
        outcomes = await asyncio.gather(*(client.execute("PING") for _ in range(100)), return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert not client.connected

    server.signal(signal.SIGCONT)
    await until_connected(client)
    assert await client.execute("PING") == b"PONG"
    await client.close()


async def test_an_idle_connection_notices_a_silent_server_before_anyone_calls(server):
    client = await open_to(server, timeout_s=0.2)
    server.signal(signal.SIGSTOP)

    async with asyncio.timeout(WAIT_S):
        while client.connected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await client.close()


async def test_slow_replies_that_keep_coming_are_no_timeout():
    with valkey("--enable-debug-command", "yes") as server:
        client = await open_to(server, timeout_s=1)

        # Together more than the timeout, each well within it.
        for _ in range(8):
            assert await client.execute("DEBUG", "SLEEP", 0.2) == b"OK"

        await client.close()


async def test_a_stall_of_our_own_fails_nobody(server):
    client = await open_to(server, timeout_s=0.2)
    waiting = asyncio.ensure_future(asyncio.wait_for(client.execute("PING"), WAIT_S))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    # The reply is there before we look; only our own clock has moved on.
    loop_blocker = asyncio.get_running_loop()
    deadline_s = loop_blocker.time() + 1
    while loop_blocker.time() < deadline_s:
        pass

    assert await waiting == b"PONG"
    await client.close()


async def test_too_many_waiting_commands_are_refused_at_once(server):
    client = await open_to(server, timeout_s=WAIT_S, pending_max=100)
    server.signal(signal.SIGSTOP)
    waiting = [client.execute("PING") for _ in range(100)]

    with pytest.raises(StoreUnavailable):
        client.execute("PING")

    server.signal(signal.SIGCONT)
    assert await asyncio.gather(*waiting) == [b"PONG"] * 100
    assert await client.execute("PING") == b"PONG"
    await client.close()


async def test_a_server_that_does_not_read_holds_commands_back_and_loses_none(server):
    client = await open_to(server, timeout_s=WAIT_S)
    value = b"x" * 100_000
    server.signal(signal.SIGSTOP)
    waiting = []
    for index in range(200):
        waiting.append(client.execute("SET", f"k{index}", value))
        await asyncio.sleep(0)
    assert client._connection._paused

    server.signal(signal.SIGCONT)

    async with asyncio.timeout(WAIT_S):
        assert await asyncio.gather(*waiting) == [b"OK"] * 200
    await client.close()


async def test_a_first_connection_that_fails_may_be_tried_again(server):
    server.kill()
    client = Redis(server.url, timeout_s=0.5)
    with pytest.raises(StoreUnavailable) as caught:
        await client.connect()
    assert str(server.port) in caught.value.detail
    with pytest.raises(StoreUnavailable):
        client.execute("PING")

    await asyncio.to_thread(server.start)
    await client.connect()

    assert await client.execute("PING") == b"PONG"
    await client.close()


async def test_close_waits_for_the_replies_to_what_was_sent(redis_url):
    client = Redis(redis_url, timeout_s=5)
    await client.connect()
    waiting = [client.execute("ECHO", str(index)) for index in range(10)]

    await client.close()

    assert await asyncio.gather(*waiting) == [str(index).encode() for index in range(10)]
    with pytest.raises(StoreUnavailable):
        client.execute("PING")
    assert PENDING_MAX >= 1000


# -- logging in --------------------------------------------------------------------------------------------------


async def test_a_password_and_a_database_are_used_again_after_a_restart():
    with valkey("--requirepass", "se:cret/1") as server:
        client = Redis(f"redis://:se%3Acret%2F1@127.0.0.1:{server.port}/3", timeout_s=1)
        # The probes of the fixture are not logged in; they see NOAUTH, which is an answer.
        await client.connect()
        assert await client.execute("SET", b"key", b"x") == b"OK"
        info = await client.execute("CLIENT", "INFO")
        assert b" db=3 " in info
        assert b" name=gateway " in info
        await client.close()


async def test_a_wrong_password_is_told_without_the_password():
    with valkey("--requirepass", "right") as server:
        client = Redis(f"redis://:wr0ng-pass@127.0.0.1:{server.port}", timeout_s=1)

        with pytest.raises(StoreUnavailable) as caught:
            await client.connect()

        assert "WRONGPASS" in caught.value.detail
        assert "wr0ng-pass" not in caught.value.detail
        await client.close()


async def test_a_master_that_became_a_replica_is_left(server):
    with valkey() as other:
        client = await open_to(server)
        server.ask("REPLICAOF", "127.0.0.1", other.port)

        with pytest.raises(StoreUnavailable) as caught:
            await client.execute("SET", b"key", b"x")
        assert "READONLY" in caught.value.detail
        assert not client.connected

        server.ask("REPLICAOF", "NO", "ONE")
        await until_connected(client)
        assert await client.execute("SET", b"key", b"x") == b"OK"
        await client.close()


# -- channels ----------------------------------------------------------------------------------------------------


async def test_messages_follow_the_word_that_earlier_ones_may_be_missing(redis):
    subscription = redis.subscribe(b"one", b"two")
    async with asyncio.timeout(WAIT_S):
        assert await anext(subscription) is None
        assert subscription.listening

        await redis.execute("PUBLISH", b"one", b"a")
        await redis.execute("PUBLISH", b"two", b"b")

        first, second = await anext(subscription), await anext(subscription)
    assert (first.channel, first.data) == (b"one", b"a")
    assert (second.channel, second.data) == (b"two", b"b")

    subscription.close()
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)


async def test_a_lost_subscription_comes_back_with_a_gap(server):
    client = await open_to(server)
    subscription = client.subscribe(b"news")
    async with asyncio.timeout(WAIT_S):
        assert await anext(subscription) is None
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        assert await anext(subscription) is None
        await until_connected(client)
        await client.execute("PUBLISH", b"news", b"again")
        assert (await anext(subscription)).data == b"again"
    await client.close()


async def test_a_silent_subscription_is_noticed(server):
    client = await open_to(server, timeout_s=0.2, connect_timeout_s=0.5)
    subscription = client.subscribe(b"news")
    async with asyncio.timeout(WAIT_S):
        assert await anext(subscription) is None
        server.signal(signal.SIGSTOP)
        while subscription.listening:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        server.signal(signal.SIGCONT)
        assert await anext(subscription) is None
    await client.close()


async def test_an_idle_subscription_stays(server):
    client = await open_to(server, timeout_s=0.1)
    subscription = client.subscribe(b"news")
    async with asyncio.timeout(WAIT_S):
        assert await anext(subscription) is None
        # Several times as long as it takes to ask whether somebody is there.
        await asyncio.sleep(2.5)
        await client.execute("PUBLISH", b"news", b"x")
        assert (await anext(subscription)).data == b"x"
    await client.close()


async def test_messages_nobody_takes_become_a_gap(redis):
    subscription = redis.subscribe(b"news")
    subscription._messages_max = 10
    async with asyncio.timeout(WAIT_S):
        assert await anext(subscription) is None
        for index in range(25):
            await redis.execute("PUBLISH", b"news", str(index))
        while subscription._messages[-1].data != b"24":  # noqa: ASYNC110
            await asyncio.sleep(0.01)

        assert len(subscription._messages) <= 10
        assert await anext(subscription) is None


async def test_closing_the_client_ends_its_subscriptions(redis_url):
    client = Redis(redis_url, timeout_s=1)
    await client.connect()
    subscription = client.subscribe(b"news")

    await client.close()

    assert [message async for message in subscription if message is not None] == []


async def test_one_channel_without_a_client(redis, redis_url):
    heard = subscribe(redis_url, b"news")
    async with asyncio.timeout(WAIT_S):
        assert await anext(heard) is None
        await redis.execute("PUBLISH", b"news", b"x")
        assert await anext(heard) == b"x"
    await heard.aclose()
