import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.charts import Curve, bars, curves, number, percentile_axis

SVG = "{http://www.w3.org/2000/svg}"
amounts = st.floats(min_value=1e-6, max_value=1e9)


@given(
    rows=st.lists(
        st.tuples(st.text(max_size=8).filter(str.isprintable), amounts, st.integers(0, 4)), min_size=1, max_size=6
    )
)
def test_bars_are_to_scale_and_well_formed(rows: list[tuple[str, float, int]]) -> None:
    root = ET.fromstring(bars(rows, unit="<&>"))

    widths = [float(rect.attrib["width"]) for rect in root.iter(f"{SVG}rect")]
    longest = max(value for _, value, _ in rows)
    for width, (_, value, _) in zip(widths, rows, strict=True):
        assert width == pytest.approx(max(1.0, 420 * value / longest), abs=0.06)


@given(points=st.lists(st.tuples(amounts, amounts), min_size=1, max_size=20), log_y=st.booleans())
def test_curves_stay_inside_their_axes(points: list[tuple[float, float]], log_y: bool) -> None:
    root = ET.fromstring(
        curves([Curve(name="a", points=sorted(points), colour=0)], x_label="x", y_label="y", log_y=log_y)
    )

    (line,) = root.iter(f"{SVG}polyline")
    for pair in line.attrib["points"].split():
        x, y = map(float, pair.split(","))
        assert 63.9 <= x <= 624.1
        assert 28.9 <= y <= 257.1


def test_nothing_makes_no_chart() -> None:
    assert curves([], x_label="x", y_label="y") == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (12.34, "12.3"), (4567.0, "4,567"), (12_345, "12.3k"), (123_456, "123k")]
)
def test_numbers_read_well(value: float, text: str) -> None:
    assert number(value) == text


def test_every_nine_has_the_same_room() -> None:
    assert [round(percentile_axis(percent), 6) for percent in (0, 90, 99, 99.9)] == [0, 1, 2, 3]
