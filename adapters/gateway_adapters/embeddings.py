"""Embeddings as OpenAI's callers ask for them and get them, for adapters whose providers say it in other words.

Rules:
- Texts only: token numbers mean nothing to a model with another vocabulary.
- A vector's numbers keep their spelling, or are packed as little-endian float32 in base64, which the official clients
  ask for without being told to.
- What no report says is estimated from the texts.

Source: OpenAI's API reference, "Create embeddings".
"""

import base64
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from gateway.api import BadRequest, Call, ResponseHead, Usage
from gateway_adapters.chat_answer import BYTES_PER_TOKEN, BrokenAnswer, GatheredTap, unreadable
from gateway_adapters.chat_request import decode_body

#: Members of a request that are read here.
READ: Final = frozenset({"input", "encoding_format", "dimensions"})
#: As many texts may be asked for at once.
TEXTS_MAX: Final = 2048


class _Request(msgspec.Struct):
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None


class EmbedRequest(msgspec.Struct, frozen=True):
    """What is to be embedded, and how."""

    texts: list[str]
    dimensions: int | None
    packed: bool


class Embedded(msgspec.Struct, frozen=True):
    """Vectors, each a JSON list of numbers; the tokens that the provider counted, or None."""

    vectors: Sequence[msgspec.Raw]
    input_tokens: int | None


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_vector = msgspec.json.Decoder(list[float]).decode
_encode = msgspec.json.Encoder().encode


def read_embed_request(call: Call) -> EmbedRequest:
    """The request in `call`'s body.

    Raises:
        BadRequest: it is malformed, asks for too many, or for the embeddings of token numbers; `param` names the
            member.
    """
    request = decode_body(call.body, _decode_request)
    given = [request.input] if isinstance(request.input, str) else request.input
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) != len(given):
        raise BadRequest(
            "This model takes text, not token numbers, which mean nothing without OpenAI's vocabulary; "
            "with LangChain, set `check_embedding_ctx_length=False`.",
            param="input",
            code="unsupported_value",
        )
    if not 0 < len(texts) <= TEXTS_MAX:
        raise BadRequest(f"`input` must have 1 to {TEXTS_MAX} texts.", param="input", code="invalid_value")
    if request.encoding_format not in (None, "float", "base64"):
        raise BadRequest("`encoding_format` must be float or base64.", param="encoding_format", code="invalid_value")
    return EmbedRequest(texts, request.dimensions, request.encoding_format == "base64")


class EmbedTap(GatheredTap):
    """Writes OpenAI's list from what `read` finds in the provider's answer."""

    def __init__(self, call: Call, head: ResponseHead, read: Callable[[bytes], Embedded]) -> None:
        super().__init__(call, head)
        self._read = read
        self._request = read_embed_request(call)

    def delivered(self) -> Usage:
        size_bytes = sum(len(text.encode("utf-8", "replace")) for text in self._request.texts)
        tokens = max(size_bytes // BYTES_PER_TOKEN, 1)
        return Usage(input_tokens=tokens, source="estimated" if self.complete else "partial")

    def _written(self, body: bytes) -> bytes:
        embedded = self._read(body)
        if len(embedded.vectors) != len(self._request.texts):
            raise BrokenAnswer(unreadable("there are not as many embeddings as texts"))
        if embedded.input_tokens is not None:
            self._usage = Usage(input_tokens=embedded.input_tokens)
        tokens = (self._usage or self.delivered()).input_tokens
        data = [
            {"object": "embedding", "index": index, "embedding": pack(vector) if self._request.packed else vector}
            for index, vector in enumerate(embedded.vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _encode({"object": "list", "data": data, "model": self._model, "usage": usage})


def pack(vector: msgspec.Raw) -> str:
    """A JSON list of numbers as base64 of little-endian float32."""
    numbers = array("f", _decode_vector(vector))
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")
