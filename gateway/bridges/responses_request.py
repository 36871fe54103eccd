"""A responses request made a chat completion request: the items become messages, the rest gets the hub's names.

Rules:
- Values travel as the bytes they came in; only what has another name or place in the hub is taken apart. So pictures
  are never decoded, and numbers stay as they were spelled.
- What refers to something that is kept at the provider (`previous_response_id`, `conversation`, `prompt`, an
  `item_reference`, `background`) is refused, and so is a tool that the provider would have to run itself: the answer
  would be another one. What only tunes is dropped and named.
- Members that this dialect does not have (`top_k` for example) are a provider's own and travel on, unless the hub
  means something by them that was said in another way too.
- Null is the same as absent.

Instructions and developer messages become system messages, which every provider knows. A custom tool becomes a
function with one text parameter, and its calls come back as what they are: see `responses_output.py`.

Source: the API reference of OpenAI for `POST /responses` and `POST /chat/completions`.
"""

from collections.abc import Container, Iterator
from typing import Final

import msgspec

from gateway.bridges.bridge import NO_EXTENSIONS
from gateway.bridges.hub import UNREADABLE, encode, told
from gateway.bridges.reasoning import EXTENSION, is_sealed, read_details, unseal
from gateway.bridges.reasoning import Reader as Thoughts
from gateway.errors import BadRequest

#: The only parameter of a function that stands for a custom tool.
CUSTOM_INPUT: Final = "input"
#: What of an assistant's message is its reasoning, under the names that providers have for it.
REASONING_MEMBERS: Final = ("reasoning_content", "reasoning", EXTENSION)

Members = dict[str, msgspec.Raw]

_NULL: Final = b"null"
_NONE: Final = msgspec.Raw(b"")

#: The same in both dialects.
_SAME: Final = (
    "model",
    "temperature",
    "top_p",
    "service_tier",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "moderation",
    "stream",
)
#: Read below, or said back to the caller and of no effect here: what metadata and `store` are about is kept nowhere,
#: and `max_tool_calls` counts calls of tools that a provider runs.
_READ: Final = frozenset(
    {
        *_SAME,
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "text",
        "reasoning",
        "max_output_tokens",
        "top_logprobs",
        "include",
        "truncation",
        "store",
        "stream_options",
        "background",
        "previous_response_id",
        "conversation",
        "prompt",
        "metadata",
        "max_tool_calls",
    }
)
_DROPPED: Final = frozenset(
    {"access_programs", "background_options", "client_metadata", "context_management", "image"}
)
#: They are for another endpoint: a chat completion's, not this dialect's.
_UNKNOWN: Final = frozenset({"messages", "n", "best_of", "functions", "function_call", "modalities", "audio"})
#: Wants that name something kept at the provider, and what is said to them.
_STATEFUL: Final = {
    "previous_response_id": "send the earlier turns in `input`",
    "conversation": "send the earlier turns in `input`",
    "prompt": "send its text in `instructions` or `input`",
}
_ROLES: Final = frozenset({"user", "assistant", "system", "developer"})
#: What a function or custom tool may have that the hub has no place for.
_TOOL_DROPPED: Final = frozenset({"async", "allowed_callers", "defer_loading", "output_schema"})
#: Facts about an answer of before, which tell the model nothing.
_PART_FACTS: Final = frozenset({"type", "annotations", "logprobs"})

_decode = msgspec.json.Decoder(Members).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


def read_members(body: bytes) -> Members:
    """The members of a request that are there and not null.

    Raises:
        BadRequest: not strict JSON, which it must be to be translated.
    """
    try:
        members = _decode(body)
    except UNREADABLE as error:
        raise BadRequest(f"The request body can't be translated: {error}.") from None
    return {name: raw for name, raw in members.items() if bytes(raw) != _NULL}


def chat_request(
    members: Members, *, model: str, extensions: frozenset[str] = NO_EXTENSIONS
) -> tuple[dict[str, object], tuple[str, ...]]:
    """The members of the chat completion that asks for the same, and the names of what was dropped.

    `model` is for a body that names none. `extensions` are what the adapter reads besides OpenAI's reference.

    Raises:
        BadRequest: a member is not what it should be, or the hub can't carry it; `param` names it.
    """
    for name, instead in _STATEFUL.items():
        if name in members:
            raise _unsupported(name, f"nothing is kept between two calls; {instead}")
    if _is_true(members, "background"):
        raise _unsupported("background", "the answer is not kept for later; use `stream`")
    dropped: set[str] = set()
    chat: dict[str, object] = {name: members[name] for name in _SAME if name in members}
    if model:
        chat.setdefault("model", model)
    chat["messages"] = _messages(members, dropped, extensions)
    _carry_tools(members, chat, dropped)
    _carry_format(members, chat, dropped)
    if "max_output_tokens" in members:
        # Not `max_completion_tokens`, which some providers do not know and take for no limit.
        chat["max_tokens"] = members["max_output_tokens"]
    if wants_logprobs(members):
        chat["logprobs"] = True
        if "top_logprobs" in members:
            chat["top_logprobs"] = members["top_logprobs"]
    if "truncation" in members and _text(members, "truncation") != "disabled":
        dropped.add("truncation")
    if _is_true(members, "store"):
        dropped.add("store")
    for name in members.keys() - _READ:
        if name in _UNKNOWN:
            raise BadRequest(f"Unknown parameter: `{name}`.", code="unknown_parameter", param=name)
        if name in _DROPPED:
            dropped.add(name)
        elif chat.setdefault(name, members[name]) is not members[name]:
            raise BadRequest(f"`{name}` says again what another parameter of a response says.", param=name)
    return chat, told(sorted(dropped))


def custom_tools(members: Members) -> frozenset[str]:
    """The names of the custom tools."""
    tools = (_members(raw, f"tools[{index}]") for index, raw in _items(members, "tools"))
    return frozenset(_text(tool, "name") for tool in tools if _text(tool, "type") == "custom")


def wants_logprobs(members: Members) -> bool:
    return "message.output_text.logprobs" in included(members) or bytes(members.get("top_logprobs", _NONE)) not in (
        b"",
        b"0",
    )


def included(members: Members) -> frozenset[str]:
    """What the caller wants besides."""
    return frozenset(_string(raw, f"include[{index}]") for index, raw in _items(members, "include"))


def reasoning_of(members: Members) -> Members:
    return _object(members, "reasoning")


# -- the items ------------------------------------------------------------------------------------------------


def _messages(members: Members, dropped: set[str], extensions: frozenset[str]) -> list[dict[str, object]]:
    turns = _Turns(dropped, extensions)
    if "instructions" in members:
        turns.messages.append({"role": "system", "content": _checked(members, "instructions")})
    said = members.get("input")
    if said is None:
        raise BadRequest("You must provide `input`.", code="missing_required_parameter", param="input")
    if bytes(said)[:1] == b'"':
        turns.messages.append({"role": "user", "content": said})
    else:
        for index, raw in _items(members, "input"):
            turns.take(_members(raw, f"input[{index}]"), f"input[{index}]")
    turns.flush()
    if not turns.messages:
        raise BadRequest("`input` is empty.", param="input")
    return turns.messages


class _Turns:
    """Makes messages of items. What an assistant thinks, says and calls in a row is one message of the hub."""

    def __init__(self, dropped: set[str], extensions: frozenset[str]) -> None:
        self._extensions = extensions
        self.messages: list[dict[str, object]] = []
        self._dropped = dropped
        self._assistant: dict[str, object] = {}
        self._calls: list[dict[str, object]] = []
        self._thoughts = Thoughts(extensions)

    def take(self, item: Members, at: str) -> None:
        kind = _text(item, "type", at=at) or ("message" if "role" in item else "item_reference")
        if kind == "message":
            self._take_message(item, at)
        elif kind == "function_call":
            self._call(item, _checked(item, "name", at=at), _checked(item, "arguments", at=at), at)
        elif kind == "custom_tool_call":
            arguments = encode({CUSTOM_INPUT: _checked(item, "input", at=at)}).decode()
            self._call(item, _checked(item, "name", at=at), arguments, at)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self.flush()
            output = _content(item.get("output", _NONE), f"{at}.output", self._dropped)
            call_id = _checked(item, "call_id", at=at)
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": output})
        elif kind == "reasoning":
            self._take_reasoning(item, at)
        elif kind == "item_reference":
            raise _unsupported(at, "nothing is kept between two calls; send the item itself")
        else:
            raise _unsupported(f"{at}.type", f"there is no `{_shown(kind)}` in a chat completion")

    def flush(self) -> None:
        """Close the assistant's message, if one is open."""
        self._thoughts.close(self._assistant, self._calls)
        if self._thoughts.dropped:
            self._dropped.add("input.reasoning")
        self._thoughts = Thoughts(self._extensions)
        if self._calls:
            self._assistant["tool_calls"] = self._calls
            self._assistant.setdefault("content", None)
        # Reasoning that nothing came of is no message.
        if "content" in self._assistant:
            self.messages.append({"role": "assistant", **self._assistant})
        self._assistant, self._calls = {}, []

    def _take_message(self, item: Members, at: str) -> None:
        role = _text(item, "role", at=at)
        if role not in _ROLES:
            raise BadRequest(f"`{at}.role` must be one of {', '.join(sorted(_ROLES))}.", param=f"{at}.role")
        content = _content(item.get("content", _NONE), f"{at}.content", self._dropped)
        if "phase" in item:
            self._dropped.add("input.phase")
        if role != "assistant":
            self.flush()
            self.messages.append({"role": "system" if role == "developer" else role, "content": content})
            return
        if "content" in self._assistant:
            self.flush()
        self._assistant["content"] = content

    def _call(self, item: Members, name: msgspec.Raw, arguments: msgspec.Raw | str, at: str) -> None:
        if "namespace" in item:
            self._dropped.add("input.namespace")
        function = {"name": name, "arguments": arguments}
        self._calls.append({"id": _checked(item, "call_id", at=at), "type": "function", "function": function})

    def _take_reasoning(self, item: Members, at: str) -> None:
        """What a provider gave as reasoning goes back to it; what another one encrypted or summed up does not."""
        if self._calls or "content" in self._assistant:
            self.flush()
        sealed = _text(item, "encrypted_content", at=at)
        if is_sealed(sealed):
            found = unseal(sealed, f"{at}.encrypted_content", REASONING_MEMBERS)
            details = found.pop(EXTENSION, None)
            if details is not None:
                self._thoughts.put(read_details(details))
            self._assistant.update(found)
            return
        texts = (_members(raw, f"{at}.content[{index}]") for index, raw in _items(item, "content", at=at))
        text = "".join([_text(part, "text", at=at) for part in texts])
        if text:
            self._assistant["reasoning_content"] = text
        else:
            self._dropped.add("input.reasoning")


# -- contents -------------------------------------------------------------------------------------------------


def _content(raw: msgspec.Raw, at: str, dropped: set[str]) -> object:
    """A message's content: text as it is, a lone part of plain text as text, else the hub's parts."""
    data = bytes(raw)
    if data[:1] == b'"':
        return raw
    if data[:1] != b"[":
        raise BadRequest(f"`{at}` must be a string or a list of parts.", param=at)
    parts = [
        _part(_members(part, f"{at}[{index}]"), f"{at}[{index}]", dropped)
        for index, part in enumerate(_decode_list(data))
    ]
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return parts[0]["text"]
    return parts


def _part(part: Members, at: str, dropped: set[str]) -> dict[str, object]:
    kind = _text(part, "type", at=at)
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": _checked(part, "text", at=at), **_others(part, {"text"})}
    if kind == "refusal":
        return {"type": "refusal", "refusal": _checked(part, "refusal", at=at)}
    if kind == "input_image":
        if "image_url" not in part:
            raise _unsupported(f"{at}.file_id", "send the picture itself in `image_url`")
        picture = {"url": _checked(part, "image_url", at=at), **_only(part, ("detail",))}
        return {"type": "image_url", "image_url": picture, **_others(part, {"image_url", "detail", "file_id"})}
    if kind == "input_file":
        if "file_url" in part:
            raise _unsupported(f"{at}.file_url", "send the file itself in `file_data`")
        if "detail" in part:
            dropped.add("input.detail")
        names = ("file_data", "file_id", "filename")
        return {"type": "file", "file": _only(part, names), **_others(part, {*names, "detail"})}
    if kind == "input_audio":
        return {"type": "input_audio", **_others(part, ())}
    raise _unsupported(f"{at}.type", f"there is no `{_shown(kind)}` in a chat completion")


def _others(part: Members, taken: Container[str]) -> Members:
    """What else a part has: marks for a prompt cache, and what only a provider understands."""
    return {name: raw for name, raw in part.items() if name not in taken and name not in _PART_FACTS}


def _only(part: Members, names: tuple[str, ...]) -> Members:
    return {name: part[name] for name in names if name in part}


# -- tools and formats ----------------------------------------------------------------------------------------


def _carry_tools(members: Members, chat: dict[str, object], dropped: set[str]) -> None:
    tools: dict[str, dict[str, object]] = {}
    for index, raw in _items(members, "tools"):
        at = f"tools[{index}]"
        tool = _members(raw, at)
        tools[_text(tool, "name", at=at)] = _tool(tool, at, dropped)
    choice = members.get("tool_choice")
    if choice is not None and bytes(choice)[:1] == b'"':
        wanted: object = choice
        if not tools and _string(choice, "tool_choice") == "required":
            raise BadRequest("`tool_choice` is `required`, but there are no `tools`.", param="tool_choice")
    elif choice is not None:
        wanted = _chosen(_members(choice, "tool_choice"), tools)
    else:
        wanted = None
    if not tools:
        return
    chat["tools"] = list(tools.values())
    if wanted is not None:
        chat["tool_choice"] = wanted
    if "parallel_tool_calls" in members:
        chat["parallel_tool_calls"] = members["parallel_tool_calls"]


def _tool(tool: Members, at: str, dropped: set[str]) -> dict[str, object]:
    kind = _text(tool, "type", at=at)
    if kind not in ("function", "custom"):
        raise BadRequest(
            f"The tool `{_shown(kind)}` would have to be run by the provider; that of this model takes functions and "
            "custom tools only.",
            code="unsupported_value",
            param=f"{at}.type",
        )
    dropped.update(f"tools.{name}" for name in tool.keys() & _TOOL_DROPPED)
    _checked(tool, "name", at=at)
    names = ("name", "description", "parameters", "strict", "format")
    extra = _others(tool, {*names, *_TOOL_DROPPED})
    if kind == "function":
        return {"type": "function", "function": _only(tool, names[:4]), **extra}
    description = _text(tool, "description", at=at)
    format_ = _object(tool, "format", at=at)
    if _text(format_, "type") == "grammar":
        dropped.add("tools.format")
        grammar = f"The input must match this {_text(format_, 'syntax')} grammar:\n{_text(format_, 'definition')}"
        description = f"{description}\n\n{grammar}" if description else grammar
    function: dict[str, object] = {"name": tool["name"]}
    if description:
        function["description"] = description
    function["parameters"] = {
        "type": "object",
        "properties": {CUSTOM_INPUT: {"type": "string", "description": "The input of the tool, as free text."}},
        "required": [CUSTOM_INPUT],
        "additionalProperties": False,
    }
    return {"type": "function", "function": function, **extra}


def _chosen(choice: Members, tools: dict[str, dict[str, object]]) -> object:
    """The hub's way to say which tools may be called; those that may not are taken out of `tools`."""
    kind = _text(choice, "type", at="tool_choice")
    if kind in ("function", "custom"):
        name = _text(choice, "name", at="tool_choice")
        if name not in tools:
            raise BadRequest(f"`tool_choice` names `{_shown(name)}`, which is not in `tools`.", param="tool_choice")
        return {"type": "function", "function": {"name": name}}
    if kind != "allowed_tools":
        raise _unsupported("tool_choice", f"`{_shown(kind)}` is a tool that the provider would have to run")
    allowed = {
        _text(_members(raw, f"tool_choice.tools[{index}]"), "name", at=f"tool_choice.tools[{index}]")
        for index, raw in _items(choice, "tools", at="tool_choice")
    }
    if not allowed or not allowed <= tools.keys():
        raise BadRequest("`tool_choice.tools` must name tools that are in `tools`.", param="tool_choice.tools")
    for name in tools.keys() - allowed:
        del tools[name]
    return choice.get("mode", "auto")


def _carry_format(members: Members, chat: dict[str, object], dropped: set[str]) -> None:
    """How the answer is to look, and how long it is to be thought about."""
    text = _object(members, "text")
    if "verbosity" in text:
        chat["verbosity"] = text["verbosity"]
    format_ = _object(text, "format", at="text")
    kind = _text(format_, "type", at="text.format")
    if kind == "json_schema":
        schema = _only(format_, ("name", "description", "schema", "strict"))
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif kind not in ("", "text"):
        raise _unsupported("text.format.type", f"there is no format `{_shown(kind)}` in a chat completion")
    reasoning = reasoning_of(members)
    if "effort" in reasoning:
        chat["reasoning_effort"] = reasoning["effort"]
    dropped.update(f"reasoning.{name}" for name in reasoning.keys() & {"context", "mode"})


# -- reading --------------------------------------------------------------------------------------------------


def _members(raw: msgspec.Raw, at: str) -> Members:
    """An object's members that are not null."""
    try:
        members = _decode(raw)
    except UNREADABLE:
        raise BadRequest(f"`{at}` must be an object.", param=at) from None
    return {name: value for name, value in members.items() if bytes(value) != _NULL}


def _object(members: Members, name: str, *, at: str = "") -> Members:
    return _members(members[name], _path(at, name)) if name in members else {}


def _items(members: Members, name: str, *, at: str = "") -> Iterator[tuple[int, msgspec.Raw]]:
    """A list's values with their places; none where there is no list."""
    if name not in members:
        return iter(())
    try:
        return iter(list(enumerate(_decode_list(members[name]))))
    except UNREADABLE:
        path = _path(at, name)
        raise BadRequest(f"`{path}` must be a list.", param=path) from None


def _checked(members: Members, name: str, *, at: str = "") -> msgspec.Raw:
    """A member that must be a text, as its bytes."""
    raw = members.get(name, _NONE)
    if bytes(raw)[:1] != b'"':
        path = _path(at, name)
        raise BadRequest(f"`{path}` must be a string.", param=path)
    return raw


def _text(members: Members, name: str, *, at: str = "") -> str:
    """A member that is a text or absent, which is the empty text."""
    return _string(members[name], _path(at, name)) if name in members else ""


def _string(raw: msgspec.Raw, at: str) -> str:
    try:
        return _decode_text(raw)
    except UNREADABLE:
        raise BadRequest(f"`{at}` must be a string.", param=at) from None


def _is_true(members: Members, name: str) -> bool:
    return name in members and bytes(members[name]) == b"true"


def _path(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _shown(text: str) -> str:
    """A caller's own word, short and without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:64])


def _unsupported(param: str, why: str) -> BadRequest:
    return BadRequest(
        f"`{param}` can't be carried to this model's provider, which serves chat completions only: {why}.",
        code="unsupported_parameter",
        param=param,
    )
