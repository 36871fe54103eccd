"""Who is refused stands in the security log, in both planes, and no secret of theirs does."""

import logging

import msgspec
import pytest

from gateway.infra.logs import JsonFormatter
from gateway.infra.postgres import Database
from tests.acceptance.answers import ASK, CHAT
from tests.acceptance.test_key_constraints import make_key
from tests.gateways import PATIENCE_S
from tests.upstreams import RECEIVE, REPEAT, answer, play

SERVED = play(RECEIVE, answer(CHAT), REPEAT)
SECRET = "x" * 43


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, logger="gateway.security")

    def found() -> list[dict[str, object]]:
        formatter = JsonFormatter()
        records = [record for record in caplog.records if record.name == "gateway.security"]
        return [msgspec.json.decode(formatter.format(record)) for record in records]

    return found


async def test_keys_that_are_none_at_the_data_plane(stage, lines):
    gateway, _ = await stage.gateway(SERVED)
    wrong = f"gw_live_{gateway.key_id}{SECRET}"

    for key in ("", "sk-something-else", wrong):
        assert (await gateway.ask(ASK, key=key)).status == 401
    assert (await gateway.ask(ASK)).status == 200

    found = lines()
    assert [(each["event"], each["subject"], each["key"]) for each in found] == [
        ("authentication_failed", "127.0.0.1", ""),
        ("authentication_failed", "127.0.0.1", ""),
        ("authentication_failed", "127.0.0.1", gateway.key_id),
    ]
    assert all(each["route"] == "/v1/chat/completions" and each["request_id"] for each in found)
    assert SECRET not in str(found)
    assert "something-else" not in str(found)


OVER = {
    "key_expired": "update keys set expires_at = created_at + interval '1 microsecond' where id = $1",
    "key_disabled": "update keys set disabled_at = now() where id = $1",
    "key_revoked": "update keys set revoked_at = now() where id = $1",
    "key_rotated": "update keys set digest = sha256('another'), previous_digest = digest, previous_until = now() "
    "where id = $1",
}


@pytest.mark.parametrize("code", OVER)
async def test_keys_that_are_over_at_the_data_plane(stage, lines, code):
    gateway, _ = await stage.gateway(SERVED)
    key = await make_key(gateway)
    key_id = key[8:20]
    async with Database(gateway.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
        await database.execute(OVER[code], key_id)

    refused = [await gateway.ask(ASK, key=key) for _ in range(2)]
    guessed = await gateway.ask(ASK, key=f"gw_live_{key_id}{SECRET}")

    assert [each.status for each in (*refused, guessed)] == [401, 401, 401]
    assert [(each["event"], each["subject"], each["code"]) for each in lines()] == [
        ("key_misused", key_id, code),
        ("key_misused", key_id, code),
        ("authentication_failed", "127.0.0.1", "invalid_api_key"),
    ]
    assert key[20:] not in str(lines())


async def test_refusals_of_the_control_plane(stage, lines):
    gateway, _ = await stage.gateway(SERVED)

    unknown = await gateway.ask(method=b"GET", path=b"/user/balance", key=f"gw_live_{gateway.key_id}{SECRET}")
    nobody = await gateway.ask(method=b"GET", path=b"/user/balance", key="")
    # A key that a command made acts as a developer.
    forbidden = await gateway.ask(method=b"GET", path=b"/admin/users")
    nowhere = await gateway.ask(method=b"GET", path=b"/nowhere")

    assert (unknown.status, nobody.status, forbidden.status, nowhere.status) == (401, 401, 403, 404)
    found = lines()
    assert [(each["event"], each["subject"], each["code"], each["route"]) for each in found] == [
        ("authentication_failed", "127.0.0.1", "invalid_api_key", "/user/balance"),
        ("authentication_failed", "127.0.0.1", "not_signed_in", "/user/balance"),
        ("permission_refused", gateway.key_id, "forbidden", "/admin/users"),
    ]
    assert SECRET not in str(found)


async def test_guessing_passwords_is_seen(stage, lines):
    gateway, _ = await stage.gateway(SERVED)
    guess = msgspec.json.encode({"email": "ann@example.com", "password": "not her password"})

    statuses = [(await gateway.ask(guess, path=b"/auth", key="")).status for _ in range(12)]

    found = lines()
    assert {401, 429} <= set(statuses)
    assert {each["event"] for each in found} == {"authentication_failed", "tries_exhausted"}
    assert len(found) < len(statuses)
    assert "her password" not in str(found)
    assert "ann@example.com" not in str(found)
