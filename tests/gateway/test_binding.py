"""Whatever is given, the answer is settings or a list of problems: never another error, never a wrong type."""

import datetime as dt

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.binding import Binder, Given, Origin, Table, describe, nearest, variable_for
from gateway.secret import Secret
from gateway.settings import Server, Settings

FILE = Origin("file", "gateway.toml", 1)

NAMES = (
    "server port host auth pepper cors origins upstream timeouts idle_s providers adapter api_key models free aliases "
    "extra log level x a.b"
)
KEYS = st.sampled_from([*NAMES.split(), ""])
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["env:A", "env:NO", "env:", "file:", "file:/nowhere", "file:\0", "openai", "info"]),
    st.dates(),
    st.just(dt.time(1)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


def table(values: dict, *, text: bool) -> Table:
    made = Table(FILE)
    for name, value in values.items():
        made.entries[name] = table(value, text=text) if isinstance(value, dict) else Given(value, FILE, text)
    return made


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.booleans())
def test_anything_gives_settings_or_problems(values, text):
    binder = Binder(Settings, environ={"A": "1"}, positions={})

    settings = binder.bind(table(values, text=text), Settings)

    if not binder.problems:
        # What was bound has the types it promises.
        plain = msgspec.to_builtins(settings, enc_hook=Secret.reveal)
        assert msgspec.convert(plain, Settings, dec_hook=lambda kind, value: kind(value)) is not None
    for problem in binder.problems:
        assert str(problem).startswith("gateway.toml:1: ")


def test_a_problem_of_one_key_is_told_once():
    binder = Binder(Server, environ={}, positions={})

    binder.report(("port",), "is wrong", origin=FILE)
    binder.report(("port",), "is wrong in another way", origin=FILE)

    assert [str(problem) for problem in binder.problems] == ["gateway.toml:1: port: is wrong"]


def test_a_nested_reference_is_resolved():
    values = {"providers": {"x": {"adapter": "a", "list": ["env:A", {"deep": "env:A"}]}}}
    binder = Binder(Settings, environ={"A": "value"}, positions={})

    settings = binder.bind(table(values, text=False), Settings)

    assert settings.providers["x"].extra == {"list": ["value", {"deep": "value"}]}
    assert "value" not in repr(settings)


def test_the_nearest_name_bridges_dashes_and_case():
    assert nearest("Base-URL", ["base_url", "api_key"]) == "base_url"
    assert nearest("zzz", ["base_url"]) is None


def test_a_setting_has_one_variable():
    assert variable_for(("providers", "my-own", "base_url")) == "GATEWAY__PROVIDERS__MY_OWN__BASE_URL"


def test_types_are_described_in_words():
    described = {field.name: describe(field.type) for field in msgspec.structs.fields(Server)}

    assert described["port"] == "a whole number from 0 to 65535"
    assert described["grace_s"] == "a number above 0"
    assert described["development"] == "true or false"
    assert describe(tuple[str, ...]) == "a list of strings"
