from gateway.loadtest.histogram import Histogram
from gateway.loadtest.result import Measurement, quantiles


def test_kinds_of_errors_are_bounded_and_none_is_lost() -> None:
    measured = Measurement()

    for number in range(1000):
        measured.fail(f"kind {number}")

    assert measured.failed == 1000
    assert len(measured.errors) <= 25
    assert measured.errors["other"] > 900


def test_the_first_example_of_a_kind_is_kept_and_cut() -> None:
    measured = Measurement()

    measured.fail("HTTP 500", sample=b"\xff" + b"a" * 10_000)
    measured.fail("HTTP 500", sample=b"b")

    assert measured.error_samples["HTTP 500"].startswith("\ufffda")
    assert len(measured.error_samples["HTTP 500"]) <= 300


def test_quantiles_are_milliseconds() -> None:
    histogram = Histogram()
    for ms in range(1, 101):
        histogram.record(ms * 1_000_000)

    found = quantiles(histogram)

    assert (found.count, found.mean_ms, found.max_ms) == (100, 50.5, 100.0)
    assert 50 <= found.p50_ms <= 50.5
    assert 99 <= found.p99_ms <= 100
