"""Accounts that can't pay for the dearest offer are served by those that they can pay for."""

import asyncio
from collections import Counter

import msgspec
import pytest

from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.journal import credit
from gateway.kernel.key_store import change_limits, create_key
from gateway.kernel.ledger import Ledger
from gateway.kernel.limits import Budget, Limits
from gateway.secret import Secret
from gateway.settings import Model, Provider
from tests.acceptance.answers import CHAT, MESSAGES
from tests.gateways import PATIENCE_S, PEPPER, PROVIDER_KEY, RunningGateway
from tests.upstreams import ScriptedUpstream, answer

#: A hundred tokens out are a million nanos at `cheap`, ten at `dear`; the few of the input come on top.
MODELS = {
    "m": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0, fallbacks=("mini", "gratis")),
    "lonely": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0),
    "mini": Model(input_usd_per_mtok=0.1, output_usd_per_mtok=1.0),
    "gratis": Model(free=True),
}
FITS_ALL, FITS_CHEAP, FITS_MINI = 50_000_000, 5_000_000, 500_000


def ask(model: str = "m", **members: object) -> bytes:
    return msgspec.json.encode({"model": model, "messages": MESSAGES, "max_tokens": 100, **members})


class Shop:
    """Two providers, a dear and a cheap one, and accounts with little money."""

    def __init__(self, stores: Stores, database: Database, redis: Redis) -> None:
        self.database = database
        self._redis = redis
        self._stores = stores
        #: Providers answer once so many have asked.
        self.crowd = 1
        self._come = asyncio.Event()
        self.served: list[tuple[str, str]] = []
        self.account_id = 0
        #: What the account has in hold, each time that a provider is asked.
        self.held_nanos: list[int] = []

    def provider(self, upstream: ScriptedUpstream, **row: object) -> Provider:
        return Provider(
            adapter="openai",
            base_url=f"{upstream.url}/v1",
            api_key=Secret(PROVIDER_KEY),
            **row,  # type: ignore[arg-type]
        )

    def script(self, name: str):
        async def serve(peer) -> None:
            while True:
                received = await peer.receive()
                self.served.append((name, msgspec.json.decode(received.body)["model"]))
                balance = await Ledger(self._redis).peek_balance(self.account_id)
                self.held_nanos.append(0 if balance is None else balance.held_nanos)
                if len(self.served) >= self.crowd:
                    self._come.set()
                async with asyncio.timeout(PATIENCE_S):
                    await self._come.wait()
                await peer.send(answer(CHAT))

        return serve

    async def account(self, nanos: int, *, limits: Limits | None = None) -> str:
        """A key of a new account with so much."""
        account_id = self.account_id = await self.database.fetch_value(
            "insert into accounts (name, plan) values ('a', 'unlimited') returning id"
        )
        if nanos:
            await credit(self.database, account_id, type="bonus", amount_nanos=nanos, idempotency_key=f"{account_id}")
        key = await create_key(self.database, name="k", pepper=PEPPER.encode(), account_id=account_id)
        if limits is not None:
            await change_limits(self.database, self, id_or_name=key.id, change=lambda _: limits)
        return key.text

    async def publish(self, channel: bytes, message: bytes) -> object:
        return await self._redis.execute("PUBLISH", channel, message)


@pytest.fixture
async def shop(database, redis_url):
    redis = Redis(redis_url, timeout_s=PATIENCE_S)
    await redis.connect()
    async with Database(database, pool_size=2, timeout_s=PATIENCE_S) as opened:
        shop = Shop(Stores(database, redis_url), opened, redis)
        async with ScriptedUpstream(shop.script("dear")) as dear, ScriptedUpstream(shop.script("cheap")) as cheap:
            providers = {
                "dear": shop.provider(dear, models=("m", "lonely"), markup=10.0),
                "cheap": shop.provider(cheap, models=("m", "mini", "gratis"), priority=1),
            }
            stores = Stores(database, redis_url)
            async with RunningGateway(stores, providers=providers, models=MODELS) as gateway:
                shop.gateway = gateway  # type: ignore[attr-defined]
                yield shop
    await redis.close()


@pytest.mark.parametrize(
    ("nanos", "served"),
    [
        (FITS_ALL, ("dear", "m")),
        (FITS_CHEAP, ("cheap", "m")),
        (FITS_MINI, ("cheap", "mini")),
        (0, ("cheap", "gratis")),
    ],
)
async def test_the_best_that_can_be_paid_for_serves(shop, nanos, served):
    key = await shop.account(nanos)

    answered = await shop.gateway.ask(ask(), key=key)

    assert (answered.status, shop.served) == (200, [served])
    assert answered.header(b"x-gateway-provider") == served[0].encode()
    assert answered.header(b"x-gateway-attempts") == b"1"
    assert shop.held_nanos[0] <= nanos
    narrowed = 'gateway_narrowings_total{scope="account",limit="credit"} 1' in await shop.gateway.metrics()
    assert narrowed == (nanos != FITS_ALL)


async def test_where_nothing_can_be_paid_for_nobody_is_asked(shop):
    key = await shop.account(FITS_CHEAP)

    answered = await shop.gateway.ask(ask("lonely"), key=key)

    assert (answered.status, answered.error["code"]) == (402, "insufficient_credit")
    assert shop.served == []


async def test_a_caller_who_wants_one_provider_gets_no_other(shop):
    key = await shop.account(FITS_CHEAP)

    answered = await shop.gateway.ask(ask(provider={"only": ["dear"]}), key=key)
    instead = await shop.gateway.ask(ask("lonely", models=["mini"]), key=key)

    assert (answered.status, instead.status) == (402, 200)
    assert shop.served == [("cheap", "mini")]


async def test_the_fallbacks_are_narrowed_too(shop):
    """What is left of them after a failure is what the hold covers."""
    key = await shop.account(FITS_CHEAP)

    answered = await shop.gateway.ask(ask("lonely", models=["m"]), key=key)

    assert answered.status == 200
    assert shop.served == [("cheap", "m")]


@pytest.mark.parametrize("window", ["day", "total"])
async def test_what_is_left_of_a_hard_budget_counts_like_money(shop, window):
    budgets = (Budget(window="month", limit_nanos=FITS_ALL), Budget(window=window, limit_nanos=FITS_CHEAP))
    key = await shop.account(FITS_ALL, limits=Limits(budgets=budgets))

    answered = await shop.gateway.ask(ask(), key=key)

    assert (answered.status, shop.served) == (200, [("cheap", "m")])
    assert 'gateway_narrowings_total{scope="key",limit="budget"} 1' in await shop.gateway.metrics()


async def test_the_tightest_of_money_and_budgets_counts_at_once(shop):
    """The refusal is about a budget that the cheap one would fit; the balance has room for less."""
    key = await shop.account(FITS_MINI, limits=Limits(budgets=(Budget(window="day", limit_nanos=FITS_CHEAP),)))

    answered = await shop.gateway.ask(ask(), key=key)

    assert (answered.status, shop.served) == (200, [("cheap", "mini")])


async def test_many_at_once_never_hold_more_than_there_is(shop):
    """Room for one dear hold and some cheap ones: each takes what the others have left, down to what is free."""
    key = await shop.account(14_000_000)
    shop.crowd = 20

    answers = await asyncio.gather(*(shop.gateway.ask(ask(), key=key) for _ in range(shop.crowd)))

    by_offer = Counter(shop.served)
    assert {each.status for each in answers} == {200}
    assert 10_000_000 < max(shop.held_nanos) <= 14_000_000
    assert by_offer["dear", "m"] == 1
    assert by_offer["cheap", "m"] == 3
    assert by_offer["cheap", "mini"] >= 1
    assert by_offer["cheap", "gratis"] >= 1
