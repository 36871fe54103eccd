"""The harness from end to end, with a stand-in for the gateway; figures are not judged, only that there are some."""

import subprocess
import sys

import msgspec
import pytest

from benchmarks import nginx, run
from benchmarks.process import NotReady, Process
from benchmarks.report import Report

STAND_IN = f"{sys.executable} -m benchmarks.upstream --port {{port}}"


@pytest.mark.slow
@pytest.mark.skipif(run.two_cores() is None, reason="needs two processors")
def test_a_short_run_measures_every_target(tmp_path) -> None:
    # A process of its own: a run pins itself to a processor.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.run", "--target", STAND_IN, "--health", "/", "--key", "sk-secret"),
            *("--only", "json,burst", "--quick", "--window", "1", "--results", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    (document,) = tmp_path.glob("*.json")
    (page,) = tmp_path.glob("*.html")
    report = msgspec.json.decode(document.read_bytes(), type=Report)
    assert report.invalid == []
    assert {sample.target for sample in report.samples} == {"direct", "target", *(["nginx"] if nginx.find() else [])}
    assert {sample.scenario for sample in report.samples} == {"json", "burst"}
    assert "sk-secret" not in document.read_text() + page.read_text() + done.stdout + done.stderr


def test_a_server_that_ends_says_why(tmp_path) -> None:
    process = Process([sys.executable, "-c", "raise SystemExit('no such option')"], log=tmp_path / "log")

    with pytest.raises(NotReady, match="no such option"):
        process.await_http(port=1, path="/", timeout_s=30)

    process.stop()


def test_an_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.parse(["--only", "json,speed"])

    assert "no such scenario: speed" in capsys.readouterr().err
