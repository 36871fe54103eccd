"""The tools of a chat request, and which of them the model is to call, as Anthropic has them.

Rules:
- A function's schema travels as it is, every member of it; one that does not say so is an object's.
- A tool that takes plain text becomes one that takes an object with the text in it, and is turned back in the answer.
- Tools of Anthropic's own, which their dated types tell, are told as they are.
"""

import re
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from gateway.api import BadRequest
from gateway_adapters.anthropic.chat import (
    NOTHING,
    AllowedTools,
    Custom,
    Function,
    FunctionCall,
    Named,
    Tool,
    ToolChoice,
    convert,
)
from gateway_adapters.anthropic.content import mark
from gateway_adapters.anthropic.names import CUSTOM_INPUT, write_name

_Entry = dict[str, Any]  # Any: the values of JSON

_ANY_OBJECT = msgspec.Raw(b'{"type":"object","properties":{}}')
_TEXT_OBJECT = msgspec.Raw(
    b'{"type":"object","properties":{"%b":{"type":"string"}},"required":["%b"],"additionalProperties":false}'
    % (CUSTOM_INPUT.encode(), CUSTOM_INPUT.encode())
)
_OBJECT_TYPE = msgspec.Raw(b'"object"')
#: Anthropic's own types end in a date.
_OWN_TYPE = re.compile(r"[a-z_]+_20\d{6}")
_MODES = {"none": "none", "auto": "auto", "required": "any", "any": "any"}


class Toolbox:
    """`tools` and `tool_choice` of one request."""

    def __init__(self) -> None:
        #: As they are written; one more may be added.
        self.tools: list[_Entry | msgspec.Raw] = []
        self.dropped: list[str] = []
        self._mode = "auto"
        self._chosen = ""
        self._said = False
        self._one_at_a_time = False

    @classmethod
    def of(cls, given: Mapping[str, msgspec.Raw], *, strict: bool) -> Self:
        """What the request says; `strict` where the model can be held to a schema.

        Raises:
            BadRequest: a tool or the choice is malformed, or of a kind that can't be told.
        """
        box = cls()
        for number, raw in enumerate(convert(given.get("tools", msgspec.Raw(b"[]")), list[msgspec.Raw], "tools")):
            box._add(raw, f"tools[{number}]", strict=strict)
        for function in convert(given.get("functions", msgspec.Raw(b"[]")), list[Function], "functions"):
            box.tools.append(box._function(function, "functions", strict=strict))
        if (choice := given.get("tool_choice")) is not None:
            box._choose(choice)
        elif (call := given.get("function_call")) is not None:
            box._choose_function(call)
        box._one_at_a_time = bytes(given.get("parallel_tool_calls", NOTHING)) == b"false"
        return box

    @property
    def forced(self) -> bool:
        """True where the model may not answer without calling one."""
        return bool(self.tools) and self._mode in ("any", "tool")

    def answer_by(self, name: str, schema: msgspec.Raw, description: str | None) -> bool:
        """Have the answer given as the input of a tool. False where the caller wants one of its own called."""
        if self.forced:
            return False
        entry = {"name": name, "description": description or "Give the answer.", "input_schema": _object(schema)}
        alone = not self.tools or self._mode == "none"
        self.tools.append(entry)
        self._said = True
        self._mode, self._chosen = ("tool", name) if alone else ("any", "")
        # One answer is wanted, not two.
        self._one_at_a_time = self._one_at_a_time or alone
        return True

    def choice(self) -> _Entry | None:
        """Anthropic's `tool_choice`, None where nothing has to be said."""
        if not self._said and not self._one_at_a_time:
            return None
        choice: _Entry = {"type": self._mode}
        if self._mode == "tool":
            choice["name"] = self._chosen
        if self._one_at_a_time and self._mode != "none":
            choice["disable_parallel_tool_use"] = True
        return choice

    def _add(self, raw: msgspec.Raw, param: str, *, strict: bool) -> None:
        tool = convert(raw, Tool, param)
        if tool.function is not None and tool.type == "function":
            self.tools.append(mark(self._function(tool.function, param, strict=strict), tool.cache_control))
        elif tool.custom is not None and tool.type == "custom":
            self.tools.append(mark(_custom(tool.custom, param), tool.cache_control))
        elif _OWN_TYPE.fullmatch(tool.type):
            self.tools.append(raw)
        else:
            shown = tool.type[:40] if tool.type.isprintable() else "?"
            raise BadRequest(
                f"This model's provider has no tool of type `{shown}`.",
                param=f"{param}.type",
                code="unsupported_value",
            )

    def _function(self, function: Function, param: str, *, strict: bool) -> _Entry:
        entry: _Entry = {"name": write_name(function.name, param=f"{param}.function.name")}
        if function.description:
            entry["description"] = function.description
        entry["input_schema"] = _object(function.parameters)
        if function.strict:
            if strict:
                entry["strict"] = True
            else:
                self.dropped.append("strict")
        return mark(entry, function.cache_control)

    def _choose(self, raw: msgspec.Raw) -> None:
        if bytes(raw).startswith(b'"'):
            self._set_mode(convert(raw, str, "tool_choice"))
            return
        choice = convert(raw, ToolChoice, "tool_choice")
        if choice.allowed_tools is not None:
            self._allow(choice.allowed_tools)
        elif (named := choice.function or choice.custom) is not None:
            self._set_tool(named.name, custom=choice.custom is not None)
        else:
            self._set_mode(choice.type)

    def _choose_function(self, raw: msgspec.Raw) -> None:
        """The same for `functions`, which came before tools."""
        if bytes(raw).startswith(b'"'):
            self._set_mode(convert(raw, str, "function_call"))
        else:
            self._set_tool(convert(raw, FunctionCall, "function_call").name, custom=False)

    def _set_mode(self, mode: str) -> None:
        if mode not in _MODES:
            raise BadRequest("There is no such `tool_choice`.", param="tool_choice", code="invalid_value")
        self._mode, self._said = _MODES[mode], True

    def _set_tool(self, name: str, *, custom: bool) -> None:
        self._mode, self._said = "tool", True
        self._chosen = write_name(name, custom=custom, param="tool_choice")

    def _allow(self, allowed: AllowedTools) -> None:
        """Leave the others out: Anthropic can't be told of tools that may not be called."""
        self._set_mode(allowed.mode)
        names = {
            write_name(named.name, custom=tool.custom is not None, param="tool_choice")
            for tool in allowed.tools
            if (named := _named(tool.function, tool.custom)) is not None
        }
        self.tools = [entry for entry in self.tools if isinstance(entry, dict) and entry["name"] in names]


def _named(function: Named | None, custom: Named | None) -> Named | None:
    return function or custom


def _custom(custom: Custom, param: str) -> _Entry:
    entry: _Entry = {"name": write_name(custom.name, custom=True, param=f"{param}.custom.name")}
    if custom.description:
        entry["description"] = custom.description
    entry["input_schema"] = _TEXT_OBJECT
    return entry


def _object(schema: msgspec.Raw) -> msgspec.Raw | dict[str, msgspec.Raw]:
    """A schema that says that it is an object's."""
    if schema is NOTHING or bytes(schema) in (b"null", b"{}"):
        return _ANY_OBJECT
    members = convert(schema, dict[str, msgspec.Raw], "parameters")
    return schema if "type" in members else {"type": _OBJECT_TYPE, **members}
