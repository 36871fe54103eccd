"""Who is an administrator, and how that changes."""

import asyncio

from gateway.infra.embedded import Stores
from tests.control.desk import Desk


async def test_a_role_holds_from_the_next_request_on_and_is_written_down(desk: Desk):
    boss, ann = await desk.person(role="admin"), await desk.person(role="user")

    answer = await boss.post(
        "/admin/roles/update", {"user_id": ann.user_id, "new_role": "developer", "reason": "she builds"}
    )
    shown = (await boss.get(f"/admin/roles/{ann.user_id}")).json
    changes = (await boss.get("/admin/roles/audit/log", user_id=ann.user_id)).json["logs"]

    assert answer.json == {
        "success": True,
        "user_id": ann.user_id,
        "old_role": "user",
        "new_role": "developer",
    }
    assert shown["role"] == "developer"
    assert "api_keys:create" in shown["permissions"]
    (change,) = changes
    assert (change["previous_role"], change["new_role"], change["reason"]) == ("user", "developer", "she builds")
    assert change["changed_by"] == boss.user_id
    assert change["ip"] == "127.0.0.1"


async def test_there_is_always_an_administrator(database, redis_url):
    async with Desk(Stores(database, redis_url)) as desk:
        ann, bob = await desk.person(role="admin"), await desk.person(role="admin")

        answers = await asyncio.gather(
            ann.post("/admin/roles/update", {"user_id": bob.user_id, "new_role": "user"}),
            bob.post("/admin/roles/update", {"user_id": ann.user_id, "new_role": "user"}),
        )
        left = await desk.parts.database.fetch_value("select count(*) from users where role = 'admin'")

    assert sorted(answer.status for answer in answers) in ([200, 403], [200, 409])
    assert left == 1


async def test_permissions_are_listed_as_rows(desk: Desk):
    boss = await desk.person(role="admin")

    rows = (await boss.get("/admin/roles/permissions/user")).json["permissions"]
    holders = (await boss.get("/admin/roles/list/admin", limit=1000)).json

    assert {"role": "user", "resource": "api_keys", "action": "list", "allowed": True} in rows
    assert not any(row["resource"] == "api_keys" and row["action"] == "create" for row in rows)
    assert boss.user_id in [each["id"] for each in holders["users"]]
    assert (await boss.get("/admin/roles/list/king")).status == 404
