"""How each embedded server is run: its command line, its files, and how to see that it is up.

Rules:
- Sockets only, in a directory that only we can enter: the servers trust whoever can connect.
- Durability is the production one (PostgreSQL syncs at commit, Valkey's append-only file each second): what is kept
  here is real money to whoever tries the gateway with real keys.
- A new PostgreSQL cluster is made beside its place and renamed, so a half-made one is never used.

When they are started, watched and stopped is decided in `gateway/infra/embedded.py`.
"""

import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from gateway.errors import ConfigError, GatewayError
from gateway.infra.binaries import PostgresPrograms
from gateway.infra.children import Identity, nobody, spawn, unprivileged

log = logging.getLogger(__name__)

DATABASE_NAME = "gateway"
#: Enough for 64 workers with pools of 4, and some commands beside them.
CONNECTIONS_MAX = 300


class EmbeddedFailed(GatewayError):
    """An embedded server did not start."""

    error_type = "gateway_config"


class Program(Protocol):
    """A server program: what to run, and how to know that it is up."""

    name: str
    data_dir: Path
    identity: Identity
    #: Ends it in good order: it finishes what it does, writes, and exits.
    stop_signal: signal.Signals
    #: What a client connects to.
    socket_path: Path

    def prepare(self, log_fd: int, lock_fd: int) -> None:
        """Make its data directory where there is none."""
        ...

    def command(self) -> list[str]: ...

    def ready(self, pid: int) -> bool:
        """Whether the process `pid` answers."""
        ...


class PostgresProgram:
    """PostgreSQL, on a Unix socket, trusting whoever may enter the socket's directory."""

    name = "postgres"
    stop_signal = signal.SIGINT

    def __init__(self, data_dir: Path, run_dir: Path, programs: PostgresPrograms) -> None:
        self.data_dir = data_dir / "postgres"
        self.socket_dir = run_dir / "postgres"
        self.socket_path = self.socket_dir / ".s.PGSQL.5432"
        self.identity = unprivileged()
        self.dsn = f"postgresql://postgres@/{DATABASE_NAME}?host={quote(str(self.socket_dir), safe='/')}"
        self._programs = programs
        make_private(self.socket_dir, owners=(os.geteuid(), nobody()[0]))
        if self.identity is Identity.NOBODY:
            self._hand_over(data_dir, run_dir)

    def prepare(self, log_fd: int, lock_fd: int) -> None:
        if (self.data_dir / "PG_VERSION").exists():
            return
        new = self.data_dir.with_name("postgres.new")
        shutil.rmtree(new, ignore_errors=True)
        make_private(new)
        if self.identity is Identity.NOBODY:
            os.chown(new, *nobody())
        log.info("creating a PostgreSQL database in %s", self.data_dir)
        # --no-sync: nothing is in it yet that a crash of the machine could take.
        initdb = [str(self._programs.bin / "initdb"), "-D", str(new), "-U", "postgres", "-E", "UTF8", "--locale=C"]
        self._run([*initdb, "--auth=trust", "--no-sync", "--no-instructions"], log_fd, lock_fd)
        single = [str(self._programs.bin / "postgres"), "--single", "-D", str(new), "postgres"]
        self._run(single, log_fd, lock_fd, said=f"create database {DATABASE_NAME}\n".encode())
        new.rename(self.data_dir)

    def command(self) -> list[str]:
        settings = {
            "unix_socket_permissions": "0700",
            "max_connections": str(CONNECTIONS_MAX),
            # /dev/shm is 64 MB in a container and absent in some.
            "dynamic_shared_memory_type": "mmap",
            "log_checkpoints": "off",
            "log_line_prefix": "%m [%p] ",
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        program = str(self._programs.bin / "postgres")
        return [program, "-D", str(self.data_dir), "-k", str(self.socket_dir), "-h", "", *flags]

    def ready(self, pid: int) -> bool:
        """The server writes its state into the eighth line of its pid file."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text("ascii").splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _run(self, argv: list[str], log_fd: int, lock_fd: int, *, said: bytes = b"") -> None:
        # SIGKILL: what it was making is thrown away anyway.
        death = signal.SIGKILL
        child = spawn(
            argv, log_fd=log_fd, identity=self.identity, death_signal=death, inherit=(lock_fd,), stdin=subprocess.PIPE
        )
        child.communicate(said)
        if child.returncode != 0:
            raise EmbeddedFailed(f"{Path(argv[0]).name} failed with exit status {child.returncode}")

    def _hand_over(self, data_dir: Path, run_dir: Path) -> None:
        """Give `nobody` what is its own, and a way to it; the way up to the data directory is not ours to open."""
        for parent in data_dir.parents:
            if not parent.stat().st_mode & stat.S_IXOTH:
                raise EmbeddedFailed(
                    f"PostgreSQL does not run as root, user namespaces are forbidden here, and {parent} keeps other "
                    "users out: choose another --data-dir, run as an ordinary user, or set DATABASE_URL"
                )
        for ours in (data_dir, run_dir):
            ours.chmod(stat.S_IMODE(ours.stat().st_mode) | stat.S_IXOTH)
        os.chown(self.socket_dir, *nobody())
        if self.data_dir.exists() and self.data_dir.stat().st_uid != nobody()[0]:
            for path in (self.data_dir, *self.data_dir.rglob("*")):
                os.chown(path, *nobody(), follow_symlinks=False)
        self._programs = _readable(self._programs, data_dir / "programs")


class ValkeyProgram:
    """Valkey or Redis, on a Unix socket, with an append-only file synced every second."""

    name = "valkey"
    stop_signal = signal.SIGTERM
    identity = Identity.OWN

    def __init__(self, data_dir: Path, run_dir: Path, program: Path) -> None:
        self.data_dir = data_dir / "valkey"
        self.socket_path = run_dir / "valkey.sock"
        self.url = f"unix://{self.socket_path}"
        self._program = program

    def prepare(self, log_fd: int, lock_fd: int) -> None:
        make_private(self.data_dir)

    def command(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # Money is in here: running out of memory must be an error, not a key that vanishes.
            "maxmemory-policy": "noeviction",
            "logfile": "",
            "daemonize": "no",
        }
        return [str(self._program), *(part for name, value in settings.items() for part in (f"--{name}", value))]

    def ready(self, pid: int) -> bool:
        """It answers `PING` once the append-only file is loaded."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(1.0)
                client.connect(str(self.socket_path))
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def make_private(path: Path, *, owners: tuple[int, ...] = ()) -> None:
    """Make `path`, a directory of ours, and close it to others.

    Raises: ConfigError when it belongs to somebody who is not among `owners` (default: this user).
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if path.is_symlink() or found.st_uid not in (owners or (os.geteuid(),)):
        raise ConfigError(f"{path} does not belong to this user")
    if found.st_mode & 0o077:
        path.chmod(0o700)


def _readable(programs: PostgresPrograms, copy_dir: Path) -> PostgresPrograms:
    """Programs that `nobody` can execute: the same, or a copy of them where the path to them is closed."""
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in programs.bin.parents):
        return programs
    for part in programs.parts:
        source, copy = programs.root / part, copy_dir / part
        if source.exists() and not copy.exists():
            new = copy.with_name(f"{copy.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(source, new, symlinks=True)
            new.rename(copy)
    for parent in (copy_dir, *(copy_dir / part for part in programs.parts)):
        for each in (parent, *parent.parents):
            if each.is_relative_to(copy_dir) and each.exists():
                each.chmod(0o755)
    return PostgresPrograms(copy_dir / programs.bin.relative_to(programs.root), programs.parts, copy_dir)
