"""What a translation keeps of a stream does not grow with it, whoever asks whom."""

import tracemalloc
from typing import Any, Final

import msgspec
import pytest

from gateway.api import Adapter, Call, ProviderConfig, ResponseHead, Selective, Tap
from gateway.bridges import BRIDGES
from gateway.secret import Secret
from gateway.testing.cases import frame
from gateway.wire.dialects import Dialect
from gateway.wire.gemini import peek_gemini
from gateway.wire.paths import resolve
from gateway.wire.peek import peek
from gateway_adapters.anthropic import Anthropic
from gateway_adapters.bedrock.adapter import Bedrock
from gateway_adapters.cohere import Cohere
from gateway_adapters.compatible import Compatible
from gateway_adapters.google import Google

EVENTS: Final = 100_000
#: Of streams that are not among `BARS`: enough for their text alone to be seen.
FEWER: Final = 6_000
#: In one piece of what is read, so that the test takes seconds and not minutes.
AT_ONCE: Final = 50
#: What caches and counters may come to, and the last few events that a relay's tap has by it.
SLACK_BYTES: Final = 24 * 1024

encode = msgspec.json.encode


def sse(event: dict[str, Any]) -> bytes:
    return b"data: " + encode(event) + b"\n\n"


def chunk(delta: dict[str, Any]) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return sse({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def fragment(**part: Any) -> bytes:
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 7, "totalTokenCount": 16}
    return sse({"candidates": [{"content": {"role": "model", "parts": [part]}, "index": 0}], "usageMetadata": usage})


def named(**event: Any) -> bytes:
    return b"event: %b\n" % event["type"].encode() + sse(event)


def block(kind: str, **members: Any) -> bytes:
    start = {"type": "message_start", "message": {"id": "m", "model": "c", "usage": {"input_tokens": 9}}}
    return named(**start) + named(type="content_block_start", index=0, content_block={"type": kind, **members})


def piece(kind: str, **members: Any) -> bytes:
    return named(type="content_block_delta", index=0, delta={"type": kind, **members})


def framed(kind: str, **payload: Any) -> bytes:
    return frame({":message-type": "event", ":event-type": kind}, encode(payload))


CALL: Final = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":"'}}
COHERE_CALL: Final = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":"'}}
COHERE_START: Final = sse({"type": "message-start", "id": "c", "delta": {"message": {"role": "assistant"}}})
CONVERSE_START: Final = framed("messageStart", role="assistant")

#: By provider and what is told: how that begins, and a piece of it with eight letters.
STREAMS: Final[dict[tuple[str, str], tuple[bytes, bytes]]] = {
    ("chat", "text"): (chunk({"role": "assistant", "content": ""}), chunk({"content": "measured"})),
    ("chat", "thought"): (chunk({"role": "assistant"}), chunk({"reasoning_content": "measured"})),
    ("chat", "call"): (
        chunk({"tool_calls": [CALL]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "measured"}}]}),
    ),
    ("anthropic", "text"): (block("text", text=""), piece("text_delta", text="measured")),
    ("anthropic", "thought"): (
        block("thinking", thinking="", signature=""),
        piece("thinking_delta", thinking="measured"),
    ),
    ("anthropic", "call"): (
        block("tool_use", id="t", name="f", input={}) + piece("input_json_delta", partial_json='{"a":"'),
        piece("input_json_delta", partial_json="measured"),
    ),
    ("google", "text"): (fragment(text="a"), fragment(text="measured")),
    ("google", "thought"): (fragment(text="a", thought=True), fragment(text="measured", thought=True)),
    ("bedrock", "text"): (
        CONVERSE_START,
        framed("contentBlockDelta", contentBlockIndex=0, delta={"text": "measured"}),
    ),
    ("bedrock", "thought"): (
        CONVERSE_START,
        framed("contentBlockDelta", contentBlockIndex=0, delta={"reasoningContent": {"text": "measured"}}),
    ),
    ("cohere", "text"): (
        COHERE_START,
        sse({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "measured"}}}}),
    ),
    ("cohere", "call"): (
        COHERE_START
        + sse({"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": COHERE_CALL}}}),
        sse(
            {
                "type": "tool-call-delta",
                "index": 0,
                "delta": {"message": {"tool_calls": {"function": {"arguments": "measured"}}}},
            }
        ),
    ),
}
PROVIDERS: Final[dict[str, tuple[type[Adapter], bytes]]] = {
    "chat": (Compatible, b"text/event-stream"),
    "anthropic": (Anthropic, b"text/event-stream"),
    "google": (Google, b"text/event-stream"),
    "bedrock": (Bedrock, b"application/vnd.amazon.eventstream"),
    "cohere": (Cohere, b"text/event-stream"),
}
CALLERS: Final[dict[Dialect, tuple[bytes, dict[str, Any]]]] = {
    Dialect.OPENAI_CHAT: (b"/v1/chat/completions", {"model": "m", "stream": True, "messages": []}),
    Dialect.ANTHROPIC_MESSAGES: (
        b"/v1/messages",
        {"model": "m", "stream": True, "max_tokens": 5, "messages": [], "thinking": {"type": "adaptive"}},
    ),
    Dialect.OPENAI_RESPONSES: (b"/v1/responses", {"model": "m", "stream": True, "input": "Hi"}),
    Dialect.GEMINI_GENERATE: (
        b"/v1beta/models/m:streamGenerateContent",
        {"contents": [], "generationConfig": {"thinkingConfig": {"includeThoughts": True}}},
    ),
}


#: Those whose speed is measured too.
BARS: Final = {
    (Dialect.OPENAI_CHAT, "anthropic", "text"),
    (Dialect.OPENAI_CHAT, "google", "text"),
    (Dialect.ANTHROPIC_MESSAGES, "chat", "text"),
    (Dialect.OPENAI_RESPONSES, "chat", "text"),
}


def tap_of(provider: str, dialect: Dialect) -> Tap:
    kind, content_type = PROVIDERS[provider]
    is_chat = provider == "chat"
    base_url = "http://127.0.0.1:9/v1" if is_chat else None
    table: dict[str, object] = {"dialects": ["openai.chat"]} if is_chat else {}
    adapter = kind()
    adapter.configure(ProviderConfig(name="p", base_url=base_url, api_key=Secret("sk-1"), extra=table))
    path, members = CALLERS[dialect]
    target, body = resolve(path), encode(members)
    assert target is not None
    call = Call(
        id="01a2",
        dialect=dialect,
        method="POST",
        path=target.path,
        query=b"alt=sse",
        headers=[],
        body=body,
        peek=peek_gemini(body, stream=True) if dialect is Dialect.GEMINI_GENERATE else peek(body),
        model="m",
    )
    head = ResponseHead(200, [(b"content-type", content_type)])
    takes = dialect in adapter.dialects | getattr(adapter, "translates", frozenset())
    if takes and (not isinstance(adapter, Selective) or adapter.serves(dialect, "m")):
        return adapter.tap(call, head)
    bridge = BRIDGES[dialect]
    hub = msgspec.structs.replace(
        call, dialect=Dialect.OPENAI_CHAT, path=b"/chat/completions", peek=peek(b'{"model":"m","stream":true}')
    )
    return bridge.tap(call, head, adapter.tap(hub, head))


def cells() -> list[tuple[Dialect, str, str]]:
    return [
        (dialect, provider, told)
        for dialect in CALLERS
        for provider, told in STREAMS
        # Google's callers are given a call when it is whole: what waits is bounded, and tried elsewhere.
        if not (dialect is Dialect.GEMINI_GENERATE and told == "call")
    ]


@pytest.mark.parametrize(("dialect", "provider", "told"), cells())
def test_state_does_not_grow_with_the_stream(dialect: Dialect, provider: str, told: str) -> None:
    bursts = (EVENTS if (dialect, provider, told) in BARS else FEWER) // AT_ONCE
    begin, event = STREAMS[provider, told]
    tap = tap_of(provider, dialect)
    tap.feed(begin)
    burst = event * AT_ONCE
    said = 0
    for _ in range(20):
        said += len(tap.feed(burst))
    assert tap.failure is None
    assert said > 0
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()

    for _ in range(bursts):
        tap.feed(burst)

    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert tap.failure is None
    text_bytes = bursts * AT_ONCE * len("measured")
    # The last event of a response repeats the answer: what was said is kept, once, in a buffer with room to grow.
    kept = text_bytes * 5 // 4 if dialect is Dialect.OPENAI_RESPONSES else 0
    assert grown < kept + SLACK_BYTES
