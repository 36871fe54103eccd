"""What a key may be used for, as callers meet it at `/v1`: decided before anybody is asked."""

import asyncio
import uuid
from typing import Any

import anthropic
import msgspec
import openai
import pytest

from gateway.settings import Model, Server, Settings
from tests.acceptance.answers import ASK, CHAT
from tests.gateways import RunningGateway
from tests.upstreams import RECEIVE, REPEAT, answer, play

SERVED = play(RECEIVE, answer(CHAT), REPEAT)
PROXIES = Settings(server=Server(trusted_proxies=("127.0.0.1",)))


async def make_key(gateway: RunningGateway, **constraints: object) -> str:
    """A key that the control plane made."""
    # Gateways of one process share an account.
    body = msgspec.json.encode({"key_name": uuid.uuid4().hex} | constraints)
    made = await gateway.ask(body, path=b"/user/api-keys")
    assert made.status == 200, made
    text: str = msgspec.json.decode(made.body)["api_key"]
    return text


def code_of(answered: Any) -> tuple[int, str | None]:
    return answered.status, None if answered.status == 200 else answered.error["code"]


async def test_a_network(stage):
    gateway, upstream = await stage.gateway(SERVED)
    here = await make_key(gateway, ip_allowlist=["127.0.0.0/8", "::1"])
    away = await make_key(gateway, ip_allowlist=["203.0.113.0/24"])
    claims = [(b"x-forwarded-for", b"203.0.113.7")]

    assert code_of(await gateway.ask(ASK, key=here)) == (200, None)
    assert code_of(await gateway.ask(ASK, key=away)) == (403, "ip_not_allowed")
    # Whoever is no trusted proxy may say what they like.
    assert code_of(await gateway.ask(ASK, key=away, headers=claims)) == (403, "ip_not_allowed")
    assert code_of(await gateway.ask(ASK, key=here, headers=claims)) == (200, None)
    assert upstream.connections == 1


async def test_a_network_behind_a_proxy_that_is_trusted(stage):
    gateway, _ = await stage.gateway(SERVED, settings=PROXIES)
    key = await make_key(gateway, ip_allowlist=["203.0.113.0/24", "2001:db8::/32"])

    async def ask(*claims: bytes) -> tuple[int, str | None]:
        headers = [(b"x-forwarded-for", claim) for claim in claims]
        return code_of(await gateway.ask(ASK, key=key, headers=headers))

    assert await ask(b"203.0.113.7") == (200, None)
    assert await ask(b"2001:db8::1") == (200, None)
    assert await ask(b"::ffff:203.0.113.7") == (200, None)
    # What stands left of the first stranger is the stranger's own claim.
    assert await ask(b"203.0.113.7, 198.51.100.1") == (403, "ip_not_allowed")
    assert await ask(b"203.0.113.7", b"198.51.100.1") == (403, "ip_not_allowed")
    assert await ask() == (403, "ip_not_allowed")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"referer", b"https://app.example.com/chat?x=1")], 200),
        ([(b"origin", b"https://app.example.com")], 200),
        ([(b"referer", b"http://APP.example.com:8080/")], 200),
        ([(b"referer", b"https://deep.below.example.org/")], 200),
        ([(b"referer", b"https://example.org/")], 403),
        ([(b"referer", b"https://app.example.com.evil.net/")], 403),
        ([(b"referer", b"https://evilexample.org/")], 403),
        ([(b"referer", b"https://evil.net/"), (b"origin", b"https://app.example.com")], 403),
        ([(b"referer", b"https://[bad/")], 403),
        ([(b"origin", b"null")], 403),
        ([], 403),
    ],
)
async def test_a_referrer(stage, headers, status):
    gateway, _ = await stage.gateway(SERVED)
    key = await make_key(gateway, domain_referrers=["app.example.com", "*.example.org"])

    answered = await gateway.ask(ASK, key=key, headers=headers)

    assert code_of(answered) == (status, None if status == 200 else "referrer_not_allowed")


async def test_scopes(stage):
    gateway, upstream = await stage.gateway(SERVED)
    reads = await make_key(gateway, scope_permissions={"read": ["inference"]})
    asks = await make_key(gateway, scope_permissions={"write": ["inference"]})
    other = await make_key(gateway, scope_permissions={"read": ["usage"], "write": ["api_keys"]})
    models: dict[str, Any] = {"method": b"GET", "path": b"/v1/models"}

    assert [(await gateway.ask(key=key, **models)).status for key in (reads, asks, other)] == [200, 403, 403]
    assert [code_of(await gateway.ask(ASK, key=key)) for key in (reads, asks, other)] == [
        (403, "scope_not_permitted"),
        (200, None),
        (403, "scope_not_permitted"),
    ]
    assert upstream.connections == 1


async def test_models_in_every_dialect(stage):
    gateway, upstream = await stage.gateway(SERVED)
    key = await make_key(gateway, model_allowlist=["gpt-x", "claude-*"])
    client = gateway.openai(api_key=key)
    claude = anthropic.AsyncAnthropic(api_key=key, base_url=gateway.url, max_retries=0)

    with pytest.raises(openai.NotFoundError) as not_found:
        await client.chat.completions.create(model="gpt-y", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(anthropic.NotFoundError) as no_claude:
        await claude.messages.create(model="gpt-z", max_tokens=5, messages=[{"role": "user", "content": "Hi"}])
    google = await gateway.ask(b'{"contents":[]}', key=key, path=b"/v1beta/models/gemini-x:generateContent")
    many = await gateway.ask(b'{"model":"a","models":["b","c"],"messages":[]}', key=key)
    suffix = await gateway.ask(b'{"model":"gpt-y:floor","messages":[]}', key=key)
    await claude.close()

    assert not_found.value.code == "model_not_found"
    assert no_claude.value.body["error"]["type"] == "not_found_error"
    assert google.status == 404
    assert msgspec.json.decode(google.body)["error"]["status"] == "NOT_FOUND"
    assert [code_of(each) for each in (many, suffix)] == [(404, "model_not_found")] * 2
    assert upstream.connections == 0

    good = await client.chat.completions.create(model="gpt-x", messages=[{"role": "user", "content": "Hi"}])
    assert good.model == "gpt-x-2026"


async def test_a_request_that_names_several_models_gets_those_that_the_key_may_use(stage):
    gateway, upstream = await stage.gateway(SERVED)
    key = await make_key(gateway, model_allowlist=["b"])

    answered = await gateway.ask(b'{"model":"a","models":["b","c"],"messages":[]}', key=key)

    assert answered.status == 200
    assert [msgspec.json.decode(each.body)["model"] for each in upstream.requests] == ["b"]


async def test_lists_show_what_the_key_may_use(stage):
    one, other = await stage.upstream(SERVED), await stage.upstream(SERVED)
    gateway, _ = await stage.gateway(
        SERVED,
        providers={
            "one": stage.provider(one, models=("gpt-x", "gpt-y", "own")),
            "other": stage.provider(other, models=("gpt-x", "theirs")),
        },
        models={"gpt-x": Model(free=True, aliases=("fast",))},
    )
    keys = {
        "all": gateway.key,
        "models": await make_key(gateway, model_allowlist=["gpt-*"]),
        "alias": await make_key(gateway, model_allowlist=["fast"]),
        "provider": await make_key(gateway, provider_allowlist=["other"]),
        "both": await make_key(gateway, model_allowlist=["own"], provider_allowlist=["other"]),
    }

    listed = {}
    for name, key in keys.items():
        answered = await gateway.ask(key=key, method=b"GET", path=b"/v1/models")
        listed[name] = {each["id"]: each["owned_by"] for each in msgspec.json.decode(answered.body)["data"]}
    anthropics = await gateway.ask(
        key=keys["provider"], method=b"GET", path=b"/v1/models", headers=[(b"anthropic-version", b"2023-06-01")]
    )
    single = {
        name: (await gateway.ask(key=keys["provider"], method=b"GET", path=b"/v1/models/" + name)).status
        for name in (b"gpt-x", b"gpt-y", b"theirs", b"nothing")
    }

    assert listed["all"] == {"fast": "one", "gpt-x": "one", "gpt-y": "one", "own": "one", "theirs": "other"}
    assert listed["models"] == {"fast": "one", "gpt-x": "one", "gpt-y": "one"}
    assert listed["alias"] == {"fast": "one"}
    assert listed["provider"] == {"fast": "other", "gpt-x": "other", "theirs": "other"}
    assert listed["both"] == {}
    assert [each["id"] for each in msgspec.json.decode(anthropics.body)["data"]] == ["fast", "gpt-x", "theirs"]
    assert single == {b"gpt-x": 200, b"gpt-y": 404, b"theirs": 200, b"nothing": 404}
    # What is listed can be used, and nothing else.
    for name, key in keys.items():
        for model in listed["all"]:
            body = b'{"model":"%b","messages":[]}' % model.encode()
            assert (await gateway.ask(body, key=key)).status == (200 if model in listed[name] else 404), (name, model)


async def test_a_provider_that_is_not_allowed_is_never_asked(stage):
    """Not even when all others fail, and not when the caller asks for it."""
    broken = play(RECEIVE, answer(b'{"error":{"message":"no"}}', status=503), REPEAT)
    failing, forbidden = await stage.upstream(broken), await stage.upstream(SERVED)
    gateway, _ = await stage.gateway(
        SERVED,
        providers={
            "failing": stage.provider(failing, models=("gpt-x",), priority=1),
            "forbidden": stage.provider(forbidden, models=("gpt-x", "spare")),
        },
        models={"gpt-x": Model(free=True, fallbacks=("spare",))},
    )
    key = await make_key(gateway, provider_allowlist=["failing"])

    plain = await gateway.ask(ASK, key=key)
    asked = [
        await gateway.ask(ASK[:-1] + wish, key=key)
        for wish in (
            b',"provider":"forbidden"}',
            b',"provider":{"order":["forbidden"]}}',
            b',"models":["spare"]}',
        )
    ]
    files = await gateway.ask(
        key=key, method=b"POST", path=b"/v1/files", headers=[(b"x-gateway-provider", b"forbidden")]
    )

    assert plain.status == 503
    assert all(each.status >= 400 for each in asked)
    assert files.status >= 400
    assert failing.connections >= 1
    assert forbidden.connections == 0
    assert (await gateway.ask(ASK)).status == 200
    assert forbidden.connections == 1


async def test_what_nobody_here_looks_into_is_refused_to_a_key_for_certain_models(stage):
    gateway, upstream = await stage.gateway(SERVED)
    key = await make_key(gateway, model_allowlist=["gpt-x"])

    batch = await gateway.ask(
        b'{"endpoint":"/v1/chat/completions","completion_window":"24h"}', key=key, path=b"/v1/batches"
    )

    assert code_of(batch) == (403, "model_not_checked")
    assert upstream.connections == 0


async def test_the_requests_of_a_life(stage):
    gateway, upstream = await stage.gateway(SERVED)
    key = await make_key(gateway, max_requests=3)

    answers = await asyncio.gather(*(gateway.ask(ASK, key=key) for _ in range(12)))
    last = await gateway.ask(ASK, key=key)

    assert [each.status for each in answers].count(200) == 3
    assert {code_of(each) for each in answers if each.status != 200} <= {
        (429, "requests_used_up"),
        (429, "requests_in_flight"),
    }
    assert code_of(last) == (429, "requests_used_up")
    assert last.header(b"x-should-retry") == b"false"
    assert len(upstream.requests) == 3


async def test_a_key_that_ends(stage):
    gateway, _ = await stage.gateway(SERVED)
    made = msgspec.json.decode(
        (
            await gateway.ask(
                b'{"key_name":"%b","expiration_days":1}' % uuid.uuid4().hex.encode(), path=b"/user/api-keys"
            )
        ).body
    )
    assert (await gateway.ask(ASK, key=made["api_key"])).status == 200
    path = f"/user/api-keys/{made['id']}".encode()

    off = await gateway.ask(
        b'{"is_active":false}', method=b"PUT", path=path, headers=[(b"content-type", b"application/json")]
    )
    refused = await gateway.ask(ASK, key=made["api_key"])

    assert off.status == 200
    assert code_of(refused) == (401, "api_key_disabled")


REFUSALS = {
    "ip_not_allowed": {"ip_allowlist": ["203.0.113.0/24"]},
    "referrer_not_allowed": {"domain_referrers": ["example.com"]},
    "scope_not_permitted": {"scope_permissions": {"read": ["*"]}},
    "model_not_permitted": {"model_allowlist": ["gpt-z"]},
    "provider_not_permitted": {"provider_allowlist": ["elsewhere"]},
}


async def open_two(stage) -> RunningGateway:
    """A gateway with two providers, of which one has the model."""
    here, elsewhere = await stage.upstream(SERVED), await stage.upstream(SERVED)
    gateway, _ = await stage.gateway(
        SERVED,
        providers={
            "here": stage.provider(here, models=("gpt-x",)),
            "elsewhere": stage.provider(elsewhere, models=("gpt-z",)),
        },
        models={"*": Model(free=True)},
    )
    return gateway


@pytest.mark.parametrize("code", REFUSALS)
async def test_refusals_are_noted_and_not_without_end(stage, caplog, code):
    gateway = await open_two(stage)
    key = await make_key(gateway, **REFUSALS[code])

    for _ in range(20):
        await gateway.ask(ASK, key=key)

    lines = [record for record in caplog.records if record.name == "gateway.security"]
    assert 1 <= len(lines) < 10
    assert {(line.event, line.code) for line in lines} == {("key_misused", code)}
    assert key[21:] not in caplog.text


async def test_a_model_that_nobody_offers_is_no_misuse(stage, caplog):
    gateway = await open_two(stage)
    key = await make_key(gateway, model_allowlist=["gpt-z"])

    answers = [
        await gateway.ask(body, key=key)
        for body in (b'{"model":"nobody\'s","messages":[]}', b'{"model":"a","models":["b"],"messages":[]}')
    ]

    assert [each.status for each in answers] == [404, 404]
    assert not [record for record in caplog.records if record.name == "gateway.security"]


async def test_requests_at_the_control_plane_are_counted_by_route(stage):
    gateway, _ = await stage.gateway(SERVED)
    await gateway.ask(method=b"GET", path=b"/user/balance")
    await gateway.ask(method=b"GET", path=b"/user/api-keys/one", key="gw_live_nobody")
    await gateway.ask(method=b"GET", path=b"/user/api-keys/another", key="gw_live_nobody")

    metrics = await gateway.metrics()

    assert 'gateway_requests_total{route="/user/balance",status_class="2xx",error_type=""} 1' in metrics
    refused = 'route="/user/api-keys/{key_id}",status_class="4xx",error_type="caller_unauthenticated"} 2'
    assert f"gateway_requests_total{{{refused}" in metrics
    assert 'gateway_control_duration_seconds_count{route="/user/api-keys/{key_id}"} 2' in metrics
    assert "another" not in metrics
