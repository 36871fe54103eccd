"""Rotation: the text changes, the key does not; of several who do it at once one has it."""

import asyncio

from gateway.control.accounts.rotation import PAUSE_S
from tests.control.desk import Caller, Desk
from tests.control.test_keys import NARROW, by, make


async def age(desk: Desk, *key_ids: object) -> None:
    """Let the last rotation of keys be a while ago."""
    await desk.parts.database.execute(
        "update keys set rotated_at = rotated_at - make_interval(secs => $1) where id = any($2::text[])",
        PAUSE_S + 1,
        list(key_ids),
    )


async def test_the_text_changes_and_nothing_else(desk: Desk):
    ann = await desk.person(plan="team")
    made = await make(ann, **(NARROW | {"ip_allowlist": None, "domain_referrers": None}))
    path = f"/user/api-keys/{made['id']}"
    before = (await ann.get(path)).json

    rotated = (await ann.post(f"{path}/rotate", {})).json
    after = (await ann.get(path)).json

    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"last_four", "rotated_at"}
    assert rotated["id"] == made["id"]
    assert rotated["api_key"] != made["api_key"]
    assert rotated["previous_until"] is None


async def test_the_old_text_is_good_for_as_long_as_is_asked(desk: Desk):
    ann = await desk.person()
    made = await make(ann)
    path = f"/user/api-keys/{made['id']}"

    first = (await ann.post(f"{path}/rotate", {"grace_s": 3600})).json
    at_first = [await status(desk, text) for text in (made["api_key"], first["api_key"])]
    await age(desk, made["id"])
    # Only the text before the last one is: not the one before that.
    second = (await ann.post(f"{path}/rotate", {"grace_s": 3600})).json
    texts = (made["api_key"], first["api_key"], second["api_key"])
    at_second = [await status(desk, text) for text in texts]
    await desk.parts.database.execute("update keys set previous_until = now() where id = $1", made["id"])
    at_last = [await status(desk, text) for text in texts]

    assert first["previous_until"] is not None
    assert at_first == [200, 200]
    assert at_second == [401, 200, 200]
    assert at_last == [401, 401, 200]


async def test_revoking_ends_the_old_text_too(desk: Desk):
    ann = await desk.person()
    made = await make(ann)
    path = f"/user/api-keys/{made['id']}"
    rotated = (await ann.post(f"{path}/rotate", {"grace_s": 3600})).json

    await ann.delete(path, {"confirmation": "DELETE_KEY"})

    assert [await status(desk, text) for text in (made["api_key"], rotated["api_key"])] == [401, 401]


async def test_of_many_who_rotate_one_has_it(desk: Desk):
    ann = await desk.person()
    made = await make(ann)

    answers = await asyncio.gather(*(ann.post(f"/user/api-keys/{made['id']}/rotate", {}) for _ in range(12)))

    won = [answer for answer in answers if answer.status == 200]
    lost = [answer for answer in answers if answer.status != 200]
    assert len(won) == 1
    assert {(answer.status, answer.json["code"]) for answer in lost} == {(409, "just_rotated")}
    assert all(answer.headers["retry-after"] == "5" for answer in lost)
    assert await status(desk, won[0].json["api_key"]) == 200


async def test_a_repeat_gets_the_text_again(desk: Desk):
    ann = await desk.person()
    made = await make(ann)
    headers = {"idempotency-key": "rotate"}

    answers = [await ann.post(f"/user/api-keys/{made['id']}/rotate", {}, headers=headers) for _ in range(2)]

    assert answers[0].body == answers[1].body


async def test_all_keys_of_an_environment_are_rotated(desk: Desk):
    ann = await desk.person()
    tests = [await make(ann, key_name=f"test {n}", environment_tag="test") for n in range(3)]
    live = await make(ann, key_name="live")
    off = await make(ann, key_name="off", environment_tag="test")
    await ann.put(f"/user/api-keys/{off['id']}", {"is_active": False})

    answers = await asyncio.gather(
        *(ann.post("/user/api-keys/rotate", {"environment_tag": "test"}) for _ in range(4))
    )

    (won,) = [answer.json for answer in answers if answer.status == 200]
    assert {answer.json["code"] for answer in answers if answer.status != 200} == {"nothing_to_rotate"}
    assert {each["id"] for each in won["rotated_keys"]} == {each["id"] for each in tests}
    for each in won["rotated_keys"]:
        assert await status(desk, each["api_key"]) == 200
    for each in tests:
        assert await status(desk, each["api_key"]) == 401
    assert await status(desk, live["api_key"]) == 200


async def test_the_old_way_to_rotate(desk: Desk):
    ann = await desk.person()
    made, other = await make(ann), await make(ann, key_name="another")
    path = f"/user/api-keys/{made['id']}"

    rotated = (await ann.put(path, {"action": "rotate"})).json
    await age(desk, made["id"])
    all_rotated = (await ann.put(path, {"action": "bulk_rotate"})).json

    assert await status(desk, made["api_key"]) == 401
    assert rotated["updated_key"]["id"] == made["id"]
    assert await status(desk, rotated["api_key"]) == 401
    assert {each["id"] for each in all_rotated["rotated_keys"]} == {made["id"], other["id"]}
    assert await status(desk, all_rotated["api_key"]) == 200


async def test_a_key_acts_for_whoever_rotated_it(desk: Desk):
    """Else an account's administrator would get its owner's role by it, or that of an administrator of the gateway."""
    boss = await desk.person(role="admin")
    bob = await desk.person(role="developer", account_id=boss.account_id, account_role="admin")
    made = await make(boss)
    assert (await by(desk, made).get("/admin/rate-limits/system")).status == 200

    rotated = (await bob.post(f"/user/api-keys/{made['id']}/rotate", {})).json

    answer = await by(desk, rotated).get("/admin/rate-limits/system")
    assert answer.status == 403


async def status(desk: Desk, text: object) -> int:
    """What a request with that text is answered with."""
    caller = Caller(desk, {"authorization": f"Bearer {text}"})
    return (await caller.get("/user/balance")).status
