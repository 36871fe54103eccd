"""What a model thinks goes out to a caller and comes back unchanged, whatever dialect the caller speaks.

Each provider answers with thoughts that it signed or sealed, and the call of a tool. A client of each dialect keeps the
answer as its dialect tells it to, and goes on with the tool's result. What the provider is sent then has to be what it
said, signature for signature; that is what Anthropic and Google insist on.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from gateway.api import Adapter, Call, Offer, ProviderConfig, ResponseHead, Selective, Tap
from gateway.bridges import BRIDGES
from gateway.secret import Secret
from gateway.testing.cases import frame
from gateway.wire.dialects import Dialect
from gateway.wire.gemini import peek_gemini
from gateway.wire.paths import resolve
from gateway.wire.peek import peek
from gateway_adapters.anthropic import Anthropic
from gateway_adapters.bedrock.adapter import Bedrock
from gateway_adapters.compatible import Compatible
from gateway_adapters.google import Google

JSON: Final = b"application/json"
SSE: Final = b"text/event-stream"
FRAMES: Final = b"application/vnd.amazon.eventstream"
RESULT: Final = "12 degrees"
#: A name that does not tell whose model it is, so that Converse is asked.
PROFILE: Final = "arn:aws:bedrock:eu-central-1:1:application-inference-profile/claude"

encode = msgspec.json.encode
decode = msgspec.json.decode


# -- providers -----------------------------------------------------------------------------------------------


class Provider(NamedTuple):
    adapter: type[Adapter]
    model: str
    #: (content type, body) of an answer, whole and streamed.
    whole: tuple[bytes, bytes]
    stream: tuple[bytes, bytes]
    #: The assistant's turn in a request, as it has to come back.
    turn: Callable[[dict[str, Any]], Any]
    expected: Any
    extra: Mapping[str, object] = MappingProxyType({})


def sse(*events: dict[str, Any], named: bool = False, done: bool = False) -> bytes:
    lines = [
        (b"event: %b\n" % event["type"].encode() if named else b"") + b"data: " + encode(event) + b"\n\n"
        for event in events
    ]
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


CLAUDE_CONTENT: Final = [
    {"type": "thinking", "thinking": "Hm. Oslo?", "signature": "c2lnMQ=="},
    {"type": "redacted_thinking", "data": "cmVk"},
    {"type": "thinking", "thinking": "Look it up.", "signature": "c2lnMg=="},
    {"type": "text", "text": "I look."},
    {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"city": "Oslo"}},
]


def claude_stream() -> bytes:
    usage = {"input_tokens": 9, "output_tokens": 1}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "m1", "model": "c", "usage": usage}}]
    for index, block in enumerate(CLAUDE_CONTENT):
        kind = block["type"]
        begun: dict[str, Any] = {"type": kind}
        deltas: list[dict[str, Any]] = []
        if kind == "thinking":
            begun |= {"thinking": "", "signature": ""}
            words = str(block["thinking"])
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in (words[:3], words[3:])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif kind == "redacted_thinking":
            begun["data"] = block["data"]
        elif kind == "text":
            begun["text"] = ""
            deltas = [{"type": "text_delta", "text": block["text"]}]
        else:
            begun |= {"id": block["id"], "name": block["name"], "input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"city":', '"Oslo"}')]
        events.append({"type": "content_block_start", "index": index, "content_block": begun})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    events.append({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}})
    return sse(*events, {"type": "message_stop"}, named=True)


CLAUDE_WHOLE: Final = encode(
    {
        "id": "m1", "type": "message", "role": "assistant", "model": "c", "content": CLAUDE_CONTENT,
        "stop_reason": "tool_use", "usage": {"input_tokens": 9, "output_tokens": 7},
    }
)  # fmt: skip

CONVERSE_CONTENT: Final = [
    {"reasoningContent": {"reasoningText": {"text": "Hm. Oslo?", "signature": "c2lnMQ=="}}},
    {"reasoningContent": {"redactedContent": "cmVk"}},
    {"reasoningContent": {"reasoningText": {"text": "Look it up.", "signature": "c2lnMg=="}}},
    {"text": "I look."},
    {"toolUse": {"toolUseId": "tooluse_1", "name": "look_up", "input": {"city": "Oslo"}}},
]


def converse_stream() -> bytes:
    frames: list[tuple[str, dict[str, Any]]] = [("messageStart", {"role": "assistant"})]
    for index, block in enumerate(CONVERSE_CONTENT):
        at = {"contentBlockIndex": index}
        deltas: list[dict[str, Any]]
        if "toolUse" in block:
            use: Any = block["toolUse"]
            start = {"toolUse": {"toolUseId": use["toolUseId"], "name": use["name"]}}
            frames.append(("contentBlockStart", {**at, "start": start}))
            deltas = [{"toolUse": {"input": '{"city":'}}, {"toolUse": {"input": '"Oslo"}'}}]
        elif "text" in block:
            deltas = [block]
        else:
            told: Any = block["reasoningContent"]
            if "reasoningText" in told:
                text, signature = told["reasoningText"]["text"], told["reasoningText"]["signature"]
                deltas = [{"reasoningContent": piece} for piece in ({"text": text}, {"signature": signature})]
            else:
                deltas = [block]
        frames += [("contentBlockDelta", {**at, "delta": delta}) for delta in deltas]
        frames.append(("contentBlockStop", at))
    frames.append(("messageStop", {"stopReason": "tool_use"}))
    frames.append(("metadata", {"usage": {"inputTokens": 9, "outputTokens": 7, "totalTokens": 16}}))
    return b"".join(frame({":message-type": "event", ":event-type": kind}, encode(data)) for kind, data in frames)


CONVERSE_WHOLE: Final = encode(
    {
        "output": {"message": {"role": "assistant", "content": CONVERSE_CONTENT}},
        "stopReason": "tool_use",
        "usage": {"inputTokens": 9, "outputTokens": 7, "totalTokens": 16},
    }
)

GEMINI_CALL: Final = {
    "functionCall": {"id": "fc1", "name": "look_up", "args": {"city": "Oslo"}},
    "thoughtSignature": "c2ln",
}


def gemini(*parts: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 7, "totalTokenCount": 16}
    return {
        "candidates": [candidate | ({"finishReason": finish} if finish else {})],
        "usageMetadata": usage,
        "modelVersion": "gemini-x",
        "responseId": "r1",
    }


GEMINI_PARTS: Final = ({"text": "Hm. Oslo?", "thought": True}, {"text": "I look."}, GEMINI_CALL)

ROUTER_DETAILS: Final = [
    {"type": "reasoning.summary", "summary": "Hm.", "format": "openai-responses-v1", "index": 0},
    {"type": "reasoning.encrypted", "data": "gAAA", "format": "openai-responses-v1", "id": "rs_1", "index": 1},
]
ROUTER_CALL: Final = {
    "id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"city":"Oslo"}'},
}  # fmt: skip


def router_chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "g1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


ROUTER_STREAM: Final = sse(
    router_chunk({"role": "assistant", "content": "", "reasoning": "Hm.", "reasoning_details": ROUTER_DETAILS[:1]}),
    router_chunk({"content": "", "reasoning_details": ROUTER_DETAILS[1:]}),
    router_chunk({"tool_calls": [{"index": 0, **ROUTER_CALL}]}),
    router_chunk({}, "tool_calls"),
    {"id": "g1", "model": "m", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}},
    done=True,
)
ROUTER_WHOLE: Final = encode(
    {
        "id": "g1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{
            "index": 0, "finish_reason": "tool_calls",
            "message": {
                "role": "assistant", "content": None, "reasoning": "Hm.", "reasoning_details": ROUTER_DETAILS,
                "tool_calls": [ROUTER_CALL],
            },
        }],
        "usage": {"prompt_tokens": 9, "completion_tokens": 7},
    }
)  # fmt: skip


def router_secrets(body: dict[str, Any]) -> Any:
    """Whatever else comes back: what is sealed has to."""
    [message] = [message for message in body["messages"] if message.get("tool_calls")]
    details = message["reasoning_details"]
    return [(detail["data"], detail["id"], detail["format"]) for detail in details if "data" in detail]


#: Google's own OpenAI-compatible API.
BESIDE_CALL: Final = {**ROUTER_CALL, "extra_content": {"google": {"thought_signature": "c2ln"}}}
BESIDE_STREAM: Final = sse(
    router_chunk({"role": "assistant", "tool_calls": [{"index": 0, **BESIDE_CALL}]}),
    router_chunk({}, "tool_calls"),
    {"id": "g1", "model": "m", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}},
    done=True,
)
BESIDE_WHOLE: Final = ROUTER_WHOLE.replace(
    b'"reasoning":"Hm.","reasoning_details":' + encode(ROUTER_DETAILS) + b',"tool_calls":' + encode([ROUTER_CALL]),
    b'"tool_calls":' + encode([BESIDE_CALL]),
)

PROVIDERS: Final = {
    "anthropic": Provider(
        Anthropic, "claude-sonnet-4-5", (JSON, CLAUDE_WHOLE), (SSE, claude_stream()),
        lambda body: body["messages"][1]["content"], CLAUDE_CONTENT,
    ),
    "bedrock": Provider(
        Bedrock, PROFILE, (JSON, CONVERSE_WHOLE), (FRAMES, converse_stream()),
        lambda body: body["messages"][1]["content"], CONVERSE_CONTENT,
    ),
    "google": Provider(
        Google, "gemini-3-pro", (JSON, encode(gemini(*GEMINI_PARTS, finish="STOP"))),
        (SSE, sse(*map(gemini, GEMINI_PARTS), gemini(finish="STOP"))),
        lambda body: [part for part in body["contents"][1]["parts"] if "functionCall" in part], [GEMINI_CALL],
    ),
    "gemini-openai": Provider(
        Compatible,
        "gemini-3-pro",
        (JSON, BESIDE_WHOLE),
        (SSE, BESIDE_STREAM),
        lambda body: body["messages"][1]["tool_calls"],
        [BESIDE_CALL],
        {"row": "gemini-openai"},
    ),
    "openrouter": Provider(
        Compatible, "openai/gpt-5", (JSON, ROUTER_WHOLE), (SSE, ROUTER_STREAM), router_secrets,
        [("gAAA", "rs_1", "openai-responses-v1")], {"row": "openrouter", "dialects": ["openai.chat"]},
    ),
}  # fmt: skip


# -- callers -------------------------------------------------------------------------------------------------


class Caller(NamedTuple):
    """A client: its first request, what it keeps of an answer, and the next request."""

    path: Callable[[bool], bytes]
    first: dict[str, Any]
    read: Callable[[bytes, bool], Any]
    again: Callable[[Any], dict[str, Any]]


def events_of(body: bytes) -> Iterator[Any]:
    for line in body.split(b"\n"):
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            yield decode(line[6:])


ASKED: Final = "How warm is it in Oslo?"


def read_chat(body: bytes, stream: bool) -> Any:
    """As OpenRouter's clients do: details are added up as they come."""
    if not stream:
        return decode(body)["choices"][0]["message"]
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for event in events_of(body):
        for choice in event["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message.setdefault("reasoning_details", []).extend(delta.get("reasoning_details", []))
            for call in delta.get("tool_calls", []):
                calls = message.setdefault("tool_calls", [])
                if call["index"] == len(calls):
                    calls.append({name: value for name, value in call.items() if name != "index"})
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message


def chat_again(message: Any) -> dict[str, Any]:
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": RESULT}
    return {**CHAT, "messages": [*CHAT["messages"], message, result]}


CHAT: Final[dict[str, Any]] = {
    "model": "m", "messages": [{"role": "user", "content": ASKED}], "max_tokens": 9000, "reasoning_effort": "low",
    "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
}  # fmt: skip


def read_message(body: bytes, stream: bool) -> Any:
    """As Anthropic's SDK does."""
    if not stream:
        return decode(body)["content"]
    blocks: list[dict[str, Any]] = []
    inputs: dict[int, str] = {}
    for event in events_of(body):
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            match delta["type"]:
                case "text_delta":
                    block["text"] += delta["text"]
                case "thinking_delta":
                    assert not block["signature"]
                    block["thinking"] += delta["thinking"]
                case "signature_delta":
                    block["signature"] = delta["signature"]
                case "input_json_delta":
                    inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
    for index, text in inputs.items():
        blocks[index]["input"] = decode(text)
    return blocks


def message_again(content: Any) -> dict[str, Any]:
    [call] = [block for block in content if block["type"] == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": RESULT}
    turns = [{"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
    return {**MESSAGE, "messages": [*MESSAGE["messages"], *turns]}


MESSAGE: Final[dict[str, Any]] = {
    "model": "m", "max_tokens": 9000, "messages": [{"role": "user", "content": ASKED}],
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "tools": [{"name": "look_up", "input_schema": {"type": "object"}}],
}  # fmt: skip


def read_response(body: bytes, stream: bool) -> Any:
    if not stream:
        return decode(body)["output"]
    *_, last = events_of(body)
    assert last["type"] == "response.completed"
    return last["response"]["output"]


def response_again(output: Any) -> dict[str, Any]:
    [call] = [item for item in output if item["type"] == "function_call"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": RESULT}
    return {**RESPONSE, "input": [*RESPONSE["input"], *output, result]}


RESPONSE: Final[dict[str, Any]] = {
    "model": "m", "input": [{"role": "user", "content": ASKED}], "max_output_tokens": 9000,
    "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"},
    "tools": [{"type": "function", "name": "look_up", "parameters": {"type": "object"}}],
}  # fmt: skip


def read_gemini(body: bytes, stream: bool) -> Any:
    """As Google's SDK does: parts are kept one after the other."""
    answers = list(events_of(body)) if stream else [decode(body)]
    return [
        part
        for each in answers
        for candidate in each["candidates"]
        for part in candidate.get("content", {}).get("parts", [])
    ]


def gemini_again(parts: Any) -> dict[str, Any]:
    [call] = [part["functionCall"] for part in parts if "functionCall" in part]
    result = {"functionResponse": {"id": call.get("id"), "name": call["name"], "response": {"output": RESULT}}}
    turns = [{"role": "model", "parts": parts}, {"role": "user", "parts": [result]}]
    return {**GEMINI, "contents": [*GEMINI["contents"], *turns]}


GEMINI: Final[dict[str, Any]] = {
    "contents": [{"role": "user", "parts": [{"text": ASKED}]}],
    "generationConfig": {"maxOutputTokens": 9000, "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 2000}},
    "tools": [{"functionDeclarations": [{"name": "look_up"}]}],
}  # fmt: skip

CALLERS: Final = {
    Dialect.OPENAI_CHAT: Caller(lambda _: b"/v1/chat/completions", CHAT, read_chat, chat_again),
    Dialect.ANTHROPIC_MESSAGES: Caller(lambda _: b"/v1/messages", MESSAGE, read_message, message_again),
    Dialect.OPENAI_RESPONSES: Caller(lambda _: b"/v1/responses", RESPONSE, read_response, response_again),
    Dialect.GEMINI_GENERATE: Caller(
        lambda stream: b"/v1beta/models/m:streamGenerateContent" if stream else b"/v1beta/models/m:generateContent",
        GEMINI,
        read_gemini,
        gemini_again,
    ),
}


# -- what is between them ------------------------------------------------------------------------------------


def call_of(dialect: Dialect, members: dict[str, Any], *, stream: bool, account_id: int = 1) -> Call:
    caller = CALLERS[dialect]
    path = caller.path(stream)
    target = resolve(path)
    assert target is not None
    if stream and dialect is not Dialect.GEMINI_GENERATE:
        members = {**members, "stream": True}
    body = encode(members)
    seen = peek_gemini(body, stream=stream) if dialect is Dialect.GEMINI_GENERATE else peek(body)
    return Call(
        id="01a2",
        dialect=dialect,
        method="POST",
        path=target.path,
        query=b"alt=sse" if stream else b"",
        headers=[(b"content-type", JSON)],
        body=body,
        peek=seen,
        model="m",
        account_id=account_id,
    )


def adapter_of(name: str) -> Adapter:
    provider = PROVIDERS[name]
    adapter = provider.adapter()
    adapter.configure(ProviderConfig(name=name, base_url=None, api_key=Secret("sk-1"), extra=provider.extra))
    return adapter


def hub_of(adapter: Adapter, call: Call, model: str) -> Call:
    """What an adapter gets of a call."""
    takes = call.dialect in adapter.dialects | getattr(adapter, "translates", frozenset())
    if takes and (not isinstance(adapter, Selective) or adapter.serves(call.dialect, model)):
        return call
    return BRIDGES[call.dialect].open(call, getattr(adapter, "extensions", frozenset())).call


def sent(adapter: Adapter, call: Call, model: str) -> dict[str, Any]:
    offer = Offer(model="m", provider="p", upstream_model=model, free=True)
    body = adapter.prepare(hub_of(adapter, call, model), offer).body
    assert isinstance(body, bytes)
    found: dict[str, Any] = decode(body)
    return found


def answered(adapter: Adapter, call: Call, kind: bytes, body: bytes, *, step: int, model: str = "") -> bytes:
    head = ResponseHead(200, [(b"content-type", kind), (b"date", b"Sun, 22 Nov 2026 10:00:00 GMT")])
    hub = hub_of(adapter, call, model)
    tap: Tap = adapter.tap(hub, head)
    if hub is not call:
        tap = BRIDGES[call.dialect].tap(call, head, tap)
    pieces = [tap.feed(body[at : at + step]) for at in range(0, len(body), step)]
    out = b"".join([*pieces, tap.end()])
    assert tap.failure is None
    assert tap.complete
    return out if tap.rewrites else body


@pytest.mark.parametrize("step", [1, 1 << 20], ids=["byte by byte", "at once"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("dialect", CALLERS)
@pytest.mark.parametrize("name", PROVIDERS)
def test_what_was_thought_comes_back_as_it_was(name: str, dialect: Dialect, stream: bool, step: int) -> None:
    provider, caller, adapter = PROVIDERS[name], CALLERS[dialect], adapter_of(name)
    if dialect in adapter.dialects and dialect is not Dialect.OPENAI_CHAT:
        pytest.skip("relayed")
    call = call_of(dialect, caller.first, stream=stream)
    sent(adapter, call, provider.model)

    out = answered(adapter, call, *(provider.stream if stream else provider.whole), step=step)
    # Another process, which remembers nothing, is asked next.
    again = sent(
        adapter_of(name), call_of(dialect, caller.again(caller.read(out, stream)), stream=stream), provider.model
    )

    assert provider.turn(again) == provider.expected


def bare(members: dict[str, Any]) -> dict[str, Any]:
    """A conversation from which a client of OpenAI's has dropped whatever it does not know."""
    known = {"role", "content", "tool_calls", "tool_call_id"}
    messages = [{name: value for name, value in each.items() if name in known} for each in members["messages"]]
    for message in messages:
        for call in message.get("tool_calls", ()):
            call.pop("extra_content", None)
    return {**members, "messages": messages}


def test_google_gets_back_what_a_client_dropped_and_no_other_account_does() -> None:
    adapter = adapter_of("google")
    provider, caller = PROVIDERS["google"], CALLERS[Dialect.OPENAI_CHAT]
    call = call_of(Dialect.OPENAI_CHAT, CHAT, stream=True)
    message = caller.read(answered(adapter, call, *provider.stream, step=1 << 20), True)
    lost = bare(caller.again(message))

    ours = sent(adapter, call_of(Dialect.OPENAI_CHAT, lost, stream=True), provider.model)
    others = sent(adapter, call_of(Dialect.OPENAI_CHAT, lost, stream=True, account_id=2), provider.model)

    assert provider.turn(ours) == [GEMINI_CALL]
    assert provider.turn(others) == [{**GEMINI_CALL, "thoughtSignature": "skip_thought_signature_validator"}]


@pytest.mark.parametrize("dialect", [dialect for dialect in CALLERS if dialect is not Dialect.OPENAI_CHAT])
@pytest.mark.parametrize(
    ("mine", "other"), [("google", "anthropic"), ("anthropic", "google"), ("anthropic", "openrouter")]
)
def test_one_maker_is_never_given_what_another_one_signed(mine: str, other: str, dialect: Dialect) -> None:
    first, second, caller = adapter_of(mine), adapter_of(other), CALLERS[dialect]
    if dialect in first.dialects or dialect in second.dialects:
        pytest.skip("relayed")
    out = answered(first, call_of(dialect, caller.first, stream=False), *PROVIDERS[mine].whole, step=1 << 20)

    call = call_of(dialect, caller.again(caller.read(out, False)), stream=False)
    written = encode(sent(second, call, PROVIDERS[other].model))

    if other == "openrouter":
        # It hands them on to the maker, and says itself what it can't.
        assert b'"format":"anthropic-claude-v1"' in written
    else:
        assert not any(secret in written for secret in (b"c2ln", b"cmVk", b"gw1.", b"Z3cx"))


def test_callers_who_did_not_ask_for_thinking_are_shown_no_seals() -> None:
    adapter, caller = adapter_of("google"), CALLERS[Dialect.ANTHROPIC_MESSAGES]
    plain = {name: value for name, value in MESSAGE.items() if name != "thinking"}
    out = answered(
        adapter, call_of(Dialect.ANTHROPIC_MESSAGES, plain, stream=True), *PROVIDERS["google"].stream, step=1 << 20
    )

    content = caller.read(out, True)
    assert [block["type"] for block in content if block["type"] != "thinking"] == ["text", "tool_use"]
    # The call is known again all the same.
    again = sent(adapter, call_of(Dialect.ANTHROPIC_MESSAGES, caller.again(content), stream=True), "gemini-3-pro")
    assert PROVIDERS["google"].turn(again) == [GEMINI_CALL]
