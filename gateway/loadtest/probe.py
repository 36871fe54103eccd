"""One request before the load, to learn whether the load would mean anything.

A wrong key at five hundred requests at a time measures how fast keys are refused. One answer tells.
"""

import asyncio

import msgspec

from gateway.infra.clock import Clock
from gateway.loadtest.connection import Connection, End
from gateway.loadtest.origin import Origin, Unreachable

_KEEP_BYTES = 2000


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back."""

    status: int
    #: Whether it was `text/event-stream`.
    streamed: bool
    events: int
    seconds: float
    #: The beginning of the body.
    beginning: bytes


class _Collector:
    """The listener of a single exchange."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.beginning = b""
        self.events = 0

    def on_body(self, connection: Connection, piece: bytes, events: int, now_s: float) -> None:
        self.events += events
        self.beginning = (self.beginning + piece)[:_KEEP_BYTES]

    def on_end(self, connection: Connection, end: End, now_s: float) -> None:
        if not self.ended.done():
            self.ended.set_result(end)

    def on_idle_lost(self, connection: Connection) -> None:
        return


async def probe(origin: Origin, request: bytes, *, clock: Clock, timeout_s: float) -> Answer:
    """Send `request` once and read the whole answer.

    Raises:
        Unreachable: there was no whole answer; the message says why.
    """
    await origin.resolve()
    collector = _Collector()
    connection = await origin.connect(lambda: Connection(collector, clock))
    start_s = clock.monotonic()
    try:
        connection.send(request)
        async with asyncio.timeout(timeout_s):
            end = await collector.ended
    except TimeoutError as error:
        raise Unreachable(f"no whole answer within {timeout_s:g} s") from error
    finally:
        connection.abort()
    if end is not End.COMPLETE:
        raise Unreachable(
            "the connection was closed before the answer was whole"
            if end is End.CLOSED
            else "the answer is not HTTP/1.1"
        )
    return Answer(
        status=connection.status,
        streamed=connection.streams,
        events=collector.events,
        seconds=clock.monotonic() - start_s,
        beginning=collector.beginning,
    )
