"""The hub as bridges use it: how a chat completion is asked for, and what its answer says.

Rules:
- A request is read member by member (`Members`), so that whatever nobody read is known by name, and told as dropped.
- What passes through unread keeps its bytes: schemas, arguments and numbers are never decoded and encoded again.
- An answer is read strictly first, as OpenAI writes it, which is the fast way; what differs from that is then read
  for what it means: content in parts, arguments as an object, text that is no proper Unicode.
- What a provider reports as an error inside an answer is a `Failure`; what it means is the adapter's to say.

It knows nothing of any caller's dialect.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from gateway.api import Failure
from gateway.errors import BadRequest
from gateway.exchange import Call, Headers
from gateway.wire.dialects import Dialect
from gateway.wire.peek import peek

#: Headers that mean something to the provider the caller has in mind, and to no other.
_FOREIGN_HEADERS: Final = (b"anthropic-", b"x-goog-", b"x-server-timeout")

_NONE: Final = msgspec.Raw(b"")
_NULL: Final = b"null"
_NULL_BYTES: Final = len(_NULL)
_FALSY: Final = frozenset({b"", b"null", b"false", b'""', b"{}", b"[]", b"0"})
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

T = TypeVar("T")

encode: Final = msgspec.json.Encoder().encode


# -- requests ------------------------------------------------------------------------------------------------


#: By what they decode; only kinds that the code names are asked for.
_decoders: Final[dict[Any, Callable[[bytes | msgspec.Raw], Any]]] = {}  # Any: a type, or a generic alias


def _decode(raw: bytes | msgspec.Raw, kind: type[T]) -> T:
    decode = _decoders.get(kind)
    if decode is None:
        decode = _decoders[kind] = msgspec.json.Decoder(kind).decode
    value: T = decode(raw)
    return value


class Members:
    """The members of one JSON object in a request. Each is taken once; null is as good as absent.

    `where` stands before a member's name in errors. `spell` makes the name that it is taken by of the one it has.
    """

    def __init__(
        self, raw: bytes | msgspec.Raw, *, where: str = "", spell: Callable[[str], str] | None = None
    ) -> None:
        self.where = where
        try:
            found = _decode(raw, dict[str, msgspec.Raw])
        except UNREADABLE as error:
            raise invalid(where.rstrip(".") or None, error) from None
        self._found = found if spell is None else {spell(name): value for name, value in found.items()}

    def take(self, name: str, kind: type[T]) -> T | None:
        """The member as `kind`; None where it is absent.

        Raises:
            BadRequest: it is something else.
        """
        raw = self.raw(name)
        if raw is None:
            return None
        try:
            return _decode(raw, kind)
        except UNREADABLE as error:
            raise invalid(self.where + name, error) from None

    def need(self, name: str, kind: type[T]) -> T:
        """The same of a member that must be there."""
        value = self.take(name, kind)
        if value is None:
            param = self.where + name
            raise BadRequest(f"You must provide `{param}`.", param=param, code="missing_required_parameter")
        return value

    def number(self, name: str) -> msgspec.Raw | None:
        """A number as it is spelled."""
        raw = self._found.get(name)
        return None if self.take(name, float) is None else raw

    def raw(self, name: str) -> msgspec.Raw | None:
        """The member unread."""
        raw = self._found.pop(name, None)
        return None if raw is None or bytes(raw) == _NULL else raw

    def refuse(self, names: Mapping[str, str]) -> None:
        """Refuse what can't be carried and must not be dropped; `names` say why.

        Raises:
            BadRequest: naming the member.
        """
        for name, reason in names.items():
            raw = self.raw(name)
            if raw is not None and bytes(raw) not in _FALSY:
                raise unsupported(self.where + name, reason)

    def rest(self) -> list[str]:
        """The names of those that were not taken."""
        return [self.where + name for name, raw in self._found.items() if bytes(raw) != _NULL]


def request_members(call: Call, *, spell: Callable[[str], str] | None = None) -> Members:
    """The members of a request's body, all of which is proper text. The model is taken: it is the call's own.

    Raises:
        BadRequest: it is not an object, or not proper text.
    """
    if not call.body.isascii():
        try:
            call.body.decode()
        except UnicodeDecodeError as error:
            raise invalid(None, error) from None
    members = Members(call.body, spell=spell)
    members.raw("model")
    return members


def without_none(members: Mapping[str, object]) -> dict[str, object]:
    """The members that are there."""
    return {name: value for name, value in members.items() if value is not None}


def invalid(param: str | None, error: Exception) -> BadRequest:
    """The refusal of a request that can't be read."""
    reason = str(error) if isinstance(error, msgspec.DecodeError) else "it is not proper text"
    place = f"`{param}`" if param else "The request body"
    return BadRequest(f"{place} is not valid: {reason}.", param=param, code="invalid_type")


def unsupported(param: str, reason: str) -> BadRequest:
    """The refusal of what no provider of this model can be asked for."""
    return BadRequest(f"`{param}`: {reason}", param=param, code="unsupported_parameter")


def chat_call(call: Call, members: Mapping[str, object]) -> Call:
    """The chat completion with these members; those that are None are left out.

    A stream is not asked for its usage here: that is the adapter's to do, which knows how its provider wants to be
    asked, and its tap has the figures whether it was asked or not.
    """
    return _hub_call(call, members, Dialect.OPENAI_CHAT, b"/chat/completions")


def embeddings_call(call: Call, members: Mapping[str, object]) -> Call:
    """The same for embeddings."""
    return _hub_call(call, members, Dialect.OPENAI_EMBEDDINGS, b"/embeddings")


def _hub_call(call: Call, members: Mapping[str, object], dialect: Dialect, path: bytes) -> Call:
    body = encode(without_none(members))
    headers: Headers = [
        header
        for header in call.headers
        if header[0] != b"content-type" and not header[0].startswith(_FOREIGN_HEADERS)
    ]
    headers.append((b"content-type", b"application/json"))
    return msgspec.structs.replace(
        call,
        dialect=dialect,
        path=path,
        query=b"",
        headers=headers,
        body=body,
        peek=peek(body),
    )


def told(names: Iterable[str]) -> tuple[str, ...]:
    """Names of dropped members, each once."""
    return tuple(dict.fromkeys(names))


# -- answers -------------------------------------------------------------------------------------------------


class Function(msgspec.Struct, gc=False):
    """Of a call to a tool: its name, and a piece of its arguments, which are JSON as text."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    """A call to a tool, or a piece of one; only in a stream does it have an index."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None
    #: What a provider wants back with it, under the provider's name.
    extra_content: msgspec.Raw = _NONE


class Delta(msgspec.Struct, gc=False):
    """A message, or a piece of one. Reasoning goes by either name, depending on the provider."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    #: Lists that only some dialects have a place for: OpenRouter's, OpenAI's, OpenRouter's.
    reasoning_details: msgspec.Raw = _NONE
    annotations: msgspec.Raw = _NONE
    images: msgspec.Raw = _NONE


class Choice(msgspec.Struct, gc=False):
    """`delta` in a stream, `message` in a whole answer."""

    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    #: vLLM: the stop sequence that was met.
    stop_reason: msgspec.Raw = _NONE
    logprobs: msgspec.Raw = _NONE


class Chunk(msgspec.Struct, gc=False):
    """One event of a chat stream; a whole answer has the same members."""

    id: str | None = None
    created: int | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    system_fingerprint: str | None = None
    service_tier: msgspec.Raw = _NONE
    error: msgspec.Raw = _NONE
    x_groq: msgspec.Raw = _NONE


_NO_DELTA: Final = Delta()
_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_any = msgspec.json.Decoder().decode
# An escaped backslash, a pair of surrogates, a lone one.
_ESCAPE: Final = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
_LONE_BYTES: Final = 6


def read_chunk(data: bytes) -> Chunk:
    """One event's data, or a whole body.

    Raises:
        msgspec.DecodeError: it is no JSON object, however kindly it is read.
    """
    try:
        return _decode_chunk(data)
    except (*UNREADABLE, OverflowError):
        return _read_kindly(data)


def delta_of(choice: Choice) -> Delta:
    """What a choice says, in a stream or not."""
    return choice.delta or choice.message or _NO_DELTA


def has_logprobs(choice: Choice) -> bool:
    """Whether there are log probabilities; null is as good as absent."""
    return len(choice.logprobs) > _NULL_BYTES


def calls_of(delta: Delta) -> list[ToolCall]:
    """The calls in a delta, the one of the old kind among them."""
    calls = delta.tool_calls or []
    return calls if delta.function_call is None else [*calls, ToolCall(index=0, function=delta.function_call)]


def is_error(chunk: Chunk) -> bool:
    """Whether the event reports that the answer failed."""
    if chunk.error is _NONE and chunk.x_groq is _NONE:
        return False
    return bytes(chunk.error) not in _FALSY or _groq_error(chunk) is not None


def failure_in(chunk: Chunk) -> Failure:
    """The failure that such an event is. What it means is for the adapter to say, which knows its provider."""
    error = _groq_error(chunk) if bytes(chunk.error) in _FALSY else chunk.error
    return Failure(blame="provider", detail="an error inside the answer", body=encode({"error": error}))


def malformed(reason: str) -> Failure:
    """The failure of an answer that makes no sense."""
    return Failure(blame="provider", message="The provider's answer could not be read.", status=502, detail=reason)


def _groq_error(chunk: Chunk) -> Any:  # Any: JSON
    if not bytes(chunk.x_groq).startswith(b"{"):
        return None
    return _decode_any(chunk.x_groq).get("error")


def _read_kindly(data: bytes) -> Chunk:
    """What is not quite as OpenAI writes it."""
    text = data.decode("utf-8", "replace").encode()
    text = _ESCAPE.sub(lambda found: rb"\ufffd" if len(found[0]) == _LONE_BYTES else found[0], text)
    try:
        document = _decode_any(text)
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None
    if not isinstance(document, dict):
        raise msgspec.DecodeError("not an object")
    choices = document.get("choices")
    created = document.get("created")
    return Chunk(
        id=_text(document.get("id")) or None,
        created=created if isinstance(created, int) else None,
        model=_text(document.get("model")) or None,
        choices=[_choice(each) for each in choices if isinstance(each, dict)] if isinstance(choices, list) else None,
        system_fingerprint=_text(document.get("system_fingerprint")) or None,
        service_tier=_raw(document.get("service_tier")),
        error=_raw(document.get("error")),
        x_groq=_raw(document.get("x_groq")),
    )


def _choice(choice: dict[str, Any]) -> Choice:  # Any: JSON
    index = choice.get("index")
    return Choice(
        index=index if isinstance(index, int) else 0,
        delta=_delta(choice.get("delta")),
        message=_delta(choice.get("message")),
        finish_reason=_text(choice.get("finish_reason")) or None,
        stop_reason=_raw(choice.get("stop_reason")),
        logprobs=_raw(choice.get("logprobs")),
    )


def _delta(delta: Any) -> Delta | None:  # Any: JSON
    if not isinstance(delta, dict):
        return None
    content = delta.get("content")
    calls = delta.get("tool_calls")
    reasoning = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning"))
    if isinstance(content, list):
        # Mistral: what a reasoning model thinks is a part of its content.
        reasoning += "".join(_text(part.get("thinking")) for part in content if isinstance(part, dict))
    return Delta(
        content=_text(content),
        reasoning_content=reasoning,
        refusal=_text(delta.get("refusal")),
        tool_calls=[_tool_call(call) for call in calls if isinstance(call, dict)]
        if isinstance(calls, list)
        else None,
        function_call=_function(delta.get("function_call")),
        reasoning_details=_raw(delta.get("reasoning_details")),
        annotations=_raw(delta.get("annotations")),
        images=_raw(delta.get("images")),
    )


def _tool_call(call: dict[str, Any]) -> ToolCall:  # Any: JSON
    index = call.get("index")
    return ToolCall(
        index=index if isinstance(index, int) else None,
        id=_text(call.get("id")) or None,
        function=_function(call.get("function")),
        extra_content=_raw(call.get("extra_content")),
    )


def _function(function: Any) -> Function | None:  # Any: JSON
    if not isinstance(function, dict):
        return None
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        # Some write the arguments as the object they are.
        arguments = encode(arguments).decode()
    return Function(name=_text(function.get("name")) or None, arguments=arguments)


def _text(value: Any) -> str:  # Any: JSON
    """A text, or the texts of a list of parts, one after the other."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(part if isinstance(part, str) else _text_of(part) for part in value)
    return ""


def _text_of(part: Any) -> str:  # Any: JSON
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""


def _raw(value: Any) -> msgspec.Raw:  # Any: JSON
    return _NONE if value is None else msgspec.Raw(encode(value))
