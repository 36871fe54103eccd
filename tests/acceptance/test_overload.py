"""More requests than a provider, or a worker, can take: some are told so at once, and not those who matter most."""

import asyncio
import gzip

import pytest

from gateway.infra.postgres import Database
from gateway.kernel.key_store import create_key
from gateway.settings import Concurrency, Model, Overload, Routing, Server, Settings, Upstream
from tests.acceptance.answers import ASK, CHAT
from tests.acceptance.test_routing import Site
from tests.gateways import PATIENCE_S, PEPPER, Answer
from tests.upstreams import RECEIVE, REPEAT, answer, play

FREE = {"gpt-x": Model(free=True)}


class Counter:
    """A provider with `places` for requests; more of them wait in it, and all get slower."""

    def __init__(self, *, places: int, service_s: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._service_s = service_s
        self.outstanding = 0
        self.peaks: list[int] = []

    async def __call__(self, peer) -> None:
        while True:
            await peer.receive()
            self.outstanding += 1
            self.peaks.append(self.outstanding)
            try:
                async with self._places:
                    await asyncio.sleep(self._service_s)
            finally:
                self.outstanding -= 1
            await peer.send(answer(CHAT))


class Gate:
    """A provider that answers when the test says so."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, peer) -> None:
        while True:
            await peer.receive()
            await self.open.wait()
            await peer.send(answer(CHAT))


@pytest.fixture
def site(stage) -> Site:
    return Site(stage)


async def key_of(site: Site, plan: str) -> str:
    """A key of a new account on this plan."""
    async with Database(site.gateway.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
        account_id = await database.fetch_value(
            "insert into accounts (name, plan) values ($1, $2) returning id", f"overload {plan}", plan
        )
        return (await create_key(database, name=plan, pepper=PEPPER.encode(), account_id=account_id)).text


def is_told(refused: Answer) -> bool:
    """Whether it says what an official client needs to come back."""
    after_s = int(refused.header(b"retry-after") or 0)
    return refused.status == 503 and refused.error["code"] == "server_is_overloaded" and 1 <= after_s <= 2


def settings(**concurrency) -> Settings:
    return Settings(routing=Routing(concurrency=Concurrency(**concurrency)))


async def test_three_times_what_a_provider_can_do(site):
    """What is too much is refused at once, those who matter most hear nothing of it, and the provider is not buried."""
    provider = Counter(places=4, service_s=0.1)
    await site.open(
        {"only": provider}, models=FREE, settings=settings(tolerance=3.0, slow_s=0.2, wait_s=0.2, least=4)
    )
    high = await key_of(site, "customize")
    answers: dict[str, list[Answer]] = {"high": [], "normal": []}

    async def ask(name: str, **parts) -> None:
        answers[name].append(await site.ask(**parts))

    for _ in range(10):
        await site.ask()
    async with asyncio.TaskGroup() as group:
        for number in range(900):
            if number % 10:
                group.create_task(ask("normal"))
            else:
                group.create_task(ask("high", key=high))
            await asyncio.sleep(1 / 120)

    assert {each.status for each in answers["high"]} == {200}
    refused = [each for each in answers["normal"] if each.status != 200]
    assert refused
    assert all(is_told(each) for each in refused)
    # Of some three hundred that were too many, fewer than one in ten are at the provider at a time.
    assert max(provider.peaks[-50:]) < 30
    metrics = await site.gateway.metrics()
    assert 'gateway_provider_concurrency_limit{provider="only"}' in metrics
    assert 'gateway_shed_total{by="provider",priority="normal"}' in metrics
    assert 'priority="high"' not in metrics


async def test_a_provider_that_is_full_is_passed_over_while_another_has_room(site):
    """The first one takes two; the third request goes to the second provider, as if the first were away."""
    gate = Gate()
    await site.open(
        {"first": gate, "second": gate}, models=FREE, settings=settings_of_connections(2, wait_s=PATIENCE_S)
    )
    asking = [asyncio.ensure_future(site.ask()) for _ in range(4)]
    await site.upstreams["second"].received(2)
    assert site.asked == {"first": 2, "second": 2}

    # Now all are full: this one waits for a place, and gets it.
    asking.append(asyncio.ensure_future(site.ask()))
    gate.open.set()
    assert [each.status for each in await asyncio.gather(*asking)] == [200] * 5


def settings_of_connections(connections_max: int, **concurrency) -> Settings:
    return Settings(
        upstream=Upstream(connections_max=connections_max), routing=Routing(concurrency=Concurrency(**concurrency))
    )


async def test_a_worker_that_has_enough_to_do_refuses_those_first_who_matter_least(site):
    """Two are in flight: a third one is too much for a free plan, not for others, and a fourth is for everybody."""
    gate = Gate()
    await site.open({"only": gate}, models=FREE, settings=Settings(overload=Overload(requests_max=3)))
    low, high = await key_of(site, "free"), await key_of(site, "customize")

    asking = [asyncio.ensure_future(site.ask()) for _ in range(2)]
    await site.upstreams["only"].received(2)
    assert is_told(await site.ask(key=low))
    asking.append(asyncio.ensure_future(site.ask(key=high)))
    await site.upstreams["only"].received(3)
    assert is_told(await site.ask(key=high))
    gate.open.set()
    assert [each.status for each in await asyncio.gather(*asking)] == [200] * 3
    assert 'gateway_shed_total{by="worker",priority="low"} 1' in await site.gateway.metrics()
    assert (await site.ask(ASK, key=low)).status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [(b"/v1/chat/completions", 503), (b"/v1/responses", 503), (b"/v1/messages", 529), (b"/v1/embeddings", 503)],
)
async def test_who_is_turned_away_at_the_door_hears_what_all_others_hear(site, path, status):
    """The first request of a key is refused where keys are looked up, the second by its head; both are accounted for."""
    gate = Gate()
    await site.open({"only": gate}, models=FREE, settings=Settings(overload=Overload(requests_max=2)))
    low = await key_of(site, "free")
    asking = asyncio.ensure_future(site.ask())
    await site.upstreams["only"].received(1)

    answers = [await site.ask(key=low, path=path) for _ in range(2)]
    gate.open.set()
    await asking

    assert [each.status for each in answers] == [status, status]
    inside, outside = [
        {name: value for name, value in each.headers if name not in (b"date", b"content-length")} for each in answers
    ]
    assert inside.keys() == outside.keys()
    for name, value in inside.items():
        assert (outside[name] == value) == (not name.startswith((b"retry-after", b"request-id", b"x-"))) or (
            name == b"retry-after"
        )
    id_ = outside[b"x-gateway-request-id"]
    assert answers[1].body == answers[0].body.replace(inside[b"x-gateway-request-id"], id_)
    assert outside[b"x-request-id"] == id_
    assert 1000 < int(outside[b"retry-after-ms"]) <= 1000 * int(outside[b"retry-after"])
    records = [record for record in await site.gateway.records(3) if record.status == status]
    assert [record.id for record in records] == [inside[b"x-gateway-request-id"].decode(), id_.decode()]
    first, second = [
        (record.error_type, record.route, record.key, record.account, record.operation, record.bytes_out)
        for record in records
    ]
    assert first == second
    metrics = await site.gateway.metrics()
    assert 'gateway_shed_total{by="worker",priority="low"} 2' in metrics


ROOM = Settings(server=Server(bodies_bytes_max=500_000))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
async def test_bodies_are_held_within_one_bound(stage, server, packed):
    """However many callers send large ones at a time; what is small is served all the same."""
    going = asyncio.Event()

    async def script(peer) -> None:
        await peer.receive()
        await going.wait()
        await peer.send(answer(CHAT))

    gateway, upstream = await stage.gateway(script, server=server, settings=ROOM)
    large = ASK[:-1] + b',"user":"' + b"x" * 300_000 + b'"}'
    body, headers = (gzip.compress(large), [(b"content-encoding", b"gzip")]) if packed else (large, [])
    first = asyncio.ensure_future(gateway.ask(body, headers=headers))
    while not upstream.requests:  # noqa: ASYNC110  it is asked in its own time
        await asyncio.sleep(0.01)

    refused = await gateway.ask(body, headers=headers)
    small = asyncio.ensure_future(gateway.ask(ASK))
    going.set()

    assert (refused.status, refused.error["code"]) == (503, "server_is_overloaded")
    assert refused.header(b"retry-after") == b"1"
    assert [(await first).status, (await small).status] == [200, 200]
    # What was held, and what was not taken in, is free again.
    assert (await gateway.ask(body, headers=headers)).status == 200


async def test_a_body_that_breaks_off_is_held_no_longer(stage):
    gateway, _ = await stage.gateway(play(RECEIVE, answer(CHAT), REPEAT), settings=ROOM)
    body = ASK[:-1] + b',"user":"' + b"x" * 300_000 + b'"}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
    for _ in range(3):
        connection = await gateway.connect()
        await connection.send(head % (gateway.key.encode(), len(body)) + body[:-10])
        connection.abort()

    async with asyncio.timeout(PATIENCE_S):
        while (await gateway.ask(body)).status != 200:  # noqa: ASYNC110  it hears in its own time
            await asyncio.sleep(0.05)
