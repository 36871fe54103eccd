from pathlib import Path

import msgspec
import pytest

from benchmarks import budget
from benchmarks.budget import Bar
from benchmarks.machine import facts
from benchmarks.report import Report, table, to_html, to_json
from benchmarks.scenarios import SCENARIOS, Sample


def sample(
    target: str, value: float, *, number: int = 1, scenario: str = "json", metric: str = "requests_per_s"
) -> Sample:
    cpu = {"target": 0.97, "providers": 0.3, "load": 0.4}
    return Sample(scenario=scenario, target=target, round=number, metrics={metric: value}, cpu=cpu)


SHARE = Bar(scenario="json", metric="requests_per_s", at_least=0.22, share_of="nginx")


def judged(samples: list[Sample], bar: Bar = SHARE) -> budget.Verdict:
    (verdict,) = budget.judge([bar], samples, target="gateway", scenarios=["json"])
    return verdict


def test_a_share_is_taken_round_by_round() -> None:
    # The machine was half as fast in the second round; the share does not see it.
    samples = [
        *(sample("gateway", value, number=number) for number, value in enumerate((300, 150, 310), 1)),
        *(sample("nginx", value, number=number) for number, value in enumerate((1000, 500, 1000), 1)),
    ]

    verdict = judged(samples)

    assert verdict.measured == pytest.approx(0.3)
    assert verdict.met


def test_a_missed_bar_is_missed() -> None:
    assert not judged([sample("gateway", 200), sample("nginx", 1000)]).met


def test_what_was_not_measured_is_not_met() -> None:
    verdict = judged([sample("gateway", 900)])

    assert verdict.measured is None
    assert not verdict.met


def test_at_most_is_a_ceiling() -> None:
    bar = Bar(scenario="json", metric="requests_per_s", at_most=10.0)

    assert judged([sample("gateway", 10.0)], bar).met
    assert not judged([sample("gateway", 10.1)], bar).met


def test_only_what_was_asked_for_is_judged() -> None:
    assert budget.judge([SHARE], [], target="gateway", scenarios=["paced"]) == []


def test_the_file_names_scenarios_that_exist() -> None:
    bars = budget.load()

    assert bars
    assert {bar.scenario for bar in bars} <= {*SCENARIOS, "startup", "soak"}


def test_a_bar_with_no_bound_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "budget.toml"
    file.write_text('[[bar]]\nscenario = "json"\nmetric = "requests_per_s"\n')

    with pytest.raises(msgspec.ValidationError, match="either at_least or at_most"):
        budget.load(file)


def report(*samples: Sample) -> Report:
    return Report(
        started="2026-01-01T00:00:00+00:00",
        command="python -m benchmarks.run",
        version="abc",
        machine=facts(),
        generator="wrk",
        subject="gateway",
        reference="nginx",
        samples=list(samples),
        verdicts=budget.judge([SHARE], list(samples), target="gateway", scenarios=["json"]),
        invalid=[],
    )


def test_the_table_shows_shares_and_who_was_busy() -> None:
    text = table(report(sample("gateway", 12_000), sample("nginx", 50_000)))

    assert "0.24" in text
    assert "97/0/30/40/0" in text
    assert "ok   json requests_per_s / nginx: 0.24 (>= 0.22)" in text


def test_the_page_needs_nothing_from_anywhere() -> None:
    paced = sample("gateway", 0.3, scenario="paced", metric="delay_p50_ms")
    paced.curves = {"delay": [(50.0, 0.3), (99.0, 1.5)]}
    page = to_html(report(sample("gateway", 12_000), sample("nginx", 50_000), paced))

    assert page.count("<svg") == page.count("</svg>") >= 2
    assert "<script" not in page
    assert "src=" not in page
    assert "href=" not in page


def test_the_document_reads_back() -> None:
    paper = report(sample("gateway", 12_000), sample("nginx", 50_000))

    assert msgspec.json.decode(to_json(paper), type=Report) == paper
