"""A second model that is asked unheard, and conditions on what a body says."""

import asyncio

import pytest

from gateway.settings import Condition, Model
from tests.acceptance.answers import ASK, ASK_STREAM, CHAT, chat_stream, error, sse, stream
from tests.acceptance.test_routing import Site
from tests.gateways import PATIENCE_S
from tests.upstreams import RECEIVE, REPEAT, answer, play

PRICE = {"input_usd_per_mtok": 10.0, "output_usd_per_mtok": 10.0}
MODELS = {"gpt-x": Model(shadow="try", shadow_percent=100.0, **PRICE), "try": Model(**PRICE)}
ROWS = {"main": {"models": ("gpt-x",)}, "second": {"models": ("try",)}}


def same(reply: bytes):
    return play(RECEIVE, reply, REPEAT)


@pytest.fixture
def site(stage) -> Site:
    return Site(stage)


@pytest.mark.parametrize(
    ("ask", "reply"),
    [(ASK, answer(CHAT)), (ASK_STREAM, stream(sse(*chat_stream("Hello", " there"))))],
    ids=["plain", "stream"],
)
async def test_nobody_waits_for_it_or_pays_for_it_and_it_is_told_apart(site, ask, reply):
    go = asyncio.Event()

    async def late(peer) -> None:
        while True:
            await peer.receive()
            await go.wait()
            await peer.send(answer(CHAT) if ask is ASK else reply)

    await site.open({"main": same(reply), "second": late}, rows=ROWS, models=MODELS)
    answered = await site.ask(ask)
    assert answered.header(b"x-gateway-provider") == b"main"
    await site.upstreams["second"].received(1)
    assert b'"try"' in site.requests("second")[0].body

    go.set()
    records = {record.route: record for record in await site.gateway.records(2)}
    shadow = records["/v1/chat/completions"], records["_shadow"]
    assert shadow[0].cost_nanos > 0
    assert (shadow[1].cost_nanos, shadow[1].account, shadow[1].key) == (0, 0, "")
    assert (shadow[1].model, shadow[1].provider, shadow[1].operation) == ("try", "second", "shadow")
    assert shadow[1].status == 200
    if ask is ASK:
        assert shadow[1].output_tokens == 2


@pytest.mark.parametrize(
    "script",
    [same(answer(error("Oops."), status=500)), same(b"nonsense\r\n\r\n"), same(stream(sse(b"[DONE]")))],
    ids=["500", "garbage", "empty stream"],
)
async def test_how_it_fails_is_nobodys_business(site, script):
    await site.open({"main": same(answer(CHAT)), "second": script}, rows=ROWS, models=MODELS)
    for _ in range(3):
        assert (await site.ask()).body == CHAT
    assert [record.route for record in await site.gateway.records(6)].count("_shadow") == 3


async def test_only_so_many_at_a_time_and_none_where_the_caller_has_wishes(site):
    async def never(peer) -> None:
        await peer.receive()
        await peer.gone()

    await site.open({"main": same(answer(CHAT)), "second": never}, rows=ROWS, models=MODELS)
    wishing = ASK.replace(b"}]}", b'}],"provider":{"only":["main"]}}')
    assert (await site.ask(wishing)).status == 200
    assert site.asked == {"main": 1}
    for _ in range(40):
        assert (await site.ask()).status == 200
    async with asyncio.timeout(PATIENCE_S):
        await site.upstreams["second"].received(32)
    assert site.asked == {"main": 41, "second": 32}


async def test_what_a_body_says_decides_who_serves_it(site):
    conditions = (
        Condition(when={"metadata.team": "legal"}, require=("eu",)),
        Condition(when={"metadata.team": ("moon",)}, require=("moon",)),
        Condition(when={"temperature": 0}, model="try"),
    )
    rows = {
        "far": {"models": ("gpt-x",)},
        "near": {"models": ("gpt-x",), "tags": ("eu",)},
        "third": {"models": ("try",)},
    }
    await site.open(
        {name: same(answer(CHAT)) for name in rows},
        rows=rows,
        models={"gpt-x": Model(free=True, conditions=conditions), "try": Model(free=True)},
    )

    async def served(members: bytes = b"") -> bytes | None:
        return (await site.ask(ASK.replace(b'{"model"', b"{" + members + b'"model"'))).header(b"x-gateway-provider")

    assert await served() == b"far"
    assert await served(b'"metadata":{"team":"legal"},') == b"near"
    assert await served(b'"temperature":0,') == b"third"
    refused = await site.ask(ASK.replace(b'{"model"', b'{"metadata":{"team":"moon"},"model"'))
    assert (refused.status, refused.error["code"]) == (503, "no_provider_available")
