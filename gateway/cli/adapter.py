"""`gateway adapter check PACKAGE`: hold what a package brings to the contract, and print what was found."""

import argparse
import sys
import tomllib
from pathlib import Path

from gateway.cli.table import Colour, Printer
from gateway.errors import ConfigError
from gateway.testing.report import examine, fill_cases

_COLOURS = {"ok": Colour.GREEN, "warn": Colour.YELLOW, "fail": Colour.RED, "info": None}


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if anything failed.

    Raises:
        ConfigError: there is no such package, folder or file.
    """
    folder = None if arguments.cases is None else Path(arguments.cases)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--cases: there is no folder {folder}")
    table = None if arguments.table is None else _table(Path(arguments.table))
    out = Printer(sys.stdout)
    filled = [] if folder is None or not arguments.fill else list(fill_cases(arguments.package, folder))
    lines = filled + list(examine(arguments.package, table=table, folder=folder))
    rows = [(line.state, line.subject, line.found.partition("\n")[0]) for line in lines]
    out.table(("STATE", "SUBJECT", "FOUND"), rows, colours=[_COLOURS[line.state] for line in lines])
    for line in lines:
        if "\n" in line.found:
            out.line()
            out.line(out.paint(line.subject, _COLOURS[line.state]))
            out.line(line.found)
    failed = sum(line.state == "fail" for line in lines)
    out.line()
    out.line(f"{failed} failed" if failed else "nothing failed")
    return 1 if failed else 0


def _table(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--table: {file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--table: {file}: {error}") from None
