"""The wire formats a caller or a provider may speak, and the few facts that tell them apart: paths, error shapes, how
a stream that failed says so.

Rules:
- A dialect is known from the path alone, never from headers or the body.
- An error body is what the official SDKs of that dialect turn into their own exception; the request id is in it.
- An event that ends a failed stream is whole (it ends in a blank line), and only dialects that have `[DONE]` get one.

It decides neither which error to send nor its status beyond what a dialect calls it: see `gateway/errors.py`.
"""

import re
from collections.abc import Container
from enum import StrEnum

import msgspec

JSON_TYPE = b"application/json"
SSE_TYPE = b"text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"


class Dialect(StrEnum):
    """A wire format. `OPENAI_OTHER` is any `/v1/*` path that is relayed without being understood."""

    OPENAI_CHAT = "openai.chat"
    OPENAI_COMPLETIONS = "openai.completions"
    OPENAI_RESPONSES = "openai.responses"
    #: How many tokens a response would take in.
    OPENAI_INPUT_TOKENS = "openai.input_tokens"
    OPENAI_EMBEDDINGS = "openai.embeddings"
    OPENAI_IMAGES = "openai.images"
    #: Edits and variations: pictures go in, mostly in a form.
    OPENAI_IMAGE_EDITS = "openai.image_edits"
    OPENAI_SPEECH = "openai.speech"
    #: And translations, which answer alike.
    OPENAI_TRANSCRIPTIONS = "openai.transcriptions"
    OPENAI_MODERATIONS = "openai.moderations"
    #: Cohere's, which Jina, Voyage and those who host open models copy: `query` and `documents` in, scores out.
    RERANK = "rerank"
    OPENAI_OTHER = "openai.other"
    ANTHROPIC_MESSAGES = "anthropic.messages"
    ANTHROPIC_COUNT_TOKENS = "anthropic.count_tokens"
    GEMINI_GENERATE = "gemini.generate"
    GEMINI_COUNT_TOKENS = "gemini.count_tokens"
    GEMINI_EMBED = "gemini.embed"


#: Where each dialect is served, after the `/v1` prefix. Gemini's has the model in it and is a pattern below.
PATHS: dict[bytes, Dialect] = {
    b"/chat/completions": Dialect.OPENAI_CHAT,
    b"/completions": Dialect.OPENAI_COMPLETIONS,
    b"/responses": Dialect.OPENAI_RESPONSES,
    b"/responses/input_tokens": Dialect.OPENAI_INPUT_TOKENS,
    b"/embeddings": Dialect.OPENAI_EMBEDDINGS,
    b"/images/generations": Dialect.OPENAI_IMAGES,
    b"/images/edits": Dialect.OPENAI_IMAGE_EDITS,
    b"/images/variations": Dialect.OPENAI_IMAGE_EDITS,
    b"/audio/speech": Dialect.OPENAI_SPEECH,
    b"/audio/transcriptions": Dialect.OPENAI_TRANSCRIPTIONS,
    b"/audio/translations": Dialect.OPENAI_TRANSCRIPTIONS,
    b"/moderations": Dialect.OPENAI_MODERATIONS,
    b"/rerank": Dialect.RERANK,
    b"/messages": Dialect.ANTHROPIC_MESSAGES,
    b"/messages/count_tokens": Dialect.ANTHROPIC_COUNT_TOKENS,
}

#: Paid for by what is not only tokens: pictures, seconds, characters, searches. `wire/units.py` counts them.
UNIT_DIALECTS = frozenset(
    {
        Dialect.OPENAI_IMAGES,
        Dialect.OPENAI_IMAGE_EDITS,
        Dialect.OPENAI_SPEECH,
        Dialect.OPENAI_TRANSCRIPTIONS,
        Dialect.OPENAI_MODERATIONS,
        Dialect.RERANK,
    }
)
#: May be called without a price: they cost nothing unless a price says otherwise.
FREE_DIALECTS = frozenset(
    {
        Dialect.OPENAI_MODERATIONS,
        Dialect.OPENAI_INPUT_TOKENS,
        Dialect.ANTHROPIC_COUNT_TOKENS,
        Dialect.GEMINI_COUNT_TOKENS,
    }
)

#: They ask how many tokens a request would be. Nothing is generated, and nothing is charged.
COUNT_DIALECTS = frozenset({Dialect.OPENAI_INPUT_TOKENS, Dialect.ANTHROPIC_COUNT_TOKENS, Dialect.GEMINI_COUNT_TOKENS})

#: Their streams close with `data: [DONE]`.
DONE_DIALECTS = frozenset({Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS})

#: Anthropic's: their errors have its shape.
ANTHROPIC_DIALECTS = frozenset({Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COUNT_TOKENS})
#: Google's: their errors have its shape, and their clients take no comments in a stream.
GEMINI_DIALECTS = frozenset({Dialect.GEMINI_GENERATE, Dialect.GEMINI_COUNT_TOKENS, Dialect.GEMINI_EMBED})
#: What stands after the model's name and a colon in a path of Google's.
GEMINI_VERBS: dict[bytes, Dialect] = {
    b"generateContent": Dialect.GEMINI_GENERATE,
    b"streamGenerateContent": Dialect.GEMINI_GENERATE,
    b"countTokens": Dialect.GEMINI_COUNT_TOKENS,
    b"embedContent": Dialect.GEMINI_EMBED,
    b"batchEmbedContents": Dialect.GEMINI_EMBED,
}
_GEMINI_PATH = re.compile(rb"/models/.+:([A-Za-z]+)")

# Anthropic: https://platform.claude.com/docs/en/api/errors
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# Google: google.rpc.Code, as its HTTP mapping has it.
_GEMINI_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# Statuses that a dialect's SDKs know by another number.
_ANTHROPIC_STATUS = {502: 500, 503: 529}
_GEMINI_STATUS = {402: 429, 405: 404, 408: 504, 413: 400, 415: 400, 422: 400, 502: 500, 529: 503}

_encode = msgspec.json.Encoder().encode


def dialect_of(path: bytes) -> Dialect:
    """The dialect spoken at a raw path, given after its `/v1` prefix. One trailing slash more or less is the same."""
    found = PATHS.get(path) or PATHS.get(path.removesuffix(b"/"))
    if found is not None:
        return found
    verb = _GEMINI_PATH.fullmatch(path)
    return Dialect.OPENAI_OTHER if verb is None else GEMINI_VERBS.get(verb[1], Dialect.OPENAI_OTHER)


def error_status(dialect: Dialect, status: int) -> int:
    """The status that says `status` in this dialect: Anthropic's overload is 529, Google has no 402."""
    if dialect in ANTHROPIC_DIALECTS:
        return _ANTHROPIC_STATUS.get(status, status)
    if dialect in GEMINI_DIALECTS:
        return _GEMINI_STATUS.get(status, status)
    return status


def id_headers(dialect: Dialect, request_id: str, names: Container[bytes] = ()) -> list[tuple[bytes, bytes]]:
    """What tells the dialect's SDKs a request's id, but for the headers among `names`: the provider sent those.

    Anthropic's read `request-id`, all others `x-request-id`.
    """
    value = request_id.encode("ascii")
    headers = [] if b"x-request-id" in names else [(b"x-request-id", value)]
    if (
        dialect is Dialect.ANTHROPIC_MESSAGES or dialect is Dialect.ANTHROPIC_COUNT_TOKENS
    ) and b"request-id" not in names:
        headers.append((b"request-id", value))
    return headers


def error_body(
    dialect: Dialect,
    *,
    status: int,
    type: str,  # noqa: A002 - the word the error object uses
    code: str | None,
    message: str,
    param: str | None = None,
    request_id: str = "",
) -> bytes:
    """An error as JSON. `type`, `code` and `param` are OpenAI's; the others are told by `status`."""
    plain = {"message": message, "type": type, "param": param, "code": code}
    return _encode(_error_object(dialect, status, plain, request_id))


def error_event(
    dialect: Dialect,
    *,
    status: int,
    type: str,  # noqa: A002 - the word the error object uses
    code: str | None,
    message: str,
    param: str | None = None,
    request_id: str = "",
    sequence_number: int = 0,
) -> bytes:
    """The events that end a stream which failed under way, so that no SDK takes it for finished.

    `sequence_number` is only used by the responses dialect, whose events are numbered.
    """
    if dialect is Dialect.OPENAI_RESPONSES:
        body: dict[str, object] = {
            "type": "error",
            "code": code,
            "message": message,
            "param": param,
            "sequence_number": sequence_number,
        }
        if request_id:
            body["request_id"] = request_id
        return b"event: error\ndata: " + _encode(body) + b"\n\n"
    plain = {"message": message, "type": type, "param": param, "code": code}
    event = _encode(_error_object(dialect, status, plain, request_id))
    if dialect in ANTHROPIC_DIALECTS:
        return b"event: error\ndata: " + event + b"\n\n"
    frame = b"data: " + event + b"\n\n"
    return frame + DONE if dialect in DONE_DIALECTS else frame


def _error_object(dialect: Dialect, status: int, plain: dict[str, str | None], request_id: str) -> dict[str, object]:
    """`plain`, OpenAI's error object, as the dialect has it."""
    status = error_status(dialect, status)
    if dialect in ANTHROPIC_DIALECTS:
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        body: dict[str, object] = {"type": "error", "error": {"type": kind, "message": plain["message"]}}
        if request_id:
            body["request_id"] = request_id
        return body
    if dialect in GEMINI_DIALECTS:
        name = _GEMINI_STATUSES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
        error: dict[str, object] = {"code": status, "message": plain["message"], "status": name}
        if request_id:
            info = {"@type": "type.googleapis.com/google.rpc.RequestInfo", "requestId": request_id}
            error["details"] = [info]
        return {"error": error}
    return {"error": {**plain, "request_id": request_id} if request_id else plain}
