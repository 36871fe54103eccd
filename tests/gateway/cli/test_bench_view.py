import io

import msgspec
import pytest

from gateway.cli.bench_view import duration, panel, print_result, warnings
from gateway.cli.table import Printer
from gateway.loadtest.engine import Progress
from gateway.loadtest.histogram import Histogram
from gateway.loadtest.result import Result, quantiles

SOME = Histogram()
SOME.record(2_000_000)
SOME.record(30_000_000_000)
NONE = quantiles(Histogram())
RESULT = Result(
    loop="open",
    streams=10,
    rate=5.0,
    window_s=2.0,
    completed=2,
    failed=0,
    unfinished=0,
    unsent=0,
    events=6,
    received_bytes=1000,
    requests_per_s=1.0,
    events_per_s=3.0,
    latency=quantiles(SOME),
    first_token=NONE,
    between_events=NONE,
    connect=NONE,
    start_delay=NONE,
    errors={},
    error_samples={},
)
PROGRESS = Progress(
    phase="measuring",
    elapsed_s=3.0,
    length_s=30.0,
    running=500,
    overdue=0,
    completed=1200,
    failed=0,
    events=60_000,
    latency_p50_ms=512.0,
    latency_p99_ms=1024.0,
)


def printed(result: Result) -> str:
    stream = io.StringIO()
    print_result(Printer(stream, colour=False), result, interrupted=False)
    return stream.getvalue()


def changed(**fields: object) -> Result:
    return msgspec.structs.replace(RESULT, **fields)


def test_rows_without_figures_are_left_out() -> None:
    text = printed(RESULT)

    assert "latency" in text
    assert "between events" not in text


def test_errors_come_with_an_example_that_cannot_move_the_cursor() -> None:
    text = printed(changed(failed=3, errors={"HTTP 429": 3}, error_samples={"HTTP 429": "slow\x1b[2Jdown"}))

    assert "3  HTTP 429" in text
    assert "slow\\x1b[2Jdown" in text


def test_a_backlog_is_told_before_anybody_trusts_the_percentiles() -> None:
    assert "never started" in warnings(changed(unsent=7), interrupted=False)[0]
    assert "not ended" in warnings(changed(unfinished=7), interrupted=False)[0]
    assert "late" in warnings(changed(start_delay=quantiles(SOME)), interrupted=False)[0]
    assert warnings(RESULT, interrupted=False) == []


def test_an_interrupted_run_has_unfinished_requests_by_nature() -> None:
    assert warnings(changed(unfinished=7), interrupted=True) == []


def test_rates_are_of_the_last_moment() -> None:
    before = msgspec.structs.replace(PROGRESS, completed=1100, events=55_000, elapsed_s=2.0)

    lines = panel(PROGRESS, before, elapsed_s=2.0, width=120)

    assert "1,200 (50/s)" in lines[1]
    assert "60,000 (2,500/s)" in lines[1]


def test_rates_start_anew_with_the_window() -> None:
    before = msgspec.structs.replace(PROGRESS, phase="warm-up", completed=90_000, events=900_000)

    assert "1,200 (400/s)" in panel(PROGRESS, before, elapsed_s=0.5, width=120)[1]


def test_the_panel_fits_a_narrow_terminal() -> None:
    assert all(len(line) < 40 for line in panel(PROGRESS, PROGRESS, elapsed_s=1.0, width=40))


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0.0, "0 us"), (0.25, "250 us"), (1.234, "1.23 ms"), (999.0, "999 ms"), (1500.0, "1.5 s"), (120_000, "120 s")],
)
def test_durations_read_well(ms: float, text: str) -> None:
    assert duration(ms) == text
