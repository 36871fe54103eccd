"""Embeddings by the models of Amazon (Titan) and Cohere on Bedrock, each in its maker's words through InvokeModel.

Titan takes one text at a time and counts its tokens in the answer; for Cohere's models Bedrock counts them in a
header.
Source: Bedrock's user guide, "Amazon Titan Text Embeddings models" and "Cohere Embed models".
"""

from typing import Final

import msgspec

from gateway.api import BadRequest, Call, ResponseHead
from gateway_adapters.chat_request import dropped_members, members_of
from gateway_adapters.embeddings import READ, Embedded, EmbedTap, read_embed_request

#: What Cohere is told an embedding is for, where the caller does not say so.
INPUT_TYPE: Final = "search_document"
_COUNT_HEADER: Final = b"x-amzn-bedrock-input-token-count"


class _Vectors(msgspec.Struct):
    float: list[msgspec.Raw]


class _Answer(msgspec.Struct):
    """Titan's, or Cohere's."""

    embedding: msgspec.Raw = msgspec.Raw(b"")
    inputTextTokenCount: int | None = None  # noqa: N815 - Titan's name
    embeddings: _Vectors | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


def write_embed_request(call: Call, model: str) -> tuple[bytes, tuple[str, ...]]:
    """The body for InvokeModel, and the names of members that could not be told.

    Raises:
        BadRequest: the request is malformed, or the model is none that embeds text alone.
    """
    request = read_embed_request(call)
    members = members_of(call)
    body: dict[str, object]
    own: tuple[str, ...]
    if "titan-embed" in model:
        if len(request.texts) != 1:
            raise BadRequest("This model takes one text at a time.", param="input", code="unsupported_value")
        body, dimensions, own = {"inputText": request.texts[0]}, "dimensions", ("normalize",)
    elif "cohere.embed" in model:
        body = {"texts": request.texts, "input_type": INPUT_TYPE, "embedding_types": ["float"]}
        dimensions, own = "output_dimension", ("input_type", "truncate")
    else:
        raise BadRequest("This model can't be asked for embeddings here.", param="model", code="unsupported_value")
    if request.dimensions is not None:
        body[dimensions] = request.dimensions
    body |= {name: members[name] for name in own if name in members}
    return msgspec.json.encode(body), dropped_members(members, READ.union(own), provider="Bedrock")


def embed_tap(call: Call, head: ResponseHead) -> EmbedTap:
    """The watcher for the answer of either."""
    counted = head.header(_COUNT_HEADER) or b""
    count = int(counted) if counted.isdigit() and len(counted) < 10 else None

    def read(body: bytes) -> Embedded:
        answer = _decode_answer(body)
        if answer.embeddings is not None:
            return Embedded(answer.embeddings.float, count)
        vectors = [answer.embedding] if bytes(answer.embedding) else []
        return Embedded(vectors, count if answer.inputTextTokenCount is None else answer.inputTextTokenCount)

    return EmbedTap(call, head, read)
