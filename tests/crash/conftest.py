"""What the tests that break things share: stores of one's own for each test."""

import contextlib
from collections.abc import Iterator

import pytest

from gateway.infra.embedded import Stores
from tests.stores import TestStores


@pytest.fixture
def own_stores(stores: TestStores) -> Iterator[Stores]:
    """An empty database and an empty Valkey: these tests read all of both when they are over."""
    with contextlib.ExitStack() as stack:
        dsn = stack.enter_context(stores.database())
        yield Stores(dsn, stores.flush())
