"""`gateway accounts`, and what commands on keys leave in the audit log, as a shell runs them."""

import subprocess
import sys

import msgspec
import pytest

from gateway.infra.redis import Redis
from gateway.kernel.keys import CHANNEL


@pytest.fixture
def gateway(tmp_path, environ, database, redis_url):
    environ = environ | {
        "DATABASE_URL": database,
        "REDIS_URL": redis_url,
        "GATEWAY__AUTH__PEPPER": "a pepper for the tests of commands",
    }

    def gateway(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    return gateway


async def test_an_account_is_put_on_a_plan_and_gateways_are_told(gateway, opened, redis_url):
    assert "there are no accounts" in gateway("accounts", "list").stdout
    assert gateway("keys", "create", "--name", "a").returncode == 0
    (account,) = msgspec.json.decode(gateway("accounts", "list", "--json").stdout)
    key_id = await opened.fetch_value("select id from keys")
    client = Redis(redis_url, timeout_s=10)
    subscription = client.subscribe(CHANNEL)
    await client.connect()
    assert await anext(subscription) is None

    done = gateway("accounts", "plan", str(account["id"]), "free")
    told = await anext(subscription)
    await client.close()

    assert done.returncode == 0, done.stderr
    assert (account["plan"], account["keys"]) == ("unlimited", 1)
    assert done.stdout == f"account {account['id']} is on free now (was on unlimited)\n"
    assert told is not None
    assert told.data.decode() == key_id
    assert await opened.fetch_value("select plan from accounts") == "free"
    assert "free" in gateway("accounts", "list").stdout


@pytest.mark.parametrize(
    ("account", "plan", "complaint"),
    [
        ("1", "nothing", "There is no plan 'nothing'"),
        ("999", "free", "there is no account of that number"),
        ("x", "free", "named by its number"),
        ("9" * 30, "free", "named by its number"),
    ],
)
async def test_what_can_not_be_done_is_said(gateway, account, plan, complaint):
    gateway("keys", "create", "--name", "a")

    answer = gateway("accounts", "plan", account, plan)

    assert answer.returncode == 1
    assert complaint in answer.stderr


async def test_plans_without_a_row_are_named(gateway, opened):
    await opened.execute("insert into accounts (name, plan) values ('old', 'gone')")

    assert "so that the row `none` holds: gone" in gateway("accounts", "list").stdout


async def test_what_commands_do_is_written_down(gateway, opened):
    gateway("keys", "create", "--name", "a")
    gateway("keys", "limits", "a", "--tokens-per-day", "5", "--budget-day", "1")
    gateway("keys", "revoke", "a")

    rows = await opened.fetch("select action, actor_kind, account_id, after::text from audit_log order by id")

    assert [row["action"] for row in rows] == ["api_keys.create", "api_keys.update", "api_keys.revoke"]
    assert {row["actor_kind"] for row in rows} == {"operator"}
    assert '"tokens_per_day": 5' in rows[1]["after"]
