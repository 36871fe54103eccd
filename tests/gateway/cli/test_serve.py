"""What a person sees when the gateway starts, and that it starts and stops as a shell expects."""

import argparse
import io
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from gateway.cli.serve import Welcome, joining_options, program_name
from gateway.cli.table import Printer
from gateway.config import load
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.key_store import find_key
from gateway.kernel.keys import public_id

ADDRESS = "http://127.0.0.1:8080"
TIMEOUT_S = 60
KEY = re.compile(r"gw_live_[A-Za-z0-9_-]{55}")


def welcome(data_dir, *, config=None, options: str = "", **variables: str) -> tuple[Welcome, io.StringIO]:
    out = io.StringIO()
    loaded = load(config, environ={"GATEWAY__SERVER__DATA_DIR": str(data_dir)} | variables)
    return Welcome(loaded, Printer(out), program="venv/bin/gateway", options=options), out


async def prepare(
    greeter: Welcome, dsn: str, data_dir, *, redis_url: str = "unix:///nowhere", **variables: str
) -> None:
    settings = load(environ={"GATEWAY__SERVER__DATA_DIR": str(data_dir)} | variables).settings
    await greeter.prepare(settings, Stores(dsn, redis_url))


async def test_the_first_start_shows_a_key_that_works_once(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    greeter, out = welcome(tmp_path)

    await prepare(greeter, database, tmp_path)
    greeter.announce(ADDRESS)

    shown = set(KEY.findall(out.getvalue()))
    assert len(shown) == 1
    async with Database(database, pool_size=1, timeout_s=10) as connected:
        assert await find_key(connected, public_id(shown.pop())) is not None

    again, out = welcome(tmp_path)
    await prepare(again, database, tmp_path)
    again.announce(ADDRESS)
    assert ADDRESS in out.getvalue()
    assert not KEY.search(out.getvalue())


@pytest.mark.parametrize("choice", ["refuse", "limit_locally"])
async def test_nobody_takes_a_gateway_without_redis_for_ready(database, redis_url, tmp_path, monkeypatch, choice):
    monkeypatch.chdir(tmp_path)
    variables = {"GATEWAY__MONEY__WHEN_REDIS_IS_AWAY": choice}
    greeter, out = welcome(tmp_path, **variables)
    await prepare(greeter, database, tmp_path, redis_url="redis://127.0.0.1:1", **variables)
    greeter.announce(ADDRESS)

    said = out.getvalue()
    assert "is ready" not in said
    assert f"runs at {ADDRESS}, but Redis does not answer" in said
    assert ("refused with 503" in said) == (choice == "refuse")
    assert "127.0.0.1:1" in said
    assert "REDIS_URL" in said

    greeter, out = welcome(tmp_path)
    await prepare(greeter, database, tmp_path, redis_url=redis_url)
    greeter.announce(ADDRESS)
    assert f"is ready: {ADDRESS}" in out.getvalue()


async def test_production_makes_no_key(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    production = {
        "GATEWAY__SERVER__DEVELOPMENT": "false",
        "GATEWAY__SERVER__HOST": "127.0.0.1",
        "GATEWAY__AUTH__PEPPER": "a pepper of some length",
    }
    greeter, out = welcome(tmp_path, **production)

    await prepare(greeter, database, tmp_path, **production)
    greeter.announce(ADDRESS)

    assert not KEY.search(out.getvalue())
    assert not (tmp_path / "pepper").exists()


PRODUCTION = """
server = { development = false, host = "127.0.0.1" }
auth.pepper = "a pepper of some length"
"""
LISTED = """
[providers.local]
adapter = "openai"
base_url = "http://127.0.0.1:9001/v1"
models = ["llama-*", "small"]
"""


@pytest.mark.parametrize(
    ("text", "shown", "hidden"),
    [
        ("", '"model": "echo"', "models   "),
        (LISTED, '"model": "echo"', "models   "),
        (PRODUCTION, "providers   none", "curl"),
        (PRODUCTION + LISTED, '"model": "small"', "models   "),
        (PRODUCTION + LISTED.replace(', "small"', ""), '"model": "MODEL"', '"model": "llama'),
        (PRODUCTION + LISTED.replace(', "small"', ""), "venv/bin/gateway models lists", '"model": "llama'),
    ],
)
def test_the_request_to_paste_asks_for_a_model_that_is_there(tmp_path, text, shown, hidden):
    (tmp_path / "gateway.toml").write_text(text)
    greeter, out = welcome(tmp_path, config=tmp_path / "gateway.toml")

    greeter.announce(ADDRESS)

    assert shown in out.getvalue()
    assert hidden not in out.getvalue()


def test_the_command_for_more_keys_leads_to_this_gateway(tmp_path):
    greeter, out = welcome(tmp_path, options=" --data-dir elsewhere")

    greeter.announce(ADDRESS)

    assert "venv/bin/gateway keys create --name NAME --data-dir elsewhere" in out.getvalue()


def test_a_program_is_named_as_it_can_be_typed(tmp_path, monkeypatch):
    program = tmp_path / "gateway"
    program.touch(mode=0o755)

    assert program_name(str(program)) == str(program)
    assert program_name("/somewhere/gateway/__main__.py") == f"{sys.executable} -m gateway"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program_name(str(program)) == "gateway"


def test_options_that_lead_elsewhere_are_repeated():
    assert joining_options(argparse.Namespace(config=None, data_dir=None)) == ""
    assert joining_options(argparse.Namespace(config="a b.toml", data_dir="d")) == " --config 'a b.toml' --data-dir d"


def test_serve_announces_its_address_and_ends_well_when_told(database, redis_url, tmp_path, environ):
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--workers", "1"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environ | {"DATABASE_URL": database, "REDIS_URL": redis_url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as gateway:
        try:
            said = []
            for line in gateway.stderr:
                said.append(line)
                if found := re.search(r"is ready: (http://\S+)", line):
                    break
            else:
                raise AssertionError("".join(said))
            with urllib.request.urlopen(f"{found[1]}/health", timeout=TIMEOUT_S) as answer:
                assert answer.status == 200
        finally:
            gateway.send_signal(signal.SIGTERM)
            _, rest = gateway.communicate(timeout=TIMEOUT_S)

    assert gateway.returncode == 0, rest
    assert "Traceback" not in rest


def test_a_port_that_is_taken_is_one_readable_line(database, redis_url, tmp_path, environ):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "serve", "--port", port, "--workers", "1"],
            cwd=tmp_path,
            env=environ | {"DATABASE_URL": database, "REDIS_URL": redis_url},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    assert done.returncode == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's end on Linux alone")
def test_a_gateway_with_a_parent_ends_with_it_however_that_ends(database, redis_url, tmp_path, environ):
    """What `make serve` starts is gone when make is killed, or its terminal closed."""
    parent = "import subprocess, sys; subprocess.run(sys.argv[1:], check=False)"
    command = [sys.executable, "-m", "gateway", "serve", "--with-parent", "--port", "0", "--workers", "1"]
    with subprocess.Popen(
        [sys.executable, "-c", parent, *command],
        cwd=tmp_path,
        env=environ | {"DATABASE_URL": database, "REDIS_URL": redis_url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            assert any("is ready: http://" in line for line in started.stderr)
        finally:
            started.kill()
        # The end of the pipe: nobody is left who could write to it.
        _, rest = started.communicate(timeout=TIMEOUT_S)

    assert "told to stop" in rest
