"""Who is refused stands in the security log, in both planes, and no secret of theirs does."""

import logging

import msgspec
import pytest

from gateway.infra.logs import JsonFormatter
from tests.acceptance.answers import ASK, CHAT
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
