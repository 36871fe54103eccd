"""Opening a connection: resolve, connect, tunnel, TLS.

Rules:
- All addresses of a name are tried, IPv6 and IPv4 in turn. An address that doesn't answer is left for the next while
  there is one, so that one dead address doesn't eat the whole connect timeout (in the spirit of RFC 8305, one at a
  time).
- The tunnel through a proxy is made on the bare socket, before the loop's transport gets it: TLS then starts on
  it as on any other.
- Whatever happens, cancellation included, no socket is left open.
- Every failure is `UpstreamUnreachable`, with the reason in its detail; time is the caller's to limit.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable
from itertools import chain, zip_longest
from typing import Any, Final

from gateway.api import Origin
from gateway.errors import UpstreamUnreachable
from gateway.upstream.connection import Connection, Owner
from gateway.upstream.proxy import Proxy, Tunnel

#: How long an address may take while there are others to try.
ADDRESS_S: Final = 1.0
#: Addresses tried of one name.
ADDRESSES_MAX: Final = 8
#: Silence after which the kernel asks whether the other side is still there: some networks forget quiet connections
#: within minutes, and a model may think for longer.
_PROBE_AFTER_S: Final = 60

# What getaddrinfo gives: an address tuple has 2 or 4 items of mixed types, and sockets take them as they are.
_Address = tuple[socket.AddressFamily, Any]


async def dial(owner: Owner, *, origin: Origin, proxy: Proxy | None, tls: ssl.SSLContext | None) -> Connection:
    """A connected `Connection`, after the TLS handshake where `tls` is given.

    Raises:
        UpstreamUnreachable: no address, nobody there, the proxy refuses, or TLS fails.
    """
    loop = asyncio.get_running_loop()
    try:
        sock = await reach(loop, origin, proxy, tunnel=tls is not None)
        try:
            connection = Connection(owner, loop)
            await loop.create_connection(
                lambda: connection,
                sock=sock,
                ssl=tls,
                server_hostname=origin.host if tls is not None else None,
            )
        except BaseException:
            sock.close()
            raise
    except (OSError, UnicodeError) as error:
        # ssl.SSLError and socket.gaierror are OSErrors; a name that IDNA refuses is a UnicodeError.
        raise UpstreamUnreachable(detail=describe(error)) from error
    return connection


async def reach(
    loop: asyncio.AbstractEventLoop, origin: Origin, proxy: Proxy | None, *, tunnel: bool
) -> socket.socket:
    """A connected socket: to the origin, to a proxy, or by `tunnel` through that to the origin.

    Raises:
        UpstreamUnreachable, OSError, UnicodeError: there is no way.
    """
    host, port = (origin.host, origin.port) if proxy is None else (proxy.host, proxy.port)
    sock = await _connect(loop, await _resolve(loop, host, port))
    if proxy is not None and tunnel:
        try:
            await _tunnel(loop, sock, Tunnel(proxy, origin))
        except BaseException:
            sock.close()
            raise
    return sock


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[_Address]:
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses: dict[_Address, None] = {(family, address): None for family, _, _, _, address in found}
    return list(_alternate(list(addresses)))[:ADDRESSES_MAX]


def _alternate(addresses: list[_Address]) -> Iterable[_Address]:
    """The families in turn, in the resolver's order otherwise, its first family first (RFC 8305, section 4)."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    return (address for address in chain.from_iterable(zip_longest(first, others)) if address is not None)


async def _connect(loop: asyncio.AbstractEventLoop, addresses: list[_Address]) -> socket.socket:
    last = len(addresses) - 1
    failure: OSError = OSError("the name has no address")
    for position, (family, address) in enumerate(addresses):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            _tune(sock)
            async with asyncio.timeout(None if position == last else ADDRESS_S):
                await loop.sock_connect(sock, address)
        except OSError as error:  # TimeoutError is one
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S)


async def _tunnel(loop: asyncio.AbstractEventLoop, sock: socket.socket, tunnel: Tunnel) -> None:
    await loop.sock_sendall(sock, tunnel.request)
    while not tunnel.feed(await loop.sock_recv(sock, 4096)):
        pass


def describe(error: Exception) -> str:
    """Why a connection failed, for the log."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"tls: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return f"name: {error.strerror}"
    return f"connect: {error}"
