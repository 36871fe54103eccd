"""The gateway as its callers meet it: official SDKs and raw sockets in front, scripted providers behind, real stores.

Everything runs on uvloop, as in production. A test that asks for `server` runs three times: on the gateway's own
protocol and on both of uvicorn's.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvloop

from gateway.infra.embedded import Stores
from gateway.secret import Secret
from gateway.settings import Provider
from tests.gateways import PROVIDER_KEY, SERVERS, RunningGateway, ServerKind
from tests.stores import TestStores
from tests.upstreams import Script, ScriptedUpstream


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def shared_database(stores: TestStores) -> Iterator[str]:
    """One database for all gateways of this process: each makes a key of its own, and none sees the others'."""
    with stores.database() as dsn:
        yield dsn


@pytest.fixture
def both_stores(stores: TestStores, shared_database: str, redis_url: str) -> Stores:
    # Redis was just emptied. A test before may have settled what was in it: to the ledger, a stream that ends before the
    # cursor is one that lost records, and no account is loaded before the books have seen to it.
    stores.execute(shared_database, "delete from settle_cursors")
    return Stores(shared_database, redis_url)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> ServerKind:
    """Who speaks HTTP to the callers."""
    kind: ServerKind = request.param
    return kind


class Stage:
    """Puts gateways and providers up for one test."""

    def __init__(self, stack: contextlib.AsyncExitStack, stores: Stores) -> None:
        self._stack = stack
        self.stores = stores

    async def upstream(self, *scripts: Script) -> ScriptedUpstream:
        return await self._stack.enter_async_context(ScriptedUpstream(*scripts))

    def provider(self, upstream: ScriptedUpstream, **options: Any) -> Provider:
        """What the configuration says of `upstream`."""
        options = {"adapter": "openai", "base_url": f"{upstream.url}/v1", "api_key": Secret(PROVIDER_KEY)} | options
        return Provider(**options)

    async def gateway(self, *scripts: Script, **options: Any) -> tuple[RunningGateway, ScriptedUpstream]:
        """A gateway in front of one provider that plays `scripts`."""
        upstream = await self.upstream(*scripts)
        options = {"providers": {"local": upstream}} | options
        return await self._stack.enter_async_context(RunningGateway(self.stores, **options)), upstream


@pytest.fixture
async def stage(both_stores: Stores) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        yield Stage(stack, both_stores)
