"""The commands as a shell runs them: arguments and environment in, output and exit status out."""

import contextlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gateway import __version__
from gateway.app import create_app
from gateway.errors import ConfigError
from gateway.infra.embedded import Stores
from gateway.settings import Log, Settings

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60
COMMANDS = ("serve", "check", "doctor", "migrate", "keys", "credits", "usage", "reconcile", "healthcheck", "bench")


@pytest.fixture
def run(tmp_path, environ):
    """Runs `gateway ARGS` in an empty directory; keyword arguments are further variables."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            cwd=tmp_path,
            env=environ | variables,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    return run


def errors(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def output(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- the command line itself ---------------------------------------------------------------------------------


def test_version(run):
    assert output(run("--version")) == f"gateway {__version__}\n"


def test_help_lists_every_command(run):
    listed = output(run("--help"))

    assert all(re.search(rf"^ +{command}\s", listed, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize(
    "command",
    [
        *(each for each in COMMANDS if each not in {"keys", "credits"}),
        *("keys create", "keys list", "keys revoke", "credits add", "credits show"),
    ],
)
def test_every_command_explains_itself_and_takes_the_configuration(run, command):
    explained = output(run(*command.split(), "--help"))

    assert "--config FILE" in explained
    assert "--data-dir DIR" in explained


@pytest.mark.parametrize(
    "line",
    ["", "sreve", "serve --prot 1", "serve --port x", "serve --plane both", "keys", "keys create", "keys revoke"],
)
def test_a_mistyped_command_is_a_usage_error(run, line):
    assert "usage: gateway" in errors(run(*line.split()), status=2)


def test_help_needs_nothing_that_is_installed():
    code = (
        "import sys; sys.modules['msgspec'] = None; from gateway.cli.arguments import parser; parser().format_help()"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=TIMEOUT_S, check=False)

    assert done.returncode == 0, done.stderr


# -- check ---------------------------------------------------------------------------------------------------


def test_check_passes_on_nothing_at_all(run):
    summary = output(run("check"))

    assert summary.startswith("ok: no file, the defaults\n")
    assert re.search(r"^echo +echo +none +echo, echo-\*, \*", summary, re.MULTILINE)


def test_check_passes_on_a_good_file_and_shows_no_secret(run, tmp_path):
    (tmp_path / "good.toml").write_text(
        "[providers.local]\nadapter = 'openai'\nbase_url = 'http://127.0.0.1:9001/v1'\napi_key = 'env:LOCAL_KEY'\n"
    )

    summary = output(run("check", "--config", "good.toml", LOCAL_KEY="sk-do-not-show"))

    assert "ok: good.toml" in summary
    assert re.search(r"^local +openai +set +\* +http://127.0.0.1:9001/v1$", summary, re.MULTILINE)
    assert "sk-do-not-show" not in summary


def test_check_enables_a_provider_by_its_usual_variable(run):
    summary = output(run("check", GROQ_API_KEY="gsk-x"))

    assert "note: provider groq is enabled by GROQ_API_KEY" in summary
    assert "https://api.groq.com/openai/v1" in summary


@pytest.mark.parametrize(
    "line",
    ["keys list", "keys revoke x", "users list", "credits show", "usage", "reconcile", "migrate --check", "status"],
)
def test_a_mistyped_directory_is_not_told_to_be_empty(run, tmp_path, line):
    """Nor filled with servers of its own."""
    complaint = errors(run(*line.split(), "--data-dir", "mistyped"))

    assert "mistyped" in complaint
    assert "--data-dir" in complaint
    assert not (tmp_path / "mistyped").exists()


def test_where_a_store_is_looked_for_is_said(run):
    complaint = errors(
        run("keys", "list", DATABASE_URL="postgresql://u:word@127.0.0.1:1/x", REDIS_URL="redis://127.0.0.1:1")
    )

    assert "database.url (DATABASE_URL)" in complaint
    assert "word" not in complaint


def test_an_access_log_that_cannot_be_written_is_named_by_its_key():
    settings = msgspec.structs.replace(Settings(), log=Log(access="/none/access.log"))

    with pytest.raises(ConfigError) as caught:
        create_app(settings, Stores("postgresql:///none", "redis://none"))

    assert caught.value.message.startswith("log.access: '/none/access.log' can't be written (No such file")
    assert caught.value.param == "log.access"


@pytest.mark.parametrize("command", ["check", "serve"])
def test_what_leads_to_providers_is_tried_before_anything_starts(run, tmp_path, command):
    (tmp_path / "authority.toml").write_text("[upstream]\nca_file = 'none.pem'\n")

    complaint = errors(run(command, "--config", "authority.toml"))
    assert complaint.startswith("gateway: authority.toml:2: upstream.ca_file: 'none.pem' is not a PEM file")

    complaint = errors(run(command, HTTPS_PROXY="socks5://user:word@proxy:1080"))
    assert complaint.startswith("gateway: HTTPS_PROXY: only http:// proxies are supported; unset it, or set")
    assert "word" not in complaint
    assert not (tmp_path / "data").exists()


def test_check_names_every_mistake(run, tmp_path):
    (tmp_path / "bad.toml").write_text("[server]\nprot = 1\n[providers.x]\nadapter = 3\n")

    complaint = errors(run("check", "--config", "bad.toml"))

    assert "2 things in the configuration are wrong" in complaint
    assert "bad.toml:2: server.prot: unknown key; did you mean `port`?" in complaint
    assert "bad.toml:4: providers.x.adapter: expected a string" in complaint


def test_check_names_the_line_of_what_an_adapter_refuses(run, tmp_path):
    (tmp_path / "bad.toml").write_text(
        "[providers.x]\nadapter = 'compatible'\nbase_url = 'http://h/v1'\napi_key = 'k'\nwieght = 1\n"
    )

    assert errors(run("check", "--config", "bad.toml")).startswith("gateway: bad.toml:5: providers.x.wieght: ")


def test_check_names_the_line_of_an_adapter_that_is_not_there(run, tmp_path):
    (tmp_path / "bad.toml").write_text("[providers.x]\nadapter = 'opnai'\n")

    complaint = errors(run("check", "--config", "bad.toml"))

    assert complaint.startswith("gateway: bad.toml:2: providers.x.adapter: ")
    assert "openai" in complaint


# -- migrate and keys ----------------------------------------------------------------------------------------


def test_migrate_brings_a_database_up_to_date_once(run, empty_database, redis_url):
    stores = {"DATABASE_URL": empty_database, "REDIS_URL": redis_url}

    missing = run("migrate", "--check", **stores)
    assert missing.returncode == 1
    assert missing.stdout.startswith("missing 0001_")
    assert output(run("migrate", **stores)).startswith("applied 0001_")
    assert output(run("migrate", "--check", **stores)) == "nothing to do: the database has every migration\n"


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/x", "postgresql://h/x?sslmode=unheard-of"])
def test_a_database_that_does_not_answer_is_one_readable_message(run, url):
    complaint = errors(run("migrate", DATABASE_URL=url, REDIS_URL="redis://127.0.0.1:1"))

    assert complaint.startswith("gateway: A store this gateway depends on does not answer.")


def test_a_key_lives_from_create_to_revoke(run, database, redis_url):
    stores = {"DATABASE_URL": database, "REDIS_URL": redis_url}

    key = output(run("keys", "create", "--name", "a name", "--quiet", **stores)).strip()
    assert re.fullmatch(r"gw_live_[A-Za-z0-9]{12}[A-Za-z0-9_-]{43}", key)

    assert "a name" in errors(run("keys", "create", "--name", "a name", **stores))

    (listed,) = msgspec.json.decode(output(run("keys", "list", "--json", **stores)))
    assert (listed["name"], listed["revoked_at"], listed["last_four"]) == ("a name", None, key[-4:])
    assert key not in output(run("keys", "list", **stores))

    assert output(run("keys", "revoke", "a name", **stores)) == f"revoked {listed['id']}\n"
    assert re.search(rf"^revoked +{listed['id']} ", output(run("keys", "list", **stores)), re.MULTILINE)
    assert "no living key" in errors(run("keys", "revoke", listed["id"], **stores))


def test_a_key_is_revoked_even_if_nobody_can_be_told(run, database):
    stores = {"DATABASE_URL": database, "REDIS_URL": "redis://127.0.0.1:1"}
    output(run("keys", "create", "--name", "x", "--quiet", **stores))

    done = run("keys", "revoke", "x", **stores)

    assert done.stdout.startswith("revoked ")
    assert "Redis does not answer: running gateways may take 60 s to notice" in errors(done)


def test_keys_need_a_migrated_database(run, empty_database, redis_url):
    stores = {"DATABASE_URL": empty_database, "REDIS_URL": redis_url}

    assert "run `gateway migrate` first" in errors(run("keys", "list", **stores))


def test_a_name_must_say_something(run):
    assert "--name" in errors(run("keys", "create", "--name", "  "))


# -- healthcheck ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(status: int) -> Iterator[str]:
    """The port of a server that answers every request with `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield str(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def test_healthcheck_passes_on_a_healthy_gateway(run):
    with answering(200) as port:
        assert output(run("healthcheck", "--port", port)) == ""
        assert output(run("healthcheck", "--host", "0.0.0.0", GATEWAY__SERVER__PORT=port)) == ""


def test_healthcheck_fails_on_a_sick_or_absent_gateway(run):
    with answering(503) as port:
        assert "answers with status 503" in errors(run("healthcheck", "--port", port))
    assert "does not answer" in errors(run("healthcheck", "--port", port))


def test_healthcheck_needs_a_port_that_is_known(run):
    assert "--port" in errors(run("healthcheck", "--port", "0"))


# -- doctor --------------------------------------------------------------------------------------------------


def test_doctor_finds_a_good_setting_well(run, database, redis_url):
    report = output(run("doctor", DATABASE_URL=database, REDIS_URL=redis_url))

    for subject in ("versions", "installation", "configuration", "providers", "PostgreSQL", "migrations", "Redis"):
        assert re.search(rf"^ok +{subject} ", report, re.MULTILINE), report


def test_doctor_fails_and_says_what_to_do(run, database):
    done = run("doctor", DATABASE_URL=database, REDIS_URL="redis://127.0.0.1:1")

    assert done.returncode == 1
    assert re.search(r"^fail +Redis ", done.stdout, re.MULTILINE)
    assert "What to do:\n  Redis: see redis.url (REDIS_URL)" in done.stdout


def test_doctor_reports_a_bad_configuration(run):
    done = run("doctor", GATEWAY__SERVER__PROT="1")

    assert done.returncode == 1
    assert re.search(r"^fail +configuration +GATEWAY__SERVER__PROT: ", done.stdout, re.MULTILINE)


# -- signals -------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_command_without_a_traceback(tmp_path, environ):
    # A pipe nobody writes to, as a secret's file: the command waits in it until it is interrupted.
    os.mkfifo(tmp_path / "pipe")
    # What a shell runs in the background ignores Ctrl-C, and so would all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "check"],
        cwd=tmp_path,
        env=environ | {"GATEWAY__AUTH__PEPPER": "file:pipe"},
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        # Opening the other end succeeds once the command has opened its own.
        writer = os.open(tmp_path / "pipe", os.O_WRONLY)
        signal.signal(signal.SIGINT, before)
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=TIMEOUT_S)
        os.close(writer)

    assert command.returncode == 130
    assert said == ""


def test_a_reader_that_leaves_is_no_traceback(tmp_path, environ):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "check"],
            cwd=tmp_path,
            env=environ,
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    assert errors(done) == ""
