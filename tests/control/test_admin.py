"""What administrators do: find people, shut them out, give and take credit, limit keys."""

import asyncio
from datetime import UTC, datetime

import pytest

from gateway.kernel.journal import credit
from tests.control.desk import Caller, Desk


@pytest.fixture
async def boss(desk: Desk) -> Caller:
    return await desk.person(role="admin")


async def test_people_are_found_by_how_their_names_begin(desk: Desk, boss: Caller):
    ann = await desk.person()
    tag = f"zz{desk.parts.new_id()[-8:]}".lower()
    database = desk.parts.database
    await database.execute(
        "update users set username = $2, name = $3 where id = $1", ann.user_id, f"{tag.upper()}-user", "100%_Ann"
    )

    for search in (ann.email, ann.email[:12].upper(), tag, f"{tag}-U", "100%_a", str(ann.user_id)):
        found = (await boss.get("/admin/users", search=search, limit=1000)).json
        assert ann.user_id in [each["id"] for each in found["users"]], search
        assert found["total"] == len(found["users"])
    for search in (ann.email[1:], "%", "_", "100xx", "nobody at all"):
        found = (await boss.get("/admin/users", search=search)).json
        assert ann.user_id not in [each["id"] for each in found["users"]], search


async def test_people_are_listed_with_their_account_and_its_credit(desk: Desk, boss: Caller):
    ann = await desk.person(plan="dev")
    await credit(
        desk.parts.database,
        ann.account_id,
        type="bonus",
        amount_nanos=2_500_000_000,
        idempotency_key=f"{ann.account_id} bonus",
    )

    [found] = (await boss.get("/admin/users", search=ann.email)).json["users"]
    view = (await boss.get(f"/admin/users/{ann.user_id}")).json
    account = (await boss.get(f"/admin/accounts/{ann.account_id}")).json

    assert (found["account_id"], found["credits"], found["plan"]) == (ann.account_id, 2.5, "dev")
    assert [(each["account_id"], each["role"], each["credits"]) for each in view["accounts"]] == [
        (ann.account_id, "owner", 2.5)
    ]
    assert (account["credits"], account["status"]) == (2.5, "active")
    assert [each["user_id"] for each in account["members"]] == [ann.user_id]
    assert "password" not in str(view)


async def test_an_account_shows_when_its_keys_were_last_used(desk: Desk, boss: Caller):
    ann = await desk.person()
    used, idle = await ann.key(), await ann.key()
    at = datetime.now(UTC)
    await desk.parts.database.execute(
        "insert into usage_totals (account_id, key_id, requests, cost_nanos, last_used_at) values ($1, $2, 1, 0, $3)",
        ann.account_id,
        used.key_id,
        at,
    )

    account = (await boss.get(f"/admin/accounts/{ann.account_id}")).json

    last_used = {each["id"]: each["last_used_at"] for each in account["keys"]}
    assert datetime.fromisoformat(last_used[used.key_id]) == at
    assert last_used[idle.key_id] is None


async def test_lists_go_on_by_cursor_and_by_offset(desk: Desk, boss: Caller):
    role = "developer"
    people = [await desk.person(role=role) for _ in range(7)]
    for path, key, field, extra in (
        ("/admin/users", "users", "id", {"role": role}),
        ("/admin/balance", "accounts", "account_id", {"plan": "free"}),
    ):
        total = (await boss.get(path, limit=1, **extra)).json["total"]
        by_cursor: list[int] = []
        cursor = None
        while True:
            place = {} if cursor is None else {"cursor": cursor}
            page = (await boss.get(path, limit=3, **place, **extra)).json
            by_cursor += [each[field] for each in page[key]]
            if (cursor := page["next_cursor"]) is None:
                break
        by_offset: list[int] = []
        for offset in range(0, total, 3):
            by_offset += [each[field] for each in (await boss.get(path, limit=3, offset=offset, **extra)).json[key]]
        assert by_cursor == by_offset
        assert len(by_cursor) == len(set(by_cursor)) == total
    assert {each.user_id for each in people} <= {
        each["id"] for each in (await boss.get("/admin/users", limit=1000)).json["users"]
    }


async def test_who_is_suspended_is_out_at_once_and_back_when_let_in(desk: Desk, boss: Caller):
    ann = await desk.person()
    key = await ann.key()
    assert (await key.get("/user/balance")).status == 200

    suspended = await boss.post(f"/admin/users/{ann.user_id}/suspend", {"reason": "spam"})
    session, with_key = await ann.get("/user/balance"), await key.get("/user/balance")
    listed = (await boss.get("/admin/users", status="suspended", search=ann.email)).json
    await boss.post(f"/admin/users/{ann.user_id}/activate", {"reason": "a mistake"})

    assert (suspended.status, suspended.json["status"]) == (200, "suspended")
    assert (session.status, with_key.status) == (401, 401)
    assert [each["id"] for each in listed["users"]] == [ann.user_id]
    # The key works again; the session ended for good.
    assert (await key.get("/user/balance")).status == 200
    assert (await ann.get("/user/balance")).status == 401


async def test_an_account_that_is_suspended_has_its_keys_refused(desk: Desk, boss: Caller):
    ann = await desk.person()
    key = await ann.key()

    await boss.post(f"/admin/accounts/{ann.account_id}/suspend", {"reason": "did not pay"})
    refused = await key.get("/user/balance")
    await boss.post(f"/admin/accounts/{ann.account_id}/activate", {"reason": "has paid"})

    assert refused.status == 403
    assert (await key.get("/user/balance")).status == 200


async def test_nobody_suspends_themselves_or_what_is_gone(desk: Desk, boss: Caller):
    because = {"reason": "a test"}

    assert (await boss.post(f"/admin/users/{boss.user_id}/suspend", because)).status == 409
    assert (await boss.post(f"/admin/accounts/{boss.account_id}/suspend", because)).status == 409
    assert (await boss.post(f"/admin/users/{2**62}/suspend", because)).status == 404
    assert (await boss.post(f"/admin/accounts/{2**62}/suspend", because)).status == 404
    ann = await desk.person()
    await desk.parts.database.execute("update accounts set status = 'closed' where id = $1", ann.account_id)
    assert (await boss.post(f"/admin/accounts/{ann.account_id}/activate", because)).json["code"] == "account_closed"
    assert (await boss.post(f"/admin/users/{ann.user_id}/suspend", {"reason": ""})).status == 422
    assert (await boss.post(f"/admin/users/{ann.user_id}/suspend", {})).status == 422


async def test_of_the_last_administrators_one_stays(desk: Desk):
    """Two that suspend each other at once: one of them is still there."""
    database = desk.parts.database
    await database.execute("update users set role = 'user' where role = 'admin'")
    ann, bob = await desk.person(role="admin"), await desk.person(role="admin")

    await asyncio.gather(
        ann.post(f"/admin/users/{bob.user_id}/suspend", {"reason": "first"}),
        bob.post(f"/admin/users/{ann.user_id}/suspend", {"reason": "first"}),
    )

    assert await database.fetch_value("select count(*) from users where role = 'admin' and status = 'active'") == 1


async def test_the_last_administrator_can_not_delete_themselves(desk: Desk):
    await desk.parts.database.execute("update users set role = 'user' where role = 'admin'")
    ann = await desk.person(role="admin")

    refused = await ann.delete("/user/account", {"confirmation": "DELETE_ACCOUNT"})
    await desk.person(role="admin")
    deleted = await ann.delete("/user/account", {"confirmation": "DELETE_ACCOUNT"})

    assert (refused.status, refused.json["code"]) == (409, "last_admin")
    assert deleted.status == 200


async def test_credit_is_given_and_taken_by_whatever_names_the_account(desk: Desk, boss: Caller):
    ann = await desk.person()
    key = await ann.key()

    by_key = await boss.post("/admin/add_credits", {"api_key": key.token, "credits": 10, "reason": "welcome"})
    by_id = await boss.post("/admin/add_credits", {"api_key": key.key_id, "credits": 0.25, "reason": "more"})
    by_person = await boss.post("/admin/deduct_credits", {"user_id": ann.user_id, "credits": 12.5, "reason": "less"})
    listed = (await boss.get("/admin/credit-transactions", account_id=ann.account_id)).json["transactions"]
    log = await desk.parts.database.fetch("select * from audit_log where account_id = $1 order by id", ann.account_id)

    assert (by_key.json["new_balance"], by_key.json["user_id"], by_key.json["account_id"]) == (
        10.0,
        ann.user_id,
        ann.account_id,
    )
    assert (by_id.json["new_balance"], by_id.json["credits_added"]) == (10.25, 0.25)
    # It may be left with less than nothing.
    assert (by_person.json["new_balance"], by_person.json["credits_added"]) == (-2.25, -12.5)
    assert [(each["type"], each["amount"], each["description"]) for each in listed] == [
        ("admin_debit", -12.5, "less"),
        ("admin_credit", 0.25, "more"),
        ("admin_credit", 10.0, "welcome"),
    ]
    assert [(row["action"], row["reason"]) for row in log] == [
        ("credits.add", "welcome"),
        ("credits.add", "more"),
        ("credits.deduct", "less"),
    ]
    assert key.token not in str([dict(row) for row in log])


async def test_a_grant_is_repeated_without_giving_twice(desk: Desk, boss: Caller):
    ann = await desk.person()
    body = {"account_id": ann.account_id, "credits": 5, "reason": "once"}

    answers = await asyncio.gather(
        *(boss.post("/admin/add_credits", body, headers={"idempotency-key": "the same"}) for _ in range(5))
    )
    # The kept answer is gone after a day; the ledger's own key is for ever.
    await desk.parts.database.execute("delete from idempotency_keys")
    again = await boss.post("/admin/add_credits", body, headers={"idempotency-key": "the same"})

    assert {answer.status for answer in answers} <= {200, 409}
    assert again.json["new_balance"] == 5.0
    assert await balance_of(desk, ann) == 5_000_000_000
    count = "select count(*) from audit_log where account_id = $1 and action = 'credits.add'"
    assert await desk.parts.database.fetch_value(count, ann.account_id) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"credits": 1, "reason": "nobody is named"},
        {"credits": 1, "reason": "two are named", "account_id": 1, "user_id": 1},
        {"account_id": 1, "credits": 1_000.01, "reason": "above the cap"},
        {"account_id": 1, "credits": 0, "reason": "nothing"},
        {"account_id": 1, "credits": -1, "reason": "the wrong way"},
        {"account_id": 1, "credits": 1e-12, "reason": "finer than the ledger"},
        {"account_id": 1, "credits": 1},
        {"account_id": 1, "credits": 1, "reason": ""},
    ],
)
async def test_grants_that_make_no_sense_are_refused(desk: Desk, boss: Caller, body: dict[str, object]):
    for path in ("/admin/add_credits", "/admin/deduct_credits"):
        assert (await boss.post(path, body)).status == 422


async def test_a_key_is_limited_and_unlimited_again(desk: Desk, boss: Caller):
    ann = await desk.person()
    key = await ann.key()

    limited = await boss.post("/admin/limit", {"api_key": key.token, "requests_per_minute": 5, "tokens_per_day": 100})
    partly = await boss.post("/admin/limit", {"api_key": key.key_id, "tokens_per_day": None})
    nothing = await boss.post("/admin/limit", {"api_key": key.key_id})
    unknown = await boss.post("/admin/limit", {"api_key": "gw_live_nobody", "requests_per_minute": 5})
    too_many = await boss.post("/admin/limit", {"api_key": key.key_id, "requests_per_minute": 2**53})

    assert (limited.json["limits"]["requests_per_minute"], limited.json["limits"]["tokens_per_day"]) == (5, 100)
    assert (partly.json["limits"]["requests_per_minute"], partly.json["limits"]["tokens_per_day"]) == (5, None)
    assert (nothing.status, unknown.status, too_many.status) == (422, 404, 422)
    row = await desk.parts.database.fetch_row(
        "select before, after from audit_log where action = 'api_keys.set_limits' and object_id = $1 order by id desc",
        key.key_id,
    )
    assert row is not None
    assert (row["before"], row["after"]) == ('{"tokens_per_day": 100}', '{"tokens_per_day": null}')


async def test_credit_of_all_accounts_in_pages(desk: Desk, boss: Caller):
    ann, bob = await desk.person(), await desk.person()
    for number in range(9):
        owner = ann if number % 2 else bob
        await boss.post(
            "/admin/add_credits", {"account_id": owner.account_id, "credits": number + 1, "reason": "a test"}
        )

    found: list[float] = []
    cursor = None
    while len(found) < 9:
        place = {} if cursor is None else {"cursor": cursor}
        page = (await boss.get("/admin/credit-transactions", limit=2, **place)).json
        found += [each["amount"] for each in page["transactions"]]
        cursor = page["next_cursor"]
    skipped = (await boss.get("/admin/credit-transactions", limit=3, offset=6)).json["transactions"]
    trials = (await boss.get("/admin/credit-transactions", transaction_type="trial", account_id=ann.account_id)).json

    assert found[:9] == [float(number) for number in range(9, 0, -1)]
    assert [each["amount"] for each in skipped] == [3.0, 2.0, 1.0]
    assert trials["transactions"] == []


async def balance_of(desk: Desk, caller: Caller) -> int:
    nanos: int = await desk.parts.database.fetch_value(
        "select balance_nanos from balances where account_id = $1", caller.account_id
    )
    return nanos
