"""Where requests go: a URL taken apart once, its address looked up once, and connections to it.

Names are looked up before the load starts, so that a run measures the server and not the resolver. Of several
addresses the first that accepts is used for the whole run.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Final, TypeVar
from urllib.parse import urlsplit

from gateway.loadtest.connection import Connection

#: For the TCP and TLS handshakes together.
CONNECT_TIMEOUT_S: Final = 10.0

P = TypeVar("P", bound=asyncio.Protocol)


class Unreachable(Exception):
    """No connection; the message is a kind of error fit for a table."""


class Origin:
    """An `http` or `https` URL to send requests to."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is not an http or https URL")
        self.url = url
        self.host = parts.hostname
        self.tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        self.authority = parts.netloc.rpartition("@")[2]
        self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._address: tuple[str, int] | None = None

    def render(self, body: bytes, *, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """A whole POST request.

        Raises ValueError when a header could not be sent as it is.
        """
        lines = [
            f"POST {self.target} HTTP/1.1",
            f"host: {self.authority}",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        for name, value in headers:
            if any(forbidden in name + value for forbidden in "\r\n\0"):
                raise ValueError(f"header {name!r} contains a line break")
            lines.append(f"{name}: {value}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    async def resolve(self) -> None:
        """Find an address that accepts connections.

        Raises Unreachable.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise Unreachable(f"host {self.host} not found") from error
        reason = Unreachable(f"host {self.host} has no address")
        for *_, address in found:
            self._address = (str(address[0]), int(address[1]))
            try:
                transport, _ = await self._open(asyncio.Protocol)
            except Unreachable as error:
                reason = error
                continue
            transport.abort()
            return
        self._address = None
        raise reason

    async def connect(self, make: Callable[[], Connection]) -> Connection:
        """A fresh connection.

        Raises Unreachable.
        """
        return (await self._open(make))[1]

    async def _open(self, make: Callable[[], P]) -> tuple[asyncio.Transport, P]:
        assert self._address is not None
        host, port = self._address
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncio.get_running_loop().create_connection(
                    make, host, port, ssl=self.tls, server_hostname=self.host if self.tls else None
                )
        except TimeoutError as error:
            raise Unreachable("connect timed out") from error
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(f"TLS certificate refused: {error.verify_message}") from error
        except ConnectionRefusedError as error:
            raise Unreachable("connection refused") from error
        except OSError as error:
            raise Unreachable(f"connect failed: {error.strerror or error}") from error
