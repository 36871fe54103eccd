"""`gateway keys limits`, as a shell runs it."""

import subprocess
import sys

import msgspec
import pytest

from gateway.infra.redis import Redis
from gateway.kernel.key_store import create_key, find_key
from gateway.kernel.keys import CHANNEL
from gateway.kernel.limits import NO_LIMITS, Budget, Limits


@pytest.fixture
async def key(opened):
    return await create_key(opened, name="the key", pepper=b"x" * 16)


@pytest.fixture
def limits(tmp_path, environ, database, redis_url):
    environ = environ | {"DATABASE_URL": database, "REDIS_URL": redis_url}

    def limits(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway", "keys", "limits", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    return limits


async def test_what_is_named_is_changed_and_the_rest_stays(limits, opened, key):
    assert "has no limits" in limits(key.id).stdout

    first = limits(key.id, "--requests-per-minute", "60", "--concurrency", "2", "--budget-month", "25.5")
    second = limits("the key", "--concurrency", "none", "--tokens-per-day", "1000", "--budget-day", "1")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "requests per minute" in first.stdout
    assert "25.5" in second.stdout
    assert "concurrency" not in second.stdout
    found = await find_key(opened, key.id)
    assert found is not None
    assert found.limits == Limits(
        requests_per_minute=60,
        tokens_per_day=1000,
        budgets=(
            Budget(window="month", limit_nanos=25_500_000_000),
            Budget(window="day", limit_nanos=1_000_000_000),
        ),
    )


async def test_all_of_them_can_be_lifted_and_shown_to_programs(limits, opened, key):
    limits(key.id, "--requests-per-minute", "60", "--budget-total", "3")

    shown = limits(key.id, "--json")
    cleared = limits(key.id, "--clear", "--burst", "5", "--json")
    lifted = limits(key.id, "--clear", "--json")

    assert msgspec.json.decode(shown.stdout) == {
        "requests_per_minute": 60,
        "budgets": [{"window": "total", "limit_nanos": 3_000_000_000, "hard": True}],
    }
    assert msgspec.json.decode(cleared.stdout) == {"burst": 5}
    assert msgspec.json.decode(lifted.stdout) == {}
    assert await opened.fetch_value("select limits from keys") is None
    found = await find_key(opened, key.id)
    assert found is not None
    assert found.limits == NO_LIMITS


async def test_running_gateways_are_told_of_a_change_and_of_nothing_else(limits, key, redis_url):
    redis = Redis(redis_url, timeout_s=10)
    await redis.connect()
    heard = redis.subscribe(CHANNEL)
    assert await anext(heard) is None  # it listens now

    limits(key.id)
    limits(key.id, "--requests-per-minute", "1")
    limits(key.id, "--requests-per-minute", "1")
    await redis.execute("PUBLISH", CHANNEL, "the end")

    first, last = await anext(heard), await anext(heard)
    assert (first.data, last.data) == (key.id.encode(), b"the end")
    await redis.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nobody",), "no living key"),
        (("the key", "--burst", "-1"), "--burst: expected a whole number"),
        (("the key", "--requests-per-minute", "many"), "--requests-per-minute: expected a whole number"),
        (("the key", "--tokens-per-day", "1" + "0" * 13), "--tokens-per-day: expected a whole number"),
        (("the key", "--budget-day", "-3"), "--budget-day"),
        (("the key", "--budget-day", "ten"), "--budget-day"),
    ],
)
async def test_what_can_not_be_is_said(limits, key, arguments, says):
    done = limits(*arguments)

    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
