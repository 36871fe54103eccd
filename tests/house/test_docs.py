"""config/gateway.toml documents the settings there are, all of them, with the defaults they have."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from gateway.config import load
from gateway.settings import Model, Plugin, Provider, Section, Settings, Timeouts

FILE = Path(__file__).parents[2] / "config" / "gateway.toml"
#: What the examples refer to, where any text will not do.
URLS = {
    "DATABASE_URL": "postgresql://localhost/gateway",
    "REDIS_URL": "redis://localhost:6379/0",
    "GATEWAY_OWN_KEYS_MASTER": "0123456789abcdef" * 4,
}


def uncommented() -> str:
    """The file with every setting switched on: prose has a space after its `#`, a setting has none."""
    return re.sub(r"^#(?=\[|[a-z0-9_]+ = )", "", FILE.read_text(), flags=re.MULTILINE)


def fixed_sections(struct: type[msgspec.Struct], path: tuple[str, ...] = ()):
    """Every struct with a fixed place in the file."""
    yield path, struct
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            yield from fixed_sections(field.type, (*path, field.name))


def at(table: dict, path: tuple[str, ...]):
    for name in path:
        table = table[name]
    return table


@pytest.mark.parametrize(
    ("path", "struct"), [*fixed_sections(Settings)], ids=lambda each: getattr(each, "__name__", None)
)
def test_every_setting_is_documented_with_its_default(path, struct):
    table = at(tomllib.loads(uncommented()), path)

    fields = {field.name: field for field in msgspec.structs.fields(struct)}

    assert table.keys() == fields.keys()
    for name, value in table.items():
        default = fields[name].default
        if isinstance(value, dict):
            continue
        if default is None:
            assert isinstance(value, str), f"{name} has no default: show an example"
            continue
        shown = tuple(value) if isinstance(value, list) else value
        assert shown == default, f"{'.'.join((*path, name))} is documented as {value!r}, but is {default!r}"
        assert type(shown) is type(default), f"{name}: write {default!r}"


def test_every_key_of_a_provider_is_shown():
    table = tomllib.loads(uncommented())["providers"]["local"]

    assert table.keys() == {*Provider.__struct_fields__} - {"extra"}
    assert table["timeouts"].keys() <= {*Timeouts.__struct_fields__}
    assert table["enabled"] is True


def test_every_key_of_a_plugin_is_shown():
    table = tomllib.loads(uncommented())["plugins"]["request_log"]

    shown = {*Plugin.__struct_fields__} - {"extra"}
    assert table.keys() >= shown
    assert {key: table[key] for key in shown} == {key: getattr(Plugin(), key) for key in shown}


def test_every_key_of_a_model_is_shown():
    (table,) = tomllib.loads(uncommented())["models"].values()

    assert table.keys() == {*Model.__struct_fields__}
    assert table["free"] is False


def test_the_examples_load(tmp_path):
    file = tmp_path / "gateway.toml"
    file.write_text(uncommented())

    environ = {name: f"the value of {name}" for name in re.findall(r'"env:([A-Z_]+)"', uncommented())}

    loaded = load(str(file), environ=environ | URLS)

    assert loaded.settings.providers["local"].models == ("gpt-4o-mini", "llama-*")
    assert loaded.settings.providers["local"].timeouts == Timeouts(first_byte_s=30.0)
    assert loaded.settings.models["gpt-4o-mini"].upstream == {"local": "gpt-4o-mini-2024-07-18"}
    assert loaded.warnings == ()


def test_the_file_as_it_stands_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no file is found here

    assert load(str(FILE), environ={}).settings == load(environ={}).settings


def test_no_line_is_a_setting_that_uncommenting_misses():
    stray = [line for line in FILE.read_text().splitlines() if re.match(r"#[^ ]", line)]

    missed = [line for line in stray if line in uncommented().splitlines()]

    assert stray
    assert missed == []
