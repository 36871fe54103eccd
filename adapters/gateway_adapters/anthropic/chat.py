"""The members of a chat completion request that Anthropic can be told and not every provider: what `chat_request.py`
does not read, or not as much of.

What a member may be is what OpenAI's reference says, and a little of what common clients send besides. Values that
travel on as they are stay raw, so that a schema keeps its order and a number its digits.

Source: OpenAI's API reference, "Create chat completion"; OpenRouter's on `reasoning_details` and `cache_control`.
"""

from functools import cache
from typing import Any, TypeVar

import msgspec

from gateway.api import BadRequest
from gateway_adapters import chat_request

NOTHING = chat_request.NONE
_T = TypeVar("_T")


class Part(chat_request.Part):
    """A part of a message's content. Some clients send Anthropic's own blocks through."""

    source: msgspec.Raw = NOTHING
    title: msgspec.Raw = NOTHING
    context: msgspec.Raw = NOTHING
    citations: msgspec.Raw = NOTHING


Content = str | list[Part | str] | None


class FunctionCall(msgspec.Struct, frozen=True):
    name: str
    #: JSON within a string; some send the object itself.
    arguments: msgspec.Raw = NOTHING


class CustomCall(msgspec.Struct, frozen=True):
    name: str
    input: str = ""


class ToolCall(msgspec.Struct, frozen=True):
    id: str | None = None
    type: str | None = None
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """A part of what a model thought, as OpenRouter's clients know it."""

    type: str = ""
    text: str | None = None
    signature: str | None = None
    data: str | None = None
    format: str | None = None
    index: int | None = None


class ThinkingBlock(msgspec.Struct, frozen=True):
    """The same as LiteLLM's clients know it: Anthropic's own block."""

    type: str = ""
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class Message(msgspec.Struct, frozen=True):
    role: str
    content: Content = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    function_call: FunctionCall | None = None
    reasoning_details: list[Reasoning] | None = None
    thinking_blocks: list[ThinkingBlock] | None = None
    cache_control: msgspec.Raw = NOTHING


class Function(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: msgspec.Raw = NOTHING
    strict: bool | None = None
    cache_control: msgspec.Raw = NOTHING


class Custom(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None


class Tool(msgspec.Struct, frozen=True):
    type: str = "function"
    function: Function | None = None
    custom: Custom | None = None
    cache_control: msgspec.Raw = NOTHING


class Named(msgspec.Struct, frozen=True):
    name: str


class AllowedTool(msgspec.Struct, frozen=True):
    function: Named | None = None
    custom: Named | None = None


class AllowedTools(msgspec.Struct, frozen=True):
    mode: str = "auto"
    tools: list[AllowedTool] = []


class ToolChoice(msgspec.Struct, frozen=True):
    type: str = "function"
    function: Named | None = None
    custom: Named | None = None
    allowed_tools: AllowedTools | None = None


class ReasoningWish(msgspec.Struct, frozen=True):
    """OpenRouter's `reasoning`, which says more than `reasoning_effort`."""

    effort: str | None = None
    max_tokens: int | None = None
    enabled: bool | None = None


class Place(msgspec.Struct, frozen=True):
    city: str | None = None
    country: str | None = None
    region: str | None = None
    timezone: str | None = None


class UserLocation(msgspec.Struct, frozen=True):
    approximate: Place | None = None


class WebSearch(msgspec.Struct, frozen=True):
    user_location: UserLocation | None = None


def convert(raw: msgspec.Raw, kind: type[_T], param: str) -> _T:
    """A member's value.

    Raises:
        BadRequest: it is something else; the message says where, and `param` names the member.
    """
    hashable: Any = kind  # Any: mypy does not hash types
    try:
        value: _T = _decoder(hashable).decode(raw)
        return value
    except RecursionError:
        raise BadRequest(f"`{param}` is nested too deeply.", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(error, param) from None


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:  # Any: a type, to be hashed
    """One for each of the few kinds there are: making one costs more than using it."""
    return msgspec.json.Decoder(kind)


def _malformed(error: Exception, param: str) -> BadRequest:
    what = str(error).removeprefix("JSON is malformed: ").replace("`$", f"`{param}")
    return BadRequest(f"`{param}` can't be understood: {what}.", param=param, code="invalid_value")
