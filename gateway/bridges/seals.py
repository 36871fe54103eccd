"""Takes out of a request that is relayed what this gateway put into the conversation: see `reasoning.py`.

A conversation may begin at one provider and go on at another, by a fallback for example. What the first one's model
thought was then handed to the caller in the caller's own dialect: sealed, or as a thought that nobody signed. A
provider that speaks this dialect knows such things for forgeries and refuses the conversation. It never made them, so
it misses nothing.

Rules:
- A request without any of it is not looked at but for a few bytes that would be in it, and stays the same object.
- What is left is passed on as it was written.

Source: what Anthropic, OpenAI and Google answer to a thought whose signature is not theirs: status 400.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec

from gateway.bridges.hub import UNREADABLE, encode
from gateway.bridges.reasoning import MARK, SEALED_BYTES, is_sealed
from gateway.exchange import Call
from gateway.wire.dialects import Dialect
from gateway.wire.gemini import peek_gemini
from gateway.wire.peek import peek

Members = dict[str, msgspec.Raw]

#: In one pass, as conversations grow to hundreds of kilobytes: 0.3 us for each of them.
_FORGED: Final = re.compile(rb'"gw1\.|"signature": ?""').search
#: In which anything of ours could be.
_CARRIERS: Final = frozenset(
    {
        Dialect.ANTHROPIC_MESSAGES,
        Dialect.ANTHROPIC_COUNT_TOKENS,
        Dialect.OPENAI_RESPONSES,
        Dialect.GEMINI_GENERATE,
    }
)
_MARK: Final = b'"' + MARK.encode("ascii")
_MARK_BYTES: Final = b'"' + SEALED_BYTES.encode("ascii")

_decode_members = msgspec.json.Decoder(Members).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Block(msgspec.Struct, gc=False):
    """As much as is looked at of a block, an item or a part. Both of Google's spellings."""

    type: str | None = None
    signature: str | None = None
    data: str | None = None
    encrypted_content: str | None = None
    thought: bool | None = None
    thoughtSignature: str | None = None  # noqa: N815 - Google's name
    thought_signature: str | None = None


_decode_block = msgspec.json.Decoder(_Block).decode


def without_seals(call: Call) -> Call:
    """The call as its provider can take it; the same object where there is nothing of ours in it."""
    if call.dialect not in _CARRIERS:
        return call
    body = call.body
    names: tuple[str, ...]
    match call.dialect:
        case Dialect.ANTHROPIC_MESSAGES | Dialect.ANTHROPIC_COUNT_TOKENS:
            if _FORGED(body) is None:
                return call
            names, change = ("messages", "content"), _of_messages
        case Dialect.OPENAI_RESPONSES:
            if _MARK not in body:
                return call
            names, change = ("input",), _of_responses
        case _:
            if _MARK_BYTES not in body:
                return call
            names, change = ("contents", "parts"), _of_gemini
    try:
        changed = _within(msgspec.Raw(body), names, change)
    except UNREADABLE:
        # The provider says better what is wrong with it.
        return call
    if changed is None:
        return call
    body = bytes(changed)
    gemini = call.dialect is Dialect.GEMINI_GENERATE
    seen = peek_gemini(body, stream=call.peek.stream) if gemini else peek(body)
    return msgspec.structs.replace(call, body=body, peek=seen)


def _within(raw: msgspec.Raw, names: tuple[str, ...], change: Callable[[msgspec.Raw], bytes | None]) -> bytes | None:
    """An object with the list under the first name changed; None where it stays as it is.

    Each of the list is changed, or what is under the next name in it. An object whose list comes to nothing goes too:
    empty messages are refused.
    """
    members = _decode_members(raw)
    name, *rest = names
    listed = members.get(name)
    if listed is None or not bytes(listed).startswith(b"["):
        return None
    kept: list[msgspec.Raw] = []
    touched = False
    for item in _decode_items(listed):
        made = _within(item, tuple(rest), change) if rest else change(item)
        if made is None:
            kept.append(item)
        else:
            touched = True
            if made:
                kept.append(msgspec.Raw(made))
    if not touched:
        return None
    if not kept:
        return b""
    members[name] = msgspec.Raw(encode(kept))
    return encode(members)


def _of_messages(raw: msgspec.Raw) -> bytes | None:
    block = _decode_block(raw)
    if block.type == "thinking" and (not block.signature or is_sealed(block.signature)):
        return b""
    if block.type == "redacted_thinking" and is_sealed(block.data or ""):
        return b""
    return None


def _of_responses(raw: msgspec.Raw) -> bytes | None:
    item = _decode_block(raw)
    return b"" if item.type == "reasoning" and is_sealed(item.encrypted_content or "") else None


def _of_gemini(raw: msgspec.Raw) -> bytes | None:
    part = _decode_block(raw)
    signature = part.thoughtSignature or part.thought_signature or ""
    if not signature.startswith(SEALED_BYTES):
        return None
    if part.thought:
        return b""
    members = _decode_members(raw)
    members.pop("thoughtSignature", None)
    members.pop("thought_signature", None)
    return encode(members)
