"""Measures the gateway beside nginx in one run, and says whether the budget is met.

    python -m benchmarks.run                      everything, three rounds, some six minutes
    python -m benchmarks.run --quick --check      one short round; exit status 1 when a bar is missed
    python -m benchmarks.run --only json,paced
    python -m benchmarks.run --soak 1000000       memory over a million requests as well
    python -m benchmarks.run --target "python proxy.py --port {port} --upstream {upstream}"
    python -m benchmarks.run --url http://127.0.0.1:8080/v1/chat/completions --key sk-... --upstream-port 9001

Two cores: one for the process that relays, one for everything else. Targets take turns within each round, so that a
machine that slows down slows them all. Results go to `benchmarks/results/`, which git ignores.
"""

import argparse
import contextlib
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import budget, machine, nginx, report, wrk
from benchmarks.process import NotReady, Process
from benchmarks.scenarios import SCENARIOS, Bench, Invalid, Sample, measure, measure_soak, measure_startup
from benchmarks.targets import Command, Cores, Direct, Gateway, Nginx, Providers, Running, Target

RESULTS: Final = Path(__file__).with_name("results")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=(__doc__ or "").split("\n\n", 1)[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(__doc__ or "").split("\n\n", 1)[1],
    )
    every = [*SCENARIOS, "startup"]
    parser.add_argument("--only", default=",".join(every), help=f"scenarios, of {', '.join(every)}")
    parser.add_argument("--rounds", type=int, help="how often each target has its turn (3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="one round of short windows")
    parser.add_argument("--window", type=float, metavar="S", help="seconds of each measurement (6; 2 with --quick)")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar of budget.toml is missed")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="then N requests, and watch the memory")
    parser.add_argument("--target", metavar="COMMAND", help="measure this instead; it gets {port} and {upstream}")
    parser.add_argument("--health", default="/health", help="where --target answers 200 when it is ready")
    parser.add_argument("--url", help="measure a server that runs already; its provider has to be ours")
    parser.add_argument("--key", help="bearer token for --target or --url")
    parser.add_argument("--upstream-port", type=int, default=0, help="where our provider listens (any free port)")
    parser.add_argument("--no-gateway", action="store_true", help="the harness itself: direct and nginx alone")
    parser.add_argument("--python-load", action="store_true", help="do not use wrk, nor nginx as a provider")
    parser.add_argument("--cores", metavar="MEASURED,LOAD", help="two processors (the first two that are ours)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON and HTML go")
    options = parser.parse_args(arguments)
    options.only = [name for name in options.only.split(",") if name]
    if unknown := set(options.only) - set(every):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    try:
        measured, load = map(int, options.cores.split(",")) if options.cores else two_cores() or (0, 0)
    except ValueError:
        parser.error("--cores takes two numbers, such as 0,1")
    if measured == load:
        parser.error("two processors are needed: one for what is measured, one for the load")
    options.cores = Cores(measured=measured, load=load)
    if missing := {options.cores.measured, options.cores.load} - os.sched_getaffinity(0):
        parser.error(f"processor {min(missing)} is not ours to use; choose others with --cores")
    return options


def two_cores() -> tuple[int, int] | None:
    """The first two processors that we may use; None where there is only one."""
    ours = sorted(os.sched_getaffinity(0))
    return (ours[0], ours[1]) if len(ours) > 1 else None


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    started = datetime.now(UTC)
    found = machine.facts()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    machine.pin(os.getpid(), core=options.cores.load)
    samples: list[Sample] = []
    invalid: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as directory:
        scratch = Path(directory)
        try:
            with _providers(options, scratch) as providers:
                subject = _run(options, scratch, providers, samples=samples, invalid=invalid)
        except NotReady as error:
            print(f"a server did not start: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted; nothing was written", file=sys.stderr)
            return 130
    asked = [*options.only, *(["soak"] if options.soak else [])]
    paper = report.Report(
        started=started.isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "benchmarks.run", *(_without_key(arguments or sys.argv[1:]))]),
        version=_version(),
        machine=found,
        generator="wrk" if _uses_wrk(options) else "the Python engine",
        subject=subject,
        reference="nginx",
        samples=samples,
        verdicts=[] if options.no_gateway else budget.judge(budget.load(), samples, target=subject, scenarios=asked),
        invalid=invalid,
    )
    print(f"\n{report.table(paper)}")
    _write(paper, directory=options.results, started=started)
    return 1 if options.check and not all(verdict.met for verdict in paper.verdicts) else 0


def _run(
    options: argparse.Namespace,
    scratch: Path,
    providers: Providers,
    *,
    samples: list[Sample],
    invalid: list[str],
) -> str:
    """Everything between start and stop of the targets; the name of the one that it is about."""
    cores: Cores = options.cores
    bench = Bench(
        providers=providers,
        scratch=scratch,
        cores=(cores.measured, cores.load),
        window_s=options.window or (2.0 if options.quick else 6.0),
        ramp_streams_per_s=300 if options.quick else 150,
        ramp_streams_max=2500,
        use_wrk=_uses_wrk(options),
    )
    subject = _subject(options, scratch, providers)
    if isinstance(subject, Gateway) and "startup" in options.only:
        _say("startup", subject.name)
        os.sched_setaffinity(0, {cores.measured, cores.load})
        fresh = Gateway(providers=providers, cores=cores, scratch=scratch / "startup")
        try:
            samples.append(measure_startup(fresh))
        finally:
            fresh.stop()
            machine.pin(os.getpid(), core=cores.load)
    targets: list[Target] = [Direct(providers=providers)]
    if nginx.find():
        targets.append(Nginx(providers=providers, cores=cores, scratch=scratch / "nginx"))
    else:
        print("nginx is not installed: there is nothing to compare with, and shares cannot be checked")
    if subject:
        targets.append(subject)
    with contextlib.ExitStack() as stack:
        for target in targets:
            stack.callback(target.stop)
            target.start()
        for number in range(1, (options.rounds or (1 if options.quick else 3)) + 1):
            for name in SCENARIOS:
                if name not in options.only or (name == "memory" and number > 1):
                    continue
                for target in targets:
                    _say(name, target.name, number)
                    try:
                        samples.append(measure(name, bench, target, round_number=number))
                    except Invalid as error:
                        invalid.append(f"thrown away: {name} on {target.name}, round {number}: {error}")
        if options.soak and subject:
            _say("soak", subject.name)
            samples.append(measure_soak(bench, subject, requests=options.soak))
    _say("")
    return subject.name if subject else "nginx"


def _subject(options: argparse.Namespace, scratch: Path, providers: Providers) -> Target | None:
    headers = (("authorization", f"Bearer {options.key}"),) if options.key else ()
    if options.no_gateway:
        return None
    if options.url:
        return Running(stream_url=options.url, headers=headers)
    if options.target:
        return Command(
            words=shlex.split(options.target),
            providers=providers,
            cores=options.cores,
            scratch=scratch / "target",
            headers=headers,
            health=options.health,
        )
    return Gateway(providers=providers, cores=options.cores, scratch=scratch / "gateway")


@contextlib.contextmanager
def _providers(options: argparse.Namespace, scratch: Path) -> Iterator[Providers]:
    """The scripted provider; and nginx for JSON answers, unless the target knows of one provider only."""
    stream_port = options.upstream_port or machine.free_port()
    command = [sys.executable, "-m", "benchmarks.upstream", "--port", str(stream_port)]
    with contextlib.ExitStack() as stack:
        scripted = Process(command, log=scratch / "upstream.log", core=options.cores.load)
        stack.callback(scripted.stop)
        scripted.await_http(port=stream_port, path="/", timeout_s=20)
        if not nginx.find() or options.target or options.url or options.python_load:
            yield Providers(stream_port=stream_port, json_port=stream_port, pids=(scripted.pid,))
            return
        json_port = machine.free_port()
        answers = Process(
            nginx.answers_command(scratch=scratch / "answers", port=json_port),
            log=scratch / "answers.log",
            core=options.cores.load,
        )
        stack.callback(answers.stop)
        answers.await_http(port=json_port, path="/", timeout_s=20)
        pids = (scripted.pid, *answers.family())
        yield Providers(stream_port=stream_port, json_port=json_port, pids=pids)


def _uses_wrk(options: argparse.Namespace) -> bool:
    return wrk.find() is not None and not options.python_load


def _say(scenario: str, target: str = "", number: int = 0) -> None:
    """Where the run is: one line that changes on a terminal, a line each elsewhere."""
    text = f"{scenario} on {target}" + (f", round {number}" if number else "") if scenario else ""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def _write(paper: report.Report, *, directory: Path, started: datetime) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    stem = directory / started.strftime("%Y%m%d-%H%M%S")
    stem.with_suffix(".json").write_bytes(report.to_json(paper))
    stem.with_suffix(".html").write_text(report.to_html(paper))
    print(f"\nwritten: {stem.with_suffix('.json')} and {stem.with_suffix('.html').name}")


def _version() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _without_key(arguments: list[str]) -> list[str]:
    """What may be written down: the report is for showing around."""
    hidden = list(arguments)
    for index, word in enumerate(hidden):
        if word == "--key" and index + 1 < len(hidden):
            hidden[index + 1] = "***"
        elif word.startswith("--key="):
            hidden[index] = "--key=***"
    return hidden


if __name__ == "__main__":
    sys.exit(main())
