"""What people see at a terminal, and what a program that reads the same gets."""

import io

from gateway.cli.table import Colour, Printer, printable
from gateway.config import colour_wanted


def test_columns_line_up_and_nothing_trails():
    out = io.StringIO()

    Printer(out).table(("NAME", "N"), [("a", "1"), ("long name", "22"), ("b", "")])

    assert out.getvalue() == "NAME       N\na          1\nlong name  22\nb\n"


def test_colours_are_for_terminals_alone():
    plain, painted = io.StringIO(), io.StringIO()

    Printer(plain).table(("A", "B"), [("x", "y")], colours=[Colour.RED])
    Printer(painted, colour=True).table(("A", "B"), [("x", "y")], colours=[Colour.RED])

    assert "\x1b" not in plain.getvalue()
    assert "\x1b[31mx\x1b[0m  y\n" in painted.getvalue()


def test_colour_can_be_declined():
    assert colour_wanted({"TERM": "xterm"})
    assert not colour_wanted({"NO_COLOR": "1"})
    assert not colour_wanted({"TERM": "dumb"})


def test_what_is_shown_can_not_move_the_cursor():
    assert printable("a\x1b[2J\nb\u202e é") == "a\\x1b[2J\\nb\\u202e é"
