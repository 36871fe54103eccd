"""Every test of the client runs on both loops: uvloop is what serves, asyncio's own is what others embed."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from gateway.settings import Upstream
from gateway.upstream import UpstreamClient


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def client() -> AsyncIterator[UpstreamClient]:
    """A client with default settings, which has let go of everything when the test is over."""
    client = UpstreamClient(Upstream())
    yield client
    await client.close()
