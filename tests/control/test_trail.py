"""The audit log: every route that changes something leaves a line, nobody reads another's, and it can be taken away."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import asyncpg
import msgspec
import pytest

from gateway.control import audit
from gateway.control.app import ROUTES
from tests.control.desk import Caller, Desk
from tests.control.test_access import CASES, fill

#: Routes that change something, and leave no line: why.
NOTHING_CHANGES = {
    "DELETE /auth/session": "ends the caller's own session",
    "DELETE /user/sessions/{session_id:int}": "ends one of the caller's own sessions",
    "POST /teams/{account_id:int}/switch": "says where the caller works now",
    **{
        f"POST /admin/refresh-{name}": "has workers read again what is there"
        for name in ("models", "providers", "huggingface-cache")
    },
    "POST /admin/clear-rate-limit-cache": "has workers read again what is there",
}
#: Routes that anybody may call: what they leave is tested with what they do.
OPEN = {route.path for route in ROUTES if route.access == "public"}


class Change(NamedTuple):
    action: str
    body: object = None
    #: Makes what the change is about, where the table of accesses does not: values of the path, and fields of the body.
    make: Callable[[Caller], Awaitable[dict[str, object]]] | None = None


async def somebody(boss: Caller) -> dict[str, object]:
    other = await boss.desk.person()
    return {"user_id": other.user_id}


async def some_account(boss: Caller) -> dict[str, object]:
    other = await boss.desk.person()
    return {"account_id": other.account_id}


async def some_key(boss: Caller) -> dict[str, object]:
    key = await boss.key()
    return {"api_key": key.key_id}


async def own_key(boss: Caller) -> dict[str, object]:
    await boss.key()
    return {}


async def own_limits(boss: Caller) -> dict[str, object]:
    key = await boss.key()
    limits = {f"{unit}_per_{window}": 1 for unit in ("requests", "tokens") for window in ("minute", "hour", "day")}
    return {"updates": [{"key_id": key.key_id, **limits}]}


async def some_price(boss: Caller) -> dict[str, object]:
    await boss.put("/admin/models/prices", {"model": "echo", "prices": {"markup": 2.0}, "reason": "a test"})
    return {"model": "echo"}


#: What each leaves. A new route that changes something belongs here, or above with a reason.
CHANGES: dict[str, Change] = {
    "POST /user/provider-keys": Change("provider_keys.create"),
    "PATCH /user/provider-keys/{provider_key_id}": Change("provider_keys.update"),
    "DELETE /user/provider-keys/{provider_key_id}": Change("provider_keys.delete"),
    "PUT /user/password": Change("users.change_login"),
    "PUT /user/profile": Change("users.update"),
    "DELETE /user/account": Change("users.delete"),
    "POST /teams": Change("accounts.create"),
    "PUT /team": Change("accounts.rename"),
    "PUT /team/members/{user_id:int}": Change("members.update"),
    "DELETE /team/members/{user_id:int}": Change("members.remove"),
    "POST /team/invitations": Change("invitations.create"),
    "DELETE /team/invitations/{invitation_id:int}": Change("invitations.withdraw"),
    "POST /admin/roles/update": Change("roles.update", {"new_role": "user"}, somebody),
    "POST /admin/users/{user_id:int}/suspend": Change("users.suspend"),
    "POST /admin/users/{user_id:int}/activate": Change("users.activate"),
    "POST /admin/accounts/{account_id:int}/suspend": Change("accounts.suspend"),
    "POST /admin/accounts/{account_id:int}/activate": Change("accounts.activate"),
    "POST /admin/add_credits": Change("credits.add", {"credits": 1, "reason": "a test"}, some_account),
    "POST /admin/deduct_credits": Change("credits.deduct", {"credits": 1, "reason": "a test"}, some_account),
    "POST /user/api-keys": Change("api_keys.create"),
    "PUT /user/api-keys/{key_id}": Change("api_keys.update"),
    "DELETE /user/api-keys/{key_id}": Change("api_keys.revoke"),
    "POST /user/api-keys/{key_id}/rotate": Change("api_keys.rotate"),
    "POST /user/api-keys/rotate": Change("api_keys.rotate", {}, own_key),
    "PUT /user/rate-limits/{key_id}": Change("rate_limits.update"),
    "POST /user/rate-limits/bulk-update": Change("rate_limits.update", {}, own_limits),
    "POST /admin/assign-plan": Change("plans.assign", {"plan_id": "dev"}, some_account),
    "POST /plans/assign": Change("plans.assign", {"plan_id": "dev"}, some_account),
    "POST /admin/settle-rejects/{reject_id:int}/retry": Change("usage.retry"),
    "POST /admin/settle-rejects/{reject_id:int}/discard": Change("usage.discard"),
    "PUT /admin/models/prices": Change("prices.set"),
    "DELETE /admin/models/prices": Change("prices.drop", {"reason": "a test"}, some_price),
    "POST /admin/limit": Change("api_keys.set_limits", {"requests_per_minute": 5}, some_key),
    "POST /admin/rate-limits": Change("api_keys.set_limits", {"requests_per_minute": 5}, some_key),
}
#: What changed there is a password or a name, and neither is written down.
UNSAID = {"users.change_login", "accounts.rename"}
#: Whose way in is a mail: tested where mails are read.
BY_MAIL = {"POST /team/invitations/accept"}

CHANGING = [
    f"{route.method} {path}" for route in ROUTES if route.writes and route.path not in OPEN for path in route.paths
]


def test_every_route_that_changes_something_is_accounted_for():
    assert sorted(CHANGING) == sorted([*CHANGES, *NOTHING_CHANGES, *BY_MAIL])


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_leaves_a_line(desk: Desk, name: str):
    method, _, pattern = name.partition(" ")
    change, case = CHANGES[name], CASES[name]
    boss = await desk.person(role="admin")
    make = change.make or case.make
    made = {} if make is None else await make(boss)
    body = case.body if change.body is None else {**change.body, **made}
    before = await desk.parts.database.fetch_value("select coalesce(max(id), 0) from audit_log")

    answer = await boss.ask(method, fill(pattern, made), body, headers={"user-agent": "a test"})

    assert answer.status < 300, answer
    row = await desk.parts.database.fetch_row(
        "select * from audit_log where id > $1 and action = $2 order by id limit 1", before, change.action
    )
    assert row is not None, f"no {change.action}"
    assert (row["actor_kind"], row["actor_user_id"]) == ("user", boss.user_id)
    assert row["user_agent"] == "a test"
    assert row["request_id"] == answer.headers["x-request-id"]
    assert change.action in UNSAID or row["before"] is not None or row["after"] is not None


async def test_what_is_refused_leaves_none(desk: Desk):
    boss = await desk.person(role="admin")
    before = await desk.parts.database.fetch_value("select count(*) from audit_log")

    refused = await boss.post("/admin/add_credits", {"account_id": 2**62, "credits": 1, "reason": "a test"})

    assert refused.status == 404
    assert await desk.parts.database.fetch_value("select count(*) from audit_log") == before


async def test_the_log_is_only_ever_added_to(desk: Desk):
    ann = await desk.person()
    await write(desk, ann)

    for statement in ("update audit_log set reason = 'another'", "delete from audit_log", "truncate audit_log"):
        with pytest.raises(asyncpg.PostgresError, match="only ever added"):
            await desk.parts.database.execute(statement)


async def test_an_account_sees_its_own_lines_only_and_an_administrator_everybodys(desk: Desk):
    ann, bob = await desk.person(), await desk.person()
    boss = await desk.person(role="admin")
    await write(desk, ann, action="api_keys.create", object_id="hers")
    await write(desk, bob, action="api_keys.create", object_id="his")

    hers = (await ann.get("/user/audit-logs")).json["logs"]
    keys = (await ann.get("/user/api-keys/audit-logs")).json
    asked = (await ann.get("/user/api-keys/audit-logs", key_id="his")).json
    other = await ann.ask("GET", "/user/audit-logs", account_id=bob.account_id)
    everybodys = (await boss.get("/admin/audit-logs", limit=1000)).json["logs"]

    assert {each["object_id"] for each in hers} == {"hers"}
    assert ([each["key_id"] for each in keys["logs"]], keys["total_logs"]) == (["hers"], 1)
    assert (asked["logs"], asked["total_logs"]) == ([], 0)
    assert {each["object_id"] for each in other.json["logs"]} == {"hers"}
    assert {"hers", "his"} <= {each["object_id"] for each in everybodys}


async def test_members_of_an_account_do_not_read_its_log(desk: Desk):
    ann = await desk.person()
    member = await desk.person(account_id=ann.account_id, account_role="member")

    assert (await member.get("/user/audit-logs")).status == 403
    assert (await member.get("/user/audit-logs/export")).status == 403


async def test_the_view_of_keys_has_the_fields_that_clients_read(desk: Desk):
    ann = await desk.person()
    await write(desk, ann, action="api_keys.revoke", object_id="gone")
    await write(desk, ann, action="api_keys.rotate", object_id="hers", before={"name": "a"}, after={"name": "b"})

    found = (await ann.get("/user/api-keys/audit-logs", action="rotate")).json

    assert (found["status"], found["total_logs"], found["next_cursor"]) == ("success", 1, None)
    assert found["logs"][0].keys() == {
        "id",
        "key_id",
        "user_id",
        "action",
        "details",
        "ip",
        "user_agent",
        "timestamp",
    }
    assert found["logs"][0]["action"] == "rotate"
    assert found["logs"][0]["details"] == {"before": {"name": "a"}, "after": {"name": "b"}}
    assert (await ann.get("/user/api-keys/audit-logs", action="create")).json["total_logs"] == 0
    deleted = (await ann.get("/user/api-keys/audit-logs", action="delete")).json
    assert [(each["action"], each["key_id"]) for each in deleted["logs"]] == [("delete", "gone")]
    assert (await ann.get("/user/api-keys/audit-logs", action="look")).status == 422
    assert (await ann.get("/user/api-keys/audit-logs", start_date="yesterday")).status == 422


async def test_filters_and_pages(desk: Desk):
    ann = await desk.person()
    for number in range(25):
        action = "api_keys.update" if number % 5 == 0 else "api_keys.create"
        await write(desk, ann, action=action, object_id=f"key{number}")

    found: list[str] = []
    cursor = None
    while True:
        place = {} if cursor is None else {"cursor": cursor}
        page = (await ann.get("/user/audit-logs", limit=4, **place)).json
        found += [each["object_id"] for each in page["logs"]]
        if (cursor := page["next_cursor"]) is None:
            break
    updates = (await ann.get("/user/audit-logs", action="api_keys.update")).json["logs"]
    one = (await ann.get("/user/audit-logs", object_kind="key", object_id="key7")).json["logs"]
    skipped = (await ann.get("/user/audit-logs", limit=5, offset=20)).json["logs"]
    later = (await ann.ask("GET", "/user/audit-logs", **{"from": "2999-01-01T00:00:00Z"})).json["logs"]
    earlier = (await ann.ask("GET", "/user/audit-logs", to="2999-01-01T00:00:00", limit=1)).json["logs"]

    assert found == [f"key{number}" for number in reversed(range(25))]
    assert len(updates) == 5
    assert [each["object_id"] for each in one] == ["key7"]
    assert [each["object_id"] for each in skipped] == ["key4", "key3", "key2", "key1", "key0"]
    assert later == []
    assert len(earlier) == 1


async def test_it_can_be_taken_away_as_json_lines(desk: Desk):
    ann = await desk.person()
    await desk.parts.database.execute(
        "insert into audit_log (actor_kind, account_id, action, object_kind, object_id, after) "
        "select 'system', $1, 'api_keys.create', 'key', n::text, '{}' from generate_series(1, 1234) n",
        ann.account_id,
    )

    answer = await ann.get("/user/audit-logs/export")

    lines = [msgspec.json.decode(line) for line in answer.body.splitlines()]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [line["object_id"] for line in lines] == [str(number) for number in range(1, 1235)]
    assert (await ann.get("/user/audit-logs/export", action="api_keys.delete")).body == b""


async def test_no_secret_gets_in(desk: Desk):
    ann = await desk.person()

    with pytest.raises(ValueError, match="may not be in the audit log"):
        await write(desk, ann, after={"key": {"secret": "x"}})


async def write(
    desk: Desk,
    ann: Caller,
    *,
    action: str = "api_keys.create",
    object_id: str = "key",
    before: object = None,
    after: object = None,
) -> None:
    """A line about a key of hers."""
    who = audit.By(kind="user", user_id=ann.user_id, ip="192.0.2.7", user_agent="a test")
    async with desk.parts.database.transaction() as session:
        await audit.record(
            session, who, action, ("key", object_id), account_id=ann.account_id, before=before, after=after
        )
