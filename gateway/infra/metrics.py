"""Counters, gauges and histograms as plain lists in one worker: an update is a list item, a scrape is elsewhere.

Rules:
- A family is declared once, with its labels. A label set is a *cell*: a list that the caller may keep and add to
  (`cell[0] += 1`). Nothing is locked, formatted or allocated on the way.
- Label values come from closed lists. Beyond `series_max` label sets (all families together) a new one is folded into
  one whose every label is `_other`, and `gateway_series_dropped_total` counts the look-up: a label that turns out to
  be open costs accuracy, never memory.
- A worker does not render. `snapshot()` is bytes for whoever adds the workers up (`exposition.Aggregate`): rendering
  a few hundred series takes tens of milliseconds, which no event loop with streams on it can spare.
- Amounts may be `int`, and then they stay exact: sums of money are not rounded on their way here.
"""

import re
from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import msgspec

OTHER = "_other"
SERIES_MAX = 10_000

Kind = Literal["counter", "gauge", "histogram"]
#: How the gauges of several workers become one: only one of them may know (`last`), or all have a part (`sum`).
Mode = Literal["sum", "max", "min", "last"]
Labels = tuple[str, ...]
#: One series. Counter and gauge: `[value]`. Histogram: a count for each bucket, the overflow's, then the sum.
Cell = list[int | float]

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


class Spec(msgspec.Struct, frozen=True, array_like=True):
    """What is declared of a family; two workers' families add up only if these are equal."""

    name: str
    kind: Kind
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    mode: Mode = "sum"


class FamilySnapshot(msgspec.Struct, array_like=True):
    """A family and its series at one moment."""

    spec: Spec
    series: dict[Labels, Cell]


class Snapshot(msgspec.Struct, array_like=True):
    """Everything one registry holds. `incarnation` tells two lives of one worker apart."""

    incarnation: str
    families: list[FamilySnapshot]


class Registry:
    """The families of one process.

    `incarnation` must differ between any two registries whose snapshots meet, a restarted worker's included.
    """

    def __init__(self, *, incarnation: str, series_max: int = SERIES_MAX) -> None:
        self._incarnation = incarnation
        self._series_max = series_max
        self._series = 0
        self._families: dict[str, FamilySnapshot] = {}
        self._collectors: list[Callable[[], None]] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._dropped = self.counter(
            "gateway_series_dropped_total", "Look-ups of a label set beyond the cap, folded into _other."
        ).cell()

    def counter(self, name: str, help_text: str, labels: Labels = ()) -> "Counter":
        """Declare a count that only grows. Its name ends in `_total`."""
        if not name.endswith("_total"):
            raise ValueError(f"counter {name} must end in _total")
        return Counter(self, self._declare(Spec(name, "counter", help_text, labels)))

    def gauge(self, name: str, help_text: str, labels: Labels = (), *, mode: Mode) -> "Gauge":
        """Declare a level. `mode` says how the workers' levels are put together."""
        return Gauge(self, self._declare(Spec(name, "gauge", help_text, labels, (), mode)))

    def histogram(self, name: str, help_text: str, labels: Labels = (), *, bounds: tuple[float, ...]) -> "Histogram":
        """Declare a distribution with the upper `bounds` of its buckets, rising; the one to infinity is added."""
        if not bounds or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"histogram {name}: bounds must rise")
        if "le" in labels:
            raise ValueError(f"histogram {name}: le is its own label")
        return Histogram(self, self._declare(Spec(name, "histogram", help_text, labels, bounds)))

    def on_collect(self, collector: Callable[[], None]) -> None:
        """Call `collector` before each snapshot, to set what is cheaper to look up than to follow."""
        self._collectors.append(collector)

    def snapshot(self) -> bytes:
        """Everything as it stands, encoded; about 40 us for 300 histograms."""
        for collector in self._collectors:
            collector()
        return self._encoder.encode(Snapshot(self._incarnation, list(self._families.values())))

    def open(self, family: FamilySnapshot, labels: Labels) -> Cell:
        """The new cell of `labels` in `family`, or that of `_other` where the registry is full."""
        spec = family.spec
        if len(labels) != len(spec.labels):
            raise ValueError(f"{spec.name} has labels {spec.labels}, got {labels}")
        if self._series >= self._series_max and labels:
            self._dropped[0] += 1
            labels = (OTHER,) * len(labels)
            if (folded := family.series.get(labels)) is not None:
                return folded
        self._series += 1
        cell: Cell = [0] * (len(spec.bounds) + 2 if spec.kind == "histogram" else 1)
        family.series[labels] = cell
        return cell

    def _declare(self, spec: Spec) -> FamilySnapshot:
        if not _NAME.fullmatch(spec.name) or not all(map(_LABEL.fullmatch, spec.labels)):
            raise ValueError(f"{spec.name}{spec.labels} is not a valid metric")
        if spec.name in self._families:
            raise ValueError(f"{spec.name} is declared twice")
        family = FamilySnapshot(spec, {})
        self._families[spec.name] = family
        return family


class Counter:
    """A count that only grows."""

    __slots__ = ("_family", "_registry", "_series")

    def __init__(self, registry: Registry, family: FamilySnapshot) -> None:
        self._registry = registry
        self._family = family
        self._series = family.series
        if not family.spec.labels:
            # There from the start, so that the first increment is a rise and not an appearance.
            self.cell()

    def cell(self, *labels: str) -> Cell:
        """The cell of these label values; keep it and do `cell[0] += amount`."""
        found = self._series.get(labels)
        return self._registry.open(self._family, labels) if found is None else found

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Add to the cell of `labels`, where a caller can't keep it."""
        found = self._series.get(labels)
        if found is None:
            found = self._registry.open(self._family, labels)
        found[0] += amount


class Gauge:
    """A level that goes up and down. A label set nobody has set is not exposed."""

    __slots__ = ("_family", "_registry")

    def __init__(self, registry: Registry, family: FamilySnapshot) -> None:
        self._registry = registry
        self._family = family

    def cell(self, *labels: str) -> Cell:
        """The cell of these label values; keep it and set `cell[0]`."""
        found = self._family.series.get(labels)
        return self._registry.open(self._family, labels) if found is None else found

    def set(self, labels: Labels, value: float) -> None:
        """Set the level of `labels`."""
        self.cell(*labels)[0] = value

    def forget(self, labels: Labels) -> None:
        """Expose `labels` no more, once what it described is gone."""
        if self._family.series.pop(labels, None) is not None:
            self._registry._series -= 1  # noqa: SLF001 - a registry and its families are one thing


class Observations:
    """One series of a histogram."""

    __slots__ = ("_bounds", "_cell")

    def __init__(self, bounds: tuple[float, ...], cell: Cell) -> None:
        self._bounds = bounds
        self._cell = cell

    def observe(self, value: float) -> None:
        """Count `value` in its bucket and add it to the sum."""
        cell = self._cell
        cell[bisect_left(self._bounds, value)] += 1
        cell[-1] += value


class Histogram:
    """A distribution over fixed buckets."""

    __slots__ = ("_family", "_registry", "bounds")

    def __init__(self, registry: Registry, family: FamilySnapshot) -> None:
        self._registry = registry
        self._family = family
        self.bounds = family.spec.bounds
        if not family.spec.labels:
            self.cell()

    def cell(self, *labels: str) -> Cell:
        """The raw cell of these label values, for one who does what `Observations.observe` does in place."""
        found = self._family.series.get(labels)
        return self._registry.open(self._family, labels) if found is None else found

    def bind(self, *labels: str) -> Observations:
        """The series of these label values; keep it and call `observe`."""
        return Observations(self.bounds, self.cell(*labels))
