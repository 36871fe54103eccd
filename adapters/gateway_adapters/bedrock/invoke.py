"""Anthropic's models on Bedrock in Anthropic's own words: InvokeModel, for callers who speak the Messages API.

The body is the caller's, byte for byte, but for three members: `model` and `stream` are said by the path here, and
`anthropic_version` takes the place of the header. The answer's events come in frames of Amazon's; what is inside them
is Anthropic's own and passes as it is.

Rules:
- Betas are announced in the body, and one that Bedrock does not know is an error: of those in the caller's header,
  Bedrock's are carried over and the others dropped and told. What stands in the body already is the caller's affair.
- Which betas are Bedrock's is the provider's table to say (`betas`); the default is AWS' documentation.
- Tokens are counted by CountTokens, which knows foundation models and not the profiles that name a region first. Of a
  model that it does not count, the gateway estimates them.

Source: Bedrock's user guide, "Anthropic Claude Messages API" and "Monitor your token usage by counting tokens"; its
API reference, "InvokeModelWithResponseStream" and "CountTokens".
"""

import base64
import binascii
import re
from collections.abc import Collection
from typing import Final

import msgspec

from gateway.api import Call, Dialect, Failure, SSETap, Usage, peek, rewrite
from gateway_adapters.bedrock.answer import refused
from gateway_adapters.chat_answer import JSON_TYPE, SSE_TYPE, UNREADABLE, BrokenAnswer, GatheredTap, unreadable
from gateway_adapters.eventstream import DamagedStream, EventFrame, EventStreamParser

VERSION: Final = b'"anthropic_version":"bedrock-2023-05-31"'
BETA_HEADER: Final = b"anthropic-beta"
#: Betas that Bedrock takes.
BETAS: Final = frozenset(
    {
        *("computer-use-2024-10-22", "computer-use-2025-01-24", "computer-use-2025-11-24"),
        *("token-efficient-tools-2025-02-19", "interleaved-thinking-2025-05-14", "output-128k-2025-02-19"),
        *("dev-full-thinking-2025-05-14", "context-1m-2025-08-07", "context-management-2025-06-27"),
        *("effort-2025-11-24", "tool-search-tool-2025-10-19", "tool-examples-2025-10-29"),
    }
)
#: Of an error's message, where a model's tokens can't be counted.
_UNCOUNTED: Final = b"support counting tokens"
COUNTING_UNSUPPORTED: Final = "counting_unsupported"

#: A profile's name is the model's with the part of the world before it.
_PLACE: Final = re.compile(r"(?:us|eu|apac|jp|au|ca|global|us-gov)\.(?=[a-z0-9-]+\.)")
_SAID_BY_PATH: Final = ("model", "stream")

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class _Chunk(msgspec.Struct, gc=False):
    bytes: str = ""


class _Kind(msgspec.Struct, gc=False):
    type: str = ""


class _Counted(msgspec.Struct):
    inputTokens: int  # noqa: N815 - Bedrock's name


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_counted = msgspec.json.Decoder(_Counted).decode


def serves_messages(model: str) -> bool:
    """Whether it is Anthropic's, as far as its name tells. An application's own profile does not."""
    return "anthropic." in model


def write_invoke(call: Call, betas: Collection[str]) -> tuple[bytes, tuple[str, ...]]:
    """The body for InvokeModel, and the names of what could not be told."""
    body = rewrite(call.body, peek(call.body), drop=_SAID_BY_PATH)
    announced = [
        name.strip().decode("latin-1")
        for header, value in call.headers
        if header == BETA_HEADER
        for name in value.split(b",")
        if name.strip()
    ]
    known = [name for name in dict.fromkeys(announced) if name in betas]
    # Only where the bytes are there can the member be.
    has = _decode_members(body) if b"anthropic_" in body else {}
    added = [] if "anthropic_version" in has else [VERSION]
    if known and "anthropic_beta" not in has:
        added.append(b'"anthropic_beta":' + _encode(known))
    dropped = (BETA_HEADER.decode(),) if len(known) < len(set(announced)) else ()
    if not added:
        return body, dropped
    start = body.index(b"{") + 1
    comma = b"" if body[start:].lstrip().startswith(b"}") else b","
    return body[:start] + b",".join(added) + comma + body[start:], dropped


def write_count(call: Call, betas: Collection[str]) -> tuple[bytes, tuple[str, ...]]:
    """The body for CountTokens: the one for InvokeModel, in base64."""
    body, dropped = write_invoke(call, betas)
    if b'"max_tokens"' not in body:
        # InvokeModel wants it, and so does what counts for it.
        start = body.index(b"{") + 1
        body = body[:start] + b'"max_tokens":1,' + body[start:]
    return b'{"input":{"invokeModel":{"body":"%b"}}}' % base64.b64encode(body), dropped


def foundation_of(model: str) -> str:
    """The model that a profile stands for."""
    return _PLACE.sub("", model, count=1)


def is_uncounted(body: bytes) -> bool:
    """Whether an error says that this model's tokens can't be counted."""
    return _UNCOUNTED in body


class CountedTap(GatheredTap):
    """The answer of CountTokens, as Anthropic counts; nothing was used, and that is known."""

    content_type = JSON_TYPE

    def usage(self) -> Usage | None:
        return Usage()

    def _written(self, body: bytes) -> bytes:
        try:
            return b'{"input_tokens":%d}' % _decode_counted(body).inputTokens
        except UNREADABLE as error:
            raise BrokenAnswer(unreadable(f"the count is not as it should be: {error}")) from None


class InvokeTap:
    """The frames of a stream as Anthropic's events. See `gateway.api.Tap`."""

    rewrites = True
    content_type = SSE_TYPE
    __slots__ = ("_failure", "_inner", "_parser", "_secret")

    def __init__(self, *, secret: str = "") -> None:
        self._parser = EventStreamParser()
        self._inner = SSETap(Dialect.ANTHROPIC_MESSAGES)
        self._failure: Failure | None = None
        self._secret = secret

    @property
    def failure(self) -> Failure | None:
        return self._failure

    @property
    def errored(self) -> bool:
        return self._failure is not None or self._inner.errored

    @property
    def complete(self) -> bool:
        return self._failure is None and self._inner.complete

    @property
    def mid_event(self) -> bool:
        return self._inner.mid_event

    def feed(self, data: bytes) -> bytes:
        if self._failure is not None:
            return b""
        try:
            frames = self._parser.feed(data)
        except DamagedStream as error:
            out = self._events(error.frames)
            self._failure = self._failure or unreadable(f"the event stream is damaged: {error}")
            return out
        return self._events(frames)

    def end(self) -> bytes:
        return b"" if self._failure is not None else self._inner.end()

    def usage(self) -> Usage | None:
        return self._inner.usage()

    def delivered(self) -> Usage:
        delivered = self._inner.delivered()
        return delivered if self._failure is None else msgspec.structs.replace(delivered, source="partial")

    def _events(self, frames: list[EventFrame]) -> bytes:
        out = [self._event(frame) for frame in frames if self._failure is None]
        events = out[0] if len(out) == 1 else b"".join(out)
        return self._inner.feed(events) if events else b""

    def _event(self, frame: EventFrame) -> bytes:
        if frame.text(":message-type") != "event":
            self._failure = refused(frame, secret=self._secret)
            return b""
        if frame.text(":event-type") != "chunk":
            return b""
        try:
            data = base64.b64decode(_decode_chunk(frame.payload).bytes)
            kind = _decode_kind(data).type
        except (*UNREADABLE, binascii.Error) as error:
            self._failure = unreadable(f"an event is not as it should be: {error}")
            return b""
        if b"\n" in data or b"\r" in data or not kind.isascii() or not kind.isprintable():
            # JSON may be written in several lines; an event's data is one.
            data, kind = msgspec.json.format(data, indent=-1), "".join(filter(str.isalnum, kind))
        return b"event: %b\ndata: %b\n\n" % (kind.encode("ascii", "ignore"), data)
