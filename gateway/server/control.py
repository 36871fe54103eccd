"""The supervisor's control socket: a client sends one line, gets an answer, and that is the end of the connection.

Only this user can reach it. Nothing here waits: clients that are slow, or say nothing, are dropped after a while.
"""

import contextlib
import os
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.infra.clock import Clock

CLIENTS_MAX = 64
CLIENT_TIMEOUT_S = 10.0
_REQUEST_BYTES_MAX = 256


@dataclass(eq=False)
class _Client:
    connection: socket.socket
    close_at: float
    request: bytes = b""
    answer: memoryview | None = None


class ControlSocket:
    """Answers the lines it knows, in the loop of `selector`; others get an empty answer.

    Each registration's data is a callable: call it when its file is ready.
    """

    def __init__(self, selector: selectors.BaseSelector, directory: Path, *, clock: Clock) -> None:
        self._selector = selector
        self._answers: dict[bytes, Callable[[], bytes]] = {}
        self._clock = clock
        self._clients: set[_Client] = set()
        for left in directory.glob("control-*.sock"):
            # By one that was killed; its pid may be anybody's now.
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(left)) != 0:
                    left.unlink(missing_ok=True)
        self.path = directory / f"control-{os.getpid()}.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self.path.chmod(0o600)
        self._listener.listen(CLIENTS_MAX)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def answer(self, request: bytes, make: Callable[[], bytes]) -> None:
        """Answer the line `request`, its end included, with what `make` returns."""
        self._answers[request] = make

    def expire(self) -> None:
        """Drop clients that took too long."""
        now = self._clock.monotonic()
        for client in [client for client in self._clients if now >= client.close_at]:
            self._drop(client)

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        # Whatever it is, a client without an answer is less than a gateway without a supervisor.
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if len(self._clients) >= CLIENTS_MAX:
                connection.close()
                return
            connection.setblocking(False)
            client = _Client(connection, self._clock.monotonic() + CLIENT_TIMEOUT_S)
            self._clients.add(client)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._serve(client))

    def _serve(self, client: _Client) -> None:
        try:
            if client.answer is None:
                data = client.connection.recv(_REQUEST_BYTES_MAX)
                client.request += data
                if not data or len(client.request) > _REQUEST_BYTES_MAX:
                    self._drop(client)
                    return
                if not client.request.endswith(b"\n"):
                    return
                client.answer = memoryview(self._answers.get(client.request, bytes)())
                self._selector.modify(client.connection, selectors.EVENT_WRITE, lambda: self._serve(client))
            sent = client.connection.send(client.answer)
            client.answer = client.answer[sent:]
            if not client.answer:
                self._drop(client)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        self._selector.unregister(client.connection)
        client.connection.close()
