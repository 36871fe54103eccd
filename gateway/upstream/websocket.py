"""A WebSocket to a provider: opened as every other connection (proxies, trust, timeouts), spoken by `websockets`.

Rules:
- Redirects are not followed and nothing is compressed. A handshake that is refused is an error with the provider's
  status, like any refused request.
- Pings are answered here and sent from here: each hop looks after itself.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from gateway.api import Origin, ResponseHead, UpstreamRequest
from gateway.errors import (
    UpstreamDisconnected,
    UpstreamError,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.settings import Timeouts
from gateway.upstream.dial import describe, reach
from gateway.upstream.proxy import Proxy

#: Messages read ahead of whoever takes them; what is written and not taken by the kernel.
QUEUE_MAX: Final = 4
HIGH_WATER_BYTES: Final = 64 * 1024
PING_S: Final = 20.0
#: For the other side to answer a close.
CLOSE_S: Final = 5.0


class Refusal(Exception):
    """The provider answered the handshake with something else."""

    def __init__(self, head: ResponseHead, body: bytes) -> None:
        super().__init__(f"status {head.status}")
        self.head = head
        self.body = body


async def open_websocket(
    request: UpstreamRequest,
    *,
    subprotocols: Sequence[str],
    timeouts: Timeouts,
    tls: ssl.SSLContext,
    proxy: Proxy | None,
    message_bytes_max: int,
) -> ClientConnection:
    """An open connection; close it. `request` is as for HTTP: its method and body are left out.

    Raises:
        Refusal: the provider says no.
        UpstreamError: it could not be asked, or its answer is none.
    """
    origin = request.origin
    secure = origin.scheme == "https"
    path, _, query = request.target.decode("ascii").partition("?")
    uri = WebSocketURI(secure, origin.host, origin.port, path, query, None, None)
    loop = asyncio.get_running_loop()
    phase = "connect"
    try:
        async with asyncio.timeout(timeouts.connect_s):
            sock = await reach(loop, origin, proxy, tunnel=True)
            try:
                connection = await _connected(
                    loop,
                    uri,
                    subprotocols,
                    sock=sock,
                    tls=tls if secure else None,
                    origin=origin,
                    most=message_bytes_max,
                )
            except BaseException:
                sock.close()
                raise
        phase = "first byte"
        try:
            async with asyncio.timeout(timeouts.first_byte_s):
                await connection.handshake(
                    [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers],
                    user_agent_header=None,
                )
        except BaseException:
            connection.transport.abort()
            raise
    except TimeoutError:
        raise UpstreamTimeout(detail=f"{phase}: no answer in time") from None
    except InvalidStatus as error:
        response = error.response
        headers = [
            (name.lower().encode(), value.encode("latin-1", "replace"))
            for name, value in response.headers.raw_items()
        ]
        raise Refusal(ResponseHead(response.status_code, headers), bytes(response.body or b"")) from None
    except InvalidMessage as error:
        raise UpstreamDisconnected(detail=f"handshake: {error}") from error
    except InvalidHandshake as error:
        raise UpstreamMalformed(detail=f"handshake: {error}") from error
    except (OSError, UnicodeError) as error:
        raise UpstreamUnreachable(detail=describe(error)) from error
    connection.start_keepalive()
    return connection


async def _connected(
    loop: asyncio.AbstractEventLoop,
    uri: WebSocketURI,
    subprotocols: Sequence[str],
    *,
    sock: socket.socket,
    tls: ssl.SSLContext | None,
    origin: Origin,
    most: int,
) -> ClientConnection:
    def make() -> ClientConnection:
        protocol = ClientProtocol(
            uri, subprotocols=[Subprotocol(each) for each in subprotocols] or None, extensions=None, max_size=most
        )
        return ClientConnection(
            protocol,
            ping_interval=PING_S,
            ping_timeout=PING_S,
            close_timeout=CLOSE_S,
            max_queue=QUEUE_MAX,
            write_limit=HIGH_WATER_BYTES,
        )

    _, connection = await loop.create_connection(
        make,
        sock=sock,
        ssl=tls,
        server_hostname=origin.host if tls is not None else None,
    )
    return connection


async def close_websocket(connection: ClientConnection, code: int, reason: str) -> None:
    """Close it, whatever state it is in: politely for `CLOSE_S` at most."""
    with contextlib.suppress(OSError, UpstreamError):
        try:
            # Its own time runs from when the close was written: never, where the other side does not read.
            async with asyncio.timeout(CLOSE_S):
                await connection.close(code, reason)
        except TimeoutError:
            connection.transport.abort()
