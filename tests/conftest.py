"""Fixtures that any test may ask for. The stores are real; they start with the first test that needs one."""

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest
import trustme
from hypothesis import HealthCheck, settings

from tests.stores import TestStores

# No test fails because a machine was slow.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--worlds", type=int, default=300, help="how many worlds to simulate")
    parser.addoption("--first-world", type=int, default=0, help="the seed of the first world")


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are processors: the tests of outages, which are a group, mostly wait."""
    return len(os.sched_getaffinity(0)) + 1 if sys.platform == "linux" else (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session", autouse=True)
def authorities() -> Iterator[None]:
    """One authority for all that runs here, which signed nothing: no test may trust the world's, and to read all of
    those costs each gateway and each client 20 ms.
    """
    with pytest.MonkeyPatch.context() as patch, tempfile.NamedTemporaryFile(prefix="gw-authority-") as file:
        trustme.CA().cert_pem.write_to_path(file.name)
        patch.setenv("SSL_CERT_FILE", file.name)
        patch.setenv("SSL_CERT_DIR", os.devnull)
        yield


@pytest.fixture(scope="session")
def stores() -> Iterator[TestStores]:
    """PostgreSQL and Valkey of this test process."""
    servers = TestStores()
    try:
        yield servers
    finally:
        servers.close()


@pytest.fixture
def database(stores: TestStores) -> Iterator[str]:
    """The DSN of a freshly migrated database that only this test sees."""
    with stores.database() as dsn:
        yield dsn


@pytest.fixture
def empty_database(stores: TestStores) -> Iterator[str]:
    """The DSN of a database with nothing in it."""
    with stores.database(migrated=False) as dsn:
        yield dsn


@pytest.fixture
def redis_url(stores: TestStores) -> str:
    """The URL of a Valkey with nothing in it. One test has it at a time."""
    return stores.flush()
