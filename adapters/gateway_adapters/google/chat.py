"""A chat completion asked for in Google's words: `generateContent`.

Rules:
- System messages, wherever they stand, make up the system instruction. Neighbours of one role are one turn.
- A tool's answer needs the name of the tool: it is looked up by the call's id in the turns before it.
- Schemas, numbers and tool arguments are passed on as they were written.
- A signature goes back onto the part it was on: a call's is in its `extra_content`, or in the `reasoning_details`
  under the call's id, or still known here (`signatures.py`); one without an id is of what the model said.
- Nothing is fetched. An image behind an https URL is named to Google, which fetches public ones itself; one behind
  plain http can't be had.

Source: the references of the Gemini API and of Vertex AI, GenerateContentRequest.
"""

import re
from typing import Final

import msgspec

from gateway.api import BadRequest, Call
from gateway_adapters.chat_request import (
    NONE,
    ChatRequest,
    Image,
    Message,
    Part,
    ToolCall,
    Tools,
    arguments_of,
    data_of,
    dropped_members,
    is_kept,
    parts_of,
    read_request,
    text_of,
    tools_of,
    unsupported,
)
from gateway_adapters.google.signatures import UNKNOWN, Signatures
from gateway_adapters.google.thinking import needs_signatures, own_words, thinking_of

STOPS_MAX: Final = 5
#: With what the formats of Google's signatures begin.
_FORMAT: Final = "google"

#: Said in the same words, but for the underscores.
_SAME: Final = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "n": "candidateCount",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
_CARRIED: Final = frozenset(
    {
        *_SAME,
        *("max_tokens", "max_completion_tokens", "stop", "reasoning_effort", "reasoning", "modalities", "extra_body"),
    }
)
_MODALITIES: Final = {"text": "TEXT", "image": "IMAGE"}
_MODES: Final = {"auto": "AUTO", "required": "ANY", "none": "NONE"}
#: By the ending of a file's name.
_TYPES: Final = {
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "heic": "image/heic",
    "heif": "image/heif",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "pdf": "application/pdf",
    "json": "application/json",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mpeg": "video/mpeg",
    "mp3": "audio/mp3",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "txt": "text/plain",
    "md": "text/markdown",
    "csv": "text/csv",
    "html": "text/html",
}
#: Google's files API, and what it fetches itself.
_FETCHED: Final = ("https://", "gs://")
_FILE_NAME: Final = re.compile(r"files/[\w-]{1,64}")
_FILES: Final = "https://generativelanguage.googleapis.com/v1beta/"

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_modalities = msgspec.json.Decoder(list[str]).decode
_encode = msgspec.json.Encoder().encode


class _Google(msgspec.Struct):
    thought_signature: str | None = None


class _Extra(msgspec.Struct):
    google: _Google = msgspec.field(default_factory=_Google)


class _Detail(msgspec.Struct):
    """A signature as OpenRouter's clients know it."""

    type: str = ""
    format: str | None = None
    id: str | None = None
    data: str | None = None


_decode_extra = msgspec.json.Decoder(_Extra).decode
_decode_details = msgspec.json.Decoder(list[_Detail]).decode


def generate_request(call: Call, model: str, signatures: Signatures) -> tuple[bytes, tuple[str, ...]]:
    """The body that asks `model` for the same, and the names of what it can't be told.

    Raises:
        BadRequest: the request is malformed, or asks for what can't be had from Google.
    """
    request = read_request(call)
    dropped = dropped_members(request.members, _CARRIED, provider="Google")
    thinking = thinking_of(request, model)
    if thinking is None and request.reasoning_effort is not None:
        dropped = (*dropped, "reasoning_effort")
    tools = tools_of(request)
    contents, system = _Turns(model, signatures, call.account_id).of(request.messages)
    if not contents:
        # Google wants a turn to answer.
        contents, system = [{"role": "user", "parts": system}], []
    body: dict[str, object] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    _put_tools(body, tools)
    if config := _config(request, thinking):
        body["generationConfig"] = config
    own = own_words(request)
    if bytes(own.cached_content):
        body["cachedContent"] = own.cached_content
    if bytes(own.safety_settings):
        body["safetySettings"] = own.safety_settings
    return _encode(body), dropped


def _config(request: ChatRequest, thinking: object) -> dict[str, object]:
    config: dict[str, object] = {}
    for name, theirs in _SAME.items():
        if (raw := request.member(name)) is not None:
            config[theirs] = raw
    if request.output_tokens_max is not None:
        config["maxOutputTokens"] = request.output_tokens_max
    if stops := request.stops:
        if len(stops) > STOPS_MAX:
            raise BadRequest(f"Google takes {STOPS_MAX} stop sequences at most.", param="stop", code="invalid_value")
        config["stopSequences"] = stops
    if thinking is not None:
        config["thinkingConfig"] = thinking
    if (raw := request.member("modalities")) is not None:
        config["responseModalities"] = _modalities(raw)
    if (wanted := request.response_format) is not None and wanted.type != "text":
        config["responseMimeType"] = "application/json"
        if wanted.type == "json_schema" and wanted.json_schema is not None and bytes(wanted.json_schema.schema):
            config["responseJsonSchema"] = wanted.json_schema.schema
    return config


def _modalities(raw: msgspec.Raw) -> list[str]:
    try:
        return [_MODALITIES[name] for name in _decode_modalities(raw)]
    except (msgspec.DecodeError, KeyError):
        known = ", ".join(_MODALITIES)
        raise BadRequest(
            f"`modalities` may have these only: {known}.", param="modalities", code="unsupported_value"
        ) from None


def _put_tools(body: dict[str, object], tools: Tools) -> None:
    if not tools.tools:
        return
    declarations = []
    for tool in tools.tools:
        declaration: dict[str, object] = {"name": tool.name}
        if tool.description is not None:
            declaration["description"] = tool.description
        if bytes(tool.parameters) not in (b"", b"null"):
            declaration["parametersJsonSchema"] = tool.parameters
        declarations.append(declaration)
    body["tools"] = [{"functionDeclarations": declarations}]
    if tools.choice:
        calling: dict[str, object] = {"mode": _MODES[tools.choice]}
        if tools.name:
            calling["allowedFunctionNames"] = [tools.name]
        body["toolConfig"] = {"functionCallingConfig": calling}


class _Turns:
    """The messages of one conversation, as turns."""

    def __init__(self, model: str, signatures: Signatures, account_id: int) -> None:
        self._signatures = signatures
        self._account_id = account_id
        self._signed = needs_signatures(model)
        #: The names of the tools by the ids of their calls.
        self._names: dict[str, str] = {}
        self._turns: list[dict[str, object]] = []
        self._system: list[dict[str, object]] = []
        self._role = ""
        self._parts: list[dict[str, object]] = []

    def of(self, messages: list[Message]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """All turns, and the parts of the system instruction."""
        for number, message in enumerate(messages):
            match message.role:
                case "system" | "developer":
                    if text := text_of(message):
                        self._system.append({"text": text})
                case "user":
                    self._add("user", [_part_of(part) for part in parts_of(message)])
                case "assistant":
                    self._add("model", self._said(message))
                case "tool":
                    self._add("user", [self._answered(message, number)])
                case _:
                    raise BadRequest(
                        f"messages[{number}] is of a role that there is not.", param="messages", code="invalid_value"
                    )
        return self._turns, self._system

    def _add(self, role: str, parts: list[dict[str, object]]) -> None:
        if not parts:
            return
        if role != self._role:
            self._role, self._parts = role, []
            self._turns.append({"role": role, "parts": self._parts})
        self._parts += parts

    def _said(self, message: Message) -> list[dict[str, object]]:
        """What the model said, and the calls it made."""
        parts = [_part_of(part) for part in parts_of(message)]
        known = _signatures_of(message)
        if (said := known.get("")) is not None:
            if not parts:
                parts.append({"text": ""})
            parts[-1]["thoughtSignature"] = said
        for number, call in enumerate(message.tool_calls or ()):
            name = call.function.name
            self._names[call.id] = name
            part: dict[str, object] = {"functionCall": {"id": call.id, "name": name, "args": arguments_of(call)}}
            signature = _signature_of(call) or known.get(call.id)
            signature = signature or self._signatures.find(self._account_id, call.id, name)
            if signature is None and self._signed and number == 0:
                # Of calls made at once only the first has one.
                signature = UNKNOWN
            if signature is not None:
                part["thoughtSignature"] = signature
            parts.append(part)
        return parts

    def _answered(self, message: Message, number: int) -> dict[str, object]:
        """What a tool answered."""
        call_id = message.tool_call_id or ""
        name = self._names.get(call_id)
        if name is None:
            shown = "".join(letter if letter.isprintable() else "?" for letter in call_id[:64])
            raise BadRequest(
                f"messages[{number}] answers the tool call `{shown}`, which no message before it makes.",
                param=f"messages[{number}].tool_call_id",
                code="invalid_value",
            )
        text = text_of(message)
        response: object
        try:
            _decode_object(text)
            response = msgspec.Raw(text.encode())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            response = {"output": text}
        return {"functionResponse": {"id": call_id, "name": name, "response": response}}


def _signatures_of(message: Message) -> dict[str, str]:
    """The signatures among the details of a message, by the ids of the calls they are of; "" for what it said."""
    if not is_kept(message.reasoning_details):
        return {}
    try:
        details = _decode_details(message.reasoning_details)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {
        detail.id or "": detail.data
        for detail in details
        if detail.data and detail.format is not None and detail.format.startswith(_FORMAT)
    }


def _signature_of(call: ToolCall) -> str | None:
    """The signature that the caller gave back."""
    if call.extra_content is NONE:
        return None
    try:
        return _decode_extra(call.extra_content).google.thought_signature
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _part_of(part: Part) -> dict[str, object]:
    match part.type:
        case "text":
            return {"text": part.text}
        case "image_url" if part.image_url is not None:
            return _media(part.image_url, "image")
        case "video_url" if part.video_url is not None:
            return _media(part.video_url, "video")
        case "input_audio" if part.input_audio is not None:
            kind = f"audio/{part.input_audio.format}"
            return {"inlineData": {"mimeType": kind, "data": part.input_audio.data}}
        case "file" if part.file is not None:
            return _file_of(part)
        case _:
            raise unsupported(part, "a request to Google")


def _media(image: Image | str, kind: str) -> dict[str, object]:
    url = image if isinstance(image, str) else image.url
    if (found := data_of(url)) is not None:
        return {"inlineData": {"mimeType": found[0], "data": found[1]}}
    return _fetched(url, kind)


def _fetched(url: str, kind: str) -> dict[str, object]:
    """What Google fetches itself. It is told a type: where the name does not tell, the usual one of its kind."""
    if not url.lower().startswith(_FETCHED):
        raise BadRequest(
            "Google fetches from https:// and gs:// URLs only; send anything else as a data: URL.",
            param="messages",
            code="invalid_image_url",
        )
    usual = {"image": "image/jpeg", "video": "video/mp4"}.get(kind, "application/pdf")
    return {"fileData": {"mimeType": _type_of(url.partition("?")[0].partition("#")[0]) or usual, "fileUri": url}}


def _type_of(name: str) -> str | None:
    return _TYPES.get(name.rpartition(".")[2].lower())


def _file_of(part: Part) -> dict[str, object]:
    file = part.file
    assert file is not None
    if file.file_data is not None:
        if (found := data_of(file.file_data)) is not None:
            return {"inlineData": {"mimeType": found[0], "data": found[1]}}
        if file.file_data.startswith("https://"):
            return _fetched(file.file_data, "file")
        kind = _type_of(file.filename or "") or "application/pdf"
        return {"inlineData": {"mimeType": kind, "data": file.file_data}}
    if file.file_id is not None and file.file_id.startswith(_FETCHED):
        return _fetched(file.file_id, "file")
    if file.file_id is not None and _FILE_NAME.fullmatch(file.file_id):
        return {"fileData": {"fileUri": _FILES + file.file_id}}
    raise BadRequest(
        "A file has to be sent in `file_data`, or named as Google's files API does (`files/...`).",
        param="messages",
        code="unsupported_value",
    )
