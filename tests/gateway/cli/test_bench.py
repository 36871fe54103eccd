"""`gateway bench` as a shell runs it, against the benchmarks' provider; tenths of a second each."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import msgspec
import pytest

from gateway.cli.arguments import parser
from gateway.cli.bench import make_plan, parse_duration
from gateway.errors import ConfigError
from gateway.loadtest.result import Result

SHORT = ("--duration", "0.4s", "--warmup", "0", "--streams", "4")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """The address of a scripted provider."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.upstream", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip().removeprefix("listening on ")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture
def run(tmp_path, environ) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway", "bench", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def test_a_table_for_people(run: Run, provider: str) -> None:
    done = run("--url", provider, "--model", "bench-burst-20", *SHORT)

    assert done.returncode == 0, done.stderr
    for word in ("latency", "time to first token", "between events", "P99.9", "events/s"):
        assert word in done.stdout


def test_json_for_programs(run: Run, provider: str) -> None:
    done = run("--url", provider, "--model", "bench-json", "--no-stream", "--rate", "100", "--json", *SHORT)

    result = msgspec.json.decode(done.stdout, type=Result)
    assert done.returncode == 0
    assert result.loop == "open"
    assert result.rate == 100
    assert result.completed > 0
    assert result.errors == {}


def test_a_refused_first_request_stops_before_the_load(run: Run, provider: str, tmp_path) -> None:
    done = run("--url", "127.0.0.1:1", *SHORT)

    assert done.returncode == 1
    assert "connection refused" in done.stderr
    assert done.stdout == ""


def test_ctrl_c_ends_the_run_with_a_report(environ, tmp_path, provider: str) -> None:
    command = [
        *(sys.executable, "-m", "gateway", "bench", "--url", provider),
        *("--model", "bench-json", "--duration", "1h", "--warmup", "0"),
    ]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL, text=True
    )
    os.close(theirs)
    panel = b""
    while b"measuring" not in panel:  # ends with an OSError when the process ends without a panel
        panel += os.read(ours, 4096)

    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)

    with contextlib.suppress(OSError):
        while rest := os.read(ours, 4096):
            panel += rest
    os.close(ours)
    assert process.returncode == 130
    assert "interrupted" in output
    assert "latency" in output
    assert panel.endswith(b"\x1b[J"), "the panel is still there"
    assert b"Traceback" not in panel


def plan_of(*arguments: str):
    return make_plan(parser().parse_args(["bench", *arguments]))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("127.0.0.1:9", "http://127.0.0.1:9/v1/chat/completions"),
        ("http://a.example/v1", "http://a.example/v1/chat/completions"),
        ("http://a.example/v1/", "http://a.example/v1/chat/completions"),
        ("http://a.example/openai/v1/responses", "http://a.example/openai/v1/responses"),
    ],
)
def test_a_url_without_a_path_means_chat_completions(given: str, meant: str) -> None:
    assert plan_of("--url", given).origin.url == meant


def test_the_request_is_made_from_the_arguments() -> None:
    plan = plan_of(
        "--url", "http://a.example", "--key", "k1", "--model", "m1", "--max-tokens", "5", "--header", "x-a: b"
    )

    head, _, body = plan.request.partition(b"\r\n\r\n")
    assert b"authorization: Bearer k1" in head
    assert b"x-a: b" in head
    assert msgspec.json.decode(body) == {
        "model": "m1",
        "messages": [{"role": "user", "content": "Count slowly from one to twenty."}],
        "max_tokens": 5,
        "stream": True,
    }


def test_the_key_may_come_from_a_file(tmp_path) -> None:
    (tmp_path / "key").write_text("from-a-file\n")

    plan = plan_of("--url", "http://a.example", "--key", f"file:{tmp_path}/key")

    assert b"Bearer from-a-file\r\n" in plan.request


def test_a_body_is_sent_as_it_is(tmp_path) -> None:
    (tmp_path / "body.json").write_bytes(b'{ "model" : "x" }')

    assert plan_of("--url", "http://a.example", "--body", f"{tmp_path}/body.json").request.endswith(
        b'{ "model" : "x" }'
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--url", "ftp://a.example"),
        ("--streams", "0"),
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--duration", "0"),
        ("--duration", "soon"),
        ("--duration", "25h"),
        ("--header", "no colon"),
        ("--header", "x: 1\r\ny: 2"),
        ("--key", "file:/nowhere"),
        ("--body", "/nowhere"),
        ("--ca-file", "/nowhere"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        plan_of("--url", "http://a.example", *arguments)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("7", 7), ("1.5s", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, argument="--duration") == pytest.approx(seconds)
