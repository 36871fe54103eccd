"""The tap of every bridge: it feeds the adapter's tap and hands what comes out, read, to a writer of the dialect.

Rules:
- What the adapter's tap knows (usage, whether the answer was whole, what failed) is not found out a second time.
- Only whole events are written, and what ends an answer only where it was seen to be whole: one that broke off never
  looks finished.
- A provider that answers with a plain body where a stream was asked for is written as a stream.
- What can't be read is a failure, and so is an error inside the answer; nothing here raises.
"""

from typing import Final, Protocol

import msgspec

from gateway.api import Failure, Tap
from gateway.bridges.hub import UNREADABLE, Chunk, failure_in, is_error, malformed, read_chunk
from gateway.wire.dialects import JSON_TYPE, SSE_TYPE
from gateway.wire.sse import EventTooLong, FrameScanner, parse
from gateway.wire.usage import Usage

#: As much of a plain answer is gathered to be read.
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024

_DONE: Final = b"[DONE]"


class Unwritable(ValueError):
    """The answer says what the caller's dialect has no way to say."""

    def failure(self) -> Failure:
        """What the caller is told of it, and whose fault it is: the provider's, as nobody else wrote it."""
        return malformed(str(self))


class StreamWriter(Protocol):
    """Writes one stream in the caller's dialect. What it returns are whole events."""

    def write(self, chunk: Chunk) -> bytes:
        """The events that say what `chunk` says.

        Raises:
            Unwritable: the dialect has no way to.
        """
        ...

    def end(self, usage: Usage) -> bytes:
        """The events that end the stream. `usage` is what the caller is told, and charged."""
        ...


class BodyWriter(Protocol):
    """Writes one whole answer in the caller's dialect."""

    def __call__(self, completion: Chunk, usage: Usage) -> bytes: ...


class _Bridged:
    """What both taps leave to the adapter's."""

    rewrites = True
    #: Only whole events leave.
    mid_event = False

    __slots__ = ("_inner", "_input_tokens", "failure")

    def __init__(self, inner: Tap, *, input_tokens: int) -> None:
        self.failure: Failure | None = None
        self._inner = inner
        self._input_tokens = input_tokens

    @property
    def complete(self) -> bool:
        return self.failure is None and self._inner.complete

    @property
    def errored(self) -> bool:
        return self.failure is not None or self._inner.errored

    def usage(self) -> Usage | None:
        return self._inner.usage()

    def delivered(self) -> Usage:
        usage = self._inner.delivered()
        # The end may have come by after the error.
        return usage if self.failure is None else msgspec.structs.replace(usage, source="partial")

    def _used(self) -> Usage:
        """What the caller is told was used: what will be charged, too."""
        usage = self._inner.usage()
        if usage is not None:
            return usage
        usage = self._inner.delivered()
        return usage if usage.input_tokens else msgspec.structs.replace(usage, input_tokens=self._input_tokens)


class GatheredTap(_Bridged):
    """For an answer that is kept until its end. Subclasses write the caller's in `_written`."""

    content_type: bytes | None = JSON_TYPE

    __slots__ = ("_parts", "_size_bytes")

    def __init__(self, inner: Tap, *, input_tokens: int) -> None:
        super().__init__(inner, input_tokens=input_tokens)
        self._parts: list[bytes] = []
        self._size_bytes = 0

    def feed(self, data: bytes) -> bytes:
        self._gather(self._inner.feed(data))
        return b""

    def end(self) -> bytes:
        self._gather(self._inner.end())
        if self.failure is not None:
            return b""
        try:
            return self._written(b"".join(self._parts))
        except UNREADABLE as error:
            self.failure = malformed(str(error))
        except Unwritable as error:
            self.failure = error.failure()
        return b""

    def _written(self, body: bytes) -> bytes:
        raise NotImplementedError

    def _gather(self, data: bytes) -> None:
        self.failure = self.failure or self._inner.failure
        self._size_bytes += len(data)
        if self._size_bytes > ANSWER_BYTES_MAX:
            self._parts.clear()
            self.failure = self.failure or malformed("a larger answer than can be translated")
        elif data:
            self._parts.append(data)


class BodyTap(GatheredTap):
    """For a caller who waits for the whole chat completion."""

    __slots__ = ("_write",)

    def __init__(self, inner: Tap, write: BodyWriter, *, input_tokens: int) -> None:
        super().__init__(inner, input_tokens=input_tokens)
        self._write = write

    def _written(self, body: bytes) -> bytes:
        completion = read_chunk(body)
        if is_error(completion) and not completion.choices:
            self.failure = failure_in(completion)
            return b""
        if not completion.choices:
            raise Unwritable("an answer without choices")
        return self._write(completion, self._used())


class StreamTap(_Bridged):
    """For a caller of a stream.

    `content_type` is the dialect's; one that has no stream of events says so.
    """

    __slots__ = ("_body", "_ended", "_resting", "_scanner", "_writer", "content_type")

    def __init__(
        self, inner: Tap, writer: StreamWriter, *, input_tokens: int, content_type: bytes = SSE_TYPE
    ) -> None:
        super().__init__(inner, input_tokens=input_tokens)
        self.content_type: bytes | None = content_type
        self._writer = writer
        self._scanner = FrameScanner()
        #: Between two events, with nothing held.
        self._resting = True
        #: What is gathered of a plain body; None where the answer is a stream, as it usually is.
        self._body: bytearray | None = None
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        inner = self._inner
        data = inner.feed(data)
        if self._resting and data.startswith(b"data: {") and data.find(b"\n") == len(data) - 2 and data[-1] == 0x0A:
            out = self._event(data[6:])
        else:
            out = self._read(data)
        if inner.failure is not None and self.failure is None:
            self.failure = inner.failure
        return out

    def end(self) -> bytes:
        inner = self._inner
        out = self._read(inner.end())
        if self._body is not None:
            out += self._end_body(bytes(self._body))
        elif (rest := self._scanner.finish()) is not None and rest.data:
            out += self._event(rest.data)
        self.failure = self.failure or inner.failure
        if self.failure is None and inner.complete:
            out += self._end()
        return out

    def _read(self, data: bytes) -> bytes:
        """Whatever is not one whole event."""
        if not data or self.failure is not None:
            return b""
        if self._body is not None:
            return self._gather(data)
        if self._resting and data.endswith(b"\n\n") and b"\r" not in data:
            usual = b"data: {"
            blocks = [
                block[6:] if block.startswith(usual) and block.find(b"\n") < 0 else parse(block + b"\n\n").data
                for block in data[:-2].split(b"\n\n")
            ]
            return b"".join([self._event(block) for block in blocks if block])
        if self._resting and data.isspace():
            # Some keep a connection alive with blank lines, even before a plain body.
            return b""
        if self._resting and data.lstrip()[:1] == b"{":
            # A body where a stream should be. Whether it was asked for as one matters to nobody else.
            self._body = bytearray()
            return self._gather(data)
        try:
            frames = self._scanner.feed(data)
        except EventTooLong as error:
            self.failure = malformed(error.message)
            return b""
        self._resting = self._scanner.resting
        return b"".join([self._event(frame.data) for frame in frames if frame.data])

    def _event(self, data: bytes) -> bytes:
        if self._ended or self.failure is not None:
            return b""
        if data.startswith(_DONE):
            return self._end() if self._inner.complete else b""
        try:
            chunk = read_chunk(data)
            if is_error(chunk):
                self.failure = failure_in(chunk)
                return b""
            return self._writer.write(chunk)
        except msgspec.DecodeError as error:
            self.failure = malformed(str(error))
        except Unwritable as error:
            self.failure = error.failure()
        return b""

    def _end(self) -> bytes:
        if self._ended:
            return b""
        self._ended = True
        return self._writer.end(self._used())

    def _gather(self, data: bytes) -> bytes:
        assert self._body is not None
        self._body += data
        if len(self._body) > ANSWER_BYTES_MAX:
            self._body.clear()
            self.failure = malformed("a larger answer than can be translated")
        return b""

    def _end_body(self, body: bytes) -> bytes:
        """A whole answer, as the one event that says it all."""
        out = self._event(body)
        return out + self._end() if self.failure is None else out
