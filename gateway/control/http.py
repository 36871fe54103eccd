"""Between bytes and structs: bodies, queries, cookies and answers, the same for every route.

Rules:
- A body is JSON, bounded, and read once. What does not fit its struct is 422, and says which part; `detail` is a
  list of `{loc, msg, type}` then, and a text in every other error.
- A zero character is refused wherever it comes: PostgreSQL has no place for it.
- Every answer carries the request id; answers to people we know are stored by nobody.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from starlette.datastructures import Headers, QueryParams

from gateway.control.errors import Fault, Invalid
from gateway.errors import BadRequest, BodyTooLarge, GatewayError, UnknownRoute, UnsupportedEncoding
from gateway.wire.client_address import Network, find_client

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
Scope = MutableMapping[str, Any]  # ASGI's own shape
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
HeaderList = list[tuple[bytes, bytes]]

USER_AGENT_MAX: Final = 300
JSON: Final = b"application/json"
#: Sent with every answer. Pages add what they need.
SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
CLOSED_POLICY: Final = b"default-src 'none'; frame-ancestors 'none'"

_WHERE: Final = re.compile(r"^(.*) - at `\$(.*)`$", re.DOTALL)
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_encoder: Final = msgspec.json.Encoder()


class OpenAIError(msgspec.Struct, frozen=True, kw_only=True):
    """The same as OpenAI's clients read it."""

    message: str
    type: str
    code: str | None
    request_id: str


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every error is answered with."""

    #: What is wrong, for people; of a request that does not fit (422) a list of what is wrong where.
    detail: str | tuple[Fault, ...]
    #: The same for programs.
    code: str | None
    request_id: str
    #: Only where there is nothing: whoever left the /v1 out of a client's base URL comes here.
    error: OpenAIError | None = None


async def read_body(receive: Receive, headers: Headers, *, bytes_max: int) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge, UnsupportedEncoding, BadRequest
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedEncoding("Send the body as it is, without a content-encoding.")
    length = headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > bytes_max:
        raise BodyTooLarge(f"The body is larger than {bytes_max} bytes.")
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("The body ended before its end.")
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > bytes_max:
            raise BodyTooLarge(f"The body is larger than {bytes_max} bytes.")
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def decode_body(body: bytes, type_: type[T], content_type: str) -> T:
    """The struct that a body is. An empty one is an empty object.

    Raises:
        BadRequest: it is no JSON. UnsupportedEncoding: it says that it is something else. Invalid: it does not fit.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if body and kind and kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedEncoding("Send the body as application/json.", code="unsupported_content_type")
    if b"\\u0000" in body:
        raise Invalid("A text holds a zero character.")
    try:
        return msgspec.json.decode(body or b"{}", type=type_)
    except msgspec.ValidationError as error:
        raise _invalid(error, "body") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("The body is not JSON.", code="not_json") from error


def decode_query(query: QueryParams, type_: type[S]) -> S:
    """The struct that a query is. Fields that are tuples take every value given, others the last one; what the
    struct has no field for is passed over.

    Raises:
        Invalid: it does not fit.
    """
    values: dict[str, object] = {}
    for info in msgspec.structs.fields(type_):
        if info.encode_name in query:
            text = query.getlist(info.encode_name)
            if any("\0" in each for each in text):
                raise Invalid("A text holds a zero character.", loc=("query", info.encode_name))
            values[info.encode_name] = text if _takes_many(info.type) else text[-1]
    try:
        return msgspec.convert(values, type_, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(error, "query") from error


def encode(answer: object) -> bytes:
    """JSON."""
    return _encoder.encode(answer)


def client_ip(scope: Scope, headers: Headers, trusted: Sequence[Network]) -> str | None:
    """The caller's address as text."""
    peer = scope.get("client")
    forwarded = [value.encode("latin-1") for value in headers.getlist("x-forwarded-for")]
    address = find_client(peer[0] if peer else None, forwarded, trusted)
    return None if address is None else str(address)


def user_agent(headers: Headers) -> str:
    """What the caller says it is, short and printable."""
    text = headers.get("user-agent", "")[:USER_AGENT_MAX]
    return "".join(each if each.isprintable() else "?" for each in text)


def error_answer(error: GatewayError, request_id: str) -> tuple[bytes, HeaderList]:
    """Body and headers of an error."""
    detail = error.faults if isinstance(error, Invalid) else error.message
    twin = None
    if isinstance(error, UnknownRoute):
        twin = OpenAIError(message=error.message, type=error.type, code=error.code, request_id=request_id)
    body = encode(ErrorAnswer(detail=detail, code=error.code, request_id=request_id, error=twin))
    headers: HeaderList = []
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, -(-error.retry_after_s // 1))))
    return body, headers


async def send_answer(
    scope: Scope, send: Send, status: int, body: bytes, *, headers: HeaderList, media_type: bytes = JSON
) -> None:
    """One whole response."""
    names = {name for name, _ in headers}
    head = [*headers, *((name, value) for name, value in SECURITY_HEADERS if name not in names)]
    if b"content-security-policy" not in names:
        head.append((b"content-security-policy", CLOSED_POLICY))
    if b"cache-control" not in names:
        head.append((b"cache-control", b"no-store"))
    if body or status not in (204, 304):
        head += [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _invalid(error: msgspec.ValidationError, part: str) -> Invalid:
    """`Expected `int`, got `str` - at `$.limits[0].rate`` as a fault with its place."""
    text = str(error)
    if (match := _WHERE.match(text)) is None:
        return Invalid(text, loc=(part,))
    steps = [name or (int(index) if index.isdecimal() else index) for name, index in _STEP.findall(match[2])]
    return Invalid(match[1], loc=(part, *steps))


def _takes_many(type_: object) -> bool:
    origin = getattr(type_, "__origin__", type_)
    return origin in (tuple, list, set, frozenset)
