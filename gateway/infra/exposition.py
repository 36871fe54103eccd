"""What all workers counted, as one: the sums, and the text that Prometheus reads.

Rules:
- Counters and histograms are sums over every worker that ever was: `Aggregate.forget` moves those of a dead worker
  into a base, so that no sum goes down. Gauges are of the living only, put together as their family declares.
- A worker that comes back under the same id with another incarnation is a new worker: its old sums go into the base
  first. A snapshot that arrives late, from a life already folded, is ignored rather than counted twice.
- Families of one name that were declared differently (two releases side by side during a rolling restart) can't be
  added: the first one seen stays, the other is left out and counted.
- The output is the text format 0.0.4, which every scraper takes; nothing here needs OpenMetrics (no exemplars, no
  created timestamps), so there is one format and nothing to negotiate.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from itertools import accumulate

import msgspec

from gateway.infra.metrics import OTHER, SERIES_MAX, Cell, FamilySnapshot, Labels, Snapshot, Spec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Lives of workers that are remembered so as to ignore what they still had on the way.
FOLDED_MAX = 1024

Merged = dict[str, FamilySnapshot]

_decoder = msgspec.msgpack.Decoder(Snapshot)
_MISMATCHED = Spec("gateway_series_mismatched_total", "counter", "Families left out because releases differ.")


def merge(snapshots: Iterable[bytes]) -> Merged:
    """Add up encoded snapshots. `last` gauges are those of the last snapshot that has them.

    Raises:
        msgspec.DecodeError: one of them is not a snapshot.
    """
    merged: Merged = {}
    for snapshot in snapshots:
        _add(merged, _decoder.decode(snapshot), gauges=True)
    return merged


def render(merged: Merged) -> bytes:
    """The exposition text, families in order of name."""
    lines: list[str] = []
    for name in sorted(merged):
        family = merged[name]
        help_text = family.spec.help.replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"# HELP {name} {help_text}\n# TYPE {name} {family.spec.kind}")
        for labels in sorted(family.series):
            _render_series(lines, family.spec, labels, family.series[labels])
    lines.append("")
    return "\n".join(lines).encode()


class Aggregate:
    """The latest snapshot of each living worker, over the sums of those that are gone."""

    def __init__(self, *, series_max: int = SERIES_MAX) -> None:
        self._series_max = series_max
        self._base: Merged = {}
        self._base_series = 0
        self._alive: dict[str, Snapshot] = {}
        self._folded: OrderedDict[str, None] = OrderedDict()

    def update(self, worker_id: str, snapshot: bytes) -> None:
        """Take a worker's newest snapshot.

        Raises:
            msgspec.DecodeError: it is not a snapshot; what was known of the worker stays.
        """
        new = _decoder.decode(snapshot)
        if new.incarnation in self._folded:
            return
        old = self._alive.pop(worker_id, None)
        if old is not None and old.incarnation != new.incarnation:
            self._fold(old)
        # Put at the end: `last` gauges belong to whoever reported last.
        self._alive[worker_id] = new

    def forget(self, worker_id: str) -> None:
        """A worker is gone: its sums stay, its gauges do not."""
        if (old := self._alive.pop(worker_id, None)) is not None:
            self._fold(old)

    def merged(self) -> Merged:
        """Everything, added up."""
        merged: Merged = {}
        for family in self._base.values():
            merged[family.spec.name] = FamilySnapshot(
                family.spec, {labels: cell.copy() for labels, cell in family.series.items()}
            )
        for snapshot in self._alive.values():
            _add(merged, snapshot, gauges=True)
        return merged

    def render(self) -> bytes:
        """The exposition text of everything."""
        return render(self.merged())

    def _fold(self, snapshot: Snapshot) -> None:
        self._folded[snapshot.incarnation] = None
        if len(self._folded) > FOLDED_MAX:
            self._folded.popitem(last=False)
        for family in snapshot.families:
            known = self._base.get(family.spec.name)
            for labels in list(family.series):
                if known is not None and labels in known.series:
                    continue
                if self._base_series < self._series_max:
                    self._base_series += 1
                elif labels:
                    # The cap holds for the dead as well: labels that changed with every reload add up over months.
                    cell = family.series.pop(labels)
                    _add_cell(family.series, (OTHER,) * len(labels), cell)
        _add(self._base, snapshot, gauges=False)


def _add(merged: Merged, snapshot: Snapshot, *, gauges: bool) -> None:
    for family in snapshot.families:
        spec = family.spec
        is_gauge = spec.kind == "gauge"
        if is_gauge and not gauges:
            continue
        into = merged.get(spec.name)
        if into is None:
            into = merged[spec.name] = FamilySnapshot(spec, {})
        elif not _addable(into.spec, spec):
            counted = merged.setdefault(_MISMATCHED.name, FamilySnapshot(_MISMATCHED, {}))
            _add_cell(counted.series, (), [1])
            continue
        for labels, cell in family.series.items():
            if is_gauge:
                _put_level(into.series, labels, cell, spec)
            else:
                _add_cell(into.series, labels, cell)


def _addable(one: Spec, other: Spec) -> bool:
    # The help text may be reworded between two releases.
    return (one.kind, one.labels, one.bounds, one.mode) == (other.kind, other.labels, other.bounds, other.mode)


def _add_cell(series: dict[Labels, Cell], labels: Labels, cell: Cell) -> None:
    known = series.get(labels)
    if known is None:
        series[labels] = cell.copy()
        return
    for index, amount in enumerate(cell):
        known[index] += amount


def _put_level(series: dict[Labels, Cell], labels: Labels, cell: Cell, spec: Spec) -> None:
    known = series.get(labels)
    if known is None or spec.mode == "last":
        series[labels] = cell.copy()
    elif spec.mode == "sum":
        known[0] += cell[0]
    else:
        known[0] = max(known[0], cell[0]) if spec.mode == "max" else min(known[0], cell[0])


def _render_series(lines: list[str], spec: Spec, labels: Labels, cell: Cell) -> None:
    pairs = ",".join(f'{name}="{_escape(value)}"' for name, value in zip(spec.labels, labels, strict=True))
    braced = f"{{{pairs}}}" if pairs else ""
    if spec.kind != "histogram":
        lines.append(f"{spec.name}{braced} {_number(cell[0])}")
        return
    comma = "," if pairs else ""
    counts = list(accumulate(cell[:-1]))
    for bound, count in zip((*spec.bounds, math.inf), counts, strict=True):
        lines.append(f'{spec.name}_bucket{{{pairs}{comma}le="{_number(bound)}"}} {_number(count)}')
    lines.append(f"{spec.name}_sum{braced} {_number(cell[-1])}")
    lines.append(f"{spec.name}_count{braced} {_number(counts[-1])}")


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    # 5.0 and 5 are the same bound, and people write the short form in queries. Large integers stay exact.
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(value)
