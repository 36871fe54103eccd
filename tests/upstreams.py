"""Providers that do exactly what a test says: `ScriptedUpstream` listens on 127.0.0.1 and plays a script of bytes.

A script is played for each connection and is an async function of a `Peer`:

    async def cut_short(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\\r\\ncontent-length: 10\\r\\n\\r\\nhalf")
        await peer.reset()

    async with ScriptedUpstream(cut_short) as upstream:
        ...  # upstream.origin, upstream.url, upstream.requests

Most scripts are a row of steps, and `play` makes a script of them: bytes are sent, `RECEIVE` takes one request,
`Pause(s)` waits, `Until(event)` waits for the test, `CLOSE` sends a FIN, `RESET` an RST, `HANG` does nothing until the
client leaves, `REPEAT` begins again:

    ScriptedUpstream(play(RECEIVE, answer(b"{}"), REPEAT))               # an ordinary server
    ScriptedUpstream(play(RECEIVE, answer(b"{}"), CLOSE), play(RESET))   # first connection, second connection

With several scripts, each connection takes the next one; the last serves all that follow. A script that returns
closes its connection. What a script raises is raised again when the `async with` block ends, so a wrong script can't
pass for a wrong client; a client that leaves in the middle is no error.

`answer`, `chunked` and `events` make the bytes of whole responses. Everything is recorded: `requests` in order of
arrival, `connections` opened so far, `open_connections` now (`await all_closed()` waits for none).
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from gateway.api import Origin

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as it was on the wire. Header names are lower-cased; the body's transfer coding is undone."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes
    #: The head as it came, byte for byte, without its closing empty line.
    head: bytes
    #: The connection it came on, counted from 0.
    connection: int

    def header(self, name: bytes) -> bytes | None:
        """Value of the only header called `name`; more than one fails the test."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name!r} {len(values)} times"
        return values[0] if values else None


class PeerGoneError(Exception):
    """The client closed the connection in the middle of a script."""


@dataclass
class Peer:
    """The server's end of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream: "ScriptedUpstream"
    number: int

    async def receive_head(self) -> ReceivedRequest:
        """The head of the next request; its body is left where it is."""
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n"))[:-4]
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise PeerGoneError from error
        request_line, *lines = head.split(b"\r\n")
        method, target, version = request_line.split(b" ")
        assert version == b"HTTP/1.1", request_line
        pairs = [line.partition(b":") for line in lines]
        headers = [(name.lower(), value.strip()) for name, _, value in pairs]
        return ReceivedRequest(method, target, headers, b"", head, self.number)

    async def receive(self) -> ReceivedRequest:
        """The next request, whole, and into `upstream.requests`."""
        request = await self.receive_head()
        length = request.header(b"content-length")
        coding = request.header(b"transfer-encoding")
        assert length is None or coding is None, "both framings"
        try:
            if coding is not None:
                assert coding == b"chunked"
                body = await self._receive_chunks()
            else:
                body = await self.reader.readexactly(int(length or 0))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise PeerGoneError from error
        request = ReceivedRequest(
            request.method, request.target, request.headers, body, request.head, request.connection
        )
        self.upstream.record(request)
        return request

    async def _receive_chunks(self) -> bytes:
        body = b""
        while True:
            line = await self.reader.readuntil(b"\r\n")
            size_bytes = int(line, 16)
            chunk = await self.reader.readexactly(size_bytes + 2)
            assert chunk[-2:] == b"\r\n"
            if not size_bytes:
                return body
            body += chunk[:-2]

    async def send(self, data: bytes, *, each: int | None = None) -> None:
        """Write, in pieces of `each` bytes if given, and wait until the kernel has it all."""
        try:
            for start in range(0, len(data), each or len(data) or 1):
                if self.writer.transport.is_closing():
                    raise PeerGoneError  # uvloop raises RuntimeError from a write, asyncio nothing
                self.writer.write(data[start : start + (each or len(data))])
                await self.writer.drain()
                if each is not None:
                    # A pause of one turn of the loop, so that the client reads the pieces one by one.
                    await asyncio.sleep(0)
        except ConnectionError as error:
            raise PeerGoneError from error

    async def gone(self) -> None:
        """Wait until the client has closed its end; what it still sends is thrown away."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    async def close(self) -> None:
        """FIN, after everything that was written."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def reset(self) -> None:
        """RST. What was written and not yet sent is lost."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await asyncio.sleep(0)


Script = Callable[[Peer], Awaitable[None]]


@dataclass(frozen=True)
class Pause:
    """Do nothing for a while."""

    delay_s: float


@dataclass(frozen=True)
class Until:
    """Do nothing until the test sets the event."""

    event: asyncio.Event


@dataclass(frozen=True)
class Word:
    """A step without parameters."""

    name: str


RECEIVE: Final = Word("receive")
CLOSE: Final = Word("close")
RESET: Final = Word("reset")
HANG: Final = Word("hang")
REPEAT: Final = Word("repeat")

Step = bytes | Pause | Until | Word


def play(*steps: Step, each: int | None = None) -> Script:
    """A script of steps; `each` cuts all bytes into pieces of that size."""
    if REPEAT in steps:
        assert steps.index(REPEAT) == len(steps) - 1, "nothing comes after REPEAT"
        assert RECEIVE in steps, "a loop that waits for nothing"

    async def script(peer: Peer) -> None:
        while True:
            for step in steps:
                await _take(step, peer, each)
            if REPEAT not in steps:
                return

    return script


async def _take(step: Step, peer: Peer, each: int | None) -> None:
    match step:
        case bytes():
            await peer.send(step, each=each)
        case Pause(delay_s):
            await asyncio.sleep(delay_s)
        case Until(event):
            await event.wait()
        case Word("receive"):
            await peer.receive()
        case Word("close"):
            await peer.close()
        case Word("reset"):
            await peer.reset()
        case Word("hang"):
            await peer.gone()


class ScriptedUpstream:
    """A server on 127.0.0.1 that plays scripts. Use it with `async with`."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        assert scripts, "a server without a script"
        self.requests: list[ReceivedRequest] = []
        #: Connections opened so far.
        self.connections = 0
        self._scripts = scripts
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._playing: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._changed = asyncio.Event()

    @property
    def port(self) -> int:
        assert self._server is not None, "not listening"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def origin(self) -> Origin:
        return Origin("https" if self._tls else "http", "127.0.0.1", self.port)

    @property
    def url(self) -> str:
        """The base URL, without a path."""
        return f"{self.origin.scheme}://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._playing)

    async def all_closed(self) -> None:
        """Wait until no connection is open."""
        while self._playing:
            self._changed.clear()
            await self._changed.wait()

    async def connected(self, count: int) -> None:
        """Wait until `count` connections have been opened since the start."""
        while self.connections < count:
            self._changed.clear()
            await self._changed.wait()

    def record(self, request: ReceivedRequest) -> None:
        """For a script that reads a request by itself."""
        self.requests.append(request)
        self._changed.set()

    async def received(self, count: int) -> None:
        """Wait until `count` requests have arrived whole."""
        while len(self.requests) < count:
            self._changed.clear()
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, limit=2**20)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._playing):
            task.cancel()
        await asyncio.gather(*self._playing, return_exceptions=True)
        await self._server.wait_closed()
        if self._failures and error is None:
            raise self._failures[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        number = self.connections
        self.connections += 1
        self._playing.add(task)
        self._changed.set()
        peer = Peer(reader, writer, self, number)
        try:
            await self._scripts[min(number, len(self._scripts) - 1)](peer)
            await peer.close()
        except PeerGoneError:
            pass
        except asyncio.CancelledError:
            pass  # the test is over; streams would log a task that ends so
        except Exception as error:  # noqa: BLE001 - raised again at the end of the test
            self._failures.append(error)
        finally:
            writer.transport.abort()
            self._playing.discard(task)
            self._changed.set()


# -- whole responses ------------------------------------------------------------------------------------------------


def answer(body: bytes = b"", *, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """A response with a content-length; JSON unless `headers` say otherwise."""
    return _head(status, headers, b"content-length: %d\r\n" % len(body)) + body


def chunked(
    *chunks: bytes,
    status: int = 200,
    headers: Iterable[tuple[bytes, bytes]] = (),
    trailers: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """A response whose body comes in chunks."""
    body = b"".join(chunk(piece) for piece in chunks)
    fields = b"".join(b"%b: %b\r\n" % pair for pair in trailers)
    return _head(status, headers, b"transfer-encoding: chunked\r\n") + body + b"0\r\n" + fields + b"\r\n"


def events(*data: bytes) -> bytes:
    """A response with a stream of server-sent events, each in a chunk of its own."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    return chunked(*(b"data: %b\n\n" % event for event in data), headers=headers)


def chunk(piece: bytes) -> bytes:
    """One chunk, framed."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _head(status: int, headers: Iterable[tuple[bytes, bytes]], framing: bytes) -> bytes:
    fields = list(headers)
    if all(name.lower() != b"content-type" for name, _ in fields):
        fields.append((b"content-type", b"application/json"))
    lines = b"".join(b"%b: %b\r\n" % pair for pair in fields)
    return b"HTTP/1.1 %d Scripted\r\n" % status + lines + framing + b"\r\n"
