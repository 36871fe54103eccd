"""Requests that may be sent again, and the log that nobody can edit."""

import asyncio

import asyncpg
import pytest

from gateway.control import audit
from tests.control.desk import Desk


async def test_a_repeat_gets_the_first_answer(desk: Desk):
    ann = await desk.person()
    key = {"idempotency-key": "one"}

    first = await ann.post("/teams", {"name": "a"}, headers=key)
    again = await ann.post("/teams", {"name": "a"}, headers=key)
    other = await ann.post("/teams", {"name": "b"}, headers=key)

    assert first.body == again.body
    assert again.headers["idempotency-replayed"] == "true"
    assert (other.status, other.json["code"]) == (409, "idempotency_key_reused")
    assert len((await ann.get("/teams")).json["data"]) == 2


async def test_of_many_at_once_one_takes_effect(desk: Desk):
    ann = await desk.person()

    answers = await asyncio.gather(
        *(ann.post("/teams", {"name": "a"}, headers={"idempotency-key": "many"}) for _ in range(10))
    )
    last = await ann.post("/teams", {"name": "a"}, headers={"idempotency-key": "many"})

    assert {answer.status for answer in answers} <= {200, 409}
    assert last.status == 200
    assert len((await ann.get("/teams")).json["data"]) == 2


async def test_nobody_meets_anothers_key(desk: Desk):
    ann, bob = await desk.person(), await desk.person()
    key = {"idempotency-key": "shared"}

    first, second = [await each.post("/teams", {"name": "a"}, headers=key) for each in (ann, bob)]

    assert first.json["id"] != second.json["id"]


async def test_a_refusal_is_repeated_and_a_failure_is_not_kept(desk: Desk):
    ann = await desk.person()
    headers = {"idempotency-key": "refused"}

    answers = [await ann.post("/team/invitations/accept", {"token": "x"}, headers=headers) for _ in range(2)]
    invalid = [await ann.post("/teams", {"name": ""}, headers={"idempotency-key": "x"}) for _ in range(2)]

    assert [answer.status for answer in answers] == [400, 400]
    assert answers[1].headers["idempotency-replayed"] == "true"
    # What was never a request has no answer to keep.
    assert "idempotency-replayed" not in invalid[1].headers


async def test_answers_are_not_readable_at_rest(desk: Desk):
    ann = await desk.person()
    await ann.post("/teams", {"name": "unmistakable"}, headers={"idempotency-key": "sealed"})

    rows = await desk.parts.database.fetch("select answer from idempotency_keys where key = 'sealed'")

    assert rows
    assert all(b"unmistakable" not in row["answer"] for row in rows)


@pytest.mark.parametrize(
    "statement", ["update audit_log set action = 'a.b'", "delete from audit_log", "truncate audit_log"]
)
async def test_the_log_is_only_added_to(desk: Desk, statement):
    ann = await desk.person()
    await ann.post("/teams", {"name": "a"})

    with pytest.raises(asyncpg.RaiseError):
        await desk.parts.database.execute(statement)


@pytest.mark.parametrize("values", [{"password": 1}, {"a": [{"api_secret": 1}]}, {"new_email": 1}])
async def test_no_secret_comes_into_the_log(desk: Desk, values):
    async with desk.parts.database.session() as session:
        with pytest.raises(ValueError, match="may not be"):
            await audit.record(session, audit.SYSTEM, "a.b", ("a", 1), account_id=None, after=values)
