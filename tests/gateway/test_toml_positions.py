"""Every key of a TOML text is found on the line it stands on."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.toml_positions import join_key, scan, split_key

TEXT = '''\
name = 1  # [not.a.table]
[server]
port = 80
"odd key".x = """
fake = 1
[fake]
"""""
[models."gpt-4.1"]
free = true
upstream = { "a b" = 'x', c.d = 2 }
list = [
  1, # comment = 2
  { z = 3 },
]
[[keys]]
k = 1
  [[ keys ]]
k = 2
[keys.sub]
when = 2020-01-01 10:00:00
raw = \'\'\'
a = \'b\'\'\'\'
'end' = 0
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 1),
        (("server",), 2),
        (("server", "port"), 3),
        (("server", "odd key", "x"), 4),
        (("models", "gpt-4.1"), 8),
        (("models", "gpt-4.1", "free"), 9),
        (("models", "gpt-4.1", "upstream", "a b"), 10),
        (("models", "gpt-4.1", "upstream", "c", "d"), 10),
        (("models", "gpt-4.1", "list", 0), 12),
        (("models", "gpt-4.1", "list", 1, "z"), 13),
        (("keys", 0, "k"), 16),
        (("keys", 1, "k"), 18),
        (("keys", 1, "sub"), 19),
        (("keys", 1, "sub", "when"), 20),
        (("keys", 1, "sub", "end"), 23),
    ],
)
def test_a_key_is_on_its_line(path, line):
    assert scan(TEXT)[path].line == line


def test_nothing_inside_a_string_or_comment_is_a_key():
    assert not any("fake" in path or "comment" in path or "not" in path or "a" in path for path in scan(TEXT))


def test_a_path_is_written_as_the_file_writes_it():
    positions = scan("[models.'gpt-4.1']\n\"free\" = true\n")

    assert join_key(("models", "gpt-4.1", "free"), positions) == "models.'gpt-4.1'.\"free\""
    assert join_key(("models", "gpt-4.1", "free")) == 'models."gpt-4.1".free'


def test_an_index_is_written_in_brackets():
    assert join_key(("keys", 1, "k")) == "keys[1].k"


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("server.port", ("server", "port")),
        ('models."gpt-4.1".free', ("models", "gpt-4.1", "free")),
        ("not a key", ("not a key",)),
        ("", ("",)),
        ("a.", ("a.",)),
    ],
)
def test_a_dotted_key_is_split_into_its_parts(key, parts):
    assert split_key(key) == parts


NAMES = st.text("ab-_.\"'\\ é=[]#", min_size=1, max_size=5)
LEAVES = st.one_of(st.integers(), st.booleans(), st.text("a=\n\"'[]{}#,\\", max_size=8), st.just([1, "]", {"k": 1}]))
TREES = st.dictionaries(
    NAMES, st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)
)


def written(tree: dict, prefix: tuple[str, ...] = ()) -> str:
    """`tree` as TOML, each table under a header of its own."""
    lines = [f"{quoted(name)} = {value_of(value)}" for name, value in tree.items() if not isinstance(value, dict)]
    text = "\n".join(lines) + "\n"
    for name, value in tree.items():
        if isinstance(value, dict):
            path = (*prefix, name)
            text += f"[{'.'.join(quoted(part) for part in path)}]\n" + written(value, path)
    return text


def quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def value_of(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return quoted(value).replace("\n", "\\n")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(name)} = {value_of(each)}" for name, each in value.items()) + "}"
    return "[" + ", ".join(value_of(each) for each in value) + "]"


def paths(tree: dict, prefix: tuple[str, ...] = ()):
    for name, value in tree.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, name))


@given(TREES)
def test_every_key_that_tomllib_finds_is_found(tree):
    text = written(tree)
    assert tomllib.loads(text) == tree

    positions = scan(text)

    for path in paths(tree):
        line = text.splitlines()[positions[path].line - 1]
        assert quoted(path[-1]) in line


@given(st.text("ab.=[]{}\"'#\n, \\"))
def test_any_text_is_scanned_without_an_error(text):
    scan(text)
