"""The client: a request in, the head of its answer out, and everything that can go wrong in between.

Rules:
- One exchange costs one future and no task, unless its body comes in pieces.
- A request is tried a second time, once, if it was written to a connection that had served before, that connection
  closed without a single byte of an answer and at once (`STALE_S`), and the body is bytes. This is the race between
  our write and a server's idle timeout, and nothing else: whether to try again after a real failure is for routing.
- Cancelling `send` closes its socket. So does closing a response that is not complete. A connection with anything
  unread or unwritten never serves again.
- Redirects are not followed, cookies not kept, bodies not decompressed, requests not logged.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from websockets.asyncio.client import ClientConnection

from gateway.api import Origin, UpstreamRequest
from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamUnreachable
from gateway.infra.tasks import TaskGroup
from gateway.settings import Timeouts, Upstream
from gateway.upstream.connection import Connection
from gateway.upstream.deadlines import Deadlines
from gateway.upstream.dial import dial
from gateway.upstream.pool import Dial, Pool
from gateway.upstream.proxy import Proxies
from gateway.upstream.request import HeadEncoder, upload
from gateway.upstream.response import UpstreamResponse
from gateway.upstream.tls import client_context
from gateway.upstream.websocket import open_websocket

#: A server that had closed a pooled connection answers a write with a reset within one round trip. What fails later
#: was at work on the request, and sending it again could be paid for twice.
STALE_S: Final = 5.0


class Stats(NamedTuple):
    """Numbers of one moment; `opened`, `sent` and `retried` count since the start."""

    origins: int
    active: int
    idle: int
    waiting: int
    opened: int
    sent: int
    retried: int


class UpstreamClient:
    """Sends requests to providers over pooled HTTP/1.1 connections. Belongs to the loop of its first request."""

    def __init__(
        self,
        settings: Upstream,
        *,
        proxies: Mapping[str, str] | None = None,
        dial: Dial | None = None,
    ) -> None:
        """`proxies` is the environment that HTTPS_PROXY, HTTP_PROXY and NO_PROXY are read from.

        `dial` opens a connection in place of the network's own way, for tests and measurements.

        Raises:
            ConfigError: the CA file or a proxy variable can't be used.
        """
        self._settings = settings
        self._proxies = Proxies(proxies if proxies is not None and settings.proxy_from_environment else {})
        self._dial = dial
        self._tls = client_context(settings.ca_file)
        self._pools: dict[Origin, Pool] = {}
        self._deadlines = Deadlines(self._sweep)
        self._uploads = TaskGroup()
        self._sockets: set[Connection] = set()
        self._all_gone: asyncio.Future[None] | None = None
        self._closed = False
        self._opened = 0
        self._sent = 0
        self._retried = 0

    @property
    def tls(self) -> ssl.SSLContext:
        """What its connections trust, for other clients of this process: making one takes 70 ms."""
        return self._tls

    async def send(self, request: UpstreamRequest, *, timeouts: Timeouts) -> UpstreamResponse:
        """Send `request` and return when the head of the answer is in, whatever its status.

        The response must be taken to its end or closed. Cancelling this closes the socket.

        Raises:
            UpstreamUnreachable: no connection: name, network, proxy or TLS.
            UpstreamSaturated: no connection became free.
            UpstreamDisconnected: the connection closed before the head was in.
            UpstreamMalformed: the answer is not valid HTTP/1.1.
            UpstreamTimeout: its `detail` begins with the phase: connect, send, first byte, total.
            BadRequest: the request can't be written without changing its meaning.
            GatewayError: whatever the body raised, where it comes in pieces.
        """
        pool = self._pools.get(request.origin) or self._open_pool(request.origin)
        head = pool.encode(request)
        started_s = pool.loop.time()
        # What can't be sent twice does not go to a connection that the provider may be closing.
        fresh = not isinstance(request.body, bytes)
        connection = (None if fresh else pool.take()) or await pool.acquire(timeouts.connect_s, fresh=fresh)
        retried = False
        while True:
            response = self._start(connection, request, head, timeouts, started_s)
            try:
                await response.arrived
            except BaseException:
                response.close()
                raise
            if response.answered:
                return response
            error = response.fault or response.error
            assert error is not None
            stale = (
                response.reused
                and connection.untouched
                and isinstance(error, UpstreamDisconnected)
                and pool.loop.time() - response.written_s < STALE_S
            )
            if retried or not stale or not isinstance(request.body, bytes) or self._closed:
                raise error
            retried = True
            self._retried += 1
            # Looked up again: a pool that lost its last connection may have been swept away in the meantime.
            pool = self._pools.get(request.origin) or self._open_pool(request.origin)
            connection = await pool.acquire(timeouts.connect_s, fresh=True)

    async def open_websocket(
        self, request: UpstreamRequest, *, subprotocols: Sequence[str], timeouts: Timeouts, message_bytes_max: int
    ) -> ClientConnection:
        """A conversation of its own, outside the pools; see `websocket.py`.

        Raises:
            Refusal: the provider says no.
            UpstreamError: it could not be asked.
        """
        if self._closed:
            raise UpstreamUnreachable(detail="the client is closed")
        return await open_websocket(
            request,
            subprotocols=subprotocols,
            timeouts=timeouts,
            tls=self._tls,
            proxy=self._proxies.choose(request.origin),
            message_bytes_max=message_bytes_max,
        )

    def _start(
        self,
        connection: Connection,
        request: UpstreamRequest,
        head: bytes,
        timeouts: Timeouts,
        started_s: float,
    ) -> UpstreamResponse:
        response = UpstreamResponse(connection, timeouts, started_s, connection.loop.time())
        body = request.body
        self._sent += 1
        self._deadlines.watch(response)
        if isinstance(body, bytes):
            connection.start(response, head, body, bodiless=request.method == b"HEAD")
        else:
            connection.start(response, head, None, bodiless=request.method == b"HEAD")
            sending = upload(connection, response, body, request.content_length)
            response.uploading = self._uploads.spawn(sending, name="upload")
        return response

    def _open_pool(self, origin: Origin) -> Pool:
        if self._closed:
            raise UpstreamUnreachable(detail="the client is closed")
        if origin.scheme not in ("http", "https"):
            raise UpstreamUnreachable(detail=f"scheme {origin.scheme!r} is not supported")
        proxy = self._proxies.choose(origin)
        try:
            encode = HeadEncoder(origin, proxy).encode
        except UnicodeError as error:
            raise UpstreamUnreachable(detail=f"name: {error}") from error
        tls = self._tls if origin.scheme == "https" else None
        pool = Pool(
            origin,
            encode=encode,
            dial=self._dial or partial(dial, origin=origin, proxy=proxy, tls=tls),
            watcher=self,
            connections_max=self._settings.connections_max,
            keep_alive_s=self._settings.keep_alive_s,
        )
        self._pools[origin] = pool
        return pool

    # -- what pools and connections tell -------------------------------------------------------------------------

    def made(self, connection: Connection) -> None:
        """A connection was opened."""
        self._opened += 1
        self._sockets.add(connection)
        self._deadlines.look_after_idle()
        if self._closed:
            connection.close()

    def gone(self, connection: Connection) -> None:
        """A socket is closed."""
        self._sockets.discard(connection)
        if not self._sockets and self._all_gone is not None and not self._all_gone.done():
            self._all_gone.set_result(None)

    def settled(self, response: UpstreamResponse) -> None:
        """Nothing more happens to this exchange."""
        self._deadlines.watched.discard(response)
        if response.uploading is not None:
            response.uploading.cancel()

    def _sweep(self, now_s: float) -> bool:
        for pool in tuple(self._pools.values()):
            pool.sweep(now_s)
            if not pool.size and not pool.waiting:
                del self._pools[pool.origin]
        return bool(self._pools)

    # -- around it -----------------------------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        """What the pools hold now."""
        pools = self._pools.values()
        return Stats(
            origins=len(pools),
            active=sum(pool.active for pool in pools),
            idle=sum(len(pool.idle) for pool in pools),
            waiting=sum(pool.waiting for pool in pools),
            opened=self._opened,
            sent=self._sent,
            retried=self._retried,
        )

    async def close(self) -> None:
        """Fail what is under way, close every socket, and return when all are closed."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()
        error: UpstreamError = UpstreamDisconnected(detail="the gateway is stopping")
        for connection in tuple(self._sockets):
            connection.fail(error)
        self._pools.clear()
        self._deadlines.close()
        await self._uploads.close()
        if self._sockets:
            self._all_gone = asyncio.get_running_loop().create_future()
            await self._all_gone

    def __repr__(self) -> str:
        now = self.stats
        return f"<UpstreamClient: {now.origins} origins, {now.active} active, {now.idle} idle, {now.waiting} waiting>"
