"""`gateway adapter check`, and what other commands say of plugins, as a shell runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[2] / "adapters" / "golden"


@pytest.fixture
def run(tmp_path, environ):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_a_report_is_printed_and_nothing_failed(run) -> None:
    done = run("adapter", "check", "cohere", "--cases", str(GOLDEN / "cohere"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok     garbage         nothing a provider sends raises" in done.stdout
    assert "replayed whole, byte by byte and in random pieces" in done.stdout
    assert done.stdout.endswith("nothing failed\n")


def test_a_case_that_does_not_hold_is_shown_with_its_difference(run, tmp_path) -> None:
    (tmp_path / "cases").mkdir()
    case = (GOLDEN / "cohere" / "pass_through.case").read_text()
    head, _, rest = case.partition("== usage")
    (tmp_path / "cases" / "pass_through.case").write_text(
        f'{head}== usage\n{{"input_tokens":1}}\n{rest.partition(chr(10))[2].partition(chr(10))[2]}'
    )

    done = run("adapter", "check", "cohere", "--cases", "cases")

    assert done.returncode == 1
    assert "another usage whole" in done.stdout
    assert "-{" in done.stdout or '-  "input_tokens": 1' in done.stdout
    assert done.stdout.endswith("1 failed\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing-like-it",), 'no package "nothing-like-it" with an adapter or a plugin is installed'),
        (("cohere", "--cases", "nowhere"), "--cases: there is no folder nowhere"),
        (("cohere", "--table", "nowhere.toml"), "--table: nowhere.toml: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(run, arguments: tuple[str, ...], message: str) -> None:
    done = run("adapter", "check", *arguments)

    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_table_may_be_given(run, tmp_path) -> None:
    (tmp_path / "table.toml").write_text('api_key = "k"\nregion = "eu"\n')

    done = run("adapter", "check", "cohere", "--table", "table.toml")

    assert done.returncode == 1
    assert "region: " in done.stdout


def test_check_and_doctor_name_the_plugins_that_see_bodies(run, tmp_path) -> None:
    (tmp_path / "gateway.toml").write_text('[plugins.redact]\n[plugins.request_log]\nfile = "log"\n')

    checked = run("check", "--config", "gateway.toml")
    examined = run("doctor", "--config", "gateway.toml")

    assert checked.returncode == 0, checked.stderr
    rows = [line.split() for line in checked.stdout.splitlines()]
    assert ["redact", "ai-gateway", "0.1.0", "on_request", "rewritten"] in rows
    assert "redact (bodies are rewritten), request_log; what has a body leaves the zero-copy path" in examined.stdout


def test_a_wrong_key_of_a_plugin_is_named_with_its_line(run, tmp_path) -> None:
    (tmp_path / "gateway.toml").write_text('[plugins.redact]\nkinds = ["email"]\nkids = 1\n')

    done = run("check", "--config", "gateway.toml")

    assert done.returncode == 1
    assert "gateway.toml:3: plugins.redact.kids: is not a key of redact" in done.stderr
