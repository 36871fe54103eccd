"""Processes of a run: with a clean environment, their output in the scratch directory, ended by their own id."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from benchmarks.machine import descendants, pin
from gateway.infra.clock import SystemClock

_CLOCK: Final = SystemClock()

#: How long a server may take to end by itself before it is killed.
_STOP_S: Final = 20.0
_POLL_S: Final = 0.005
#: What a server gets to see of our environment: no provider keys, no proxies, no database of somebody's own.
_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "USER")


class NotReady(Exception):
    """A server ended, or did not answer in time; the message holds the end of its log."""


class Process:
    """A running server and whatever it starts."""

    def __init__(self, command: list[str], *, log: Path, core: int | None = None) -> None:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}  # noqa: TID251
        self.log = log
        self.started_s = _CLOCK.monotonic()
        with log.open("ab") as output:
            # An own session, so that Ctrl-C reaches the harness alone, which then ends its servers in order.
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self.pid = self._process.pid
        if core is not None:
            pin(self.pid, core=core)

    def await_http(self, *, port: int, path: str, timeout_s: float) -> float:
        """Seconds from exec to the first 200 on `path`.

        Raises NotReady.
        """
        request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()
        while _CLOCK.monotonic() - self.started_s < timeout_s:
            if self._process.poll() is not None:
                raise NotReady(f"ended with status {self._process.returncode}\n{self.log_end()}")
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), timeout=1.0) as probe,
            ):
                probe.sendall(request)
                if probe.recv(64).startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
                    return _CLOCK.monotonic() - self.started_s
            time.sleep(_POLL_S)
        raise NotReady(f"no 200 on {path} within {timeout_s:g} s\n{self.log_end()}")

    def log_end(self) -> str:
        """The last lines of the output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def family(self) -> list[int]:
        """This process and everything below it."""
        return [self.pid, *descendants(self.pid)]

    def stop(self) -> None:
        """SIGTERM, time to end, and SIGKILL for whatever is left of the family."""
        family = self.family()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
            return
        except subprocess.TimeoutExpired:
            pass
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
