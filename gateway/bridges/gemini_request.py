"""A `generateContent` request, made a chat completion that asks for the same.

What differs most: the results of functions are told by the function's name, not by the id of a call, so that calls
without an id are given one and matched in order; schemas come in Google's own spelling (`schema_of`); pictures,
recordings and files are parts like any other.

Rules:
- Members are read in camel case and with underscores, as Google reads them.
- What only Google can do is refused: its searches and sandboxes, files it keeps, caches, speech and pictures as
  answers. What is a hint or a filter of Google's own is dropped and told.
- Thoughts of earlier turns stay behind, but for those with a signature: it says which provider wants them back, and
  adapters that read such details get them (`reasoning.py`).

Source: https://ai.google.dev/api/generate-content.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.bridges.bridge import NO_EXTENSIONS, Opened
from gateway.bridges.gemini_schema import schema_of
from gateway.bridges.hub import (
    Members,
    chat_call,
    invalid,
    request_members,
    told,
    unsupported,
    without_none,
)
from gateway.bridges.reasoning import GOOGLE, unseal_bytes
from gateway.bridges.reasoning import Reader as Thoughts
from gateway.errors import BadRequest
from gateway.exchange import Call

#: Budgets of reasoning up to which it is little, or middling.
LOW_TOKENS_MAX: Final = 2048
MEDIUM_TOKENS_MAX: Final = 8192

_REFUSED: Final = {"cachedContent": "caches that Google keeps can't be read by another provider."}
_REFUSED_CONFIG: Final = {"speechConfig": "this model does not speak.", "imageConfig": "this model does not draw."}
_JSON: Final = "application/json"
_PLAIN: Final = "text/plain"
_AUDIO_FORMATS: Final = {
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/mp3": "mp3",
    "audio/mpeg": "mp3",
}
_MODES: Final = {"AUTO": "auto", "VALIDATED": "auto", "ANY": "required", "NONE": "none", "MODE_UNSPECIFIED": "auto"}
#: Parts by the members that say what they are.
_FOREIGN_PARTS: Final = ("executableCode", "codeExecutionResult", "toolCall", "toolResponse")

Parts = list[dict[str, object]]

_UNDERSCORE: Final = re.compile(r"_([a-z])")


def camel(name: str) -> str:
    """A member's name as Google writes it."""
    return _UNDERSCORE.sub(lambda found: found[1].upper(), name) if "_" in name else name


def includes_thoughts(call: Call) -> bool:
    """Whether the caller wants to be told what the model thinks."""
    config = request_members(call, spell=camel).raw("generationConfig")
    if config is None:
        return False
    thinking = Members(config, spell=camel).raw("thinkingConfig")
    return thinking is not None and bool(Members(thinking, spell=camel).take("includeThoughts", bool))


def chat_of_gemini(call: Call, extensions: frozenset[str] = NO_EXTENSIONS) -> Opened:
    """The chat completion that asks for the same. `extensions` are what the adapter reads besides.

    Raises:
        BadRequest: naming the member that is malformed, or can't be carried.
    """
    members = request_members(call, spell=camel)
    members.refuse(_REFUSED)
    reader = _Reader(extensions)
    if (raw := members.raw("systemInstruction")) is not None:
        reader.system(raw)
    for number, raw in enumerate(members.need("contents", list[msgspec.Raw])):
        reader.content(raw, f"contents[{number}]")
    chat: dict[str, object] = {"model": call.model, "messages": reader.messages}
    tools = _tools(members, reader)
    config = members.raw("toolConfig")
    if tools:
        chat.update(_tool_choice(tools, config, reader))
    if (raw := members.raw("generationConfig")) is not None:
        _configure(raw, chat, reader)
    chat["stream"] = call.peek.stream or None
    return Opened(chat_call(call, chat), dropped=told([*members.rest(), *reader.dropped]))


class _Reader:
    """Makes chat messages of contents."""

    def __init__(self, extensions: frozenset[str]) -> None:
        self._extensions = extensions
        self.messages: list[dict[str, object]] = []
        #: What was left out on the way.
        self.dropped: list[str] = []
        #: Calls that no result was seen of yet: their ids by name, in order.
        self._open: dict[str, list[str]] = {}
        self._calls = 0

    def system(self, raw: msgspec.Raw) -> None:
        texts = [
            text
            for number, part in enumerate(self._parts_of(raw, "systemInstruction"))
            if (text := self._only_text(part, f"systemInstruction.parts[{number}]"))
        ]
        if texts:
            self.messages.append({"role": "system", "content": "\n\n".join(texts)})

    def content(self, raw: msgspec.Raw, where: str) -> None:
        content = Members(raw, where=f"{where}.", spell=camel)
        role = content.take("role", str) or "user"
        parts = [
            Members(part, where=f"{where}.parts[{number}].", spell=camel)
            for number, part in enumerate(content.take("parts", list[msgspec.Raw]) or ())
        ]
        if role == "model":
            self._model(parts)
        elif role in ("user", "function"):
            self._user(parts)
        else:
            raise BadRequest(f"`{where}.role` must be user or model.", param=f"{where}.role", code="invalid_value")

    def _parts_of(self, raw: msgspec.Raw, where: str) -> list[msgspec.Raw]:
        return Members(raw, where=f"{where}.", spell=camel).take("parts", list[msgspec.Raw]) or []

    def _only_text(self, raw: msgspec.Raw, where: str) -> str:
        text = Members(raw, where=f"{where}.", spell=camel).take("text", str)
        if text is None:
            raise unsupported(where, "only text can stand here.")
        return text

    def _model(self, parts: list[Members]) -> None:
        texts: list[str] = []
        calls: list[dict[str, object]] = []
        secrets = Thoughts(self._extensions)
        #: What was thought since the last signature.
        thoughts: list[str] = []
        for part in parts:
            is_thought = part.take("thought", bool)
            signature = part.take("thoughtSignature", str)
            call = part.raw("functionCall")
            made = None
            if call is not None:
                made = self._call(Members(call, where=f"{part.where}functionCall.", spell=camel))
                calls.append(made)
            if signature is not None:
                details = unseal_bytes(signature, f"{part.where}thoughtSignature")
                if details is not None:
                    secrets.open(details, "".join(thoughts))
                    thoughts.clear()
                else:
                    secrets.hide(signature, form=GOOGLE, call_id=None if made is None else str(made["id"]))
            if is_thought:
                thoughts.append(part.take("text", str) or "")
            elif call is not None:
                continue
            elif (text := part.take("text", str)) is not None:
                texts.append(text)
            else:
                raise _foreign(part)
        message: dict[str, object] = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        secrets.close(message, calls)
        if thoughts:
            self.dropped.append("thoughts")
        if secrets.dropped:
            self.dropped.append("thoughtSignature")
        self.messages.append(message)

    def _call(self, call: Members) -> dict[str, object]:
        name = call.need("name", str)
        self._calls += 1
        id_ = call.take("id", str) or f"call_{self._calls}"
        self._open.setdefault(name, []).append(id_)
        arguments = call.raw("args")
        text = "{}" if arguments is None else bytes(arguments).decode()
        return {"id": id_, "type": "function", "function": {"name": name, "arguments": text}}

    def _user(self, parts: list[Members]) -> None:
        said: Parts = []
        for part in parts:
            raw = part.raw("functionResponse")
            if raw is None:
                said.append(self._part(part))
            else:
                self._result(Members(raw, where=f"{part.where}functionResponse.", spell=camel))
        if said:
            alone = said[0] if len(said) == 1 else {}
            text = alone.get("text") if alone.get("type") == "text" else None
            self.messages.append({"role": "user", "content": said if text is None else text})

    def _result(self, result: Members) -> None:
        name = result.need("name", str)
        id_ = result.take("id", str)
        waiting = self._open.get(name, [])
        if id_ is None:
            if not waiting:
                param = f"{result.where}name"
                raise BadRequest(
                    f"`{param}`: no call of this function is left to have a result.",
                    param=param,
                    code="invalid_value",
                )
            id_ = waiting.pop(0)
        elif id_ in waiting:
            waiting.remove(id_)
        result.refuse({"parts": "a result can only be text here."})
        response = result.raw("response")
        text = "{}" if response is None else bytes(response).decode()
        self.messages.append({"role": "tool", "tool_call_id": id_, "content": text})
        self.dropped += [name.rpartition(".")[2] for name in result.rest()]

    def _part(self, part: Members) -> dict[str, object]:
        """What a user says, as a part of a chat message."""
        text = part.take("text", str)
        inline, linked = part.raw("inlineData"), part.raw("fileData")
        # Which frames of a film, or how closely to look: hints.
        for name in ("videoMetadata", "mediaResolution", "thoughtSignature", "partMetadata"):
            if part.raw(name) is not None:
                self.dropped.append(name)
        part.raw("thought")
        if text is not None:
            return _text_part(text)
        if inline is not None:
            return _inline(Members(inline, where=f"{part.where}inlineData.", spell=camel))
        if linked is not None:
            return _linked(Members(linked, where=f"{part.where}fileData.", spell=camel))
        raise _foreign(part)


def _tools(members: Members, reader: _Reader) -> list[dict[str, object]]:
    tools: list[dict[str, object]] = []
    for number, raw in enumerate(members.take("tools", list[msgspec.Raw]) or ()):
        tool = Members(raw, where=f"tools[{number}].", spell=camel)
        for place, declared in enumerate(tool.take("functionDeclarations", list[msgspec.Raw]) or ()):
            where = f"tools[{number}].functionDeclarations[{place}]."
            function = Members(declared, where=where, spell=camel)
            parameters: object = function.raw("parametersJsonSchema")
            own = function.raw("parameters")
            if parameters is None and own is not None:
                parameters = schema_of(own, f"{where}parameters")
            told_of = {
                "name": function.need("name", str),
                "description": function.take("description", str),
                "parameters": parameters,
            }
            reader.dropped += [name.rpartition(".")[2] for name in function.rest()]
            tools.append({"type": "function", "function": without_none(told_of)})
        if foreign := tool.rest():
            raise unsupported(foreign[0], "this tool runs at Google; no other provider has it.")
    return tools


def _tool_choice(tools: list[dict[str, object]], raw: msgspec.Raw | None, reader: _Reader) -> dict[str, object]:
    """The tools that may be called, and whether one must be."""
    if raw is None:
        return {"tools": tools}
    config = Members(raw, where="toolConfig.", spell=camel)
    calling = config.raw("functionCallingConfig")
    reader.dropped += [name.rpartition(".")[2] for name in config.rest()]
    if calling is None:
        return {"tools": tools}
    rules = Members(calling, where="toolConfig.functionCallingConfig.", spell=camel)
    mode = rules.take("mode", str) or "AUTO"
    allowed = rules.take("allowedFunctionNames", list[str])
    if mode not in _MODES:
        raise BadRequest(
            f"`{rules.where}mode` must be one of {', '.join(_MODES)}.",
            param=f"{rules.where}mode",
            code="invalid_value",
        )
    choice: object = _MODES[mode]
    if allowed and mode in ("ANY", "VALIDATED"):
        tools = [tool for tool in tools if _name_of(tool) in allowed]
        if not tools:
            param = f"{rules.where}allowedFunctionNames"
            raise BadRequest(f"`{param}` names no function that is declared.", param=param, code="invalid_value")
        if mode == "ANY" and len(tools) == 1:
            choice = {"type": "function", "function": {"name": _name_of(tools[0])}}
    return {"tools": tools, "tool_choice": choice}


def _name_of(tool: Mapping[str, Any]) -> str:  # Any: what `_tools` made
    name: str = tool["function"]["name"]
    return name


def _configure(raw: msgspec.Raw, chat: dict[str, object], reader: _Reader) -> None:
    config = Members(raw, where="generationConfig.", spell=camel)
    config.refuse(_REFUSED_CONFIG)
    modalities = config.take("responseModalities", list[str]) or ["TEXT"]
    if any(modality.upper() != "TEXT" for modality in modalities):
        raise unsupported("generationConfig.responseModalities", "this model answers with text only.")
    chat["temperature"] = config.number("temperature")
    chat["top_p"] = config.number("topP")
    chat["n"] = _count(config, "candidateCount")
    chat["max_completion_tokens"] = _count(config, "maxOutputTokens")
    chat["stop"] = config.take("stopSequences", list[str]) or None
    chat["seed"] = _count(config, "seed")
    chat["presence_penalty"] = config.number("presencePenalty")
    chat["frequency_penalty"] = config.number("frequencyPenalty")
    if config.take("responseLogprobs", bool):
        chat["logprobs"] = True
        chat["top_logprobs"] = _count(config, "logprobs")
    else:
        config.raw("logprobs")
    chat["response_format"] = _format(config)
    if (thinking := config.raw("thinkingConfig")) is not None:
        chat["reasoning_effort"] = _effort(Members(thinking, where="generationConfig.thinkingConfig.", spell=camel))
    reader.dropped += [name.rpartition(".")[2] for name in config.rest()]


def _count(members: Members, name: str) -> int | None:
    """An integer, which protobuf's JSON may have in quotes."""
    raw = members.raw(name)
    if raw is None:
        return None
    try:
        # Not strict: "5" is 5.
        return msgspec.json.decode(raw, type=int, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(members.where + name, error) from None


def _format(config: Members) -> dict[str, object] | None:
    kind = config.take("responseMimeType", str)
    schema: object = config.raw("responseJsonSchema") or config.raw("responseFormatJsonSchema")
    own = config.raw("responseSchema")
    if schema is None and own is not None:
        schema = schema_of(own, "generationConfig.responseSchema")
    if kind in (None, "", _PLAIN) and schema is None:
        return None
    if kind not in (None, "", _JSON):
        raise unsupported("generationConfig.responseMimeType", "only text and JSON can be asked for.")
    if schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}


def _effort(thinking: Members) -> str | None:
    """How hard to think, in a word."""
    thinking.raw("includeThoughts")
    level = thinking.take("thinkingLevel", str)
    budget = _count(thinking, "thinkingBudget")
    if level and level != "THINKING_LEVEL_UNSPECIFIED":
        return level.lower()
    if budget is None or budget < 0:
        return None
    if budget == 0:
        return "none"
    return "low" if budget <= LOW_TOKENS_MAX else "medium" if budget <= MEDIUM_TOKENS_MAX else "high"


def _inline(blob: Members) -> dict[str, object]:
    kind = blob.need("mimeType", str).partition(";")[0].strip().lower()
    data = blob.need("data", str)
    if kind.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{_plain(data)}"}}
    if kind in _AUDIO_FORMATS:
        return {"type": "input_audio", "input_audio": {"data": _plain(data), "format": _AUDIO_FORMATS[kind]}}
    if kind == "application/pdf":
        name = blob.take("displayName", str) or "document.pdf"
        return {"type": "file", "file": {"filename": name, "file_data": f"data:{kind};base64,{_plain(data)}"}}
    if kind.startswith("text/") or kind == _JSON:
        try:
            return _text_part(base64.b64decode(_plain(data), validate=True).decode())
        except (binascii.Error, UnicodeDecodeError, ValueError):
            param = f"{blob.where}data"
            raise BadRequest(f"`{param}` is not text in base64.", param=param, code="invalid_value") from None
    raise unsupported(f"{blob.where}mimeType", "this kind of file can't be carried to this provider.")


def _linked(file: Members) -> dict[str, object]:
    uri = file.need("fileUri", str)
    kind = file.take("mimeType", str) or ""
    is_public = uri.startswith(("https://", "http://")) and "//generativelanguage.googleapis.com/" not in uri
    if is_public and (not kind or kind.startswith("image/")):
        return {"type": "image_url", "image_url": {"url": uri}}
    raise unsupported(f"{file.where}fileUri", "only pictures on the web can be linked to; send the file itself.")


def _plain(data: str) -> str:
    """Base64 in its usual letters: Google takes those that are safe in URLs too."""
    return data.replace("-", "+").replace("_", "/")


def _text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def _foreign(part: Members) -> BadRequest:
    where = part.where.rstrip(".")
    for name in _FOREIGN_PARTS:
        if part.raw(name) is not None:
            return unsupported(f"{where}.{name}", "what Google ran itself means nothing to another provider.")
    return unsupported(where, "a part of this kind can't be carried to this provider.")
