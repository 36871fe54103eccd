"""Several providers, several keys, fallbacks: who is asked, what the caller may say about it, and what it costs."""

import asyncio
from collections import Counter

import msgspec
import openai
import pytest

from gateway.infra.postgres import Database
from gateway.kernel.journal import credit, find_account
from gateway.secret import Secret
from gateway.settings import Breaker, Model, Retries, Routing, Settings
from tests.acceptance.answers import (
    ASK,
    ASK_STREAM,
    CHAT,
    MESSAGES,
    chat_stream,
    error,
    response_object,
    sse,
    stream,
)
from tests.gateways import PATIENCE_S
from tests.upstreams import RECEIVE, REPEAT, ReceivedRequest, Script, answer, play

OOPS = answer(error("Oops."), status=500)
TOO_LONG = answer(error("Too long.", code="context_length_exceeded"), status=400)
OFFENSIVE = answer(error("No.", code="content_filter"), status=400)


def same(*parts: bytes) -> Script:
    return play(RECEIVE, *parts, REPEAT)


def ask(**members: object) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": MESSAGES, **members})


def settings(**routing: object) -> Settings:
    return Settings(routing=Routing(**routing))  # type: ignore[arg-type]


class Site:
    """Providers by name, in order of priority, and a gateway in front of them."""

    def __init__(self, stage) -> None:
        self._stage = stage
        self.upstreams = {}

    async def open(self, scripts: dict[str, Script], *, rows: dict[str, dict] | None = None, **options):
        providers = {}
        for place, (name, script) in enumerate(scripts.items()):
            self.upstreams[name] = await self._stage.upstream(script)
            row = {"priority": place} | (rows or {}).get(name, {})
            providers[name] = self._stage.provider(self.upstreams[name], **row)
        self.gateway, _ = await self._stage.gateway(same(answer(CHAT)), providers=providers, **options)
        if any(not row.free for row in options.get("models", {}).values()):
            await self._pay_in()
        return self

    async def _pay_in(self) -> None:
        async with Database(self._stage.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
            key_id = self.gateway.key_id
            account_id = await find_account(database, key_id)
            await credit(database, account_id, type="bonus", amount_nanos=10**12, idempotency_key=f"for {key_id}")

    async def ask(self, body: bytes = ASK, **parts):
        return await self.gateway.ask(body, **parts)

    def requests(self, name: str) -> list[ReceivedRequest]:
        return self.upstreams[name].requests

    @property
    def asked(self) -> dict[str, int]:
        return {name: len(upstream.requests) for name, upstream in self.upstreams.items() if upstream.requests}


@pytest.fixture
def site(stage) -> Site:
    return Site(stage)


# -- outages ---------------------------------------------------------------------------------------------------------


async def test_an_outage_is_not_seen_and_not_made_worse_and_ends_by_itself(site):
    """One of two equal providers fails: after a few tries nobody asks it, and when it heals traffic comes back."""
    healthy = asyncio.Event()

    async def sick(peer) -> None:
        while True:
            await peer.receive()
            await peer.send(answer(CHAT) if healthy.is_set() else OOPS)

    equal = {"sick": {"priority": 0}, "well": {"priority": 0}}
    await site.open(
        {"sick": sick, "well": same(answer(CHAT))},
        rows=equal,
        settings=settings(breaker=Breaker(requests_min=5, rest_s=0.5)),
    )

    statuses = [(await site.ask()).status for _ in range(60)]
    during = len(site.requests("sick"))
    assert set(statuses) == {200}, "a caller saw the outage"
    assert 5 <= during <= 12
    assert 'gateway_breaker_state{provider="sick"} 2' in await site.gateway.metrics()

    healthy.set()
    async with asyncio.timeout(20):
        while len(site.requests("sick")) < during + 10:
            assert (await site.ask()).status == 200
            await asyncio.sleep(0.01)
    assert 'gateway_breaker_state{provider="sick"} 0' in await site.gateway.metrics()


async def test_a_model_with_one_provider_has_no_breaker_to_run_into(site):
    """The provider's own failures are the caller's to hear, all of them."""
    await site.open({"only": same(OOPS)}, settings=settings(breaker=Breaker(requests_min=3, rest_s=60.0)))

    answers = [await site.ask() for _ in range(10)]

    assert {(one.status, one.body) for one in answers} == {(500, error("Oops."))}
    assert site.asked == {"only": 10}


@pytest.mark.parametrize(
    "absent",
    [
        answer(error("The model `m` does not exist.", code="model_not_found"), status=404),
        answer(error("invalid model ID"), status=400),
    ],
)
async def test_a_provider_without_the_model_is_no_reason_not_to_ask_another(site, absent):
    await site.open({"without": same(absent), "with": same(answer(CHAT))})

    answered = await site.ask()

    assert (answered.status, answered.body) == (200, CHAT)
    assert (answered.header(b"x-gateway-provider"), answered.header(b"x-gateway-attempts")) == (b"with", b"2")
    assert site.asked == {"without": 1, "with": 1}


async def test_where_nobody_has_the_model_the_caller_hears_it_from_a_provider(site):
    absent = error("The model `m` does not exist.", code="model_not_found")
    await site.open({"a": same(answer(absent, status=404)), "b": same(answer(absent, status=404))})

    answered = await site.ask()

    assert (answered.status, answered.body) == (404, absent)


async def test_all_fail_and_the_caller_hears_what_a_provider_said(site, server):
    refused = answer(error("Incorrect key."), status=401)
    await site.open({"oops": same(OOPS), "locked": same(refused)}, server=server)

    answered = await site.ask()

    assert (answered.status, answered.body) == (500, error("Oops."))
    assert answered.header(b"x-gateway-attempts") == b"2"
    assert site.asked == {"oops": 1, "locked": 1}
    (record,) = await site.gateway.records(1)
    assert (record.attempts, record.status) == (2, 500)


async def test_tries_are_bounded(site):
    await site.open({name: same(OOPS) for name in "abcdef"}, settings=settings(retries=Retries(attempts_max=3)))

    answered = await site.ask()

    assert answered.status == 500
    assert site.asked == {"a": 1, "b": 1, "c": 1}


async def test_a_retry_budget_that_is_empty_ends_it(site):
    retries = Retries(share=0.0, floor_per_s=0.0, burst=2)
    await site.open({"bad": same(OOPS), "good": same(answer(CHAT))}, settings=settings(retries=retries))

    statuses = [(await site.ask()).status for _ in range(4)]

    assert statuses == [200, 200, 500, 500]
    assert "gateway_retries_refused_total 2" in await site.gateway.metrics()


async def test_the_same_offer_is_asked_again_where_that_is_wanted(site):
    recovers = play(RECEIVE, OOPS, RECEIVE, answer(CHAT), REPEAT)
    await site.open({"only": recovers}, settings=settings(retries=Retries(repeats=1, backoff_s=0.02)))

    answered = await site.ask()

    assert (answered.status, answered.header(b"x-gateway-attempts")) == (200, b"2")


async def test_a_caller_who_leaves_during_the_wait_ends_it(site, server):
    retries = Retries(repeats=3, backoff_s=30.0, backoff_most_s=60.0)
    await site.open({"only": same(OOPS)}, settings=settings(retries=retries), server=server)
    connection = await site.gateway.connect()

    await connection.send(site.gateway.request(ASK))
    await site.upstreams["only"].received(1)
    connection.abort()

    (record,) = await site.gateway.records(1)
    assert record.error_type == "caller_gone"
    assert site.asked == {"only": 1}


async def test_an_sdk_sees_nothing_of_a_fallback(site):
    body = sse(*chat_stream("Hel", "lo."))
    await site.open({"bad": same(OOPS), "good": same(stream(body))})

    client = site.gateway.openai()
    pieces = await client.chat.completions.create(model="gpt-x", messages=MESSAGES, stream=True)
    text = "".join([piece.choices[0].delta.content or "" async for piece in pieces if piece.choices])

    assert text == "Hello."


# -- keys ------------------------------------------------------------------------------------------------------------


def by_key(answers: dict[str, bytes]) -> Script:
    """A provider that answers each key in its own way."""

    async def script(peer) -> None:
        while True:
            request = await peer.receive()
            await peer.send(answers[request.header(b"authorization").decode().removeprefix("Bearer ")])

    return script


def keys_asked(site: Site, name: str = "p") -> Counter:
    return Counter(request.header(b"authorization")[7:].decode() for request in site.requests(name))


KEYS = {"api_key": Secret("key-a"), "api_keys": (Secret("key-b"), Secret("key-c"))}


async def test_keys_are_used_in_turn(site):
    await site.open({"p": by_key(dict.fromkeys(("key-a", "key-b", "key-c"), answer(CHAT)))}, rows={"p": KEYS})

    for _ in range(9):
        assert (await site.ask()).status == 200

    assert keys_asked(site) == {"key-a": 3, "key-b": 3, "key-c": 3}


@pytest.mark.parametrize("status", [401, 402, 403, 429])
async def test_a_key_in_trouble_is_left_alone_and_nobody_notices(site, status):
    trouble = answer(error("Key trouble."), status=status, headers=[(b"retry-after", b"60")])
    answers = {"key-a": trouble, "key-b": answer(CHAT), "key-c": answer(CHAT)}
    await site.open({"p": by_key(answers)}, rows={"p": KEYS})

    statuses = {(await site.ask()).status for _ in range(12)}

    assert statuses == {200}
    assert keys_asked(site)["key-a"] == 1
    shown = await site.gateway.metrics()
    assert f'gateway_provider_keys_out{{provider="p"}} {1 if status in (401, 402) else 0}' in shown


async def test_a_key_comes_back_by_itself(site):
    answers = {"key-a": answer(error("No."), status=401), "key-b": answer(CHAT), "key-c": answer(CHAT)}
    await site.open({"p": by_key(answers)}, rows={"p": KEYS}, settings=settings(key_refused_s=0.3))
    for _ in range(6):
        await site.ask()
    assert keys_asked(site)["key-a"] == 1

    answers["key-a"] = answer(CHAT)
    async with asyncio.timeout(20):
        while keys_asked(site)["key-a"] < 4:
            assert (await site.ask()).status == 200
            await asyncio.sleep(0.01)


async def test_all_keys_refused_is_never_a_401(site):
    locked = dict.fromkeys(("key-a", "key-b", "key-c"), answer(error("Incorrect API key: key-a"), status=401))
    await site.open({"p": by_key(locked)}, rows={"p": KEYS})

    answered = await site.ask()

    assert answered.status == 502
    assert answered.error["code"] == "upstream_auth"
    assert b"key-a" not in answered.body
    assert sum(keys_asked(site).values()) == 3


async def test_no_key_shows_in_logs_or_metrics(site):
    locked = dict.fromkeys(("key-a", "key-b", "key-c"), answer(error("Incorrect API key: key-a"), status=401))
    await site.open({"p": by_key(locked)}, rows={"p": KEYS})

    await site.ask()

    assert "key-b" not in await site.gateway.metrics()
    assert "key-b" not in repr(await site.gateway.records(1))


# -- fallbacks by class ----------------------------------------------------------------------------------------------

MODELS = {
    "m": Model(free=True, fallbacks=("spare",), context_fallbacks=("large",), policy_fallbacks=("bold",)),
    "spare": Model(free=True),
    "large": Model(free=True, upstream={"p": "vendor/large-2026"}),
    "bold": Model(free=True),
}


def by_model(answers: dict[str, bytes]) -> Script:
    async def script(peer) -> None:
        while True:
            request = await peer.receive()
            await peer.send(answers.get(msgspec.json.decode(request.body)["model"], answer(CHAT)))

    return script


@pytest.mark.parametrize(
    ("trouble", "served"), [(OOPS, "spare"), (TOO_LONG, "vendor/large-2026"), (OFFENSIVE, "bold")]
)
async def test_each_class_of_failure_has_its_own_fallback(site, trouble, served):
    await site.open({"p": by_model({"m": trouble})}, models=MODELS)

    answered = await site.ask(ask(temperature=0.5))

    assert (answered.status, answered.body) == (200, CHAT)
    assert [msgspec.json.decode(request.body)["model"] for request in site.requests("p")] == ["m", served]
    assert site.requests("p")[1].body == ask(temperature=0.5).replace(b'"m"', b'"%b"' % served.encode(), 1)


@pytest.mark.parametrize("trouble", [TOO_LONG, OFFENSIVE])
async def test_without_a_fallback_for_it_the_refusal_is_the_callers(site, trouble):
    await site.open({"p": by_model({"m": trouble})}, models={"m": Model(free=True, fallbacks=("spare",))})

    answered = await site.ask(ask())

    assert answered.status == 400
    assert trouble.endswith(answered.body)
    assert site.asked == {"p": 1}


async def test_a_prompt_known_to_be_too_long_goes_to_the_larger_model_at_once(site):
    small = Model(free=True, context_tokens=50, context_fallbacks=("large",))
    await site.open({"p": by_model({"m": TOO_LONG})}, models=MODELS | {"m": small})

    answered = await site.ask(ask(user="x" * 2000))

    assert answered.status == 200
    assert site.asked == {"p": 1}


# -- what a caller may say -------------------------------------------------------------------------------------------

THREE = {name: same(answer(CHAT)) for name in ("a", "b", "c")}


@pytest.mark.parametrize(
    ("wish", "served"),
    [
        ("b", "b"),
        ({"order": ["c", "b"]}, "c"),
        ({"only": ["b", "c"]}, "b"),
        ({"ignore": ["a"]}, "b"),
        ({"sort": "price"}, "c"),
        ({"max_price": {"prompt": 2.5}}, "b"),
        ({"data_collection": "deny"}, "c"),
    ],
)
async def test_wishes_about_providers_are_obeyed_and_go_no_further(site, wish, served):
    prices = {"a": 3.0, "b": 2.0, "c": 1.0}
    rows = {
        name: {"priority": 0 if wish == {"sort": "price"} else place, "markup": prices[name]}
        for place, name in enumerate("abc")
    }
    rows["c"] |= {"tags": ("no-training",)}
    models = {"m": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)}
    await site.open(THREE, rows=rows, models=models)

    answered = await site.ask(ask(provider=wish, temperature=1))

    assert answered.header(b"x-gateway-provider") == served.encode(), answered
    assert site.requests(served)[0].body == ask(temperature=1)


@pytest.mark.parametrize("wish", ["", "nobody", {"only": ["nobody"]}, {"ignore": ["a", "b", "c"]}])
async def test_a_wish_that_nobody_meets_is_the_caller_s_to_change(site, wish):
    await site.open(THREE)

    refused = await site.ask(ask(provider=wish))

    assert (refused.status, refused.error["code"], refused.error["param"]) == (
        400,
        "no_matching_provider",
        "provider",
    )
    assert refused.header(b"x-should-retry") == b"false"


async def test_a_suffix_is_a_wish_and_no_part_of_the_name(site):
    rows = {name: {"priority": 0, "markup": price} for name, price in (("a", 3.0), ("b", 1.0))}
    models = {"m": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)}
    await site.open({"a": same(answer(CHAT)), "b": same(answer(CHAT))}, rows=rows, models=models)

    for _ in range(5):
        answered = await site.ask(ask().replace(b'"m"', b'"m:floor"'))
        assert answered.header(b"x-gateway-provider") == b"b"

    assert {request.body for request in site.requests("b")} == {ask()}


async def test_a_model_whose_name_ends_like_a_wish_is_served_under_its_name(site):
    await site.open({"p": same(answer(CHAT))}, rows={"p": {"models": ("m:floor",)}})

    await site.ask(ask().replace(b'"m"', b'"m:floor"'))

    assert b'"m:floor"' in site.requests("p")[0].body


async def test_further_models_of_the_caller(site):
    await site.open({"p": by_model({"m": OOPS})})
    client = site.gateway.openai()

    completion = await client.chat.completions.create(
        model="m", messages=MESSAGES, extra_body={"models": ["n"], "provider": {"allow_fallbacks": True}}
    )

    assert completion.choices[0].message.content == "Hello."
    bodies = [msgspec.json.decode(request.body) for request in site.requests("p")]
    assert [body["model"] for body in bodies] == ["m", "n"]
    assert all(body.keys() == {"model", "messages"} for body in bodies)


async def test_the_first_of_the_models_will_do_for_the_model(site):
    await site.open({"p": same(answer(CHAT))})

    answered = await site.ask(msgspec.json.encode({"models": ["x", "y"], "messages": MESSAGES}))

    assert answered.status == 200
    assert msgspec.json.decode(site.requests("p")[0].body) == {"messages": MESSAGES, "model": "x"}


async def test_a_caller_who_wants_no_fallback_gets_the_failure(site):
    await site.open({"bad": same(OOPS), "good": same(answer(CHAT))})

    answered = await site.ask(ask(provider={"allow_fallbacks": False}))

    assert answered.status == 500
    assert site.asked == {"bad": 1}


@pytest.mark.parametrize(
    ("members", "status", "param"),
    [
        ({"provider": {"sort": "beauty"}}, 400, "provider.sort"),
        ({"provider": {"order": "a"}}, 400, "provider.order"),
        ({"provider": {"only": ["nobody"]}}, 400, "provider"),
        ({"provider": "nobody"}, 400, "provider"),
        ({"models": "n"}, 400, "models"),
    ],
)
async def test_a_wish_that_can_not_be_met_is_said_to_be(site, members, status, param):
    await site.open({"p": same(answer(CHAT))})

    answered = await site.ask(ask(**members))

    assert (answered.status, answered.error["param"]) == (status, param)
    assert site.asked == {}


async def test_who_can_not_do_it_is_not_asked(site):
    await site.open({"a": same(answer(CHAT)), "b": same(answer(CHAT))}, rows={"a": {"lacks": ("tools",)}})

    await site.ask(ask(tools=[{"type": "function", "function": {"name": "f"}}]))
    await site.ask(ask())

    assert site.asked == {"a": 1, "b": 1}


# -- conversations ---------------------------------------------------------------------------------------------------

WARM = {"m": Model(input_usd_per_mtok=1.0, input_cached_usd_per_mtok=0.1, output_usd_per_mtok=1.0)}


@pytest.mark.parametrize("how", ["header", "body", "prefix"])
async def test_a_conversation_goes_back_to_where_its_prompt_is_kept(site, how):
    await site.open(THREE, rows={name: {"priority": 0} for name in THREE}, models=WARM)
    served: dict[int, set[bytes]] = {}

    for turn in range(4):
        for number in range(8):
            members: dict = {"turn": turn}
            headers = []
            if how == "header":
                headers = [(b"x-session-id", b"session %d" % number)]
            elif how == "body":
                members |= {"prompt_cache_key": f"conversation {number}"}
            else:
                text = f"{number}" * 5000 + f" turn {turn}"
                members = {"messages": [{"role": "user", "content": text}]}
            answered = await site.ask(ask(**members), headers=headers)
            served.setdefault(number, set()).add(answered.header(b"x-gateway-provider"))

    assert all(len(providers) == 1 for providers in served.values()), served
    assert len(site.asked) > 1, "all conversations went to one"


async def test_where_no_prompt_is_kept_any_provider_will_do(site):
    models = {"m": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)}
    await site.open(THREE, rows={name: {"priority": 0} for name in THREE}, models=models)

    for _ in range(30):
        await site.ask(ask(), headers=[(b"x-session-id", b"one")])

    assert len(site.asked) > 1


# -- a field of ours that is refused ---------------------------------------------------------------------------------


async def test_a_field_of_ours_that_is_refused_is_learned_about(site):
    body = sse(*chat_stream("Hel", "lo.", usage=False))
    refusal = error("Unknown parameter: 'stream_options'.", param="stream_options")

    async def strict(peer) -> None:
        while True:
            request = await peer.receive()
            known = b"stream_options" not in request.body
            await peer.send(stream(body) if known else answer(refusal, status=400))

    await site.open({"p": strict})

    answers = [await site.ask(ASK_STREAM) for _ in range(3)]

    assert {(one.status, one.body) for one in answers} == {(200, body)}
    asked = [b"stream_options" in request.body for request in site.requests("p")]
    assert asked == [True, False, False, False]
    assert [one.header(b"x-gateway-attempts") for one in answers] == [b"2", b"1", b"1"]


async def test_a_field_of_the_callers_that_is_refused_is_the_callers_business(site):
    refusal = error("Unknown parameter: 'stream_options'.", param="stream_options")
    await site.open({"p": same(answer(refusal, status=400))})

    with pytest.raises(openai.BadRequestError):
        await site.gateway.openai().chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )

    assert site.asked == {"p": 1}


# -- providers that can't be told everything -------------------------------------------------------------------------

#: It has chat completions and nothing else: what is asked for in another dialect is translated into those.
PLAIN = {"extra": {"dialects": ["openai.chat"]}}
#: Of responses; no chat completion has it.
STORED_PROMPT = {"prompt": {"id": "pmpt_1"}}


async def ask_response(site, **members: object):
    body = msgspec.json.encode({"model": "m", "input": "Hi", **members})
    return await site.ask(body, path=b"/v1/responses")


async def test_who_can_t_be_told_is_passed_over_for_who_can(site):
    given = msgspec.json.encode(response_object("completed", "Hello."))
    await site.open({"plain": same(answer(CHAT)), "full": same(answer(given))}, rows={"plain": PLAIN})

    answered = await ask_response(site, **STORED_PROMPT)

    assert (answered.status, answered.body) == (200, given)
    assert site.asked == {"full": 1}
    assert answered.header(b"x-gateway-provider") == b"full"


async def test_where_nobody_can_be_told_the_caller_hears_why(site):
    await site.open({"a": same(answer(CHAT)), "b": same(answer(CHAT))}, rows={"a": PLAIN, "b": PLAIN})

    answered = await ask_response(site, **STORED_PROMPT)

    assert answered.status == 400
    assert answered.error["param"] == "prompt"
    assert site.asked == {}
    (record,) = await site.gateway.records(1)
    assert (record.status, record.cost_nanos, record.usage_source) == (400, 0, "none")


async def test_a_provider_in_trouble_is_told_of_rather_than_what_another_can_t_be_told(site):
    await site.open({"plain": same(answer(CHAT)), "full": same(OOPS)}, rows={"plain": PLAIN})

    answered = await ask_response(site, **STORED_PROMPT)

    assert (answered.status, answered.error["message"]) == (500, "Oops.")


async def test_a_native_answer_after_a_translated_try_is_passed_on_as_it_is(site):
    given = msgspec.json.encode(response_object("completed", "Hello."))
    await site.open({"plain": same(OOPS), "full": same(answer(given))}, rows={"plain": PLAIN})

    answered = await ask_response(site, text={"verbosity": "low"}, include=["reasoning.encrypted_content"])

    assert (answered.status, answered.body) == (200, given)
    assert site.asked == {"plain": 1, "full": 1}
    assert answered.header(b"x-gateway-dropped") is None


# -- money -----------------------------------------------------------------------------------------------------------


async def test_who_answered_is_paid_and_nobody_else(site):
    models = {
        "m": Model(input_usd_per_mtok=1000.0, output_usd_per_mtok=1000.0, fallbacks=("spare",)),
        "spare": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0),
    }
    await site.open({"p": by_model({"m": OOPS})}, models=models)

    answered = await site.ask(ask())

    # 9 tokens in and 2 out at the price of `spare`.
    assert answered.header(b"x-gateway-cost-usd") == b"0.000013"
    (record,) = await site.gateway.records(1)
    assert (record.cost_nanos, record.model, record.attempts) == (13_000, "spare", 2)


async def test_a_failure_everywhere_costs_nothing(site):
    models = {"m": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)}
    failed = answer(
        b'{"error":{"message":"x","type":"overloaded_error"},"usage":{"prompt_tokens":9,"completion_tokens":9}}'
    )
    await site.open({"a": same(failed), "b": same(OOPS)}, models=models)

    answered = await site.ask(ask())

    assert answered.status == 500
    (record,) = await site.gateway.records(1)
    assert (record.cost_nanos, record.usage_source) == (0, "none")


@pytest.mark.parametrize(("body", "tokens"), [(ASK, 10), (ASK.replace(b"{", b'{"max_tokens":5,', 1), 5)])
async def test_no_more_is_held_than_the_longest_answer_can_cost(site, body, tokens):
    row = Model(input_usd_per_mtok=0.0, output_usd_per_mtok=10.0, max_output_tokens=10)
    await site.open({"only": same(answer(CHAT))}, models={"gpt-x": row})
    assert (await site.ask(body)).status == 200
    assert f"gateway_credit_held_nanodollars_total {tokens * 10_000}" in await site.gateway.metrics()
