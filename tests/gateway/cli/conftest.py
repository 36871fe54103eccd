"""The shell that a command runs in: nothing of the one that runs the tests reaches the gateway under test."""

import os
import re

import pytest

from gateway.infra.postgres import Database

FOREIGN = re.compile(r"GATEWAY_.*|DATABASE_URL|REDIS_URL|.*_API_KEY|NO_COLOR|PYTHON.*")


@pytest.fixture
def environ(tmp_path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not FOREIGN.fullmatch(name)}  # noqa: TID251
    return inherited | {"GATEWAY__SERVER__DATA_DIR": str(tmp_path / "data")}


@pytest.fixture
async def opened(database):
    """The test's own database, to see what commands did to it."""
    async with Database(database, pool_size=1, timeout_s=20) as opened:
        yield opened
