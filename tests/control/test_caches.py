"""What is kept of other places, and having it fetched again: providers' lists of models, and Hugging Face's figures."""

import asyncio

import pytest

from gateway.catalogue.listing import ListedModel
from gateway.catalogue.lists import ListStore
from gateway.catalogue.metrics import HuggingFaceMetrics, MetricStore
from gateway.infra.embedded import Stores
from gateway.settings import Catalogue, Settings
from tests.control.desk import Caller, Desk
from tests.gateways import PATIENCE_S


@pytest.fixture
async def desk(database: str, redis_url: str):
    settings = Settings(catalogue=Catalogue(huggingface=True))
    async with Desk(Stores(database, redis_url), settings) as desk:
        yield desk


@pytest.fixture
async def boss(desk: Desk) -> Caller:
    return await desk.person(role="admin")


@pytest.mark.parametrize("name", ["providers", "models"])
async def test_a_refresh_has_every_provider_asked_and_a_new_table_put_in_place(desk: Desk, boss: Caller, name: str):
    lists = ListStore(desk.parts.database)
    await lists.know(["one", "two"])
    await lists.put("one", (ListedModel(id="a"),), next_s=3600)
    await lists.postpone("two", "status 500", next_s=3600)
    assert await lists.claim(["one", "two"], lease_s=1) == []
    before = desk.parts.deps.offers

    answer = await boss.post(f"/admin/refresh-{name}")

    assert answer.status == 200
    assert sorted(provider for provider, _, _ in await lists.claim(["one", "two"], lease_s=1)) == ["one", "two"]
    async with asyncio.timeout(PATIENCE_S):
        while desk.parts.deps.offers is before:  # noqa: ASYNC110  another task puts it there
            await asyncio.sleep(0.01)


async def test_what_providers_said_last_is_told(desk: Desk, boss: Caller):
    lists = ListStore(desk.parts.database)
    await lists.know(["one", "two"])
    await lists.put("one", (ListedModel(id="a"), ListedModel(id="b")), next_s=3600)
    await lists.postpone("two", "status 500", next_s=3600)

    found = (await boss.get("/admin/cache-status")).json

    assert (found["status"], found["providers"]) == ("success", {"echo": 1, "own": 0})
    one, two = found["lists"]
    assert (one["provider"], one["models"], one["failures"], one["error"]) == ("one", 2, 0, None)
    assert one["listed_at"] is not None
    assert (two["provider"], two["models"], two["listed_at"], two["failures"]) == ("two", 0, None, 1)
    assert two["error"] == "status 500"


async def test_figures_of_hugging_face_are_counted_and_asked_for_again(desk: Desk, boss: Caller):
    metrics = MetricStore(desk.parts.database)
    await metrics.know(["acme/a", "acme/b", "acme/c"])
    await metrics.put("acme/a", HuggingFaceMetrics(downloads=1), next_s=3600)
    await metrics.put("acme/b", None, next_s=3600)

    before = (await boss.get("/admin/huggingface-cache-status")).json
    answer = await boss.post("/admin/refresh-huggingface-cache")
    after = (await boss.get("/admin/huggingface-cache-status")).json

    assert (before["enabled"], before["cached_models"], before["unknown_models"], before["due_models"]) == (
        True,
        1,
        1,
        1,
    )
    assert answer.status == 200
    assert (after["cached_models"], after["due_models"]) == (1, 3)


async def test_figures_of_one_model_are_told(desk: Desk, boss: Caller):
    metrics = MetricStore(desk.parts.database)
    await metrics.know(["acme/a", "acme/b"])
    await metrics.put("acme/a", HuggingFaceMetrics(downloads=7, gated=True), next_s=3600)

    found = (await boss.get("/admin/test-huggingface/acme/a")).json

    assert (found["model"], found["enabled"], found["metrics"]["downloads"]) == ("acme/a", True, 7)
    for other in ("acme/b", "acme/c", "nothing"):
        assert (await boss.get(f"/admin/test-huggingface/{other}")).status == 404


async def test_what_becomes_of_each_model_is_told(desk: Desk, boss: Caller):
    found = (await boss.get("/admin/debug-models")).json

    assert found["models"] == len(found["sample"]) > 0
    echo = next(each for each in found["sample"] if each["model"] == "echo")
    assert echo["offers"][0]["provider"] == "echo"
    usable = [any(offer["free"] or offer["priced"] for offer in each["offers"]) for each in found["sample"]]
    assert usable == sorted(usable)
    assert found["refused_models"] == usable.count(False)


async def test_nobody_is_asked_who_is_not_to_be_asked(people_database: str, redis_url: str):
    async with Desk(Stores(people_database, redis_url)) as desk:
        boss = await desk.person(role="admin")

        answer = await boss.post("/admin/refresh-huggingface-cache")

        assert (answer.status, answer.json["code"]) == (409, "huggingface_off")
        assert (await boss.get("/admin/huggingface-cache-status")).json["enabled"] is False
