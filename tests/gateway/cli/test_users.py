"""`gateway users`: the first administrator comes from here."""

import getpass
import io
import sys

import pytest

from gateway.__main__ import main
from gateway.cli.users import read_password
from gateway.errors import ConfigError


def test_a_password_comes_from_standard_input_and_has_a_length(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("correct horse battery\nmore\n"))
    assert read_password("-", least=10) == "correct horse battery"

    monkeypatch.setattr(sys, "stdin", io.StringIO("short\n"))
    with pytest.raises(ConfigError, match="10 to 128"):
        read_password("-", least=10)

    assert read_password(None, least=10) is None


def test_without_anybody_to_ask_for_a_password_it_says_how_to_give_one(monkeypatch):
    def ask(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", ask)

    with pytest.raises(ConfigError, match="--password -"):
        read_password("ask", least=10)


def test_no_password_is_taken_from_the_command_line(capsys):
    with pytest.raises(SystemExit):
        main(["users", "create", "--email", "a@example.com", "--password", "correct horse battery"])

    assert "invalid choice" in capsys.readouterr().err


def test_an_administrator_is_made_and_shown(database, redis_url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_url)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["users", *arguments, "--data-dir", str(tmp_path)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    made, key, _ = run("create", "--admin", "--email", "Boss@example.com", "--quiet")
    again = run("create", "--email", "boss@example.com")
    promoted = run("create", "--admin", "--email", "boss@example.com")
    _, listing, _ = run("list")
    last = [run("suspend", "boss@example.com"), run("role", "1", "user")]
    run("create", "--admin", "--email", "deputy@example.com", "--quiet")
    suspended = run("suspend", "boss@example.com")
    back = run("activate", "1")
    nobody = run("suspend", "nobody@example.com")

    assert (made, key[:8]) == (0, "gw_live_")
    assert again[0] == 1
    assert (promoted[0], promoted[1]) == (0, "")
    assert "boss@example.com" in listing
    assert "admin" in listing
    assert (suspended[0], back[0]) == (0, 0)
    assert [(each[0], "administrator" in each[2]) for each in last] == [(1, True), (1, True)]
    assert nobody[0] == 1
