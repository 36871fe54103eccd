"""Limits: what is shown is what the limiter goes by, and nobody raises their own above the plan."""

from datetime import UTC, datetime

from gateway.kernel.keys import CHANNEL
from gateway.kernel.limits import Limits, combine_limits
from gateway.kernel.verbs import Admitted
from tests.control.desk import Caller, Desk
from tests.control.test_keys import make, six


async def use(caller: Caller, key_id: object, limits: bytes, *, requests: int, tokens: int = 0) -> None:
    """Let requests in as the data plane does."""
    ledger = caller.desk.parts.deps.ledger
    scopes = ledger.scopes(account_id=caller.account_id, key_id=str(key_id), limits=limits)
    for _ in range(requests):
        admission = await ledger.admit(caller.desk.parts.new_id(), scopes, hold_nanos=0, tokens=tokens)
        assert isinstance(admission, Admitted)


async def test_limits_are_the_plans_and_the_keys_own(desk: Desk):
    ann = await desk.person(plan="free")
    live = await make(ann, key_name="live", limits={"requests_per_minute": 5, "requests_per_day": 10})
    test = await make(ann, key_name="test", environment_tag="test")

    shown = (await ann.get("/user/rate-limits")).json
    keys = {key["key_id"]: key for key in shown["keys"]}

    assert shown["plan"] == "free"
    assert shown["rate_limits"]["requests_per_day"] == 1000
    assert keys[live["id"]]["rate_limits"]["requests_per_minute"] == 5
    effective = keys[live["id"]]["effective_limits"]
    assert (effective["requests_per_day"], effective["tokens_per_day"]) == (10, 100_000)
    # Half of the plan, where a key is not live.
    effective = keys[test["id"]]["effective_limits"]
    assert (effective["requests_per_day"], effective["concurrency"]) == (500, 2)


async def test_limits_are_set_within_the_plan(desk: Desk):
    ann = await desk.person(plan="free")
    made = await make(ann, limits={"concurrency": 3})
    path = f"/user/rate-limits/{made['id']}"

    done = await ann.put(path, six(7))
    above = await ann.put(path, six(7) | {"requests_per_day": 1001})
    missing = await ann.put(path, {"requests_per_minute": 1})
    negative = await ann.put(path, six(-1))

    assert done.json["rate_limits"]["tokens_per_hour"] == 7
    # What is not one of the six stays.
    assert done.json["rate_limits"]["concurrency"] == 3
    assert done.json["effective_limits"]["tokens_per_month"] == 1_000_000
    assert [above.status, missing.status, negative.status] == [403, 422, 422]
    assert above.json["code"] == "above_plan"
    assert (await ann.get(f"/user/api-keys/{made['id']}")).json["limits"]["requests_per_day"] == 7


async def test_several_keys_are_changed_all_or_none(desk: Desk):
    ann, bob = await desk.person(), await desk.person()
    mine = [await make(ann, key_name=f"key {n}") for n in range(3)]
    his = await make(bob)

    def body(*keys: dict[str, object], number: int = 4) -> dict[str, object]:
        return {"updates": [{"key_id": key["id"], **six(number)} for key in keys]}

    foreign = await ann.post("/user/rate-limits/bulk-update", body(*mine, his))
    above = await ann.post("/user/rate-limits/bulk-update", body(*mine, number=10**9))
    twice = await ann.post("/user/rate-limits/bulk-update", body(mine[0], mine[0]))
    untouched = (await ann.get("/user/rate-limits")).json["keys"]
    done = await ann.post("/user/rate-limits/bulk-update", body(*mine))

    assert [foreign.status, above.status, twice.status] == [404, 403, 422]
    assert {key["rate_limits"]["requests_per_day"] for key in untouched} == {None}
    assert {each["key_id"] for each in done.json["updated_keys"]} == {key["id"] for key in mine}
    assert (await bob.get(f"/user/api-keys/{his['id']}")).json["limits"]["requests_per_day"] is None


async def test_usage_is_what_the_limiter_has_counted(desk: Desk):
    ann = await desk.person(plan="free")
    made = await make(ann, limits={"requests_per_hour": 10, "tokens_per_hour": 1000})
    plan = Limits(requests_per_day=1000, requests_per_month=10_000, tokens_per_day=100_000, concurrency=5)
    packed = combine_limits(plan=plan, key=Limits(requests_per_hour=10, tokens_per_hour=1000))

    await use(ann, made["id"], packed, requests=4, tokens=100)
    by_hour = (await ann.get(f"/user/rate-limits/usage/{made['id']}", time_window="hour")).json
    by_day = (await ann.get(f"/user/rate-limits/usage/{made['id']}", time_window="day")).json

    assert by_hour["key"]["requests"]["limit"] == 10
    assert 3.9 < by_hour["key"]["requests"]["used"] <= 4
    assert by_hour["key"]["requests"]["remaining"] == 6
    assert 399 < by_hour["key"]["tokens"]["used"] <= 400
    assert datetime.fromisoformat(by_hour["key"]["requests"]["reset_at"]) > datetime.now(UTC)
    assert by_hour["account"]["requests"] == {"limit": None, "used": None, "remaining": None, "reset_at": None}
    assert by_day["key"]["requests"]["limit"] is None
    assert by_day["account"]["requests"]["limit"] == 1000
    assert 3.9 < by_day["account"]["requests"]["used"] <= 4
    assert (by_day["account"]["concurrent_requests"], by_day["account"]["concurrency_limit"]) == (4, 5)
    assert (await ann.get(f"/user/rate-limits/usage/{made['id']}", time_window="year")).status == 422


async def test_administrators_see_who_comes_near_a_limit(desk: Desk):
    boss, ann, bob = await desk.person(role="admin"), await desk.person(plan="none"), await desk.person(plan="none")
    for caller, requests in ((ann, 97), (bob, 10)):
        plan = Limits(requests_per_day=100, requests_per_month=1000, tokens_per_day=10_000, tokens_per_month=100_000)
        await use(caller, (await make(caller))["id"], combine_limits(plan=plan), requests=requests)
        await desk.parts.database.execute(
            "insert into activity_days (account_id, day, provider, model, requests, failures, input_tokens, "
            "output_tokens, cost_nanos) values ($1, (now() at time zone 'UTC')::date, 'p', 'm', $2, 0, 0, 0, 0)",
            caller.account_id,
            requests * 1000,
        )

    alerts = (await boss.get("/admin/rate-limits/alerts")).json
    system = (await boss.get("/admin/rate-limits/system")).json

    mine = [alert for alert in alerts["alerts"] if alert["account_id"] in (ann.account_id, bob.account_id)]
    assert [(alert["account_id"], alert["limit_name"], alert["level"]) for alert in mine] == [
        (ann.account_id, "requests_per_day", "critical")
    ]
    assert 96 < mine[0]["usage_percentage"] <= 97
    plans = {each["plan"]: each for each in system["plans"]}
    assert plans["none"]["rate_limits"]["requests_per_day"] == 100
    assert plans["none"]["accounts"] >= 2


async def test_an_account_is_put_on_a_plan(desk: Desk):
    boss, ann = await desk.person(role="admin"), await desk.person(plan="free")
    made = await make(ann)
    subscription = desk.parts.redis.subscribe(CHANNEL)
    assert await anext(subscription) is None

    assigned = await boss.post(
        "/admin/assign-plan", {"user_id": ann.user_id, "plan_id": "team", "reason": "she asked"}
    )
    told = await anext(subscription)

    assert assigned.json["old_plan"] == "free"
    assert assigned.json["account_id"] == ann.account_id
    assert assigned.json["keys"] == 1
    assert assigned.json["rate_limits"]["concurrency"] == 50
    assert told is not None
    assert told.data.decode() == made["id"]
    assert (await ann.get("/user/rate-limits")).json["plan"] == "team"
    unknown = await boss.post("/admin/assign-plan", {"account_id": ann.account_id, "plan_id": "nothing"})
    nobody = await boss.post("/admin/assign-plan", {"account_id": 2**62, "plan_id": "free"})
    neither = await boss.post("/plans/assign", {"plan_id": "free"})
    assert [unknown.status, nobody.status, neither.status] == [422, 404, 422]
    await ann.post("/teams", {"name": "second"})
    several = await boss.post("/admin/assign-plan", {"user_id": ann.user_id, "plan_id": "free"})
    assert (several.status, several.json["code"]) == (409, "several_accounts")
