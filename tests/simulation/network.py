"""Both networks: the callers' side, on the gateway's own server protocol, and the providers', behind its own client.

Only the sockets are made up. The bytes of requests and answers are real, so every parser and every framing rule on the
way is the one that serves; what is scripted is when they come, in which pieces, and how they end.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.errors import UpstreamUnreachable
from gateway.upstream.connection import Connection
from tests.crash.crowd import plain_answer, stream_events
from tests.simulation.clockwork import Process
from tests.upstreams import answer, chunk

KEY_LINE = b"authorization: Bearer %b\r\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
#: An event with a token.
WORD = stream_events(1)[0]


@dataclass(eq=False)
class Call:
    """One request of a caller, and what became of it on both sides of the gateway."""

    number: int
    account_id: int
    key: str
    model: str
    stream: bool
    max_tokens: int
    #: Who had it in hand.
    process: Process | None = None
    raw: bytearray = field(default_factory=bytearray)
    #: The caller left, or its connection was cut.
    over: bool = False
    #: (seconds, tokens seen so far), at each read.
    seen: list[tuple[float, int]] = field(default_factory=list)
    #: How many tokens the last provider that was asked had to say.
    told: int = 0

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": "Say it."}],
                "max_tokens": self.max_tokens,
                "stream": self.stream,
                "user": f"{self.number:04}",
            }
        )

    @property
    def request(self) -> bytes:
        body = self.body
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b" % (self.key.encode(), len(body), body)
        )

    @property
    def head(self) -> bytes:
        return bytes(self.raw.partition(b"\r\n\r\n")[0])

    @property
    def request_id(self) -> str:
        return self.head.partition(b"x-gateway-request-id: ")[2][:36].decode()

    @property
    def status(self) -> int:
        return int(self.raw[9:12] or 0)

    @property
    def tokens(self) -> int:
        """Those that reached the caller, each in an event that it has all of."""
        if self.status != 200:
            return 0
        if not self.stream:
            return self.raw.count(b"word")
        return _unchunked(bytes(self.raw).partition(b"\r\n\r\n")[2]).count(WORD)

    @property
    def whole(self) -> bool:
        """The caller has an answer, and all of it."""
        if self.status != 200:
            return False
        if self.stream:
            return self.raw.endswith(b"data: [DONE]\n\n\r\n" + LAST_CHUNK)
        length = int(self.head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        return len(self.raw) - len(self.head) - 4 == length


class CallerSocket(asyncio.Transport):
    """The gateway's end of a caller's connection. What is written is the caller's at once."""

    def __init__(self, call: Call, process: Process, protocol: Any) -> None:
        super().__init__()
        self._call = call
        self._process = process
        self._protocol = protocol
        self._closing = False
        process.on_death.append(self._cut)

    def write(self, data: Any) -> None:
        if self._closing or self._call.over or not self._process.step():
            return
        self._call.raw += data
        self._call.seen.append((asyncio.get_running_loop().time(), self._call.tokens))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._call.over = True
            asyncio.get_running_loop().call_soon(self._process.call, self._protocol.connection_lost, None)

    abort = close

    def leave(self) -> None:
        """The caller closes it."""
        self.close()

    def _cut(self) -> None:
        self._call.over = True

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class ProviderSocket(asyncio.Transport):
    """The gateway's end of a connection to a provider, which answers by itself what is written to it."""

    def __init__(self, process: Process, connection: Connection, providers: "Providers") -> None:
        super().__init__()
        self._process = process
        self._connection = connection
        self._providers = providers
        self._request = bytearray()
        self._closed = False
        self._readable = asyncio.Event()
        self._readable.set()
        process.on_death.append(self._die)

    def write(self, data: Any) -> None:
        if self._closed or not self._process.step():
            return
        self._request += data
        head, found, body = self._request.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
        if found and len(body) == length:
            self._request.clear()
            self._providers.play(self, bytes(body))

    async def give(self, data: bytes) -> None:
        """Bytes arrive at the gateway, once it reads."""
        await self._readable.wait()
        if not self._closed:
            self._process.call(self._connection.data_received, data)

    def end(self, error: Exception | None = None) -> None:
        """The provider closes it, or the network does (with an error)."""
        if self._closed:
            return
        if error is None:
            self._process.call(self._connection.eof_received)
        if not self._closed:
            self._closed = True
            self._process.call(self._connection.connection_lost, error)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._readable.set()
            asyncio.get_running_loop().call_soon(self._process.call, self._connection.connection_lost, None)

    abort = close

    def _die(self) -> None:
        self._closed = True
        self._readable.set()

    def is_closing(self) -> bool:
        return self._closed

    def pause_reading(self) -> None:
        self._readable.clear()

    def resume_reading(self) -> None:
        self._readable.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Providers:
    """All of them: they can't be told apart but by what was drawn."""

    def __init__(self, calls: dict[int, Call], draw: random.Random) -> None:
        self._calls = calls
        self._draw = draw
        self._playing: set[asyncio.Task[None]] = set()
        #: What went wrong in here.
        self.failures: list[BaseException] = []

    def dialler(self, process: Process) -> Callable[[Any], Any]:
        """How a process opens connections."""

        async def dial(pool: Any) -> Connection:
            await asyncio.sleep(self._draw.uniform(0.0005, 0.02))
            if self._draw.random() < 0.05:
                raise UpstreamUnreachable(detail="drawn")
            connection = Connection(pool, asyncio.get_running_loop())
            connection.connection_made(ProviderSocket(process, connection, self))
            return connection

        return dial

    def play(self, socket: ProviderSocket, body: bytes) -> None:
        question = msgspec.json.decode(body)
        call = self._calls[int(question["user"])]
        # Not of the process whose request it is: it goes on when that one dies.
        task = asyncio.Task(self._answer(socket, call), loop=asyncio.get_running_loop())
        self._playing.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._playing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)

    def stop(self) -> None:
        for task in self._playing:
            task.cancel()

    async def _answer(self, socket: ProviderSocket, call: Call) -> None:
        draw = self._draw
        await asyncio.sleep(draw.choice((0.001, 0.02, 0.3)))
        tokens = draw.randint(0 if call.stream else 1, call.max_tokens)
        fate = draw.choices(
            ("well", "cut", "stall", "refuse", "reset", "error", "unreported"), (60, 12, 4, 6, 4, 4, 10)
        )[0]
        if fate == "reset":
            socket.end(ConnectionResetError())
            return
        if fate == "refuse":
            status = draw.choice((400, 429, 500, 503))
            error = b'{"error":{"message":"no","type":"server_error","code":null}}'
            await socket.give(answer(error, status=status))
            return
        pieces = self._pieces(call, tokens, fate)
        if fate in {"cut", "stall"}:
            pieces = _cut(pieces, draw.randrange(sum(map(len, pieces))))
        pace_s = draw.choice((0.0, 0.01, 0.1, 0.4))
        call.told = tokens
        for piece in pieces:
            if socket.closed:
                return
            await socket.give(piece)
            await asyncio.sleep(pace_s)
        if fate == "cut":
            socket.end(draw.choice((None, ConnectionResetError())))

    def _pieces(self, call: Call, tokens: int, fate: str) -> list[bytes]:
        if not call.stream:
            whole = plain_answer(tokens)
            if fate == "unreported":
                whole = whole.partition(b',"usage"')[0] + b"}"
            raw = answer(whole)
            at = self._draw.randrange(len(raw))
            return [raw[:at], raw[at:]]
        *words, finish, usage, done = stream_events(tokens)
        last = [finish, *([] if fate == "unreported" else [usage]), done]
        if fate == "error":
            last = [b'data: {"error":{"message":"broke","type":"server_error","code":null}}\n\n']
        ending = b"".join(map(chunk, last)) + LAST_CHUNK
        if self._draw.random() < 0.3:
            # Not along the events.
            raw = SSE_HEAD + b"".join(map(chunk, words)) + ending
            return _split(raw, self._draw)
        return [SSE_HEAD, *map(chunk, words), ending]


def _unchunked(body: bytes) -> bytes:
    """What is there of a body that comes in chunks."""
    found = []
    while body:
        size, _, body = body.partition(b"\r\n")
        found.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(found)


def _split(raw: bytes, draw: random.Random) -> list[bytes]:
    cuts = sorted(draw.randrange(1, len(raw)) for _ in range(5))
    return [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True) if start < end]


def _cut(pieces: list[bytes], size: int) -> list[bytes]:
    kept = []
    for piece in pieces:
        kept.append(piece[:size])
        size -= len(kept[-1])
        if size <= 0:
            break
    return [piece for piece in kept if piece]
