"""A request for a message, made a chat completion that asks for the same.

What differs most: results of tools are messages of their own there, in front of what the user says, and can only be
text, so that pictures in them move into the user's message; the system prompt is a message; reasoning is asked for by
a word instead of a budget.

Rules:
- Tools and blocks that only Anthropic's own servers can run or read are refused, and so is what a caller relies on
  where it can't be had (a region, a container).
- `cache_control` is handed on to an adapter that reads it; other providers cache by themselves.
- Dropped and told: `top_k`, `cache_control` where it is of no use, hints about speed and context, and
  whatever nobody knows.
- Reasoning without a signature came through this gateway from a provider without signatures, some of which want it
  back. With a signature it is Anthropic's, or what another maker signed and `messages.py` sealed: it goes to adapters
  that read such details, and to no others.
- The bound of the answer is `max_completion_tokens`, which is what newer models of OpenAI insist on; a provider that
  has only the older name for it says so in its row.

Source: https://platform.claude.com/docs/en/api/messages.
"""

import hashlib
from typing import Final

import msgspec

from gateway.bridges.bridge import NO_EXTENSIONS, Opened
from gateway.bridges.hub import (
    UNREADABLE,
    Members,
    chat_call,
    encode,
    invalid,
    request_members,
    told,
    unsupported,
    without_none,
)
from gateway.bridges.reasoning import Reader as Thoughts
from gateway.bridges.reasoning import is_sealed, unseal_details
from gateway.errors import BadRequest
from gateway.exchange import Call

#: OpenAI refuses a longer `user`.
USER_CHARS_MAX: Final = 64
#: Budgets of reasoning up to which it is little, or middling.
LOW_TOKENS_MAX: Final = 2048
MEDIUM_TOKENS_MAX: Final = 8192

_REFUSED: Final = {
    "container": "containers run at Anthropic only.",
    "mcp_servers": "Anthropic alone connects to MCP servers; run the tools yourself and pass them as `tools`.",
    "inference_geo": "no other provider promises where it works on a request.",
}
_SERVICE_TIERS: Final = {"auto": None, "standard_only": "default"}
_PDF: Final = "application/pdf"
#: What a result that has no text says in its own place.
_ELSEWHERE: Final = "The result follows in the next message."

Parts = list[dict[str, object]]


class _Block(msgspec.Struct, gc=False):
    """Any content block, as far as its members have one meaning in all of them."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    tool_use_id: str = ""
    thinking: str = ""
    signature: str | None = None
    data: str = ""
    is_error: bool | None = None
    title: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")
    source: msgspec.Raw = msgspec.Raw(b"null")
    content: msgspec.Raw = msgspec.Raw(b"null")
    cache_control: msgspec.Raw = msgspec.Raw(b"null")


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Block]


class _Source(msgspec.Struct, gc=False):
    type: str
    media_type: str = ""
    data: str = ""
    url: str = ""
    content: msgspec.Raw = msgspec.Raw(b"null")


class _ToolChoice(msgspec.Struct, gc=False):
    type: str
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct, gc=False):
    type: str
    budget_tokens: int = 0


class _Metadata(msgspec.Struct, gc=False):
    user_id: str | None = None


_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_decode_content = msgspec.json.Decoder(str | list[_Block] | None).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_source = msgspec.json.Decoder(_Source).decode


def wants_thinking(call: Call) -> bool:
    """Whether the caller asked to see what the model thinks, of a call that was opened."""
    if b'"thinking"' not in call.body:
        return False
    thinking = request_members(call).take("thinking", _Thinking)
    return thinking is not None and thinking.type != "disabled"


def chat_of_messages(call: Call, extensions: frozenset[str] = NO_EXTENSIONS) -> Opened:
    """The chat completion that asks for the same. `extensions` are what the adapter reads besides.

    Raises:
        BadRequest: naming the member that is malformed, or can't be carried.
    """
    members = request_members(call)
    members.refuse(_REFUSED)
    reader = _Reader(extensions)
    chat: dict[str, object] = {"model": call.model}
    bound = members.need("max_tokens", int)
    if (system := members.raw("system")) is not None:
        reader.system(_content(system, "system"))
    for number, message in enumerate(members.need("messages", list[_Message])):
        reader.message(message, f"messages[{number}]")
    chat["messages"] = reader.messages
    chat["max_completion_tokens"] = bound
    chat["temperature"] = members.number("temperature")
    chat["top_p"] = members.number("top_p")
    chat["stop"] = members.take("stop_sequences", list[str]) or None
    chat["user"] = _user(members.take("metadata", _Metadata))
    tier = members.take("service_tier", str)
    chat["service_tier"] = None if tier is None else _SERVICE_TIERS.get(tier, tier)
    _tools(members, chat, reader)
    _reasoning(members, chat)
    chat["stream"] = members.take("stream", bool) or None
    return Opened(chat_call(call, chat), dropped=told([*members.rest(), *reader.dropped]))


class _Reader:
    """Makes chat messages of Anthropic's."""

    def __init__(self, extensions: frozenset[str]) -> None:
        #: Marks of what is to be cached are handed on.
        self.keeps = "cache_control" in extensions
        self._extensions = extensions
        self.messages: list[dict[str, object]] = []
        #: What was left out on the way.
        self.dropped: list[str] = []

    def system(self, system: str | list[_Block] | None) -> None:
        """The system prompt: one message, whatever it is made of."""
        if isinstance(system, list):
            texts = [self._text(block, f"system[{n}]") for n, block in enumerate(system)]
            if self.keeps and any(map(_is_marked, system)):
                parts = [_marked(_text_part(text), block) for text, block in zip(texts, system, strict=True) if text]
                self.messages.append({"role": "system", "content": parts})
                return
            system = "\n\n".join(texts)
        if system:
            self.messages.append({"role": "system", "content": system})

    def message(self, message: _Message, where: str) -> None:
        content = message.content
        if message.role == "assistant":
            self._assistant(content, where)
        elif message.role == "user":
            self._user(content, where)
        elif message.role == "system":
            self.system(content)
        else:
            raise BadRequest(
                f"`{where}.role` must be user or assistant.", param=f"{where}.role", code="invalid_value"
            )

    def _text(self, block: _Block, where: str) -> str:
        if block.type != "text":
            raise unsupported(where, "only text can stand here.")
        self._see(block)
        return block.text

    def _see(self, block: _Block) -> None:
        if not self.keeps and _is_marked(block):
            self.dropped.append("cache_control")

    def _assistant(self, content: str | list[_Block], where: str) -> None:
        if isinstance(content, str):
            self.messages.append({"role": "assistant", "content": content})
            return
        texts: list[str] = []
        thoughts: list[str] = []
        secrets = Thoughts(self._extensions)
        calls: list[dict[str, object]] = []
        message: dict[str, object] = {"role": "assistant"}
        for number, block in enumerate(content):
            place = f"{where}.content[{number}]"
            self._see(block)
            if self.keeps:
                message = _marked(message, block)
            if block.type == "text":
                texts.append(block.text)
            elif block.type == "tool_use":
                calls.append(_call(block, place))
            elif block.type == "thinking":
                signature = block.signature or ""
                if is_sealed(signature):
                    secrets.open(unseal_details(signature, f"{place}.signature"), block.thinking)
                elif signature:
                    secrets.sign(block.thinking, signature)
                if not signature or is_sealed(signature):
                    thoughts.append(block.thinking)
            elif block.type == "redacted_thinking":
                if is_sealed(block.data):
                    secrets.open(unseal_details(block.data, f"{place}.data"))
                else:
                    secrets.hide(block.data)
            else:
                raise unsupported(place, f"a block of type {_shown(block.type)} can't be carried to this provider.")
        message["content"] = "".join(texts) or (None if calls else "")
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        secrets.close(message, calls)
        if secrets.dropped:
            self.dropped.append("thinking_blocks")
        if calls:
            message["tool_calls"] = calls
        self.messages.append(message)

    def _user(self, content: str | list[_Block], where: str) -> None:
        if isinstance(content, str):
            self.messages.append({"role": "user", "content": content})
            return
        moved: Parts = []
        parts: Parts = []
        for number, block in enumerate(content):
            place = f"{where}.content[{number}]"
            self._see(block)
            if block.type == "tool_result":
                moved += self._result(block, place)
            else:
                said = self._parts(block, place)
                if self.keeps and said:
                    said[-1] = _marked(said[-1], block)
                parts += said
        parts = moved + parts
        if parts:
            alone = parts[0] if len(parts) == 1 and "cache_control" not in parts[0] else {}
            text = alone.get("text") if alone.get("type") == "text" else None
            self.messages.append({"role": "user", "content": parts if text is None else text})

    def _result(self, block: _Block, where: str) -> Parts:
        """Add the message with a tool's result; what of it is no text is for the user's message."""
        content = _content(block.content, f"{where}.content")
        texts: list[str] = []
        others: Parts = []
        if isinstance(content, str):
            texts.append(content)
        else:
            for number, inner in enumerate(content or ()):
                for part in self._parts(inner, f"{where}.content[{number}]"):
                    text = part.get("text")
                    if isinstance(text, str):
                        texts.append(text)
                    else:
                        others.append(part)
        text = "\n".join(texts)
        if others and not text:
            text = _ELSEWHERE
        if block.is_error:
            text = f"Error: {text}"
        answered: dict[str, object] = {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
        self.messages.append(_marked(answered, block) if self.keeps else answered)
        return others

    def _parts(self, block: _Block, where: str) -> Parts:
        """What a block of a user says, as parts of a chat message."""
        self._see(block)
        if block.type == "text":
            return [_text_part(block.text)] if block.text else []
        if block.type == "image":
            return [_image(_source(block, where), where)]
        if block.type == "document":
            return self._document(block, where)
        if block.type == "search_result":
            return [_text_part(_search_result(block, where))]
        raise unsupported(where, f"a block of type {_shown(block.type)} can't be carried to this provider.")

    def _document(self, block: _Block, where: str) -> Parts:
        source = _source(block, where)
        title = block.title or "document.pdf"
        if source.type == "text":
            return [_text_part(f"{block.title}\n\n{source.data}" if block.title else source.data)]
        if source.type == "content":
            content = _content(source.content, f"{where}.source.content")
            if isinstance(content, str):
                return [_text_part(content)]
            return [
                part
                for number, inner in enumerate(content or ())
                if inner.type in ("text", "image")
                for part in self._parts(inner, f"{where}.source.content[{number}]")
            ]
        if source.type == "base64" and source.media_type == _PDF:
            data = f"data:{_PDF};base64,{source.data}"
            return [{"type": "file", "file": {"filename": title, "file_data": data}}]
        raise unsupported(f"{where}.source", "only texts and PDF files that stand in the request can be carried.")


def _is_marked(block: _Block) -> bool:
    return bytes(block.cache_control) != b"null"


def _marked(made: dict[str, object], block: _Block) -> dict[str, object]:
    """What was made of a block, with its mark that the prompt up to here is to be kept."""
    return {**made, "cache_control": block.cache_control} if _is_marked(block) else made


def _tools(members: Members, chat: dict[str, object], reader: _Reader) -> None:
    tools: list[dict[str, object]] = []
    for number, raw in enumerate(members.take("tools", list[msgspec.Raw]) or ()):
        tool = Members(raw, where=f"tools[{number}].")
        kind = tool.take("type", str)
        if kind not in (None, "custom"):
            raise unsupported(
                f"tools[{number}]",
                f"a tool of type {_shown(kind or '')} is Anthropic's own, no other provider has it.",
            )
        function = {
            "name": tool.need("name", str),
            "description": tool.take("description", str),
            "parameters": tool.raw("input_schema"),
            "strict": tool.take("strict", bool),
        }
        mark = tool.raw("cache_control")
        if mark is not None and not reader.keeps:
            reader.dropped.append("cache_control")
        reader.dropped += [name.rpartition(".")[2] for name in tool.rest()]
        made: dict[str, object] = {"type": "function", "function": without_none(function)}
        tools.append(made if mark is None or not reader.keeps else {**made, "cache_control": mark})
    choice = members.take("tool_choice", _ToolChoice)
    if not tools:
        return
    chat["tools"] = tools
    if choice is None:
        return
    if choice.type == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice.type in _CHOICES:
        chat["tool_choice"] = _CHOICES[choice.type]
    else:
        raise BadRequest(
            "`tool_choice.type` must be auto, any, tool or none.", param="tool_choice.type", code="invalid_value"
        )
    if choice.disable_parallel_tool_use:
        chat["parallel_tool_calls"] = False


def _reasoning(members: Members, chat: dict[str, object]) -> None:
    """How hard to think, and in which format to answer."""
    thinking = members.take("thinking", _Thinking)
    if thinking is not None and thinking.type == "enabled":
        tokens = thinking.budget_tokens
        chat["reasoning_effort"] = (
            "low" if tokens <= LOW_TOKENS_MAX else "medium" if tokens <= MEDIUM_TOKENS_MAX else "high"
        )
    # Its name before it became part of `output_config`.
    wanted = members.raw("output_format")
    if (raw := members.raw("output_config")) is not None:
        output = Members(raw, where="output_config.")
        chat["reasoning_effort"] = output.take("effort", str) or chat.get("reasoning_effort")
        wanted = output.raw("format") or wanted
    if wanted is None:
        return
    form = Members(wanted, where="output_config.format.")
    if (kind := form.need("type", str)) != "json_schema":
        raise unsupported("output_config.format", f"the format {_shown(kind)} is not known here.")
    schema = form.need("schema", msgspec.Raw)
    chat["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "output", "schema": schema, "strict": True},
    }


def _call(block: _Block, where: str) -> dict[str, object]:
    raw = bytes(block.input)
    if not raw.startswith(b"{"):
        raise BadRequest(f"`{where}.input` must be an object.", param=f"{where}.input", code="invalid_type")
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": raw.decode()}}


def _content(raw: msgspec.Raw, where: str) -> str | list[_Block] | None:
    try:
        content: str | list[_Block] | None = _decode_content(raw)
        return content
    except UNREADABLE as error:
        raise invalid(where, error) from None


def _source(block: _Block, where: str) -> _Source:
    try:
        return _decode_source(block.source)
    except UNREADABLE as error:
        raise invalid(f"{where}.source", error) from None


def _image(source: _Source, where: str) -> dict[str, object]:
    if source.type == "base64":
        url = f"data:{source.media_type};base64,{source.data}"
    elif source.type == "url":
        url = source.url
    else:
        raise unsupported(f"{where}.source", "files that Anthropic keeps can't be read by another provider.")
    return {"type": "image_url", "image_url": {"url": url}}


def _search_result(block: _Block, where: str) -> str:
    """What was found, with where it is from."""
    content = _content(block.content, f"{where}.content")
    try:
        source = _decode_text(block.source)
    except UNREADABLE as error:
        raise invalid(f"{where}.source", error) from None
    found = [content] if isinstance(content, str) else [inner.text for inner in content or ()]
    return "\n".join([block.title or "", source, *found])


def _text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def _user(metadata: _Metadata | None) -> str | None:
    """The caller's own user, in as many letters as OpenAI takes."""
    if metadata is None or not metadata.user_id:
        return None
    user = metadata.user_id
    return user if len(user) <= USER_CHARS_MAX else hashlib.sha256(user.encode()).hexdigest()


def _shown(kind: str) -> str:
    """A word of the caller's, said back to it."""
    return encode(kind[:64]).decode()
