"""Short conversations in the dialects that adapters relay, for faults to be made of; what a provider of another
format says has to come from its golden cases.
"""

from typing import Final, NamedTuple

from gateway.wire.dialects import Dialect

JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"


class Sample(NamedTuple):
    """A request, and the answer to it; an empty one where the dialect's answers are too plain to be worth any."""

    dialect: Dialect
    path: bytes
    request: bytes
    kind: bytes = JSON
    answer: bytes = b""


def _events(*events: bytes, done: bool = False, named: bool = False) -> bytes:
    """Events as they stand on the wire; `named` ones have their `type` in a line of its own."""
    lines = []
    for event in events:
        if named:
            lines.append(b"event: " + event.split(b'"', 4)[3] + b"\n")
        lines.append(b"data: " + event + b"\n\n")
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


_CHUNK: Final = b'{"id":"c-1","object":"chat.completion.chunk","created":1,"model":"m-1","choices":['
_USAGE: Final = b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}'

SAMPLES: Final = (
    Sample(
        Dialect.OPENAI_CHAT,
        b"/chat/completions",
        b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}',
        EVENTS,
        _events(
            _CHUNK + b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}',
            _CHUNK + b'{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}',
            _CHUNK + b'{"index":0,"delta":{"content":" there"},"finish_reason":null}]}',
            _CHUNK + b'{"index":0,"delta":{},"finish_reason":"stop"}]}',
            _CHUNK + b"]," + _USAGE + b"}",
            done=True,
        ),
    ),
    Sample(
        Dialect.OPENAI_CHAT,
        b"/chat/completions",
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"unknown":{"kept":1.0}}',
        JSON,
        b'{"id":"c-1","object":"chat.completion","created":1,"model":"m-1","choices":[{"index":0,"message":'
        b'{"role":"assistant","content":"Hello there"},"finish_reason":"stop"}],' + _USAGE + b"}",
    ),
    Sample(
        Dialect.OPENAI_COMPLETIONS,
        b"/completions",
        b'{"model":"m","stream":true,"prompt":"hi"}',
        EVENTS,
        _events(
            b'{"id":"t-1","object":"text_completion","choices":[{"index":0,"text":"Hello","finish_reason":null}]}',
            b'{"id":"t-1","object":"text_completion","choices":[{"index":0,"text":" there","finish_reason":null}]}',
            b'{"id":"t-1","object":"text_completion","choices":[{"index":0,"text":"","finish_reason":"stop"}]}',
            done=True,
        ),
    ),
    Sample(
        Dialect.OPENAI_RESPONSES,
        b"/responses",
        b'{"model":"m","stream":true,"input":"hi"}',
        EVENTS,
        _events(
            b'{"type":"response.created","sequence_number":0,"response":{"id":"r-1","status":"in_progress"}}',
            b'{"type":"response.output_text.delta","sequence_number":1,"item_id":"i-1","delta":"Hello"}',
            b'{"type":"response.output_text.delta","sequence_number":2,"item_id":"i-1","delta":" you"}',
            b'{"type":"response.completed","sequence_number":3,"response":{"id":"r-1","status":"completed","usage":'
            b'{"input_tokens":3,"output_tokens":2,"total_tokens":5}}}',
            named=True,
        ),
    ),
    Sample(
        Dialect.OPENAI_EMBEDDINGS,
        b"/embeddings",
        b'{"model":"m","input":"hi"}',
        JSON,
        b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,0.2]}],"model":"m-1",'
        b'"usage":{"prompt_tokens":1,"total_tokens":1}}',
    ),
    Sample(
        Dialect.ANTHROPIC_MESSAGES,
        b"/messages",
        b'{"model":"m","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}',
        EVENTS,
        _events(
            b'{"type":"message_start","message":{"id":"m-1","type":"message","role":"assistant","content":[],'
            b'"model":"m-1","stop_reason":null,"usage":{"input_tokens":3,"output_tokens":1}}}',
            b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" there"}}',
            b'{"type":"content_block_stop","index":0}',
            b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}',
            b'{"type":"message_stop"}',
            named=True,
        ),
    ),
    Sample(
        Dialect.GEMINI_GENERATE,
        b"/models/m:streamGenerateContent",
        b'{"contents":[{"role":"user","parts":[{"text":"hi"}]}]}',
        EVENTS,
        _events(
            b'{"candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"Hello"}]}}]}',
            b'{"candidates":[{"index":0,"content":{"role":"model","parts":[{"text":" there"}]}}]}',
            b'{"candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"."}]},"finishReason":"STOP"}],'
            b'"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2,"totalTokenCount":5}}',
        ),
    ),
    Sample(Dialect.OPENAI_IMAGES, b"/images/generations", b'{"model":"m","prompt":"a cat"}'),
    Sample(Dialect.OPENAI_SPEECH, b"/audio/speech", b'{"model":"m","input":"hi","voice":"alloy"}'),
    Sample(Dialect.OPENAI_MODERATIONS, b"/moderations", b'{"model":"m","input":"hi"}'),
    Sample(Dialect.RERANK, b"/rerank", b'{"model":"m","query":"q","documents":["a","b"]}'),
)
