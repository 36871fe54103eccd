"""Cohere's own API, version 2: chat completions and embeddings translated into it and back, ranking relayed.

Rules:
- Roles, text, images and tools have nearly the same names there; what has others stands in `_RENAMED`.
- Members that only Cohere knows (`documents`, `citation_options`, `safety_mode`, `thinking`, `k`, ...) are passed on
  from the caller's request, and `citations` into the answer.
- Tokens are those Cohere bills for; it reports others besides, with a prompt of its own in them.
- A tool plan is reasoning: it is answered as `reasoning_content`, and goes back as `tool_plan` before tool calls.

Cohere serves OpenAI's dialects too, with less in them: the row `cohere-compatible`.
Source: Cohere's API reference, "Chat", "Chat with Streaming", "Embed" and "Errors", version 2.
"""

import urllib.parse
from collections.abc import Iterable
from typing import ClassVar, Final

import msgspec

from gateway.api import (
    API_VERSION,
    JSON_TAPS,
    MESSAGE_CHARS_MAX,
    Adapter,
    BadRequest,
    Call,
    ConfigError,
    Dialect,
    EventTooLong,
    Failure,
    FrameScanner,
    Known,
    KnownProvider,
    Offer,
    ProviderConfig,
    ResponseHead,
    Secret,
    Tap,
    Translator,
    UpstreamRequest,
    Usage,
    parse_base_url,
    request_headers,
    rewrite,
)
from gateway_adapters import failures
from gateway_adapters.chat_answer import (
    UNREADABLE,
    Answer,
    BrokenAnswer,
    Called,
    StreamTap,
    WholeTap,
    unreadable,
)
from gateway_adapters.chat_request import (
    ChatRequest,
    Message,
    Part,
    ToolFunction,
    dropped_members,
    members_of,
    parts_of,
    read_request,
    text_of,
    tools_of,
    unsupported,
)
from gateway_adapters.embeddings import READ, Embedded, EmbedTap, read_embed_request

BASE_URL: Final = "https://api.cohere.com/v2"
#: What Cohere is told an embedding is for, where neither the caller nor the provider's table says so.
INPUT_TYPE: Final = "search_document"
#: How far a caller's effort lets the model think, tokens.
_BUDGETS: Final = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16384, "xhigh": 32768, "max": 32768}

_SAME: Final = (
    *("temperature", "seed", "frequency_penalty", "presence_penalty", "k", "p"),
    *("documents", "citation_options", "safety_mode", "strict_tools", "thinking", "priority"),
)
_RENAMED: Final = {"top_p": "p", "top_k": "k"}
_CARRIED: Final = frozenset(
    {*_SAME, *_RENAMED, "stop", "stop_sequences", "max_tokens", "max_completion_tokens", "reasoning_effort"}
)
_FINISHES: Final = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
}
#: Of a request for embeddings, what Cohere alone knows.
_EMBED_MEMBERS: Final = ("input_type", "truncate")
#: Their own answer to a key that is not one of theirs.
_INVALID_TOKEN: Final = 498


class Cohere:
    """One of Cohere's accounts, or a deployment of its models that speaks the same."""

    ID: ClassVar[str] = "cohere"
    API: ClassVar[int] = API_VERSION

    dialects: frozenset[Dialect] = frozenset({Dialect.RERANK})
    translates: frozenset[Dialect] = frozenset({Dialect.OPENAI_CHAT, Dialect.OPENAI_EMBEDDINGS})

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        return [
            KnownProvider(name="cohere", title="Cohere", adapter=cls.ID, variable="COHERE_API_KEY", base_url=BASE_URL)
        ]

    @classmethod
    def own(cls, config: ProviderConfig, key: Secret) -> ProviderConfig:
        return msgspec.structs.replace(config, api_key=key)

    def configure(self, config: ProviderConfig) -> None:
        if unknown := config.extra.keys() - {"input_type"}:
            raise ConfigError(f'there is no key "{min(unknown)}"', param=min(unknown))
        input_type = config.extra.get("input_type", INPUT_TYPE)
        if not isinstance(input_type, str):
            raise ConfigError("must be text", param="input_type")
        self._input_type = input_type
        base_url = config.base_url or BASE_URL
        try:
            self._origin, self._path = parse_base_url(base_url)
        except ConfigError as error:
            raise ConfigError(error.message, param="base_url") from error
        if config.api_key is None and base_url == BASE_URL:
            raise ConfigError("is missing; its usual variable is COHERE_API_KEY", param="api_key")
        self._secret = config.api_key.reveal() if config.api_key is not None else ""
        if not self._secret.isascii() or not self._secret.isprintable():
            raise ConfigError("is not printable ASCII on one line", param="api_key")
        self._headers = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        if self._secret:
            self._headers.append((b"authorization", b"Bearer " + self._secret.encode("ascii")))
        # A stream is asked for in the body; what the caller accepts is in its own dialect.
        self._replaced = frozenset({b"accept", b"content-type"})

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        dropped: tuple[str, ...] = ()
        if call.dialect is Dialect.RERANK:
            target, body = b"/rerank", rewrite(call.body, call.peek, model=offer.upstream_model or None)
        elif call.dialect is Dialect.OPENAI_EMBEDDINGS:
            target, (body, dropped) = b"/embed", _embed(call, offer.upstream_model, self._input_type)
        else:
            target, (body, dropped) = b"/chat", _chat(call, offer.upstream_model)
        return UpstreamRequest(
            method=b"POST",
            origin=self._origin,
            target=self._path + target,
            headers=request_headers(call.headers, own=self._headers, drop=self._replaced),
            body=body,
            dropped=dropped,
        )

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        if call.dialect is Dialect.RERANK:
            return JSON_TAPS[Dialect.RERANK](call.dialect)
        if call.dialect is Dialect.OPENAI_EMBEDDINGS:
            return EmbedTap(call, head, _read_embedded)
        if (head.header(b"content-type") or b"").startswith(b"text/event-stream"):
            return _ChatTap(call, head)
        return WholeTap(call, head, _read_answer)

    def listing(self, page: str) -> UpstreamRequest | None:
        # Its older version alone lists models.
        target = self._path.removesuffix(b"/v2") + b"/v1/models?page_size=1000"
        if page:
            target += b"&page_token=" + urllib.parse.quote(page, safe="").encode()
        return UpstreamRequest(
            method=b"GET", origin=self._origin, target=target, headers=[*self._headers[1:]], body=b""
        )

    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        failure = failures.classify(head, body, secret=self._secret)
        if head.status == _INVALID_TOKEN:
            return msgspec.structs.replace(failure, blame="key")
        return failure


# -- requests ------------------------------------------------------------------------------------------------


def _chat(call: Call, model: str) -> tuple[bytes, tuple[str, ...]]:
    request = read_request(call)
    dropped = dropped_members(request.members, _CARRIED, provider="Cohere")
    body: dict[str, object] = {"model": model, "messages": [_message(message) for message in request.messages]}
    if call.peek.stream:
        body["stream"] = True
    for name in _SAME:
        if (raw := request.member(name)) is not None:
            body[name] = raw
    for name, theirs in _RENAMED.items():
        if theirs not in body and (raw := request.member(name)) is not None:
            body[theirs] = raw
    if (limit := request.output_tokens_max) is not None:
        body["max_tokens"] = limit
    if stops := request.stops:
        body["stop_sequences"] = stops
    elif (raw := request.member("stop_sequences")) is not None:
        body["stop_sequences"] = raw
    _add_tools(body, request)
    _add_format(body, request)
    if request.reasoning_effort and "thinking" not in body:
        budget = _BUDGETS.get(request.reasoning_effort)
        body["thinking"] = {"type": "enabled", "token_budget": budget} if budget else {"type": "disabled"}
    return msgspec.json.encode(body), dropped


def _add_tools(body: dict[str, object], request: ChatRequest) -> None:
    tools = tools_of(request)
    wanted = [tool for tool in tools.tools if not tools.name or tool.name == tools.name]
    if wanted:
        # A tool is chosen by offering no other.
        body["tools"] = [{"type": "function", "function": _function(tool)} for tool in wanted]
    if any(tool.strict for tool in wanted):
        body.setdefault("strict_tools", True)
    if wanted and tools.choice in ("required", "none"):
        body["tool_choice"] = tools.choice.upper()


def _function(tool: ToolFunction) -> dict[str, object]:
    schema: object = tool.parameters if bytes(tool.parameters) else {"type": "object", "properties": {}}
    return {"name": tool.name, "description": tool.description or "", "parameters": schema}


def _add_format(body: dict[str, object], request: ChatRequest) -> None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return
    body["response_format"] = {"type": "json_object"}
    if wanted.json_schema is not None and bytes(wanted.json_schema.schema):
        body["response_format"] = {"type": "json_object", "json_schema": wanted.json_schema.schema}


def _message(message: Message) -> dict[str, object]:
    match message.role:
        case "system" | "developer":
            return {"role": "system", "content": text_of(message)}
        case "user":
            if isinstance(message.content, str):
                return {"role": "user", "content": message.content}
            return {"role": "user", "content": [_part(part) for part in parts_of(message)]}
        case "assistant":
            return _assistant(message)
        case "tool":
            return {"role": "tool", "tool_call_id": message.tool_call_id or "", "content": text_of(message)}
    raise BadRequest("A message has a role that can't be translated.", param="messages", code="invalid_value")


def _assistant(message: Message) -> dict[str, object]:
    said: dict[str, object] = {"role": "assistant"}
    thought = message.reasoning_content
    text = text_of(message)
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments or "{}"},
            }
            for call in message.tool_calls
        ]
        if thought:
            said["tool_plan"] = thought
        if text:
            said["content"] = text
    elif thought:
        said["content"] = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": text}]
    else:
        said["content"] = text
    return said


def _part(part: Part) -> dict[str, object]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    if part.type == "image_url" and part.image_url is not None:
        if isinstance(part.image_url, str):
            return {"type": "image_url", "image_url": {"url": part.image_url}}
        image = {"url": part.image_url.url}
        return {"type": "image_url", "image_url": image | ({"detail": d} if (d := part.image_url.detail) else {})}
    raise unsupported(part, "a message for Cohere")


def _embed(call: Call, model: str, input_type: str) -> tuple[bytes, tuple[str, ...]]:
    request = read_embed_request(call)
    members = members_of(call)
    body: dict[str, object] = {
        "model": model,
        "texts": request.texts,
        "input_type": input_type,
        "embedding_types": ["float"],
    }
    if request.dimensions is not None:
        body["output_dimension"] = request.dimensions
    body |= {name: members[name] for name in _EMBED_MEMBERS if name in members}
    return msgspec.json.encode(body), dropped_members(members, READ.union(_EMBED_MEMBERS), provider="Cohere")


# -- answers -------------------------------------------------------------------------------------------------


class _Units(msgspec.Struct, gc=False):
    # Counts come as floats.
    input_tokens: float | None = None
    output_tokens: float | None = None


class _Report(msgspec.Struct):
    billed_units: _Units | None = None
    tokens: _Units | None = None
    cached_tokens: float | None = None

    def usage(self) -> Usage | None:
        counted = self.billed_units or self.tokens
        if counted is None:
            return None
        read = int(counted.input_tokens or 0)
        return Usage(
            input_tokens=read,
            output_tokens=int(counted.output_tokens or 0),
            input_cached_tokens=min(int(self.cached_tokens or 0), read),
        )


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class _Content(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None


_NONE: Final = msgspec.Raw(b"")


class _Piece(msgspec.Struct):
    """What an event adds to the message. At the start it is an empty message, in lists."""

    content: _Content | list[msgspec.Raw] | None = None
    tool_calls: _Call | list[msgspec.Raw] | None = None
    tool_plan: str | None = None
    citations: msgspec.Raw = _NONE


class _Delta(msgspec.Struct):
    message: _Piece | None = None
    finish_reason: str | None = None
    usage: _Report | None = None
    error: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    id: str | None = None
    delta: _Delta | None = None
    message: str | None = None


class _Said(msgspec.Struct):
    content: list[_Content] | None = None
    tool_plan: str | None = None
    tool_calls: list[_Call] | None = None
    citations: list[msgspec.Raw] | None = None


class _Whole(msgspec.Struct):
    message: _Said
    id: str = ""
    finish_reason: str = "COMPLETE"
    usage: _Report | None = None


class _Text(msgspec.Struct, gc=False):
    text: str


class _TextPiece(msgspec.Struct, gc=False):
    content: _Text


class _TextDelta(msgspec.Struct, gc=False):
    message: _TextPiece


class _TextEvent(msgspec.Struct, gc=False):
    """The usual event: a piece of text."""

    delta: _TextDelta


_USUAL: Final = b"event: content-delta\ndata: "

_decode_text_event = msgspec.json.Decoder(_TextEvent).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_whole = msgspec.json.Decoder(_Whole).decode


def _failed(reason: str, message: str | None) -> Failure | None:
    """What a finish reason that is none means."""
    if reason == "TIMEOUT":
        return Failure(
            blame="provider", detail="finish_reason TIMEOUT", message="The provider ran out of time.", status=504
        )
    if reason.startswith("ERROR"):
        said = message or "The provider failed to finish its answer."
        return _broken(f"finish_reason {reason}: {said}", said)
    return None


def _broken(detail: str, said: str) -> Failure:
    return Failure(blame="provider", detail=detail[:300], message=said[:MESSAGE_CHARS_MAX], status=502)


def _read_answer(body: bytes) -> Answer:
    whole = _decode_whole(body)
    usage = whole.usage.usage() if whole.usage is not None else None
    if (failure := _failed(whole.finish_reason, None)) is not None:
        raise BrokenAnswer(failure, usage)
    said = whole.message
    texts = [content.text for content in said.content or () if content.text is not None]
    thoughts = [content.thinking for content in said.content or () if content.thinking]
    calls = [
        Called(call.id or "", call.function.name or "", call.function.arguments or "{}")
        for call in said.tool_calls or ()
        if call.function is not None
    ]
    return Answer(
        id=whole.id,
        text="".join(texts) if texts or not calls else None,
        reasoning="".join((*thoughts, said.tool_plan or "")),
        calls=calls,
        finish=_FINISHES.get(whole.finish_reason, "stop"),
        usage=usage,
        message_more={"citations": said.citations} if said.citations else {},
    )


class _ChatTap(StreamTap):
    """Cohere's events as chunks. Of a tool call only its number is kept: they come one after the other."""

    def __init__(self, call: Call, head: ResponseHead) -> None:
        super().__init__(call, head)
        self._scanner = FrameScanner()
        #: Of the call that is being told, no argument came yet.
        self._bare = False

    def feed(self, data: bytes) -> bytes:
        if self.failure is not None:
            return b""
        if data.startswith(_USUAL) and data.find(b"\n", len(_USUAL)) == len(data) - 2 and self._scanner.resting:
            try:
                text = _decode_text_event(data[len(_USUAL) :]).delta.message.content.text
            except UNREADABLE:
                pass  # a thought, or nothing that is known: the careful way
            else:
                self._deltas += 1
                self._text_chars += len(text)
                return self._chunks.text(text) if text else b""
        try:
            frames = self._scanner.feed(data)
        except EventTooLong:
            self.failure = unreadable("an event is longer than what is read")
            return b""
        return b"".join([self._event(frame.data) for frame in frames if frame.data])

    def end(self) -> bytes:
        last = self._scanner.finish()
        return b"" if last is None or not last.data or self.failure is not None else self._event(last.data)

    def _event(self, data: bytes) -> bytes:
        if self.failure is not None or data == b"[DONE]":
            return b""
        try:
            event = _decode_event(data)
        except UNREADABLE as error:
            # Half an event at the end says only that the stream broke off.
            self.failure = None if self._breaks_off(data) else unreadable(f"an event is not as it should be: {error}")
            return b""
        piece = event.delta.message if event.delta is not None else None
        match event.type:
            case "content-delta" | "content-start":
                return b"" if piece is None else self._content(piece.content)
            case "message-start":
                if event.id:
                    self._chunks.name(f"chatcmpl-{event.id}", self._created)
                return self._chunks.role()
            case "tool-plan-delta" if piece is not None and piece.tool_plan:
                self._count(piece.tool_plan)
                return self._chunks.reasoning(piece.tool_plan)
            case "tool-call-start" | "tool-call-delta" if piece is not None and isinstance(piece.tool_calls, _Call):
                return self._tool(piece.tool_calls, begins=event.type == "tool-call-start")
            case "tool-call-end" if self._bare:
                self._bare = False
                return self._chunks.arguments(self._calls - 1, "{}")
            case "citation-start" if piece is not None and bytes(piece.citations).startswith(b"{"):
                return self._chunks.delta(b'{"citations":[' + bytes(piece.citations) + b"]}")
            case "message-end":
                return self._finish(event.delta or _Delta())
            case "":
                said = event.message or "The provider failed to finish its answer."
                self.failure = _broken(said, said)
        return b""

    def _breaks_off(self, data: bytes) -> bool:
        return not data.rstrip().endswith(b"}")

    def _content(self, content: _Content | list[msgspec.Raw] | None) -> bytes:
        if not isinstance(content, _Content):
            return b""
        if content.text:
            self._count(content.text)
            return self._chunks.text(content.text)
        if content.thinking:
            self._count(content.thinking)
            return self._chunks.reasoning(content.thinking)
        return b""

    def _tool(self, call: _Call, *, begins: bool) -> bytes:
        function = call.function or _Function()
        piece = function.arguments or ""
        self._count(piece)
        if begins:
            self._calls += 1
            self._bare = True
        self._bare = self._bare and not piece
        if begins:
            return self._chunks.call(self._calls - 1, call.id or "", function.name or "", piece)
        return self._chunks.arguments(self._calls - 1, piece) if piece and self._calls else b""

    def _finish(self, delta: _Delta) -> bytes:
        if delta.usage is not None:
            self._usage = delta.usage.usage()
        reason = delta.finish_reason or "COMPLETE"
        self.failure = _failed(reason, delta.error)
        if self.failure is not None:
            return b""
        self.complete = True
        return self._chunks.finish(_FINISHES.get(reason, "stop")) + self._chunks.close(self._usage)


class _Vectors(msgspec.Struct):
    float: list[msgspec.Raw]


class _Meta(msgspec.Struct):
    billed_units: _Units | None = None


class _Embedded(msgspec.Struct):
    embeddings: _Vectors
    meta: _Meta | None = None


_decode_embedded = msgspec.json.Decoder(_Embedded).decode


def _read_embedded(body: bytes) -> Embedded:
    answer = _decode_embedded(body)
    units = answer.meta.billed_units if answer.meta is not None else None
    return Embedded(answer.embeddings.float, None if units is None else int(units.input_tokens or 0))


_: type[Adapter] = Cohere
_translator: Translator = Cohere()
_known: type[Known] = Cohere
