"""A chat completion as Bedrock's Converse takes it.

Rules:
- Messages of one role in a row are one turn there, and results of tools are the user's: they come first in the turn.
- Pictures and documents go as bytes (or from S3): Bedrock fetches nothing from the web, and neither does a gateway.
- Members of Converse itself (`guardrailConfig`, `additionalModelRequestFields`, `performanceConfig`, ...) may stand
  in the caller's request, and win over what would be written for them.
- How hard a model is to think is said in words of its own by each maker; for a model of unknown make it is dropped.

Source: Bedrock's API reference, "Converse"; its user guide on tools, prompt caching, reasoning and structured
outputs.
"""

import re
from typing import Final

import msgspec

from gateway.api import BadRequest, Call
from gateway_adapters.anthropic.families import family_of
from gateway_adapters.chat_request import (
    ChatRequest,
    File,
    Message,
    Part,
    ToolFunction,
    arguments_of,
    data_of,
    dropped_members,
    is_kept,
    parts_of,
    read_request,
    tools_of,
    unsupported,
)

Block = dict[str, object]

#: Converse's own.
_SAME: Final = (
    *("additionalModelRequestFields", "additionalModelResponseFieldPaths", "guardrailConfig", "outputConfig"),
    *("performanceConfig", "promptVariables", "requestMetadata", "serviceTier"),
)
_CARRIED: Final = frozenset(
    {*_SAME, "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "service_tier"}
)
_TIERS: Final = frozenset({b'"flex"', b'"priority"'})
_TEMPERATURE_MAX: Final = 1.0

_IMAGE_FORMATS: Final = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_DOCUMENT_FORMATS: Final = {
    "application/msword": "doc",
    "application/pdf": "pdf",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "text/csv": "csv",
    "text/html": "html",
    "text/markdown": "md",
    "text/plain": "txt",
}
#: What Bedrock allows in a document's name and in the id of a call.
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9\-()\[\]]+")
_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9_-]")
_NAME_CHARS_MAX: Final = 200
_ID_CHARS_MAX: Final = 64

#: Where a member stands among those that steer the choice of words.
_INFERENCE: Final = {"temperature": "temperature", "top_p": "topP"}

#: In place of a result without text, which Bedrock refuses.
_NO_TEXT: Final = "(no output)"
_ONLY_JSON: Final = "Reply with one JSON object and nothing else."
_ANY_SCHEMA: Final = {"type": "object", "properties": {}}

#: Tokens to think with, for models that want a number; the effort that each step of Amazon's own models is.
_BUDGETS: Final = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16384, "xhigh": 32768, "max": 32768}
_EFFORTS: Final = ("none", *_BUDGETS)
_BUDGET_MIN: Final = 1024
_NOVA_EFFORTS: Final = {"minimal": "low", "low": "low", "medium": "medium"}
_ANSWER_TOKENS: Final = 4096
#: With what the formats of thoughts begin that Bedrock's models sign.
_CLAUDE: Final = "anthropic"


class Detail(msgspec.Struct):
    """A part of what a model thought, as `reasoning_details` brings it back."""

    type: str = ""
    text: str | None = None
    signature: str | None = None
    data: str | None = None
    format: str | None = None
    index: int | None = None


_decode_details = msgspec.json.Decoder(list[Detail]).decode
_decode_object = msgspec.json.Decoder(dict[str, object]).decode


def write_request(call: Call, model: str) -> tuple[bytes, tuple[str, ...]]:
    """The body for Converse, and the names of members that could not be told.

    Raises:
        BadRequest: the request is malformed, or Bedrock can't do what it needs.
    """
    request = read_request(call)
    return _Writer(request, model).write()


class _Writer:
    """One request. `fields` are for the model's maker, who alone understands them."""

    def __init__(self, request: ChatRequest, model: str) -> None:
        self._request = request
        self._model = model.lower()
        self._is_claude = "claude" in self._model
        self._family = family_of(model)
        self._system: list[Block] = []
        self._turns: list[Block] = []
        self._body: dict[str, object] = {}
        self._inference: dict[str, object] = {}
        self._fields: dict[str, object] = {}
        self._carried = set(_CARRIED)
        #: Tools that the conversation has used, in order.
        self._used: dict[str, None] = {}

    def write(self) -> tuple[bytes, tuple[str, ...]]:
        for message in self._request.messages:
            self._tell(message)
        self._infer()
        self._add_tools()
        self._add_format()
        self._add_reasoning()
        body = self._body
        body["messages"] = self._turns
        if self._system:
            body["system"] = self._system
        if self._inference:
            body["inferenceConfig"] = self._inference
        for name in _SAME:
            if (raw := self._request.member(name)) is not None:
                body[name] = raw
        if (own := self._request.member("additionalModelRequestFields")) is not None:
            self._fields |= _object(own, "additionalModelRequestFields")
        if self._fields:
            body["additionalModelRequestFields"] = self._fields
        dropped = dropped_members(self._request.members, self._carried, provider="Bedrock")
        return msgspec.json.encode(body), dropped

    # -- the conversation ------------------------------------------------------------------------------------

    def _tell(self, message: Message) -> None:
        match message.role:
            case "system" | "developer":
                for part in parts_of(message):
                    if part.type != "text":
                        raise unsupported(part, "a system message")
                    self._system += _marked({"text": part.text}, part)
            case "user":
                blocks = [block for part in parts_of(message) for block in _marked(_content(part), part)]
                self._say("user", blocks)
            case "assistant":
                self._say("assistant", self._answered(message))
            case "tool":
                self._report(message)
            case _:
                raise BadRequest(
                    "A message has a role that can't be translated.", param="messages", code="invalid_value"
                )

    def _say(self, role: str, blocks: list[Block]) -> None:
        if not blocks:
            return
        if self._turns and self._turns[-1]["role"] == role:
            content = self._turns[-1]["content"]
            assert isinstance(content, list)
            content += blocks
        else:
            self._turns.append({"role": role, "content": blocks})

    def _report(self, message: Message) -> None:
        content: list[Block] = []
        marks: list[Block] = []
        for part in parts_of(message):
            block, *mark = _marked(_content(part), part)
            content.append(block)
            marks = mark
        result = {"toolUseId": _id(message.tool_call_id or ""), "content": content or [{"text": _NO_TEXT}]}
        self._say("user", [{"toolResult": result}, *marks])

    def _answered(self, message: Message) -> list[Block]:
        blocks = _thoughts(message)
        for part in parts_of(message):
            if part.type != "text":
                raise unsupported(part, "an answer")
            blocks += _marked({"text": part.text}, part)
        for call in message.tool_calls or ():
            self._used[call.function.name] = None
            use = {"toolUseId": _id(call.id), "name": call.function.name, "input": arguments_of(call)}
            blocks.append({"toolUse": use})
        return blocks

    # -- everything else -------------------------------------------------------------------------------------

    def _infer(self) -> None:
        request, inference = self._request, self._inference
        if (limit := request.output_tokens_max) is not None:
            inference["maxTokens"] = limit
        if (temperature := request.member("temperature")) is not None:
            inference["temperature"] = _TEMPERATURE_MAX if _number(temperature) > _TEMPERATURE_MAX else temperature
        if (top_p := request.member("top_p")) is not None:
            inference["topP"] = top_p
        if stops := [stop for stop in request.stops if stop.strip()]:
            inference["stopSequences"] = stops
        if (tier := request.member("service_tier")) is not None and bytes(tier) in _TIERS:
            self._body["serviceTier"] = {"type": tier}
        if not self._is_claude:
            return
        if self._family.sampling == "none":
            self._forgo("temperature", "top_p")
            return
        if self._family.sampling == "one" and "temperature" in inference:
            self._forgo("top_p")
        if (top_k := request.member("top_k")) is not None:
            self._fields["top_k"] = top_k
            self._carried.add("top_k")

    def _add_tools(self) -> None:
        tools = tools_of(self._request)
        specs: list[Block] = []
        if tools.choice != "none" or self._used:
            for number, tool in enumerate(tools.tools):
                specs.append({"toolSpec": _spec(tool)})
                if number in tools.kept:
                    specs.append({"cachePoint": {"type": "default"}})
        if not specs:
            # Calls in a conversation without tools are refused.
            specs = [{"toolSpec": {"name": name, "inputSchema": {"json": _ANY_SCHEMA}}} for name in self._used]
        if not specs:
            return
        config: dict[str, object] = {"tools": specs}
        if tools.name:
            config["toolChoice"] = {"tool": {"name": tools.name}}
        elif tools.choice == "required":
            config["toolChoice"] = {"any": {}}
        self._body["toolConfig"] = config

    def _add_format(self) -> None:
        wanted = self._request.response_format
        if wanted is None or wanted.type == "text":
            return
        if wanted.json_schema is None or not bytes(wanted.json_schema.schema):
            self._system.append({"text": _ONLY_JSON})
            return
        schema: dict[str, object] = {"schema": bytes(wanted.json_schema.schema).decode("utf-8", "replace")}
        if wanted.json_schema.name:
            schema["name"] = wanted.json_schema.name
        if wanted.json_schema.description:
            schema["description"] = wanted.json_schema.description
        self._body["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": schema}}}

    def _add_reasoning(self) -> None:
        if (own := self._request.member("thinking")) is not None and self._is_claude:
            self._fields["thinking"] = own
            self._carried.add("thinking")
            return
        effort = self._request.reasoning_effort
        if effort is None:
            return
        if effort not in _BUDGETS and effort != "none":
            raise BadRequest("There is no such effort.", param="reasoning_effort", code="invalid_value")
        if self._is_claude:
            told = self._think(effort)
        elif "amazon.nova" in self._model:
            told = True
            if effort != "none":
                strength = _NOVA_EFFORTS.get(effort, "high")
                self._fields["reasoningConfig"] = {"type": "enabled", "maxReasoningEffort": strength}
        elif "openai." in self._model and effort != "none":
            told = True
            self._fields["reasoning_effort"] = {"minimal": "low", "xhigh": "high", "max": "high"}.get(effort, effort)
        else:
            told = effort == "none"
        if told:
            self._carried.add("reasoning_effort")

    def _think(self, effort: str) -> bool:
        """How a Claude is told to think; False where it can't be told so."""
        config = self._body.get("toolConfig")
        if effort == "none":
            if self._family.thinking == "adaptive":
                self._fields["thinking"] = {"type": "disabled"}
            return self._family.thinking != "always"
        if isinstance(config, dict) and "toolChoice" in config:
            return False  # it does not think when it is made to call a tool
        if self._family.thinking in ("adaptive", "always"):
            self._fields["thinking"] = {"type": "adaptive"}
            if known := self._family.efforts:
                rank = _EFFORTS.index(effort)
                level = next((level for level in reversed(known) if _EFFORTS.index(level) <= rank), known[0])
                self._fields["output_config"] = {"effort": level}
        elif self._family.thinking == "budget":
            limit = self._inference.get("maxTokens")
            budget = _BUDGETS[effort]
            if not isinstance(limit, int):
                self._inference["maxTokens"] = budget + _ANSWER_TOKENS
            elif limit <= _BUDGET_MIN:
                return False
            else:
                # Half of what it may say is left for the answer, if it can be.
                budget = min(budget, max(limit // 2, _BUDGET_MIN))
            self._fields["thinking"] = {"type": "enabled", "budget_tokens": budget}
        else:
            return False
        self._forgo("temperature", "top_p")
        return True

    def _forgo(self, *names: str) -> None:
        """Leave out what this model refuses, and tell so."""
        for name in names:
            self._inference.pop(_INFERENCE[name], None)
            self._carried.discard(name)


# -- pieces --------------------------------------------------------------------------------------------------


def _marked(block: Block, part: Part) -> list[Block]:
    """The block, and after it a mark that the prompt up to here is to be kept, where the caller says so."""
    if is_kept(part.prompt_cache_breakpoint):
        return [block, {"cachePoint": {"type": "default"}}]
    if not is_kept(part.cache_control):
        return [block]
    ttl = _object(part.cache_control, "cache_control").get("ttl")
    return [block, {"cachePoint": {"type": "default"} | ({"ttl": ttl} if ttl == "1h" else {})}]


def _content(part: Part) -> Block:
    if part.type == "text":
        return {"text": part.text}
    if part.type == "image_url" and part.image_url is not None:
        return {"image": _image(part.image_url if isinstance(part.image_url, str) else part.image_url.url)}
    if part.type == "file" and part.file is not None:
        return {"document": _document(part.file)}
    raise unsupported(part, "a message for Bedrock")


def _image(url: str) -> Block:
    if url.startswith("s3://"):
        ending = url.rpartition(".")[2].lower()
        form = _IMAGE_FORMATS.get(f"image/{ending.replace('jpg', 'jpeg')}", "png")
        return {"format": form, "source": {"s3Location": {"uri": url}}}
    data = data_of(url)
    if data is None:
        raise BadRequest(
            "Bedrock takes pictures as `data:` URLs or from S3; it fetches none from the web.",
            param="messages",
            code="invalid_image_url",
        )
    media_type, text = data
    if media_type not in _IMAGE_FORMATS:
        raise BadRequest(
            "Bedrock takes pictures as PNG, JPEG, GIF or WebP.", param="messages", code="invalid_image_format"
        )
    return {"format": _IMAGE_FORMATS[media_type], "source": {"bytes": text}}


def _document(file: File) -> Block:
    if not file.file_data:
        raise BadRequest(
            "Bedrock knows no files by id; send `file_data`.", param="messages", code="unsupported_value"
        )
    stem, _, ending = (file.filename or "").rpartition(".")
    data = data_of(file.file_data)
    media_type, text = ("", file.file_data) if data is None else data
    form = _DOCUMENT_FORMATS.get(media_type) or (
        ending.lower() if ending.lower() in _DOCUMENT_FORMATS.values() else ""
    )
    if not form:
        raise BadRequest("Bedrock takes no documents of this type.", param="messages", code="unsupported_value")
    name = _NOT_IN_NAMES.sub(" ", stem or file.filename or "").strip()[:_NAME_CHARS_MAX].strip()
    return {"format": form, "name": name or "document", "source": {"bytes": text}}


def _spec(tool: ToolFunction) -> Block:
    spec: Block = {"name": tool.name}
    if tool.description:
        spec["description"] = tool.description
    spec["inputSchema"] = {"json": tool.parameters if bytes(tool.parameters) else _ANY_SCHEMA}
    if tool.strict:
        spec["strict"] = True
    return spec


def _thoughts(message: Message) -> list[Block]:
    """What the model thought before, where its signature came back with it; without one Bedrock refuses it."""
    if not is_kept(message.reasoning_details):
        return []
    try:
        details = _decode_details(message.reasoning_details)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    joined: dict[object, Detail] = {}
    for number, detail in enumerate(details):
        if detail.format is not None and not detail.format.startswith(_CLAUDE):
            continue  # Another maker's.
        # A stream brings a thought in pieces of one index, the signature last.
        key = (detail.type, number if detail.index is None else ("index", detail.index))
        whole = joined.setdefault(key, Detail(type=detail.type, text=""))
        whole.text = (whole.text or "") + (detail.text or "")
        whole.signature = detail.signature or whole.signature
        whole.data = detail.data or whole.data
    blocks: list[Block] = []
    for detail in joined.values():
        if detail.type == "reasoning.text" and detail.signature:
            told = {"reasoningText": {"text": detail.text or "", "signature": detail.signature}}
            blocks.append({"reasoningContent": told})
        elif detail.type == "reasoning.encrypted" and detail.data:
            blocks.append({"reasoningContent": {"redactedContent": detail.data}})
    return blocks


def _id(call_id: str) -> str:
    return _NOT_IN_IDS.sub("_", call_id)[-_ID_CHARS_MAX:] or "_"


def _number(raw: msgspec.Raw) -> float:
    try:
        return float(bytes(raw))
    except ValueError:
        return 0.0


def _object(raw: msgspec.Raw, name: str) -> dict[str, object]:
    try:
        return _decode_object(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest(f"`{name}` must be an object.", param=name, code="invalid_type") from None
