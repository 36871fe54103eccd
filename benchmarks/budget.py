"""Whether figures meet `budget.toml`. A bar whose figure is missing is not met: a check that can't run has failed."""

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from benchmarks.scenarios import Sample

BUDGET: Final = Path(__file__).with_name("budget.toml")


class Bar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the file."""

    scenario: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None
    #: The figure is the gateway's divided by this target's.
    share_of: str | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a bar has either at_least or at_most")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A bar and what was measured; None where nothing was."""

    bar: Bar
    measured: float | None
    met: bool


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bar: list[Bar]


def load(path: Path = BUDGET) -> list[Bar]:
    """Raises msgspec.ValidationError when the file is not what it should be."""
    return msgspec.toml.decode(path.read_bytes(), type=_File).bar


def judge(bars: Iterable[Bar], samples: list[Sample], *, target: str, scenarios: Iterable[str]) -> list[Verdict]:
    """Every bar of `scenarios`, for `target`."""
    asked = set(scenarios)
    verdicts = []
    for bar in bars:
        if bar.scenario not in asked:
            continue
        measured = figure(samples, scenario=bar.scenario, metric=bar.metric, target=target, share_of=bar.share_of)
        met = measured is not None and (
            measured >= bar.at_least if bar.at_least is not None else measured <= (bar.at_most or 0.0)
        )
        verdicts.append(Verdict(bar=bar, measured=measured, met=met))
    return verdicts


def figure(
    samples: list[Sample], *, scenario: str, metric: str, target: str, share_of: str | None = None
) -> float | None:
    """The median over the rounds; of a share, the median of the rounds' shares, so that noise hits both sides."""
    own = _by_round(samples, scenario=scenario, metric=metric, target=target)
    if share_of is not None:
        other = _by_round(samples, scenario=scenario, metric=metric, target=share_of)
        own = {number: value / other[number] for number, value in own.items() if other.get(number)}
    return median(own.values()) if own else None


def _by_round(samples: list[Sample], *, scenario: str, metric: str, target: str) -> dict[int, float]:
    return {
        sample.round: sample.metrics[metric]
        for sample in samples
        if sample.scenario == scenario and sample.target == target and metric in sample.metrics
    }
