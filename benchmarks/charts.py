"""Bars and curves as SVG text, for a report that needs nothing but a browser: no script, no font, no other file.

Colours come from the page (`var(--c0)` and so on), so that a chart follows its light and dark mode.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 640
_LEFT: Final = 64
_RIGHT: Final = 16
_TOP: Final = 12
_BOTTOM: Final = 40
_BAR_PX: Final = 26
_LEGEND_PX: Final = 17


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A named series of points, ascending in x; `colour` counts the page's colours."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


def number(value: float) -> str:
    """Three significant digits, thousands as k."""
    if abs(value) >= 100_000:
        return f"{value / 1000:.0f}k"
    if abs(value) >= 10_000:
        return f"{value / 1000:.1f}k"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def bars(rows: Sequence[tuple[str, float, int]], *, unit: str) -> str:
    """Horizontal bars, one for each `(name, value, colour)`, all to one scale from 0."""
    height = len(rows) * (_BAR_PX + 8) + 8
    scale = (_WIDTH - 220) / max((value for _, value, _ in rows), default=1.0) if rows else 1.0
    parts = []
    for index, (name, value, colour) in enumerate(rows):
        y = 8 + index * (_BAR_PX + 8)
        width = max(1.0, value * scale)
        parts.append(
            f'<text x="92" y="{y + 18}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="100" y="{y}" width="{width:.1f}" height="{_BAR_PX}" rx="3" fill="var(--c{colour})"/>'
            f'<text x="{106 + width:.1f}" y="{y + 18}">{number(value)} {escape(unit)}</text>'
        )
    return _svg(height, parts)


def curves(series: Sequence[Curve], *, x_label: str, y_label: str, height: int = 280, log_y: bool = False) -> str:
    """Lines over one pair of axes that start at 0; with `log_y` at the power of ten below the smallest value."""
    points = [point for curve in series for point in curve.points]
    if not points:
        return ""
    x_max = max(x for x, _ in points) or 1.0
    y_max = max(y for _, y in points) or 1.0
    # The legend has its own room above the curves, a line each.
    top = _TOP + len(series) * _LEGEND_PX
    height += len(series) * _LEGEND_PX
    y_min = 10 ** math.floor(math.log10(max(min(y for _, y in points), 1e-3))) if log_y else 0.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = x / x_max
        up = math.log(max(y, y_min) / y_min) / math.log(max(y_max, y_min * 10) / y_min) if log_y else y / y_max
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            height - _BOTTOM - up * (height - top - _BOTTOM),
        )

    y_ticks = _decades(y_min, y_max) if log_y else _steps(y_max)
    parts = _axes(place, _steps(x_max), y_ticks, height=height, labels=(x_label, y_label))
    for index, curve in enumerate(series):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve.points))
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        stroke = f'stroke="var(--c{curve.colour})" stroke-width="2"{dash}'
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        y = _TOP + index * _LEGEND_PX
        parts.append(
            f'<line x1="{_LEFT + 12}" y1="{y}" x2="{_LEFT + 34}" y2="{y}" {stroke}/>'
            f'<text x="{_LEFT + 40}" y="{y + 4}">{escape(curve.name)}</text>'
        )
    return _svg(height, parts)


def percentile_axis(percent: float) -> float:
    """Where a percentile belongs on an axis that gives every further nine as much room as the one before."""
    return -math.log10(1 - min(percent, 99.999) / 100)


def _axes(
    place: Callable[[float, float], tuple[float, float]],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    *,
    height: int,
    labels: tuple[str, str],
) -> list[str]:
    parts = []
    for tick in y_ticks:
        _, y = place(0.0, tick)
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="var(--grid)"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        parts.append(f'<text x="{x:.1f}" y="{height - _BOTTOM + 16}" text-anchor="middle">{number(tick)}</text>')
    middle = (height - _BOTTOM) / 2
    return [
        *parts,
        f'<text x="{(_WIDTH + _LEFT) / 2}" y="{height - 6}" text-anchor="middle">{escape(labels[0])}</text>',
        f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(labels[1])}</text>',
    ]


def _steps(highest: float) -> list[float]:
    """From 0 on in steps of 1, 2 or 5 times a power of ten, about five of them, none past `highest`."""
    rough = highest / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [index * step for index in range(int(highest / step * (1 + 1e-9)) + 1)]


def _decades(lowest: float, highest: float) -> list[float]:
    first = round(math.log10(lowest))
    return [10.0**power for power in range(first, max(first, math.floor(math.log10(highest))) + 1)]


def _svg(height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" xmlns="http://www.w3.org/2000/svg" role="img">{"".join(parts)}</svg>'
    )
