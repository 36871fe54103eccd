"""A provider that is now and then very slow, and a second try beside the first: who is waited for, and who is paid."""

import asyncio

import pytest

from gateway.settings import Hedging, Model, Routing, Settings
from tests.acceptance.answers import ASK, ASK_STREAM, CHAT, chat_stream, error, sse, stream
from tests.acceptance.test_routing import Site
from tests.gateways import PATIENCE_S
from tests.upstreams import answer

#: Answers that are quick before anything is hedged.
WARM = 25
MODELS = {"gpt-x": Model(hedge=True, input_usd_per_mtok=10.0, output_usd_per_mtok=10.0)}


@pytest.fixture
def site(stage) -> Site:
    return Site(stage)


def hedging(percent_max: float = 100.0, least_s: float = 0.02) -> Settings:
    return Settings(routing=Routing(hedging=Hedging(percent_max=percent_max, least_s=least_s)))


class Bimodal:
    """Answers at once, or, where `slow` says so of the number of a request, not before the caller is gone."""

    def __init__(self, slow, *, reply: bytes) -> None:
        self._slow = slow
        self._reply = reply
        self.count = 0
        self.abandoned = 0
        self._happened = asyncio.Condition()

    async def until(self, true) -> None:
        async with asyncio.timeout(PATIENCE_S), self._happened:
            await self._happened.wait_for(true)

    async def _note(self) -> None:
        async with self._happened:
            self._happened.notify_all()

    async def __call__(self, peer) -> None:
        while True:
            await peer.receive()
            self.count += 1
            await self._note()
            if self._slow(self.count):
                await peer.gone()
                self.abandoned += 1
                await self._note()
                return
            await peer.send(self._reply)


@pytest.mark.parametrize(
    ("ask", "reply"),
    [(ASK, answer(CHAT)), (ASK_STREAM, stream(sse(*chat_stream("Hello", " there"))))],
    ids=["plain", "stream"],
)
async def test_a_slow_answer_is_not_waited_for_and_is_paid_for_once(site, ask, reply):
    """A request that would wait for ever is answered by another try at the same provider; the slow one is hung up on."""
    only = Bimodal(lambda number: number == WARM + 1, reply=reply)
    await site.open({"only": only}, models=MODELS, settings=hedging())
    for _ in range(WARM):
        assert (await site.ask(ask)).status == 200

    async with asyncio.timeout(PATIENCE_S):
        answered = await site.ask(ask)

    assert answered.status == 200
    assert answered.header(b"x-gateway-attempts") == b"2"
    await only.until(lambda: only.abandoned)
    records = await site.gateway.records(WARM + 1)
    costs = {record.cost_nanos for record in records}
    assert len(costs) == 1
    assert costs != {0}
    metrics = await site.gateway.metrics()
    assert 'gateway_hedges_total{won="yes"} 1' in metrics
    assert 'outcome="outrun"} 1' in metrics


async def test_the_second_try_goes_to_another_provider_and_its_answer_is_untouched(site):
    slow = Bimodal(lambda number: number > WARM, reply=answer(CHAT))
    other = CHAT.replace(b"gpt", b"xyz")
    await site.open(
        {"slow": slow, "other": Bimodal(lambda _: False, reply=answer(other))}, models=MODELS, settings=hedging()
    )
    for _ in range(WARM):
        assert (await site.ask()).header(b"x-gateway-provider") == b"slow"

    answered = await site.ask()

    assert answered.header(b"x-gateway-provider") == b"other"
    assert answered.body == other


async def test_a_second_try_that_fails_does_not_spoil_the_first(site):
    go = asyncio.Event()

    async def late(peer) -> None:
        for number in range(1, 1000):
            await peer.receive()
            if number > WARM:
                await go.wait()
            await peer.send(answer(CHAT))

    async def broken(peer) -> None:
        await peer.receive()
        await peer.send(answer(error("Oops."), status=500))
        go.set()

    await site.open({"late": late, "broken": broken}, models=MODELS, settings=hedging())
    for _ in range(WARM):
        await site.ask()

    answered = await site.ask()

    assert (answered.status, answered.body) == (200, CHAT)
    assert site.asked["broken"] == 1
    assert 'gateway_hedges_total{won="no"} 1' in await site.gateway.metrics()


async def test_there_is_a_cap_and_without_the_setting_there_is_none_at_all(site):
    """Of eighty requests, one in four slow, five in a hundred may be tried twice: the rest wait for the first."""
    slow = set(range(WARM, 100, 4))

    class Late(Bimodal):
        async def __call__(self, peer) -> None:
            while True:
                await peer.receive()
                self.count += 1
                if self._slow(self.count):
                    await asyncio.sleep(0.15)
                await peer.send(self._reply)

    provider = Late(lambda number: number in slow, reply=answer(CHAT))
    await site.open({"only": provider}, models=MODELS, settings=hedging(percent_max=5.0))
    for _ in range(80):
        assert (await site.ask()).status == 200
    assert 80 < provider.count <= 84


async def test_a_caller_who_leaves_ends_both(site):
    stuck = Bimodal(lambda number: number > WARM, reply=answer(CHAT))
    await site.open({"stuck": stuck}, models=MODELS, settings=hedging())
    for _ in range(WARM):
        await site.ask()

    connection = await site.gateway.connect()
    await connection.send(site.gateway.request(ASK))
    await stuck.until(lambda: stuck.count == WARM + 2)
    connection.abort()
    await stuck.until(lambda: stuck.abandoned == 2)
