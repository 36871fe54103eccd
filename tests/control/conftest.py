"""The control plane over real stores, in the loop of the test: no server between, so that thousands of requests are
quick. What a server adds is tested in tests/acceptance.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.infra.embedded import Stores
from tests.control.desk import Desk
from tests.stores import TestStores


@pytest.fixture(scope="session")
def people_database(stores: TestStores) -> Iterator[str]:
    """One database for all desks of this process: each test makes people of its own."""
    with stores.database() as dsn:
        yield dsn


@pytest.fixture
async def desk(people_database: str, redis_url: str) -> AsyncIterator[Desk]:
    async with contextlib.AsyncExitStack() as stack:
        yield await stack.enter_async_context(Desk(Stores(people_database, redis_url)))
