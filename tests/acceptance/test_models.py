"""Which models there are, and what is told of them: to the official clients, and as providers themselves say."""

import asyncio

import anthropic
import msgspec
import openai
import pytest
from google import genai
from google.genai import types

from gateway.catalogue.listing import ListedModel
from gateway.catalogue.lists import ListStore
from gateway.catalogue.overrides import CHANNEL
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.journal import credit, find_account
from gateway.kernel.money import Price
from gateway.settings import Model
from tests.acceptance.answers import CHAT
from tests.gateways import PATIENCE_S
from tests.upstreams import RECEIVE, REPEAT, answer, play

LISTED = (
    ListedModel(
        id="acme/large",
        context_tokens=1000,
        output_tokens_max=100,
        price=Price(input_mtok_nanos=1_000_000_000, output_mtok_nanos=2_000_000_000),
        lacks=("vision",),
    ),
    ListedModel(id="acme/small", price=Price(input_mtok_nanos=500_000_000, output_mtok_nanos=500_000_000)),
    ListedModel(id="acme/plain"),
)


@pytest.fixture
async def listing(stage, both_stores):
    """A gateway in front of a provider that takes any name, and says which it knows."""
    upstream = await stage.upstream(play(RECEIVE, answer(CHAT), REPEAT))
    rows = {"local": stage.provider(upstream, models=("own", "*"), markup=1.5)}
    models = {"own": Model(free=True, context_tokens=50, aliases=("mine",))}
    script = play(RECEIVE, answer(CHAT), REPEAT)
    gateway, _ = await stage.gateway(script, providers=rows, models=models)
    async with Database(both_stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
        store = ListStore(database)
        await store.know(["local"])
        await store.put("local", LISTED, next_s=3600)
        redis = Redis(both_stores.redis_url, timeout_s=PATIENCE_S)
        await redis.connect()
        async with asyncio.timeout(PATIENCE_S):
            while len((await gateway.openai().models.list()).data) < 5:
                # Told again for a worker that did not listen yet.
                await redis.execute("PUBLISH", CHANNEL, b"lists")
                await asyncio.sleep(0.05)
        await redis.close()
        account_id = await find_account(database, gateway.key_id)
        await credit(database, account_id, type="bonus", amount_nanos=10**9, idempotency_key=f"for {gateway.key_id}")
        yield gateway
        await database.execute("delete from model_lists where provider = 'local'")


async def test_openai_s_clients_are_told_more_than_openai_says(listing):
    """Case 11."""
    found = {model.id: model for model in (await listing.openai().models.list()).data}

    assert sorted(found) == ["acme/large", "acme/plain", "acme/small", "mine", "own"]
    large = found["acme/large"]
    assert (large.object, large.created, large.owned_by) == ("model", 0, "local")
    extra = large.model_extra or {}
    assert (extra["context_length"], extra["max_output_tokens"]) == (1000, 100)
    # With the markup that callers pay.
    assert (extra["pricing"]["prompt"], extra["pricing"]["completion"]) == ("0.0000015", "0.000003")
    assert extra["capabilities"] == ["tools", "audio", "json_schema", "streaming"]
    assert (found["own"].model_extra or {})["pricing"]["prompt"] == "0"
    assert (found["mine"].model_extra or {})["context_length"] == 50


async def test_one_model_by_its_name_with_a_slash(listing):
    """Case 11."""
    slashed = await listing.ask(method=b"GET", path=b"/v1/models/acme/large")
    retrieved = await listing.openai().models.retrieve("acme/large")

    assert msgspec.json.decode(slashed.body)["id"] == retrieved.id == "acme/large"


async def test_the_others_are_told_in_their_own_words(listing):
    """Case 96."""
    async with anthropic.AsyncAnthropic(api_key=listing.key, base_url=listing.url, max_retries=0) as client:
        claudes = [model async for model in client.models.list()]
    async with genai.Client(api_key=listing.key, http_options=types.HttpOptions(base_url=listing.url)).aio as client:
        geminis = [model async for model in await client.models.list()]

    assert [model.id for model in claudes] == ["acme/large", "acme/plain", "acme/small", "mine", "own"]
    assert [model.name for model in geminis] == [f"models/{model.id}" for model in claudes]
    assert geminis[0].input_token_limit == 1000


async def test_what_a_provider_lists_is_what_is_charged(listing):
    answered = await listing.ask(b'{"model":"acme/large","messages":[{"role":"user","content":"Hi"}]}')

    # 9 tokens in and 2 out, half as much again.
    assert answered.header(b"x-gateway-cost-usd") == b"0.0000195"


async def test_what_a_model_can_not_do_is_refused_before_it_is_asked(listing):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}

    with pytest.raises(openai.BadRequestError) as raised:
        await listing.openai().chat.completions.create(
            model="acme/large", messages=[{"role": "user", "content": [picture]}]
        )

    assert "vision" in raised.value.message


async def test_a_model_is_told_as_by_who_can_be_asked_for_it(stage):
    """Not as by a provider that takes any name and has no price for this one."""
    upstream = await stage.upstream(play(RECEIVE, answer(CHAT), REPEAT))
    rows = {
        "silent": stage.provider(upstream, models=("*",)),
        "priced": stage.provider(upstream, models=("*",), catalogue="openai"),
    }
    script = play(RECEIVE, answer(CHAT), REPEAT)
    gateway, _ = await stage.gateway(script, providers=rows, models={"*": Model()})

    found = await gateway.openai().models.retrieve("gpt-4o-mini")

    extra = found.model_extra or {}
    assert (found.owned_by, extra["context_length"]) == ("priced", 128_000)
    assert extra["pricing"]["prompt"] == "0.00000015"
    unknown = await gateway.openai().models.retrieve("nobody-knows")
    assert (unknown.owned_by, (unknown.model_extra or {})["pricing"]) == ("silent", None)
