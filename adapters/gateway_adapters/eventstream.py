"""Event streams of AWS as bytes: where one frame ends and the next begins, and what a frame says.

A frame, all numbers big-endian:

    u32 length of all | u32 length of headers | u32 CRC of these eight bytes
    headers, each: u8 length of name | name | u8 type | value
    payload | u32 CRC of all before

Rules:
- The same frames come out however the input was cut, each once, and only whole.
- Both checksums are checked, the first before its lengths are believed. After damage nothing more is read: there is
  no way to find the next frame.
- One unfinished frame is held, at most `FRAME_BYTES_MAX` of it.

It knows no service: what the frames of one mean is its adapter's to say.
Source: "Amazon event stream specification" of Smithy (application/vnd.amazon.eventstream).
"""

import struct
import uuid
import zlib
from collections.abc import Mapping
from typing import Final

import msgspec

#: AWS sends none that is larger.
FRAME_BYTES_MAX: Final = 24 * 1024 * 1024
#: Sets of headers that are remembered: a stream has a handful of them, over and over.
_REMEMBERED_MAX: Final = 64

_PRELUDE: Final = struct.Struct(">III")
_CRC: Final = struct.Struct(">I")
_CRC_BYTES: Final = 4
_FRAME_BYTES_MIN: Final = _PRELUDE.size + _CRC_BYTES

_TRUE, _FALSE, _BYTES, _TEXT, _UUID = 0, 1, 6, 7, 9
#: Whole numbers, and times in milliseconds since 1970.
_NUMBERS: Final[Mapping[int, struct.Struct]] = {
    2: struct.Struct(">b"),
    3: struct.Struct(">h"),
    4: struct.Struct(">i"),
    5: struct.Struct(">q"),
    8: struct.Struct(">q"),
}

_unpack_prelude: Final = _PRELUDE.unpack_from
_crc32: Final = zlib.crc32

Headers = Mapping[str, bool | int | bytes | str | uuid.UUID]


class EventFrame(msgspec.Struct, frozen=True, gc=False):
    """One message of the stream."""

    headers: Headers
    payload: bytes

    def text(self, name: str) -> str:
        """A header that is text; empty where there is none."""
        value = self.headers.get(name)
        return value if isinstance(value, str) else ""


class DamagedStream(Exception):
    """A checksum is wrong, or a frame is not built as it must be. `frames` are those that came whole before it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.frames: list[EventFrame] = []


class EventStreamParser:
    """Cuts a stream into frames, one feed at a time."""

    def __init__(self, *, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._held = bytearray()
        #: Of the frame that is held, once its prelude was read.
        self._size = 0
        self._headers_size = 0
        self._frame_bytes_max = frame_bytes_max
        self._remembered: dict[bytes, Headers] = {}
        self._damaged = False

    @property
    def resting(self) -> bool:
        """True between two frames, with nothing held."""
        return not self._held

    def feed(self, data: bytes) -> list[EventFrame]:
        """The frames that `data` completes.

        Raises:
            DamagedStream: what came is no frame. Of the same `data`, the frames before it are in its `frames`.
        """
        if self._damaged:
            raise DamagedStream("read on after damage")
        held = self._held
        if not held and (frame := self._read_alone(data)) is not None:
            return [frame]
        held += data
        frames: list[EventFrame] = []
        at = 0
        try:
            while len(held) - at >= _PRELUDE.size:
                if not self._size:
                    self._read_prelude(held, at)
                if len(held) - at < self._size:
                    break
                frames.append(self._read_frame(bytes(held[at : at + self._size])))
                at += self._size
                self._size = 0
        except DamagedStream as error:
            self._damaged = True
            held.clear()
            error.frames = frames
            raise
        del held[:at]
        return frames

    def _read_alone(self, data: bytes) -> EventFrame | None:
        """The frame that `data` is, as one usually comes: whole, with headers seen before. None for anything else."""
        if len(data) < _FRAME_BYTES_MIN:
            return None
        size, headers_size, crc = _unpack_prelude(data)
        end = size - _CRC_BYTES
        start = _PRELUDE.size + headers_size
        if size != len(data) or start > end:
            return None
        seen = _crc32(data[:8])
        headers = self._remembered.get(data[_PRELUDE.size : start])
        if seen != crc or headers is None or _crc32(data[8:end], seen) != int.from_bytes(data[end:], "big"):
            return None
        return EventFrame(headers, data[start:end])

    def _read_prelude(self, held: bytearray, at: int) -> None:
        size, headers_size, crc = _PRELUDE.unpack_from(held, at)
        if zlib.crc32(held[at : at + _PRELUDE.size - _CRC_BYTES]) != crc:
            raise DamagedStream("the checksum of a prelude is wrong")
        if not _FRAME_BYTES_MIN + headers_size <= size <= self._frame_bytes_max:
            raise DamagedStream(f"a frame of {size} bytes with {headers_size} bytes of headers")
        self._size, self._headers_size = size, headers_size

    def _read_frame(self, raw: bytes) -> EventFrame:
        end = len(raw) - _CRC_BYTES
        if zlib.crc32(memoryview(raw)[:end]) != _CRC.unpack_from(raw, end)[0]:
            raise DamagedStream("the checksum of a frame is wrong")
        start = _PRELUDE.size + self._headers_size
        written = raw[_PRELUDE.size : start]
        headers = self._remembered.get(written)
        if headers is None:
            headers = read_headers(written)
            if len(self._remembered) < _REMEMBERED_MAX:
                self._remembered[written] = headers
        return EventFrame(headers, raw[start:end])


def read_headers(written: bytes) -> Headers:
    """The headers of a frame by name.

    Raises:
        DamagedStream: they are not built as they must be.
    """
    headers: dict[str, bool | int | bytes | str | uuid.UUID] = {}
    at = 0
    try:
        while at < len(written):
            start = at + 1
            at = start + written[at]
            name = written[start:at].decode("utf-8")
            kind = written[at]
            at += 1
            if kind in (_TRUE, _FALSE):
                headers[name] = kind == _TRUE
            elif kind in _NUMBERS:
                headers[name] = _NUMBERS[kind].unpack_from(written, at)[0]
                at += _NUMBERS[kind].size
            elif kind in (_BYTES, _TEXT, _UUID):
                size = 16
                if kind != _UUID:
                    size = int.from_bytes(written[at : at + 2], "big")
                    at += 2
                value = written[at : at + size]
                if len(value) != size:
                    raise DamagedStream("a header ends beyond its frame")
                at += size
                headers[name] = value if kind == _BYTES else _spelled(kind, value)
            else:
                raise DamagedStream(f"a header of type {kind}")
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise DamagedStream("a header can't be read") from error
    return headers


def _spelled(kind: int, value: bytes) -> str | uuid.UUID:
    return value.decode("utf-8") if kind == _TEXT else uuid.UUID(bytes=value)
