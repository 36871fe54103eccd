"""What the tests of the client share: requests, a sink that records, bytes in every cut."""

import asyncio
from collections.abc import AsyncIterable, Callable

from gateway.api import Headers, Origin, UpstreamRequest
from gateway.errors import UpstreamError
from gateway.settings import Timeouts
from gateway.upstream import UpstreamClient, UpstreamResponse

#: Long enough that a busy machine never meets them.
PATIENT = Timeouts(connect_s=30, first_byte_s=30, idle_s=30, total_s=60)


def request(
    origin: Origin,
    target: bytes = b"/v1/chat/completions",
    *,
    method: bytes = b"POST",
    headers: Headers | None = None,
    body: bytes | AsyncIterable[bytes] = b"{}",
    content_length: int | None = None,
) -> UpstreamRequest:
    return UpstreamRequest(
        method=method,
        origin=origin,
        target=target,
        headers=[(b"content-type", b"application/json")] if headers is None else headers,
        body=body,
        content_length=content_length,
    )


async def fetch(client: UpstreamClient, sent: UpstreamRequest, timeouts: Timeouts = PATIENT) -> tuple[int, bytes]:
    """Status and whole body. Closes what it doesn't finish."""
    response = await client.send(sent, timeouts=timeouts)
    try:
        return response.head.status, await response.read(2**25)
    finally:
        response.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells: the kernel's side of a socket, or a state inside the client."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


class Record:
    """A sink that keeps everything, and can be waited for."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.ends = 0
        self.errors: list[UpstreamError] = []
        self.over = asyncio.Event()
        self.fed = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def data(self, chunk: bytes) -> None:
        assert type(chunk) is bytes
        assert chunk, "an empty chunk"
        assert not self.over.is_set(), "data after the end"
        self.chunks.append(chunk)
        self.fed.set()

    def end(self) -> None:
        assert not self.over.is_set(), "two ends"
        self.ends += 1
        self.over.set()

    def fail(self, error: UpstreamError) -> None:
        assert not self.over.is_set(), "two ends"
        self.errors.append(error)
        self.over.set()


async def piped(response: UpstreamResponse) -> Record:
    """The sink `response` was piped into, when it has ended."""
    record = Record()
    response.pipe(record)
    await record.over.wait()
    return record
