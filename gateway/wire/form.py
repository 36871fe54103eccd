"""What the gateway must know of a `multipart/form-data` body (RFC 7578), and how to rename the model in it.

Rules:
- The body is cut at its boundaries and otherwise left alone: files are neither read nor copied, parts may come in any
  order, and a rename replaces the bytes of one field.
- It may come in any pieces, and what is kept of it does not grow with it: a part's headers, the few fields that are
  watched, and what `recording.py` keeps of the first file.
- One reading only, as with JSON: a watched field twice, a name given in two ways or in a roundabout one, and a
  `model` that is a file or encoded are refused.
- Line ends are CRLF, as the format has them. A body without its closing boundary is not whole and is refused.
"""

import re
from enum import IntEnum

from gateway.errors import BadRequest
from gateway.wire.peek import Peek, Span, splice
from gateway.wire.recording import Recording

#: No endpoint takes more than a few dozen fields and sixteen pictures.
PARTS_MAX = 1_000
#: Headers of one part.
_HEAD_BYTES_MAX = 16 * 1024
#: A field the gateway reads is a name or a number.
_VALUE_BYTES_MAX = 1_024
#: Of a body that is here already, as much is looked at in one go.
_PIECE_BYTES = 256 * 1024

# RFC 2046, section 5.1.1, allows 70 characters; some clients go beyond.
_BOUNDARY = re.compile(rb';[ \t]*boundary=(?:"((?:[^"\\]|\\.){1,250})"|([^;,\s"]{1,250}))', re.IGNORECASE)
_PADDING = re.compile(rb"[ \t]*\r\n")
#: The beginning of padding, or of the two dashes that close a form.
_UNDECIDED = re.compile(rb"(?:[ \t]*\r?|-)\Z")
_PARAMETER = re.compile(rb';[ \t]*([a-zA-Z*]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;\s"]*))')
_ESCAPE = re.compile(rb"\\(.)")
#: What a call is routed by, and what it is paid for by.
_WATCHED = frozenset({"model", "stream", "n", "size", "quality"})


class _State(IntEnum):
    """Where in the body the scanner is."""

    PREAMBLE = 0
    BOUNDARY = 1
    HEAD = 2
    CONTENT = 3
    EPILOGUE = 4


class FormScanner:
    """Reads a form as it comes by: `feed` for each piece, `finish` at its end.

    `fields` has the watched fields that were seen whole, `spans` where their values stand in the body.
    """

    __slots__ = (
        "_base",
        "_content_at",
        "_delimiter",
        "_field",
        "_headed",
        "_held",
        "_in_recording",
        "_parts",
        "_state",
        "_value",
        "fields",
        "files",
        "recording",
        "spans",
    )

    def __init__(self, content_type: bytes) -> None:
        """`content_type` is the header, with its boundary.

        Raises:
            BadRequest: it names no boundary, or more than one.
        """
        self.fields: dict[str, str] = {}
        self.spans: dict[str, Span] = {}
        #: Parts with a file name, begun so far.
        self.files = 0
        #: The first of them, in case it is one.
        self.recording = Recording()
        self._delimiter = b"\r\n--" + _boundary(content_type)
        # The first boundary may be the very start: with a line end put before it, it is like all others.
        self._held = bytearray(b"\r\n")
        #: Where in the body `_held` begins.
        self._base = -2
        self._state = _State.PREAMBLE
        self._parts = 0
        # Of the part under way: where its content begins, whether it has headers, and what it is to us.
        self._content_at = 0
        self._headed = False
        self._field = ""
        self._value = b""
        self._in_recording = False

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the body.

        Raises:
            BadRequest: not well formed, or a watched field that can be read in two ways.
        """
        if self._state is _State.EPILOGUE:
            return
        self._held += data
        while self._step():
            pass

    def finish(self) -> Peek:
        """The body is here to its end; what it says.

        Raises:
            BadRequest: it is not whole.
        """
        if self._state is not _State.EPILOGUE:
            if not self._parts and self._state is _State.PREAMBLE:
                raise BadRequest("The form body does not contain its boundary.")
            raise BadRequest("The form body is not whole: its closing boundary is missing.")
        return self.peek()

    def peek(self) -> Peek:
        """What the fields that were seen so far say."""
        n = self.fields.get("n", "")
        return Peek(
            model=self.fields.get("model"),
            model_span=self.spans.get("model"),
            stream=self.fields.get("stream", "").strip().lower() == "true",
            n=int(n) if n.isascii() and n.isdigit() and len(n) < 10 and int(n) > 0 else 1,
        )

    # -- from state to state -------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Go on as far as one thing leads; False where more bytes are needed."""
        match self._state:
            case _State.PREAMBLE:
                at = self._held.find(self._delimiter)
                if at < 0:
                    self._drop(len(self._held) - len(self._delimiter) + 1)
                    return False
                self._drop(at + len(self._delimiter))
                self._state = _State.BOUNDARY
                return True
            case _State.BOUNDARY:
                return self._after_boundary()
            case _State.HEAD:
                return self._read_head()
            case _State.CONTENT:
                return self._read_content()
        return False

    def _after_boundary(self) -> bool:
        held = self._held
        if held.startswith(b"--"):
            self._state = _State.EPILOGUE
            held.clear()
            return False
        padding = _PADDING.match(held)
        if padding is None:
            if _UNDECIDED.match(held) is None or len(held) > _HEAD_BYTES_MAX:
                raise BadRequest("The form body is malformed: a boundary is not followed by a line end.")
            return False
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise BadRequest("The form body has too many parts.")
        # The line end stays: the next boundary, wrongly, could begin with it.
        self._drop(padding.end() - 2)
        self._state = _State.HEAD
        return True

    def _read_head(self) -> bool:
        held = self._held
        if len(held) < 4:
            return False
        if held.startswith(b"\r\n", 2):
            self._begin_content(2, name="", is_file=False, headed=False)
            return True
        stop = held.find(b"\r\n\r\n", 2, _HEAD_BYTES_MAX)
        if stop < 0:
            if len(held) >= _HEAD_BYTES_MAX:
                raise BadRequest("The form body is malformed: a part has no end of headers.")
            return False
        if 0 <= self._find_boundary(0)[0] < stop + 2:
            raise BadRequest("The form body is malformed: a part has no end of headers.")
        name, is_file = _read_names(bytes(held[2:stop]))
        if name in self.spans:
            raise BadRequest(f"The field `{name}` must be there once.", param=name, code="invalid_value")
        self._begin_content(stop + 2, name=name, is_file=is_file, headed=True)
        return True

    def _begin_content(self, at: int, *, name: str, is_file: bool, headed: bool) -> None:
        """The part's content begins after the line end at `at`, which stays for the same reason as before."""
        self._drop(at)
        self._content_at = self._base + 2
        self._headed = headed
        self._field, self._value = name, b""
        self._in_recording = is_file and not self.files
        self.files += is_file
        self._state = _State.CONTENT

    def _read_content(self) -> bool:
        at, decided = self._find_boundary(0)
        if at < 0:
            self._take(len(self._held) - len(self._delimiter) + 1)
            return False
        if not decided:
            self._take(at)
            if len(self._held) > _HEAD_BYTES_MAX:
                raise BadRequest("The form body is malformed: a boundary is not followed by a line end.")
            return False
        end = self._base + at
        if end < self._content_at and self._headed:
            raise BadRequest("The form body is malformed: a part has no end of headers.")
        self._take(at)
        if name := self._field:
            self.spans[name] = (self._content_at, end)
            try:
                self.fields[name] = self._value.decode()
            except UnicodeDecodeError:
                raise BadRequest(f"The field `{name}` is not UTF-8.", param=name) from None
        self._drop(len(self._delimiter))
        self._state = _State.BOUNDARY
        return True

    def _find_boundary(self, at: int) -> tuple[int, bool]:
        """Where the next boundary is in what is held, -1 for nowhere, and whether it is known to be one.

        A longer boundary that begins like ours is content.
        """
        held, delimiter = self._held, self._delimiter
        while (at := held.find(delimiter, at)) >= 0:
            after = at + len(delimiter)
            if held.startswith(b"--", after) or _PADDING.match(held, after):
                return at, True
            if _UNDECIDED.match(held, after):
                return at, False
            at = after
        return -1, False

    def _take(self, size: int) -> None:
        """`size` bytes of what is held are content, but for the line end before it."""
        if size <= 0:
            return
        if self._field or self._in_recording:
            content = bytes(self._held[max(self._content_at - self._base, 0) : size])
            if self._in_recording:
                self.recording.feed(content)
            else:
                self._value += content
                if len(self._value) > _VALUE_BYTES_MAX:
                    raise BadRequest(f"The field `{self._field}` is too long.", param=self._field)
        self._drop(size)

    def _drop(self, size: int) -> None:
        if size > 0:
            del self._held[:size]
            self._base += size


def peek_form(body: bytes, content_type: bytes) -> Peek:
    """Read a form body that is here whole; `content_type` is the header, with its boundary.

    Raises:
        BadRequest: no boundary, not well formed, not whole, or a watched field that can be read in two ways.
    """
    return scan_form(body, content_type).peek()


def scan_form(body: bytes, content_type: bytes) -> FormScanner:
    """The same, with everything that the scanner saw."""
    scanner = FormScanner(content_type)
    view = memoryview(body)
    for start in range(0, len(body), _PIECE_BYTES):
        scanner.feed(view[start : start + _PIECE_BYTES])
    scanner.finish()
    return scanner


def rewrite_form(body: bytes, peeked: Peek, *, model: str) -> bytes:
    """The body with the `model` field's value replaced; the same object where it has none or nothing changes.

    Of a body that comes in pieces, it is enough to give the ones up to the end of the field.
    """
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


def _read_names(head: bytes) -> tuple[str, bool]:
    """The watched name that a part's headers give it, else nothing; and whether it is a file."""
    names: list[str] = []
    is_file = encoded = doubtful = False
    # A line that begins with white space goes on where the last one ended.
    for line in head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ").split(b"\r\n"):
        header, _, value = line.partition(b":")
        header = header.strip().lower()
        if header == b"content-transfer-encoding":
            encoded = encoded or value.strip().lower() not in (b"", b"7bit", b"8bit", b"binary")
        elif header == b"content-disposition":
            parameters: list[tuple[bytes, bytes, bytes]] = _PARAMETER.findall(value)
            for key, quoted, plain in parameters:
                if key.lower() in (b"name", b"name*"):
                    names.append((_ESCAPE.sub(rb"\1", quoted) or plain).decode("utf-8", "replace"))
                elif key.lower() in (b"filename", b"filename*"):
                    is_file = True
            doubtful = doubtful or b"\\" in value
    watched = next((name.casefold() for name in names if name.casefold() in _WATCHED), None)
    if watched is None:
        return "", is_file
    if is_file or encoded or doubtful or names != [watched]:
        raise BadRequest(f"The field `{watched}` must be a plain field of that name.", param=watched)
    return watched, False
