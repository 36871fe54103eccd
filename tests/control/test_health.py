"""Health and pings: what is said of stores and providers, and a count that is right whoever counts."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gateway.control.pings import Pings
from gateway.control.traffic import Rates, judge
from gateway.errors import StoreUnavailable
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.infra.tasks import TaskGroup
from gateway.readiness import Readiness, say_missing
from gateway.status import ProviderStatus
from tests.control.desk import Desk
from tests.control.usage import add_usage

NOTHING = Rates(requests=0, error_percent=None, latency_ms=None, first_token_ms=None)


async def test_it_is_ready_when_both_stores_answer(desk: Desk):
    answer = await desk.nobody.get("/health/ready")

    assert (answer.status, answer.json["status"]) == (200, "ready")


async def test_what_does_not_answer_is_named(people_database: str, redis_url: str):
    nowhere = "unix:///nowhere/at/all.sock"
    async with Database(people_database, pool_size=1, timeout_s=5) as database:
        redis, away = Redis(redis_url, timeout_s=5), Redis(nowhere, timeout_s=5)
        await redis.connect()
        gone = Database("postgresql://nobody@127.0.0.1:1/nothing", pool_size=1, timeout_s=1)
        try:
            for stores, missing in (
                ((database, redis), ()),
                ((database, away), ("redis",)),
                ((gone, redis), ("postgresql",)),
                ((gone, away), ("postgresql", "redis")),
            ):
                assert await Readiness(*stores, clock=SystemClock()).find_missing() == missing
        finally:
            await redis.close()
            await gone.close()
    assert say_missing(("redis",)) == "Not ready: redis does not answer."
    assert say_missing(("postgresql", "redis")) == "Not ready: postgresql and redis do not answer."


async def test_many_who_ask_together_ask_the_stores_once():
    class Counting:
        asked = 0

        async def fetch_value(self, query: str) -> int:
            self.asked += 1
            await asyncio.sleep(0.01)
            return 1

    class Answering:
        async def execute(self, *command: str) -> bytes:
            return b"PONG"

    database = Counting()
    readiness = Readiness(database, Answering(), clock=SystemClock())

    await asyncio.gather(*(readiness.find_missing() for _ in range(50)))

    assert database.asked == 1


async def test_health_of_the_load_balancers_asks_nobody(desk: Desk):
    for path in ("/health", "/healthz"):
        answer = await desk.nobody.get(path)
        assert (answer.status, answer.json) == (200, {"status": "ok"})


async def test_pings_of_many_at_once_have_each_its_own_number(desk: Desk):
    before = (await desk.nobody.get("/ping/stats")).json["total_pings"]

    answers = await asyncio.gather(*(desk.nobody.get("/ping") for _ in range(40)))

    assert all(answer.json["message"] == "pong" for answer in answers)
    assert sorted(answer.json["count"] for answer in answers) == list(range(before + 1, before + 41))
    after = (await desk.nobody.get("/ping/stats")).json
    assert after["total_pings"] == before + 40
    assert after.keys() == {"total_pings", "cached", "timestamp", "last_ping_at", "created_at", "updated_at"}


async def test_workers_count_together_and_a_new_one_goes_on(people_database: str):
    async with (
        Database(people_database, pool_size=2, timeout_s=20) as one,
        Database(people_database, pool_size=2, timeout_s=20) as other,
    ):
        tasks = TaskGroup()
        workers = [Pings(one, tasks), Pings(other, tasks)]
        numbers = await asyncio.gather(*(workers[number % 2].count() for number in range(200)))
        later = await Pings(one, tasks).count()
        await tasks.close()

    assert None not in numbers
    assert len(set(numbers)) == 200
    assert later == max(numbers) + 1


async def test_without_the_database_a_ping_has_no_number():
    class Away:
        async def fetch_value(self, query: str, count: int) -> int:
            raise StoreUnavailable

    tasks = TaskGroup()

    assert await Pings(Away(), tasks).count() is None
    await tasks.close()


@pytest.mark.parametrize(
    ("breaker", "keys_out", "rates", "word"),
    [
        ("closed", 0, NOTHING, "unknown"),
        ("closed", 0, Rates(requests=100, error_percent=1.0, latency_ms=1.0, first_token_ms=None), "healthy"),
        ("closed", 0, Rates(requests=100, error_percent=30.0, latency_ms=1.0, first_token_ms=None), "degraded"),
        # Of so few one failure says nothing.
        ("closed", 0, Rates(requests=2, error_percent=50.0, latency_ms=1.0, first_token_ms=None), "healthy"),
        ("closed", 1, Rates(requests=100, error_percent=0.0, latency_ms=1.0, first_token_ms=None), "degraded"),
        ("half open", 0, NOTHING, "degraded"),
        ("open", 0, Rates(requests=100, error_percent=0.0, latency_ms=1.0, first_token_ms=None), "unavailable"),
    ],
)
def test_one_word_for_how_it_does(breaker: str, keys_out: int, rates: Rates, word: str):
    provider = ProviderStatus(name="x", breaker=breaker, keys_out=keys_out, attempts=0, failures=0)

    assert judge(provider, rates) == word


async def test_providers_and_models_are_judged_by_what_requests_met(database: str, redis_url: str):
    async with Desk(Stores(database, redis_url)) as desk:
        ann, now = await desk.person(), datetime.now(UTC)
        for number in range(20):
            error = "provider_timeout" if number < 5 else ""
            await add_usage(
                desk.parts.database, ann.account_id, at=now, model="echo", provider="echo", error_type=error
            )
        # Too long ago to say anything about now.
        await add_usage(
            desk.parts.database, ann.account_id, at=now - timedelta(hours=3), model="echo", provider="echo"
        )

        providers = (await ann.get("/health/providers")).json
        models = (await ann.get("/health/models")).json["models"]

    assert providers["status"] == "degraded"
    assert [each["name"] for each in providers["providers"]] == ["echo", "own"]
    assert providers["providers"][:1] == [
        {
            "name": "echo",
            "status": "degraded",
            "breaker": "closed",
            "keys_out": 0,
            "error_percent": 25.0,
            "latency_ms": 2000.0,
            "first_token_ms": 500.0,
        }
    ]
    assert [(each["id"], each["provider"], each["status"]) for each in models] == [("echo", "echo", "degraded")]
