"""What the gateway must know of a `multipart/form-data` body (RFC 7578), and how to rename the model in it.

Rules:
- The body is cut at its boundaries and otherwise left alone: files are neither read nor copied, parts may come in any
  order, and a rename replaces the bytes of one field.
- One reading only, as with JSON: `model` or `stream` twice, a name given in two ways or in a roundabout one, and a
  `model` that is a file or encoded are refused.
- Line ends are CRLF, as the format has them. A body without its closing boundary is not whole and is refused.

It needs the whole body: `model` may come after the files.
"""

import re

from gateway.errors import BadRequest
from gateway.wire.peek import Peek, Span, splice

#: No endpoint takes more than a few dozen fields and sixteen pictures.
PARTS_MAX = 1_000
#: Headers of one part.
_HEAD_BYTES_MAX = 16 * 1024
#: A field the gateway reads is a name or a number.
_VALUE_BYTES_MAX = 1_024
#: RFC 2046, section 5.1.1, says 70; some clients go beyond.
_BOUNDARY_BYTES_MAX = 250

_BOUNDARY = re.compile(rb';[ \t]*boundary=(?:"((?:[^"\\]|\\.){1,250})"|([^;,\s"]{1,250}))', re.IGNORECASE)
_PADDING = re.compile(rb"[ \t]*\r\n")
_PARAMETER = re.compile(rb';[ \t]*([a-zA-Z*]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;\s"]*))')
_ESCAPE = re.compile(rb"\\(.)")
_WATCHED = frozenset({"model", "stream", "n"})


def peek_form(body: bytes, content_type: bytes) -> Peek:
    """Read a form body; `content_type` is the header, with its boundary.

    Raises:
        BadRequest: no boundary, not well formed, not whole, or a watched field that can be read in two ways.
    """
    found: dict[str, Span] = {}
    delimiter = b"\r\n--" + _boundary(content_type)
    # What stands before the first boundary means nothing, and that boundary may be the very start.
    at = 0 if body.startswith(delimiter[2:]) else body.find(delimiter)
    if at < 0:
        raise BadRequest("The form body does not contain its boundary.")
    at += len(delimiter) - (0 if body.startswith(b"\r\n", at) else 2)
    for _ in range(PARTS_MAX):
        if body.startswith(b"--", at):
            return _read(body, found)
        padding = _PADDING.match(body, at)
        if padding is None:
            raise BadRequest("The form body is malformed: a boundary is not followed by a line end.")
        start = padding.end()
        end = _part_end(body, delimiter, start)
        name, value_start = _head(body, start, end)
        if name in _WATCHED:
            if name in found:
                raise BadRequest(f"The field `{name}` must be there once.", param=name, code="invalid_value")
            found[name] = (value_start, end)
        at = end + len(delimiter)
    raise BadRequest("The form body has too many parts.")


def rewrite_form(body: bytes, peeked: Peek, *, model: str) -> bytes:
    """The body with the `model` field's value replaced; the same object where it has none or nothing changes."""
    if peeked.model_span is None or model == peeked.model:
        return body
    if "\r" in model or "\n" in model:
        raise ValueError("a model's name has no line ends")
    return splice(body, [(peeked.model_span, model.encode())])


def _boundary(content_type: bytes) -> bytes:
    kind = content_type.partition(b";")[0].strip().lower()
    given: list[tuple[bytes, bytes]] = _BOUNDARY.findall(content_type)
    if kind != b"multipart/form-data" or len(given) != 1:
        raise BadRequest("The content-type must be multipart/form-data with one boundary.")
    quoted, plain = given[0]
    return _ESCAPE.sub(rb"\1", quoted) if quoted else plain


def _part_end(body: bytes, delimiter: bytes, start: int) -> int:
    """Where the part's content ends: at the next boundary, which may follow its head at once."""
    at = start - 2
    while (at := body.find(delimiter, at)) >= 0:
        after = at + len(delimiter)
        if body.startswith(b"--", after) or _PADDING.match(body, after):
            return at
        # A longer boundary that begins like ours is content.
        at = after
    raise BadRequest("The form body is not whole: its closing boundary is missing.")


def _head(body: bytes, start: int, end: int) -> tuple[str, int]:
    """The watched name the part has, else nothing, and where its content begins."""
    if body.startswith(b"\r\n", start):
        return "", start + 2
    stop = body.find(b"\r\n\r\n", start, min(start + _HEAD_BYTES_MAX, end))
    if stop < 0:
        raise BadRequest("The form body is malformed: a part has no end of headers.")
    names: list[str] = []
    roundabout = False
    # A line that begins with white space goes on where the last one ended.
    for line in body[start:stop].replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ").split(b"\r\n"):
        header, _, value = line.partition(b":")
        header = header.strip().lower()
        if header == b"content-transfer-encoding":
            roundabout = roundabout or value.strip().lower() not in (b"", b"7bit", b"8bit", b"binary")
        elif header == b"content-disposition":
            for key, quoted, plain in _parameters(value):
                if key.lower() in (b"name", b"name*"):
                    names.append((_ESCAPE.sub(rb"\1", quoted) or plain).decode("utf-8", "replace"))
                elif key.lower() in (b"filename", b"filename*"):
                    roundabout = True
            roundabout = roundabout or b"\\" in value
    watched = next((name.casefold() for name in names if name.casefold() in _WATCHED), None)
    if watched is None:
        return "", stop + 4
    if roundabout or names != [watched]:
        raise BadRequest(f"The field `{watched}` must be a plain field of that name.", param=watched)
    return watched, stop + 4


def _parameters(value: bytes) -> list[tuple[bytes, bytes, bytes]]:
    found: list[tuple[bytes, bytes, bytes]] = _PARAMETER.findall(value)
    return found


def _read(body: bytes, found: dict[str, Span]) -> Peek:
    texts: dict[str, str] = {}
    for name, (start, end) in found.items():
        if end - start > _VALUE_BYTES_MAX:
            raise BadRequest(f"The field `{name}` is too long.", param=name)
        try:
            texts[name] = body[start:end].decode()
        except UnicodeDecodeError:
            raise BadRequest(f"The field `{name}` is not UTF-8.", param=name) from None
    n = texts.get("n", "")
    return Peek(
        model=texts.get("model"),
        model_span=found.get("model"),
        stream=texts.get("stream", "").strip().lower() == "true",
        n=int(n) if n.isascii() and n.isdigit() and len(n) < 10 and int(n) > 0 else 1,
    )
