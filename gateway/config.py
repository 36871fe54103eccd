"""From files, the environment and the command line to `Settings`: the one loader of every command.

Later wins: the defaults in `gateway/settings.py`; providers whose usual variable is set; the configuration file;
`DATABASE_URL` and `REDIS_URL` where the file says nothing; `GATEWAY__SECTION__KEY` variables; command-line arguments.
Rules:
- The file is `--config`, else `$GATEWAY_CONFIG` (a file, or a directory that holds `gateway.toml`), else
  `./config/gateway.toml` where there is one. A file that was asked for must exist. A `plans.toml` and a `models.toml`
  beside it are read as well: they hold `[plans.*]` or `[models.*]` and nothing else.
- Nothing starts on a configuration with a fault in it: `InvalidConfig` names every fault, not only the first.
- This is the only module that reads the environment, and nothing here writes, connects or prints.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway.api import KnownProvider
from gateway.binding import Binder, Given, Origin, Problem, Table
from gateway.coherence import Rules
from gateway.errors import ConfigError
from gateway.settings import (
    Settings,
)
from gateway.toml_positions import KeyPath, Position, join_key, scan, split_key

DEFAULT_FILE = "config/gateway.toml"
FILE_NAME = "gateway.toml"
#: Files beside it, each for one table alone.
BESIDE = {"plans": "plans.toml", "models": "models.toml"}
FILE_BYTES_MAX = 8 * 1024 * 1024

_PREFIX = "GATEWAY__"
_PROXY_VARIABLES = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})
_STORE_VARIABLES = {"DATABASE_URL": ("database", "url"), "REDIS_URL": ("redis", "url")}


class InvalidConfig(ConfigError):
    """The configuration is not usable."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=_order))
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Settings, and where they came from."""

    settings: Settings
    #: The files that were read.
    files: tuple[str, ...] = ()
    #: What was decided on the operator's behalf: worth a line at start-up.
    notes: tuple[str, ...] = ()
    #: What is permitted and probably not meant.
    warnings: tuple[str, ...] = ()
    #: What `load` was called with, so that `reload` can do it again.
    path: str | None = None
    overrides: Mapping[str, object] = field(default_factory=dict, repr=False)
    known: Mapping[str, KnownProvider] = field(default_factory=dict, repr=False)
    positions: Mapping[KeyPath, tuple[str, Position]] = field(default_factory=dict, repr=False)

    def locate(self, key: str) -> tuple[str, int] | None:
        """File and line of a dotted key such as `providers.local.weight`; where the file has no such key, those of
        the table around it. None for what no file mentions.
        """
        parts = split_key(key)
        # `providers` alone says nothing about `providers.local.weight`.
        shortest = 1 if len(parts) < 3 else 2
        for length in range(len(parts), shortest - 1, -1):
            if found := self.positions.get(parts[:length]):
                return found[0], found[1].line
        return None

    def explain(self, error: ConfigError) -> str:
        """The message of an error about a setting that only its user can judge, such as an adapter, with file and
        line in front. `param` is the setting's dotted key.
        """
        # What the command line says is no file's fault.
        place = self.locate(error.param) if error.param and error.param not in self.overrides else None
        return f"{place[0]}:{place[1]}: {error.message}" if place else error.message

    def reload(self) -> "Loaded":
        """The same look-up again: what the files and the environment say now."""
        return load(self.path, overrides=self.overrides, known=self.known)


def load(
    path: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    known: Mapping[str, KnownProvider] | None = None,
) -> Loaded:
    """Read the configuration.

    `overrides` are dotted keys and values from the command line; None values are left out, so that arguments nobody
    gave can be passed as they are. `known` are the providers that installed adapters know by name.

    Raises:
        InvalidConfig: with every fault found.
    """
    environ = os.environ if environ is None else environ
    overrides = {key: value for key, value in (overrides or {}).items() if value is not None}
    known = known or {}
    source = _Source(environ)
    files = []
    if (file := _find(path, environ)) is not None:
        files.append(str(file))
        source.read(file)
        for table, name in BESIDE.items():
            if (other := file.with_name(name)) != file and other.is_file():
                files.append(str(other))
                source.read(other, only=table)
    source.variables()
    source.arguments(overrides)
    source.known_providers(known)

    binder = Binder(Settings, environ=environ, positions={key: place for key, (_, place) in source.positions.items()})
    for problem in source.problems:
        binder.report(problem.path, problem.message, origin=problem.origin)
    rules = Rules(binder.bind(source.table, Settings), source.table, binder)
    settings = rules.complete()
    rules.check(settings)
    if binder.problems:
        raise InvalidConfig(binder.problems)
    return Loaded(
        settings=settings,
        files=tuple(files),
        notes=tuple(source.notes),
        warnings=(*source.warnings, *rules.warnings),
        path=path,
        overrides=overrides,
        known=known,
        positions=source.positions,
    )


def proxy_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that say which proxy leads outside, as they are; what they mean is the client's business."""
    environ = os.environ if environ is None else environ
    return {name: value for name, value in environ.items() if name.lower() in _PROXY_VARIABLES}


def colour_wanted(environ: Mapping[str, str] | None = None) -> bool:
    """False where `NO_COLOR` is set to anything, or the terminal is a dumb one."""
    environ = os.environ if environ is None else environ
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def _find(path: str | None, environ: Mapping[str, str]) -> Path | None:
    asked = path or environ.get("GATEWAY_CONFIG")
    if not asked:
        default = Path(DEFAULT_FILE)
        return default if default.is_file() else None
    file = Path(asked)
    if file.is_dir():
        file /= FILE_NAME
    if not file.exists():
        who = "--config" if path else "GATEWAY_CONFIG"
        raise ConfigError(f"{who}: there is no file {file}")
    return file


class _Source:
    """Lays one source over the other in a single table."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.table = Table()
        self.positions: dict[KeyPath, tuple[str, Position]] = {}
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.problems: list[Problem] = []
        self._environ = environ

    def read(self, file: Path, *, only: str = "") -> None:
        """Take a TOML file; one that may hold `only` that table, or any."""
        try:
            with file.open("rb") as stream:
                data = stream.read(FILE_BYTES_MAX + 1)
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{file}:{line}: is not UTF-8 text") from None
        except OSError as error:
            raise ConfigError(f"{file}: can't be read ({error.strerror})") from None
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"{file}: is larger than {FILE_BYTES_MAX} bytes")
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(_syntax(file, text, str(error))) from None
        except RecursionError:
            raise ConfigError(f"{file}: is nested too deeply") from None
        positions = {key: (str(file), position) for key, position in scan(text).items()}
        if only:
            values = self._keep_only(only, values, positions)
        self.positions |= positions
        self._take(self.table, values, (), str(file))

    def _keep_only(
        self, only: str, values: Mapping[str, object], positions: Mapping[KeyPath, tuple[str, Position]]
    ) -> dict[str, object]:
        for name in values:
            place = positions.get((name,))
            origin = Origin("file", place[0], place[1].line) if place else None
            if name != only:
                self._refuse((name,), f"only [{only}.*] may stand in this file", origin)
            elif self.table.get(only) is not None:
                self._refuse((name,), f"the main configuration file has [{only}.*] as well; keep them in one", origin)
        return {only: values[only]} if only in values and self.table.get(only) is None else {}

    def _take(self, table: Table, values: Mapping[str, object], path: KeyPath, file: str) -> None:
        for name, value in values.items():
            place = self.positions.get((*path, name))
            origin = Origin("file", file, place[1].line if place else 0)
            if isinstance(value, dict):
                inner = table.entries[name] = Table(origin)
                self._take(inner, value, (*path, name), file)
            else:
                table.entries[name] = Given(value, origin)

    def variables(self) -> None:
        """Take `DATABASE_URL`, `REDIS_URL` and every `GATEWAY__...` variable."""
        for variable, store in _STORE_VARIABLES.items():
            if self._environ.get(variable) and self.table.get(*store) is None:
                self.table.put(store, Given(self._environ[variable], Origin("environment", variable), text=True))
                self.notes.append(f"{join_key(store)} is taken from {variable}")
        for variable in sorted(name for name in self._environ if name.startswith(_PREFIX)):
            parts = tuple(variable.removeprefix(_PREFIX).lower().split("__"))
            origin = Origin("environment", variable)
            if path := self._row(parts, origin):
                self.table.put(path, Given(self._environ[variable], origin, text=True))
        for variable in sorted(self._environ.keys() & _near_variables()):
            self.warnings.append(f"{variable} is not read: two underscores stand before and after a section's name")

    def _row(self, parts: tuple[str, ...], origin: Origin) -> tuple[str, ...]:
        """`parts` with the row that is meant, or nothing: a variable can't say `gpt-4.1`, only `GPT_4_1`."""
        if len(parts) < 2 or parts[0] not in ("providers", "models"):
            return parts
        rows = self.table.get(parts[0])
        names = [name for name in (rows.entries if isinstance(rows, Table) else ()) if _plain(name) == parts[1]]
        if len(names) > 1:
            either = " and ".join(f"`{name}`" for name in names)
            return self._refuse(parts, f"may mean {either}; set it in the file", origin)
        if not names and parts[0] == "models":
            return self._refuse(parts, "no file has a row for this model, and a variable can't make one", origin)
        return (parts[0], names[0] if names else parts[1], *parts[2:])

    def _refuse(self, parts: tuple[str, ...], message: str, origin: Origin | None) -> tuple[str, ...]:
        self.problems.append(Problem(path=parts, key=join_key(parts), message=message, origin=origin))
        return ()

    def arguments(self, overrides: Mapping[str, object]) -> None:
        """Take what the command line says."""
        for key, value in overrides.items():
            path = tuple(str(part) for part in split_key(key))
            flag = "--" + path[-1].replace("_", "-")
            self.table.put(path, Given(value, Origin("argument", flag), text=isinstance(value, str)))

    def known_providers(self, known: Mapping[str, KnownProvider]) -> None:
        """Fill in what adapters know of a provider by its name (or the `row` it names), and add those whose usual
        variable is set.
        """
        switch = self.table.get("providers_from_environment")
        wanted = not isinstance(switch, Given) or str(switch.value).lower() not in ("false", "0")
        tables = self.table.get("providers")
        named = list(tables.entries) if isinstance(tables, Table) else []
        for name in named:
            row = self.table.get("providers", name, "row")
            provider = known.get(str(row.value) if isinstance(row, Given) else name)
            if provider is not None and isinstance(self.table.get("providers", name), Table):
                self._known_provider(name, provider)
                given = any(self.table.get("providers", name, key) is not None for key in ("api_key", "api_keys"))
                variable = self._variable_of(provider)
                if variable and not given:
                    self._set_key(name, variable)
                    self.notes.append(f"provider {name} takes its key from {variable}")
        for name, provider in known.items():
            if wanted and name not in named and (variable := self._variable_of(provider)):
                self._known_provider(name, provider)
                self._set_key(name, variable)
                self.notes.append(f"provider {name} is enabled by {variable}")

    def _variable_of(self, known: KnownProvider) -> str:
        """The first of its variables that is set; empty where none is."""
        return next((name for name in (known.variable, *known.other_variables) if self._environ.get(name)), "")

    def _known_provider(self, name: str, known: KnownProvider) -> None:
        origin = Origin("environment", known.variable)
        self._default(("providers", name, "adapter"), known.adapter, origin)
        adapter = self.table.get("providers", name, "adapter")
        if isinstance(adapter, Given) and adapter.value == known.adapter:
            self._default(("providers", name, "base_url"), known.base_url, origin)

    def _set_key(self, name: str, variable: str) -> None:
        key = self._environ[variable]
        self.table.put(("providers", name, "api_key"), Given(key, Origin("environment", variable)))

    def _default(self, path: tuple[str, ...], value: str, origin: Origin) -> None:
        if self.table.get(*path) is None:
            self.table.put(path, Given(value, origin))


def _near_variables() -> set[str]:
    """What is written instead of `GATEWAY__SECTION__KEY`."""
    return {
        f"GATEWAY_{section.name}_{key.name}".upper()
        for section in msgspec.structs.fields(Settings)
        if isinstance(section.type, type) and issubclass(section.type, msgspec.Struct)
        for key in msgspec.structs.fields(section.type)
    }


def _order(problem: Problem) -> tuple[bool, str, int]:
    """Faults of a file come first, in its order."""
    origin = problem.origin
    return (
        origin is None or not origin.line,
        origin.name if origin and origin.line else "",
        origin.line if origin else 0,
    )


def _plain(name: str) -> str:
    """How the name of a row is spelled within a variable."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def _syntax(file: Path, text: str, message: str) -> str:
    """`file:line: what` from tomllib's `what (at line L, column C)`."""
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if found is None:
        return f"{file}: {message}"
    line = found.group(2) or str(text.count("\n") + 1)
    column = f", column {found.group(3)}" if found.group(3) else ""
    return f"{file}:{line}{column}: {found.group(1)}"
