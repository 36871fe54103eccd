"""What administrators do takes effect on live traffic of all workers within a second; how a gateway says it does."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import msgspec
import pytest

from gateway.infra.postgres import Database
from tests.acceptance.answers import ASK, CHAT
from tests.gateways import PATIENCE_S, ServedGateway
from tests.upstreams import RECEIVE, REPEAT, answer, play

CONFIG = """
[providers.local]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:PROVIDER_KEY"
models = ["gpt-x", "*"]
[models."*"]
free = true
"""
WORKERS = 2
#: Connections one after the other that all have to say the same: the kernel spreads them over the workers.
SURE = 24
EFFECT_S = 1.0


class Town:
    """A gateway of two workers, an administrator, and somebody to administrate."""

    def __init__(self, gateway: ServedGateway) -> None:
        self.gateway = gateway

    async def settle_in(self) -> None:
        command = self.gateway.command
        self.boss = (await command("users", "create", "--admin", "--email", "boss@example.com", "--quiet")).strip()
        self.ann = (await command("users", "create", "--email", "ann@example.com", "--quiet")).strip()
        people = msgspec.json.decode(await command("users", "list", "--json"))
        self.ann_id = next(each["id"] for each in people if each["email"] == "ann@example.com")
        found = await self.admin("GET", f"/admin/users/{self.ann_id}")
        self.account_id = found["accounts"][0]["account_id"]

    async def admin(self, method: str, path: str, body: object = None) -> Any:
        """What an administrator is answered."""
        response = await self.request(method, path, self.boss, None if body is None else msgspec.json.encode(body))
        assert response.status_code == 200, response.content
        return msgspec.json.decode(response.content)

    async def ask(self) -> int:
        """The status of a request of hers, on a connection of its own."""
        return (await self.request("POST", "/v1/chat/completions", self.ann, ASK)).status_code

    async def request(self, method: str, path: str, key: str, body: bytes | None = None) -> httpx2.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        if body is not None:
            headers["content-type"] = "application/json"
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
            return await client.request(method, self.gateway.url + path, headers=headers, content=body)

    async def effect_s(self, status: int) -> float:
        """How long until every worker answers her with `status`, from now on."""
        now: Callable[[], float] = asyncio.get_running_loop().time
        began_s = other_s = now()
        same = 0
        async with asyncio.timeout(PATIENCE_S):
            while same < SURE:
                if await self.ask() == status:
                    same += 1
                else:
                    same, other_s = 0, now()
        return other_s - began_s


@pytest.fixture
async def town(stage):
    upstream = await stage.upstream(play(RECEIVE, answer(CHAT), REPEAT))
    async with ServedGateway(stage.stores, CONFIG.format(url=upstream.url), workers=WORKERS) as gateway:
        town = Town(gateway)
        await town.settle_in()
        # Every worker has seen the key and would go on serving it from memory.
        await town.effect_s(200)
        yield town
    await clear(stage)


async def clear(stage) -> None:
    """Others of this process share the database; addresses are taken once."""
    async with Database(stage.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
        await database.execute(
            "update users set email = null, username = null, name = null, password_hash = null, status = 'deleted'"
        )


def attempts_of(status: Any) -> int:
    """At the provider that is asked here."""
    return sum(each["attempts"] for each in status["gateway"]["providers"] if each["name"] == "local")


async def test_changes_take_effect_on_all_workers_within_a_second(town: Town):
    person, account = f"/admin/users/{town.ann_id}", f"/admin/accounts/{town.account_id}"
    because = {"reason": "a test"}
    key = {"api_key": town.ann}

    for path, body, status in (
        (f"{person}/suspend", because, 401),
        (f"{person}/activate", because, 200),
        (f"{account}/suspend", because, 401),
        (f"{account}/activate", because, 200),
        ("/admin/limit", {**key, "requests_per_minute": 0}, 429),
        ("/admin/limit", {**key, "requests_per_minute": None}, 200),
    ):
        await town.admin("POST", path, body)
        assert await town.effect_s(status) < EFFECT_S, path


async def test_workers_count_pings_together(town: Town):
    answers = await asyncio.gather(*(town.request("GET", "/ping", "") for _ in range(SURE)))
    numbers = sorted(msgspec.json.decode(each.content)["count"] for each in answers)

    assert numbers == list(range(numbers[0], numbers[0] + SURE))


async def test_a_gateway_says_how_it_does(town: Town):
    for _ in range(5):
        await town.ask()
    # Workers hand in what they counted every second.
    async with asyncio.timeout(PATIENCE_S):
        while attempts_of(status := await town.admin("GET", "/admin/status")) < 5:  # noqa: ASYNC110  workers push
            await asyncio.sleep(0.1)
    printed = await town.gateway.command("status")
    told = msgspec.json.decode(await town.gateway.command("status", "--json"))

    names = [each["name"].partition("-")[0] for each in status["gateway"]["workers"]]
    assert sorted(names) == ["books", *["worker"] * WORKERS]
    assert {each["state"] for each in told["workers"]} == {"ready"}
    assert ("local", "closed") in [(each["name"], each["breaker"]) for each in told["providers"]]
    assert told["requests"] >= 5
    for word in ("gateway ", "worker-0", "books-", "local", "closed", "settlement lag", "drift", "holds"):
        assert word in printed
    health = await town.admin("GET", "/health/providers")
    assert {each["name"]: each["breaker"] for each in health["providers"]}["local"] == "closed"
