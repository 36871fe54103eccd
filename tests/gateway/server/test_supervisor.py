import contextlib
import http.client
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.infra.children import FileLock, wait_until
from tests.places import fast_place
from tests.valkey_cluster import valkey

PATIENCE_S = 60.0
REPOSITORY = Path(__file__).parents[3]


class Gateway:
    """A supervised gateway in a process of its own, and what one can do to it."""

    def __init__(self, data_dir: Path, **settings: object) -> None:
        self.data_dir = data_dir
        overrides = {"server.port": 0, "server.workers": 2, "server.data_dir": data_dir, **settings}
        self.log_path = data_dir.parent / "log"
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.gateway.server.supervised"]
                + [f"{name}={value}" for name, value in overrides.items()],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=REPOSITORY,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.bootstrapped = self.process.stdout.readline()
        self.url = self.process.stdout.readline().strip()

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname, self.log
        assert parts.port, self.log
        return parts.hostname, parts.port

    def get(self, path: str = "/") -> str:
        """The body, over a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def workers(self) -> set[int]:
        """The pids of those that answered."""
        return {int(self.get()) for _ in range(40)}

    @contextlib.contextmanager
    def open_stream(self) -> Iterator[socket.socket]:
        with socket.create_connection(self.address, timeout=PATIENCE_S) as client:
            client.sendall(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
            received = b""
            while b"begun\n\r\n" not in received:
                received += client.recv(4096)
            yield client

    def logged(self, text: str) -> None:
        assert wait_until(lambda: text in self.log, timeout_s=PATIENCE_S), self.log

    def refuses(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(self.address) != 0

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def read_rest(client: socket.socket) -> bytes:
    received = b""
    while chunk := client.recv(4096):
        received += chunk
    return received


def gone(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    return True


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw-server-", dir=fast_place()) as directory:
        path = Path(directory) / "data"
        path.mkdir()
        yield path


@pytest.fixture
def gateway(data_dir: Path, urls: dict[str, object]) -> Iterator[Gateway]:
    """Two workers, with stores given by URL."""
    process = Gateway(data_dir, **urls)
    try:
        yield process
    finally:
        process.close()


@pytest.fixture
def urls(database: str, redis_url: str) -> dict[str, object]:
    return {"database.url": database, "redis.url": redis_url}


@contextlib.contextmanager
def running(data_dir: Path, **settings: object) -> Iterator[Gateway]:
    process = Gateway(data_dir, **settings)
    try:
        yield process
    finally:
        process.close()


def test_every_worker_serves_and_all_end_in_order(gateway: Gateway) -> None:
    assert gateway.bootstrapped.startswith("bootstrap unix://")
    workers = gateway.workers()
    assert len(workers) == 2

    gateway.process.send_signal(signal.SIGTERM)

    assert gateway.wait() == 0
    assert all(gone(pid) for pid in workers)
    assert gateway.refuses()
    assert list(gateway.data_dir.glob("run/*")) == []


def total(text: str) -> int:
    match = re.search(r"^gateway_requests_total (\d+)$", text, re.MULTILINE)
    assert match, text
    return int(match[1])


def test_counts_of_all_workers_are_added_up_and_survive_a_crash(gateway: Gateway) -> None:
    workers = gateway.workers()
    before = total(gateway.get("/metrics"))
    assert before > 40

    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: gateway.log.count("is ready") == 4, timeout_s=PATIENCE_S), gateway.log

    assert total(gateway.get("/metrics")) >= before


def test_crashed_worker_is_replaced(gateway: Gateway) -> None:
    before = gateway.workers()

    with contextlib.suppress(http.client.HTTPException, ConnectionError):
        gateway.get("/crash")
    gateway.logged("ended with status 9")
    assert wait_until(lambda: gateway.log.count("is ready") == 3, timeout_s=PATIENCE_S), gateway.log

    after = gateway.workers()
    assert len(after) == 2
    assert len(after & before) == 1


def test_stream_finishes_while_draining_and_idle_connections_do_not_wait(gateway: Gateway) -> None:
    """Case 117."""
    idle = http.client.HTTPConnection(*gateway.address, timeout=PATIENCE_S)
    with gateway.open_stream() as stream, contextlib.closing(idle):
        idle.request("GET", "/")
        assert idle.getresponse().read()

        gateway.process.send_signal(signal.SIGTERM)

        assert idle.sock.recv(4096) == b""
        assert wait_until(gateway.refuses, timeout_s=PATIENCE_S)
        assert gateway.process.poll() is None
        (gateway.data_dir / "finish").touch()
        assert read_rest(stream).endswith(b"whole\n\r\n0\r\n\r\n")
        assert gateway.wait() == 0
        assert not (gateway.data_dir / "cancelled").exists()


def test_stream_that_does_not_finish_in_time_is_cancelled_and_may_settle(
    data_dir: Path, urls: dict[str, object]
) -> None:
    with running(data_dir, **urls, **{"server.grace_s": 0.2}) as gateway, gateway.open_stream() as stream:
        gateway.process.send_signal(signal.SIGTERM)

        assert gateway.wait() == 0
        assert (data_dir / "cancelled").exists()
        assert not read_rest(stream).endswith(b"0\r\n\r\n")
        assert "cancelling 1 requests" in gateway.log


def test_first_interrupt_at_the_terminal_drains_and_the_second_cancels(gateway: Gateway) -> None:
    with gateway.open_stream():
        # The terminal sends it to every process of the foreground.
        os.killpg(gateway.process.pid, signal.SIGINT)
        gateway.logged("told to stop")
        assert wait_until(gateway.refuses, timeout_s=PATIENCE_S)
        assert gateway.process.poll() is None

        os.killpg(gateway.process.pid, signal.SIGINT)

        assert gateway.wait() == 0
        assert (gateway.data_dir / "cancelled").exists()


def test_third_signal_kills(gateway: Gateway) -> None:
    workers = gateway.workers()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)

    for count in (1, 2, 3):
        gateway.process.send_signal(signal.SIGTERM)
        # Two signals that meet are one.
        assert wait_until(lambda count=count: gateway.log.count("told to stop") == count, timeout_s=PATIENCE_S)

    assert gateway.wait() == 0
    assert all(gone(pid) for pid in workers)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children of a killed parent on Linux only")
def test_killed_supervisor_takes_everything_with_it(data_dir: Path) -> None:
    with running(data_dir) as gateway:
        pids = gateway.workers()
        for name in ("postgres", "valkey"):
            pid = FileLock(data_dir / f"{name}.lock").holder()
            assert pid is not None
            pids.add(pid)

        gateway.process.kill()

        assert wait_until(lambda: all(gone(pid) for pid in pids), timeout_s=PATIENCE_S)
    with running(data_dir) as again:
        assert len(again.workers()) == 2
        again.process.send_signal(signal.SIGTERM)
        assert again.wait() == 0


def test_second_gateway_on_a_port_is_told_so(gateway: Gateway, urls: dict[str, object], tmp_path: Path) -> None:
    with running(tmp_path / "data", **urls, **{"server.port": gateway.address[1]}) as second:
        assert second.wait() == 1
        assert f"127.0.0.1:{gateway.address[1]} is in use by another program" in second.log

    assert len(gateway.workers()) == 2


def test_second_gateway_on_a_data_directory_is_told_so(data_dir: Path, tmp_path: Path) -> None:
    with running(data_dir) as first:
        second = Gateway(data_dir)
        second.close()
        assert second.process.returncode == 1
        assert f"another gateway (pid {first.process.pid})" in second.log


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("factory", "the factory refuses"),
        ("lifespan", "RuntimeError: the application refuses"),
        ("exit", "(status 7)"),
    ],
)
def test_worker_that_never_starts_aborts_the_start_with_its_reason(
    data_dir: Path, urls: dict[str, object], how: str, reason: str
) -> None:
    with running(data_dir, **urls, fail=how) as gateway:
        assert gateway.wait() == 1
        assert gateway.url == ""
        assert f"StartFailed: a worker did not start (status {7 if how == 'exit' else 1})" in gateway.log
        assert reason in gateway.log.splitlines()[-1]


def test_stores_that_are_away_abort_the_start(data_dir: Path, tmp_path: Path, redis_url: str) -> None:
    dsn = f"postgresql://postgres@/gateway?host={tmp_path}"
    with running(data_dir, **{"database.url": dsn, "redis.url": redis_url}) as gateway:
        assert gateway.wait() == 1
        assert "StoreUnavailable" in gateway.log


def test_redis_that_may_throw_balances_away_aborts_the_start(data_dir: Path, urls: dict[str, object]) -> None:
    with valkey("--maxmemory-policy", "allkeys-lru") as server:
        redis_url = f"redis://127.0.0.1:{server.port}"
        with running(data_dir, **{**urls, "redis.url": redis_url}) as gateway:
            assert gateway.wait() == 1
            assert "maxmemory-policy is allkeys-lru" in gateway.log.splitlines()[-1]


def test_a_terminal_that_closes_ends_it(data_dir: Path, urls: dict[str, object]) -> None:
    """A shell signals SIGHUP when its window is closed; where there is no terminal, that means to load files again."""
    settings = {"server.port": 0, "server.workers": 1, "server.data_dir": data_dir, **urls}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY)
        given = [f"{name}={value}" for name, value in settings.items()]
        os.execv(sys.executable, [sys.executable, "-m", "tests.gateway.server.supervised", *given])
    shown = b""
    while b"http://" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, timeout_s=PATIENCE_S)


def test_reload_replaces_all_workers_and_finishes_what_runs(
    data_dir: Path, urls: dict[str, object], tmp_path: Path
) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[log]\nlevel = "info"\n')
    with running(data_dir, **urls, config=config) as gateway, gateway.open_stream() as stream:
        before = gateway.workers()
        assert gateway.get("/level") == "info"
        config.write_text('[log]\nlevel = "warning"\n[server]\nworkers = 3\n')

        gateway.process.send_signal(signal.SIGHUP)

        while "reloaded" not in gateway.log:
            # Nobody is turned away meanwhile.
            assert gateway.get("/level") in {"info", "warning"}
        assert wait_until(lambda: not before & gateway.workers(), timeout_s=PATIENCE_S)
        assert gateway.get("/level") == "warning"
        (data_dir / "finish").touch()
        assert read_rest(stream).endswith(b"0\r\n\r\n")
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.wait() == 0


def test_changed_file_is_loaded_without_being_told(data_dir: Path, urls: dict[str, object], tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("")
    with running(data_dir, **urls, config=config) as gateway:
        for level in ("warning", "debug"):
            config.write_text(f'[log]\nlevel = "{level}"\n')
            assert wait_until(lambda level=level: gateway.get("/level") == level, timeout_s=PATIENCE_S)


def test_bad_configuration_is_not_loaded(data_dir: Path, urls: dict[str, object], tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("[log]\n")
    with running(data_dir, **urls, config=config) as gateway:
        before = gateway.workers()
        config.write_text('[log]\nlevle = "info"\n')

        gateway.process.send_signal(signal.SIGHUP)

        gateway.logged("the new configuration is not used")
        assert gateway.workers() == before


def test_configuration_that_workers_refuse_is_not_used(
    data_dir: Path, urls: dict[str, object], tmp_path: Path
) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("[log]\n")
    with running(data_dir, **urls, config=config) as gateway:
        before = gateway.workers()
        config.write_text('[log]\nlevel = "error"\n')

        gateway.process.send_signal(signal.SIGHUP)

        gateway.logged("the new configuration is not used: the application refuses this level")
        assert gateway.workers() == before
        # And the next one is.
        config.write_text('[log]\nlevel = "warning"\n')
        gateway.process.send_signal(signal.SIGHUP)
        gateway.logged("reloaded")


def test_servers_that_die_are_started_again(data_dir: Path) -> None:
    with running(data_dir) as gateway:
        pid = FileLock(data_dir / "valkey.lock").holder()
        assert pid is not None

        os.kill(pid, signal.SIGKILL)

        gateway.logged("valkey (pid")
        assert wait_until(lambda: FileLock(data_dir / "valkey.lock").holder() != pid, timeout_s=PATIENCE_S)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.wait() == 0
