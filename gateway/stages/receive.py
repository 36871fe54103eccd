"""The request body: in, once, bounded; and the few facts in it that the gateway acts on.

A form with files in it is not read to its end here: see `gateway/upload.py`.
"""

import asyncio
from typing import Final

from gateway.deps import Deps, Handler
from gateway.downstream import DIRECT
from gateway.errors import BadRequest, BodyTooLarge, CallerGone, RequestTimeout
from gateway.exchange import Call, Exchange, Headers
from gateway.upload import Upload, UploadBounds
from gateway.wire.dialects import GEMINI_DIALECTS, UNIT_DIALECTS, Dialect
from gateway.wire.encoding import inflate_request
from gateway.wire.form import scan_form
from gateway.wire.gemini import peek_gemini
from gateway.wire.peek import Peek, peek

_NO_PEEK: Final = Peek()
#: Methods that carry a body worth reading.
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
#: Whose body may be a form.
_FORMS: Final = frozenset({Dialect.OPENAI_IMAGE_EDITS, Dialect.OPENAI_TRANSCRIPTIONS, Dialect.OPENAI_OTHER})
_FORM_TYPE: Final = b"multipart/form-data"
_NOTHING: Final[frozenset[str]] = frozenset()
_MODEL: Final = frozenset({"model"})
_MODEL_AND_COUNT: Final = frozenset({"model", "n"})
#: What is meant where no model is named, by OpenAI's own documentation.
_USUAL_MODELS: Final = {Dialect.OPENAI_MODERATIONS: "omni-moderation-latest"}


async def receive(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.call`.

    Raises:
        BodyTooLarge, RequestTimeout, CallerGone, Overloaded: the body did not come in.
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
        elif name == b"content-length" and value.isdigit() and int(value) > limit_bytes and not _is_form(x):
            raise _too_large(limit_bytes)

    direct = scope.get("extensions", {}).get(DIRECT)
    body: bytes | None = direct.take_body() if direct is not None else None
    upload: Upload | None = None
    held_bytes = 0
    try:
        if body is None:
            if content_type and not coding and _is_form(x):
                upload = _upload(x, content_type, deps)
                x.form = upload.form
            else:
                body = await _read(x, deps, limit_bytes=limit_bytes)
                held_bytes = len(body)
        elif len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        if coding and body:
            body = inflate_request(body, coding, size_bytes_max=limit_bytes)
            deps.bodies.take(len(body))
            held_bytes += len(body)
            headers = [header for header in headers if header[0] != b"content-encoding"]
        if upload is None:
            assert body is not None
            found = _look(x, body, content_type)
        else:
            body = await upload.open(_needs(x), needs_length=x.target.dialect in UNIT_DIALECTS)
            found = upload.peek
        model = x.target.model or found.model
        unnamed = not model and found.models_span is None
        if unnamed and x.target.dialect is not Dialect.OPENAI_OTHER and not deps.settings.default_provider:
            model = _USUAL_MODELS.get(x.target.dialect)
            if model is None:
                raise BadRequest("You must provide a `model`.", code="missing_required_parameter", param="model")
        x.call = Call(
            id=x.id,
            dialect=x.target.dialect,
            method=scope["method"],
            path=x.target.path,
            query=scope["query_string"],
            headers=headers,
            body=body or b"",
            peek=found,
            model=model or "",
            account_id=x.principal.account_id if x.principal is not None else 0,
            upload=upload if body is None else None,
        )
        await call_next(x)
    finally:
        if held_bytes:
            deps.bodies.give_back(held_bytes)
        if upload is not None:
            upload.close()


def _look(x: Exchange, body: bytes, content_type: bytes) -> Peek:
    """Peek into a body if it is of a kind that can be, and must be on a path the gateway understands."""
    if x.target.dialect in GEMINI_DIALECTS:
        return peek_gemini(body, stream=x.target.stream)
    if x.target.dialect not in _FORMS:
        return peek(body)
    media_type = content_type.partition(b";")[0].strip().lower()
    if x.target.dialect is not Dialect.OPENAI_OTHER and media_type != _FORM_TYPE:
        return peek(body)
    if not body or x.scope["method"] not in _WITH_BODY:
        return _NO_PEEK
    if media_type == _FORM_TYPE:
        x.form = scan_form(body, content_type)
        return x.form.peek()
    if media_type == b"application/json" or media_type.endswith(b"+json"):
        return peek(body)
    return _NO_PEEK


def _is_form(x: Exchange) -> bool:
    """Whether the body is a form, on a path that takes one."""
    if x.target.dialect not in _FORMS or x.scope["method"] not in _WITH_BODY:
        return False
    types = [value for name, value in x.scope["headers"] if name == b"content-type"]
    return len(types) == 1 and types[0].partition(b";")[0].strip().lower() == _FORM_TYPE


def _needs(x: Exchange) -> frozenset[str]:
    """The fields of a form that must be known before any of it is passed on."""
    if x.target.objects is not None:
        return _NOTHING
    return _MODEL_AND_COUNT if x.target.dialect is Dialect.OPENAI_IMAGE_EDITS else _MODEL


def _upload(x: Exchange, content_type: bytes, deps: Deps) -> Upload:
    server = deps.settings.server
    lengths = [int(value) for name, value in x.scope["headers"] if name == b"content-length" and value.isdigit()]
    bounds = UploadBounds(
        size_bytes_max=server.upload_bytes_max,
        spool_bytes_max=server.body_bytes_max,
        read_timeout_s=server.body_timeout_s,
        total_timeout_s=server.upload_timeout_s,
        spool_dir=server.data_dir,
    )
    return Upload(x.receive, content_type=content_type, length=lengths[0] if lengths else None, bounds=bounds)


async def _read(x: Exchange, deps: Deps, *, limit_bytes: int) -> bytes:
    """The body through ASGI, bounded in size and in time, as is each read. It is among `deps.bodies` then."""
    server = deps.settings.server
    loop = asyncio.get_running_loop()
    due_s = loop.time() + server.upload_timeout_s
    pieces: list[bytes] = []
    size_bytes = 0
    try:
        while True:
            try:
                async with asyncio.timeout(min(server.body_timeout_s, due_s - loop.time())):
                    message = await x.receive()
            except TimeoutError:
                raise RequestTimeout from None
            if message["type"] == "http.disconnect":
                raise CallerGone
            piece: bytes = message.get("body", b"")
            if piece:
                if size_bytes + len(piece) > limit_bytes:
                    raise _too_large(limit_bytes)
                deps.bodies.take(len(piece))
                size_bytes += len(piece)
                pieces.append(piece)
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except BaseException:
        deps.bodies.give_back(size_bytes)
        raise


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than the {limit_bytes} bytes this gateway accepts.")
