"""What the echo provider keeps: nothing. An id says all there is to know of an object, so that every worker has it.

Small files, batches of a few short lines, and responses in the background can be tried by hand. Of a file that is too
large for its id only the size is kept. A batch and a response are done as soon as they are asked for; deleting
deletes nothing. Ids are not the same twice: two callers may keep the same thing.
"""

import base64
import secrets
import zlib
from collections.abc import Callable, Iterable

import msgspec

#: An id of something that another id holds; and any id.
FILE_ID_MAX = 250
ID_MAX = 500
_EPOCH = 1_760_000_000

_encode = msgspec.json.encode
#: Answers a request to an endpoint: its path and body in, the body of the answer out; None for an error.
Ask = Callable[[bytes, bytes], bytes | None]


class Kept(msgspec.Struct, omit_defaults=True):
    """What an id holds. A `nonce` makes it the only one of its kind."""

    nonce: str = ""
    name: str = ""
    purpose: str = ""
    content: bytes | None = None
    size_bytes: int = 0
    #: Of a batch, and of its output: the file of its requests, and where they go.
    requests: str = ""
    endpoint: str = ""
    #: Of a response in the background: its request.
    request: bytes | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Answered(msgspec.Struct):
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Line(msgspec.Struct):
    custom_id: str = ""
    body: msgspec.Raw = msgspec.Raw(b"{}")


def pack(prefix: str, kept: Kept) -> str:
    """An id that holds `kept`."""
    kept.nonce = secrets.token_hex(2)
    packed = zlib.compress(msgspec.msgpack.encode(kept), 9, wbits=-15)
    return prefix + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def unpack(prefix: str, text: str) -> Kept | None:
    """What an id holds, or None where it is none of ours."""
    if not text.startswith(prefix) or len(text) > ID_MAX:
        return None
    packed = text[len(prefix) :]
    try:
        plain = zlib.decompressobj(wbits=-15).decompress(
            base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)), 2**20
        )
        return msgspec.msgpack.decode(plain, type=Kept)
    except (ValueError, zlib.error, msgspec.DecodeError):
        return None


def answer(
    method: bytes, path: str, body: bytes, *, upload: tuple[str, str, bytes] | None, ask: Ask
) -> dict[str, object] | bytes | None:
    """The document, or the bytes, that a path about objects is answered with; None where there is nothing.

    `upload` is what a form brings: name, purpose and content of a file.
    """
    kind, _, rest = path.strip("/").partition("/")
    object_id, _, what = rest.partition("/")
    if kind == "files":
        if method == b"POST" and not rest:
            return None if upload is None else _file(_keep_file(*upload))
        kept = unpack("file-", object_id)
        if kept is None:
            return None
        if method == b"DELETE":
            return {"id": object_id, "object": "file", "deleted": True}
        return content(kept, ask) if what == "content" else _file(object_id)
    if kind == "batches":
        if method == b"POST" and not rest:
            return _order(body)
        kept = unpack("batch_", object_id)
        return None if kept is None else _batch(object_id, kept, ask, cancelled=what == "cancel")
    if kind == "responses":
        kept = unpack("resp_", object_id)
        if kept is None or kept.request is None:
            return None
        if method == b"DELETE":
            return {"id": object_id, "object": "response", "deleted": True}
        made = ask(b"/responses", kept.request)
        return None if made is None else msgspec.json.decode(made) | {"id": object_id, "background": True}
    return None


def in_background(body: bytes, made: dict[str, object]) -> dict[str, object]:
    """The first answer to a request for a response in the background: it is not begun."""
    response_id = pack("resp_", Kept(request=body))
    if len(response_id) > ID_MAX:
        return made
    return made | {"id": response_id, "status": "queued", "background": True, "output": [], "usage": None}


def content(kept: Kept, ask: Ask) -> bytes:
    """What is in a file."""
    if kept.requests:
        return b"".join(_encode(line) + b"\n" for line, _ in _answers(kept, ask))
    if kept.content is None:
        return b"echo kept only the size of this file: %d bytes\n" % kept.size_bytes
    return kept.content


def _keep_file(name: str, purpose: str, data: bytes) -> str:
    file_id = pack("file-", Kept(name=name[:40], purpose=purpose, content=data, size_bytes=len(data)))
    if len(file_id) > FILE_ID_MAX:
        file_id = pack("file-", Kept(name=name[:40], purpose=purpose, size_bytes=len(data)))
    return file_id


def _file(file_id: str) -> dict[str, object] | None:
    kept = unpack("file-", file_id)
    if kept is None:
        return None
    return {
        "id": file_id,
        "object": "file",
        "bytes": kept.size_bytes,
        "created_at": _EPOCH,
        "filename": kept.name or "output.jsonl",
        "purpose": kept.purpose or "batch_output",
        "status": "processed",
    }


def _order(body: bytes) -> dict[str, object] | None:
    order = msgspec.json.decode(body, type=dict[str, object])
    batch_id = pack("batch_", Kept(requests=str(order.get("input_file_id")), endpoint=str(order.get("endpoint"))))
    kept = unpack("batch_", batch_id)
    return (
        None if kept is None or unpack("file-", kept.requests) is None else _described(batch_id, kept, "validating")
    )


def _batch(batch_id: str, kept: Kept, ask: Ask, *, cancelled: bool) -> dict[str, object]:
    if cancelled:
        return _described(batch_id, kept, "cancelled")
    usages = [usage for _, usage in _answers(kept, ask)]
    into = sum(usage.prompt_tokens or usage.input_tokens for usage in usages)
    out = sum(usage.completion_tokens or usage.output_tokens for usage in usages)
    return _described(batch_id, kept, "completed") | {
        "output_file_id": "file-" + batch_id.removeprefix("batch_"),
        "request_counts": {"total": len(usages), "completed": len(usages), "failed": 0},
        "usage": {"input_tokens": into, "output_tokens": out, "total_tokens": into + out},
    }


def _described(batch_id: str, kept: Kept, status: str) -> dict[str, object]:
    return {
        "id": batch_id,
        "object": "batch",
        "endpoint": kept.endpoint,
        "input_file_id": kept.requests,
        "completion_window": "24h",
        "status": status,
        "created_at": _EPOCH,
    }


def _answers(kept: Kept, ask: Ask) -> Iterable[tuple[dict[str, object], _Usage]]:
    """The lines of a batch's output, and what each used."""
    file = unpack("file-", kept.requests)
    for text in (file.content or b"" if file is not None else b"").splitlines():
        try:
            line = msgspec.json.decode(text, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        made = ask(kept.endpoint.removeprefix("/v1").encode(), bytes(line.body))
        if made is None:
            continue
        response = {"status_code": 200, "body": msgspec.Raw(made)}
        usage = msgspec.json.decode(made, type=_Answered).usage
        yield {"custom_id": line.custom_id, "response": response, "error": None}, usage
