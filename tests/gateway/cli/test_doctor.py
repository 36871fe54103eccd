"""Each finding of the doctor, on something well and on something ill."""

import resource
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest
import redis

import gateway
from gateway.cli.doctor import (
    examine_data_dir,
    examine_descriptors,
    examine_installation,
    examine_postgres,
    examine_redis,
    judge_skew,
)
from gateway.infra.clock import SystemClock
from gateway.secret import Secret
from gateway.settings import Database, Server, Settings


class Installed(metadata.Distribution):
    """A distribution with the metadata a test gives it."""

    def __init__(self, version: str, entry_points: str = "") -> None:
        self._version = version
        self._entry_points = entry_points

    @property
    def metadata(self):
        message = Message()
        message["Version"] = self._version
        return message

    def read_text(self, filename):
        return self._entry_points if filename == "entry_points.txt" else None

    def locate_file(self, path):
        raise NotImplementedError


def states(findings) -> list[str]:
    return [f"{finding.subject}: {finding.state}" for finding in findings]


# -- the installation ----------------------------------------------------------------------------------------


def test_fresh_entry_points_are_well():
    root = Path(gateway.__file__).parents[1]

    assert states(examine_installation(metadata.distribution("ai-gateway"), root)) == ["installation: ok"]


def test_an_entry_point_that_is_not_installed_fails(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project.entry-points."gateway.adapters"]\nnew = "a:B"\nold = "a:O"\n')
    installed = Installed(gateway.__version__, "[gateway.adapters]\nold = a:O\n")

    (finding,) = examine_installation(installed, tmp_path)

    assert (finding.state, finding.detail.rpartition(": ")[2]) == ("fail", "new")
    assert "pip install -e ." in finding.remedy


def test_another_version_than_the_code_is_a_warning(tmp_path):
    assert states(examine_installation(Installed("0.0.1"), tmp_path)) == ["installation: warn"]


def test_a_released_package_has_no_project_file(tmp_path):
    assert states(examine_installation(Installed(gateway.__version__), tmp_path)) == ["installation: ok"]


# -- the machine ---------------------------------------------------------------------------------------------


def data_dir(path: Path) -> Settings:
    return Settings(server=Server(data_dir=str(path)))


def test_a_data_directory_of_ones_own_is_well(tmp_path):
    tmp_path.chmod(0o700)

    assert states(examine_data_dir(data_dir(tmp_path))) == ["data directory: ok"]
    assert states(examine_data_dir(data_dir(tmp_path / "later"))) == ["data directory: ok"]


def test_a_data_directory_that_others_can_enter_is_a_warning(tmp_path):
    tmp_path.chmod(0o755)

    (finding,) = examine_data_dir(data_dir(tmp_path))

    assert finding.state == "warn"
    assert finding.remedy == f"chmod 700 {tmp_path}"


def test_a_data_directory_that_can_not_be_used_fails(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o500)

    for name in ("file", "locked"):
        assert states(examine_data_dir(data_dir(tmp_path / name))) == ["data directory: fail"]


@pytest.mark.parametrize(
    ("limits", "state", "remedy"),
    [
        ((1 << 20, 1 << 20), "ok", ""),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "ok", ""),
        ((2048, 1 << 20), "warn", "`ulimit -n 4352`"),
        ((2048, 2048), "warn", "raise the hard limit"),
        ((256, 1 << 20), "fail", "`ulimit -n 4352`"),
    ],
)
def test_file_descriptors_must_do_for_the_connections(limits, state, remedy):
    finding = examine_descriptors(Settings(), limits)

    assert finding.state == state
    assert remedy in finding.remedy


@pytest.mark.parametrize(("skew_s", "state"), [(0.2, "ok"), (-0.9, "ok"), (3.0, "warn"), (-31.0, "fail")])
def test_a_clock_may_differ_by_a_little(skew_s, state):
    assert judge_skew(skew_s).state == state


# -- the stores ----------------------------------------------------------------------------------------------


def with_database(dsn: str, **database) -> Settings:
    return Settings(database=Database(url=Secret(dsn), **database))


async def test_a_migrated_postgres_is_well(database):
    findings = await examine_postgres(with_database(database), database)

    assert states(findings) == ["PostgreSQL: ok", "migrations: ok"]


async def test_missing_migrations_are_a_warning_where_somebody_else_runs_the_server(empty_database):
    configured = await examine_postgres(with_database(empty_database), empty_database)
    embedded = await examine_postgres(Settings(), empty_database)

    assert states(configured)[-1] == "migrations: warn"
    assert "gateway migrate" in configured[-1].remedy
    assert states(embedded)[-1] == "migrations: ok"


async def test_more_pooled_connections_than_the_server_takes_are_a_warning(database):
    findings = await examine_postgres(with_database(database, pool_size=5000), database)

    assert states(findings) == ["PostgreSQL: ok", "PostgreSQL: warn", "migrations: ok"]


@pytest.mark.parametrize(
    "dsn", ["postgresql://127.0.0.1:1/x", "postgresql://?host=/nowhere", "postgresql://h?sslmode=x"]
)
async def test_a_postgres_that_does_not_answer_fails(dsn):
    findings = await examine_postgres(Settings(), dsn)

    assert states(findings) == ["PostgreSQL: fail"]
    assert findings[0].remedy


async def test_a_database_ahead_of_the_code_fails(empty_database):
    import asyncpg

    connection = await asyncpg.connect(empty_database)
    await connection.execute(
        "create table schema_migrations (version int, name text, checksum text);"
        "insert into schema_migrations values (9999, '9999_from_the_future.sql', 'x')"
    )
    await connection.close()

    findings = await examine_postgres(Settings(), empty_database)

    assert states(findings) == ["PostgreSQL: fail"]
    assert "9999_from_the_future.sql" in findings[0].detail


def test_a_valkey_is_well(redis_url):
    assert states(examine_redis(redis_url, SystemClock())) == ["Redis: ok", "eviction: ok", "clock: ok"]


def test_a_redis_that_forgets_on_its_own_fails(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            findings = examine_redis(redis_url, SystemClock())
        finally:
            client.config_set("maxmemory-policy", "noeviction")

    assert states(findings)[1] == "eviction: fail"
    assert "noeviction" in findings[1].remedy


class SlowClock:
    """Ninety seconds behind everybody."""

    def now(self) -> float:
        return SystemClock().now() - 90

    monotonic = SystemClock.monotonic


def test_a_clock_far_from_that_of_redis_fails(redis_url):
    (*_, finding) = examine_redis(redis_url, SlowClock())

    assert finding.state == "fail"
    assert "behind Redis" in finding.detail


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "unix:///nowhere.sock", "http://x"])
def test_a_redis_that_does_not_answer_fails(url):
    assert states(examine_redis(url, SystemClock())) == ["Redis: fail"]
