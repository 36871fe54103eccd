"""Providers asked for their models: against a provider's wire and real stores."""

import asyncio

import msgspec
import pytest

from gateway.catalogue.lists import ListStore, read_lists
from gateway.catalogue.metrics import MetricStore
from gateway.catalogue.overrides import CHANNEL
from gateway.infra.clock import SystemClock
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.money import Price
from gateway.registry import Registry
from gateway.secret import Secret
from gateway.settings import Catalogue as CatalogueSettings
from gateway.settings import Provider, Settings, Upstream
from gateway.surveyor import PAGES_MAX, Surveyor
from gateway.upstream.client import UpstreamClient
from tests.upstreams import CLOSE, RECEIVE, REPEAT, ScriptedUpstream, answer, play

__all__ = ["catalogue", "snapshot"]  # fixtures

from tests.gateway.catalogue.conftest import catalogue, snapshot

KEY = "sk-operator-0123456789"
JSON = [(b"content-type", b"application/json")]
MODELS = {
    "data": [
        {
            "id": "acme/large",
            "context_length": 1000,
            "supported_parameters": ["tools"],
            "hugging_face_id": "acme/Large",
            "pricing": {"prompt": "0.000001", "completion": "0.000002"},
        },
        {"id": "acme/odd", "pricing": {"prompt": "0.1", "completion": "0.2"}},
    ]
}


def listed(models: object) -> bytes:
    return answer(msgspec.json.encode(models), headers=JSON)


def same(*parts: bytes):
    return play(RECEIVE, *parts, REPEAT)


class Survey:
    """A surveyor, the provider it asks, and what became of it."""

    def __init__(self, database: Database, redis: Redis, catalogue, client: UpstreamClient) -> None:
        self.database, self.redis = database, redis
        self._catalogue, self._client = catalogue, client

    def of(self, *upstreams: ScriptedUpstream, adapter: str = "openai", **settings) -> Surveyor:
        providers = {
            f"p{number}": Provider(adapter=adapter, base_url=f"{upstream.url}/v1", api_key=Secret(KEY))
            for number, upstream in enumerate(upstreams)
        }
        return self.of_these(providers, **settings)

    def of_these(self, providers: dict[str, Provider], **settings) -> Surveyor:
        return Surveyor(
            ListStore(self.database),
            MetricStore(self.database),
            providers=Registry.load(Settings(providers=providers)).providers,
            catalogue=self._catalogue,
            catalogue_ids={},
            client=self._client,
            redis=self.redis,
            clock=SystemClock(),
            settings=CatalogueSettings(**settings),
        )

    async def row(self, provider: str = "p0"):
        return await self.database.fetch_row(
            "select *, extract(epoch from next_at - now())::float8 as in_s from model_lists where provider = $1",
            provider,
        )

    async def again(self) -> None:
        await self.database.execute("update model_lists set next_at = now()")


@pytest.fixture
async def survey(database, redis_url, catalogue):
    client = UpstreamClient(Upstream())
    async with Database(database, pool_size=2, timeout_s=20) as opened:
        redis = Redis(redis_url, timeout_s=20)
        await redis.connect()
        yield Survey(opened, redis, catalogue, client)
        await redis.close()
    await client.close()


async def test_what_a_provider_lists_reaches_the_data_plane(survey):
    async with ScriptedUpstream(same(listed(MODELS))) as upstream:
        notices = survey.redis.subscribe(CHANNEL)
        assert await anext(notices) is None

        assert await survey.of(upstream).survey_once() == 1

        assert await asyncio.wait_for(anext(notices), 20) is not None
    [request] = upstream.requests
    assert (request.method, request.target) == (b"GET", b"/v1/models")
    assert request.header(b"authorization") == b"Bearer " + KEY.encode()
    facts = (await read_lists(survey.database)).facts("p0", "acme/large")
    assert facts.context_tokens == 1000
    assert facts.lacks == ("json_schema",)
    assert facts.price == Price(input_mtok_nanos=1_000_000_000, output_mtok_nanos=2_000_000_000)
    row = await survey.row()
    assert (row["model_count"], row["failures"], row["error"]) == (2, 0, "")
    assert 3500 < row["in_s"] <= 3600
    odd = (await ListStore(survey.database).read("p0"))[1]
    assert odd.price is None
    assert "times above the usual" in odd.refused


async def test_nobody_is_asked_twice_in_a_row_and_the_same_list_is_not_told_again(survey):
    async with ScriptedUpstream(same(listed(MODELS))) as upstream:
        surveyor = survey.of(upstream)
        assert await surveyor.survey_once() == 1
        assert await surveyor.survey_once() == 0
        before = await survey.row()
        await survey.again()

        assert await surveyor.survey_once() == 1

        after = await survey.row()
    assert len(upstream.requests) == 2
    assert after["digest"] == before["digest"]
    assert after["listed_at"] > before["listed_at"]


@pytest.mark.parametrize(
    "script",
    [
        same(answer(b"no", status=500)),
        same(answer(b"", status=302, headers=[(b"location", b"http://169.254.169.254/latest/meta-data")])),
        same(answer(b"<html>", headers=JSON)),
        same(listed({"data": []})),
        play(RECEIVE, CLOSE),
        same(answer(b"x" * (17 * 1024 * 1024))),
    ],
    ids=["500", "redirect", "no list", "empty", "cut", "too large"],
)
async def test_what_can_not_be_had_changes_nothing_and_is_asked_for_later(survey, script):
    good = same(listed(MODELS))
    async with ScriptedUpstream(good) as upstream:
        await survey.of(upstream).survey_once()
    before = (await survey.row())["digest"]

    async with ScriptedUpstream(script) as upstream:
        waits = []
        for _ in range(3):
            await survey.again()
            await survey.of(upstream).survey_once()
            waits.append(round((await survey.row())["in_s"], -1))

    row = await survey.row()
    assert waits == [60, 120, 240]
    assert (row["digest"], row["failures"]) == (before, 3)
    assert row["error"]


async def test_two_surveyors_share_the_work(survey):
    async with ScriptedUpstream(same(listed(MODELS))) as one, ScriptedUpstream(same(listed(MODELS))) as two:
        first, second = survey.of(one, two), survey.of(one, two)

        done = await asyncio.gather(first.survey_once(), second.survey_once())

    assert sum(done) == 2
    assert (len(one.requests), len(two.requests)) == (1, 1)


async def test_a_turn_is_a_lease(survey):
    """Who takes it and dies keeps nobody from it for long."""
    store = ListStore(survey.database)
    await store.know(["p0"])

    assert await store.claim(["p0"], lease_s=300) == [("p0", None, 0)]
    assert await store.claim(["p0"], lease_s=300) == []
    assert 200 < (await survey.row())["in_s"] <= 300


async def test_pages_are_followed_and_bounded(survey):
    async def endless(peer) -> None:
        number = 0
        while True:
            await peer.receive()
            number += 1
            await peer.send(listed({"data": [{"id": f"m{number}"}], "has_more": True, "last_id": f"m{number}"}))

    async with ScriptedUpstream(endless) as upstream:
        await survey.of(upstream, adapter="anthropic").survey_once()

    assert len(upstream.requests) == PAGES_MAX
    assert upstream.requests[0].target == b"/v1/models?limit=1000"
    assert upstream.requests[1].target == b"/v1/models?limit=1000&after_id=m1"
    assert (await survey.row())["model_count"] == PAGES_MAX


async def test_where_it_is_off_nobody_is_asked(survey):
    async with ScriptedUpstream(same(listed(MODELS))) as upstream:
        assert await survey.of(upstream, lists=False).survey_once() == 0

    assert upstream.requests == []


async def test_hugging_face_is_asked_about_open_models_where_that_is_on(survey):
    body = b'{"downloads":5,"likes":2,"private":false}'
    async with ScriptedUpstream(same(listed(MODELS))) as upstream, ScriptedUpstream(same(answer(body))) as face:
        surveyor = survey.of(
            upstream, huggingface=True, huggingface_url=face.url, huggingface_token=Secret("hf_token")
        )

        await surveyor.survey_once()

    [request] = face.requests
    assert request.target == b"/api/models/acme/Large"
    assert request.header(b"authorization") == b"Bearer hf_token"
    assert KEY.encode() not in b"".join(value for _, value in request.headers)
    found = await MetricStore(survey.database).read(["acme/Large"])
    assert (found["acme/Large"].downloads, found["acme/Large"].likes) == (5, 2)


async def test_who_hugging_face_does_not_know_is_not_asked_for_every_day(survey):
    async with ScriptedUpstream(same(listed(MODELS))) as upstream, ScriptedUpstream(same(answer(status=404))) as face:
        await survey.of(upstream, huggingface=True, huggingface_url=face.url).survey_once()

    days = await survey.database.fetch_value(
        "select extract(epoch from next_at - now())::float8 / 86400 from model_metrics"
    )
    assert round(days) == 30
    assert await MetricStore(survey.database).read(["acme/Large"]) == {}


async def test_a_provider_that_has_no_list_is_no_failure(survey):
    assert await survey.of_these({"p0": Provider(adapter="echo")}).survey_once() == 1

    row = await survey.row()
    assert (row["failures"], row["error"], row["models"]) == (0, "", None)
    assert row["in_s"] > 600
