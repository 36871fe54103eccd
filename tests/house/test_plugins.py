"""plugins/README.md has the hooks as they are, with their exact signatures, and every key of the plugins that come along."""

import inspect
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from gateway import api
from gateway.plugins import HOOKS, load_plugins
from gateway.settings import Plugin, Settings
from gateway.testing import FAULTS
from gateway_plugins import otel, redact, request_log

PAGE = (Path(__file__).parents[2] / "plugins" / "README.md").read_text("utf-8")
PROTOCOLS = {
    "on_request": api.OnRequest,
    "on_attempt": api.OnAttempt,
    "on_head": api.OnHead,
    "on_settled": api.OnSettled,
}
TABLES = {"redact": redact._Table, "otel": otel._Table, "request_log": request_log._Table}


def signature(method) -> str:
    """As it stands in the source."""
    parameters = inspect.signature(method, eval_str=False).parameters.values()
    shown = ", ".join(
        each.name if each.name == "self" else f"{each.name}: {shown_type(each.annotation)}" for each in parameters
    )
    kind = "async def" if inspect.iscoroutinefunction(method) else "def"
    return f"{kind} {method.__name__}({shown}) -> {shown_type(inspect.signature(method).return_annotation)}"


def shown_type(annotation) -> str:
    if annotation is None:
        return "None"
    if annotation == api.Headers:
        return "Headers"
    text = (
        annotation.__name__
        if isinstance(annotation, type) and not hasattr(annotation, "__origin__")
        else str(annotation)
    )
    text = text.replace(str(api.Headers), "Headers")
    return re.sub(r"\b(?:[a-z_]+\.)+", "", text)


def documented() -> set[str]:
    return {text.replace("\\|", "|") for text in re.findall(r"`((?:async )?def [^`]+)`", PAGE)}


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_documented_as_it_is(hook: str) -> None:
    assert signature(getattr(PROTOCOLS[hook], hook)) in documented()


def test_what_else_a_plugin_has_is_documented_as_it_is() -> None:
    for method in (api.Plugin.configure, api.Lifecycle.start, api.Lifecycle.stop):
        assert signature(method) in documented()


def test_nothing_else_is_documented() -> None:
    names = {re.match(r"(?:async )?def (\w+)", text)[1] for text in documented()}  # type: ignore[index]

    assert names == {*HOOKS, "configure", "start", "stop"}


def shown_table(name: str) -> dict[str, object]:
    section = PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    text = section.partition("```toml\n")[2].partition("```")[0]
    return tomllib.loads(re.sub(r"^# (?=\w+ +=)", "", text, flags=re.MULTILINE))["plugins"][name]


@pytest.mark.parametrize("name", TABLES)
def test_every_key_is_documented_with_its_default(name: str) -> None:
    table = shown_table(name)

    assert table.keys() == {*TABLES[name].__struct_fields__}
    for field in msgspec.structs.fields(TABLES[name]):
        if field.default not in ("", ()) and isinstance(field.default, str | int | float):
            assert table[field.name] == field.default, field.name


@pytest.mark.parametrize("name", TABLES)
def test_what_is_documented_is_taken(name: str) -> None:
    table = shown_table(name)
    if "url" in table:
        del table["url"]

    (plugged,) = load_plugins(Settings(plugins={name: Plugin(extra=table)}))

    assert plugged.package.startswith("ai-gateway ")


def test_troubles_are_documented() -> None:
    source = inspect.getsource(__import__("gateway.hooks", fromlist=["hooks"]))

    for trouble in ("rejected", "failed", "late", "lost"):
        assert f'"{trouble}"' in source
        assert f"`{trouble}`" in PAGE


def test_every_fault_of_the_kit_is_in_the_adapters_page() -> None:
    page = (Path(__file__).parents[2] / "adapters" / "README.md").read_text("utf-8")

    for fault in FAULTS:
        assert f"| {fault.name} | {fault.promise} |" in page
