"""`gateway byok`, as a shell runs it."""

import subprocess
import sys

import pytest

from gateway.infra.postgres import Database
from tests.gateway.kernel.test_own_keys import put

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


def test_without_a_master_key_there_is_nothing_to_rotate_to(gateway):
    assert "there is no master key in [own_keys.masters]" in gateway("status").stdout
    assert "no master key to encrypt under" in gateway("rotate").stderr
