"""Counts server-sent events in a body that arrives in pieces cut anywhere.

An event is what the HTML standard ("9.2.6 Interpreting an event stream") dispatches: a blank line after at least one
`data` line. Comments and lone `event:` or `id:` lines are none. Lines end with LF, CRLF or CR, and a CRLF may be cut
in two. What is kept between pieces is the beginning of one line, whatever the size of the event.

Pieces that hold whole events and nothing else, nearly all there are, are counted without being taken apart.
"""

from typing import Final

#: As much of a line as tells what it is.
_KEEP_BYTES: Final = 5


class EventCounter:
    """`feed` says how many events each piece completed."""

    __slots__ = ("_after_cr", "_has_data", "_line")

    def __init__(self) -> None:
        self._line = b""
        self._has_data = False
        self._after_cr = False

    def feed(self, piece: bytes) -> int:
        """Events whose blank line lies in `piece`."""
        if (
            piece.startswith(b"data:")
            and piece.endswith(b"\n\n")
            and not self._line
            and not self._has_data
            and b"\r" not in piece
        ):
            self._after_cr = False
            ends = piece.count(b"\n\n")
            if ends == 1 or piece.count(b"\n\ndata:") == ends - 1:
                return ends
        return self._feed_lines(piece)

    def _feed_lines(self, piece: bytes) -> int:
        if not piece:
            return 0
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_cr = piece.endswith(b"\r") if piece else False
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._line + piece).split(b"\n")
        self._line = lines.pop()[:_KEEP_BYTES]
        completed = 0
        for line in lines:
            if not line:
                completed += self._has_data
                self._has_data = False
            elif line.startswith(b"data:") or line == b"data":
                self._has_data = True
        return completed
