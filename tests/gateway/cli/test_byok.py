"""`gateway byok`, as a shell runs it."""

import subprocess
import sys

import pytest

from gateway.infra.clock import SystemClock
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.own_keys import announce_masters, count_by_master
from gateway.kernel.vault import Vault
from tests.gateway.kernel.test_own_keys import BOTH, put

MASTERS = {"GATEWAY__OWN_KEYS__MASTERS__K1": "01" * 32, "GATEWAY__OWN_KEYS__MASTERS__K2": "02" * 32}


@pytest.fixture
async def opened(database):
    async with Database(database, pool_size=1, timeout_s=20) as opened:
        await opened.execute("insert into accounts (id, name) overriding system value values (7, 'seven')")
        yield opened


@pytest.fixture
def gateway(tmp_path, environ, database, redis_url):
    environ = environ | {"DATABASE_URL": database, "REDIS_URL": redis_url}

    def gateway(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway", "byok", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environ | more, capture_output=True, text=True, timeout=60, check=False
        )

    return gateway


async def test_keys_are_moved_to_the_active_master_key(gateway, opened):
    for number in range(5):
        await put(opened, f"sk-{number}")

    before = gateway("status", **MASTERS, GATEWAY__OWN_KEYS__ACTIVE="k2")
    done = gateway("rotate", "--batch", "2", **MASTERS, GATEWAY__OWN_KEYS__ACTIVE="k2")
    again = gateway("rotate", **MASTERS, GATEWAY__OWN_KEYS__ACTIVE="k2")

    assert before.returncode == 0, before.stderr
    assert "decrypts" in before.stdout
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5 keys are encrypted under k2 now, as are all others\n"
    assert "4 of 5 keys encrypted under k2" in done.stderr
    assert again.stdout == "0 keys are encrypted under k2 now, as are all others\n"
    assert "sk-" not in done.stdout + done.stderr


async def test_a_missing_master_key_is_told(gateway, opened):
    await put(opened, "sk-1")
    masters = {"GATEWAY__OWN_KEYS__MASTERS__K2": MASTERS["GATEWAY__OWN_KEYS__MASTERS__K2"]}

    status, rotate = gateway("status", **masters), gateway("rotate", **masters)

    assert status.returncode == 1
    assert "missing: these keys can't be used" in status.stdout
    assert rotate.returncode == 1
    assert "1 keys can't be decrypted and stay as they are" in rotate.stdout


async def test_nothing_is_moved_to_a_master_key_that_a_running_gateway_lacks(gateway, opened, redis_url):
    await put(opened, "sk-1")
    redis = Redis(redis_url, timeout_s=10)
    await redis.connect()
    now_s = SystemClock().now()
    await announce_masters(redis, "old", Vault({"k1": b"\1" * 32}, active="k1"), now_s=now_s)
    await announce_masters(redis, "gone", Vault({"k1": b"\1" * 32}, active="k1"), now_s=now_s - 1000)
    await announce_masters(redis, "new", Vault({"k1": b"\1" * 32, "k2": b"\2" * 32}, active="k2"), now_s=now_s)

    refused = gateway("rotate", **MASTERS, GATEWAY__OWN_KEYS__ACTIVE="k2")
    counts = await count_by_master(opened)
    await announce_masters(redis, "old", BOTH, now_s=SystemClock().now())
    done = gateway("rotate", **MASTERS, GATEWAY__OWN_KEYS__ACTIVE="k2")
    await redis.close()

    assert refused.returncode == 1
    assert "1 running workers do not have the master key k2" in refused.stderr
    assert counts == {"k1": 1}
    assert done.returncode == 0, done.stderr
    assert await count_by_master(opened) == {"k2": 1}


def test_without_a_master_key_there_is_nothing_to_rotate_to(gateway):
    assert "there is no master key in [own_keys.masters]" in gateway("status").stdout
    assert "no master key to encrypt under" in gateway("rotate").stderr
