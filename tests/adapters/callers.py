"""What callers ask in each dialect, and how they read the answer: the same few questions, in everybody's words."""

import base64
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from gateway.api import Call, peek
from gateway.wire.dialects import GEMINI_DIALECTS
from gateway.wire.gemini import peek_gemini
from gateway.wire.paths import resolve
from tests.adapters.scripted import TOOL

MODEL: Final = "m"
#: A picture, and what must reach the provider of it, however it is wrapped.
PICTURE: Final = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(40))).decode()
#: What a tool found out in an earlier turn.
FOUND: Final = "It rains in Bergen."
#: The one property of the schema that answers are to have.
PROPERTY: Final = "zebra"

_SCHEMA: Final = {
    "type": "object",
    "properties": {PROPERTY: {"type": "integer"}},
    "required": [PROPERTY],
    "additionalProperties": False,
}
_PARAMETERS: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}

decode = msgspec.json.decode


class Said(msgspec.Struct):
    """What a caller made of an answer."""

    text: str = ""
    tool: str = ""
    arguments: str = ""
    #: The answer says how it ended.
    finished: bool = False
    #: An error stood in it.
    error: str = ""


class Dialogue(msgspec.Struct, frozen=True):
    """A dialect, as one kind of caller speaks it."""

    title: str
    path: str
    #: The members of a request for each question; a question that is missing can't be asked.
    questions: dict[str, dict[str, Any]]
    read: Callable[[bytes], Said]
    read_stream: Callable[[bytes], Said] | None = None
    #: It is always a stream, or never.
    streams: bool | None = None

    def call(self, question: str, *, stream: bool) -> Call:
        body = dict(self.questions[question])
        if stream and self.streams is None:
            body["stream"] = True
        resolved = resolve(self.path.encode())
        assert resolved is not None
        encoded = msgspec.json.encode(body)
        native = resolved.dialect in GEMINI_DIALECTS
        return Call(
            id="01900000-0000-7000-8000-000000000000",
            dialect=resolved.dialect,
            method="POST",
            path=resolved.path,
            query=b"alt=sse" if native and stream else b"",
            headers=[(b"content-type", b"application/json"), (b"user-agent", b"matrix")],
            body=encoded,
            peek=peek_gemini(encoded, stream=resolved.stream) if native else peek(encoded),
            model=resolved.model or MODEL,
        )


def events(body: bytes) -> Iterator[dict[str, Any]]:
    """The data of an event stream; `[DONE]` is an empty one."""
    for event in body.split(b"\n\n"):
        for line in event.split(b"\n"):
            if line.startswith(b"data: "):
                yield {} if line == b"data: [DONE]" else decode(line[6:])


# -- OpenAI ----------------------------------------------------------------------------------------------------------

_CHAT_TOOL: Final = {
    "type": "function",
    "function": {"name": TOOL, "description": "Looks up.", "parameters": _PARAMETERS},
}
_CHAT: Final = {
    "plain": {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]},
    "tools": {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Bergen?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_0", "type": "function", "function": {"name": TOOL, "arguments": '{"city":"Bergen"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "call_0", "content": FOUND},
            {"role": "user", "content": "And Oslo?"},
        ],
        "tools": [_CHAT_TOOL],
        "tool_choice": "auto",
    },
    "image": {
        "model": MODEL,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
                ],
            }
        ],
    },
    "schema": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "How many?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "out", "schema": _SCHEMA, "strict": True}},
    },
}


def _read_chat(body: bytes) -> Said:
    [choice] = decode(body)["choices"]
    said = Said(text=choice["message"].get("content") or "", finished=bool(choice["finish_reason"]))
    for call in choice["message"].get("tool_calls") or ():
        said.tool, said.arguments = call["function"]["name"], call["function"]["arguments"]
    return said


def _read_chat_stream(body: bytes) -> Said:
    said = Said()
    for event in events(body):
        said.error = said.error or event.get("error", {}).get("message", "")
        for choice in event.get("choices", ()):
            delta = choice["delta"]
            said.text += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                said.tool += call["function"].get("name") or ""
                said.arguments += call["function"].get("arguments") or ""
            said.finished = said.finished or bool(choice["finish_reason"])
    return said


_COMPLETIONS: Final = {"plain": {"model": MODEL, "prompt": "Hi"}}


def _read_completion(body: bytes) -> Said:
    [choice] = decode(body)["choices"]
    return Said(text=choice["text"], finished=bool(choice["finish_reason"]))


def _read_completion_stream(body: bytes) -> Said:
    said = Said()
    for event in events(body):
        said.error = said.error or event.get("error", {}).get("message", "")
        for choice in event.get("choices", ()):
            said.text += choice["text"]
            said.finished = said.finished or bool(choice["finish_reason"])
    return said


_RESPONSES: Final = {
    "plain": {"model": MODEL, "input": "Hi"},
    "tools": {
        "model": MODEL,
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "Bergen?"},
            {"type": "function_call", "call_id": "call_0", "name": TOOL, "arguments": '{"city":"Bergen"}'},
            {"type": "function_call_output", "call_id": "call_0", "output": FOUND},
            {"role": "user", "content": "And Oslo?"},
        ],
        "tools": [
            {
                "type": "function",
                "name": TOOL,
                "description": "Looks up.",
                "parameters": _PARAMETERS,
                "strict": False,
            }
        ],
    },
    "image": {
        "model": MODEL,
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is it?"},
                    {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}", "detail": "auto"},
                ],
            }
        ],
    },
    "schema": {
        "model": MODEL,
        "input": "How many?",
        "text": {"format": {"type": "json_schema", "name": "out", "schema": _SCHEMA, "strict": True}},
    },
}


def _read_response(body: bytes) -> Said:
    return _response_said(decode(body))


def _response_said(response: dict[str, Any]) -> Said:
    said = Said(finished=response["status"] == "completed")
    for item in response["output"]:
        if item["type"] == "message":
            said.text += "".join(part["text"] for part in item["content"])
        elif item["type"] == "function_call":
            said.tool, said.arguments = item["name"], item["arguments"]
    return said


def _read_response_stream(body: bytes) -> Said:
    said = Said()
    for number, event in enumerate(events(body)):
        assert event["sequence_number"] == number, "numbers without gaps"
        match event["type"]:
            case "response.output_text.delta":
                said.text += event["delta"]
            case "response.output_item.added" if event["item"]["type"] == "function_call":
                said.tool = event["item"]["name"]
            case "response.function_call_arguments.delta":
                said.arguments += event["delta"]
            case "response.completed":
                # What the last event repeats is what was said.
                whole = _response_said(event["response"])
                assert (whole.text, whole.tool, whole.arguments) == (said.text, said.tool, said.arguments)
                said.finished = whole.finished
            case "error":
                said.error = event["message"]
    return said


_EMBEDDINGS: Final = {"plain": {"model": MODEL, "input": "Hi"}}


def _read_embedding(body: bytes) -> Said:
    [found] = decode(body)["data"]
    vector = found["embedding"]
    if isinstance(vector, str):
        raw = base64.b64decode(vector)
        vector = list(struct.unpack(f"<{len(raw) // 4}f", raw))
    return Said(text=str(vector), finished=True)


# -- Anthropic -------------------------------------------------------------------------------------------------------

_MESSAGES: Final = {
    "plain": {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]},
    "tools": {
        "model": MODEL,
        "max_tokens": 100,
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Bergen?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "toolu_0", "name": TOOL, "input": {"city": "Bergen"}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_0", "content": FOUND},
                    {"type": "text", "text": "And Oslo?"},
                ],
            },
        ],
        "tools": [{"name": TOOL, "description": "Looks up.", "input_schema": _PARAMETERS}],
        "tool_choice": {"type": "auto"},
    },
    "image": {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
                    {"type": "text", "text": "What is it?"},
                ],
            }
        ],
    },
    "schema": {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "How many?"}],
        "output_config": {"format": {"type": "json_schema", "schema": _SCHEMA}},
    },
}


def _read_message(body: bytes) -> Said:
    message = decode(body)
    said = Said(finished=message["stop_reason"] is not None)
    for block in message["content"]:
        if block["type"] == "text":
            said.text += block["text"]
        elif block["type"] == "tool_use":
            said.tool, said.arguments = block["name"], msgspec.json.encode(block["input"]).decode()
    return said


def _read_message_stream(body: bytes) -> Said:
    said, ended = Said(), False
    for event in events(body):
        match event["type"]:
            case "content_block_start" if event["content_block"]["type"] == "tool_use":
                said.tool = event["content_block"]["name"]
            case "content_block_delta":
                said.text += event["delta"].get("text", "")
                said.arguments += event["delta"].get("partial_json", "")
            case "message_delta":
                ended = event["delta"]["stop_reason"] is not None
            case "message_stop":
                said.finished = ended
            case "error":
                said.error = event["error"]["message"]
    return said


_COUNT: Final = {
    question: {name: value for name, value in body.items() if name != "max_tokens"}
    for question, body in _MESSAGES.items()
}


def _read_count(body: bytes) -> Said:
    return Said(text=str(decode(body)["input_tokens"]), finished=True)


# -- Google ----------------------------------------------------------------------------------------------------------

_CONTENTS: Final = {
    "plain": {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]},
    "tools": {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Bergen?"}]},
            {"role": "model", "parts": [{"functionCall": {"name": TOOL, "args": {"city": "Bergen"}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": TOOL, "response": {"result": FOUND}}}]},
            {"role": "user", "parts": [{"text": "And Oslo?"}]},
        ],
        "tools": [
            {
                "functionDeclarations": [
                    {
                        "name": TOOL,
                        "description": "Looks up.",
                        "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}},
                    }
                ]
            }
        ],
    },
    "image": {
        "contents": [
            {
                "role": "user",
                "parts": [{"text": "What is it?"}, {"inlineData": {"mimeType": "image/png", "data": PICTURE}}],
            }
        ]
    },
    "schema": {
        "contents": [{"role": "user", "parts": [{"text": "How many?"}]}],
        "generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": _SCHEMA},
    },
}


def _read_contents(body: bytes) -> Said:
    said = Said()
    _add_contents(said, decode(body))
    return said


def _read_contents_stream(body: bytes) -> Said:
    said = Said()
    for event in events(body):
        _add_contents(said, event)
    return said


def _add_contents(said: Said, event: dict[str, Any]) -> None:
    said.error = said.error or event.get("error", {}).get("message", "")
    for candidate in event.get("candidates", ()):
        for part in candidate.get("content", {}).get("parts", ()):
            said.text += part.get("text", "")
            if call := part.get("functionCall"):
                said.tool, said.arguments = call["name"], msgspec.json.encode(call["args"]).decode()
        said.finished = said.finished or "finishReason" in candidate


def _read_total(body: bytes) -> Said:
    return Said(text=str(decode(body)["totalTokens"]), finished=True)


def _read_values(body: bytes) -> Said:
    return Said(text=str(decode(body)["embedding"]["values"]), finished=True)


_AT: Final = f"/v1beta/models/{MODEL}:"

#: Everybody who may call, in the order of the table.
DIALOGUES: Final = (
    Dialogue("OpenAI chat completions", "/v1/chat/completions", _CHAT, _read_chat, _read_chat_stream),
    Dialogue("OpenAI completions", "/v1/completions", _COMPLETIONS, _read_completion, _read_completion_stream),
    Dialogue("OpenAI responses", "/v1/responses", _RESPONSES, _read_response, _read_response_stream),
    Dialogue("OpenAI embeddings", "/v1/embeddings", _EMBEDDINGS, _read_embedding, streams=False),
    Dialogue("Anthropic messages", "/v1/messages", _MESSAGES, _read_message, _read_message_stream),
    Dialogue("Anthropic count_tokens", "/v1/messages/count_tokens", _COUNT, _read_count, streams=False),
    Dialogue("Gemini generateContent", f"{_AT}generateContent", _CONTENTS, _read_contents, streams=False),
    Dialogue(
        "Gemini streamGenerateContent",
        f"{_AT}streamGenerateContent",
        _CONTENTS,
        _read_contents,
        _read_contents_stream,
        streams=True,
    ),
    Dialogue("Gemini countTokens", f"{_AT}countTokens", _CONTENTS, _read_total, streams=False),
    Dialogue(
        "Gemini embedContent",
        f"{_AT}embedContent",
        {"plain": {"content": {"parts": [{"text": "Hi"}]}}},
        _read_values,
        streams=False,
    ),
)
