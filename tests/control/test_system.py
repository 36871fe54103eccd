"""How the gateway does: the day's figures, its processes and books, and usage that could not be settled."""

import asyncio
from datetime import UTC, datetime

import pytest

from gateway.infra.embedded import Stores
from gateway.kernel.record import UsageRecord, encode_record
from gateway.kernel.settler import Settler
from gateway.kernel.verbs import PARTITIONS
from tests.control.desk import Caller, Desk
from tests.control.usage import add_usage


@pytest.fixture
async def desk(database: str, redis_url: str):
    async with Desk(Stores(database, redis_url)) as desk:
        yield desk


@pytest.fixture
async def boss(desk: Desk) -> Caller:
    return await desk.person(role="admin")


async def test_the_day_so_far(desk: Desk, boss: Caller):
    ann, bob = await desk.person(), await desk.person()
    now = datetime.now(UTC)
    made = []
    for number in range(25):
        owner = ann if number % 5 else bob
        made.append(await add_usage(desk.parts.database, owner.account_id, at=now))
    await add_usage(desk.parts.database, ann.account_id, at=datetime(2025, 1, 1, tzinfo=UTC))

    found = (await boss.get("/admin/monitor")).json

    assert (found["total_users"], found["suspended_users"], found["active_today"]) == (3, 0, 2)
    assert (found["requests_today"], found["tokens_today"], found["cost_today"]) == (25, 25 * 150, 0.0375)
    assert [(each["account_id"], each["requests"]) for each in found["top_users"]] == [
        (ann.account_id, 20),
        (bob.account_id, 5),
    ]
    assert [(each["provider"], each["requests"], each["latency_ms"]) for each in found["providers"]] == [
        ("openai", 25, 2000.0)
    ]
    assert [each["id"] for each in found["recent_requests"]] == [
        str(each) for each in sorted(made, reverse=True)[:20]
    ]
    assert found["system_metrics"]["workers"][0]["state"] == "ready"


async def test_status_names_providers_books_and_what_is_set_aside(desk: Desk, boss: Caller):
    await set_aside(desk, b"no record", "a test")

    found = (await boss.get("/admin/status")).json

    assert found["missing"] == []
    assert (found["records_set_aside"], found["credit_waiting"]) == (1, 0)
    assert [(each["name"], each["breaker"]) for each in found["gateway"]["providers"]] == [
        ("echo", "closed"),
        ("own", "closed"),
    ]
    assert found["gateway"]["ledger"]["holds_open"] == 0
    assert (await boss.get("/admin/cache-status")).json["providers"] == {"echo": 1, "own": 0}


async def test_a_record_is_settled_once_its_account_is_known_however_often_it_is_put_back(desk: Desk, boss: Caller):
    ann = await desk.person()
    record = UsageRecord(
        request_id=desk.parts.new_id(), account_id=ann.account_id, key_id="key", cost_nanos=7_000, model="m"
    )
    packed = encode_record(record)
    first, again = [
        await set_aside(desk, packed, "no account", partition=ann.account_id % PARTITIONS) for _ in range(2)
    ]
    listed = (await boss.get("/admin/settle-rejects")).json

    answers = await asyncio.gather(
        *(boss.post(f"/admin/settle-rejects/{first}/retry", {"reason": "it is known now"}) for _ in range(3))
    )
    await boss.post(f"/admin/settle-rejects/{again}/retry", {"reason": "a slip"})
    await settle(desk)

    assert [(each["id"], each["account_id"], each["cost"]) for each in listed["rejects"]] == [
        (first, ann.account_id, 0.000007),
        (again, ann.account_id, 0.000007),
    ]
    assert listed["total"] == 2
    assert sorted(answer.status for answer in answers) == [200, 404, 404]
    balance = await desk.parts.database.fetch_value(
        "select balance_nanos from balances where account_id = $1", ann.account_id
    )
    assert balance == -7_000
    assert (await boss.get("/admin/settle-rejects")).json == {"rejects": [], "total": 0, "next_cursor": None}


async def test_what_is_forgotten_is_gone_and_what_is_no_record_comes_back(desk: Desk, boss: Caller):
    rubbish = await set_aside(desk, b"rubbish", "not a record")

    await boss.post(f"/admin/settle-rejects/{rubbish}/retry", {"reason": "let us see"})
    await settle(desk)
    [back] = (await boss.get("/admin/settle-rejects")).json["rejects"]
    discarded = await boss.post(f"/admin/settle-rejects/{back['id']}/discard", {"reason": "rubbish"})

    assert back["id"] != rubbish
    assert (back["request_id"], back["cost"]) == (None, None)
    assert discarded.status == 200
    assert (await boss.get("/admin/settle-rejects")).json["total"] == 0
    assert (await boss.post(f"/admin/settle-rejects/{back['id']}/discard", {"reason": "again"})).status == 404


async def set_aside(desk: Desk, record: bytes, reason: str, *, partition: int = 0) -> int:
    """As the settler would."""
    reject_id: int = await desk.parts.database.fetch_value(
        "insert into settle_rejects (partition, stream_id, record, reason) values ($1, '1-1', $2, $3) returning id",
        partition,
        record,
        reason,
    )
    return reject_id


async def settle(desk: Desk) -> None:
    """What the books would do in a moment."""
    parts = desk.parts
    settler = Settler(parts.database, parts.redis, clock=parts.clock, telemetry=parts.deps.telemetry)
    while (await settler.settle_once()).more:
        pass
