"""The upstream client alone: what one exchange and one chunk cost, beside httpx2 for scale.

Run `python -m benchmarks.upstream_micro`. Three measurements:

- *in memory*: the client on a transport that answers from memory, so no system call is in the figure; this is the
  processor time of the client's own code and of the loop's future.
- *sockets*: the client on uvloop against a raw protocol server in a second process. Processor time is of the client's
  process, system calls included; the rate depends on what else runs on the machine.
- *httpx2*: the same requests to the same server.

The server parses nothing but the blank line and the length, so that it is never what is measured.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection as Pipe

import httpx2
import uvloop

from gateway.api import Origin, UpstreamRequest
from gateway.errors import UpstreamError
from gateway.settings import Timeouts, Upstream
from gateway.upstream import UpstreamClient
from gateway.upstream.connection import Connection
from gateway.upstream.pool import Pool

BODY = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"%b"}]}' % (b"x" * 400)
ANSWER_BODY = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"message":{"content":"%b"}}]}' % (
    b"y" * 600
)
HEADERS = [
    (b"authorization", b"Bearer sk-0123456789abcdef0123456789abcdef"),
    (b"content-type", b"application/json"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"OpenAI/Python 3.54.0"),
    *((b"x-stainless-%d" % number, b"value-%d" % number) for number in range(6)),
]
_COMMON = b"".join(
    b"%b\r\n" % line
    for line in (
        b"Date: Sun, 01 Nov 2026 10:00:00 GMT",
        b"Content-Type: application/json",
        b"x-request-id: req_0123456789abcdef0123456789abcdef",
        b"openai-processing-ms: 412",
        b"openai-version: 2020-10-01",
        b"x-ratelimit-limit-requests: 10000",
        b"x-ratelimit-limit-tokens: 2000000",
        b"x-ratelimit-remaining-requests: 9999",
        b"x-ratelimit-remaining-tokens: 1999990",
        b"x-ratelimit-reset-requests: 6ms",
        b"x-ratelimit-reset-tokens: 0s",
    )
)
ANSWER = b"HTTP/1.1 200 OK\r\n" + _COMMON + b"Content-Length: %d\r\n\r\n" % len(ANSWER_BODY) + ANSWER_BODY
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
EVENT_CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\n" + _COMMON + b"Transfer-Encoding: chunked\r\n\r\n"
STREAM_EVENTS = 50


class Count:
    """A sink that counts, and tells when the body has ended."""

    __slots__ = ("done", "ended", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        self.ended = False
        self.done: asyncio.Future[None] | None = None

    def data(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)

    def end(self) -> None:
        self.ended = True
        if self.done is not None:
            self.done.set_result(None)

    def fail(self, error: UpstreamError) -> None:
        raise error


# -- in memory ------------------------------------------------------------------------------------------------------


class MemoryTransport(asyncio.Transport):
    """Answers every request in the next turn of the loop."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._loop.call_soon(self._protocol.data_received, ANSWER)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self._loop.call_soon(self._protocol.connection_lost, None)


async def dial_memory(pool: Pool) -> Connection:
    connection = Connection(pool, asyncio.get_running_loop())
    connection.connection_made(MemoryTransport(connection))
    return connection


async def exchange(client: UpstreamClient, request: UpstreamRequest, timeouts: Timeouts) -> None:
    response = await client.send(request, timeouts=timeouts)
    sink = Count()
    response.pipe(sink)
    if not sink.ended:
        sink.done = asyncio.get_running_loop().create_future()
        await sink.done


async def in_memory(count: int) -> None:
    timeouts = Timeouts()
    client = UpstreamClient(Upstream(), dial=dial_memory)
    request = _request(Origin("http", "memory", 80), b"/v1/chat/completions")
    await exchange(client, request, timeouts)
    started_s = time.process_time()
    for _ in range(count):
        await exchange(client, request, timeouts)
    spent_s = time.process_time() - started_s
    # The loop's own share: one call_soon and one awaited future, which no client on asyncio can do without.
    loop = asyncio.get_running_loop()
    started_s = time.process_time()
    for _ in range(count):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future
    loop_s = time.process_time() - started_s
    print(
        f"in memory, JSON exchange            {spent_s / count * 1e6:7.2f} us"
        f"  (of it the loop {loop_s / count * 1e6:.2f} us)"
    )

    connection = await _open_stream(client, request, timeouts)
    receive = connection.data_received
    started_s = time.process_time()
    for _ in range(count):
        receive(EVENT_CHUNK)
    spent_s = time.process_time() - started_s
    print(f"in memory, event chunk to sink      {spent_s / count * 1e6:7.2f} us")
    await client.close()


async def _open_stream(client: UpstreamClient, request: UpstreamRequest, timeouts: Timeouts) -> Connection:
    """A connection in the middle of a chunked body that goes to a sink."""
    opened: list[Connection] = []

    class Silent(MemoryTransport):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            self._loop.call_soon(self._protocol.data_received, STREAM_HEAD)

    async def dial_silent(pool: Pool) -> Connection:
        connection = Connection(pool, asyncio.get_running_loop())
        connection.connection_made(Silent(connection))
        opened.append(connection)
        return connection

    streaming = UpstreamClient(Upstream(), dial=dial_silent)
    response = await streaming.send(request, timeouts=timeouts)
    response.pipe(Count())
    return opened[0]


# -- sockets --------------------------------------------------------------------------------------------------------


class RawServer(asyncio.Protocol):
    """Answers by the path, without parsing more than it must."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._seen = b""

    def data_received(self, data: bytes) -> None:
        self._seen += data
        while (end := self._seen.find(b"\r\n\r\n")) >= 0:
            head = self._seen[:end]
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(self._seen) < end + 4 + length:
                return
            self._seen = self._seen[end + 4 + length :]
            if b"/stream" in head[:40]:
                self._transport.write(STREAM_HEAD)  # type: ignore[attr-defined]  # uvloop's has it
                self._transport.write(EVENT_CHUNK * STREAM_EVENTS + b"0\r\n\r\n")  # type: ignore[attr-defined]
            else:
                self._transport.write(ANSWER)  # type: ignore[attr-defined]


def serve(pipe: Pipe) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(RawServer, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()

    uvloop.run(main())


def _request(origin: Origin, target: bytes) -> UpstreamRequest:
    return UpstreamRequest(method=b"POST", origin=origin, target=target, headers=HEADERS, body=BODY)


async def over_sockets(name: str, once: Callable[[], object], *, count: int, workers: int, per: int = 1) -> None:
    """Run `once` `count` times by `workers` callers and print rate and processor time."""

    async def work(times: int) -> None:
        for _ in range(times):
            await once()  # type: ignore[misc]  # every `once` here is a coroutine function

    await asyncio.gather(*(work(10) for _ in range(workers)))
    started_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work(count // workers) for _ in range(workers)))
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    done = count // workers * workers
    extra = f"  {per * done / wall_s:9,.0f} events/s" if per > 1 else ""
    print(f"{name:34s}  {cpu_s / done * 1e6:7.2f} us  {done / wall_s:9,.0f} req/s{extra}")


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[int]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield await asyncio.to_thread(ours.recv)
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)


async def main(count: int, workers: int) -> None:
    await in_memory(count)
    async with server() as port:
        origin = Origin("http", "127.0.0.1", port)
        timeouts = Timeouts()
        client = UpstreamClient(Upstream())
        plain, stream = _request(origin, b"/v1/plain"), _request(origin, b"/v1/stream")
        await over_sockets(
            "sockets, JSON exchange", lambda: exchange(client, plain, timeouts), count=count, workers=workers
        )
        await over_sockets(
            f"sockets, stream of {STREAM_EVENTS} events",
            lambda: exchange(client, stream, timeouts),
            count=count // 4,
            workers=workers,
            per=STREAM_EVENTS,
        )
        await client.close()

        url, fields = (
            f"http://127.0.0.1:{port}/v1/plain",
            [(name.decode(), value.decode()) for name, value in HEADERS],
        )
        async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=workers)) as other:

            async def once() -> None:
                await other.post(url, content=BODY, headers=fields)

            await over_sockets("httpx2, JSON exchange", once, count=count // 20, workers=workers)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=40_000)
    arguments.add_argument("--workers", type=int, default=32)
    options = arguments.parse_args()
    uvloop.run(main(options.count, options.workers))
