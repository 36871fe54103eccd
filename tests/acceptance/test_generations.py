"""`GET /v1/generations/{id}`: what a request came to, shown to the key that made it and to nobody else."""

import contextlib

import msgspec
import pytest

from gateway import __version__
from gateway.errors import StoreUnavailable
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.metrics import Registry
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.history import PIECE, History
from gateway.kernel.journal import credit, find_account
from gateway.kernel.record import UsageRecord, encode_record
from gateway.kernel.request_id import RequestIds
from gateway.kernel.settler import Settler
from gateway.kernel.verbs import usage_key
from gateway.settings import Model
from gateway.telemetry import Telemetry
from tests.acceptance.answers import ASK, CHAT, chat_stream
from tests.gateways import PATIENCE_S, RunningGateway
from tests.upstreams import RECEIVE, REPEAT, ScriptedUpstream, answer, events, play

PRICES = {"gpt-x": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)}
#: 9 tokens in, 2 out.
COST_NANOS = 9 * 1000 + 2 * 2000


def path_of(request_id: bytes | str) -> bytes:
    return b"/v1/generations/" + (request_id if isinstance(request_id, bytes) else request_id.encode())


class Shop:
    """A gateway with a price list and an account that can pay, and the settler in our hands."""

    def __init__(self, gateway, database: Database, redis: Redis) -> None:
        self.gateway = gateway
        self.database = database
        self.redis = redis
        telemetry = Telemetry(Registry(incarnation="test"), version=__version__)
        self.settler = Settler(database, redis, clock=SystemClock(), telemetry=telemetry)

    async def buy(self, body: bytes = ASK) -> bytes:
        """One paid request; its id."""
        answered = await self.gateway.ask(body)
        assert answered.status == 200, answered.body
        request_id = answered.header(b"x-gateway-request-id")
        assert request_id is not None
        return request_id

    async def look(self, request_id: bytes | str, **parts):
        return await self.gateway.ask(method=b"GET", path=path_of(request_id), **parts)


@pytest.fixture
async def shop(database, redis_url, request):
    body = events(*chat_stream("One ", "two.")) if getattr(request, "param", "") == "stream" else answer(CHAT)
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream(play(RECEIVE, body, REPEAT)))
        stores = Stores(database, redis_url)
        gateway = await stack.enter_async_context(
            RunningGateway(stores, providers={"local": upstream}, models=PRICES)
        )
        opened = await stack.enter_async_context(Database(database, pool_size=2, timeout_s=PATIENCE_S))
        redis = Redis(redis_url, timeout_s=PATIENCE_S)
        await redis.connect()
        stack.push_async_callback(redis.close)
        account_id = await find_account(opened, gateway.key_id)
        await credit(opened, account_id, type="bonus", amount_nanos=10**10, idempotency_key="to spend")
        yield Shop(gateway, opened, redis)


@pytest.mark.parametrize("settled", [False, True], ids=["on its way", "in the books"])
async def test_a_request_is_shown_with_what_it_cost(shop, settled):
    request_id = await shop.buy()
    if settled:
        await shop.settler.settle_once()

    shown = await shop.look(request_id)

    assert shown.status == 200
    assert shown.header(b"content-type") == b"application/json"
    generation = msgspec.json.decode(shown.body)
    latency_ms, first_token_ms = generation.pop("latency_ms"), generation.pop("first_token_ms")
    assert 0 <= first_token_ms <= latency_ms < PATIENCE_S * 1000
    assert abs(generation.pop("created") - SystemClock().now()) < 2 * PATIENCE_S
    assert generation == {
        "id": request_id.decode(),
        "object": "generation",
        "model": "gpt-x",
        "provider": "local",
        "upstream_model": "gpt-x",
        "status": 200,
        "outcome": "ok",
        "error_type": None,
        "stream": False,
        "usage": {
            "input_tokens": 9,
            "output_tokens": 2,
            "input_cached_tokens": 0,
            "input_cache_write_tokens": 0,
            "output_reasoning_tokens": 0,
            "source": "reported",
        },
        "cost_usd": "0.000013",
        "cost_nanos": COST_NANOS,
        "attempts": [{"provider": "local", "outcome": "ok"}],
        "own_key": False,
        "fee_permille": None,
        "tags": {},
    }


async def test_both_ways_to_it_show_the_same(shop):
    request_id = await shop.buy()

    before = await shop.look(request_id)
    await shop.settler.settle_once()
    after = await shop.look(request_id)

    assert before.body == after.body


@pytest.mark.parametrize("path", [b"/api/v1/generation?id=", b"/v1/generation?a=b&id="])
async def test_openrouters_clients_find_theirs(shop, path):
    request_id = await shop.buy()

    shown = await shop.gateway.ask(method=b"GET", path=path + request_id)

    data = msgspec.json.decode(shown.body)["data"]
    assert data["id"] == request_id.decode()
    assert (data["tokens_prompt"], data["native_tokens_completion"]) == (9, 2)
    assert data["total_cost"] == data["usage"] == 0.000013
    assert (data["streamed"], data["cancelled"], data["provider_name"]) == (False, False, "local")


@pytest.mark.parametrize("shop", ["stream"], indirect=True)
async def test_a_stream_is_shown_too(shop):
    request_id = await shop.buy(ASK[:-1] + b',"stream":true}')

    generation = msgspec.json.decode((await shop.look(request_id)).body)

    assert (generation["stream"], generation["outcome"]) == (True, "ok")
    assert generation["usage"]["source"] == "reported"


@pytest.mark.parametrize("settled", [False, True])
async def test_another_key_is_told_nothing_not_even_of_the_same_account(shop, settled):
    request_id = await shop.buy()
    if settled:
        await shop.settler.settle_once()
    other = await shop.gateway.make_key(shop.database)

    theirs = await shop.look(request_id, key=other.text)
    nobodys = await shop.look(request_id, key="gw_live_" + "a" * 55)

    assert (theirs.status, theirs.error["code"]) == (404, "generation_not_found")
    assert nobodys.status == 401


async def test_what_is_not_there_is_a_404_and_says_whether_to_wait(shop):
    fresh = RequestIds(SystemClock()).make()

    young, old = await shop.look(fresh), await shop.look("019a0000-0000-7000-8000-000000000000")
    nonsense = [await shop.look(text) for text in ("x", "a%2Fb", "1" * 3000, "%00")]

    assert (young.status, young.header(b"retry-after")) == (404, b"1")
    assert (old.status, old.header(b"retry-after")) == (404, None)
    assert [(each.status, each.header(b"retry-after")) for each in nonsense] == [(404, None)] * 4


async def test_it_needs_a_key_an_id_and_the_right_method(shop):
    request_id = await shop.buy()

    assert (await shop.look(request_id, key="")).status == 401
    assert (await shop.gateway.ask(method=b"GET", path=b"/v1/generation")).status == 400
    posted = await shop.gateway.ask(b"{}", path=path_of(request_id))
    assert (posted.status, posted.header(b"allow")) == (405, b"GET, HEAD")
    head = await shop.gateway.ask(method=b"HEAD", path=path_of(request_id))
    assert (head.status, head.body) == (200, b"")


async def test_an_upper_case_id_is_the_same_id(shop):
    request_id = await shop.buy()

    assert (await shop.look(request_id.upper())).status == 200


async def test_the_route_is_counted_by_a_name_of_its_own(shop):
    await shop.look(await shop.buy())

    assert 'route="/v1/generations/*"' in await shop.gateway.metrics()


class Broken:
    """A store that is away."""

    def execute(self, *command):
        raise StoreUnavailable(detail="away")

    async def fetch_row(self, query, *args):
        raise StoreUnavailable(detail="away")


async def test_one_store_is_enough_where_it_knows_the_request(shop):
    settled = (await shop.buy()).decode()
    await shop.settler.settle_once()
    unsettled = RequestIds(SystemClock()).make()
    record = UsageRecord(request_id=unsettled, account_id=64, key_id="key", cost_nanos=5)
    await shop.redis.execute("XADD", usage_key(0), "*", "r", encode_record(record))
    without_postgres, without_redis = History(Broken(), shop.redis), History(shop.database, Broken())

    in_books = await without_redis.find(settled, account_id=1, key_id=shop.gateway.key_id)
    in_stream = await without_postgres.find(unsettled, account_id=64, key_id="key")

    assert in_books is not None
    assert in_stream is not None
    assert (in_books.cost_nanos, in_stream.cost_nanos) == (COST_NANOS, 5)
    elsewhere = RequestIds(SystemClock()).make()
    for history in (without_postgres, without_redis):
        with pytest.raises(StoreUnavailable):
            await history.find(elsewhere, account_id=64, key_id="key")


async def test_it_is_found_behind_many_others_and_beside_what_is_no_record(shop):
    ids = RequestIds(SystemClock())
    wanted = ids.make()
    stream = usage_key(7)
    await shop.redis.execute("XADD", stream, "*", "r", b"no record of " + wanted.encode())
    for _ in range(2 * PIECE):
        await shop.redis.execute("XADD", stream, "*", "r", b"x")
    record = UsageRecord(request_id=wanted, account_id=7, key_id="key", cost_nanos=1)
    await shop.redis.execute("XADD", stream, "*", "r", encode_record(record))
    history = History(shop.database, shop.redis)

    assert await history.find(wanted, account_id=7, key_id="key") is not None
    assert await history.find(wanted, account_id=7, key_id="another") is None
    assert await history.find(ids.make(), account_id=7, key_id="key") is None
