"""A real cluster of three masters, that loses servers and moves slots while it is used."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import StoreUnavailable
from gateway.infra.redis import CommandRefused, Redis
from gateway.infra.redis.address import Address
from gateway.infra.redis.cluster import key_of, read_slots, slot_of
from tests.valkey_cluster import ValkeyCluster, valkey_cluster

WAIT_S = 30
INCREMENT = b"return redis.call('INCR', KEYS[1])"
INCREMENT_BOTH = b"return {redis.call('INCR', KEYS[1]), redis.call('INCR', KEYS[2])}"


@pytest.fixture(scope="module")
def cluster():
    with valkey_cluster() as running:
        yield running


@pytest.fixture
async def redis(cluster):
    client = Redis(cluster.url, timeout_s=5)
    await client.connect()
    for server in cluster.servers:
        server.answers("FLUSHALL")
    yield client
    await client.close()


async def until(condition) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -- keys and slots, without a server ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "slot"),
    [(b"123456789", 12739), (b"foo", 12182), (b"", 0), (b"{user1000}.following", 3443), (b"foo{}{bar}", 8363)],
)
def test_known_slots(key, slot):
    assert slot_of(key) == slot


@given(tag=st.binary(min_size=1).filter(lambda tag: b"}" not in tag), rest=st.binary(), before=st.binary())
def test_keys_with_one_tag_share_a_slot(tag, rest, before):
    before = before.replace(b"{", b"")
    assert slot_of(before + b"{" + tag + b"}" + rest) == slot_of(tag.join((b"{", b"}")))


async def test_our_slots_are_those_of_the_server(redis, cluster):
    for key in ("", "a", "{p17}:balance", "{}x", "a{b}c{d}", "{{b}}", "ü", "x" * 1000):
        assert cluster.servers[0].ask("CLUSTER", "KEYSLOT", key) == slot_of(key.encode())


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "a"), b"a"),
        (("set", b"a", 1), b"a"),
        (("EVALSHA", "0" * 40, 2, b"a", b"b", b"c"), b"a"),
        (("EVAL", "return 1", 0), None),
        (("fcall", "f", "1", b"a"), b"a"),
        (("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "streams", b"s1", b"s2", ">", ">"), b"s1"),
        (("XGROUP", "CREATE", b"s", "g", "$"), b"s"),
        (("PING",), None),
        (("PUBLISH", "channel", "x"), None),
        (("XAUTOCLAIM", b"s", "g"), b"s"),
    ],
)
def test_where_the_key_is(command, key):
    assert key_of(command) == key


def test_a_node_that_does_not_know_its_address_means_the_one_we_asked():
    reply = [[0, 100, [b"", 7000, b"id"], [b"replica", 1, b"id"]], [101, 16383, [b"10.0.0.2", 7001, b"id"]]]

    assert list(read_slots(reply, "10.0.0.1:6379")) == [
        (0, 100, Address("10.0.0.1", 7000)),
        (101, 16383, Address("10.0.0.2", 7001)),
    ]
    for wrong in (b"OK", [[1]], [[b"a", b"b", []]], [[0, 1, None]]):
        with pytest.raises(StoreUnavailable):
            list(read_slots(wrong, "10.0.0.1:6379"))


# -- the real thing ----------------------------------------------------------------------------------------------


async def test_each_key_reaches_its_server(redis, cluster):
    script = redis.script(INCREMENT)
    keys = [f"{{p{index}}}:n" for index in range(64)]

    await asyncio.gather(*(script([key.encode()], []) for key in keys for _ in range(10)))

    assert await asyncio.gather(*(redis.execute("GET", key) for key in keys)) == [b"10"] * 64
    sizes = [server.ask("DBSIZE") for server in cluster.servers]
    assert sum(sizes) == 64
    assert all(sizes)
    assert await redis.execute("PING") == b"PONG"


async def test_one_node_of_a_cluster_is_enough_and_noticed(cluster):
    client = Redis(cluster.servers[1].url, timeout_s=5)
    await client.connect()

    keys = [f"k{index}" for index in range(50)]
    assert await asyncio.gather(*(client.execute("SET", key, 1) for key in keys)) == [b"OK"] * 50
    assert client.connected
    await client.close()


async def test_keys_of_two_slots_in_one_script_are_refused(redis):
    with pytest.raises(CommandRefused) as caught:
        await redis.script(INCREMENT_BOTH)([b"a", b"b"], [])

    assert caught.value.prefix == "CROSSSLOT"


async def test_scripts_are_loaded_where_they_are_missing(redis, cluster):
    script = redis.script(INCREMENT)
    keys = [f"{{p{index}}}:n".encode() for index in range(30)]
    await asyncio.gather(*(script([key], []) for key in keys))
    for server in cluster.servers:
        server.ask("SCRIPT", "FLUSH", "SYNC")

    assert await asyncio.gather(*(script([key], []) for key in keys)) == [2] * 30


async def test_messages_reach_a_subscriber_at_any_node(redis):
    subscription = redis.subscribe(b"news")
    async with asyncio.timeout(WAIT_S):
        assert await anext(subscription) is None
        await redis.execute("PUBLISH", b"news", b"x")
        assert (await anext(subscription)).data == b"x"


class Traffic:
    """Callers that increment two keys of one slot together, and count what they were promised."""

    def __init__(self, redis: Redis, tag: str, callers: int = 8) -> None:
        self.done = 0
        self.stopping = False
        self._script = redis.script(INCREMENT_BOTH)
        self._keys = [f"{{{tag}}}:{name}".encode() for name in ("a", "b")]
        self._tasks = [asyncio.ensure_future(self._call()) for _ in range(callers)]

    async def _call(self) -> None:
        while not self.stopping:
            await self._script(self._keys, [])
            self.done += 1
            await asyncio.sleep(0)

    async def more(self) -> None:
        """Until every caller has got through a few more times."""
        target = self.done + 20 * len(self._tasks)
        async with asyncio.timeout(WAIT_S):
            while self.done < target:
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self._tasks)


async def move(cluster: ValkeyCluster, traffic: Traffic, slot: int, target) -> None:
    source = await asyncio.to_thread(cluster.begin_move, slot, target)
    await asyncio.sleep(0.05)
    await asyncio.to_thread(cluster.move_keys, slot, source, target, pause_s=0.03)
    # Everything is at the target, which still only serves who says ASKING.
    await traffic.more()
    await asyncio.to_thread(cluster.end_move, slot, target)
    await traffic.more()


async def test_a_slot_that_moves_during_traffic_costs_nobody_a_call(redis, cluster):
    tag = "p17"
    slot = slot_of(tag.encode())
    traffic = Traffic(redis, tag)
    await traffic.more()
    home = cluster.owner(slot)

    for target in [*(server for server in cluster.servers if server is not home), home]:
        await move(cluster, traffic, slot, target)
    await traffic.stop()

    for name in ("a", "b"):
        assert await redis.execute("GET", f"{{{tag}}}:{name}") == str(traffic.done).encode()
    seen = b"".join(server.ask("INFO", "errorstats") for server in cluster.servers)
    for refusal in (b"MOVED", b"ASK", b"TRYAGAIN"):
        assert b"errorstat_%s:" % refusal in seen, "the traffic met it"


@pytest.mark.slow
async def test_a_slot_that_moves_to_a_server_we_never_met_costs_nobody_a_call():
    with valkey_cluster() as cluster:
        client = Redis(cluster.url, timeout_s=5)
        await client.connect()
        tag = "p3"
        slot = slot_of(tag.encode())
        traffic = Traffic(client, tag)
        await traffic.more()

        newcomer = await asyncio.to_thread(cluster.add)
        await move(cluster, traffic, slot, newcomer)
        await traffic.stop()

        assert newcomer.ask("DBSIZE") == 2
        assert await client.execute("GET", f"{{{tag}}}:a") == str(traffic.done).encode()
        await client.close()


@pytest.mark.slow
async def test_a_dead_master_fails_its_own_slots_only_and_comes_back():
    with valkey_cluster() as cluster:
        for server in cluster.servers:
            server.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        client = Redis(cluster.url, timeout_s=0.5)
        await client.connect()
        keys = {cluster.owner(slot_of(b"k%d" % index)).port: b"k%d" % index for index in range(50)}
        victim = cluster.servers[1]

        await asyncio.to_thread(victim.kill)
        await until(lambda: not client.connected)

        for port, key in keys.items():
            if port == victim.port:
                with pytest.raises(StoreUnavailable):
                    await client.execute("SET", key, 1)
            else:
                assert await client.execute("SET", key, 1) == b"OK"

        await asyncio.to_thread(victim.start)
        await asyncio.to_thread(cluster.wait_ok)
        await until(lambda: client.connected)
        assert await asyncio.gather(*(client.execute("SET", key, 2) for key in keys.values())) == [b"OK"] * 3
        await client.close()


@pytest.mark.slow
async def test_a_replica_that_takes_over_is_found():
    with valkey_cluster() as cluster:
        client = Redis(cluster.url, timeout_s=0.5)
        await client.connect()
        key = next(
            b"k%d" % index for index in range(50) if cluster.owner(slot_of(b"k%d" % index)) is cluster.servers[0]
        )
        await client.execute("SET", key, 1)
        replica = await asyncio.to_thread(cluster.add)
        await asyncio.to_thread(cluster.replicate, replica, cluster.servers[0])

        await asyncio.to_thread(cluster.servers[0].kill)

        async def served() -> object:
            try:
                return await client.execute("GET", key)
            except StoreUnavailable:
                return None

        async with asyncio.timeout(WAIT_S):
            while await served() != b"1":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await until(lambda: client.connected)
        await client.close()


async def test_no_cluster_at_all():
    client = Redis("redis+cluster://127.0.0.1:1,127.0.0.1:2", timeout_s=0.5)

    with pytest.raises(StoreUnavailable):
        await client.connect()

    assert not client.connected
    await client.close()
