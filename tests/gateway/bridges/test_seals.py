"""What this gateway put into a conversation does not reach a provider who would take it for a forgery."""

import msgspec
import pytest

from gateway.bridges import without_seals
from gateway.bridges.reasoning import hidden, seal_bytes, seal_details
from gateway.exchange import Call
from gateway.wire.dialects import Dialect
from gateway.wire.gemini import peek_gemini
from gateway.wire.peek import peek

SEALED = seal_details([hidden("c2ln", 0)])
SEALED_BYTES = seal_bytes([hidden("c2ln", 0)])
ASKED = b'{"role":"user","content":"Hi \\u00e9"}'


def call_of(dialect: Dialect, body: bytes) -> Call:
    seen = peek_gemini(body, stream=True) if dialect is Dialect.GEMINI_GENERATE else peek(body)
    return Call(
        id="01a2", dialect=dialect, method="POST", path=b"/x", query=b"", headers=[], body=body, peek=seen, model="m"
    )  # fmt: skip


def messages(*blocks: bytes) -> bytes:
    turn = b'{"role":"assistant","content":[%b]}' % b",".join(blocks)
    return b'{"model":"m", "temperature":1.0,"messages":[%b,%b],"unknown":[1e400],"stream":true}' % (ASKED, turn)


def test_what_is_sealed_or_unsigned_is_taken_out_of_messages() -> None:
    body = messages(
        b'{"type":"thinking","thinking":"Hm","signature":"%b"}' % SEALED.encode(),
        b'{"type":"redacted_thinking","data":"%b"}' % SEALED.encode(),
        b'{"type":"thinking","thinking":"Hm","signature":""}',
        b'{"type":"thinking","thinking":"Hm","signature":"c2ln"}',
        b'{"type":"redacted_thinking","data":"cmVk"}',
        b'{"type":"text","text":"a \\u00e9"}',
    )

    changed = without_seals(call_of(Dialect.ANTHROPIC_MESSAGES, body))

    expected = messages(
        b'{"type":"thinking","thinking":"Hm","signature":"c2ln"}',
        b'{"type":"redacted_thinking","data":"cmVk"}',
        b'{"type":"text","text":"a \\u00e9"}',
    )
    # Between the members of what was changed no spaces are left; nothing else is written anew.
    assert changed.body == expected.replace(b", ", b",")
    assert changed.peek == peek(changed.body)


def test_a_turn_that_was_nothing_else_goes_too() -> None:
    body = messages(b'{"type":"redacted_thinking","data":"%b"}' % SEALED.encode())

    changed = msgspec.json.decode(
        without_seals(call_of(Dialect.ANTHROPIC_MESSAGES, body)).body.replace(b"1e400", b"1")
    )

    assert changed["messages"] == [{"role": "user", "content": "Hi é"}]


def test_what_is_sealed_is_taken_out_of_responses() -> None:
    theirs = b'{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"gAAA"}'
    ours = b'{"type":"reasoning","id":"rs_2","summary":[],"encrypted_content":"%b"}' % SEALED.encode()
    body = b'{"model":"m","input":[%b,%b,%b]}'

    changed = without_seals(call_of(Dialect.OPENAI_RESPONSES, body % (ASKED, theirs, ours)))

    assert changed.body == b'{"model":"m","input":[%b,%b]}' % (ASKED, theirs)


@pytest.mark.parametrize("name", ["thoughtSignature", "thought_signature"])
def test_what_is_sealed_is_taken_off_the_parts_of_google(name: str) -> None:
    parts = [
        {"text": "Hm", "thought": True, name: SEALED_BYTES},
        {"text": "Yes", name: SEALED_BYTES},
        {"functionCall": {"name": "f"}, name: "c2ln"},
    ]
    body = msgspec.json.encode({"contents": [{"role": "model", "parts": parts}]})

    changed = without_seals(call_of(Dialect.GEMINI_GENERATE, body))

    assert msgspec.json.decode(changed.body)["contents"][0]["parts"] == [{"text": "Yes"}, parts[2]]
    assert changed.peek.stream


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (Dialect.ANTHROPIC_MESSAGES, messages(b'{"type":"thinking","thinking":"Hm","signature":"c2ln"}')),
        (Dialect.ANTHROPIC_MESSAGES, messages(b'{"type":"text","text":"say \\"signature\\":\\"\\" and \\"gw1. "}')),
        (Dialect.ANTHROPIC_MESSAGES, b'{"model":"m","temperature":NaN,"messages":[{"content":"gw1."}]}'),
        (Dialect.ANTHROPIC_MESSAGES, b'{"model":"m","messages":[{"content":["gw1."]}]}'),
        (Dialect.OPENAI_RESPONSES, b'{"model":"m","input":"gw1."}'),
        (Dialect.OPENAI_CHAT, b'{"model":"m","messages":["gw1."]}'),
        (Dialect.GEMINI_GENERATE, b'{"contents":[{"parts":[{"text":"Z3cx"}]}]}'),
    ],
)
def test_all_else_stays_the_same_object(dialect: Dialect, body: bytes) -> None:
    call = call_of(dialect, body)

    assert without_seals(call) is call
