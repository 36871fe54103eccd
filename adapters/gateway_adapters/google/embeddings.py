"""Embeddings asked for in Google's words, and what it answers.

The Gemini API takes a batch in `batchEmbedContents` and mostly reports no usage; Vertex AI takes one in `predict` and
counts the tokens of each text.

Source: the references of the Gemini API (batchEmbedContents) and of Vertex AI (text embeddings).
"""

from typing import Final

import msgspec

from gateway.api import Call, ResponseHead, parse_gemini_usage
from gateway_adapters.chat_request import NONE, decode_body, dropped_members, members_of
from gateway_adapters.embeddings import READ, Embedded, EmbedRequest, EmbedTap, read_embed_request

_CARRIED: Final = READ | {"task_type"}


class _Own(msgspec.Struct):
    """What a caller may say besides what OpenAI's may."""

    task_type: str | None = None


class _Statistics(msgspec.Struct):
    token_count: float = 0


class _Embedding(msgspec.Struct):
    values: msgspec.Raw
    statistics: _Statistics | None = None


class _Prediction(msgspec.Struct):
    embeddings: _Embedding


class _Answer(msgspec.Struct):
    embeddings: list[_Embedding] = []
    predictions: list[_Prediction] = []
    usageMetadata: msgspec.Raw = NONE  # noqa: N815 - Google's name


_decode_own = msgspec.json.Decoder(_Own).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_encode = msgspec.json.Encoder().encode


def batch_request(call: Call, resource: str) -> tuple[bytes, tuple[str, ...]]:
    """For the Gemini API; `resource` is the model as it is in the path.

    Raises:
        BadRequest: the request is malformed, or asks for the embeddings of token numbers.
    """
    request, task_type, dropped = _read(call)
    requests: list[dict[str, object]] = []
    for text in request.texts:
        one: dict[str, object] = {"model": resource, "content": {"parts": [{"text": text}]}}
        if request.dimensions is not None:
            one["outputDimensionality"] = request.dimensions
        if task_type is not None:
            one["taskType"] = task_type
        requests.append(one)
    return _encode({"requests": requests}), dropped


def predict_request(call: Call) -> tuple[bytes, tuple[str, ...]]:
    """For Vertex AI.

    Raises:
        BadRequest: as `batch_request`.
    """
    request, task_type, dropped = _read(call)
    kind = {} if task_type is None else {"task_type": task_type}
    body: dict[str, object] = {"instances": [{"content": text, **kind} for text in request.texts]}
    if request.dimensions is not None:
        body["parameters"] = {"outputDimensionality": request.dimensions}
    return _encode(body), dropped


def embed_tap(call: Call, head: ResponseHead) -> EmbedTap:
    """The watcher for the answer of either."""
    return EmbedTap(call, head, _read_answer)


def _read(call: Call) -> tuple[EmbedRequest, str | None, tuple[str, ...]]:
    request = read_embed_request(call)
    own: _Own = decode_body(call.body, _decode_own)
    return request, own.task_type, dropped_members(members_of(call), _CARRIED, provider="Google")


def _read_answer(body: bytes) -> Embedded:
    answer = _decode_answer(body)
    found = answer.embeddings or [prediction.embeddings for prediction in answer.predictions]
    tokens: int | None = sum(round(one.statistics.token_count) for one in found if one.statistics is not None)
    if not tokens:
        usage = parse_gemini_usage(answer.usageMetadata) if bytes(answer.usageMetadata) else None
        tokens = None if usage is None else usage.input_tokens
    return Embedded([one.values for one in found], tokens)
