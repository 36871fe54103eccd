"""What providers answer, in each format that one of them has: the same few answers, whoever is asked.

`answer` looks at what was asked (the path tells the format) and answers in that format: a text, the call of a tool, an
error, an error in the middle of a stream. The shapes are those of the providers' references. Sizes are the same
everywhere, so that what is counted can be compared: 11 tokens in, 5 out.
"""

import base64
from typing import Any, Final, NamedTuple

import msgspec

from gateway.api import ResponseHead, UpstreamRequest
from gateway.testing.cases import frame

INPUT_TOKENS: Final = 11
OUTPUT_TOKENS: Final = 5
TEXT: Final = ("Hel", "lo ", "there.")
TOOL: Final = "look_up"
ARGUMENTS: Final = ('{"city"', ':"Oslo"}')
#: What a provider says of a request that it refuses, and of a stream that it can't go on with.
REFUSED: Final = "There is too much of it."
BROKEN: Final = "The model is out of breath."
VECTOR: Final = [0.5, -1.0]

JSON: Final = b"application/json"
SSE: Final = b"text/event-stream"
FRAMES: Final = b"application/vnd.amazon.eventstream"
_WHOLE_TEXT: Final = "".join(TEXT)
_WHOLE_ARGUMENTS: Final = "".join(ARGUMENTS)
_CREATED: Final = 1790000000

encode = msgspec.json.encode


class Answer(NamedTuple):
    """An answer, as it comes: for a stream, each event by itself."""

    head: ResponseHead
    pieces: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def wire_of(request: UpstreamRequest) -> str:
    """The format that a request asks for, from its path."""
    path = request.target.partition(b"?")[0].decode()
    verb = path.rpartition(":")[2] if ":" in path.rpartition("/")[2] else path.rpartition("/")[2]
    if path.endswith("/chat/completions"):
        return "chat"
    if path.endswith("/v2/chat"):
        return "cohere"
    return {
        "completions": "completions",
        "responses": "responses",
        "embeddings": "embeddings",
        "messages": "messages",
        "count_tokens": "count_tokens",
        "generateContent": "gemini",
        "streamGenerateContent": "gemini",
        "countTokens": "countTokens",
        "embedContent": "embedContent",
        "batchEmbedContents": "batchEmbedContents",
        "predict": "predict",
        "converse": "converse",
        "converse-stream": "converse",
        "invoke": "invoke",
        "invoke-with-response-stream": "invoke",
        "count-tokens": "count-tokens",
        "embed": "embed",
    }[verb]


def is_streamed(request: UpstreamRequest) -> bool:
    path = request.target.partition(b"?")[0]
    assert isinstance(request.body, bytes)
    return (
        path.endswith((b":streamGenerateContent", b"/converse-stream", b"/invoke-with-response-stream"))
        or b'"stream":true' in request.body
    )


def answer(request: UpstreamRequest, kind: str) -> Answer:
    """`kind` is text, tool, refusal (before) or break (inside)."""
    wire = wire_of(request)
    if kind == "refusal":
        return _refusal(wire)
    if wire == "invoke" and b'"messages"' in _bytes(request):
        # Anthropic's own words, in Amazon's frames.
        if is_streamed(request):
            return Answer(_head(FRAMES, wire), [_chunk(event) for event in _message_stream(kind)])
        return Answer(_head(JSON, wire), [encode(_message(kind))])
    if not is_streamed(request):
        return Answer(_head(JSON, wire), [encode(_WHOLE[wire](kind))])
    if wire == "converse":
        return Answer(_head(FRAMES, wire), _converse_frames(kind))
    return Answer(_head(SSE, wire), _STREAMS[wire](kind))


def _bytes(request: UpstreamRequest) -> bytes:
    assert isinstance(request.body, bytes)
    return request.body


def _chunk(event: bytes) -> bytes:
    """An event as InvokeModelWithResponseStream puts it into a frame."""
    data = event.partition(b"data: ")[2].strip()
    if data.startswith(b'{"type":"error"'):
        headers = {":message-type": "exception", ":exception-type": "modelStreamErrorException"}
        return frame(headers, encode({"message": BROKEN}))
    headers = {":message-type": "event", ":event-type": "chunk", ":content-type": "application/json"}
    return frame(headers, encode({"bytes": base64.b64encode(data).decode(), "p": "abc"}))


def _head(content_type: bytes, wire: str, status: int = 200) -> ResponseHead:
    headers = [(b"content-type", content_type), (b"date", b"Sun, 22 Nov 2026 10:00:00 GMT")]
    if wire in ("converse", "invoke", "count-tokens"):
        headers.append((b"x-amzn-requestid", b"8c5b"))
    return ResponseHead(status, headers)


def _refusal(wire: str) -> Answer:
    body: dict[str, Any] = {
        "error": {"message": REFUSED, "type": "invalid_request_error", "param": None, "code": None}
    }
    if wire in ("messages", "count_tokens"):
        body = {"type": "error", "error": {"type": "invalid_request_error", "message": REFUSED}}
    elif wire in ("gemini", "countTokens", "embedContent", "batchEmbedContents", "predict"):
        body = {"error": {"code": 400, "message": REFUSED, "status": "INVALID_ARGUMENT"}}
    elif wire in ("converse", "invoke", "count-tokens", "cohere", "embed"):
        body = {"message": REFUSED}
    head = _head(JSON, wire, 400)
    if wire in ("converse", "invoke", "count-tokens"):
        head.headers.append((b"x-amzn-errortype", b"ValidationException:http://internal.amazon.com/coral/"))
    return Answer(head, [encode(body)])


# -- OpenAI ----------------------------------------------------------------------------------------------------------

_CHAT_USAGE: Final = {
    "prompt_tokens": INPUT_TOKENS,
    "completion_tokens": OUTPUT_TOKENS,
    "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
}
_CHAT_ERROR: Final = {"error": {"message": BROKEN, "type": "server_error", "param": None, "code": None}}


def _sse(*events: object) -> list[bytes]:
    return [b"data: %b\n\n" % (event if isinstance(event, bytes) else encode(event)) for event in events]


def _named(*events: dict[str, Any]) -> list[bytes]:
    return [b"event: %b\ndata: %b\n\n" % (event["type"].encode(), encode(event)) for event in events]


def _chat(kind: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _WHOLE_TEXT, "refusal": None}
    if kind == "tool":
        call = {"id": "call_1", "type": "function", "function": {"name": TOOL, "arguments": _WHOLE_ARGUMENTS}}
        message |= {"content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if kind == "tool" else "stop"}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": _CREATED, "model": "m-1"}
    return {**head, "choices": [choice], "usage": _CHAT_USAGE}


def _chat_stream(kind: str) -> list[bytes]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": _CREATED, "model": "m-1"}
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}

    begin = chunk({"role": "assistant", "content": ""})
    if kind == "break":
        return _sse(begin, chunk({"content": TEXT[0]}), _CHAT_ERROR)
    if kind == "tool":
        first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": TOOL, "arguments": ""}}
        said = [{"tool_calls": [first]}]
        said += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in ARGUMENTS]
    else:
        said = [{"content": piece} for piece in TEXT]
    end = chunk({}, "tool_calls" if kind == "tool" else "stop")
    usage = {**chunk({}), "choices": [], "usage": _CHAT_USAGE}
    return _sse(begin, *map(chunk, said), end, usage, b"[DONE]")


def _completion(kind: str) -> dict[str, Any]:
    choice = {"text": _WHOLE_TEXT, "index": 0, "logprobs": None, "finish_reason": "stop"}
    head = {"id": "cmpl-1", "object": "text_completion", "created": _CREATED, "model": "m-1"}
    return {**head, "choices": [choice], "usage": _CHAT_USAGE}


def _completion_stream(kind: str) -> list[bytes]:
    def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
        head = {"id": "cmpl-1", "object": "text_completion", "created": _CREATED, "model": "m-1"}
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
        return {**head, "choices": [choice], "usage": None}

    if kind == "break":
        return _sse(chunk(TEXT[0]), _CHAT_ERROR)
    usage = {**chunk(""), "choices": [], "usage": _CHAT_USAGE}
    return _sse(*map(chunk, TEXT), chunk("", "stop"), usage, b"[DONE]")


def _response(kind: str, status: str = "completed") -> dict[str, Any]:
    content = [{"type": "output_text", "text": _WHOLE_TEXT, "annotations": []}]
    item: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": content,
    }
    if kind == "tool":
        called = {"call_id": "call_1", "name": TOOL, "arguments": _WHOLE_ARGUMENTS}
        item = {"id": "fc_1", "type": "function_call", "status": "completed", **called}
    usage = {
        "input_tokens": INPUT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": OUTPUT_TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    }
    whole = status == "completed"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": _CREATED,
        "status": status,
        "model": "m-1",
        "output": [item] if whole else [],
        "usage": usage if whole else None,
    }


def _response_stream(kind: str) -> list[bytes]:
    said: list[dict[str, Any]] = []
    if kind == "tool":
        item = {**_response(kind)["output"][0], "status": "in_progress", "arguments": ""}
        said.append({"type": "response.output_item.added", "output_index": 0, "item": item})
        place = {"item_id": "fc_1", "output_index": 0}
        said += [{"type": "response.function_call_arguments.delta", **place, "delta": piece} for piece in ARGUMENTS]
    else:
        item = {**_response(kind)["output"][0], "status": "in_progress", "content": []}
        said.append({"type": "response.output_item.added", "output_index": 0, "item": item})
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        words = TEXT[:1] if kind == "break" else TEXT
        said += [{"type": "response.output_text.delta", **place, "delta": word} for word in words]
    if kind == "break":
        said.append({"type": "error", "code": "server_error", "message": BROKEN, "param": None})
    else:
        said.append({"type": "response.output_item.done", "output_index": 0, "item": _response(kind)["output"][0]})
        said.append({"type": "response.completed", "response": _response(kind)})
    events = [{"type": "response.created", "response": _response(kind, "in_progress")}, *said]
    return _named(*({**event, "sequence_number": number} for number, event in enumerate(events)))


# -- Anthropic -------------------------------------------------------------------------------------------------------


def _message(kind: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": _WHOLE_TEXT}]
    if kind == "tool":
        content = [{"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": {"city": "Oslo"}}]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m-1",
        "content": content,
        "stop_reason": "tool_use" if kind == "tool" else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS},
    }


def _message_stream(kind: str) -> list[bytes]:
    begun = {**_message(kind), "content": [], "stop_reason": None}
    begun["usage"] = {"input_tokens": INPUT_TOKENS, "output_tokens": 1}
    if kind == "tool":
        block: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ARGUMENTS]
    else:
        block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": piece} for piece in (TEXT[:1] if kind == "break" else TEXT)]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
    ]
    if kind == "break":
        events.append({"type": "error", "error": {"type": "overloaded_error", "message": BROKEN}})
        return _named(*events)
    reason = {"stop_reason": "tool_use" if kind == "tool" else "end_turn", "stop_sequence": None}
    events += [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": reason, "usage": {"output_tokens": OUTPUT_TOKENS}},
        {"type": "message_stop"},
    ]
    return _named(*events)


# -- Google ----------------------------------------------------------------------------------------------------------

_GEMINI_USAGE: Final = {
    "promptTokenCount": INPUT_TOKENS,
    "candidatesTokenCount": OUTPUT_TOKENS,
    "totalTokenCount": INPUT_TOKENS + OUTPUT_TOKENS,
}


def _contents(parts: list[dict[str, Any]], finish: str | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "usageMetadata": _GEMINI_USAGE, "modelVersion": "m-1", "responseId": "r1"}


def _gemini(kind: str) -> dict[str, Any]:
    if kind == "tool":
        return _contents([{"functionCall": {"name": TOOL, "args": {"city": "Oslo"}}}], "STOP")
    return _contents([{"text": _WHOLE_TEXT}], "STOP")


def _gemini_stream(kind: str) -> list[bytes]:
    if kind == "break":
        failed = {"error": {"code": 503, "message": BROKEN, "status": "UNAVAILABLE"}}
        return _sse(_contents([{"text": TEXT[0]}]), failed)
    if kind == "tool":
        return _sse(_gemini(kind))
    return _sse(*(_contents([{"text": piece}]) for piece in TEXT[:-1]), _contents([{"text": TEXT[-1]}], "STOP"))


# -- Bedrock ---------------------------------------------------------------------------------------------------------

_CONVERSE_USAGE: Final = {
    "inputTokens": INPUT_TOKENS,
    "outputTokens": OUTPUT_TOKENS,
    "totalTokens": INPUT_TOKENS + OUTPUT_TOKENS,
}


def _converse(kind: str) -> dict[str, Any]:
    content: dict[str, Any] = {"text": _WHOLE_TEXT}
    if kind == "tool":
        content = {"toolUse": {"toolUseId": "tooluse_1", "name": TOOL, "input": {"city": "Oslo"}}}
    return {
        "metrics": {"latencyMs": 3},
        "output": {"message": {"role": "assistant", "content": [content]}},
        "stopReason": "tool_use" if kind == "tool" else "end_turn",
        "usage": _CONVERSE_USAGE,
    }


def _converse_frames(kind: str) -> list[bytes]:
    def event(name: str, payload: dict[str, Any]) -> bytes:
        headers = {":message-type": "event", ":event-type": name, ":content-type": "application/json"}
        return frame(headers, encode(payload))

    frames = [event("messageStart", {"role": "assistant"})]
    if kind == "tool":
        start = {"toolUse": {"toolUseId": "tooluse_1", "name": TOOL}}
        frames.append(event("contentBlockStart", {"contentBlockIndex": 0, "start": start}))
        deltas: list[dict[str, Any]] = [{"toolUse": {"input": piece}} for piece in ARGUMENTS]
    else:
        deltas = [{"text": piece} for piece in (TEXT[:1] if kind == "break" else TEXT)]
    frames += [event("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta}) for delta in deltas]
    if kind == "break":
        headers = {":message-type": "exception", ":exception-type": "modelStreamErrorException"}
        return [*frames, frame(headers, encode({"message": BROKEN}))]
    return [
        *frames,
        event("contentBlockStop", {"contentBlockIndex": 0}),
        event("messageStop", {"stopReason": "tool_use" if kind == "tool" else "end_turn"}),
        event("metadata", {"usage": _CONVERSE_USAGE, "metrics": {"latencyMs": 3}}),
    ]


# -- Cohere ----------------------------------------------------------------------------------------------------------

_COHERE_USAGE: Final = {"billed_units": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}}


def _cohere(kind: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": _WHOLE_TEXT}]}
    if kind == "tool":
        call = {"id": "look_1", "type": "function", "function": {"name": TOOL, "arguments": _WHOLE_ARGUMENTS}}
        message = {"role": "assistant", "tool_calls": [call]}
    finish = "TOOL_CALL" if kind == "tool" else "COMPLETE"
    return {"id": "c1", "finish_reason": finish, "message": message, "usage": _COHERE_USAGE}


def _cohere_stream(kind: str) -> list[bytes]:
    begun = {"type": "message-start", "id": "c1", "delta": {"message": {"role": "assistant"}}}
    if kind == "tool":
        call = {"id": "look_1", "type": "function", "function": {"name": TOOL, "arguments": ""}}
        said: list[dict[str, Any]] = [
            {"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": call}}},
            *(
                {
                    "type": "tool-call-delta",
                    "index": 0,
                    "delta": {"message": {"tool_calls": {"function": {"arguments": piece}}}},
                }
                for piece in ARGUMENTS
            ),
            {"type": "tool-call-end", "index": 0},
        ]
    else:
        said = [
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": piece}}}}
            for piece in (TEXT[:1] if kind == "break" else TEXT)
        ]
    delta: dict[str, Any] = {"finish_reason": "TOOL_CALL" if kind == "tool" else "COMPLETE", "usage": _COHERE_USAGE}
    if kind == "break":
        delta |= {"finish_reason": "ERROR", "error": BROKEN}
    return _sse(begun, *said, {"type": "message-end", "delta": delta})


# -- what is no conversation -----------------------------------------------------------------------------------------


def _embedding(kind: str) -> dict[str, Any]:
    usage = {"prompt_tokens": INPUT_TOKENS, "total_tokens": INPUT_TOKENS}
    data = [{"object": "embedding", "index": 0, "embedding": VECTOR}]
    return {"object": "list", "data": data, "model": "m-1", "usage": usage}


def _cohere_embedding(kind: str) -> dict[str, Any]:
    meta = {"billed_units": {"input_tokens": INPUT_TOKENS}}
    return {"id": "x", "embeddings": {"float": [VECTOR]}, "texts": ["Hi"], "meta": meta}


_WHOLE: Final = {
    "chat": _chat,
    "completions": _completion,
    "responses": _response,
    "messages": _message,
    "gemini": _gemini,
    "converse": _converse,
    "cohere": _cohere,
    "embeddings": _embedding,
    "embed": _cohere_embedding,
    "invoke": lambda _: {"embedding": VECTOR, "inputTextTokenCount": INPUT_TOKENS},
    "embedContent": lambda _: {"embedding": {"values": VECTOR}},
    "batchEmbedContents": lambda _: {"embeddings": [{"values": VECTOR}]},
    "predict": lambda _: {
        "predictions": [{"embeddings": {"values": VECTOR, "statistics": {"token_count": INPUT_TOKENS}}}]
    },
    "count_tokens": lambda _: {"input_tokens": INPUT_TOKENS},
    "countTokens": lambda _: {"totalTokens": INPUT_TOKENS},
    "count-tokens": lambda _: {"inputTokens": INPUT_TOKENS},
}
_STREAMS: Final = {
    "chat": _chat_stream,
    "completions": _completion_stream,
    "responses": _response_stream,
    "messages": _message_stream,
    "gemini": _gemini_stream,
    "cohere": _cohere_stream,
}
