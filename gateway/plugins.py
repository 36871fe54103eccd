"""Finds, checks and configures the plugins of a configuration. What calls them is in `hooks.py`.

Loading holds a plugin to the contract in `gateway/api.py` and names its package in every refusal. Those that rewrite
bodies come first: whoever only reads one sees what will leave. Among themselves they keep the configuration's order.
"""

import difflib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Final

from gateway.api import (
    ConfigError,
    OnAttempt,
    OnHead,
    OnRequest,
    OnSettled,
    Plugin,
)
from gateway.registry import PLUGINS, Discover, discover, distribution, installed, load_class
from gateway.settings import Plugin as PluginSettings
from gateway.settings import Settings

#: Each hook, and whether it may wait.
HOOKS: Final = {"on_request": True, "on_attempt": False, "on_head": False, "on_settled": True}
_PROTOCOLS: Final = {"on_request": OnRequest, "on_attempt": OnAttempt, "on_head": OnHead, "on_settled": OnSettled}


@dataclass(frozen=True, slots=True)
class Plugged:
    """A configured plugin."""

    #: Of its table.
    name: str
    plugin: Plugin
    package: str
    timeout_s: float
    hooks: frozenset[str]
    reads_body: bool
    rewrites_body: bool
    essential: bool


def load_plugins(settings: Settings, *, entry_points: Discover = installed) -> tuple[Plugged, ...]:
    """Import, check and configure every plugin that is on, in the order in which they are called.

    Raises:
        ConfigError: naming the table, and the package where it is the package's fault.
    """
    found = discover(PLUGINS, entry_points=entry_points)
    plugged = []
    for name, table in settings.plugins.items():
        if table.enabled:
            wanted = table.plugin or name
            if wanted not in found:
                raise _unknown(name, table, found)
            plugged.append(_configured(name, table, load_plugin(found[wanted]), found[wanted]))
    return tuple(sorted(plugged, key=lambda each: not each.rewrites_body))


def load_plugin(entry_point: EntryPoint) -> type[Plugin]:
    """The plugin class an entry point names, held to the contract.

    Raises:
        ConfigError: it can't be imported, was written for another API version, or is not shaped like a plugin.
    """
    loaded, who = load_class(entry_point, kind="plugin")
    if not callable(getattr(loaded, "configure", None)):
        raise ConfigError(f"{who} has no configure")
    if (fault := _shape_fault(loaded)) is not None:
        raise ConfigError(f"{who} {fault}")
    return loaded


def _shape_fault(loaded: type) -> str | None:
    """What is wrong with the hooks of a class; None where nothing is."""
    own = [name for name in dir(loaded) if name.startswith("on_")]
    for name in own:
        if name not in HOOKS:
            near = difflib.get_close_matches(name, HOOKS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; hooks are {', '.join(HOOKS)}"
            return f"has a method {name}, which is no hook{hint}"
        method = getattr(loaded, name)
        if not callable(method) or inspect.iscoroutinefunction(method) is not HOOKS[name]:
            kind = "an async function" if HOOKS[name] else "a plain function: it must not wait"
            return f"has a hook {name} that is not {kind}"
        wanted = [*inspect.signature(getattr(_PROTOCOLS[name], name)).parameters]
        try:
            inspect.signature(method).bind(*wanted)
        except TypeError:
            return f"has a hook {name} that does not take ({', '.join(wanted)})"
    return None if own else f"has no hook: {', '.join(HOOKS)}"


def _configured(name: str, table: PluginSettings, loaded: type[Plugin], entry_point: EntryPoint) -> Plugged:
    package = distribution(entry_point)
    try:
        plugin = loaded()
        plugin.configure(table.extra)
    except ConfigError as error:
        key = f"plugins.{name}.{error.param}" if error.param else f"plugins.{name}"
        raise ConfigError(f"{key}: {error.message}", param=key) from error
    except Exception as error:
        raise ConfigError(
            f'plugins.{name}: plugin "{entry_point.name}" of {package} failed to configure: '
            f"{type(error).__name__}: {error}",
            param=f"plugins.{name}",
        ) from error
    rewrites = bool(getattr(plugin, "rewrites_body", False))
    return Plugged(
        name=name,
        plugin=plugin,
        package=package,
        timeout_s=table.timeout_s,
        hooks=frozenset(hook for hook in HOOKS if hasattr(plugin, hook)),
        reads_body=rewrites or bool(getattr(plugin, "reads_body", False)),
        rewrites_body=rewrites,
        essential=bool(getattr(plugin, "essential", False)),
    )


def _unknown(name: str, table: PluginSettings, found: Iterable[str]) -> ConfigError:
    wanted = table.plugin or name
    key = f"plugins.{name}.plugin" if table.plugin else f"plugins.{name}"
    names = sorted(found)
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return ConfigError(
        f'{key}: no plugin "{wanted}" is installed; {hint}there are: {", ".join(names) or "none"}', param=key
    )
