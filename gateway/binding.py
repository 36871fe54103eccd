"""From tables of given values to settings, with every fault named.

A `Table` is what files, the environment and the command line gave, each value with its origin. `Binder` lays such a
table over a struct of `gateway/settings.py`. Rules:
- It goes on after a fault, so that one run reports them all; a value that is wrong is left at its default.
- A fault names the place, the full key and, for an unknown key, the nearest valid one. It never shows a value.
- Wherever a plain value may stand, `env:NAME` and `file:PATH` may stand for it.
- Text, that is anything from the environment and whatever a reference gives, becomes the type the setting has.
What settings mean together is not decided here but in `gateway/config.py`.
"""

import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from gateway.secret import Secret
from gateway.toml_positions import KeyPath, Position, join_key

#: A secret in a file is a line of text; more than this is a wrong path.
REFERENCE_BYTES_MAX = 64 * 1024

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAMES_SHOWN_MAX = 16
#: What a list of secrets is before they are hidden.
_TEXTS: Any = tuple[typing.Annotated[str, msgspec.Meta(min_length=1)], ...]
_BAD: Any = object()  # stands for a value of any type that could not be made

S = TypeVar("S", bound=msgspec.Struct)


class Origin(msgspec.Struct, frozen=True):
    """Who gave a value: a file with a line, an environment variable, or an argument of the command line."""

    kind: Literal["file", "environment", "argument"]
    name: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.line}" if self.line else self.name


class Given(msgspec.Struct, frozen=True):
    """A value and who gave it. `text` values are turned into the type that the setting has."""

    value: object
    origin: Origin
    text: bool = False

    def __repr__(self) -> str:
        return f"<Given by {self.origin}>"  # any value may be a secret


class Table:
    """Keys with values or tables under them. `origin` is where the table itself was first named, if anywhere."""

    __slots__ = ("entries", "origin")

    def __init__(self, origin: Origin | None = None) -> None:
        self.entries: dict[str, Table | Given] = {}
        self.origin = origin

    def get(self, *path: str) -> "Table | Given | None":
        """What stands at `path`, or None."""
        node: Table | Given | None = self
        for name in path:
            if not isinstance(node, Table):
                return None
            node = node.entries.get(name)
        return node

    def put(self, path: tuple[str, ...], given: Given) -> None:
        """Set one value, making the tables above it, in the place of what stood there."""
        table = self
        for name in path[:-1]:
            inner = table.entries.get(name)
            if not isinstance(inner, Table):
                inner = table.entries[name] = Table(given.origin)
            table = inner
        table.entries[path[-1]] = given


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One fault: where, which key, what is wrong with it and what may have been meant."""

    path: KeyPath
    key: str
    message: str
    origin: Origin | None = None
    suggestion: str = ""

    def __str__(self) -> str:
        place = f"{self.origin}: " if self.origin else ""
        hint = f"; {self.suggestion}" if self.suggestion else ""
        return f"{place}{self.key}: {self.message}{hint}"


class Extra(dict[str, object]):
    """Settings that only an adapter knows. Any may be a credential, so its repr shows the names alone."""

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: ***" for name in self) + "}"


class Binder:
    """Binds tables to structs and collects the problems it meets on the way."""

    def __init__(
        self, root: type[msgspec.Struct], *, environ: Mapping[str, str], positions: Mapping[KeyPath, Position]
    ) -> None:
        self.problems: list[Problem] = []
        self._environ = environ
        self._positions = positions
        self._everywhere = list(_leaves(root))

    def bind(self, table: Table, struct: type[S], path: KeyPath = ()) -> S:
        """The struct for `table`. Look at `problems` before using it: what was wrong or missing has a stand-in."""
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        extra = Extra()
        values: dict[str, object] = {}
        for name, node in table.entries.items():
            if (field := fields.get(name)) is not None and name != "extra":
                if (value := self._value(node, field.type, (*path, name))) is not _BAD:
                    values[name] = value
            elif "extra" in fields:
                if (value := self._opaque(node, (*path, name))) is not _BAD:
                    extra[name] = value
            else:
                self._unknown(node, name, [*fields], path)
        if "extra" in fields:
            values["extra"] = extra
        for name, field in fields.items():
            if field.required and name not in values:
                self.report((*path, name), "is missing", origin=table.origin)
                values[name] = ""
        return struct(**values)

    def report(self, path: KeyPath, message: str, *, origin: Origin | None, suggestion: str = "") -> None:
        """Note a problem, unless that very key has one already."""
        if all(problem.path != path for problem in self.problems):
            key = join_key(path, self._positions)
            self.problems.append(Problem(path=path, key=key, message=message, origin=origin, suggestion=suggestion))

    def _value(self, node: Table | Given, wanted: Any, path: KeyPath) -> object:
        wanted = _without_none(wanted)
        if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
            if isinstance(node, Given):
                return self._wrong(path, "expected a table", node)
            return self.bind(node, wanted, path)
        if get_origin(wanted) is dict:
            return self._rows(node, get_args(wanted)[1], path)
        if isinstance(node, Table):
            return self._wrong(path, f"expected {describe(wanted)}, got a table", node)
        return self._leaf(node, wanted, path)

    def _rows(self, node: Table | Given, wanted: Any, path: KeyPath) -> object:
        if isinstance(node, Given):
            return self._wrong(path, "expected a table", node)
        rows = {name: self._value(row, wanted, (*path, name)) for name, row in node.entries.items()}
        return {name: row for name, row in rows.items() if row is not _BAD}

    def _leaf(self, given: Given, wanted: Any, path: KeyPath) -> object:
        value, text = given.value, given.text
        if isinstance(value, str) and value.startswith(("env:", "file:")):
            if (value := self._resolve(value, given, path)) is _BAD:
                return _BAD
            text = True
        elif isinstance(value, list):
            resolved = [self._resolve(item, given, path) for item in value]
            if _BAD in resolved:
                return _BAD
            value = resolved
        try:
            return _convert(value, wanted, text=text)
        except ValueError as error:
            where = f"{error}, " if str(error) else ""
            expected = describe(wanted)
            kind = _kind(value)
            # A value of the right kind is out of bounds; saying what it is would only puzzle.
            numbers = kind.endswith("number") and "number" in expected
            plain = text or where or numbers or expected.startswith(kind)
            return self._wrong(path, f"{where}expected {expected}{'' if plain else f', got {kind}'}", given)

    def _opaque(self, node: Table | Given, path: KeyPath) -> object:
        """A setting for an adapter: whatever TOML can say, its references resolved."""
        if isinstance(node, Given):
            return self._resolve(node.value, node, path)
        inner = Extra()
        for name, entry in node.entries.items():
            if (value := self._opaque(entry, (*path, name))) is not _BAD:
                inner[name] = value
        return inner

    def _resolve(self, value: object, given: Given, path: KeyPath) -> object:
        """`value` with what its references stand for."""
        if isinstance(value, list):
            resolved = [self._resolve(item, given, path) for item in value]
            return _BAD if _BAD in resolved else resolved
        if isinstance(value, dict):
            table = Extra({str(name): self._resolve(item, given, path) for name, item in value.items()})
            return _BAD if _BAD in table.values() else table
        if not isinstance(value, str):
            return value
        if value.startswith("env:"):
            return self._variable(value.removeprefix("env:"), given, path)
        if value.startswith("file:"):
            return self._file(value.removeprefix("file:"), given, path)
        return value

    def _variable(self, name: str, given: Given, path: KeyPath) -> object:
        if not _VARIABLE.fullmatch(name):  # not shown: it may be the secret itself
            return self._wrong(path, "what follows `env:` is not the name of an environment variable", given)
        if name not in self._environ:
            return self._wrong(path, f"the environment variable {name} is not set", given)
        return self._environ[name] or self._wrong(path, f"the environment variable {name} is empty", given)

    def _file(self, name: str, given: Given, path: KeyPath) -> object:
        beside = Path(given.origin.name).parent if given.origin.kind == "file" else Path()
        place = beside / name
        try:
            with place.open("rb") as file:
                data = file.read(REFERENCE_BYTES_MAX + 1)
            text = data.decode().strip()
        except UnicodeDecodeError:
            return self._wrong(path, f"the file {place} is not UTF-8 text", given)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            return self._wrong(path, f"the file {place} can't be read ({reason})", given)
        if len(data) > REFERENCE_BYTES_MAX:
            return self._wrong(path, f"the file {place} is larger than {REFERENCE_BYTES_MAX} bytes", given)
        return text or self._wrong(path, f"the file {place} is empty", given)

    def _wrong(self, path: KeyPath, message: str, node: Table | Given) -> Any:
        self.report(path, message, origin=node.origin)
        return _BAD

    def _unknown(self, node: Table | Given, name: str, valid: list[str], path: KeyPath) -> None:
        origin = node.origin
        if near := nearest(name, valid):
            meant = (*path, near)
        else:
            meant = next((leaf for leaf in self._everywhere if leaf[-1] == name), ())
        if meant:
            shown = join_key(meant) if meant[:-1] != path else str(meant[-1])
            if origin is not None and origin.kind == "environment":
                shown = variable_for(meant)
            suggestion = f"did you mean `{shown}`?"
        else:
            names = ", ".join(f"`{known}`" for known in valid[:_NAMES_SHOWN_MAX])
            suggestion = f"{'here' if path else 'at the top'} may stand {names}"
        self.report((*path, name), "unknown key", origin=origin, suggestion=suggestion)


def nearest(name: str, valid: list[str]) -> str | None:
    """The one of `valid` that `name` most likely is a misspelling of, or None."""
    found = difflib.get_close_matches(name.lower().replace("-", "_"), valid, n=1)
    return found[0] if found else None


def variable_for(path: KeyPath) -> str:
    """The environment variable that overrides the setting at `path`."""
    return "__".join(["GATEWAY", *(re.sub(r"[^A-Z0-9]", "_", str(part).upper()) for part in path)])


def describe(wanted: Any) -> str:
    """What a setting of this type takes, in words."""
    wanted = _without_none(wanted)
    if wanted is Secret or wanted is str:
        return "a string"
    if get_origin(wanted) is tuple:
        return "a list of strings"
    info = msgspec.inspect.type_info(wanted)
    match info:
        case msgspec.inspect.LiteralType():
            values = get_args(wanted)  # in the order they are written in
            return "a string, one of " + ", ".join(f"`{value}`" for value in values)
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType(ge=low, gt=above, le=high):
            return "a whole number" + _bounds(low, above, high)
        case msgspec.inspect.FloatType(ge=low, gt=above, le=high):
            return "a number" + _bounds(low, above, high)
        case _:
            return "another value"


def _bounds(low: float | None, above: float | None, high: float | None) -> str:
    if high is not None:
        return f" from {low} to {high}"
    if above is not None:
        return f" above {above:g}"
    return f" of at least {low:g}" if low is not None else ""


def _convert(value: object, wanted: Any, *, text: bool) -> object:
    """`value` as the type `wanted`. A ValueError says which item of a list is wrong, if it was one."""
    if wanted is Secret:
        if not isinstance(value, str):
            raise ValueError
        return Secret(value) if value else None
    if text and get_origin(wanted) is tuple and isinstance(value, str):
        value = _split(value)
    try:
        if get_origin(wanted) is tuple and get_args(wanted)[0] is Secret:
            return tuple(Secret(item) for item in msgspec.convert(value, _TEXTS))
        made = msgspec.convert(value, wanted, strict=not text)
    except msgspec.ValidationError as error:
        item = re.search(r"\$\[(\d+)]", str(error))
        raise ValueError(f"item {int(item.group(1)) + 1} is not right" if item else "") from None
    if isinstance(made, float) and not math.isfinite(made):
        raise ValueError
    return made


def _split(text: str) -> object:
    """A list in an environment variable: JSON, or names with commas between."""
    if text.lstrip().startswith("["):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            raise ValueError from None
    return [item.strip() for item in text.split(",") if item.strip()]


def _without_none(wanted: Any) -> Any:
    """The type of a setting that may be left out."""
    if get_origin(wanted) in (Union, types.UnionType):
        wanted = next(member for member in get_args(wanted) if member is not type(None))
    return wanted


def _kind(value: object) -> str:
    names: dict[type, str] = {bool: "a boolean", int: "a whole number", float: "a number", str: "a string"}
    names |= {list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")


def _leaves(struct: type[msgspec.Struct], path: KeyPath = ()) -> typing.Iterator[KeyPath]:
    """Every fixed key below `struct`; rows of dictionaries have names of their own and are left out."""
    for field in msgspec.structs.fields(struct):
        wanted = _without_none(field.type)
        yield (*path, field.encode_name)
        if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
            yield from _leaves(wanted, (*path, field.encode_name))
