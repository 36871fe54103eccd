"""What a worker and its supervisor say to each other.

Rules:
- A worker speaks over a stream of its own, made before the fork, in frames: four bytes of length (big-endian), one of
  kind, the payload. It is never answered there, so neither side ever waits for the other.
- A worker that asks something (what all workers counted together) connects to the supervisor's control socket, sends
  a line, and reads until the end.
- Snapshots are whole: while one is still on its way the next is skipped, and nothing is lost but freshness.
"""

import asyncio
import enum
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.errors import Overloaded

FRAME_BYTES_MAX = 32 * 1024 * 1024
ASK_TIMEOUT_S = 5.0
#: What an answer on the control socket may weigh.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
METRICS = b"metrics\n"

_HEAD = struct.Struct(">IB")


class Kind(enum.IntEnum):
    """What a frame says."""

    #: It accepts connections.
    READY = 1
    #: Why it can't start; UTF-8 text for the operator.
    FAILED = 2
    #: Everything it counted, see `gateway/infra/metrics.py`.
    SNAPSHOT = 3


class Frames:
    """Takes a stream apart: `feed` it what was read, and iterate over what is whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """The frames that `data` completes.

        Raises: ValueError for a frame that nobody would send.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEAD.size:
            length, kind = _HEAD.unpack_from(buffer)
            if length > FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {length} bytes")
            end = _HEAD.size + length
            if len(buffer) < end:
                return
            payload = bytes(buffer[_HEAD.size : end])
            del buffer[:end]
            yield Kind(kind), payload


class Link:
    """A worker's side: say that it is ready or why not, hand in snapshots, ask for everybody's."""

    def __init__(self, channel: socket.socket, control_path: Path, *, name: str) -> None:
        self._channel = channel
        self._control_path = control_path
        self._transport: asyncio.WriteTransport | None = None
        #: Of this life of this worker; no other of the same supervisor, before or after, has it.
        self.name = name
        self._when_stopping: list[Callable[[], None]] = []

    def when_stopping(self, call: Callable[[], None]) -> None:
        """Call it when this worker is to end and nobody takes its place here."""
        self._when_stopping.append(call)

    def tell_stopping(self) -> None:
        """That is so now."""
        for call in self._when_stopping:
            call()

    async def open(self) -> None:
        """Use the running loop from now on."""
        loop = asyncio.get_running_loop()
        # A copy: the loop closes its own when it ends, and a failure has to be told even then.
        self._transport, _ = await loop.create_unix_connection(asyncio.Protocol, sock=self._channel.dup())

    def close(self) -> None:
        """Say nothing more; what was said before still arrives."""
        if self._transport is not None:
            self._transport.close()

    def report_ready(self) -> None:
        """We accept connections."""
        self._write(Kind.READY, b"")

    def report_failure(self, reason: str) -> None:
        """We can't start. Before `open`, or once the loop is gone; waits until it is sent."""
        payload = reason.encode()[:FRAME_BYTES_MAX]
        try:
            self._channel.setblocking(True)
            self._channel.sendall(_HEAD.pack(len(payload), Kind.FAILED) + payload)
        except OSError:
            # The supervisor is gone, and we with it in a moment.
            return

    def push(self, snapshot: bytes) -> bool:
        """Hand in a snapshot; False when the last one is still on its way, and this one is dropped."""
        assert self._transport is not None, "the link is not open"
        if self._transport.get_write_buffer_size() or len(snapshot) > FRAME_BYTES_MAX:
            return False
        self._write(Kind.SNAPSHOT, snapshot)
        return True

    async def ask(self, what: bytes) -> bytes:
        """Send the supervisor a line and return its answer, e.g. to `METRICS`.

        Raises: Overloaded when it does not answer, or not in time.
        """
        return await ask_supervisor(self._control_path, what)

    def _write(self, kind: Kind, payload: bytes) -> None:
        assert self._transport is not None, "the link is not open"
        self._transport.write(_HEAD.pack(len(payload), kind) + payload)


async def ask_supervisor(control_path: Path, what: bytes) -> bytes:
    """Send a line to the control socket of a supervisor and return its answer.

    Raises: Overloaded when it does not answer, or not in time.
    """
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(control_path))
            try:
                writer.write(what)
                answer = bytearray()
                while chunk := await reader.read(65536):
                    answer += chunk
                    if len(answer) > ANSWER_BYTES_MAX:
                        raise Overloaded(detail="the supervisor's answer has no end")
                if not answer:
                    raise Overloaded(detail="the supervisor has too many to answer")
                return bytes(answer)
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise Overloaded(detail=f"the supervisor does not answer: {error!r}") from error
