"""Limits as callers meet them: headers and refusals on the wire, and exact counts over several processes."""

import asyncio
import contextlib
import re
from typing import Final

import msgspec
import pytest

from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.journal import credit
from gateway.kernel.key_store import change_limits, create_key
from gateway.kernel.limits import Budget, Limits
from gateway.settings import Model
from gateway.wire.ratelimit import parse_duration
from tests.acceptance.answers import ASK, CHAT
from tests.gateways import PATIENCE_S, PEPPER, RunningGateway, ServedGateway
from tests.upstreams import RECEIVE, REPEAT, ScriptedUpstream, Until, answer, play

PRICES: Final = {"gpt-x": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)}
CONFIG: Final = """
[providers.local]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:PROVIDER_KEY"
models = ["gpt-x"]
[models."gpt-x"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[log]
level = "error"
access = ""
"""
#: OpenAI's form of a duration: what clients have patterns for.
DURATION: Final = re.compile(rb"(\d+h)?(\d+m)?(\d+(\.\d+)?s)|\d+ms|0s")
NAMES: Final = [
    f"x-ratelimit-{part}-{unit}" for unit in ("requests", "tokens") for part in ("limit", "remaining", "reset")
]


class Office:
    """Makes accounts and keys, and changes what they may."""

    def __init__(self, database: Database, redis: Redis) -> None:
        self.database = database
        self.redis = redis
        self._count = 0

    async def open(self, limits: Limits | None = None, *, usd_nanos: int = 10**10, plan: str = "unlimited") -> str:
        """A key of a new account, with limits of its own."""
        self._count += 1
        account_id = await self.database.fetch_value(
            "insert into accounts (name, plan) values ($1, $2) returning id", f"account {self._count}", plan
        )
        if usd_nanos:
            await credit(
                self.database, account_id, type="bonus", amount_nanos=usd_nanos, idempotency_key=f"open {account_id}"
            )
        key = await create_key(
            self.database, name=f"key {self._count}", pepper=PEPPER.encode(), account_id=account_id
        )
        if limits is not None:
            await change_limits(self.database, self, id_or_name=key.id, change=lambda _: limits)
        return key.text

    async def publish(self, channel: bytes, message: bytes) -> object:
        return await self.redis.execute("PUBLISH", channel, message)


@pytest.fixture
async def office(database, redis_url):
    redis = Redis(redis_url, timeout_s=PATIENCE_S)
    await redis.connect()
    async with Database(database, pool_size=2, timeout_s=PATIENCE_S) as opened:
        yield Office(opened, redis)
    await redis.close()


@pytest.fixture
async def gateway(database, redis_url):
    async with (
        ScriptedUpstream(play(RECEIVE, answer(CHAT), REPEAT)) as upstream,
        RunningGateway(Stores(database, redis_url), providers={"local": upstream}, models=PRICES) as gateway,
    ):
        yield gateway


def rate_headers(answered) -> dict[str, bytes]:
    found = [(name.decode(), value) for name, value in answered.headers if name.startswith(b"x-ratelimit")]
    assert len(found) == len(dict(found))
    return dict(found)


# -- on the wire ---------------------------------------------------------------------------------------------


async def test_every_answer_says_how_much_is_left_in_openais_formats(office, gateway):
    key = await office.open(Limits(requests_per_minute=3, tokens_per_day=100_000))

    answers = [await gateway.ask(ASK, key=key) for _ in range(3)]

    assert [each.status for each in answers] == [200] * 3
    for number, answered in enumerate(answers):
        headers = rate_headers(answered)
        assert [*headers] == NAMES
        assert headers["x-ratelimit-limit-requests"] == b"3"
        assert headers["x-ratelimit-remaining-requests"] == b"%d" % (2 - number)
        assert headers["x-ratelimit-limit-tokens"] == b"100000"
        assert 0 < int(headers["x-ratelimit-remaining-tokens"]) < 100_000
        for unit in ("requests", "tokens"):
            reset = headers[f"x-ratelimit-reset-{unit}"]
            assert DURATION.fullmatch(reset), reset
            assert parse_duration(reset)
    # One request is worth a third of the minute.
    assert 0 < (parse_duration(rate_headers(answers[0])["x-ratelimit-reset-requests"]) or 0) <= 20
    assert 40 < (parse_duration(rate_headers(answers[2])["x-ratelimit-reset-requests"]) or 0) <= 60


async def test_what_was_estimated_too_high_comes_back(office, gateway):
    key = await office.open(Limits(tokens_per_day=1_000_000))

    for _ in range(20):
        answered = await gateway.ask(ASK, key=key)
    left = int(rate_headers(answered)["x-ratelimit-remaining-tokens"])

    # 11 tokens each were used; only the last one is still counted by what it could have used.
    assert left > 1_000_000 - 20 * 11 - 5000


async def test_a_full_bucket_is_a_429_that_clients_understand(office, gateway):
    key = await office.open(Limits(requests_per_minute=2))
    await gateway.ask(ASK, key=key)
    await gateway.ask(ASK, key=key)

    refused = await gateway.ask(ASK, key=key)

    assert refused.status == 429
    assert refused.error == {
        "message": "Rate limit reached for this key: limit 2 requests per minute, requested 1. "
        "Please try again in 30s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
        "request_id": refused.header(b"x-gateway-request-id").decode(),
    }
    assert refused.header(b"retry-after") == b"30"
    assert 29_000 < int(refused.header(b"retry-after-ms")) <= 30_000
    assert refused.header(b"x-should-retry") is None
    assert rate_headers(refused)["x-ratelimit-remaining-requests"] == b"0"


async def test_a_request_larger_than_its_limit_is_not_worth_a_retry(office, gateway):
    key = await office.open(Limits(tokens_per_minute=10))

    refused = await gateway.ask(ASK, key=key)

    assert (refused.status, refused.error["type"]) == (429, "tokens")
    assert refused.error["code"] == "request_too_large_for_limit"
    assert refused.header(b"retry-after") is None
    assert refused.header(b"x-should-retry") == b"false"


async def test_without_limits_nothing_is_said_of_them(office, gateway):
    answered = await gateway.ask(ASK, key=await office.open())

    assert answered.status == 200
    assert rate_headers(answered) == {}


async def test_concurrency_and_budgets_refuse_too(office, gateway):
    busy = await gateway.ask(ASK, key=await office.open(Limits(concurrency=0)))
    poor = await office.open(Limits(budgets=(Budget(window="month", limit_nanos=1000),)))
    over = await gateway.ask(ASK, key=poor)
    broke = await gateway.ask(ASK, key=await office.open(usd_nanos=1))

    assert (busy.status, busy.error["code"], busy.header(b"retry-after")) == (429, "concurrency_limit_exceeded", b"1")
    assert (over.status, over.error["code"]) == (402, "budget_exceeded")
    assert int(over.header(b"retry-after")) <= 31 * 86400
    assert over.header(b"x-should-retry") == b"false"
    assert (broke.status, broke.error["code"]) == (402, "insufficient_credit")


async def test_an_account_has_the_limits_of_its_plan_for_all_its_keys(office, gateway):
    key = await office.open(plan="free")

    answered = await gateway.ask(ASK, key=key)

    headers = rate_headers(answered)
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-limit-tokens"]) == (b"1000", b"100000")
    assert headers["x-ratelimit-remaining-requests"] == b"999"


async def test_a_change_of_limits_holds_within_a_second(office, gateway):
    key = await office.open()
    assert (await gateway.ask(ASK, key=key)).status == 200
    await change_limits(
        office.database, office, id_or_name=key.split("_")[2][:12], change=lambda _: Limits(requests_per_day=0)
    )

    async with asyncio.timeout(PATIENCE_S):
        while (refused := await gateway.ask(ASK, key=key)).status == 200:  # noqa: ASYNC110  it is asked, not told
            await asyncio.sleep(0.02)

    assert refused.status == 429


# -- over several processes ----------------------------------------------------------------------------------


async def ask_at(gateway: ServedGateway, key: str) -> tuple[int, dict[str, object]]:
    """One request on a connection of its own; status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (key.encode(), len(ASK), ASK)
        )
        answered = await asyncio.wait_for(reader.read(), PATIENCE_S)
    finally:
        writer.transport.abort()
    head, _, body = answered.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), msgspec.json.decode(body)


async def find_hold(office: Office) -> int:
    """What was set aside for the one request that was made, once it is in the books."""
    async with asyncio.timeout(PATIENCE_S):
        while not (rows := await office.database.fetch("select hold_nanos from usage_records")):  # noqa: ASYNC110  as above
            await asyncio.sleep(0.05)
    found: int = rows[0]["hold_nanos"]
    return found


@pytest.mark.slow
async def test_three_gateways_let_exactly_the_limit_through(office, database, redis_url):
    stores = Stores(database, redis_url)
    # By the day, so that next to nothing comes back while the test runs.
    key = await office.open(Limits(requests_per_day=100))
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream(play(RECEIVE, answer(CHAT), REPEAT)))
        gateways = [
            await stack.enter_async_context(ServedGateway(stores, CONFIG.format(url=upstream.url))) for _ in range(3)
        ]

        answers = await asyncio.gather(*(ask_at(gateways[number % 3], key) for number in range(240)))

    statuses = [status for status, _ in answers]
    assert (statuses.count(200), statuses.count(429)) == (100, 140)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
async def test_nobody_spends_what_is_not_there(office, database, redis_url, workers):
    """Case 108."""
    covered, asked = 7, 200
    stores = Stores(database, redis_url)
    released = asyncio.Event()
    released.set()
    async with (
        ScriptedUpstream(play(RECEIVE, Until(released), answer(CHAT), REPEAT)) as upstream,
        ServedGateway(stores, CONFIG.format(url=upstream.url), workers=workers) as gateway,
    ):
        assert (await ask_at(gateway, await office.open()))[0] == 200
        hold_nanos = await find_hold(office)
        key = await office.open(usd_nanos=covered * hold_nanos + hold_nanos - 1)
        released.clear()

        asking = [asyncio.ensure_future(ask_at(gateway, key)) for _ in range(asked)]
        # Those that are let in wait for the provider; all others are refused meanwhile.
        async with asyncio.timeout(PATIENCE_S):
            while sum(each.done() for each in asking) < asked - covered:  # noqa: ASYNC110  they are many
                await asyncio.sleep(0.02)
        released.set()
        answers = await asyncio.gather(*asking)

    statuses = [status for status, _ in answers]
    codes = {body["error"]["code"] for status, body in answers if status != 200}
    assert (statuses.count(200), statuses.count(402)) == (covered, asked - covered)
    assert codes == {"credit_in_flight"}
