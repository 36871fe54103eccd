"""Everything that can be said of an installed package with adapters or plugins in it, as lines of a report.

Rules:
- A package is named as it was installed, or by the name of an adapter or plugin in it.
- Everything is tried, whatever failed before it, as long as there is something to try.
- Nothing is connected to.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal, NamedTuple

from gateway.api import (
    API_VERSION,
    Adapter,
    ConfigError,
    Known,
    Lifecycle,
    ProviderConfig,
    Renewing,
    Secret,
    Translator,
)
from gateway.plugins import HOOKS, load_plugin
from gateway.registry import ADAPTERS, PLUGINS, Discover, distribution, installed, load_adapter
from gateway.testing.cases import KINDS, Case, CaseFailed, cases, fill, replay
from gateway.testing.faults import FAULTS, FaultFound, Subject, conversations_of

#: What an adapter is configured with where nobody says.
BASE_URL = "https://provider.example/v1"
API_KEY = "sk-check-0123456789abcdef"


class Line(NamedTuple):
    """One thing that was looked at."""

    state: Literal["ok", "warn", "fail", "info"]
    subject: str
    found: str


def examine(
    package: str, *, table: Mapping[str, object] | None = None, folder: Path | None = None, find: Discover = installed
) -> Iterator[Line]:
    """The report on `package`. `table` configures its adapters; `folder` has their golden cases.

    Raises:
        ConfigError: no such package has an adapter or a plugin.
    """
    everything = [each for group in (ADAPTERS, PLUGINS) for each in find(group)]
    own = [each for each in everything if _is_of(each, package)]
    if not own:
        own = [each for each in everything if each.name == package]
    if not own:
        names = ", ".join(sorted({each.dist.name for each in everything if each.dist is not None}))
        raise ConfigError(f'no package "{package}" with an adapter or a plugin is installed; there are: {names}')
    yield Line("info", "package", distribution(own[0]))
    for entry_point in own:
        rivals = [
            each
            for each in everything
            if each.group == entry_point.group and each.name == entry_point.name and each is not entry_point
        ]
        kind = "adapter" if entry_point.group == ADAPTERS else "plugin"
        yield Line("info", f"{kind} {entry_point.name}", entry_point.value)
        if rivals:
            packages = ", ".join(distribution(each) for each in rivals)
            yield Line("fail", "name", f'"{entry_point.name}" is claimed by {packages} as well')
        else:
            yield Line("ok", "name", f'"{entry_point.name}" is nobody else\'s')
        if kind == "adapter":
            yield from _adapter(entry_point, table, folder)
        else:
            yield from _plugin(entry_point)


def _is_of(entry_point: EntryPoint, package: str) -> bool:
    return entry_point.dist is not None and _normal(entry_point.dist.name) == _normal(package)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _plugin(entry_point: EntryPoint) -> Iterator[Line]:
    try:
        plugin = load_plugin(entry_point)
    except ConfigError as error:
        yield Line("fail", "contract", error.message)
        return
    yield Line("ok", "API version", f"{plugin.API}, as this gateway has")
    yield Line("ok", "hooks", ", ".join(hook for hook in HOOKS if hasattr(plugin, hook)))
    for flag, what in (("rewrites_body", "rewrites bodies"), ("reads_body", "reads bodies")):
        if getattr(plugin, flag, False):
            yield Line("warn", "bodies", f"it {what}: requests leave the path on which bytes are not touched")
            break
    if issubclass(plugin, Lifecycle):
        yield Line("info", "life", "is started and stopped")


def _adapter(entry_point: EntryPoint, table: Mapping[str, object] | None, folder: Path | None) -> Iterator[Line]:
    try:
        adapter = load_adapter(entry_point)
    except ConfigError as error:
        yield Line("fail", "contract", error.message)
        return
    yield Line("ok", "API version", f"{adapter.API}, as this gateway has ({API_VERSION})")
    try:
        paths = [] if folder is None else [path for path in cases(folder) if _is_about(path, adapter)]
        config = _config(adapter, table, paths)
        made = adapter()
        made.configure(config)
    except ConfigError as error:
        key = f"{error.param}: " if error.param else ""
        yield Line("fail", "table", f"{key}{error.message} (give a table it takes by --table FILE)")
        return
    except CaseFailed as error:
        yield Line("fail", "cases", str(error))
        return
    except Exception as error:  # noqa: BLE001  a third party's code: whatever it raises is what is reported
        yield Line("fail", "table", f"configure raised {type(error).__name__}: {error}")
        return
    yield from _facts(adapter, made)
    yield from _cases(adapter, paths)
    subject = Subject(adapter, config, conversations_of(adapter, config, paths, adapters={adapter.ID: adapter}))
    if not subject.answers:
        yield Line("warn", "answers", "none is known to make faults of: give golden cases by --cases DIR")
    for fault in FAULTS:
        try:
            fault.try_on(subject)
        except FaultFound as found:
            yield Line("fail", fault.name, str(found))
        except Exception as error:  # noqa: BLE001  a third party's code: whatever it raises is what is reported
            yield Line("fail", fault.name, f"{type(error).__name__}: {error}")
        else:
            yield Line("ok", fault.name, fault.promise)


def _facts(adapter: type[Adapter], made: Adapter) -> Iterator[Line]:
    names = ", ".join(sorted(made.dialects))
    yield Line("ok" if isinstance(made.dialects, frozenset) else "fail", "dialects", names or "none natively")
    if isinstance(made, Translator):
        yield Line("ok", "translates", ", ".join(sorted(made.translates)) or "nothing")
    if not made.dialects and not getattr(made, "translates", None):
        yield Line("fail", "dialects", "it serves none: neither dialects nor translates names any")
    hooks = {"start, stop": Lifecycle, "renewal, renewed": Renewing, "known": Known}
    if optional := [name for name, protocol in hooks.items() if isinstance(made, protocol)]:
        yield Line("info", "optional", "; ".join(optional))


def _cases(adapter: type[Adapter], paths: Sequence[Path]) -> Iterator[Line]:
    failed = 0
    for path in paths:
        try:
            replay(path, adapters={adapter.ID: adapter})
        except (CaseFailed, ConfigError) as error:
            failed += 1
            yield Line("fail", f"case {path.stem}", str(error))
        except KeyError as error:
            failed += 1
            yield Line(
                "fail", f"case {path.stem}", f"has no section {error.args[0]}; --fill writes what the adapter does"
            )
    if paths and not failed:
        yield Line("ok", "cases", f"{len(paths)} replayed whole, byte by byte and in random pieces")
    if missing := sorted(KINDS - {path.stem for path in paths}):
        yield Line("warn", "cases", f"there is none called {', '.join(missing)}")


def fill_cases(package: str, folder: Path, *, find: Discover = installed) -> Iterator[Line]:
    """Write what the adapters of `package` do into the cases that do not say so yet.

    Raises:
        ConfigError: it has no adapter that can be used.
    """
    adapters = {
        each.name: load_adapter(each) for each in find(ADAPTERS) if _is_of(each, package) or each.name == package
    }
    for path in cases(folder):
        try:
            if names := fill(path, adapters=adapters):
                yield Line("warn", f"case {path.stem}", f"wrote {', '.join(names)}: read it before you keep it")
        except (CaseFailed, ConfigError) as error:
            yield Line("fail", f"case {path.stem}", str(error))


def _is_about(path: Path, adapter: type[Adapter]) -> bool:
    return Case(path, adapters={adapter.ID: adapter}).adapter_name == adapter.ID


def _config(adapter: type[Adapter], table: Mapping[str, object] | None, paths: Sequence[Path]) -> ProviderConfig:
    """From the table that was given, else from the first case, else what most adapters take."""
    if table is None:
        if paths:
            return Case(paths[0], adapters={adapter.ID: adapter}).config
        return ProviderConfig(name="check", base_url=BASE_URL, api_key=Secret(API_KEY), extra={})
    extra = {name: value for name, value in table.items() if name not in ("adapter", "base_url", "api_key")}
    base_url, api_key = table.get("base_url"), table.get("api_key")
    return ProviderConfig(
        name="check",
        base_url=str(base_url) if base_url else None,
        api_key=Secret(str(api_key)) if api_key else None,
        extra=extra,
    )
