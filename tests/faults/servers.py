"""Servers of one test's own that it may stop, pause, empty and start again."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from gateway.infra.binaries import find_valkey
from gateway.infra.children import spawn, wait_until
from gateway.infra.embedded import EmbeddedServers
from gateway.infra.programs import ValkeyProgram
from tests.places import fast_place

START_S = 30.0


class FragileValkey:
    """A Valkey, with an append-only file or without. Use it with `with`."""

    def __init__(self, *, keeps: bool = True) -> None:
        """Not `keeps`: it comes back empty."""
        self._keeps = keeps
        # Short: the path of a socket has room for about a hundred bytes.
        self._dir = Path(tempfile.mkdtemp(prefix="gw-valkey-", dir=fast_place()))
        self._program = ValkeyProgram(self._dir, self._dir, find_valkey())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._program.url

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = self._program.command()
        if not self._keeps:
            command[command.index("--appendonly") + 1] = "no"
        with (self._dir / "log").open("ab") as log:
            self._program.prepare(log.fileno(), -1)
            process = self._process = spawn(command, log_fd=log.fileno(), death_signal=signal.SIGKILL)
        assert wait_until(lambda: self._program.ready(process.pid), timeout_s=START_S), (
            self._dir / "log"
        ).read_text()

    def kill(self) -> None:
        """At once, without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """It keeps its connections, and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def empty(self) -> None:
        """Everything in it is gone."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self._program.socket_path))
            client.sendall(b"FLUSHALL SYNC\r\n")
            assert client.recv(64) == b"+OK\r\n"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._dir)


class FragilePostgres:
    """A PostgreSQL. Use it with `with`."""

    def __init__(self) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="gw-pg-", dir=fast_place()))
        self._servers = EmbeddedServers(self._dir, postgres=True, valkey=False)
        self.dsn = ""

    def stop(self) -> None:
        """Cut every connection and end."""
        os.kill(self._pid(), signal.SIGINT)
        assert wait_until(lambda: not self._file.exists(), timeout_s=START_S)

    def start(self) -> None:
        """Come back."""

        def ready() -> bool:
            self._servers.check()
            with contextlib.suppress(OSError, IndexError):
                return self._file.read_text().splitlines()[7].strip() == "ready"
            return False

        assert wait_until(ready, timeout_s=START_S)

    def pause(self) -> None:
        """It and all its children keep their connections, and say nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._family():
            # A child may end between being listed and being told.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def _file(self) -> Path:
        return self._dir / "postgres" / "postmaster.pid"

    def _pid(self) -> int:
        return int(self._file.read_text().splitlines()[0])

    def _family(self) -> Iterator[int]:
        parent = self._pid()
        # The parent first: it must not notice what happens to its children.
        yield parent
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            yield int(pid)

    def __enter__(self) -> Self:
        self.dsn = self._servers.start().database_dsn
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, IndexError):
            self.resume()
        self._servers.stop()
        shutil.rmtree(self._dir)
