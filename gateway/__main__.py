"""`gateway`, and `python -m gateway`: find the command, run it, turn what went wrong into one readable line.

Commands are imported when they are called, so that `--help` and `healthcheck` don't pay for the others.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence

from gateway.cli.arguments import parser
from gateway.errors import GatewayError, StoreUnavailable

_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    arguments = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name is no reason to fail in an ASCII terminal
    try:
        command = importlib.import_module(f"gateway.cli.{arguments.command}")
        status: int = command.run(arguments)
        sys.stdout.flush()
    except GatewayError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _complain(error: GatewayError) -> None:
    from gateway.config import InvalidConfig

    if isinstance(error, InvalidConfig) and len(error.problems) > 1:
        print(f"gateway: {len(error.problems)} things in the configuration are wrong:", file=sys.stderr)
        print("\n".join(f"  {problem}" for problem in error.problems), file=sys.stderr)
    else:
        print(f"gateway: {error.message}", file=sys.stderr)
    if error.detail:
        print(f"  {error.detail}", file=sys.stderr)
    if isinstance(error, StoreUnavailable):
        print("  see database.url (DATABASE_URL) and redis.url (REDIS_URL), or ask `gateway doctor`", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
