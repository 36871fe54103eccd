import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.loadtest.histogram import LIMIT_NS, Histogram

durations = st.integers(min_value=0, max_value=LIMIT_NS)


def recorded(*values: int) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(values=st.lists(durations, min_size=1, max_size=60), percent=st.sampled_from([0, 1, 50, 90, 99, 99.9, 100]))
def test_percentile_is_the_ranked_value_and_at_most_a_bucket_too_high(values: list[int], percent: float) -> None:
    ranked = sorted(values)
    exact = ranked[max(0, math.ceil(len(values) * round(percent * 10) / 1000) - 1)]

    found = recorded(*values).percentile_ns(percent)

    assert exact <= found <= exact + exact // 128 + 1


@given(value=durations)
def test_a_single_value_is_every_percentile_exactly(value: int) -> None:
    histogram = recorded(value)

    assert {histogram.percentile_ns(percent) for percent in (0, 50, 99.9, 100)} == {value}


def test_p99_9_of_a_thousand_values_leaves_one_out() -> None:
    histogram = recorded(*[100] * 999, 5_000)

    assert histogram.percentile_ns(99.9) == 100
    assert histogram.percentile_ns(99.91) == 5_000


@given(values=st.lists(st.tuples(durations, st.integers(1, 5)), max_size=30))
def test_count_mean_and_max_are_exact(values: list[tuple[int, int]]) -> None:
    histogram = Histogram()
    flat = [value for value, times in values for _ in range(times)]

    for value, times in values:
        histogram.record(value, times=times)

    assert len(histogram) == len(flat)
    assert histogram.max_ns == max(flat, default=0)
    assert histogram.mean_ns == (sum(flat) / len(flat) if flat else 0.0)


@given(values=st.lists(durations, min_size=1))
def test_buckets_ascend_and_hold_everything(values: list[int]) -> None:
    buckets = list(recorded(*values).buckets())

    assert [highest for highest, _ in buckets] == sorted({highest for highest, _ in buckets})
    assert sum(count for _, count in buckets) == len(values)


def test_what_is_out_of_range_is_kept_at_the_nearest_end() -> None:
    histogram = recorded(-5, LIMIT_NS * 4)

    assert histogram.percentile_ns(50) == 0
    assert histogram.percentile_ns(100) == LIMIT_NS
    assert histogram.max_ns == LIMIT_NS * 4


def test_an_empty_histogram_answers_zero() -> None:
    histogram = Histogram()

    assert (len(histogram), histogram.percentile_ns(99), histogram.mean_ns, histogram.max_ns) == (0, 0, 0.0, 0)


@pytest.mark.parametrize("percent", [-0.1, 100.1, math.nan])
def test_what_is_no_percentage_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percentage"):
        recorded(1).percentile_ns(percent)
