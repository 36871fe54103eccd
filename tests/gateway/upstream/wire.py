"""The two sides of a connection, without a socket: a transport that records, and an owner that keeps account."""

import asyncio

from gateway.upstream.connection import Connection
from gateway.upstream.response import UpstreamResponse


class FakeTransport(asyncio.Transport):
    """Takes what is written; the test gives the protocol what it should receive.

    `unwritten` is what `get_write_buffer_size` says. `abort` is recorded; a test that wants the loop's part of it
    calls `connection_lost` itself.
    """

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.protocol = protocol
        self.written: list[bytes] = []
        self.reading = True
        self.aborted = False
        self.unwritten = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.aborted, "written to after the end"
        assert isinstance(data, bytes)
        self.written.append(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unwritten

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        assert self.reading, "paused twice"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed twice"
        self.reading = True

    def abort(self) -> None:
        self.aborted = True


class FakeOwner:
    """Counts what a connection tells its pool."""

    def __init__(self) -> None:
        self.freed = 0
        self.dropped = 0
        self.lost = 0
        self.settlements: list[UpstreamResponse] = []

    def free(self, connection: Connection) -> None:
        self.freed += 1

    def drop(self, connection: Connection) -> None:
        self.dropped += 1

    def gone(self, connection: Connection) -> None:
        self.lost += 1

    def settled(self, response: UpstreamResponse) -> None:
        self.settlements.append(response)
