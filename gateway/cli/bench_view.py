"""What `gateway bench` shows: a panel that changes in place on a terminal, else a line now and then; and a table.

Nothing is measured here. Rates in the progress are of the last moment, percentiles of the whole window so far.
"""

import asyncio
import shutil
from typing import Final, Self, TextIO

from gateway.cli.table import Colour, Printer, printable
from gateway.infra.clock import Clock
from gateway.infra.tasks import TaskGroup
from gateway.loadtest.engine import Engine, Progress
from gateway.loadtest.result import Quantiles, Result

_PANEL_S: Final = 0.25
_LINE_S: Final = 5.0
_BAR: Final = 28
#: A start so much later than due is worth a word.
_LATE_MS: Final = 10.0


class Progressing:
    """Shows an engine's progress while its body runs, and leaves no trace of the panel behind."""

    def __init__(self, engine: Engine, stream: TextIO, *, clock: Clock, enabled: bool) -> None:
        self._engine = engine
        self._stream = stream
        self._clock = clock
        self._enabled = enabled
        self._panel = stream.isatty()
        self._lines = 0
        self._tasks = TaskGroup()

    async def __aenter__(self) -> Self:
        if self._enabled:
            self._tasks.spawn(self._show(), name="bench progress")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.close()
        self._erase()

    async def _show(self) -> None:
        before = self._engine.progress()
        before_s = self._clock.monotonic()
        while True:
            await asyncio.sleep(_PANEL_S if self._panel else _LINE_S)
            now = self._engine.progress()
            now_s = self._clock.monotonic()
            lines = panel(now, before, elapsed_s=now_s - before_s, width=shutil.get_terminal_size().columns)
            if self._panel:
                self._erase()
                self._stream.write("\n".join(lines) + "\n")
                self._lines = len(lines)
            else:
                self._stream.write("  ".join(" ".join(line.split()) for line in lines) + "\n")
            self._stream.flush()
            before, before_s = now, now_s

    def _erase(self) -> None:
        if self._lines:
            self._stream.write(f"\x1b[{self._lines}F\x1b[J")
            self._stream.flush()
            self._lines = 0


def panel(now: Progress, before: Progress, *, elapsed_s: float, width: int) -> list[str]:
    """Three lines, none wider than the terminal."""
    done = min(1.0, now.elapsed_s / now.length_s) if now.length_s else 0.0
    if now.completed < before.completed or now.events < before.events:
        # The counters began anew, with the window.
        requests, events = now.completed / now.elapsed_s, now.events / now.elapsed_s
    else:
        requests, events = (now.completed - before.completed) / elapsed_s, (now.events - before.events) / elapsed_s
    bar = "=" * round(done * _BAR)
    lines = [
        f"{now.phase:<10} [{bar:<{_BAR}}] {now.elapsed_s:.0f} of {now.length_s:.0f} s",
        f"running {now.running:,}  done {now.completed:,} ({requests:,.0f}/s)"
        + (f"  events {now.events:,} ({events:,.0f}/s)" if now.events else "")
        + (f"  waiting {now.overdue:,}" if now.overdue else ""),
        f"latency p50 {duration(now.latency_p50_ms)}  p99 {duration(now.latency_p99_ms)}  errors {now.failed:,}",
    ]
    return [line[: max(20, width - 1)] for line in lines]


def duration(ms: float) -> str:
    """Three digits and a unit."""
    if ms >= 1000:
        return f"{ms / 1000:.3g} s" if ms < 100_000 else f"{ms / 1000:.0f} s"
    return f"{ms:.3g} ms" if ms >= 1 else f"{ms * 1000:.0f} us"


def print_result(out: Printer, result: Result, *, interrupted: bool) -> None:
    """The table, the errors, and what keeps the figures from being good ones."""
    load = f"{result.rate:g} requests/s, at most {result.streams:,} at a time" if result.rate else ""
    load = load or f"{result.streams:,} requests at a time, each caller waiting for its answer"
    out.line(
        f"{result.loop} loop: {load}; {result.window_s:.1f} s measured" + (", interrupted" if interrupted else "")
    )
    out.line()
    out.table(
        ("", "COUNT", "MEAN", "P50", "P90", "P99", "P99.9", "MAX"),
        [
            _row(name, quantiles)
            for name, quantiles in (
                ("latency", result.latency),
                ("time to first token", result.first_token),
                ("between events", result.between_events),
                ("connect", result.connect),
            )
            if quantiles.count
        ],
    )
    out.line()
    received = result.received_bytes / result.window_s / 1e6
    out.line(
        f"{result.requests_per_s:,.1f} requests/s, {result.events_per_s:,.1f} events/s, {received:.2f} MB/s; "
        f"{result.completed:,} requests and {result.events:,} events in the window"
    )
    if result.errors:
        out.line(out.paint(f"{result.failed:,} requests failed:", Colour.RED))
        for kind, count in result.errors.items():
            out.line(f"  {count:,}  {printable(kind)}")
            if kind in result.error_samples:
                out.line(f"      {printable(result.error_samples[kind])}")
    for warning in warnings(result, interrupted=interrupted):
        out.line(out.paint(f"note: {warning}", Colour.YELLOW))


def warnings(result: Result, *, interrupted: bool) -> list[str]:
    """Why the percentiles may look better, or worse, than the server is."""
    found = []
    if result.unsent:
        found.append(
            f"{result.unsent:,} requests were due but never started: the server, or --streams {result.streams}, "
            f"can't keep up with {result.rate:g} a second, and latency would grow for as long as the run lasts"
        )
    if result.unfinished and not interrupted:
        found.append(f"{result.unfinished:,} requests had not ended when the grace was over and are in no percentile")
    if not result.unsent and result.start_delay.p99_ms > _LATE_MS:
        found.append(
            f"1 % of the requests started {duration(result.start_delay.p99_ms)} late or more, for want of a free "
            "stream or because this machine is busy; their latency counts from when they were due"
        )
    return found


def _row(name: str, quantiles: Quantiles) -> tuple[str, ...]:
    return (
        name,
        f"{quantiles.count:,}",
        *(
            duration(ms)
            for ms in (
                quantiles.mean_ms,
                quantiles.p50_ms,
                quantiles.p90_ms,
                quantiles.p99_ms,
                quantiles.p999_ms,
                quantiles.max_ms,
            )
        ),
    )
