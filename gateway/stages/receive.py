"""The request body: in, once, bounded; and the few facts in it that the gateway acts on."""

import asyncio
from typing import Final

from gateway.deps import Deps, Handler
from gateway.downstream import DIRECT
from gateway.errors import BadRequest, BodyTooLarge, CallerGone, RequestTimeout
from gateway.exchange import Call, Exchange, Headers
from gateway.wire.dialects import GEMINI_DIALECTS, Dialect
from gateway.wire.encoding import inflate_request
from gateway.wire.form import peek_form
from gateway.wire.gemini import peek_gemini
from gateway.wire.peek import Peek, peek

_NO_PEEK: Final = Peek()
#: Methods that carry a body worth reading.
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


async def receive(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.call`.

    Raises:
        BodyTooLarge, RequestTimeout, CallerGone: the body did not come in.
        BadRequest, UnsupportedEncoding: it came, but can't be acted on.
    """
    scope = x.scope
    headers: Headers = scope["headers"]
    limit_bytes = deps.settings.server.body_bytes_max
    content_type = coding = b""
    for name, value in headers:
        if name == b"content-type":
            content_type = value
        elif name == b"content-encoding":
            coding = value
        elif name == b"content-length" and value.isdigit() and int(value) > limit_bytes:
            raise _too_large(limit_bytes)

    direct = scope.get("extensions", {}).get(DIRECT)
    body: bytes | None = direct.take_body() if direct is not None else None
    if body is None:
        body = await _read(x, limit_bytes=limit_bytes, timeout_s=deps.settings.server.body_timeout_s)
    elif len(body) > limit_bytes:
        raise _too_large(limit_bytes)
    if coding and body:
        body = inflate_request(body, coding, size_bytes_max=limit_bytes)
        headers = [header for header in headers if header[0] != b"content-encoding"]

    found = _look(x, body, content_type)
    model = x.target.model or found.model
    unnamed = not model and found.models_span is None
    if unnamed and x.target.dialect is not Dialect.OPENAI_OTHER and not deps.settings.default_provider:
        raise BadRequest("You must provide a `model`.", code="missing_required_parameter", param="model")
    x.call = Call(
        id=x.id,
        dialect=x.target.dialect,
        method=scope["method"],
        path=x.target.path,
        query=scope["query_string"],
        headers=headers,
        body=body,
        peek=found,
        model=model or "",
    )
    await call_next(x)


def _look(x: Exchange, body: bytes, content_type: bytes) -> Peek:
    """Peek into a body if it is of a kind that can be, and must be on a path the gateway understands."""
    if x.target.dialect in GEMINI_DIALECTS:
        return peek_gemini(body, stream=x.target.stream)
    if x.target.dialect is not Dialect.OPENAI_OTHER:
        return peek(body)
    if not body or x.scope["method"] not in _WITH_BODY:
        return _NO_PEEK
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type == b"multipart/form-data":
        return peek_form(body, content_type)
    if media_type == b"application/json" or media_type.endswith(b"+json"):
        return peek(body)
    return _NO_PEEK


async def _read(x: Exchange, *, limit_bytes: int, timeout_s: float) -> bytes:
    """The body through ASGI, each read bounded in time and the whole in size."""
    pieces: list[bytes] = []
    size_bytes = 0
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                message = await x.receive()
        except TimeoutError:
            raise RequestTimeout from None
        if message["type"] == "http.disconnect":
            raise CallerGone
        piece: bytes = message.get("body", b"")
        if piece:
            size_bytes += len(piece)
            if size_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than the {limit_bytes} bytes this gateway accepts.")
