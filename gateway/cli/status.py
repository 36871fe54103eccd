"""`gateway status`: how the gateway that runs on this data directory does, from itself."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from gateway.cli.loading import load_config
from gateway.cli.table import Colour, Printer
from gateway.errors import ConfigError, Overloaded
from gateway.infra.embedded import run_directory
from gateway.infra.link import ask_supervisor
from gateway.status import (
    STATUS,
    FleetFacts,
    Pace,
    ProviderStatus,
    Status,
    WorkerFacts,
    decode_facts,
    paces_of,
    summarize,
)

_BREAKER_COLOURS: Final = {"closed": Colour.GREEN, "half open": Colour.YELLOW, "open": Colour.RED}
_STATE_COLOURS: Final = {"ready": Colour.GREEN, "starting": Colour.YELLOW, "stopping": Colour.DIM}
#: Above it, something is wrong with the books.
LAG_S: Final = 30.0
#: Workers hand in what they counted once a second.
WATCH_LEAST_S: Final = 1.0
_CLEAR: Final = "\x1b[H\x1b[2J"
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def run(arguments: argparse.Namespace) -> int:
    """Print it; 1 if no gateway runs here, or something is wrong with the one that does.

    Raises:
        GatewayError: nobody answers.
    """
    data_dir = Path(load_config(arguments).settings.server.data_dir)
    # Asking for the directory of its sockets would make it.
    sockets = sorted(run_directory(data_dir).glob("control-*.sock")) if data_dir.is_dir() else []
    facts = asyncio.run(_ask(data_dir, sockets))
    status = summarize(facts)
    if arguments.watch is not None:
        return asyncio.run(_watch(data_dir, facts, max(arguments.watch, WATCH_LEAST_S)))
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(status), indent=2).decode() + "\n")
    else:
        _print(Printer(sys.stdout), status, paces_of(facts))
    return 1 if complaints(status) else 0


async def _watch(data_dir: Path, before: FleetFacts, every_s: float) -> int:
    """Print it again and again, with what has passed in between, until it is interrupted or nobody answers."""
    out = Printer(sys.stdout)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await stop.wait()
            return 0
        facts = await _ask(data_dir, sorted(run_directory(data_dir).glob("control-*.sock")))
        # A gateway that was started anew counts from nothing.
        paces = paces_of(facts, before if facts.pid == before.pid else None)
        if sys.stdout.isatty():
            sys.stdout.write(_CLEAR)
        _print(out, summarize(facts), paces)
        sys.stdout.flush()
        before = facts


def complaints(status: Status) -> list[str]:
    """What is wrong, for people."""
    found = []
    if down := [worker.name for worker in status.workers if worker.state == "starting"]:
        found.append(f"not ready: {', '.join(down)}")
    if out := [provider.name for provider in status.providers if provider.breaker == "open"]:
        found.append(f"left alone because they fail: {', '.join(out)}")
    if keys := [provider.name for provider in status.providers if provider.keys_out]:
        found.append(f"with keys that were refused: {', '.join(keys)}")
    ledger = status.ledger
    if ledger.settle_lag_s > LAG_S:
        found.append(f"records wait {ledger.settle_lag_s:.0f} s to be settled: is PostgreSQL away?")
    if ledger.drift_usd:
        found.append(f"balances drift by {ledger.drift_usd:g} USD: see `gateway reconcile`")
    if ledger.records_rejected:
        found.append(f"{ledger.records_rejected} records were set aside: see `gateway reconcile --rejects`")
    if ledger.journal_bytes:
        found.append(f"{ledger.journal_bytes} bytes wait on this disk for Redis")
    return found


async def _ask(data_dir: Path, sockets: Sequence[Path]) -> FleetFacts:
    """Whoever answers; sockets of gateways that were killed may lie about.

    Raises:
        ConfigError: nobody does.
    """
    for path in sockets:
        try:
            return decode_facts(await ask_supervisor(path, STATUS))
        except Overloaded:
            continue
        except msgspec.DecodeError as error:
            raise ConfigError("the gateway that runs here is of another release") from error
    raise ConfigError(f"no gateway runs on {data_dir}; give its --data-dir")


def _print(out: Printer, status: Status, paces: Mapping[str, Pace]) -> None:
    serving = sum(worker.state == "ready" for worker in status.workers)
    out.line(
        f"gateway {status.version}, up {_age(status.uptime_s)}: {serving} of {len(status.workers)} processes ready"
    )
    out.line(f"{status.requests:,} requests answered, {status.in_flight:,} being handled")
    out.line()
    out.table(
        ("PROCESS", "PID", "STATE", "UP"),
        [(each.name, str(each.pid), each.state, _age(each.age_s)) for each in status.workers],
        colours=[_colour(each) for each in status.workers],
    )
    out.line()
    out.table(
        ("PROVIDER", "BREAKER", "KEYS OUT", "ATTEMPTS", "FAILED", "P50", "P95", "FIRST TOKEN P50"),
        [_row(each, paces[each.name]) for each in status.providers],
        colours=[_BREAKER_COLOURS[each.breaker] for each in status.providers],
    )
    out.line()
    ledger = status.ledger
    out.table(
        ("LEDGER", ""),
        [
            ("settlement lag", f"{ledger.settle_lag_s:g} s"),
            ("drift", f"{ledger.drift_usd:g} USD"),
            ("holds", f"{ledger.holds_open:,} open, {ledger.holds_expired:,} expired"),
            ("records", f"{ledger.records_settled:,} settled, {ledger.records_rejected:,} set aside"),
            ("local journal", f"{ledger.journal_bytes:,} bytes"),
            (
                "database",
                f"{status.database_in_use} of {status.database_open} in use, {status.database_waiting} waiting",
            ),
        ],
    )
    for complaint in complaints(status):
        out.line(out.paint(complaint, Colour.YELLOW))


def _row(provider: ProviderStatus, pace: Pace) -> tuple[str, ...]:
    attempts, failures = f"{provider.attempts:,}", f"{provider.failures:,}"
    if pace.attempts_per_s is not None and pace.failures_per_s is not None:
        attempts, failures = f"{pace.attempts_per_s:,.1f}/s", f"{pace.failures_per_s:,.1f}/s"
    times = (pace.latency_p50_s, pace.latency_p95_s, pace.first_token_p50_s)
    return (
        provider.name,
        provider.breaker,
        str(provider.keys_out),
        attempts,
        failures,
        *("-" if seconds is None else _time(seconds) for seconds in times),
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _colour(worker: WorkerFacts) -> Colour:
    return _STATE_COLOURS[worker.state]


def _age(seconds: float) -> str:
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"
