"""Activity: a log whose pages meet, sums that are those of the log, and nothing of anybody else's."""

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.control.errors import Invalid
from gateway.control.paging import decode_cursor
from tests.control.desk import Desk
from tests.control.usage import add_usage

TODAY = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
MODELS = ("gpt-test", "claude-test")
PROVIDERS = ("openai", "anthropic", "bedrock")


async def test_the_log_has_the_fields_that_clients_read(desk: Desk):
    ann = await desk.person()
    request_id = await add_usage(desk.parts.database, ann.account_id, at=TODAY)

    answer = await ann.get("/user/activity/log")

    assert answer.status == 200
    assert answer.json == {
        "logs": [
            {
                "id": str(request_id),
                "account_id": ann.account_id,
                "timestamp": TODAY.isoformat().replace("+00:00", "Z"),
                "model": "gpt-test",
                "provider": "openai",
                "tokens": 150,
                "cost": 0.0015,
                "speed": 33.33,
                "finish_reason": "ok",
                "app": "API",
                "status": 200,
                "own_key_id": None,
                "metadata": {
                    "prompt_tokens": 100,
                    "completion_tokens": 50,
                    "endpoint": "/v1/chat/completions",
                    "stream": True,
                    "key_id": "somekey",
                    "latency_ms": 2000,
                    "first_token_ms": 500,
                    "error_type": None,
                    "tags": {},
                },
            }
        ],
        "total": 1,
        "page": 1,
        "limit": 10,
        "offset": 0,
        "next_cursor": None,
    }


async def test_administrators_see_what_everybody_used_and_what_one_account_did(desk: Desk):
    boss, ann, bob = await desk.person(role="admin"), await desk.person(), await desk.person()
    database = desk.parts.database
    model = f"model-{ann.account_id}"
    for person, cost in ((ann, 2_000_000), (ann, 3_000_000), (bob, 5_000_000)):
        await add_usage(database, person.account_id, at=TODAY, model=model, cost_nanos=cost)
    await add_usage(
        database, bob.account_id, at=TODAY - timedelta(days=1), model=model, error_type="provider_timeout"
    )
    await add_usage(database, bob.account_id, at=TODAY - timedelta(days=40), model=model)

    everybody = (await boss.get("/admin/usage", model=model)).json
    days = {"from": TODAY.date().isoformat(), "to": TODAY.date().isoformat()}
    today = (await boss.get("/admin/usage", model=model, **days)).json
    one = (await boss.get("/admin/usage", model=model, account_id=ann.account_id)).json
    own = (await ann.get("/user/activity/stats", model=model)).json
    nobody = (await boss.get("/admin/usage", model="nobody's")).json
    too_long = await boss.get("/admin/usage", days=200)

    assert (everybody["total_requests"], everybody["failed_requests"]) == (4, 1)
    assert [each["requests"] for each in everybody["daily_stats"]] == [1, 3]
    assert (today["total_requests"], today["total_tokens"], today["total_spend"]) == (3, 450, 0.01)
    assert [(each["name"], each["requests"]) for each in today["by_provider"]] == [("openai", 3)]
    assert one == own
    assert one["total_requests"] == 2
    assert (nobody["total_requests"], nobody["daily_stats"]) == (0, [])
    assert too_long.status == 422


async def test_statistics_have_the_fields_that_clients_read(desk: Desk):
    ann = await desk.person()
    database = desk.parts.database
    await add_usage(database, ann.account_id, at=TODAY)
    await add_usage(database, ann.account_id, at=TODAY, model="claude-test", provider="bedrock", cost_nanos=500_000)
    await add_usage(database, ann.account_id, at=TODAY - timedelta(days=1), error_type="provider_timeout")
    await add_usage(database, ann.account_id, at=TODAY - timedelta(days=30))

    found = (await ann.get("/user/activity/stats")).json

    assert (found["total_requests"], found["failed_requests"], found["total_tokens"]) == (3, 1, 450)
    assert found["total_spend"] == found["total_cost"] == 0.0035
    assert [(each["date"], each["requests"], each["tokens"]) for each in found["daily_stats"]] == [
        ((TODAY - timedelta(days=1)).date().isoformat(), 1, 150),
        (TODAY.date().isoformat(), 2, 300),
    ]
    assert found["by_date"][TODAY.date().isoformat()] == found["daily_stats"][1]
    assert {each["name"]: each["requests"] for each in found["by_model"]} == {"gpt-test": 2, "claude-test": 1}
    assert {each["name"]: each["cost"] for each in found["by_provider"]} == {"openai": 0.003, "bedrock": 0.0005}


async def test_nobody_sees_what_others_did(desk: Desk):
    ann, bob = await desk.person(), await desk.person()
    await add_usage(desk.parts.database, ann.account_id)

    assert (await bob.get("/user/activity/log")).json["total"] == 0
    assert (await bob.get("/user/activity/log")).json["logs"] == []
    assert (await bob.get("/user/activity/stats")).json["total_requests"] == 0


async def test_pages_of_both_kinds_show_each_request_once_and_totals_are_of_all(desk: Desk):
    generator, database = random.Random(7), desk.parts.database
    ann = await desk.person()
    made = []
    for _ in range(60):
        # Many in one millisecond: the place of a cursor has to tell them apart.
        at = TODAY - timedelta(days=generator.randrange(3), milliseconds=generator.randrange(3))
        model, provider = generator.choice(MODELS), generator.choice(PROVIDERS)
        made.append(
            (await add_usage(database, ann.account_id, at=at, model=model, provider=provider), model, provider)
        )

    for query in ({}, {"model": "gpt-test"}, {"provider": "bedrock"}, {"model": "claude-test", "provider": "openai"}):
        wanted = {
            str(request_id)
            for request_id, model, provider in made
            if query.get("model", model) == model and query.get("provider", provider) == provider
        }
        whole = (await ann.get("/user/activity/log", limit=1000, **query)).json
        by_cursor, cursor = [], None
        while True:
            place = {} if cursor is None else {"cursor": cursor}
            page = (await ann.get("/user/activity/log", limit=7, **place, **query)).json
            assert page["total"] == len(wanted)
            by_cursor += page["logs"]
            if (cursor := page["next_cursor"]) is None:
                break
        by_page = []
        for number in range(1, len(wanted) // 7 + 2):
            by_page += (await ann.get("/user/activity/log", limit=7, page=number, **query)).json["logs"]

        assert {each["id"] for each in whole["logs"]} == wanted
        assert by_cursor == whole["logs"]
        assert by_page == whole["logs"]
        times = [each["timestamp"] for each in whole["logs"]]
        assert times == sorted(times, reverse=True)
        sums = (await ann.get("/user/activity/stats", **query)).json
        assert sums["total_requests"] == len(wanted)


async def test_days_are_of_utc_and_begin_and_end_where_they_say(desk: Desk):
    ann = await desk.person()
    midnight = TODAY.replace(hour=0)
    for at in (midnight - timedelta(milliseconds=1), midnight, midnight + timedelta(hours=23, minutes=59)):
        await add_usage(desk.parts.database, ann.account_id, at=at)
    today, yesterday = midnight.date().isoformat(), (midnight - timedelta(days=1)).date().isoformat()

    for span, count in (({"from": today, "to": today}, 2), ({"from": yesterday, "to": yesterday}, 1)):
        log = (await ann.ask("GET", "/user/activity/log", **span)).json
        sums = (await ann.ask("GET", "/user/activity/stats", **span)).json
        assert (len(log["logs"]), log["total"], sums["total_requests"]) == (count, count, count)


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=60))
def test_a_cursor_that_was_made_up_is_refused_and_never_an_error(text: str):
    """Without a database: what decides is the type that it is read as."""
    try:
        at, request_id = decode_cursor(text, tuple[datetime, UUID])
    except Invalid:
        return
    assert isinstance(at, datetime)
    assert isinstance(request_id, UUID)


async def test_spans_that_make_no_sense_are_refused(desk: Desk):
    ann = await desk.person()

    for query in (
        {"days": 0},
        {"days": 366},
        {"days": 3, "from": "2026-01-01"},
        {"from": "2026-02-01", "to": "2026-01-01"},
        {"from": "2020-01-01", "to": "2026-01-01"},
        {"from": "yesterday"},
        {"to": "0001-01-01"},
    ):
        answer = await ann.ask("GET", "/user/activity/stats", **query)
        assert answer.status == 422, (query, answer)
    assert (await ann.ask("GET", "/user/activity/log", to="9999-12-31")).status == 422
    assert (await ann.ask("GET", "/user/activity/log", page=10_000, limit=1000)).status == 422
