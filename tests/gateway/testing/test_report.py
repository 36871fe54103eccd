"""`gateway adapter check`, on packages made here and on what is installed."""

from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

import pytest

from gateway.api import ConfigError
from gateway.testing.report import Line, examine
from tests.gateway.testing.test_cases import CASE

HERE = "tests.gateway.testing.adapters"


def package(folder: Path, name: str, lines: str) -> list[EntryPoint]:
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(lines)
    return list(Distribution.at(info).entry_points)


def report(name: str, *found: Iterable[EntryPoint], **options) -> dict[str, Line]:
    everything = [each for package in found for each in package]
    lines = examine(name, find=lambda group: [each for each in everything if each.group == group], **options)
    return {line.subject: line for line in lines}


def failed(lines: dict[str, Line]) -> dict[str, str]:
    return {line.subject: line.found for line in lines.values() if line.state == "fail"}


def test_a_sound_package_has_nothing_that_failed(tmp_path: Path) -> None:
    (tmp_path / "one.case").write_text(CASE)
    found = package(tmp_path, "Acme_Sound", f"[gateway.adapters]\nsound = {HERE}:Sound\n")

    lines = report("acme.sound", found, folder=tmp_path)

    assert failed(lines) == {}
    assert lines["package"].found == "Acme_Sound 1.0"
    assert lines["API version"].found == "1, as this gateway has (1)"
    assert lines["dialects"].found == "openai.chat"
    assert lines["name"] == Line("ok", "name", '"sound" is nobody else\'s')
    assert lines["cases"].state == "warn"
    assert {"cut", "errors", "secrets"} <= lines.keys()


def test_faults_and_cases_that_fail_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "one.case").write_text(CASE.replace("Bearer sk-1", "Bearer sk-2").replace('"sound"', '"telling"'))
    source = "from tests.gateway.testing.adapters import Telling as Base\nclass Telling(Base):\n    ID = 'telling'\n"
    (tmp_path / "acme_telling.py").write_text(source)
    found = package(tmp_path, "acme", "[gateway.adapters]\ntelling = acme_telling:Telling\n")

    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        lines = report("acme", found, folder=tmp_path)

    assert failed(lines).keys() == {"case one", "errors"}


def test_a_name_that_two_packages_claim_fails(tmp_path: Path) -> None:
    one = package(tmp_path, "one", f"[gateway.adapters]\nsound = {HERE}:Sound\n")
    other = package(tmp_path, "other", f"[gateway.adapters]\nsound = {HERE}:Sound\n")

    assert failed(report("one", one, other))["name"] == '"sound" is claimed by other 1.0 as well'


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("sound = nowhere_at_all:X", "No module named 'nowhere_at_all'"),
        (f"sound = {HERE}:KEY", "is not a class"),
        (f"loud = {HERE}:Sound", "calls itself 'sound'"),
    ],
)
def test_what_does_not_load_fails(tmp_path: Path, entry: str, message: str) -> None:
    lines = report("acme", package(tmp_path, "acme", f"[gateway.adapters]\n{entry}\n"))

    assert message in failed(lines)["contract"]
    assert "acme 1.0" in failed(lines)["contract"]


def test_a_table_that_is_refused_says_how_to_give_another(tmp_path: Path) -> None:
    found = package(tmp_path, "acme", f"[gateway.adapters]\nsound = {HERE}:Sound\n")

    lines = report("acme", found, table={"api_key": "k", "region": "eu"})

    assert failed(lines)["table"] == "region: is not known (give a table it takes by --table FILE)"


def test_plugins_are_looked_at_too() -> None:
    lines = {line.subject: line for line in examine("redact")}

    assert lines["hooks"].found == "on_request"
    assert "rewrites bodies" in lines["bodies"].found


def test_an_unknown_package_is_refused_with_those_there_are(tmp_path: Path) -> None:
    found = package(tmp_path, "acme", f"[gateway.adapters]\nsound = {HERE}:Sound\n")

    with pytest.raises(ConfigError, match=r'no package "acne" with .* there are: acme'):
        report("acne", found)
