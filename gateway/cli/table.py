"""Tables and marks for people at a terminal.

Plain aligned text. Colours only where the stream is a terminal and `NO_COLOR` is not set. What comes from a database
or a file is made printable first: a name must not be able to move the cursor.
"""

from collections.abc import Sequence
from enum import Enum
from typing import TextIO

from gateway.config import colour_wanted

_GAP = "  "
_RESET = "\x1b[0m"


class Colour(Enum):
    """The few that are readable on any background."""

    GREEN = "\x1b[32m"
    YELLOW = "\x1b[33m"
    RED = "\x1b[31m"
    DIM = "\x1b[2m"


class Printer:
    """Writes to one stream, in colour where that is welcome."""

    def __init__(self, stream: TextIO, *, colour: bool | None = None) -> None:
        self._stream = stream
        self._colour = stream.isatty() and colour_wanted() if colour is None else colour

    def line(self, text: str = "") -> None:
        """One line."""
        self._stream.write(text + "\n")

    def paint(self, text: str, colour: Colour | None) -> str:
        """`text` in `colour`, where colours are shown."""
        return f"{colour.value}{text}{_RESET}" if colour and self._colour else text

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, colours: Sequence[Colour | None] = ()
    ) -> None:
        """Rows under headings. `colours` paint the first column, a row each."""
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(len(row[column]) for row in [list(headings), *cells]) for column in range(len(headings))]
        self.line(self.paint(_aligned(headings, widths), Colour.DIM))
        for number, row in enumerate(cells):
            first = row[0].ljust(widths[0]) if len(row) > 1 else row[0]
            colour = colours[number] if number < len(colours) else None
            rest = _aligned(row[1:], widths[1:])
            self.line((self.paint(first, colour) + (_GAP + rest if rest else "")).rstrip())


def printable(text: str) -> str:
    """`text` on one line, with everything that is no visible character written as an escape."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
