"""Keys: what answers say, who may, and what becomes of two that want the same."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gateway.control.accounts.keys import KEYS_MAX
from gateway.kernel.keys import CHANNEL, digest, public_id
from tests.control.desk import PEPPER, Caller, Desk

KEY_FIELDS = {
    "id",
    "key_name",
    "environment_tag",
    "is_active",
    "is_primary",
    "days_remaining",
    "requests_used",
    "requests_remaining",
    "usage_percentage",
    "scope_permissions",
    "ip_allowlist",
    "domain_referrers",
    "last_used_at",
    "security_status",
}
NARROW = {
    "key_name": "narrow",
    "environment_tag": "development",
    "scope_permissions": {"read": ["inference"], "write": ["inference", "api_keys"]},
    "expiration_days": 30,
    "max_requests": 500,
    "ip_allowlist": ["203.0.113.7", "2001:db8::/32", "10.1.2.3/8"],
    "domain_referrers": ["https://App.Example.com/start", "*.example.org"],
    "model_allowlist": ["gpt-*", "claude"],
    "provider_allowlist": ["echo"],
    "limits": {"requests_per_minute": 10, "concurrency": 2},
    "budgets": [{"window": "month", "limit_usd": 12.5}, {"window": "day", "limit_usd": 1, "hard": False}],
}


async def make(owner: Caller, **changes: object) -> dict[str, object]:
    answer = await owner.post("/user/api-keys", {"key_name": "a key", **changes})
    assert answer.status == 200, answer
    return dict(answer.json)


async def test_a_key_is_shown_once_and_hashed_at_rest(desk: Desk):
    ann = await desk.person()

    made = await make(ann)
    text = str(made["api_key"])
    row = await desk.parts.database.fetch_row("select * from keys where id = $1", made["id"])
    listed = await ann.get("/user/api-keys")
    shown = await ann.get(f"/user/api-keys/{made['id']}")

    assert text.startswith("gw_live_")
    assert public_id(text) == made["id"]
    assert made["status"] == "success"
    assert made["security_features"] == {
        "hashed_at_rest": True,
        "shown_once": True,
        "ip_restrictions": False,
        "domain_restrictions": False,
        "expiration": False,
        "usage_limits": False,
        "audit_logging": True,
    }
    assert row is not None
    assert row["digest"] == digest(text, pepper=PEPPER.encode())
    assert text not in str(dict(row))
    for answer in (listed, shown):
        assert text.encode() not in answer.body
        assert text[20:60].encode() not in answer.body
    assert listed.json["keys"][0]["key_prefix"] == f"gw_live_{made['id']}"
    assert listed.json["keys"][0]["last_four"] == text[-4:]
    assert listed.headers["cache-control"] == "no-store"


async def test_a_listed_key_has_the_fields_that_clients_read(desk: Desk):
    ann = await desk.person(plan="team")
    made = await make(ann, **NARROW)

    listed = (await ann.get("/user/api-keys")).json
    (key,) = listed["keys"]

    assert set(key) >= KEY_FIELDS
    assert listed["status"] == "success"
    assert listed["total_keys"] == 1
    assert key["id"] == made["id"]
    assert key["environment_tag"] == "development"
    assert key["key_prefix"] == f"gw_dev_{made['id']}"
    assert key["scope_permissions"] == {"read": ["inference"], "write": ["inference", "api_keys"]}
    assert key["days_remaining"] in (29, 30)
    assert (key["requests_used"], key["max_requests"], key["requests_remaining"]) == (0, 500, 500)
    assert key["usage_percentage"] == 0
    assert key["ip_allowlist"] == ["203.0.113.7/32", "2001:db8::/32", "10.0.0.0/8"]
    assert key["domain_referrers"] == ["app.example.com", "*.example.org"]
    assert key["model_allowlist"] == ["gpt-*", "claude"]
    assert key["provider_allowlist"] == ["echo"]
    assert (key["limits"]["requests_per_minute"], key["limits"]["concurrency"]) == (10, 2)
    assert {each["window"]: (each["limit_usd"], each["hard"]) for each in key["budgets"]} == {
        "day": (1, False),
        "month": (12.5, True),
    }
    assert key["last_used_at"] is None
    assert key["is_active"] is True
    assert key["is_primary"] is False
    assert key["security_status"] == {
        "is_revoked": False,
        "is_expired": False,
        "expires_soon": False,
        "is_scoped": True,
        "has_ip_restrictions": True,
        "has_domain_restrictions": True,
        "has_model_restrictions": True,
        "has_provider_restrictions": True,
        "has_expiration": True,
        "has_usage_limit": True,
        "is_nearly_used_up": False,
        "has_limits": True,
        "has_budgets": True,
    }


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"key_name": " "}, 422),
        ({"key_name": "x" * 201}, 422),
        ({"environment_tag": "production"}, 422),
        ({"scope_permissions": {"execute": ["*"]}}, 422),
        ({"scope_permissions": {"read": ["everything"]}}, 422),
        ({"expiration_days": 0}, 422),
        ({"max_requests": 0}, 422),
        ({"ip_allowlist": ["somewhere"]}, 422),
        ({"ip_allowlist": ["10.0.0.0/33"]}, 422),
        ({"ip_allowlist": ["10.0.0.1"] * 1001}, 422),
        ({"domain_referrers": ["not a host"]}, 422),
        ({"domain_referrers": ["*"]}, 422),
        ({"model_allowlist": ["a*b"]}, 422),
        ({"provider_allowlist": ["nobody"]}, 422),
        ({"budgets": [{"window": "year", "limit_usd": 1}]}, 422),
        ({"budgets": [{"window": "day", "limit_usd": 1}] * 2}, 422),
        ({"limits": {"requests_per_day": -1}}, 422),
        ({"limits": {"requests_per_day": 1001}}, 403),
        ({"environment_tag": "test", "limits": {"requests_per_day": 501}}, 403),
    ],
)
async def test_what_a_key_can_not_be(desk: Desk, changes: dict[str, object], status: int):
    ann = await desk.person(plan="free")

    answer = await ann.post("/user/api-keys", {"key_name": "a key", **changes})

    assert answer.status == status, answer
    assert (await ann.get("/user/api-keys")).json["total_keys"] == 0


async def test_the_plan_caps_the_requests_of_a_life(desk: Desk):
    ann = await desk.person(plan="free")

    assert (await make(ann, max_requests=10**9))["max_requests"] == 10_000


async def test_a_change_leaves_the_rest_as_it_is(desk: Desk):
    ann = await desk.person(plan="team")
    made = await make(ann, **NARROW)
    path = f"/user/api-keys/{made['id']}"

    changed = (await ann.put(path, {"key_name": "renamed", "model_allowlist": None, "is_active": False})).json
    back = (await ann.put(path, {"is_active": True, "expiration_days": None, "budgets": None})).json

    before = (await ann.get(path)).json
    assert changed["status"] == "success"
    assert changed["api_key"] is None
    key = changed["updated_key"]
    assert (key["key_name"], key["model_allowlist"], key["is_active"]) == ("renamed", [], False)
    assert key["disabled_at"] is not None
    for name in ("ip_allowlist", "domain_referrers", "max_requests", "limits", "budgets", "scope_permissions"):
        assert key[name] == made[name], name
    assert back["updated_key"]["is_active"] is True
    assert back["updated_key"]["expiration_date"] is None
    assert back["updated_key"]["budgets"] == []
    assert back["updated_key"] == before


async def test_a_name_is_free_again_when_its_key_is_revoked(desk: Desk):
    ann = await desk.person()
    made = await make(ann, key_name="taken")

    taken = await ann.post("/user/api-keys", {"key_name": "taken"})
    other = await make(ann, key_name="other")
    renamed = await ann.put(f"/user/api-keys/{other['id']}", {"key_name": "taken"})
    deleted = await ann.delete(f"/user/api-keys/{made['id']}", {"confirmation": "DELETE_KEY"})
    again = await ann.post("/user/api-keys", {"key_name": "taken"})

    assert [(each.status, each.json["code"]) for each in (taken, renamed)] == [(409, "name_taken")] * 2
    assert deleted.json["deleted_key_id"] == made["id"]
    assert again.status == 200


async def test_of_many_who_want_a_name_one_gets_it(desk: Desk):
    ann = await desk.person()

    answers = await asyncio.gather(*(ann.post("/user/api-keys", {"key_name": "same"}) for _ in range(12)))

    assert sorted(answer.status for answer in answers) == [200] + [409] * 11
    assert {answer.json["code"] for answer in answers if answer.status == 409} == {"name_taken"}


async def test_a_repeat_shows_the_same_key_again(desk: Desk):
    ann = await desk.person()
    headers = {"idempotency-key": "make"}

    first = await ann.post("/user/api-keys", {"key_name": "once"}, headers=headers)
    again = await ann.post("/user/api-keys", {"key_name": "once"}, headers=headers)

    assert first.body == again.body
    assert again.headers["idempotency-replayed"] == "true"
    assert (await ann.get("/user/api-keys")).json["total_keys"] == 1


async def test_the_word_is_asked_for(desk: Desk):
    ann = await desk.person()
    made = await make(ann)
    path = f"/user/api-keys/{made['id']}"

    wrong = await ann.delete(path, {"confirmation": "DELETE"})
    right = await ann.delete(path, {"confirmation": "DELETE_KEY"})
    gone = await ann.delete(path, {"confirmation": "DELETE_KEY"})
    shown = (await ann.get(path)).json

    assert [wrong.status, right.status, gone.status] == [422, 200, 404]
    assert shown["is_active"] is False
    assert shown["security_status"]["is_revoked"] is True
    assert (await ann.get("/user/api-keys")).json["keys"] == []
    assert len((await ann.get("/user/api-keys", include_revoked=True)).json["keys"]) == 1


async def test_every_change_is_told_and_written_down(desk: Desk):
    ann = await desk.person(plan="team")
    subscription = desk.parts.redis.subscribe(CHANNEL)
    assert await anext(subscription) is None
    made = await make(ann)
    path = f"/user/api-keys/{made['id']}"
    await ann.put(path, {"max_requests": 7})
    await ann.post(f"{path}/rotate", {})
    await ann.put(f"/user/rate-limits/{made['id']}", six(3))
    await ann.delete(path, {"confirmation": "DELETE_KEY"})
    async with asyncio.timeout(30):
        told = [message.data.decode() for _ in range(5) if (message := await anext(subscription)) is not None]

    assert told == [made["id"]] * 5
    rows = await desk.parts.database.fetch(
        "select action, before::text, after::text, actor_user_id from audit_log where object_id = $1 order by id",
        made["id"],
    )
    assert [row["action"] for row in rows] == [
        "api_keys.create",
        "api_keys.update",
        "api_keys.rotate",
        "rate_limits.update",
        "api_keys.revoke",
    ]
    assert {row["actor_user_id"] for row in rows} == {ann.user_id}
    assert (rows[1]["before"], rows[1]["after"]) == ('{"max_requests": null}', '{"max_requests": 7}')
    assert all(str(made["api_key"])[21:] not in str(dict(row)) for row in rows)


async def test_a_member_changes_what_is_theirs_and_an_administrator_everything(desk: Desk):
    ann = await desk.person()
    bob = await desk.person(account_id=ann.account_id, account_role="member")
    eve = await desk.person(account_id=ann.account_id, account_role="admin")
    hers, his = await make(ann, key_name="hers"), await make(bob, key_name="his")

    refused = [
        await bob.put(f"/user/api-keys/{hers['id']}", {"key_name": "mine"}),
        await bob.post(f"/user/api-keys/{hers['id']}/rotate", {}),
        await bob.delete(f"/user/api-keys/{hers['id']}", {"confirmation": "DELETE_KEY"}),
        await bob.put(f"/user/rate-limits/{hers['id']}", six(1)),
    ]
    done = [
        await bob.put(f"/user/api-keys/{his['id']}", {"key_name": "mine"}),
        await eve.put(f"/user/api-keys/{hers['id']}", {"key_name": "yours"}),
    ]

    assert [answer.status for answer in refused] == [403] * 4
    assert [answer.status for answer in done] == [200] * 2


async def test_nobody_gets_more_through_a_key_than_it_has(desk: Desk):
    ann = await desk.person(plan="team")
    full, limited = await make(ann, key_name="full"), await make(ann, key_name="limited", max_requests=5)
    scoped = await make(ann, key_name="scoped", scope_permissions={"write": ["api_keys"], "read": ["*"]})
    by_limited, by_scoped = by(desk, limited), by(desk, scoped)

    refused = {
        "another": await by_limited.post("/user/api-keys", {"key_name": "more"}),
        "itself": await by_limited.put(f"/user/api-keys/{limited['id']}", {"max_requests": None}),
        "limits": await by_limited.put(f"/user/rate-limits/{limited['id']}", six(1)),
        "the text of a better one": await by_limited.post(f"/user/api-keys/{full['id']}/rotate", {}),
        "all texts": await by_limited.post("/user/api-keys/rotate", {}),
        "scopes": await by_scoped.post("/user/api-keys", {"key_name": "m", "scope_permissions": {"write": ["*"]}}),
        "all scopes": await by_scoped.post("/user/api-keys", {"key_name": "more", "scope_permissions": {}}),
        "scopes of its own": await by_scoped.put(f"/user/api-keys/{scoped['id']}", {"scope_permissions": None}),
        "a text with more scopes": await by_scoped.post(f"/user/api-keys/{full['id']}/rotate", {}),
        "all texts with more": await by_scoped.post("/user/api-keys/rotate", {}),
    }
    inherited = await by_scoped.post("/user/api-keys", {"key_name": "inherited"})
    itself = await by_limited.post(f"/user/api-keys/{limited['id']}/rotate", {})

    assert {name: answer.status for name, answer in refused.items()} == dict.fromkeys(refused, 403)
    assert inherited.json["scope_permissions"] == {"write": ["api_keys"], "read": ["*"]}
    assert itself.status == 200
    assert (await ann.get(f"/user/api-keys/{limited['id']}")).json["max_requests"] == 5


async def test_a_key_is_held_to_its_address_here_as_well(desk: Desk):
    ann = await desk.person()
    here = by(desk, await make(ann, key_name="here", ip_allowlist=["127.0.0.1"]))
    away = by(desk, await make(ann, key_name="away", ip_allowlist=["203.0.113.0/24"]))
    paged = by(desk, await make(ann, key_name="paged", domain_referrers=["*.example.com"]))

    assert (await here.get("/user/balance")).status == 200
    refused = await away.get("/user/balance")
    assert (refused.status, refused.json["code"]) == (403, "ip_not_allowed")
    assert (await paged.get("/user/balance")).json["code"] == "referrer_not_allowed"
    good = await paged.ask("GET", "/user/balance", headers={"referer": "https://app.example.com/x"})
    assert good.status == 200


async def test_pages_lead_through_all_keys(desk: Desk):
    ann = await desk.person()
    made = [str((await make(ann, key_name=f"key {n}", environment_tag="test"))["id"]) for n in range(7)]
    await make(ann, key_name="live")

    seen: list[str] = []
    query: dict[str, object] = {"limit": 3, "environment_tag": "test"}
    while True:
        page = (await ann.get("/user/api-keys", **query)).json
        seen += [key["id"] for key in page["keys"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]

    assert seen == made[::-1]
    assert page["total_keys"] == 8
    skipped = (await ann.get("/user/api-keys", limit=2, offset=2, environment_tag="test")).json["keys"]
    assert [key["id"] for key in skipped] == made[::-1][2:4]
    assert (await ann.get("/user/api-keys", cursor="bm9uZQ")).status == 422


async def test_an_account_has_so_many_keys(desk: Desk):
    ann = await desk.person()
    await desk.parts.database.execute(
        "insert into keys (id, account_id, name, environment, digest, last_four) "
        "select substr(md5($1::bigint::text || n), 1, 12), $1::bigint, 'key ' || n, 'live', sha256('x'), 'xxxx' "
        "from generate_series(1, $2::int) n",
        ann.account_id,
        KEYS_MAX - 1,
    )

    last = await ann.post("/user/api-keys", {"key_name": "last"})
    more = await ann.post("/user/api-keys", {"key_name": "one more"})

    assert last.status == 200
    assert (more.status, more.json["code"]) == (409, "too_many_keys")


async def test_usage_is_what_was_settled(desk: Desk):
    ann = await desk.person()
    made = await make(ann, max_requests=10)
    today = datetime.now(UTC)
    await desk.parts.database.execute(
        "insert into usage_totals (account_id, key_id, requests, cost_nanos, last_used_at) "
        "values ($1, $2, 8, 2500000000, $3)",
        ann.account_id,
        made["id"],
        today,
    )
    for day, requests in ((today.date(), 5), (today.date() - timedelta(days=400), 3)):
        await desk.parts.database.execute(
            "insert into usage_days (account_id, day, key_id, model, requests, input_tokens, output_tokens, cost_nanos) "
            "values ($1, $2, $3, 'm', $4, 10, 20, 1250000000)",
            ann.account_id,
            day,
            made["id"],
            requests,
        )

    of_all = (await ann.get("/user/api-keys/usage")).json
    of_one = (await ann.get(f"/user/api-keys/{made['id']}/usage", days=7)).json
    key = (await ann.get(f"/user/api-keys/{made['id']}")).json

    assert (of_all["total_keys"], of_all["active_keys"], of_all["total_requests"]) == (1, 1, 8)
    assert of_all["total_cost"] == 2.5
    assert of_all["keys"][0]["requests_remaining"] == 2
    assert of_one["total"] == {"requests": 8, "tokens": 60, "cost": 2.5}
    assert of_one["today"] == {"requests": 5, "tokens": 30, "cost": 1.25}
    assert [each["requests"] for each in of_one["daily_stats"]] == [5]
    assert (key["usage_percentage"], key["requests_remaining"]) == (80, 2)
    assert key["security_status"]["is_nearly_used_up"] is True
    assert datetime.fromisoformat(key["last_used_at"]) == today


def by(desk: Desk, made: dict[str, object]) -> Caller:
    """A caller who presents a key."""
    text = str(made["api_key"])
    return Caller(desk, {"authorization": f"Bearer {text}"}, token=text, key_id=str(made["id"]))


def six(number: int) -> dict[str, int]:
    return {f"{unit}_per_{window}": number for unit in ("requests", "tokens") for window in ("minute", "hour", "day")}
