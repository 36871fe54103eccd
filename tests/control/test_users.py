"""What is somebody's own."""

import asyncio

import pytest

from gateway.control.accounts.operators import set_standing
from gateway.control.accounts.people import publish_keys
from gateway.kernel.journal import credit
from tests.control.desk import Desk


async def test_balance_has_what_clients_read(desk: Desk):
    ann = await desk.person()
    await credit(
        desk.parts.database, ann.account_id, type="bonus", amount_nanos=1_230_000_001, idempotency_key=ann.email
    )
    key = await ann.key(environment="test")

    balance = (await key.get("/user/balance")).json

    assert balance["credits"] == 1.230000001
    assert balance["api_key"] == f"gw_test_{key.key_id}"[:10]
    assert balance["status"] == "active"
    assert balance["user_id"] == ann.user_id
    assert {"tokens_remaining", "requests_remaining", "trial_end_date"} <= balance.keys()


async def test_monitor_sums_what_was_settled(desk: Desk):
    ann = await desk.person()
    rows = [
        (ann.account_id, "current_date", "m1", 3, 10, 20, 5_000_000_000),
        (ann.account_id, "current_date - 400", "m2", 1, 1, 1, 1_000_000_000),
    ]
    for account_id, day, model, requests, tokens_in, tokens_out, cost in rows:
        await desk.parts.database.execute(
            "insert into activity_days (account_id, day, provider, model, requests, failures, input_tokens, output_tokens, "
            f"cost_nanos) values ($1, {day}, 'openai', $2, $3, 0, $4, $5, $6)",
            account_id,
            model,
            requests,
            tokens_in,
            tokens_out,
            cost,
        )

    metrics = (await ann.get("/user/monitor")).json["usage_metrics"]

    assert metrics["total_requests"] == 4
    assert metrics["total_tokens"] == 32
    assert metrics["total_cost"] == 6.0
    assert metrics["requests_today"] == 3
    assert metrics["cost_this_month"] == 5.0
    assert metrics["average_tokens_per_request"] == 8.0
    assert metrics["most_used_model"] == "m1"


async def test_limit_shows_what_the_limiter_counts(desk: Desk):
    ann = await desk.person(plan="free")
    key = await ann.key()
    before = (await ann.get("/user/limit")).json

    for _ in range(3):
        answer = await key.post(
            "/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
        )
        assert answer.status == 200, answer
    after = (await ann.get("/user/limit")).json

    assert before["current_limits"]["requests_per_day"] == 1000
    assert before["current_usage"]["requests_per_day"] == 0
    assert 2.9 < after["current_usage"]["requests_per_day"] <= 3
    assert after["current_usage"]["tokens_per_day"] > 0
    assert after["reset_times"]["requests_per_day"] > before["reset_times"]["requests_per_day"]
    assert after["current_usage"]["requests_per_minute"] is None


async def test_profile_is_changed_and_an_address_only_by_its_mail(desk: Desk):
    ann = await desk.person()

    answer = await ann.put(
        "/user/profile", {"name": "Ann B", "preferences": {"theme": [1]}, "email": "new@example.com"}
    )

    assert answer.json["name"] == "Ann B"
    assert answer.json["preferences"] == {"theme": [1]}
    assert answer.json["email"] == ann.email
    assert "confirmed" in answer.json["message"]
    assert (await ann.put("/user/profile", {})).status == 422
    assert (await ann.put("/user/profile", {"settings": {"x": "y" * 20_000}})).status == 422


async def test_leaving_forgets_the_person_and_keeps_the_books(desk: Desk):
    ann = await desk.person()
    key = await ann.key()
    database = desk.parts.database
    await credit(database, ann.account_id, type="bonus", amount_nanos=7, idempotency_key=f"leave {ann.email}")
    await key.get("/v1/models")

    wrong = await key.delete("/user/account", {"confirmation": "yes"})
    answer = await key.delete("/user/account", {"confirmation": "DELETE_ACCOUNT"})

    assert (wrong.status, answer.status) == (422, 200)
    person = await database.fetch_row("select * from users where id = $1", ann.user_id)
    assert (person["status"], person["email"], person["name"]) == ("deleted", None, None)
    account = await database.fetch_row("select * from accounts where id = $1", ann.account_id)
    assert (account["status"], account["name"]) == ("closed", f"closed account {ann.account_id}")
    assert await database.fetch_value("select count(*) from entries where account_id = $1", ann.account_id) == 1
    assert (await ann.get("/user/profile")).status == 401
    assert (await key.get("/user/profile")).status == 401
    async with asyncio.timeout(10):
        while (await key.get("/v1/models")).status != 401:  # noqa: ASYNC110  seen from outside alone
            await asyncio.sleep(0.02)
    lines = await database.fetch("select * from audit_log where actor_user_id = $1", ann.user_id)
    assert {line["action"] for line in lines} >= {"users.delete", "accounts.close"}
    assert ann.email not in str([dict(line) for line in lines])


async def test_a_last_owner_of_others_account_does_not_leave(desk: Desk):
    ann = await desk.person()
    await desk.person(account_id=ann.account_id, account_role="admin")

    answer = await ann.delete("/user/account", {"confirmation": "DELETE_ACCOUNT"})

    assert (answer.status, answer.json["code"]) == (409, "last_owner")


async def test_transactions_are_paged_by_cursor_and_by_offset_alike(desk: Desk):
    ann, database = await desk.person(), desk.parts.database
    for number in range(1, 8):
        type_ = "admin_debit" if number == 4 else "bonus"
        amount = -2_000_000_000 if number == 4 else number * 1_000_000_000
        await credit(
            database, ann.account_id, type=type_, amount_nanos=amount, idempotency_key=f"{ann.email} {number}"
        )

    first = (await ann.get("/user/credit-transactions", limit=3)).json
    pages, cursor = [first["transactions"]], first["next_cursor"]
    while cursor:
        page = (await ann.get("/user/credit-transactions", limit=3, cursor=cursor)).json
        pages.append(page["transactions"])
        cursor = page["next_cursor"]
    by_offset = [
        (await ann.get("/user/credit-transactions", limit=3, offset=n)).json["transactions"] for n in (0, 3, 6)
    ]
    debits = (await ann.get("/user/credit-transactions", transaction_type="admin_debit")).json

    assert pages == by_offset
    assert [each["id"] for page in pages for each in page] == [7, 6, 5, 4, 3, 2, 1]
    assert first["total"] == 7
    assert first["summary"]["total_credits_added"] == 24.0
    assert first["summary"]["total_credits_used"] == 2.0
    assert first["summary"]["by_type"]["bonus"] == {"count": 6, "amount": 24.0}
    assert [each["amount"] for each in debits["transactions"]] == [-2.0]
    assert debits["total"] == 1
    entry = pages[0][0]
    assert entry["balance_before"] + entry["amount"] == entry["balance_after"]


async def test_usage_is_summed_up_with_what_was_given(desk: Desk):
    ann, database = await desk.person(), desk.parts.database
    nothing = (await ann.get("/user/credit-transactions")).json
    await credit(database, ann.account_id, type="bonus", amount_nanos=5_000_000_000, idempotency_key=ann.email)
    for seq, amount in ((2, -1_000_000_000), (3, -500_000_000)):
        await database.execute(
            "insert into entries (account_id, seq, type, amount_nanos, balance_after_nanos, request_id) "
            "select account_id, $2, 'api_usage', $3, balance_nanos + $3, gen_random_uuid() "
            "from balances where account_id = $1",
            ann.account_id,
            seq,
            amount,
        )

    everything = (await ann.get("/user/credit-transactions")).json
    usage = (await ann.get("/user/credit-transactions", transaction_type="api_usage")).json

    assert (nothing["total"], nothing["summary"]["by_type"]) == (0, {})
    assert everything["summary"] == {
        "total_transactions": 3,
        "total_credits_added": 5.0,
        "total_credits_used": 1.5,
        "by_type": {"bonus": {"count": 1, "amount": 5.0}, "api_usage": {"count": 2, "amount": -1.5}},
    }
    assert (usage["total"], [each["id"] for each in usage["transactions"]]) == (2, [3, 2])


@pytest.mark.parametrize(
    "cursor", ["x", "!!!!", "bnVsbA", "WyJhIl0", "WzEsMl0", "Wy0xXQ", "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5XQ"]
)
async def test_a_cursor_that_was_made_up_is_refused(desk: Desk, cursor):
    ann = await desk.person()

    answer = await ann.get("/user/credit-transactions", cursor=cursor)

    assert answer.status == 422
    assert answer.detail[0]["loc"] == ["query", "cursor"]


async def test_whoever_is_suspended_is_out_at_both_planes(desk: Desk):
    ann = await desk.person()
    key = await ann.key()
    assert (await key.get("/v1/models")).status == 200

    _, key_ids = await set_standing(desk.parts.database, who=ann.email, standing="suspended")
    await publish_keys(desk.parts, key_ids)

    assert (await ann.get("/user/balance")).status == 401
    assert (await key.get("/user/balance")).status == 401
    async with asyncio.timeout(10):
        while (refused := await key.get("/v1/models")).status == 200:  # noqa: ASYNC110  seen from outside alone
            await asyncio.sleep(0.005)
    assert (refused.status, refused.json["error"]["code"]) == (401, "account_inactive")
    await set_standing(desk.parts.database, who=str(ann.user_id), standing="active")
    await publish_keys(desk.parts, key_ids)
    async with asyncio.timeout(10):
        while (await key.get("/v1/models")).status != 200:  # noqa: ASYNC110  as above
            await asyncio.sleep(0.005)


async def test_what_was_changed_by_hand_holds_once_workers_are_told(desk: Desk):
    ann, boss = await desk.person(), await desk.person(role="admin")
    key = await ann.key()
    assert (await key.get("/v1/models")).status == 200
    await desk.parts.database.execute("update keys set disabled_at = now() where id = $1", key.key_id)
    assert (await key.get("/v1/models")).status == 200

    told = await boss.post("/admin/clear-rate-limit-cache")

    assert told.status == 200
    async with asyncio.timeout(10):
        while (refused := await key.get("/v1/models")).status == 200:  # noqa: ASYNC110  seen from outside alone
            await asyncio.sleep(0.005)
    assert refused.json["error"]["code"] == "api_key_disabled"
