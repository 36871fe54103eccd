"""Whether the echo provider calls a tool instead of saying something back, and with which arguments.

A tool is called where `tool_choice` is "required" or names one, or where the last message is a user's with the words
`call NAME` in it. Its arguments are the least that its schema takes: the required members, each with its type's
nothing. A tool's answer is never answered with the same call again, unless `tool_choice` insists.
"""

import re
from typing import Any, Final

import msgspec

_CALL: Final = re.compile(r"\bcall\s+([A-Za-z0-9_-]{1,64})")
#: Objects in objects are filled so deep.
_DEPTH_MAX: Final = 4
_NOTHING: Final[dict[object, object]] = {"integer": 0, "number": 0, "boolean": False, "array": [], "null": None}


def choose(tools: object, tool_choice: object, asked: str) -> tuple[str, str] | None:
    """The tool to call and its arguments, as JSON; None where none is. `asked` is the last message, if a user's."""
    known: dict[str, object] = {}
    for tool in tools if isinstance(tools, list) else []:
        function = _members(_members(tool).get("function"))
        name = function.get("name")
        if isinstance(name, str):
            known[name] = function.get("parameters")
    named = _members(_members(tool_choice).get("function")).get("name")
    wanted = _CALL.search(asked)
    if named is None and wanted is not None and tool_choice != "none":
        named = wanted[1]
    if named not in known:
        if tool_choice != "required" or not known:
            return None
        named = next(iter(known))
    return str(named), msgspec.json.encode(_fill(_members(known[named]), _DEPTH_MAX)).decode()


def _fill(schema: dict[str, Any], depth: int) -> dict[str, object]:  # Any: JSON
    """The smallest object of this schema, as far as plain schemas go."""
    required = schema.get("required")
    properties = _members(schema.get("properties"))
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    return {name: _least(_members(properties.get(name)), depth - 1) for name in names}


def _least(schema: dict[str, Any], depth: int) -> object:  # Any: JSON
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return choices[0]
    kind = schema.get("type")
    if kind == "object":
        return _fill(schema, depth) if depth else {}
    return _NOTHING.get(kind, "") if isinstance(kind, str) else ""


def _members(value: object) -> dict[str, Any]:  # Any: JSON
    return value if isinstance(value, dict) else {}
