"""The listening sockets: one for each worker on one address.

Rules:
- A busy port is an error with the address in it. `SO_REUSEPORT` alone would let a second gateway of the same user
  share the port and take half of its connections, so the address is tried without it first.
- Where `SO_REUSEPORT` does not spread connections (anywhere but Linux), all workers share one socket.
- The sockets are bound here and listened on by the workers: nothing queues for a worker that is not there yet.
"""

import contextlib
import errno
import socket
import sys
from typing import Any

from gateway.errors import ConfigError

_SPREADS = sys.platform == "linux"


class AddressRefused(ConfigError):
    """The gateway can't listen on this address."""


class Listening:
    """The bound sockets, by worker slot. Making one binds the address.

    Raises: AddressRefused, naming the address and what to do.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        try:
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self._family: socket.AddressFamily = found[0][0]
            # An address family's own tuple; its second item is the port.
            self._address: Any = found[0][4]
            if _SPREADS and port:
                self._bind(shared=False).close()
            first = self._bind(shared=_SPREADS)
        except socket.gaierror as error:
            raise AddressRefused(f"server.host: {host!r} is not an address: {error.strerror}") from error
        except OSError as error:
            raise AddressRefused(_explain(host, port, error)) from error
        # Port 0 is decided now, and the others have to be on the same one.
        self._address = first.getsockname()
        self._sockets: dict[int, socket.socket] = {0: first}
        #: Where the kernel does not spread, the one that all others are copies of.
        self._original = None if _SPREADS else first.dup()

    @property
    def port(self) -> int:
        return int(self._address[1])

    @property
    def url(self) -> str:
        """Where a client on this machine finds us."""
        host = {"": "localhost", "0.0.0.0": "localhost", "::": "localhost"}.get(self._host, self._host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def occupy(self, slot: int) -> None:
        """Have a socket for `slot`.

        Raises: OSError.
        """
        if slot not in self._sockets:
            self._sockets[slot] = self._bind(shared=True) if self._original is None else self._original.dup()

    def vacate(self, slot: int) -> None:
        """Close the socket of `slot`: connections go to the other slots, or are refused."""
        if slot in self._sockets:
            self._sockets.pop(slot).close()

    def shrink(self, count: int) -> None:
        """Vacate all slots from `count` on; their workers close theirs as they end."""
        for slot in [slot for slot in self._sockets if slot >= count]:
            self.vacate(slot)

    def keep_only(self, slot: int) -> socket.socket:
        """In a worker: the socket of its slot; the others are closed."""
        kept = self._sockets.pop(slot)
        self.close()
        return kept

    def close(self) -> None:
        """Close ours. Connections are refused once the workers have closed theirs."""
        for slot in list(self._sockets):
            self.vacate(slot)
        if self._original is not None:
            self._original.close()

    def _bind(self, *, shared: bool) -> socket.socket:
        listener = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            # Else a restart has to wait for the old connections' last packets.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self._family == socket.AF_INET6:
                # `::` means every address of either kind.
                with contextlib.suppress(OSError):
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(self._address)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        return listener


def _explain(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{host}:{port} is in use by another program: stop it, or choose another --port"
    if error.errno == errno.EACCES:
        return f"{host}:{port} needs more rights than this user has: choose a --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine: check server.host"
    return f"can't listen on {host}:{port}: {error.strerror}"
