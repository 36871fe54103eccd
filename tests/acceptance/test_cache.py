"""Answers from memory: to whom, to what, for how much, and for how long."""

import asyncio

import msgspec
import pytest

from gateway.infra.postgres import Database
from gateway.kernel.key_store import create_key
from gateway.settings import Cache, Model, Settings
from tests.acceptance.answers import ASK, ASK_STREAM, CHAT, chat_stream, error, sse, stream
from tests.acceptance.test_key_constraints import make_key
from tests.acceptance.test_routing import Site
from tests.gateways import PATIENCE_S, PEPPER, Answer
from tests.upstreams import RECEIVE, REPEAT, answer, play

PAID = {"gpt-x": Model(input_usd_per_mtok=1000.000001, output_usd_per_mtok=1000.0)}
ON = [(b"x-gateway-cache", b"on")]
COLD = b'{"model":"gpt-x","temperature":0,"messages":[{"role":"user","content":"Hi"}]}'
STREAM = stream(sse(*chat_stream("Hello", " there")))


def control(value: bytes) -> list[tuple[bytes, bytes]]:
    return [*ON, (b"cache-control", value)]


def same(reply: bytes):
    return play(RECEIVE, reply, REPEAT)


@pytest.fixture
def site(stage) -> Site:
    return Site(stage)


async def opened(site: Site, reply: bytes = answer(CHAT), **cache) -> Site:
    return await site.open(
        {"only": same(reply)}, models=PAID, settings=Settings(cache=Cache(**({"use": "asked"} | cache)))
    )


def is_hit(answered: Answer) -> bool:
    assert answered.header(b"x-gateway-cache") in (b"hit", b"miss")
    return answered.header(b"x-gateway-cache") == b"hit"


@pytest.mark.parametrize(("body", "reply"), [(ASK, answer(CHAT)), (ASK_STREAM, STREAM)], ids=["plain", "stream"])
async def test_the_same_again_is_answered_alike_and_for_nothing(site, body, reply):
    await opened(site, reply)
    first = await site.ask(body, headers=ON)
    again = await site.ask(body, headers=ON)

    assert not is_hit(first)
    assert is_hit(again)
    assert again.body == first.body
    assert again.header(b"content-type") == first.header(b"content-type")
    assert again.header(b"x-gateway-provider") == b"only"
    assert again.header(b"x-gateway-attempts") == b"0"
    assert again.header(b"x-gateway-cost-usd") == b"0.00"
    assert again.header(b"x-request-id") not in (None, first.header(b"x-request-id"))
    assert site.asked == {"only": 1}
    costs = [record.cost_nanos for record in await site.gateway.records(2)]
    assert costs[0] > 0
    assert costs[1] == 0
    assert 'gateway_cache_total{outcome="hit"} 1' in await site.gateway.metrics()


async def test_blanks_and_the_order_of_members_make_no_difference_and_everything_else_does(site):
    await opened(site)
    await site.ask(ASK, headers=ON)
    spaced = b'{ "messages": [ {"content": "Hi", "role": "user"} ],\n "model": "gpt-x" }'
    assert is_hit(await site.ask(spaced, headers=ON))
    for other in (
        ASK.replace(b"Hi", b"hi"),
        ASK.replace(b"}", b"}", 1).replace(b'"model"', b'"seed":1,"model"'),
        ASK.replace(b"gpt-x", b"gpt-y"),
    ):
        assert not is_hit(await site.ask(other, headers=ON))


async def test_nothing_is_kept_unless_asked_for_and_nothing_at_all_by_default(site):
    await opened(site)
    for body in (ASK, COLD):
        for _ in range(2):
            assert (await site.ask(body)).header(b"x-gateway-cache") is None
    assert site.asked == {"only": 4}


async def test_what_comes_out_the_same_by_itself_may_always_be_kept(site):
    await opened(site, use="always")
    await site.ask(COLD)
    assert is_hit(await site.ask(COLD))
    assert (await site.ask(ASK)).header(b"x-gateway-cache") is None
    assert (await site.ask(COLD, headers=[(b"cache-control", b"no-store")])).header(b"x-gateway-cache") is None


async def test_no_account_gets_what_another_one_asked_for(site):
    await opened(site)
    await site.ask(ASK, headers=ON)
    async with Database(site.gateway.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
        account_id = await database.fetch_value("insert into accounts (name) values ('another one') returning id")
        key = await create_key(database, name="another", pepper=PEPPER.encode(), account_id=account_id)
        refused = await site.ask(ASK, headers=ON, key=key.text)
        assert refused.status == 402
        second = (await site.gateway.make_key(database)).text
    assert is_hit(await site.ask(ASK, headers=ON, key=second))
    assert site.asked == {"only": 1}


async def test_a_key_does_not_get_from_memory_what_it_could_not_have_had(site):
    """What one of two providers answered is not for a key of the same account that may use the other alone."""
    await site.open(
        {"first": same(answer(CHAT)), "second": same(answer(CHAT.replace(b"Hello", b"Second")))},
        models={"*": Model(free=True)},
        settings=Settings(cache=Cache(use="asked")),
    )
    first = await site.ask(ASK, headers=ON)
    narrowed = [await make_key(site.gateway, provider_allowlist=[name]) for name in ("second", "first")]

    others = [await site.ask(ASK, headers=ON, key=key) for key in narrowed for _ in range(2)]

    assert first.header(b"x-gateway-provider") == b"first"
    assert [(each.header(b"x-gateway-provider"), is_hit(each)) for each in others] == [
        (b"second", False),
        (b"second", True),
        (b"first", False),
        (b"first", True),
    ]
    assert b"Second" in others[1].body
    assert is_hit(await site.ask(ASK, headers=ON))
    assert site.asked == {"first": 2, "second": 1}


async def test_cache_control_is_obeyed(site):
    await opened(site)
    missing = await site.ask(ASK, headers=control(b"only-if-cached"))
    assert (missing.status, missing.error["code"]) == (504, "not_cached")
    assert site.asked == {}
    await site.ask(ASK, headers=control(b"no-store"))
    assert not is_hit(await site.ask(ASK, headers=ON))
    assert not is_hit(await site.ask(ASK, headers=control(b"no-cache")))
    assert is_hit(await site.ask(ASK, headers=control(b"only-if-cached, max-age=60")))
    await asyncio.sleep(0.01)
    assert not is_hit(await site.ask(ASK, headers=control(b"max-age=0")))
    assert site.asked == {"only": 4}


async def test_an_answer_is_forgotten_in_time(site):
    await opened(site, ttl_s=0.001)
    await site.ask(ASK, headers=ON)
    await asyncio.sleep(0.01)
    assert not is_hit(await site.ask(ASK, headers=ON))


async def test_a_share_of_the_price_may_be_charged(site):
    """Rounded up, as every cost is."""
    await opened(site, price_permille=7)
    await site.ask(ASK, headers=ON)
    again = await site.ask(ASK, headers=ON)
    first, second = [record.cost_nanos for record in await site.gateway.records(2)]
    assert first * 7 % 1000
    assert second == first * 7 // 1000 + 1
    assert float(again.header(b"x-gateway-cost-usd")) == pytest.approx(second / 1e9)


@pytest.mark.parametrize(
    "reply",
    [
        answer(error("Oops."), status=500),
        answer(error("No."), status=400),
        stream(sse(b'{"error":{"message":"Oops.","type":"server_error","param":null,"code":null}}')),
        stream(sse(*chat_stream("Hello")[:1])),
        answer(msgspec.json.encode({"padding": "x" * 10_000})),
    ],
    ids=["500", "400", "error in a stream", "cut stream", "too large"],
)
async def test_what_is_not_whole_and_good_is_not_kept(site, reply):
    await opened(site, reply, answer_bytes_max=5_000)
    for _ in range(2):
        answered = await site.ask(ASK_STREAM if b"event-stream" in reply else ASK, headers=ON)
        assert answered.header(b"x-gateway-cache") != b"hit"
    assert len(site.requests("only")) == 2


async def test_who_asks_the_same_meanwhile_waits_for_one_answer(site):
    go = asyncio.Event()

    async def slow(peer) -> None:
        while True:
            await peer.receive()
            await go.wait()
            await peer.send(answer(CHAT))

    await site.open({"only": slow}, models=PAID, settings=Settings(cache=Cache(use="asked")))
    asking = [asyncio.ensure_future(site.ask(ASK, headers=ON)) for _ in range(5)]
    await site.upstreams["only"].received(1)
    go.set()
    answered = await asyncio.gather(*asking)
    assert [each.status for each in answered] == [200] * 5
    assert sum(is_hit(each) for each in answered) == 4
    assert site.asked == {"only": 1}


async def test_who_waits_for_an_answer_that_fails_asks_for_itself(site):
    go = asyncio.Event()

    async def failing_once(peer) -> None:
        while True:
            await peer.receive()
            if len(peer.upstream.requests) == 1:
                await go.wait()
                await peer.send(answer(error("Oops."), status=500))
            else:
                await peer.send(answer(CHAT))

    await site.open({"only": failing_once}, models=PAID, settings=Settings(cache=Cache(use="asked")))
    first = asyncio.ensure_future(site.ask(ASK, headers=ON))
    await site.upstreams["only"].received(1)
    second = asyncio.ensure_future(site.ask(ASK, headers=ON))
    go.set()
    assert sorted([(await first).status, (await second).status]) == [200, 500]
