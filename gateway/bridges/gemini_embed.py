"""Google's `embedContent` and `batchEmbedContents`, for providers that embed as OpenAI does.

Its hub is OpenAI's embeddings, not chat completions: one list of texts, of any length, for each request.

Rules:
- A content is one text: its parts stand in a line of their own each. What is no text is refused.
- All of a batch have one size of vectors, as the hub has one for all.
- What a vector is for (`taskType`, `title`) is dropped and told.
- A vector's numbers keep their spelling. A provider that packs them although it was asked for numbers is unpacked.

Source: https://ai.google.dev/api/embeddings, as the official SDK reads it.
"""

import base64
import binascii
import sys
from array import array
from typing import Final

import msgspec

from gateway.api import ResponseHead, Tap
from gateway.bridges.bridge import NO_EXTENSIONS, Opened
from gateway.bridges.gemini_request import camel
from gateway.bridges.hub import (
    Members,
    embeddings_call,
    encode,
    failure_in,
    read_chunk,
    request_members,
    told,
    unsupported,
)
from gateway.bridges.taps import GatheredTap, Unwritable
from gateway.errors import BadRequest
from gateway.exchange import Call
from gateway.wire.dialects import Dialect
from gateway.wire.estimate import estimate_input_tokens

_BATCH: Final = b":batchEmbedContents"
_FLOAT_BYTES: Final = 4


class _Vector(msgspec.Struct, frozen=True, gc=False):
    embedding: msgspec.Raw
    index: int = 0


class _Answer(msgspec.Struct, frozen=True):
    data: list[_Vector] | None = None
    error: msgspec.Raw = msgspec.Raw(b"")


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_text = msgspec.json.Decoder(str).decode


class GeminiEmbed:
    """From Google's embeddings to OpenAI's and back."""

    dialect = Dialect.GEMINI_EMBED
    hub = Dialect.OPENAI_EMBEDDINGS

    def open(self, call: Call, extensions: frozenset[str] = NO_EXTENSIONS) -> Opened:
        members = request_members(call, spell=camel)
        inner: list[Members] = []
        if _is_batch(call):
            listed = members.need("requests", list[msgspec.Raw])
            inner = [Members(raw, where=f"requests[{number}].", spell=camel) for number, raw in enumerate(listed)]
            if not inner:
                raise _empty("requests")
        asked = [_read(request) for request in inner or (members,)]
        sizes = {size for _, size in asked}
        if len(sizes) > 1:
            raise unsupported("outputDimensionality", "all of a batch must have the same here.")
        body: dict[str, object] = {
            "model": call.model,
            "input": [text for text, _ in asked],
            "encoding_format": "float",
            "dimensions": next(iter(sizes), None),
        }
        unread = [name.rpartition(".")[2] for each in (members, *inner) for name in each.rest()]
        return Opened(embeddings_call(call, body), dropped=told(unread))

    def tap(self, call: Call, head: ResponseHead, inner: Tap) -> Tap:
        return _EmbedTap(inner, batch=_is_batch(call), input_tokens=estimate_input_tokens(call.body))


class _EmbedTap(GatheredTap):
    """Writes the vectors as Google does, in the order of the texts."""

    __slots__ = ("_batch",)

    def __init__(self, inner: Tap, *, batch: bool, input_tokens: int) -> None:
        super().__init__(inner, input_tokens=input_tokens)
        self._batch = batch

    def _written(self, body: bytes) -> bytes:
        answer = _decode_answer(body)
        if bytes(answer.error) not in (b"", b"null"):
            self.failure = failure_in(read_chunk(body))
            return b""
        if not answer.data:
            raise Unwritable("an answer without embeddings")
        vectors = [{"values": _numbers(each.embedding)} for each in sorted(answer.data, key=_index)]
        return encode({"embeddings": vectors} if self._batch else {"embedding": vectors[0]})


def _is_batch(call: Call) -> bool:
    return call.path.endswith(_BATCH)


def _index(vector: _Vector) -> int:
    return vector.index


def _read(request: Members) -> tuple[str, int | None]:
    """The text to be embedded, and the size of its vector."""
    request.raw("model")
    content = Members(request.need("content", msgspec.Raw), where=f"{request.where}content.", spell=camel)
    texts: list[str] = []
    for number, raw in enumerate(content.need("parts", list[msgspec.Raw])):
        where = f"{content.where}parts[{number}]"
        text = Members(raw, where=f"{where}.", spell=camel).take("text", str)
        if text is None:
            raise unsupported(where, "only text can be embedded by this model.")
        texts.append(text)
    if not texts:
        raise _empty(f"{content.where}parts")
    return "\n".join(texts), request.take("outputDimensionality", int)


def _empty(param: str) -> BadRequest:
    return BadRequest(f"`{param}` has nothing in it to embed.", param=param, code="invalid_value")


def _numbers(vector: msgspec.Raw) -> msgspec.Raw | list[float]:
    """A vector as a JSON list."""
    if not bytes(vector).startswith(b'"'):
        return vector
    try:
        packed = base64.b64decode(_decode_text(vector), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unwritable("an embedding that is no base64") from error
    if len(packed) % _FLOAT_BYTES:
        raise Unwritable("an embedding of a broken size")
    numbers = array("f", packed)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
