"""A Redis that would lose balances, or does not let us in, is refused at the start; one that is not there yet is not."""

import socket

import pytest

from gateway.errors import ConfigError, StoreUnavailable
from gateway.infra.redis.fitness import demand_fitness
from tests.valkey_cluster import valkey


async def test_one_that_forgets_nothing_will_do():
    with valkey("--maxmemory-policy", "noeviction") as server:
        await demand_fitness(f"redis://127.0.0.1:{server.port}", timeout_s=5)


async def test_one_that_may_throw_keys_away_is_refused_with_the_remedy():
    with (
        valkey("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server,
        pytest.raises(ConfigError, match=r"REDIS_URL.*allkeys-lru.*noeviction"),
    ):
        await demand_fitness(f"redis://127.0.0.1:{server.port}", timeout_s=5)


@pytest.mark.parametrize("login", ["", ":wr0ng-pass@"])
async def test_one_that_does_not_let_us_in_is_refused_without_the_password(login):
    with valkey("--requirepass", "right") as server, pytest.raises(ConfigError, match="REDIS_URL") as caught:
        await demand_fitness(f"redis://{login}127.0.0.1:{server.port}", timeout_s=5)
    assert "wr0ng-pass" not in caught.value.message


async def test_one_that_is_not_there_yet_is_no_misconfiguration():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(StoreUnavailable):
            await demand_fitness(f"redis://127.0.0.1:{unused.getsockname()[1]}", timeout_s=1)
