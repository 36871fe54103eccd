"""A run on paper: the table in the terminal, one JSON document, and one self-contained HTML page with plots."""

from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Final

import msgspec

from benchmarks import charts
from benchmarks.budget import Verdict, figure
from benchmarks.machine import Facts
from benchmarks.scenarios import Sample


class Report(msgspec.Struct, kw_only=True):
    """Everything that a run found out."""

    #: UTC, ISO 8601.
    started: str
    command: str
    #: `git describe`, empty outside a checkout.
    version: str
    machine: Facts
    generator: str
    #: The target that the budget is about.
    subject: str
    reference: str
    samples: list[Sample]
    verdicts: list[Verdict]
    #: Measurements that were thrown away, and why.
    invalid: list[str]


#: Scenario, metric, unit, what a reader calls it.
_ROWS: Final = (
    ("json", "requests_per_s", "req/s", "JSON answers, closed loop"),
    ("json", "p99_ms", "ms", "  latency p99"),
    ("json", "cpu_us", "us", "  processor time of one"),
    ("burst", "streams_per_s", "/s", "burst SSE, 50 events each"),
    ("burst", "cpu_us", "us", "  processor time of one"),
    ("saturation", "sustained_events_per_s", "ev/s", "paced SSE, sustained"),
    ("saturation", "peak_events_per_s", "ev/s", "  peak"),
    ("saturation", "cpu_us", "us", "  processor time of one"),
    ("translated", "relay_events_per_s", "ev/s", "paced SSE, relayed"),
    *(
        row
        for name, title in (
            ("chat_from_anthropic", "chat from Anthropic's"),
            ("chat_from_google", "chat from Google's"),
            ("messages_from_chat", "messages from chat"),
            ("responses_from_chat", "responses from chat"),
        )
        for row in (
            ("translated", f"{name}_events_per_s", "ev/s", f"  {title}"),
            ("translated", f"share_{name}", "", "    share of what is relayed"),
            ("translated", f"cpu_us_{name}", "us", "    processor time of one"),
        )
    ),
    ("paced", "delay_p50_ms", "ms", "500 paced streams, delay p50"),
    ("paced", "delay_p99_ms", "ms", "  p99"),
    ("paced", "delay_p999_ms", "ms", "  p99.9"),
    ("memory", "idle_mb", "MB", "resident memory, idle"),
    ("memory", "streams_1000_mb", "MB", "  with 1,000 streams"),
    ("startup", "cold_s", "s", "start to ready, fresh data"),
    ("startup", "warm_s", "s", "  warm"),
    ("soak", "requests", "", "soak, requests"),
    ("soak", "growth_mb", "MB", "  memory growth"),
)
_PARTS: Final = ("target", "beside", "providers", "load", "others")
#: Others may take so much of the two processors before a reader is warned.
_OTHERS_MAX: Final = 0.1
_HIGHER_IS_BETTER: Final = {"requests_per_s", "streams_per_s", "sustained_events_per_s", "peak_events_per_s"}


def targets(samples: Sequence[Sample]) -> list[str]:
    """The baseline and the reference first."""
    first = {"direct": 0, "nginx": 1}
    return sorted({sample.target for sample in samples}, key=lambda name: (first.get(name, 2), name))


def table(report: Report) -> str:
    """Plain text: medians by target, the subject's share of the reference, and whose processor was full."""
    names = targets(report.samples)
    compares = report.reference in names and report.subject != report.reference
    header = ["", *names, *([f"of {report.reference}"] if compares else []), "unit"]
    rows = [header]
    for scenario, metric, unit, title in _ROWS:
        values = [figure(report.samples, scenario=scenario, metric=metric, target=name) for name in names]
        if all(value is None for value in values):
            continue
        row = [title, *("-" if value is None else charts.number(value) for value in values)]
        if compares:
            share = figure(
                report.samples,
                scenario=scenario,
                metric=metric,
                target=report.subject,
                share_of=report.reference,
            )
            # Half the processor time is twice the speed: this share reads like those of throughput.
            share = 1 / share if share and metric == "cpu_us" else share
            row.append(f"{share:.2f}" if share and (metric in _HIGHER_IS_BETTER or metric == "cpu_us") else "")
        rows.append([*row, unit])
        if metric in ("requests_per_s", "streams_per_s", "sustained_events_per_s", "delay_p50_ms"):
            busy = [_busy(report.samples, scenario=scenario, target=name) for name in names]
            rows.append(["  busy (see below)", *busy, *([""] if compares else []), "%"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, len(header) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    legend = f"busy: {'/'.join(_PARTS)}, each of one processor; whoever is near 100 was the bottleneck"
    return "\n".join(
        [lines[0], "-" * len(lines[0]), *lines[1:], "", legend, *_verdict_lines(report), *_doubts(report)]
    )


def to_json(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1)


def to_html(report: Report) -> str:
    """One page; open it from the disk."""
    facts = report.machine
    about = (
        f"{report.started} · {report.version or 'no version'} · {facts.processor}, {facts.cores} cores, "
        f"{facts.memory_gb} GB, Linux {facts.kernel}, Python {facts.python}, load average {facts.load_average} "
        f"before the run · closed loops by {report.generator}"
    )
    return _PAGE.format(
        about=escape(about),
        command=escape(report.command),
        verdicts="".join(_verdict_row(verdict) for verdict in report.verdicts),
        table=escape(table(report)),
        plots="".join(_plots(report)),
    )


def _busy(samples: Sequence[Sample], *, scenario: str, target: str) -> str:
    """Medians of the processor shares in percent, for example 98/3/40/55/0."""
    found = [sample.cpu for sample in samples if sample.scenario == scenario and sample.target == target]
    if not found:
        return ""
    return "/".join(f"{100 * median(cpu.get(part, 0.0) for cpu in found):.0f}" for part in _PARTS)


def _doubts(report: Report) -> list[str]:
    """What keeps the figures from being good ones."""
    others = [sample.cpu.get("others", 0.0) for sample in report.samples if sample.cpu]
    doubts = list(report.invalid)
    if others and median(others) > _OTHERS_MAX:
        doubts.append(
            f"other programs took {median(others):.2f} of the two processors (median; {max(others):.2f} at worst): "
            "throughput and delays are not to be trusted, shares and processor times hardly"
        )
    return ["", *doubts] if doubts else []


def _verdict_lines(report: Report) -> list[str]:
    if not report.verdicts:
        return []
    return ["", f"budget of {report.subject}:", *(f"  {_verdict_text(verdict)}" for verdict in report.verdicts)]


def _verdict_text(verdict: Verdict) -> str:
    bar = verdict.bar
    what = f"{bar.scenario} {bar.metric}" + (f" / {bar.share_of}" if bar.share_of else "")
    bound = f">= {bar.at_least:g}" if bar.at_least is not None else f"<= {bar.at_most:g}"
    found = "not measured" if verdict.measured is None else f"{verdict.measured:.3g}"
    return f"{'ok  ' if verdict.met else 'MISS'} {what}: {found} ({bound})"


def _verdict_row(verdict: Verdict) -> str:
    return f'<li class="{"met" if verdict.met else "missed"}">{escape(_verdict_text(verdict)[5:])}</li>'


def _plots(report: Report) -> list[str]:
    samples = report.samples
    names = targets(samples)
    colours = {name: index for index, name in enumerate(names)}
    plots = []
    for scenario, metric, unit, title in _ROWS:
        if metric in _HIGHER_IS_BETTER or metric.endswith(("_mb", "_s")):
            rows = [
                (name, value, colours[name])
                for name in names
                if (value := figure(samples, scenario=scenario, metric=metric, target=name)) is not None
            ]
            if rows:
                plots.append(_figure(f"{scenario}: {title.strip()}", charts.bars(rows, unit=unit)))
    delay = [
        charts.Curve(
            name=f"{sample.target}, round {sample.round}",
            points=[(charts.percentile_axis(percent), ms) for percent, ms in sample.curves["delay"]],
            colour=colours[sample.target],
            dashed=sample.round > 1,
        )
        for sample in samples
        if "delay" in sample.curves
    ]
    if delay:
        label = "nines of the percentile (1 = p90, 2 = p99, 3 = p99.9)"
        plots.append(
            _figure(
                "paced: delay of an event by percentile",
                charts.curves(delay, x_label=label, y_label="ms", log_y=True),
            )
        )
    for key, title, x_label, y_label in (
        ("delivered", "saturation: delivered of offered", "events/s offered", "events/s"),
        ("relay cpu", "saturation: processor of the target", "events/s offered", "cores"),
        ("memory", "soak: resident memory", "requests", "MB"),
    ):
        series = [
            charts.Curve(
                name=f"{sample.target}, round {sample.round}",
                points=sample.curves[key],
                colour=colours[sample.target],
                dashed=sample.round > 1,
            )
            for sample in samples
            if key in sample.curves
        ]
        if series:
            plots.append(_figure(title, charts.curves(series, x_label=x_label, y_label=y_label)))
    return plots


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Gateway benchmark</title>
<style>
:root {{ color-scheme: light dark; --ink: #1c1d22; --paper: #fff; --grid: #e3e4ea;
  --c0: #8d93a6; --c1: #12a150; --c2: #4457e6; --c3: #d9542b; --c4: #8d3fc4; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e8e9ee; --paper: #15161b; --grid: #2d2f3a;
  --c0: #9aa0b4; --c1: #3ccb7f; --c2: #8593ff; --c3: #ff8a5c; --c4: #c98af2; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1340px; margin: 2rem auto; padding: 0 1rem; }}
pre {{ overflow-x: auto; font-size: 13px; }}
main {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; }} figcaption {{ font-weight: 600; }}
svg {{ width: 100%; font-size: 12px; }} svg text {{ fill: var(--ink); }}
.met::marker {{ content: "\\2713  "; color: var(--c1); }} .missed::marker {{ content: "\\2717  "; color: var(--c3); }}
</style>
<h1>Gateway benchmark</h1>
<p>{about}</p>
<p><code>{command}</code></p>
<ul>{verdicts}</ul>
<pre>{table}</pre>
<main>{plots}</main>
</html>
"""
