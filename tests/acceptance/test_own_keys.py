"""Provider keys that accounts bring: who is asked with which credential, what it costs, and what its failure means."""

import asyncio
import contextlib
import urllib.parse
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from gateway import __version__
from gateway.control.app import ControlPlane
from gateway.dataplane import Crossing
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.metrics import Registry
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.journal import credit
from gateway.kernel.key_store import create_key
from gateway.kernel.money import fee_nanos
from gateway.kernel.settler import Settler
from gateway.secret import Secret
from gateway.settings import Cache, Model, OwnKeys, Provider, Settings
from gateway.telemetry import Telemetry
from tests.acceptance.answers import ASK, CHAT, MESSAGES, error, response_object
from tests.gateways import PATIENCE_S, PEPPER, PROVIDER_KEY, Answer, RunningGateway
from tests.upstreams import RECEIVE, REPEAT, ReceivedRequest, Script, ScriptedUpstream, answer, play

OWN = "sk-own-of-the-account-4711"
OTHER = "sk-another-of-its-own-0815"
OWN_KEYS = OwnKeys(masters={"k1": Secret("5a" * 32)})
#: A thousand and two thousand nanos for a token.
PRICED = {"gpt-x": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)}
#: Of CHAT: 9 tokens in and 2 out.
COST_NANOS = 9 * 1000 + 2 * 2000
FEE_NANOS = COST_NANOS * 50 // 1000
DEPOSIT_NANOS = 10**10
PATH = b"/user/provider-keys"
REFUSED = answer(error("Incorrect API key provided: sk-own***4711."), status=401)


def credential(request: ReceivedRequest) -> str:
    return (request.header(b"authorization") or b"").decode().removeprefix("Bearer ")


def telling(good: bytes, **bad: bytes) -> Script:
    """Answers `good`, but what `bad` says to whoever comes with that key."""
    by_key = {OWN: bad.get("own", good), OTHER: bad.get("other", good), PROVIDER_KEY: bad.get("operators", good)}

    async def script(peer: Any) -> None:
        while True:
            await peer.send(by_key[credential(await peer.receive())])

    return script


class Account:
    """One with a gateway key that can pay."""

    def __init__(self, house: "House", account_id: int, key: Any) -> None:
        self._house = house
        self.id = account_id
        self.key: str = key.text
        self.key_id: str = key.id

    async def ask(self, body: bytes = ASK, **parts: Any) -> Answer:
        return await self._house.gateway.ask(body, key=self.key, **parts)

    async def call(self, method: bytes, path: bytes = PATH, body: object = None) -> Answer:
        """Ask the control plane; the answer is here when every worker was told."""
        content = b"" if body is None else msgspec.json.encode(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        return await self._house.gateway.ask(content, method=method, path=path, key=self.key, headers=headers)

    async def bring(self, text: str = OWN, *, provider: str = "local", **members: object) -> str:
        made = await self.call(b"POST", body={"provider": provider, "api_key": text, **members})
        assert made.status == 200, made
        self._house.told()
        return str(msgspec.json.decode(made.body)["id"])

    async def change(self, key_id: str, **members: object) -> None:
        assert (await self.call(b"PATCH", PATH + b"/" + key_id.encode(), members)).status == 200
        self._house.told()

    async def delete(self, key_id: str) -> None:
        assert (await self.call(b"DELETE", PATH + b"/" + key_id.encode())).status == 200
        self._house.told()


class House:
    """A gateway with accounts, on a ledger of its own."""

    def __init__(self, stack: contextlib.AsyncExitStack, stores: Stores, database: Database, redis: Redis) -> None:
        self._stack = stack
        self.stores = stores
        self.database = database
        telemetry = Telemetry(Registry(incarnation="test"), version=__version__)
        self.settler = Settler(database, redis, clock=SystemClock(), telemetry=telemetry)

    async def open(self, *scripts: Script, names: tuple[str, ...] = ("local",), **options: Any) -> "House":
        """A provider for each script, in order of priority, all of which have the model."""
        self.upstreams = {}
        providers = {}
        #: Makes what the configuration says of one, where that is not OpenAI.
        make = options.pop("row", None)
        for place, (name, script) in enumerate(zip(names, scripts, strict=True)):
            upstream = self.upstreams[name] = await self._stack.enter_async_context(ScriptedUpstream(script))
            row = Provider(adapter="openai", base_url=f"{upstream.url}/v1", api_key=Secret(PROVIDER_KEY))
            if make is not None:
                row = make(upstream)
            providers[name] = msgspec.structs.replace(row, priority=place)
        settings = options.pop("settings", Settings())
        settings = msgspec.structs.replace(settings, own_keys=options.pop("own_keys", OWN_KEYS))
        self.gateway = await self._stack.enter_async_context(
            RunningGateway(
                self.stores, providers=providers, settings=settings, models=options.pop("models", PRICED), **options
            )
        )
        return self

    async def account(self, *, deposit_nanos: int = DEPOSIT_NANOS) -> Account:
        account_id: int = await self.database.fetch_value(
            "insert into accounts (name) values ('an account') returning id"
        )
        key = await create_key(
            self.database, name=f"key {uuid.uuid4().hex}", pepper=PEPPER.encode(), account_id=account_id
        )
        if deposit_nanos:
            await credit(
                self.database,
                account_id,
                type="bonus",
                amount_nanos=deposit_nanos,
                idempotency_key=f"for {account_id}",
            )
        return Account(self, account_id, key)

    def told(self) -> None:
        """Have this worker ask again about each key. How quickly it does by itself is tested with several of them."""
        default = self.gateway.app.default
        assert isinstance(default, Crossing)
        assert isinstance(default.control, ControlPlane)
        self.parts = default.control.parts
        self.parts.deps.keys.doubt()

    def credentials(self, name: str = "local") -> list[str]:
        """Who was asked there with which, in order; how models are listed is left out."""
        return [credential(each) for each in self.upstreams[name].requests]

    async def settled(self, count: int) -> list[Any]:
        """The usage records, once there are so many."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.database.fetch_value("select count(*) from usage_records") < count:
                await self.settler.settle_once()
        return await self.database.fetch("select * from usage_records order by created_at, request_id")

    async def balance(self, account: Account) -> int:
        found: int = await self.database.fetch_value(
            "select balance_nanos from balances where account_id = $1", account.id
        )
        return found


@pytest.fixture
async def house(database: str, redis_url: str) -> AsyncIterator[House]:
    async with contextlib.AsyncExitStack() as stack:
        opened = await stack.enter_async_context(Database(database, pool_size=2, timeout_s=PATIENCE_S))
        redis = Redis(redis_url, timeout_s=PATIENCE_S)
        await redis.connect()
        stack.push_async_callback(redis.close)
        yield House(stack, Stores(database, redis_url), opened, redis)


# -- who is asked with which ---------------------------------------------------------------------------------


async def test_an_accounts_own_key_is_used_for_it_and_for_nobody_else(house):
    await house.open(telling(answer(CHAT)))
    ann, bob = await house.account(), await house.account()
    await ann.bring()

    answers = [await each.ask() for each in (ann, bob, ann, bob)]

    assert [each.status for each in answers] == [200] * 4
    assert answers[0].body == CHAT
    assert house.credentials() == [OWN, PROVIDER_KEY, OWN, PROVIDER_KEY]


@pytest.mark.parametrize(
    ("mode", "bad", "asked"),
    [
        ("first", "own", [OWN, PROVIDER_KEY]),
        ("fallback", "operators", [PROVIDER_KEY, OWN]),
        ("first", "operators", [OWN]),
        ("fallback", "own", [PROVIDER_KEY]),
    ],
)
async def test_it_is_asked_before_or_after_the_operators(house, mode, bad, asked):
    await house.open(telling(answer(CHAT), **{bad: REFUSED}))
    ann = await house.account()
    await ann.bring(mode=mode)

    assert (await ann.ask()).status == 200
    assert house.credentials() == asked


async def test_other_providers_come_after_an_own_key_and_before_one_that_is_a_fallback(house):
    oops = answer(error("Oops."), status=500)
    await house.open(telling(oops), telling(answer(CHAT)), names=("local", "second"))
    ann, bob = await house.account(), await house.account()
    await ann.bring(mode="first")
    await bob.bring(mode="fallback")

    assert (await ann.ask()).status == 200
    assert (await bob.ask()).status == 200
    assert house.credentials() == [OWN, PROVIDER_KEY, PROVIDER_KEY]
    assert house.credentials("second") == [PROVIDER_KEY, PROVIDER_KEY]


async def test_where_it_allows_no_other_nobody_else_is_asked(house):
    await house.open(telling(answer(CHAT), own=REFUSED), telling(answer(CHAT)), names=("local", "second"))
    ann = await house.account()
    await ann.bring(mode="only")

    refused = await ann.ask()

    assert (refused.status, refused.error["code"]) == (401, "own_key_refused")
    assert "own key for local" in refused.error["message"]
    assert "4711" not in refused.body.decode()
    assert refused.header(b"x-should-retry") == b"false"
    assert house.credentials() == [OWN]
    assert house.credentials("second") == []


async def test_a_fallback_model_is_no_way_around_it(house):
    models = {
        "gpt-x": msgspec.structs.replace(PRICED["gpt-x"], fallbacks=("other",)),
        "other": PRICED["gpt-x"],
    }
    await house.open(telling(answer(error("Oops."), status=500)), models=models)
    ann = await house.account()
    await ann.bring(mode="only")

    assert (await ann.ask()).status == 500
    assert set(house.credentials()) == {OWN}


async def test_what_the_caller_wants_of_routing_holds_for_own_keys_too(house):
    await house.open(telling(answer(CHAT)), telling(answer(CHAT)), names=("local", "second"))
    ann = await house.account()
    await ann.bring()
    for wish in ({"only": ["second"]}, {"order": ["second", "local"]}, {"order": ["local"]}, {"ignore": ["local"]}):
        body = msgspec.json.encode({"model": "gpt-x", "messages": MESSAGES, "provider": wish})
        assert (await ann.ask(body)).status == 200

    assert house.credentials() == [OWN]
    assert house.credentials("second") == [PROVIDER_KEY] * 3


async def test_its_failures_take_no_operators_offer_out_and_are_not_reported_as_ours(house):
    await house.open(telling(answer(CHAT), own=answer(error("No."), status=403)))
    ann, bob = await house.account(), await house.account()
    await ann.bring(mode="only")

    for _ in range(12):
        assert (await ann.ask()).status == 403
    assert (await bob.ask()).status == 200

    metrics = await house.gateway.metrics()
    assert 'gateway_upstream_attempts_total{provider="local",outcome="caller_own_key"} 12' in metrics
    assert 'gateway_breaker_state{provider="local"} 0' in metrics
    assert 'outcome="provider_credentials"' not in metrics
    records = await house.settled(13)
    assert [each["error_type"] for each in records[:12]] == ["caller_own_key"] * 12
    assert {each["outcome"] for each in records[:12]} == {"caller_error"}


async def test_a_provider_that_is_out_with_an_own_key_is_not_out_for_others(house):
    await house.open(telling(answer(CHAT), own=answer(error("Oops."), status=500)))
    ann, bob = await house.account(), await house.account()
    await ann.bring(mode="only")

    for _ in range(30):
        await ann.ask()
    assert (await bob.ask()).status == 200

    assert 'gateway_breaker_state{provider="local"} 0' in await house.gateway.metrics()


# -- changes -------------------------------------------------------------------------------------------------


async def test_what_is_changed_counts_at_once(house):
    await house.open(telling(answer(CHAT)))
    ann = await house.account()
    key_id = await ann.bring()
    await ann.ask()
    await ann.change(key_id, enabled=False)
    await ann.ask()
    await ann.change(key_id, enabled=True, mode="fallback")
    await ann.ask()
    await ann.change(key_id, mode="only")
    await ann.ask()
    await ann.delete(key_id)
    await ann.ask()

    assert house.credentials() == [OWN, PROVIDER_KEY, PROVIDER_KEY, OWN, PROVIDER_KEY]


async def test_a_row_that_was_copied_to_another_account_opens_nothing_and_costs_nobody(house):
    await house.open(telling(answer(CHAT)))
    ann, mallory = await house.account(), await house.account()
    await ann.bring(mode="only")
    await house.database.execute("update provider_keys set account_id = $1", mallory.id)

    answered = await mallory.ask()

    # Not even the operator's key stands in for one that allows no other.
    assert (answered.status, answered.error["code"]) == (503, "own_key_unusable")
    assert house.credentials() == []


async def test_a_key_that_can_not_be_opened_is_passed_over_where_another_may_be_used(house):
    await house.open(telling(answer(CHAT)))
    ann = await house.account()
    await ann.bring(mode="first")
    await house.database.execute("update provider_keys set master_id = 'gone'")

    assert (await ann.ask()).status == 200
    assert house.credentials() == [PROVIDER_KEY]


# -- money ---------------------------------------------------------------------------------------------------


async def test_a_fee_is_charged_and_no_token(house):
    await house.open(telling(answer(CHAT)))
    ann, bob = await house.account(), await house.account()
    key_id = await ann.bring()

    own, operators = await ann.ask(), await bob.ask()
    records = {each["account_id"]: each for each in await house.settled(2)}

    assert own.header(b"x-gateway-cost-usd") == b"0.00000065"
    assert operators.header(b"x-gateway-cost-usd") == b"0.000013"
    mine, theirs = records[ann.id], records[bob.id]
    assert (mine["cost_nanos"], str(mine["own_key_id"]), mine["fee_permille"]) == (FEE_NANOS, key_id, 50)
    assert (theirs["cost_nanos"], theirs["own_key_id"], theirs["fee_permille"]) == (COST_NANOS, None, None)
    assert mine["input_mtok_nanos"] == theirs["input_mtok_nanos"] == 10**9
    assert await house.balance(ann) == DEPOSIT_NANOS - FEE_NANOS
    assert await house.balance(bob) == DEPOSIT_NANOS - COST_NANOS


async def test_what_falls_back_to_the_operators_key_costs_its_price(house):
    await house.open(telling(answer(CHAT), own=REFUSED))
    ann = await house.account()
    await ann.bring(mode="first")

    assert (await ann.ask()).status == 200
    (record,) = await house.settled(1)

    assert (record["cost_nanos"], record["own_key_id"]) == (COST_NANOS, None)
    # The dearest candidate was held for.
    assert record["hold_nanos"] > COST_NANOS
    assert msgspec.json.decode(record["attempts"]) == [["local", "caller_own_key"], ["local", "ok"]]


async def test_only_the_fee_is_held_where_nothing_else_can_be_charged(house):
    await house.open(telling(answer(CHAT)))
    ann, bob = await house.account(), await house.account()
    await ann.bring(mode="only")
    await ann.ask()
    await bob.ask()

    held = {each["account_id"]: each["hold_nanos"] for each in await house.settled(2)}

    assert held[ann.id] == fee_nanos(held[bob.id], 50)


async def test_without_the_price_in_credit_a_key_of_ones_own_serves_alone(house):
    await house.open(telling(answer(CHAT)))
    # The fee for the most that the answer may be is there, and not its price.
    ann = await house.account(deposit_nanos=10**6)
    key_id = await ann.bring(mode="first")

    assert (await ann.ask()).status == 200
    await ann.change(key_id, enabled=False)
    assert (await ann.ask()).status == 402
    (record,) = await house.settled(1)

    assert record["cost_nanos"] == FEE_NANOS
    assert house.credentials() == [OWN]


async def test_where_no_fee_is_asked_no_credit_is_needed(house):
    await house.open(telling(answer(CHAT)), own_keys=msgspec.structs.replace(OWN_KEYS, fee_permille=0))
    ann = await house.account(deposit_nanos=0)
    await ann.bring(mode="only")

    assert (await ann.ask()).status == 200
    (record,) = await house.settled(1)

    assert (record["cost_nanos"], record["fee_permille"]) == (0, 0)


async def test_the_generation_and_the_activity_say_so(house):
    await house.open(telling(answer(CHAT)))
    ann = await house.account()
    key_id = await ann.bring()
    request_id = (await ann.ask()).header(b"x-gateway-request-id")
    assert request_id is not None

    unsettled = await ann.ask(method=b"GET", path=b"/v1/generations/" + request_id)
    await house.settled(1)
    shown = msgspec.json.decode((await ann.ask(method=b"GET", path=b"/v1/generations/" + request_id)).body)
    routers = await ann.ask(method=b"GET", path=b"/v1/generation?id=" + request_id)
    log = msgspec.json.decode((await ann.call(b"GET", b"/user/activity/log")).body)

    assert msgspec.json.decode(unsettled.body)["own_key"] is True
    assert (shown["own_key"], shown["fee_permille"], shown["cost_nanos"]) == (True, 50, FEE_NANOS)
    assert msgspec.json.decode(routers.body)["data"]["is_byok"] is True
    assert log["logs"][0]["own_key_id"] == key_id


# -- what is kept ------------------------------------------------------------------------------------------------


STORED = answer(msgspec.json.encode(response_object("completed", "Hello.")))
ASK_RESPONSE = msgspec.json.encode({"model": "gpt-x", "input": "Hi"})


async def test_a_stored_response_lives_under_the_key_that_made_it(house):
    await house.open(telling(STORED))
    ann = await house.account()
    key_id = await ann.bring(mode="first")
    made = await ann.ask(ASK_RESPONSE, path=b"/v1/responses")
    assert made.status == 200, made
    response_id = msgspec.json.decode(made.body)["id"]
    path = f"/v1/responses/{response_id}".encode()
    more = msgspec.json.encode({"model": "gpt-x", "input": "And?", "previous_response_id": response_id})

    # Even as a fallback it is that key and no other.
    await ann.change(key_id, mode="fallback")
    assert (await ann.ask(method=b"GET", path=path)).status == 200
    assert (await ann.ask(more, path=b"/v1/responses")).status == 200
    assert house.credentials() == [OWN] * 3

    await ann.delete(key_id)
    for answered in (await ann.ask(method=b"GET", path=path), await ann.ask(more, path=b"/v1/responses")):
        assert (answered.status, answered.error["code"]) == (409, "own_key_gone")
    assert house.credentials() == [OWN] * 3

    # The same key again finds it again.
    await ann.bring(mode="fallback")
    assert (await ann.ask(method=b"GET", path=path)).status == 200
    assert house.credentials() == [OWN] * 4


async def test_what_the_operators_key_made_stays_there(house):
    await house.open(telling(STORED))
    ann = await house.account()
    made = await ann.ask(ASK_RESPONSE, path=b"/v1/responses")
    path = f"/v1/responses/{msgspec.json.decode(made.body)['id']}".encode()
    await ann.bring(mode="only")

    assert (await ann.ask(method=b"GET", path=path)).status == 200
    assert house.credentials() == [PROVIDER_KEY] * 2


async def test_an_answer_that_was_kept_is_not_had_without_the_key(house):
    await house.open(telling(answer(CHAT)), settings=Settings(cache=Cache(use="asked")))
    ann = await house.account()
    key_id = await ann.bring()
    asked = [(b"x-gateway-cache", b"on")]

    first = await ann.ask(headers=asked)
    second = await ann.ask(headers=asked)
    await ann.delete(key_id)
    third = await ann.ask(headers=asked)

    assert [each.header(b"x-gateway-cache") for each in (first, second, third)] == [b"miss", b"hit", b"miss"]
    assert house.credentials() == [OWN, PROVIDER_KEY]


async def test_it_is_in_no_log_and_in_no_metric(house, caplog):
    await house.open(telling(answer(CHAT), own=REFUSED))
    ann = await house.account()
    await ann.bring(mode="only")
    refused = await ann.ask()
    records = await house.gateway.records(2)

    seen = [refused.body.decode(), repr(refused.headers), caplog.text, repr(records), await house.gateway.metrics()]
    assert OWN not in "".join(seen)
    assert OWN not in repr(house.parts.deps)


# -- credentials that run out ------------------------------------------------------------------------------------


async def test_an_application_of_an_accounts_own_gets_its_own_tokens(house):
    """Azure with applications: tokens for the operator's and for the account's are asked of the same authority."""

    async def tokens(peer: Any) -> None:
        while True:
            request = await peer.receive()
            name = dict(urllib.parse.parse_qsl(request.body.decode()))["client_id"]
            body = msgspec.json.encode({"access_token": f"token-of-{name}", "expires_in": 3600})
            await peer.send(answer(body, headers=[(b"content-type", b"application/json")]))

    async with ScriptedUpstream(tokens) as authority:

        def azure(upstream: ScriptedUpstream) -> Provider:
            identity = {"tenant_id": "t", "client_id": "operators", "client_secret": "operators"}
            extra = {"auth": "client-secret", "authority": authority.url, **identity}
            return Provider(adapter="azure", base_url=upstream.url, extra=extra)

        await house.open(play(RECEIVE, answer(CHAT), REPEAT), row=azure)
        ann, bob = await house.account(), await house.account()
        application = {"tenant_id": "theirs", "client_id": "own", "client_secret": "own-secret"}
        key_id = await ann.bring(msgspec.json.encode(application).decode())

        answers = [await each.ask() for each in (ann, bob, ann)]
        await ann.delete(key_id)
        answers.append(await ann.ask())

        assert [each.status for each in answers] == [200] * 4
        asked = ["token-of-own", "token-of-operators", "token-of-own", "token-of-operators"]
        assert house.credentials() == asked
        # Once each: nobody waits for a token that is here.
        assert [request.target for request in authority.requests] == [
            b"/t/oauth2/v2.0/token",
            b"/theirs/oauth2/v2.0/token",
        ]
