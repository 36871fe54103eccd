"""Server-sent events as bytes: where one event ends and the next begins, and what an event says.

Rules:
- Line ends are LF, CRLF and CR, mixed as they come; nothing else ends a line. `str.splitlines` would also split at
  U+2028, U+0085 and others that are ordinary characters inside a JSON string, so text is never split, bytes are.
- The same frames come out however the input was cut, and the `raw` of all frames together, with what `finish` gives,
  is the input.
- A blank line closes an event. Where that line ends in a bare CR, the event is held until the next byte shows that no
  LF belongs to it.

Source: the event stream format of the WHATWG HTML standard, section "Interpreting an event stream".
It does not interpret `id` and `retry`: a gateway holds no position in a stream and never reconnects one.
"""

import re

import msgspec

from gateway.errors import UpstreamMalformed

#: An event longer than this is not collected. A whole answer with images in it, sent as one event, stays below.
EVENT_BYTES_MAX = 16 * 1024 * 1024

BOM = b"\xef\xbb\xbf"

_EOL = rb"(?:\r\n|\n|\r(?=[^\n]))"
_BLANK = re.compile(_EOL + _EOL)
_LEADING = re.compile(_EOL)
_LINE_END = re.compile(rb"\r\n|\n|\r")
# Of the longest blank line, CRLF CRLF, three bytes may have come before without being seen for what they are.
_OVERLAP = 3


class EventTooLong(UpstreamMalformed):
    """The provider sent an event larger than this gateway reads."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One block of the stream, up to and with its blank line.

    `event` is empty where the block names none. `data` is the `data` lines joined by LF; empty means that a client
    dispatches nothing: a comment, a lone `retry`, a stray blank line.
    """

    raw: bytes
    event: bytes
    data: bytes


def lines_of(block: bytes) -> list[bytes]:
    """The lines of a block without their ends; a final end gives no empty line after it."""
    lines = block.split(b"\n") if b"\r" not in block else _LINE_END.split(block)
    if lines and not lines[-1]:
        lines.pop()
    return lines


def parse(raw: bytes) -> Frame:
    """Read one whole block. A byte order mark in front of it is skipped."""
    event = b""
    data: list[bytes] = []
    for line in lines_of(raw.removeprefix(BOM)):
        name, colon, value = line.partition(b":")
        if colon and value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value
    return Frame(raw, event, data[0] if len(data) == 1 else b"\n".join(data))


def cut(buffer: bytes | bytearray, start: int, scanned: int) -> int:
    """Where the block that begins at `start` ends, its blank line included; -1 while that is not known.

    Bytes before `scanned` were looked at by an earlier call for the same block, and are not looked at again.
    """
    blank = _LEADING.match(buffer, start)
    return find_blank(buffer, scanned, start) if blank is None else blank.end()


def find_blank(buffer: bytes | bytearray, scanned: int, start: int = 0) -> int:
    """Where the first blank line ends that was not complete before `scanned`; -1 where there is none."""
    blank = _BLANK.search(buffer, max(start, scanned - _OVERLAP))
    return -1 if blank is None else blank.end()


class FrameScanner:
    """Cuts a stream into frames, one feed at a time, holding at most `event_bytes_max` of an unfinished one."""

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._held = bytearray()
        self._scanned = 0
        self._event_bytes_max = event_bytes_max

    @property
    def resting(self) -> bool:
        """True between two frames, with nothing held."""
        return not self._held

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes.

        Raises:
            EventTooLong: an event outgrew the bound. The scanner is of no use afterwards.
        """
        held = self._held
        held += data
        frames: list[Frame] = []
        start = 0
        end = cut(held, 0, self._scanned)
        while end >= 0:
            self._check(end - start)
            frames.append(parse(bytes(held[start:end])))
            start = end
            end = cut(held, start, start)
        del held[:start]
        self._scanned = len(held)
        self._check(self._scanned)
        return frames

    def finish(self) -> Frame | None:
        """What was left at the end of the stream without its blank line, or None."""
        rest = bytes(self._held)
        self._held.clear()
        self._scanned = 0
        return parse(rest) if rest else None

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._event_bytes_max:
            self._held.clear()
            raise EventTooLong
