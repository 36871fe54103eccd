"""What providers report, and what it comes to: one request each, with prices, through the whole chain to the ledger.

How reports are read is tested beside the readers, and arithmetic beside the prices; here they have to meet. Each test
looks at the charge three times: in the answer's header where it has one, in the access line, and in the ledger.
"""

import asyncio
import contextlib

import msgspec
import pytest

from gateway import __version__
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.metrics import Registry
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.journal import credit, find_account
from gateway.kernel.money import parse_usd
from gateway.kernel.settler import Settler
from gateway.secret import Secret
from gateway.settings import Model, Provider
from gateway.telemetry import Telemetry
from tests.acceptance.answers import ASK, ASK_STREAM, DONE, MESSAGES, USAGE, delta, sse, stream, stream_head
from tests.gateways import PATIENCE_S, PROVIDER_KEY, RunningGateway
from tests.upstreams import CLOSE, RECEIVE, REPEAT, Pause, ScriptedUpstream, answer, chunk, play

#: A dollar for a million tokens in, ten for a million out: a thousand and ten thousand nanos each.
PRICES = {"gpt-x": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=10.0)}
DEPOSIT_NANOS = 10**11


def usd(text: str) -> int:
    return parse_usd(text)


def body(usage: object, **members: object) -> bytes:
    """A plain chat answer with this usage in it, or with none."""
    message = {"role": "assistant", "content": "Hello to you."}
    reported = {} if usage is None else {"usage": usage}
    return msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1790000000,
            "model": "gpt-x",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            **reported,
            **members,
        }
    )


def with_usage(text: str, usage: object, **members: object) -> bytes:
    """A chunk of a chat stream that has usage beside its text."""
    return msgspec.json.encode({**msgspec.json.decode(delta(text)), "usage": usage, **members})


def tokens(inputs: int, outputs: int, **members: object) -> dict[str, object]:
    return {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": inputs + outputs, **members}


class Till:
    """Gateways on a ledger of their own, and what it has taken."""

    def __init__(self, stack: contextlib.AsyncExitStack, stores: Stores) -> None:
        self._stack = stack
        self._stores = stores

    async def open(self, *scripts, models=PRICES, **row) -> RunningGateway:
        """A gateway whose account can pay, in front of one provider."""
        upstream = await self._stack.enter_async_context(ScriptedUpstream(*scripts))
        row = {"adapter": "openai", "base_url": f"{upstream.url}/v1", "api_key": Secret(PROVIDER_KEY)} | row
        return await self.open_at(models=models, local=Provider(**row))

    async def open_at(self, *, models=PRICES, **providers: Provider) -> RunningGateway:
        gateway = RunningGateway(self._stores, providers=providers, models=models)
        gateway = await self._stack.enter_async_context(gateway)
        self.database = await self._stack.enter_async_context(
            Database(self._stores.database_dsn, pool_size=2, timeout_s=PATIENCE_S)
        )
        self.redis = Redis(self._stores.redis_url, timeout_s=PATIENCE_S)
        await self.redis.connect()
        self._stack.push_async_callback(self.redis.close)
        account_id = await find_account(self.database, gateway.key_id)
        await credit(
            self.database, account_id, type="bonus", amount_nanos=DEPOSIT_NANOS, idempotency_key=gateway.key_id
        )
        return gateway

    async def taken(self, gateway: RunningGateway, *, requests: int = 1) -> int:
        """What the ledger took, all told, once it knows of `requests`; the access lines must say the same."""
        telemetry = Telemetry(Registry(incarnation="test"), version=__version__)
        settler = Settler(self.database, self.redis, clock=SystemClock(), telemetry=telemetry)
        logged = sum([record.cost_nanos for record in await gateway.records(requests)])
        async with asyncio.timeout(PATIENCE_S):
            while await self.database.fetch_value("select count(*) from usage_records") < requests:
                await settler.settle_once()
        await settler.settle_once()
        row = await self.database.fetch_row(
            "select count(*) as requests, sum(cost_nanos)::bigint as nanos from usage_records"
        )
        entered = await self.database.fetch_value(
            "select coalesce(-sum(amount_nanos), 0)::bigint from entries where type = 'api_usage'"
        )
        balance = await self.database.fetch_value("select balance_nanos from balances where last_seq > 0")
        assert row is not None
        assert (row["requests"], row["nanos"], entered, DEPOSIT_NANOS - balance) == (requests, logged, logged, logged)
        return logged


@pytest.fixture
async def till(database, redis_url):
    async with contextlib.AsyncExitStack() as stack:
        yield Till(stack, Stores(database, redis_url))


# -- odd reports -----------------------------------------------------------------------------------------------------

REPORTS = [
    pytest.param(tokens(20, 9), 110_000, id="plain"),
    # Cached tokens are a part of the input, and reasoning one of the output.
    pytest.param(
        tokens(20, 9, prompt_tokens_details={"cached_tokens": 15}, completion_tokens_details={"reasoning_tokens": 5}),
        110_000,
        id="details",
    ),
    # Case 101: xAI leaves reasoning out of the completion. The total gives it away, and it counts once.
    pytest.param(
        {
            "prompt_tokens": 20,
            "completion_tokens": 9,
            "total_tokens": 34,
            "completion_tokens_details": {"reasoning_tokens": 5},
        },
        160_000,
        id="xai",
    ),
    # Case 109: a total that fits nothing is nobody's figure; what is counted apart is charged.
    pytest.param({"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 5000}, 110_000, id="total too high"),
    pytest.param({"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 1}, 110_000, id="total too low"),
    # Nonsense never makes anybody richer.
    pytest.param(tokens(20, -9), 20_000, id="negative"),
]


@pytest.mark.parametrize(("usage", "nanos"), REPORTS)
async def test_a_plain_answer_is_charged_by_what_it_reports(till, usage, nanos):
    given = body(usage)
    gateway = await till.open(play(RECEIVE, answer(given)))

    answered = await gateway.ask(ASK)

    assert answered.body == given
    assert answered.header(b"x-gateway-cost-usd") == f"{nanos / 1e9:.9f}".rstrip("0").encode()
    assert await till.taken(gateway) == nanos
    (record,) = await gateway.records(1)
    assert record.usage_source == "reported"


@pytest.mark.parametrize(("usage", "nanos"), REPORTS)
async def test_a_stream_is_charged_by_what_it_reports(till, usage, nanos):
    last = msgspec.json.encode({**msgspec.json.decode(USAGE), "usage": usage})
    gateway = await till.open(play(RECEIVE, stream(sse(delta("Hello"), delta(finish="stop"), last, DONE))))

    answered = await gateway.ask(ASK_STREAM)

    assert answered.body == sse(delta("Hello"), delta(finish="stop"), DONE)
    assert await till.taken(gateway) == nanos


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_report_of_the_impossible_is_not_believed_and_the_answer_is_still_charged(till, *, streamed):
    """At a dear price its cost would be beyond what the ledger can count, and could never be settled."""
    usage = tokens(10**12, 10**12)
    last = msgspec.json.encode({**msgspec.json.decode(USAGE), "usage": usage})
    given = stream(sse(delta("Hello"), delta(finish="stop"), last, DONE)) if streamed else answer(body(usage))
    gateway = await till.open(play(RECEIVE, given))

    await gateway.ask(ASK_STREAM if streamed else ASK)

    # What was asked and said is a few words, at 1,000 and 10,000 nanos a token.
    assert 0 < await till.taken(gateway) < 1_000_000
    (record,) = await gateway.records(1)
    assert record.usage_source == "estimated"
    assert 0 < record.input_tokens < 100


async def test_usage_that_grows_with_every_chunk_counts_once(till):
    """Case 100: vLLM can be told to report all along."""
    running = [with_usage(f"{number} ", tokens(20, number)) for number in range(1, 10)]
    given = sse(*running, delta(finish="stop"), DONE)
    gateway = await till.open(play(RECEIVE, stream(given)))

    answered = await gateway.ask(ASK_STREAM)

    assert answered.body == given
    assert await till.taken(gateway) == 110_000


async def test_usage_that_is_reported_twice_counts_once(till):
    """Case 104: Groq says it in two places of the same chunk, and asked for it again in one of its own."""
    last = with_usage("", tokens(20, 9), x_groq={"id": "req_1", "usage": tokens(20, 9)})
    gateway = await till.open(play(RECEIVE, stream(sse(delta("Hello"), last, USAGE, DONE))))

    answered = await gateway.ask(ASK_STREAM)

    assert answered.body == sse(delta("Hello"), last, DONE)
    assert await till.taken(gateway) == 110_000


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("usage", "nanos"),
    [
        ({"cost": 0.00025}, 250_000),
        ({"cost": 0.00001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.0002}}, 210_000),
    ],
    ids=["credits", "own key"],
)
async def test_what_openrouter_says_it_charged_beats_the_list(till, streamed, usage, nanos):
    """Case 102: with a key of one's own at the provider behind it, what that one charges comes on top."""
    reported = tokens(20, 9, **usage)
    last = with_usage("", reported)
    given = stream(sse(delta("Hello"), last, DONE)) if streamed else answer(body(reported))
    row = {"adapter": "compatible", "catalogue": "openrouter", "extra": {"row": "openrouter"}}
    gateway = await till.open(play(RECEIVE, given), **row)

    await gateway.ask((ASK_STREAM if streamed else ASK).replace(b"gpt-x", b"openai/gpt-5.4"))

    assert await till.taken(gateway) == nanos


async def test_what_a_provider_says_it_charged_counts_where_nobody_knows_a_price(till):
    """`free = true` for all models lets one be called without a price; it gives nothing away that has one after all."""
    row = {"adapter": "compatible", "catalogue": "openrouter", "extra": {"row": "openrouter"}}
    free = {"*": Model(free=True), "gift/model": Model(free=True)}
    given = play(RECEIVE, answer(body(tokens(20, 9, cost=0.00025))), REPEAT)
    gateway = await till.open(given, models=free, markup=2.0, **row)

    for model in (b"nobody/knows", b"gift/model"):
        assert (await gateway.ask(ASK.replace(b"gpt-x", model))).status == 200

    assert [record.cost_nanos for record in await gateway.records(2)] == [500_000, 0]
    assert await till.taken(gateway, requests=2) == 500_000


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_without_a_report_what_was_delivered_is_estimated_and_marked(till, streamed):
    """Case 105: silence is not free."""
    given = (
        stream(sse(delta("Hello "), delta("to you."), delta(finish="stop"), DONE)) if streamed else answer(body(None))
    )
    gateway = await till.open(play(RECEIVE, given))

    answered = await gateway.ask(ASK_STREAM if streamed else ASK)

    assert (answered.status, answered.whole) == (200, True)
    taken = await till.taken(gateway)
    (record,) = await gateway.records(1)
    assert record.usage_source == "estimated"
    assert record.input_tokens > 0
    assert 0 < record.output_tokens <= 5
    assert taken == record.input_tokens * 1000 + record.output_tokens * 10_000


# -- prices that depend on the answer --------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "price"), [(272_000, "0.695"), (272_001, "1.382505")])
async def test_a_long_prompt_has_another_price_for_all_of_it(till, inputs, price):
    """Case 106."""
    gateway = await till.open(play(RECEIVE, answer(body(tokens(inputs, 1000)))), catalogue="openai")

    answered = await gateway.ask(ASK.replace(b"gpt-x", b"gpt-5.4"))

    assert answered.header(b"x-gateway-cost-usd") == price.encode()
    assert await till.taken(gateway) == usd(price)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("served", "price"), [("default", "0.4"), ("flex", "0.2"), ("priority", "0.8")])
async def test_the_tier_that_served_decides_and_not_the_one_that_was_asked_for(till, streamed, served, price):
    """Case 112."""
    usage = tokens(200_000, 0)
    last = msgspec.json.encode({**msgspec.json.decode(USAGE), "usage": usage, "service_tier": served})
    given = stream(sse(last, DONE)) if streamed else answer(body(usage, service_tier=served))
    gateway = await till.open(play(RECEIVE, given), catalogue="openai")
    wish = {"model": "gpt-5.6-terra", "messages": MESSAGES, "service_tier": "flex", "stream": streamed}

    await gateway.ask(msgspec.json.encode(wish))

    assert await till.taken(gateway) == usd(price)


@pytest.mark.parametrize(
    ("row", "wish", "double"),
    [
        ({}, {}, 2),
        ({}, {"service_tier": "auto"}, 2),
        ({}, {"service_tier": "flex"}, 1),
        ({}, {"service_tier": "priority"}, 4),
        ({"service_tier": "priority"}, {}, 4),
        ({"service_tier": "priority"}, {"service_tier": "default"}, 2),
    ],
)
async def test_the_hold_is_for_the_tier_that_is_asked_for(till, row, wish, double):
    """A tier that nobody asked for is not held for, unless the account at the provider is set to it."""
    gateway = await till.open(play(RECEIVE, answer(body(tokens(20, 9)))), catalogue="openai", **row)

    await gateway.ask(
        msgspec.json.encode({"model": "gpt-5.6-terra", "messages": MESSAGES, "max_tokens": 10**6, **wish})
    )

    held = next(
        int(line.rpartition(" ")[2])
        for line in (await gateway.metrics()).splitlines()
        if line.startswith("gateway_credit_held_nanodollars_total")
    )
    # Its longest answer has 128,000 tokens, and flex takes six dollars for a million.
    assert held // usd("0.768") == double


async def test_what_nobody_reports_is_charged_at_the_tier_that_was_asked_for(till):
    """A stream that is cut off: by estimate, at twice the price."""
    given = stream_head() + chunk(sse(delta("Hello to you."))), CLOSE
    wish = {"model": "gpt-5.6-terra", "messages": MESSAGES, "stream": True, "service_tier": "priority"}
    gateway = await till.open(play(RECEIVE, *given), catalogue="openai")

    await gateway.ask(msgspec.json.encode(wish))

    taken = await till.taken(gateway)
    (record,) = await gateway.records(1)
    assert record.output_tokens > 0
    assert taken == record.input_tokens * 4_000 + record.output_tokens * 24_000


async def test_a_fast_answer_of_anthropic_is_charged_as_one(till):
    """What a message says of its speed decides, and a stream says it at its start."""
    start = {"type": "message", "usage": {"input_tokens": 1000, "output_tokens": 1, "speed": "fast"}}
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello."}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1000}},
        {"type": "message_stop"},
    ]
    given = stream(sse(*(msgspec.json.encode(event) for event in events)))
    gateway = await till.open(play(RECEIVE, given), adapter="anthropic", catalogue="anthropic")
    wish = {"model": "claude-opus-5", "messages": MESSAGES, "max_tokens": 2000, "stream": True, "speed": "fast"}

    await gateway.ask(msgspec.json.encode(wish), path=b"/v1/messages")

    # Ten and fifty dollars for a million tokens.
    assert await till.taken(gateway) == usd("0.06")


# -- numbers without end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [{"max_tokens": 10**12}, {"max_tokens": 10**30}, {"n": 10**20}, {"n": 10**9}])
async def test_more_than_anybody_has_is_not_covered(till, members):
    """Whatever number the caller names, it is told that the credit does not reach, and not that something broke."""
    gateway = await till.open(play(RECEIVE, answer(body(tokens(20, 9))), REPEAT))
    asked = msgspec.json.encode({"model": "gpt-x", "messages": MESSAGES, **members})

    answered = await gateway.ask(asked.replace(b'"max_tokens":1000000000000}', b'"max_tokens":1e400}'))

    assert (answered.status, answered.error["code"]) == (402, "insufficient_credit")
    assert answered.header(b"x-should-retry") == b"false"


async def test_any_bound_will_do_where_nothing_is_charged(till):
    gateway = await till.open(play(RECEIVE, answer(body(tokens(20, 9))), REPEAT), models={})

    answered = await gateway.ask(b'{"model":"gpt-x","max_tokens":1e400,"messages":[{"role":"user","content":"Hi"}]}')

    assert answered.status == 200


# -- one bill --------------------------------------------------------------------------------------------------------


async def test_a_provider_that_fails_before_its_first_byte_is_replaced_and_not_paid(till, stage):
    """Case 72."""
    broken = await stage.upstream(play(RECEIVE, answer(b'{"error":{"message":"Oops."}}', status=500), REPEAT))
    well = await stage.upstream(play(RECEIVE, answer(body(tokens(20, 9))), REPEAT))
    gateway = await till.open_at(first=stage.provider(broken, priority=0), second=stage.provider(well, priority=1))

    answered = await gateway.ask(ASK)

    assert answered.status == 200
    assert (answered.header(b"x-gateway-provider"), answered.header(b"x-gateway-attempts")) == (b"second", b"2")
    assert (len(broken.requests), len(well.requests)) == (1, 1)
    assert await till.taken(gateway) == 110_000


async def test_a_provider_that_fails_after_its_first_byte_is_not_replaced_and_paid_for_what_came(till, stage):
    """Case 72: nobody else can go on with half an answer."""
    begun = sse(delta(role="assistant", content=""), delta("One "), delta("two"))
    broken = await stage.upstream(play(RECEIVE, stream_head(), chunk(begun), Pause(0.05), CLOSE))
    well = await stage.upstream(play(RECEIVE, stream(sse(delta("Other"), USAGE, DONE)), REPEAT))
    gateway = await till.open_at(first=stage.provider(broken, priority=0), second=stage.provider(well, priority=1))

    answered = await gateway.ask(ASK_STREAM)

    assert answered.body.startswith(begun + b'data: {"error":{')
    assert answered.whole
    assert (len(broken.requests), len(well.requests)) == (1, 0)
    taken = await till.taken(gateway)
    (record,) = await gateway.records(1)
    assert (record.attempts, record.usage_source, record.aborted_by) == (1, "partial", "provider")
    assert 0 < taken < 110_000
