"""What providers answer in these tests: bodies and streams in the shapes that official SDKs are made for."""

import base64
import struct
from typing import Final

import msgspec

from tests.upstreams import Headers, chunked

SSE: Final[Headers] = [(b"content-type", b"text/event-stream; charset=utf-8")]

CHAT: Final = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1790000000,"model":"gpt-x-2026","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello.","refusal":null,"annotations":[]},"logprobs":null,'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11},'
    b'"service_tier":"default","system_fingerprint":null, "x_unknown": {"kept":  true}}\n'
)
ASK: Final = b'{"model":"gpt-x","messages":[{"role":"user","content":"Hi"}]}'
ASK_STREAM: Final = b'{"model":"gpt-x","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
ASK_STREAM_USAGE: Final = (
    b'{"model":"gpt-x","stream":true,"stream_options":{"include_usage":true},'
    b'"messages":[{"role":"user","content":"Hi"}]}'
)
MESSAGES: Final = [{"role": "user", "content": "Hi"}]
DONE: Final = b"[DONE]"

USAGE: Final = (
    b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790000000,"model":"gpt-x","choices":[],'
    b'"usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29,'
    b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}'
)


def sse(*data: bytes, end: bytes = b"\n") -> bytes:
    """The body of an event stream."""
    return b"".join(b"data: %b%b%b" % (event, end, end) for event in data)


def stream(body: bytes, *, headers: Headers | None = None) -> bytes:
    """A whole response with an event stream, in one chunk."""
    return chunked(body, headers=SSE if headers is None else headers)


def stream_head(*, headers: Headers | None = None) -> bytes:
    """The head of a chunked stream; `chunk` makes what follows, `LAST_CHUNK` ends it."""
    return stream(b"", headers=headers).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


LAST_CHUNK: Final = b"0\r\n\r\n"


def delta(
    text: str = "", *, index: int = 0, finish: str | None = None, completion: str = "chatcmpl-1", **members: object
) -> bytes:
    """One chunk of a chat stream; `members` go into the delta."""
    content = {"content": text} if text else {}
    return msgspec.json.encode(
        {
            "id": completion,
            "object": "chat.completion.chunk",
            "created": 1790000000,
            "model": "gpt-x",
            "choices": [{"index": index, "delta": {**content, **members}, "finish_reason": finish}],
            "usage": None,
        }
    )


def chat_stream(*words: str, usage: bool = True, completion: str = "chatcmpl-1") -> list[bytes]:
    """The data of a chat stream: a role, the words, a finish, the usage where it was asked for, and the mark."""
    events = [delta(role="assistant", content="", completion=completion)]
    events += [delta(word, completion=completion) for word in words]
    events.append(delta(finish="stop", completion=completion))
    return [*events, *([USAGE] if usage else []), DONE]


def embeddings(*vectors: list[float], packed: bool) -> bytes:
    """An embeddings answer, with the vectors as floats or as base64 of little-endian float32."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if packed else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    return msgspec.json.encode({"object": "list", "data": data, "model": "text-embedding-x", "usage": usage})


def responses_event(kind: str, number: int, **members: object) -> bytes:
    """One event of a responses stream, framed."""
    data = msgspec.json.encode({"type": kind, "sequence_number": number, **members})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def response_object(status: str, text: str | None = None) -> dict[str, object]:
    """OpenAI's response object."""
    content = [] if text is None else [{"type": "output_text", "text": text, "annotations": []}]
    item = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": content}
    usage = {
        "input_tokens": 8,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1790000000,
        "status": status,
        "model": "gpt-x",
        "output": [] if text is None else [item],
        "usage": None if text is None else usage,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def responses_stream(*words: str) -> bytes:
    """The body of a responses stream; it has no mark at its end."""
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    item = {"id": "msg_1", "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    text = "".join(words)
    events: list[tuple[str, dict[str, object]]] = [
        ("response.created", {"response": response_object("in_progress")}),
        ("response.output_item.added", {"output_index": 0, "item": item}),
        ("response.content_part.added", {**place, "part": part}),
        *(("response.output_text.delta", {**place, "delta": word, "logprobs": []}) for word in words),
        ("response.output_text.done", {**place, "text": text, "logprobs": []}),
        ("response.completed", {"response": response_object("completed", text)}),
    ]
    return b"".join(responses_event(kind, number, **members) for number, (kind, members) in enumerate(events))


def error(
    message: str = "No.", *, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None
) -> bytes:
    """OpenAI's error body."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})
