"""Changes at the control plane, while requests go on at every worker: how long until none goes by what was before.

Callers keep connections to all workers open and ask without a pause. What is measured is the time from the moment at
which the change was answered to the last request that was begun after it and still went by the old state. It is
promised to be under a second; the assertion leaves room for a busy machine.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.key_store import find_key
from tests.acceptance.answers import ASK, CHAT
from tests.gateways import PATIENCE_S, Connection, ServedGateway, connect
from tests.upstreams import ScriptedUpstream, answer

CONFIG = """
[providers.local]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:PROVIDER_KEY"
models = ["gpt-x"]
[models."gpt-x"]
input_usd_per_mtok = 0.0
output_usd_per_mtok = 0.0
free = true
[own_keys.masters]
k1 = "{master}"
[log]
level = "error"
access = ""
"""
WORKERS = 3
#: Connections are spread over the workers by a hash of their ports: none is left out with so many.
CALLERS = 24
#: So many answers of the new kind in a row, from each caller, end a watch.
ENOUGH = 3
#: The provider key of an account's own; the provider refuses it, so that callers see when it is used.
OWN = "sk-own-of-the-account"
MASTER = "5a" * 32
#: Promised is 1; what is asserted allows for a machine on which everything takes its time.
PROMPT_S = 5.0


class Crowd:
    """Callers who ask without a pause."""

    def __init__(self, connections: list[Connection], key: str) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
        head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._request = head % (key.encode(), len(ASK)) + ASK
        self._connections = connections
        #: For each caller: when each request was begun, and what it was answered with.
        self.seen: list[list[tuple[float, int]]] = [[] for _ in connections]
        self.stopping = False

    async def ask(self, number: int) -> None:
        connection = self._connections[number]
        while not self.stopping:
            begun_s = asyncio.get_running_loop().time()
            await connection.send(self._request)
            answered = await connection.receive()
            self.seen[number].append((begun_s, answered.status))

    async def run(self, change: Any, wanted: int) -> float:
        """Ask, `change`, go on until every caller gets `wanted`; how long after the change one still did not."""
        tasks = [asyncio.ensure_future(self.ask(number)) for number in range(len(self._connections))]
        try:
            await self._until(lambda seen: len(seen) >= ENOUGH)
            await change()
            changed_s = asyncio.get_running_loop().time()
            await self._until(lambda seen: is_settled(seen, changed_s, wanted))
        finally:
            self.stopping = True
            await asyncio.gather(*tasks)
        late = [begun_s for seen in self.seen for begun_s, status in seen if begun_s > changed_s and status != wanted]
        return max((begun_s - changed_s for begun_s in late), default=0.0)

    async def _until(self, done: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not all(done(seen) for seen in self.seen):  # noqa: ASYNC110  many callers, each with its own list
                await asyncio.sleep(0.005)


def is_settled(seen: list[tuple[float, int]], since_s: float, wanted: int) -> bool:
    last = seen[-ENOUGH:]
    return len(last) == ENOUGH and all(begun_s > since_s and status == wanted for begun_s, status in last)


class Site:
    """A gateway of several workers, with an account in it."""

    def __init__(self, gateway: ServedGateway, database: Database, stack: contextlib.AsyncExitStack) -> None:
        self.gateway = gateway
        self.database = database
        self._stack = stack

    async def call(self, method: bytes, path: str, body: object, *, token: str = "") -> dict[str, Any]:
        """Ask the control plane, on a connection of its own."""
        connection = await connect(self.gateway.port)
        content = msgspec.json.encode(body)
        head = b"%b %b HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\ncontent-type: application/json\r\n"
        head = head % (method, path.encode(), (token or self.gateway.key).encode())
        await connection.send(head + b"content-length: %d\r\n\r\n%b" % (len(content), content))
        answered = await connection.receive(method=method)
        connection.abort()
        assert answered.status == 200, answered
        decoded: dict[str, Any] = msgspec.json.decode(answered.body)
        return decoded

    async def make_key(self, **facts: object) -> tuple[str, str]:
        """The id and the text of a new key."""
        made = await self.call(b"POST", "/user/api-keys", {"key_name": uuid.uuid4().hex} | facts)
        return made["id"], made["api_key"]

    async def watch(self, key: str, change: Any, *, wanted: int, what: str) -> None:
        """Let the crowd ask while `change` happens."""
        connections = await asyncio.gather(*(connect(self.gateway.port) for _ in range(CALLERS)))
        for connection in connections:
            self._stack.callback(connection.abort)
        late_s = await Crowd(list(connections), key).run(change, wanted)
        print(f"{what}: {late_s * 1000:.1f} ms until the last of {WORKERS} workers went by it")
        assert late_s < PROMPT_S


async def refuse_own(peer: Any) -> None:
    """Answers whoever does not come with the account's own key."""
    while True:
        request = await peer.receive()
        own = request.header(b"authorization") == b"Bearer " + OWN.encode()
        await peer.send(answer(b'{"error":{"message":"No."}}', status=403) if own else answer(CHAT))


@pytest.fixture
async def site(database: str, redis_url: str) -> AsyncIterator[Site]:
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream(refuse_own))
        config = CONFIG.format(url=upstream.url, master=MASTER)
        gateway = await stack.enter_async_context(ServedGateway(Stores(database, redis_url), config, workers=WORKERS))
        opened = await stack.enter_async_context(Database(database, pool_size=2, timeout_s=PATIENCE_S))
        yield Site(gateway, opened, stack)


async def test_every_change_takes_effect_on_all_workers_within_a_second(site: Site):
    async def put(path: str, **body: object) -> None:
        await site.call(b"PUT", path, body)

    def key_change(wanted: int, what: str, **body: object) -> tuple[Any, int, str]:
        return lambda key_id: put(f"/user/api-keys/{key_id}", **body), wanted, what

    def limit_change(number: int, wanted: int, what: str) -> tuple[Any, int, str]:
        six = {
            f"{unit}_per_{window}": number for unit in ("requests", "tokens") for window in ("minute", "hour", "day")
        }
        return lambda key_id: put(f"/user/rate-limits/{key_id}", **six), wanted, what

    async def delete(key_id: str) -> None:
        await site.call(b"DELETE", f"/user/api-keys/{key_id}", {"confirmation": "DELETE_KEY"})

    async def rotate(key_id: str) -> None:
        await site.call(b"POST", f"/user/api-keys/{key_id}/rotate", {})

    changes = [
        key_change(403, "an allowlist of addresses", ip_allowlist=["203.0.113.0/24"]),
        key_change(200, "lifting it again", ip_allowlist=None),
        key_change(404, "an allowlist of models", model_allowlist=["gpt-y"]),
        key_change(200, "another one", model_allowlist=["gpt-*"]),
        key_change(403, "scopes", scope_permissions={"read": ["*"]}),
        key_change(200, "lifting them again", scope_permissions=None),
        key_change(401, "switching off", is_active=False),
        key_change(200, "switching on", is_active=True),
        limit_change(0, 429, "lowering limits"),
        limit_change(10**6, 200, "raising them again"),
        (rotate, 401, "rotating"),
    ]
    key_id, text = await site.make_key()
    for change, wanted, what in changes:
        await site.watch(text, lambda change=change: change(key_id), wanted=wanted, what=what)
    key_id, text = await site.make_key()
    await site.watch(text, lambda: delete(key_id), wanted=401, what="revoking")


async def test_a_plan_takes_effect_on_all_workers_within_a_second(site: Site):
    token = await make_admin(site)
    key_id, text = await site.make_key()
    record = await find_key(site.database, key_id)
    assert record is not None

    async def assign() -> None:
        await site.call(
            b"POST", "/admin/assign-plan", {"account_id": record.account_id, "plan_id": "none"}, token=token
        )

    # More than the plan allows in a day have been made when it is assigned, or soon after.
    await site.watch(text, assign, wanted=429, what="another plan")


async def test_an_emptied_balance_takes_effect_on_all_workers_within_a_second(site: Site):
    token = await make_admin(site)
    key_id, text = await site.make_key()
    record = await find_key(site.database, key_id)
    assert record is not None
    prices = {"input_usd_per_mtok": 0.01, "output_usd_per_mtok": 0.01}
    account = {"account_id": record.account_id, "reason": "a test"}

    async def price() -> None:
        body = {"model": "gpt-x", "prices": prices, "reason": "a test"}
        await site.call(b"PUT", "/admin/models/prices", body, token=token)

    async def empty() -> None:
        # What is held for the crowd's requests has not been taken yet, so this leaves less than nothing.
        await site.call(b"POST", "/admin/deduct_credits", {**account, "credits": 300.0}, token=token)

    async def fill() -> None:
        await site.call(b"POST", "/admin/add_credits", {**account, "credits": 200.0}, token=token)

    await price()
    await site.watch(text, fill, wanted=200, what="credit")
    await site.watch(text, empty, wanted=402, what="emptying the balance")
    await site.watch(text, fill, wanted=200, what="filling it again")


async def test_an_own_key_takes_effect_and_ends_on_all_workers_within_a_second(site: Site):
    _, text = await site.make_key()
    made: dict[str, Any] = {}

    async def bring() -> None:
        made.update(
            await site.call(b"POST", "/user/provider-keys", {"provider": "local", "api_key": OWN, "mode": "only"})
        )

    async def change(**members: object) -> None:
        await site.call(b"PATCH", f"/user/provider-keys/{made['id']}", members)

    async def delete() -> None:
        await site.call(b"DELETE", f"/user/provider-keys/{made['id']}", {})

    await site.watch(text, bring, wanted=403, what="bringing a provider key")
    await site.watch(text, lambda: change(enabled=False), wanted=200, what="switching it off")
    await site.watch(text, lambda: change(enabled=True), wanted=403, what="switching it on")
    await site.watch(text, delete, wanted=200, what="deleting it")


async def test_the_requests_of_a_life_are_counted_over_all_workers(site: Site):
    _, text = await site.make_key(max_requests=50)
    connections = await asyncio.gather(*(connect(site.gateway.port) for _ in range(CALLERS)))
    statuses: list[int] = []

    async def ask(connection: Connection) -> None:
        crowd = Crowd([connection], text)
        asking = asyncio.ensure_future(crowd.ask(0))
        async with asyncio.timeout(PATIENCE_S):
            while len(crowd.seen[0]) < 10:  # noqa: ASYNC110  as above
                await asyncio.sleep(0.005)
        crowd.stopping = True
        await asking
        connection.abort()
        statuses.extend(status for _, status in crowd.seen[0])

    await asyncio.gather(*(ask(connection) for connection in connections))

    assert set(statuses) == {200, 429}
    assert statuses.count(200) == 50


async def make_admin(site: Site) -> str:
    """The text of an administrator's key, made as an operator makes the first one."""
    out = await site.gateway.command("users", "create", "--email", "boss@example.com", "--admin", "--quiet")
    return out.strip()
