"""A chat completion as a caller wrote it, for adapters that have to say the same in other words.

Rules:
- What is passed on is passed on as it was written: numbers, schemas and tool arguments are `msgspec.Raw`, so that no
  digit and no unknown key of theirs is lost.
- A member that the provider can't be told is refused where the answer would not be what was asked for, and dropped
  and named where it would only be less to the taste of the caller. A value that means nothing is neither.
- The older spellings (`max_tokens`, functions in the history) are read as the newer ones.

It knows no provider: what one takes is in the adapter's own module.
Source: OpenAI's API reference, "Create chat completion".
"""

import base64
import binascii
import re
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec

from gateway.api import BadRequest, Call

NONE: Final = msgspec.Raw(b"")
_NOTHING: Final = frozenset({b"", b"null", b"[]", b"{}", b'""'})

#: For the gateway itself, or said in another way by every adapter.
_UNDERSTOOD: Final = frozenset(
    {"model", "models", "provider", "messages", "stream", "stream_options", "tools", "tool_choice", "response_format"}
)
#: Values that ask for what happens anyway.
_USUAL: Final[Mapping[str, frozenset[bytes]]] = {
    "n": frozenset({b"1"}),
    "best_of": frozenset({b"1"}),
    "logprobs": frozenset({b"false"}),
    "top_logprobs": frozenset({b"0"}),
    "store": frozenset({b"false"}),
    "presence_penalty": frozenset({b"0", b"0.0"}),
    "frequency_penalty": frozenset({b"0", b"0.0"}),
    "parallel_tool_calls": frozenset({b"true"}),
    "service_tier": frozenset({b'"auto"', b'"default"'}),
    "modalities": frozenset({b'["text"]'}),
    "verbosity": frozenset({b'"medium"'}),
}
#: Without them the answer would not be what was asked for, so they are never dropped.
_NEEDED: Final = frozenset(
    {"n", "logprobs", "top_logprobs", "audio", "modalities", "functions", "function_call", "web_search_options"}
)

#: Base64 digits that show what data is.
_MAGIC_DIGITS: Final = 32
_MAGIC: Final = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"%PDF-"), "application/pdf"),
)
#: What some break encoded data into lines with; looked for one by one, which is done in C.
_BLANKS: Final = ("\n", "\r", " ", "\t")
#: Where a tool call's arguments are kept that are no object.
_RAW_ARGUMENTS: Final = "_raw"
_EMPTY_OBJECT: Final = msgspec.Raw(b"{}")


class Function(msgspec.Struct, gc=False):
    name: str = ""
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    id: str = ""
    type: str = "function"
    function: Function = msgspec.field(default_factory=Function)
    #: What a provider wants back with it, under the provider's name.
    extra_content: msgspec.Raw = NONE


class Image(msgspec.Struct, gc=False):
    url: str = ""
    detail: str | None = None


class File(msgspec.Struct, gc=False):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class Audio(msgspec.Struct, gc=False):
    data: str = ""
    format: str = "wav"


class Part(msgspec.Struct):
    type: str = ""
    text: str | None = None
    refusal: str | None = None
    image_url: Image | str | None = None
    video_url: Image | str | None = None
    input_audio: Audio | None = None
    file: File | None = None
    cache_control: msgspec.Raw = NONE
    prompt_cache_breakpoint: msgspec.Raw = NONE


class Message(msgspec.Struct):
    """One message. `content` is None, text or parts; `parts_of` reads all three alike."""

    role: str = ""
    content: str | list[Part] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Function | None = None
    reasoning_content: str | None = None
    reasoning_details: msgspec.Raw = NONE
    cache_control: msgspec.Raw = NONE


class ToolFunction(msgspec.Struct):
    name: str = ""
    description: str | None = None
    parameters: msgspec.Raw = NONE
    strict: bool | None = None


class Tool(msgspec.Struct):
    type: str = "function"
    function: ToolFunction | None = None
    cache_control: msgspec.Raw = NONE


class Schema(msgspec.Struct):
    name: str = ""
    description: str | None = None
    schema: msgspec.Raw = NONE
    strict: bool | None = None


class Format(msgspec.Struct):
    type: str = "text"
    json_schema: Schema | None = None


class _Allowed(msgspec.Struct):
    mode: str = "auto"
    tools: list[Tool] = []


class _Choice(msgspec.Struct):
    type: str = ""
    function: Function | None = None
    allowed_tools: _Allowed | None = None


class ChatRequest(msgspec.Struct):
    """The members that every provider has a word for."""

    messages: list[Message] = []
    tools: list[Tool] | None = None
    tool_choice: str | _Choice | None = None
    response_format: Format | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    reasoning_effort: str | None = None
    #: Every top-level member as it was written.
    members: dict[str, msgspec.Raw] = {}

    @property
    def output_tokens_max(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def stops(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def member(self, name: str) -> msgspec.Raw | None:
        """A member as it was written; None where it says nothing."""
        raw = self.members.get(name)
        return None if raw is None or bytes(raw) in _NOTHING else raw


class Tools(NamedTuple):
    """The tools that may be called. `choice` is empty for the provider's own default; `name` is the one to call."""

    tools: list[ToolFunction]
    choice: Literal["", "auto", "required", "none"] = ""
    name: str = ""
    #: Numbers of the tools after which the provider is to keep the prompt.
    kept: frozenset[int] = frozenset()


_decode = msgspec.json.Decoder(ChatRequest).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode

T = TypeVar("T")


def read_request(call: Call) -> ChatRequest:
    """The request in `call`'s body, which is known to be a JSON object.

    Raises:
        BadRequest: a member is not of the kind that the reference gives it; `param` names it.
    """
    request = decode_body(call.body, _decode)
    request.members = members_of(call)
    _modernise(request.messages)
    return request


def members_of(call: Call) -> dict[str, msgspec.Raw]:
    """The top-level members of a body that was decoded before, each as it was written."""
    return _decode_object(call.body)


def decode_body(body: bytes, decode: Callable[[bytes], T]) -> T:
    """What a decoder makes of a caller's body.

    Raises:
        BadRequest: it makes nothing of it.
    """
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        where = path.rstrip("`").lstrip(".")
        place = f" at {where}" if where else ""
        raise BadRequest(f"{message.replace('`', '')}{place}.", param=where or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("The request body is not valid JSON.") from None


def dropped_members(
    members: Mapping[str, msgspec.Raw], carried: Collection[str], *, provider: str
) -> tuple[str, ...]:
    """Names of the members that are not `carried` and say something.

    Raises:
        BadRequest: one of them the answer depends on.
    """
    dropped: list[str] = []
    for name, raw in members.items():
        if name in _UNDERSTOOD or name in carried or says_nothing(name, raw):
            continue
        if name in _NEEDED:
            raise BadRequest(f"`{name}` can't be had from {provider}.", param=name, code="unsupported_parameter")
        dropped.append(name)
    return tuple(dropped)


def says_nothing(name: str, raw: msgspec.Raw) -> bool:
    """Whether a member asks for what happens anyway."""
    value = bytes(raw)
    return value in _NOTHING or value in _USUAL.get(name, ())


def tools_of(request: ChatRequest) -> Tools:
    """The tools and which of them to call.

    Raises:
        BadRequest: a tool that is no function.
    """
    tools: list[ToolFunction] = []
    kept: set[int] = set()
    for tool in request.tools or ():
        if tool.type != "function" or tool.function is None:
            raise BadRequest(
                f"A tool of type {tool.type!r} can't be translated; only functions can.",
                param="tools",
                code="unsupported_value",
            )
        if is_kept(tool.cache_control):
            kept.add(len(tools))
        tools.append(tool.function)
    choice = request.tool_choice
    if not tools or choice is None or choice == "auto":
        return Tools(tools, kept=frozenset(kept))
    if choice == "required":
        return Tools(tools, "required", kept=frozenset(kept))
    if choice == "none":
        return Tools(tools, "none", kept=frozenset(kept))
    if isinstance(choice, _Choice):
        if choice.function is not None:
            return Tools(tools, "required", choice.function.name, frozenset(kept))
        if choice.allowed_tools is not None:
            allowed = {tool.function.name for tool in choice.allowed_tools.tools if tool.function is not None}
            few = [tool for tool in tools if tool.name in allowed]
            return Tools(few, "required" if choice.allowed_tools.mode == "required" else "")
    raise BadRequest("This `tool_choice` can't be translated.", param="tool_choice", code="unsupported_value")


def parts_of(message: Message) -> list[Part]:
    """The content as parts, empty texts left out; a refusal is text."""
    if isinstance(message.content, str):
        parts = [Part(type="text", text=message.content, cache_control=message.cache_control)]
    else:
        parts = list(message.content or ())
        if parts and is_kept(message.cache_control):
            parts[-1].cache_control = message.cache_control
    if message.refusal:
        parts.append(Part(type="text", text=message.refusal))
    for part in parts:
        if part.type == "refusal":
            part.type, part.text = "text", part.refusal
    return [part for part in parts if part.type != "text" or part.text]


def text_of(message: Message) -> str:
    """The content as one text.

    Raises:
        BadRequest: there is more than text in it.
    """
    parts = parts_of(message)
    for part in parts:
        if part.type != "text":
            raise unsupported(part, f"a message of role {message.role!r}")
    return "".join(part.text or "" for part in parts)


def unsupported(part: Part, where: str) -> BadRequest:
    kind = part.type if part.type.isidentifier() else "unknown"
    return BadRequest(
        f"A content part of type {kind!r} can't be put into {where}.", param="messages", code="unsupported_value"
    )


def is_kept(mark: msgspec.Raw) -> bool:
    """Whether a mark says that the prompt up to here is to be kept for later requests."""
    return bytes(mark) not in _NOTHING


def arguments_of(call: ToolCall) -> msgspec.Raw:
    """A tool call's arguments as the object they should be."""
    return object_of(call.function.arguments or "")


def object_of(arguments: str) -> msgspec.Raw:
    """Arguments, which are JSON in a text, as the object they should be; what is none is put into one.

    Models do write arguments that are no JSON: history is never a reason to fail.
    """
    if not arguments.strip() or arguments == "null":
        return _EMPTY_OBJECT
    encoded = arguments.encode("utf-8", "replace")
    try:
        _decode_object(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.Raw(_encode({_RAW_ARGUMENTS: encoded.decode()}))
    return msgspec.Raw(encoded)


def data_of(url: str, *, param: str = "messages") -> tuple[str, str] | None:
    """Media type and base64 text of a `data:` URL (RFC 2397), or None for another URL.

    The type is the one that the first bytes tell, where they tell one: labels lie.

    Raises:
        BadRequest: there is no data in it, or not in base64 though it says so; it names `param`.
    """
    if url[:5].lower() != "data:":
        return None
    comma = url.find(",")
    if comma < 0:
        raise BadRequest("The data: URL has no data.", param=param, code="invalid_image_url")
    label, *options = url[5:comma].lower().split(";")
    data = url[comma + 1 :]
    if "base64" not in (option.strip() for option in options):
        data = base64.b64encode(urllib.parse.unquote_to_bytes(data)).decode("ascii")
    elif any(blank in data for blank in _BLANKS):
        data = "".join(data.split())
    elif "%" in data:
        data = urllib.parse.unquote(data)
    digits = data[:_MAGIC_DIGITS].rstrip("=")
    try:
        start = base64.b64decode(digits[: len(digits) // 4 * 4], validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("The data: URL is not valid base64.", param=param, code="invalid_image_url") from None
    found = next((kind for magic, kind in _MAGIC if magic.match(start)), None)
    label = label.strip()
    return found or ("image/jpeg" if label == "image/jpg" else label), data


def _modernise(messages: list[Message]) -> None:
    """Functions in a history become tools, their calls numbered."""
    number = 0
    for message in messages:
        if message.function_call is not None:
            number += 1
            call = ToolCall(id=f"call_fn_{number}", function=message.function_call)
            message.tool_calls = [*(message.tool_calls or ()), call]
        elif message.role == "function":
            message.role, message.tool_call_id = "tool", f"call_fn_{number}"
