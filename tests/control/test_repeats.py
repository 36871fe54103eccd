"""Requests that may be sent again, and the log that nobody can edit."""

import asyncio
from collections.abc import Coroutine

import asyncpg
import pytest

from gateway.control import audit
from gateway.control.accounts import rotation
from gateway.control.idempotency import Answers
from gateway.errors import StoreUnavailable
from tests.control.desk import Desk
from tests.gateways import PATIENCE_S


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


@pytest.fixture
def given_up(monkeypatch) -> list[str]:
    """The keys of claims that were given up."""
    keys: list[str] = []
    give_up = Answers.give_up

    def noted(self: Answers, scope: str, key: str) -> Coroutine[object, object, None]:
        keys.append(key)
        return give_up(self, scope, key)

    monkeypatch.setattr(Answers, "give_up", noted)
    return keys


async def test_what_took_effect_is_not_done_again_though_its_answer_could_not_be_kept(
    desk: Desk, monkeypatch, given_up
):
    ann = await desk.person()
    headers = {"idempotency-key": "lost"}

    async def fail(*_: object) -> None:
        raise StoreUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "keep", fail)
        first = await ann.post("/teams", {"name": "a"}, headers=headers)
    again = await ann.post("/teams", {"name": "a"}, headers=headers)

    assert first.status == 503
    assert given_up == []
    assert (again.status, again.json["code"]) == (409, "idempotency_key_in_use")
    assert len((await ann.get("/teams")).json["data"]) == 2


async def test_what_failed_here_may_be_tried_again(desk: Desk, monkeypatch, given_up):
    ann = await desk.person()
    headers = {"idempotency-key": "failed"}

    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(audit, "record", fail)
        first = await ann.post("/teams", {"name": "a"}, headers=headers)
    async with asyncio.timeout(PATIENCE_S):
        while (again := await ann.post("/teams", {"name": "a"}, headers=headers)).status == 409:
            pass

    assert given_up == ["failed"]
    assert (first.status, again.status) == (503, 200)
    assert len((await ann.get("/teams")).json["data"]) == 2


async def test_what_is_told_to_come_back_may_come_back(desk: Desk, monkeypatch, given_up):
    ann = await desk.person()
    key = await ann.key()
    path = f"/user/api-keys/{key.key_id}/rotate"
    headers = {"idempotency-key": "early"}

    await ann.post(path)
    early = await ann.post(path, headers=headers)
    monkeypatch.setattr(rotation, "PAUSE_S", 0.0)
    async with asyncio.timeout(PATIENCE_S):
        while (again := await ann.post(path, headers=headers)).status == 409:
            pass

    assert given_up == ["early"]
    assert (early.status, early.json["code"], "retry-after" in early.headers) == (409, "just_rotated", True)
    assert again.status == 200


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
