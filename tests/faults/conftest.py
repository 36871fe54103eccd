"""Servers that may be broken, and the loop of production."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
import uvloop

from tests.faults.servers import FragilePostgres, FragileValkey


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def valkey(request: pytest.FixtureRequest) -> Iterator[FragileValkey]:
    """One that has everything again when it was killed, or (parameter "forgetful") nothing."""
    with FragileValkey(keeps=getattr(request, "param", "") != "forgetful") as server:
        yield server


@pytest.fixture
def postgres() -> Iterator[FragilePostgres]:
    with FragilePostgres() as server:
        yield server
