"""PostgreSQL and Valkey for whoever gave no URL: real servers, started beside the gateway and gone with it.

Rules:
- One data directory has one owner: the process that holds `<data_dir>/lock` and started the servers. A second one is
  refused by name, because sharing would end the moment the first one exits. Short-lived commands `join` instead.
- Everything here is synchronous and without threads: the owner is a supervisor that forks.
- A server that dies alone is started again by `check`, with back-off. Its own lock tells when the last process of the
  old one is gone, so that no two ever write the same files.

This is for trying, developing and testing. For production give URLs; nothing else changes.
"""

import contextlib
import hashlib
import logging
import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.errors import ConfigError
from gateway.infra.binaries import find_postgres, find_valkey
from gateway.infra.children import Backoff, FileLock, command_line, spawn, wait_until
from gateway.infra.clock import Clock, SystemClock
from gateway.infra.programs import EmbeddedFailed, PostgresProgram, Program, ValkeyProgram, make_private
from gateway.settings import Settings

log = logging.getLogger(__name__)

#: A data directory may be busy for a moment: a command that ends, an owner that was just killed.
LOCK_WAIT_S = 2.0
JOIN_WAIT_S = 15.0
#: Crash recovery of a large database included.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
LOG_BYTES_MAX = 8 * 1024 * 1024
_LOG_TAIL_BYTES = 2000
#: `sun_path` is 104 bytes on macOS and 108 on Linux, with a closing NUL; PostgreSQL appends a longer name than we do.
_SOCKET_PATH_MAX = 103
_LONGEST_SOCKET = "/postgres/.s.PGSQL.5432"
#: Anything else would have to be escaped, differently, for each client library.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")


class DataDirBusy(EmbeddedFailed):
    """Another process owns this data directory."""


class Stores(NamedTuple):
    """Where the two stores are. Both are URLs that their clients take as they are."""

    #: For asyncpg, e.g. `postgresql://postgres@/gateway?host=/data/run/postgres`.
    database_dsn: str
    #: For Redis clients, e.g. `unix:///data/run/valkey.sock`.
    redis_url: str


class _Record(msgspec.Struct, frozen=True):
    """`<data_dir>/servers.json`: what a second command needs to join. Empty text: that one is not embedded."""

    pid: int
    database_dsn: str
    redis_url: str
    sockets: list[str]


class _Child:
    """One program under supervision: started, watched, started again, stopped."""

    def __init__(self, program: Program, data_dir: Path, clock: Clock) -> None:
        self.program = program
        self._clock = clock
        self._lock = FileLock(data_dir / f"{program.name}.lock", clock=clock)
        self._log_path = data_dir / f"{program.name}.log"
        self._log_from = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._backoff = Backoff()
        self._started_at = 0.0
        self._due_at = 0.0

    def start(self) -> None:
        """Start it; `wait` tells when it is up. Waits for the last process of an earlier one to go."""
        if not self._lock.acquire():
            self._end_orphan()
            if not self._lock.acquire(wait_s=STOP_TIMEOUT_S):
                raise EmbeddedFailed(f"an earlier {self.program.name} of this data directory does not end")
        with self._lock_handed_on(), self._open_log() as log_fd:
            self.program.prepare(log_fd, self._lock.fd)
            self._spawn(log_fd)

    def wait(self) -> None:
        """Until it answers.

        Raises: EmbeddedFailed with the end of its log.
        """
        process = self._process
        assert process is not None
        up = wait_until(
            lambda: process.poll() is not None or self.program.ready(process.pid),
            timeout_s=START_TIMEOUT_S,
            clock=self._clock,
        )
        if not up or process.poll() is not None:
            what = f"exited with status {process.returncode}" if up else f"was not ready within {START_TIMEOUT_S:g} s"
            raise EmbeddedFailed(f"{self.program.name} {what}; the end of its log:\n{self._log_tail()}")

    def check(self) -> None:
        """Start it again if it died and its time has come. Never waits."""
        now = self._clock.monotonic()
        if self._process is not None:
            if self._process.poll() is None:
                return
            delay_s = self._backoff.after(now - self._started_at)
            log.error(
                "%s (pid %d) ended with status %d, starting it again in %.1f s",
                self.program.name,
                self._process.pid,
                self._process.returncode,
                delay_s,
            )
            self._process = None
            self._due_at = now + delay_s
        if now < self._due_at or not self._lock.acquire():
            return
        try:
            with self._lock_handed_on(), self._open_log() as log_fd:
                self._spawn(log_fd)
        except OSError as error:
            self._due_at = now + self._backoff.after(0.0)
            log.error("%s can't be started: %s", self.program.name, error)  # noqa: TRY400  it will be tried again

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self.program.stop_signal)

    def stopped(self) -> None:
        """Wait until it ended; end it the hard way when it takes too long."""
        if self._process is None:
            return
        for harder in (signal.SIGQUIT, signal.SIGKILL):
            try:
                self._process.wait(STOP_TIMEOUT_S)
                break
            except subprocess.TimeoutExpired:
                log.warning("%s does not stop, sending %s", self.program.name, harder.name)
                self._process.send_signal(harder)
        self._process.wait()
        self._process = None

    def _spawn(self, log_fd: int) -> None:
        self._process = spawn(
            self.program.command(),
            log_fd=log_fd,
            identity=self.program.identity,
            death_signal=self.program.stop_signal,
            inherit=(self._lock.fd,),
        )
        self._lock.sign(self._process.pid)
        self._started_at = self._clock.monotonic()

    @contextlib.contextmanager
    def _lock_handed_on(self) -> Iterator[None]:
        """From here on the lock is the server's, or nobody's."""
        try:
            yield
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _open_log(self) -> Iterator[int]:
        if self._log_path.exists() and self._log_path.stat().st_size > LOG_BYTES_MAX:
            self._log_path.replace(self._log_path.with_suffix(".log.1"))
        log_fd = os.open(self._log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._log_from = os.fstat(log_fd).st_size
        try:
            yield log_fd
        finally:
            os.close(log_fd)

    def _log_tail(self) -> str:
        said = self._log_path.read_bytes()[self._log_from :]
        return said[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def _end_orphan(self) -> None:
        """Stop what an owner left behind that was killed where the kernel does not tell children.

        We hold the owner's lock, so whoever holds this one has none; its command line must still name our sockets.
        """
        pid = self._lock.holder()
        if pid is not None and os.fsencode(self.program.socket_path.parent) in command_line(pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, self.program.stop_signal)


class EmbeddedServers:
    """The embedded servers of one data directory, which is made when it is missing."""

    def __init__(self, data_dir: Path, *, postgres: bool, valkey: bool, clock: Clock | None = None) -> None:
        self._data_dir = data_dir.resolve()
        self._clock = clock or SystemClock()
        self._wanted = (postgres, valkey)
        self._lock = FileLock(self._data_dir / "lock", clock=self._clock)
        self._record_path = self._data_dir / "servers.json"
        self._children: list[_Child] = []

    def start(self) -> Stores:
        """Start what is wanted, side by side, and wait until all answer. The text of one not wanted is empty.

        Raises: DataDirBusy, EmbeddedFailed, ConfigError (nothing to run).
        """
        self._own()
        try:
            stores = self._start_all()
        except OSError as error:
            self.stop()
            raise EmbeddedFailed(f"the embedded servers can't be started in {self._data_dir}: {error}") from error
        except BaseException:
            self.stop()
            raise
        return stores

    def check(self) -> None:
        """Start again what died on its own. Call it often: it costs a system call for each server."""
        for child in self._children:
            child.check()

    def stop(self) -> None:
        """End all servers in good order and give the data directory back. Stopping twice is no error."""
        if not self._lock.held:
            return
        self._record_path.unlink(missing_ok=True)
        for child in self._children:
            child.ask_to_stop()
        for child in self._children:
            child.stopped()
        self._children.clear()
        self._lock.release()

    def __enter__(self) -> Stores:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _own(self) -> None:
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            owned = self._lock.acquire(wait_s=LOCK_WAIT_S)
        except OSError as error:
            raise EmbeddedFailed(f"the data directory {self._data_dir} can't be used: {error.strerror}") from error
        if not owned:
            raise DataDirBusy(
                f"another gateway (pid {self._lock.holder()}) runs with the data directory {self._data_dir}; "
                "stop it, or give this one another --data-dir"
            )
        self._lock.sign(os.getpid())

    def _start_all(self) -> Stores:
        run_dir = run_directory(self._data_dir)
        database_dsn = redis_url = ""
        # Valkey first: making a new PostgreSQL cluster takes half a second, which it can use.
        if self._wanted[1]:
            valkey = ValkeyProgram(self._data_dir, run_dir, find_valkey())
            redis_url = valkey.url
            self._start_child(valkey)
        if self._wanted[0]:
            postgres = PostgresProgram(self._data_dir, run_dir, find_postgres())
            database_dsn = postgres.dsn
            self._start_child(postgres)
        for child in self._children:
            child.wait()
        record = _Record(
            pid=os.getpid(),
            database_dsn=database_dsn,
            redis_url=redis_url,
            sockets=[str(child.program.socket_path) for child in self._children],
        )
        new = self._record_path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(record))
        new.replace(self._record_path)
        return Stores(database_dsn, redis_url)

    def _start_child(self, program: Program) -> None:
        child = _Child(program, self._data_dir, self._clock)
        self._children.append(child)
        child.start()


def join(data_dir: Path) -> Stores | None:
    """The servers that a running gateway has started in `data_dir`; None when there are none that answer."""
    try:
        record = msgspec.json.decode((data_dir / "servers.json").read_bytes(), type=_Record)
    except (OSError, msgspec.DecodeError):
        return None
    for path in record.sockets:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            try:
                client.connect(path)
            except OSError:
                return None
    return Stores(record.database_dsn, record.redis_url)


@contextlib.contextmanager
def open_stores(settings: Settings, *, make: bool = True, clock: Clock | None = None) -> Iterator[Stores]:
    """The stores for a command: those of the settings, else a running gateway's, else embedded ones for its duration.
    Unless it may `make` them, those have to be there: who mistypes a directory is not told that it is empty.

    Raises: EmbeddedFailed, ConfigError.
    """
    given = given_stores(settings)
    if all(given):
        yield given
        return
    data_dir = Path(settings.server.data_dir)
    if not make and not given.database_dsn and not (data_dir / PostgresProgram.name).is_dir():
        raise ConfigError(
            f"server.data_dir: no gateway has kept anything in {data_dir} yet; give the --data-dir of one that has",
            param="server.data_dir",
        )
    now = (clock or SystemClock()).monotonic
    deadline = now() + JOIN_WAIT_S
    while True:
        if (running := join(data_dir)) is not None:
            yield overlay(given, running)
            return
        servers = EmbeddedServers(data_dir, postgres=not given.database_dsn, valkey=not given.redis_url, clock=clock)
        try:
            started = servers.start()
        except DataDirBusy:
            # Its owner is starting or stopping: soon there is something to join, or the lock is free.
            if now() >= deadline:
                raise
        else:
            break
    try:
        yield overlay(given, started)
    finally:
        servers.stop()


def run_directory(data_dir: Path) -> Path:
    """The private directory for the sockets of `data_dir`: inside it, or a short one named after it, made if missing.

    Raises: ConfigError when somebody else has taken that name.
    """
    inside = data_dir.resolve() / "run"
    if _fit_for_sockets(inside):
        # A read-only file system is no reason to refuse a gateway whose stores are elsewhere.
        with contextlib.suppress(OSError):
            make_private(inside)
            return inside
    name = f"gateway-{os.geteuid()}-{hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]}"
    short = Path(tempfile.gettempdir()).resolve() / name
    if not _fit_for_sockets(short):
        short = Path("/tmp").resolve() / name  # noqa: S108  ours and closed to others, or refused
    make_private(short)
    return short


def _fit_for_sockets(directory: Path) -> bool:
    path = str(directory)
    return len(os.fsencode(path)) + len(_LONGEST_SOCKET) <= _SOCKET_PATH_MAX and bool(_PLAIN_PATH.fullmatch(path))


def given_stores(settings: Settings) -> Stores:
    """The URLs that the settings name; an empty text for each that they do not."""
    database, redis = settings.database.url, settings.redis.url
    return Stores(database.reveal() if database else "", redis.reveal() if redis else "")


def overlay(given: Stores, embedded: Stores) -> Stores:
    """What the settings name, completed by embedded servers.

    Raises: ConfigError when one is in neither.
    """
    whole = Stores(given.database_dsn or embedded.database_dsn, given.redis_url or embedded.redis_url)
    for url, name in zip(whole, ("DATABASE_URL", "REDIS_URL"), strict=True):
        if not url:
            raise ConfigError(f"the running gateway was started with its own {name}: set it for this command as well")
    return whole
