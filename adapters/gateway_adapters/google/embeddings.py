"""Embeddings asked for in Google's words, and what it answers in OpenAI's.

The Gemini API takes a batch in `batchEmbedContents` and reports no usage; Vertex AI takes one in `predict` and counts
the tokens of each text. Neither takes text as token numbers.

Source: the references of the Gemini API (batchEmbedContents) and of Vertex AI (text embeddings).
"""

import base64
import sys
from array import array
from typing import Final

import msgspec

from gateway.api import BadRequest, Call, ResponseHead, Usage, parse_gemini_usage
from gateway_adapters.chat_answer import BYTES_PER_TOKEN, BrokenAnswer, GatheredTap, unreadable
from gateway_adapters.chat_request import NONE, decode_body, dropped_members

_CARRIED: Final = frozenset({"input", "dimensions", "encoding_format", "task_type"})
_TEXTS_MAX: Final = 2048
_NUMBERS: Final = "Google embeds text, not token numbers: send `input` as a string or as a list of strings."


class _Request(msgspec.Struct):
    input: str | list[str | int | list[int]] = ""
    dimensions: int | None = None
    encoding_format: str | None = None
    task_type: str | None = None


class _Statistics(msgspec.Struct):
    token_count: float = 0


class _Embedding(msgspec.Struct):
    values: msgspec.Raw = NONE
    statistics: _Statistics | None = None


class _Prediction(msgspec.Struct):
    embeddings: _Embedding


class _Answer(msgspec.Struct):
    embeddings: list[_Embedding] = []
    predictions: list[_Prediction] = []
    usageMetadata: msgspec.Raw = NONE  # noqa: N815 - Google's name


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_vector = msgspec.json.Decoder(list[float]).decode
_encode = msgspec.json.Encoder().encode


def batch_request(call: Call, resource: str) -> tuple[bytes, tuple[str, ...]]:
    """For the Gemini API; `resource` is the model as it is in the path.

    Raises:
        BadRequest: the request is malformed, or asks for the embeddings of token numbers.
    """
    request, texts, dropped = _read(call)
    requests: list[dict[str, object]] = []
    for text in texts:
        one: dict[str, object] = {"model": resource, "content": {"parts": [{"text": text}]}}
        if request.dimensions is not None:
            one["outputDimensionality"] = request.dimensions
        if request.task_type is not None:
            one["taskType"] = request.task_type
        requests.append(one)
    return _encode({"requests": requests}), dropped


def predict_request(call: Call) -> tuple[bytes, tuple[str, ...]]:
    """For Vertex AI.

    Raises:
        BadRequest: as `batch_request`.
    """
    request, texts, dropped = _read(call)
    kind = {} if request.task_type is None else {"task_type": request.task_type}
    body: dict[str, object] = {"instances": [{"content": text, **kind} for text in texts]}
    if request.dimensions is not None:
        body["parameters"] = {"outputDimensionality": request.dimensions}
    return _encode(body), dropped


def _read(call: Call) -> tuple[_Request, list[str], tuple[str, ...]]:
    request: _Request = decode_body(call.body, _decode_request)
    given = [request.input] if isinstance(request.input, str) else request.input
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) != len(given):
        raise BadRequest(_NUMBERS, param="input", code="unsupported_value")
    if not 0 < len(texts) <= _TEXTS_MAX:
        raise BadRequest(f"`input` must have 1 to {_TEXTS_MAX} texts.", param="input", code="invalid_value")
    if request.encoding_format not in (None, "float", "base64"):
        raise BadRequest("`encoding_format` must be float or base64.", param="encoding_format", code="invalid_value")
    return request, texts, dropped_members(_decode_members(call.body), _CARRIED, provider="Google")


class EmbeddingsTap(GatheredTap):
    """Turns either answer into OpenAI's list, its vectors as floats or packed in base64, as the caller asked."""

    def __init__(self, call: Call, head: ResponseHead) -> None:
        super().__init__(call, head)
        request = _decode_request(call.body)
        self._packed = request.encoding_format == "base64"
        given = [request.input] if isinstance(request.input, str) else request.input
        self._estimate = max(1, sum(len(text.encode()) for text in given if isinstance(text, str)) // BYTES_PER_TOKEN)

    def delivered(self) -> Usage:
        return Usage(input_tokens=self._estimate, source="estimated" if self.complete else "partial")

    def _written(self, body: bytes) -> bytes:
        answer = _decode_answer(body)
        found = answer.embeddings or [prediction.embeddings for prediction in answer.predictions]
        if not found:
            raise BrokenAnswer(unreadable("there are no embeddings in the answer"))
        counted = sum(round(one.statistics.token_count) for one in found if one.statistics is not None)
        if counted:
            self._usage = Usage(input_tokens=counted)
        elif bytes(answer.usageMetadata):
            self._usage = parse_gemini_usage(answer.usageMetadata)
        tokens = self._estimate if self._usage is None else self._usage.input_tokens
        data = [
            {"object": "embedding", "index": index, "embedding": packed(one.values) if self._packed else one.values}
            for index, one in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _encode({"object": "list", "data": data, "model": self._model, "usage": usage})


def packed(values: msgspec.Raw) -> str:
    """A JSON list of numbers as base64 of little-endian float32, as OpenAI packs a vector."""
    vector = array("f", _decode_vector(values))
    if sys.byteorder == "big":
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode("ascii")
