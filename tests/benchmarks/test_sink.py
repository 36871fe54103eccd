import pytest

from benchmarks.sink import Point, sustained


def point(offered: float, delivered: float) -> Point:
    return Point(at_s=0, streams=0, offered_per_s=offered, delivered_per_s=delivered, relay_cpu=1.0, lost=0)


def test_sustained_is_where_the_curve_crosses_the_share() -> None:
    points = [point(100, 100), point(200, 190), point(300, 230), point(400, 240)]

    # 190 is 10 above 90 % of 200, 230 is 40 below 90 % of 300: a fifth of the way.
    assert sustained(points, share=0.9) == pytest.approx(198)


def test_a_hiccup_on_the_way_does_not_end_the_ramp() -> None:
    assert sustained([point(100, 100), point(200, 50), point(300, 300)], share=0.9) == 300


def test_what_never_falls_behind_sustains_the_last_point() -> None:
    assert sustained([point(100, 99), point(200, 199)], share=0.9) == 199


def test_what_is_behind_from_the_start_sustains_what_it_delivered_then() -> None:
    assert sustained([point(1000, 50), point(2000, 60)], share=0.9) == 50
