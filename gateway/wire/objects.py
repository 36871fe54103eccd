"""Objects that providers keep for their callers (files, uploads, batches, stored responses, conversations, vector
stores, containers): which path does what to which object, which objects a request's body refers to, and the few facts
in a provider's description of one.

Rules:
- A path is known or it is not: what stands in no table here is no object path. Ids are of plain characters, so that
  an id never leads to another path than the one that was checked.
- A reference counts only where the APIs give it a meaning. What a caller keeps in `metadata`, or calls a parameter of
  a tool, is no reference.
- Most requests refer to nothing, and that is found out by a few searches for bytes.

Sources: OpenAI's API reference of these endpoints; https://platform.openai.com/docs/guides/batch for the lines.
"""

import re
import urllib.parse
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from gateway.errors import BadRequest
from gateway.wire.usage import Usage, parse_usage, read_report

Kind = Literal["file", "upload", "batch", "response", "conversation", "vector_store", "container", "other"]
KINDS: Final[tuple[Kind, ...]] = (
    "file",
    "upload",
    "batch",
    "response",
    "conversation",
    "vector_store",
    "container",
)
#: `relay` passes on and looks at nothing; `answer` is of a plain document that describes no object of ours.
Verb = Literal["create", "list", "read", "change", "delete", "relay", "answer"]

#: Ids as a PostgreSQL index can hold them.
ID_BYTES_MAX: Final = 512
#: Objects that one request may refer to.
REFERENCES_MAX: Final = 64
#: Values looked at in one body.
VALUES_MAX: Final = 200_000

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:=-]{0,511}")
#: Named by the third segment of a path, ids of their own that the parent's provider gave.
_COLLECTIONS: Final[dict[str, Kind]] = {
    "files": "file",
    "uploads": "upload",
    "batches": "batch",
    "responses": "response",
    "conversations": "conversation",
    "vector_stores": "vector_store",
    "containers": "container",
}
#: By collection, the segments after it with `*` for an id, and the method: what it does.
_TABLE: Final[dict[tuple[str, str], dict[str, Verb]]] = {
    ("files", ""): {"POST": "create", "GET": "list"},
    ("files", "*"): {"GET": "read", "DELETE": "delete"},
    ("files", "*/content"): {"GET": "relay"},
    ("uploads", ""): {"POST": "create"},
    ("uploads", "*/parts"): {"POST": "relay"},
    ("uploads", "*/complete"): {"POST": "change"},
    ("uploads", "*/cancel"): {"POST": "change"},
    ("batches", ""): {"POST": "create", "GET": "list"},
    ("batches", "*"): {"GET": "read"},
    ("batches", "*/cancel"): {"POST": "change"},
    ("responses", "*"): {"GET": "read", "DELETE": "delete"},
    ("responses", "*/cancel"): {"POST": "change"},
    ("responses", "*/input_items"): {"GET": "answer"},
    ("conversations", ""): {"POST": "create"},
    ("conversations", "*"): {"GET": "read", "POST": "change", "DELETE": "delete"},
    ("conversations", "*/items"): {"GET": "answer", "POST": "answer"},
    ("conversations", "*/items/*"): {"GET": "answer", "DELETE": "answer"},
    ("vector_stores", ""): {"POST": "create", "GET": "list"},
    ("vector_stores", "*"): {"GET": "read", "POST": "change", "DELETE": "delete"},
    ("vector_stores", "*/search"): {"POST": "answer"},
    ("vector_stores", "*/files"): {"GET": "answer", "POST": "answer"},
    ("vector_stores", "*/files/*"): {"GET": "answer", "POST": "answer", "DELETE": "answer"},
    ("vector_stores", "*/files/*/content"): {"GET": "relay"},
    ("vector_stores", "*/file_batches"): {"POST": "answer"},
    ("vector_stores", "*/file_batches/*"): {"GET": "answer"},
    ("vector_stores", "*/file_batches/*/cancel"): {"POST": "answer"},
    ("vector_stores", "*/file_batches/*/files"): {"GET": "answer"},
    ("containers", ""): {"POST": "create", "GET": "list"},
    ("containers", "*"): {"GET": "read", "DELETE": "delete"},
    ("containers", "*/files"): {"GET": "answer", "POST": "relay"},
    ("containers", "*/files/*"): {"GET": "answer", "DELETE": "answer"},
    ("containers", "*/files/*/content"): {"GET": "relay"},
}


class ObjectPath(msgspec.Struct, frozen=True):
    """A path about objects. `ids` are those in it, the owner of the first decides; `methods` say what it does."""

    kind: Kind
    ids: tuple[str, ...]
    methods: dict[str, Verb]
    #: As the provider is asked for it, decoded and written plainly.
    path: bytes
    #: A name from a closed list, for metrics and logs.
    label: str


class Operation(msgspec.Struct, frozen=True):
    """What a request does. `ids` are those of its path; the first is the one it is about."""

    kind: Kind
    verb: Verb
    ids: tuple[str, ...] = ()


def object_path(path: bytes) -> ObjectPath | None:
    """What the path (after `/v1`, still percent-encoded) does, or None where it is about no objects."""
    segments = urllib.parse.unquote(path.decode("latin-1"))[1:].split("/")
    kind = _COLLECTIONS.get(segments[0])
    if kind is None:
        return None
    # Ids stand in every second place.
    ids = tuple(segments[1::2])
    shape = "/".join("*" if place % 2 == 0 else segment for place, segment in enumerate(segments[1:]))
    methods = _TABLE.get((segments[0], shape))
    if methods is None or not all(_ID.fullmatch(each) for each in ids):
        return None
    plain = "/" + "/".join(segments)
    label = "/v1/" + "/".join((segments[0], shape)) if shape else "/v1/" + segments[0]
    return ObjectPath(kind, ids, methods, plain.encode("ascii"), label)


# -- what a body refers to -----------------------------------------------------------------------------------

_FILE: Final = b"file_id"
#: What tools refer to, where the provider runs them.
_TOOLS: Final = (b"vector_store_ids", b'"container"')
#: An ASCII letter or `_` written as an escape: only who hides a name from the search above does that.
_HIDDEN: Final = re.compile(rb"\\u00(?:[46][1-9a-fA-F]|[57][0-9aA]|5[fF])")
#: Where references stand. Everything else in a body is the caller's own text.
_PLACES: Final = ("messages", "input", "tools", "file_ids", "input_file_id", "file_id", "files")
#: Below these, names are the caller's.
_OPAQUE: Final = frozenset({"metadata", "parameters", "schema", "input_schema", "arguments", "attributes"})
_ONE: Final = frozenset({"file_id", "input_file_id"})
_MANY: Final = frozenset({"file_ids", "vector_store_ids"})

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode


def may_refer(body: bytes, *, tools: bool = True) -> bool:
    """Whether `references` could find any below the top level: False for nearly every request. `tools` where the
    provider runs some.

    A search costs a microsecond for a kilobyte or two, which is why there are as few as possible.
    """
    if _FILE in body or (tools and (_TOOLS[0] in body or _TOOLS[1] in body)):
        return True
    # A single byte is found ten times as fast.
    if b"\\" not in body or b"\\u00" not in body or _HIDDEN.search(body) is None:
        return False
    revealed = _HIDDEN.sub(_reveal, body)
    return _FILE in revealed or any(hint in revealed for hint in _TOOLS)


def _reveal(escape: re.Match[bytes]) -> bytes:
    return bytes((int(escape[0][4:], 16),))


def references(body: bytes) -> tuple[str, ...]:
    """The ids of the objects that a JSON body refers to, each once.

    Raises:
        BadRequest: it refers to something in a way that can't be read safely, or to too many things.
    """
    try:
        members = _decode_members(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("A request that refers to stored objects must be strict JSON.") from None
    found: dict[str, None] = {}
    for name, raw in members.items():
        if name == "previous_response_id":
            _add(found, _decode_value(raw))
        elif name == "conversation":
            value = _decode_value(raw)
            _add(found, value.get("id") if isinstance(value, dict) else value)
        elif name in _PLACES and may_refer(b'"%b":%b' % (name.encode(), bytes(raw))):
            for each in _walk({name: _decode_value(raw)}):
                _add(found, each)
    return tuple(found)


def _decode_value(raw: msgspec.Raw) -> object:
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("A request that refers to stored objects must be strict JSON.") from None


def _add(found: dict[str, None], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value.isprintable() or len(value) > ID_BYTES_MAX:
        raise BadRequest("An id of a stored object must be a string.")
    found[value] = None
    if len(found) > REFERENCES_MAX:
        raise BadRequest(f"A request may refer to at most {REFERENCES_MAX} stored objects.")


def _walk(top: object) -> Iterator[object]:
    left: list[object] = [top]
    for _ in range(VALUES_MAX):
        if not left:
            return
        value = left.pop()
        if isinstance(value, list):
            left.extend(each for each in value if isinstance(each, dict | list))
        elif isinstance(value, dict):
            for name, inner in value.items():
                if name in _ONE or (name == "container" and isinstance(inner, str) and inner != "auto"):
                    yield inner
                elif name in _MANY and isinstance(inner, list):
                    yield from inner
                elif name not in _OPAQUE and isinstance(inner, dict | list):
                    left.append(inner)
    raise BadRequest("The request body is too intricate to be searched for stored objects.")


# -- what a provider says of an object -----------------------------------------------------------------------

_EMPTY: Final = msgspec.Raw(b"")
#: Of batches and responses: nothing more will happen.
ENDED: Final = frozenset({"completed", "failed", "cancelled", "canceled", "expired", "incomplete"})

CANCELLED: Final = frozenset({"cancelled", "canceled"})


class Document(msgspec.Struct, frozen=True):
    """The members of a description that the gateway acts on."""

    id: str = ""
    object: str = ""
    status: str | None = None
    model: str | None = None
    usage: msgspec.Raw = _EMPTY
    service_tier: str | None = None
    #: Seconds since 1970.
    created_at: float | None = None
    expires_at: float | None = None
    bytes: int | None = None
    purpose: str | None = None
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    #: Of an upload: the file that it has become.
    file: msgspec.Raw = _EMPTY
    deleted: bool = False

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def counted(self) -> Usage | None:
        """The usage in it; None where it reports none. A batch's report of nothing but zeros is none: some providers
        fill in the numbers later than the status.
        """
        report = read_report(self.usage) if self.usage is not _EMPTY else None
        if not report:
            return None
        usage = parse_usage(self.usage, service_tier=self.service_tier)
        if usage is None or (self.object == "batch" and not (usage.input_tokens or usage.output_tokens)):
            return None
        return usage


_read = msgspec.json.Decoder(Document, strict=False).decode


def read_document(body: bytes | msgspec.Raw) -> Document | None:
    """A provider's description of an object, or None where it is none."""
    try:
        document = _read(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return document if document.id and _ID.fullmatch(document.id) else None


class StartFinder:
    """Finds the id of a response in the beginning of its answer, plain or streamed. Give it chunks until `done`."""

    LOOKED_AT_MAX: Final = 8 * 1024
    __slots__ = ("_seen", "done", "id")

    #: The first one in a stream is that of `response.created`; in an object, ids of other things have other prefixes.
    _PATTERN: Final = re.compile(rb'"id"[ \t\r\n]*:[ \t\r\n]*"(resp_[A-Za-z0-9_.:=-]{1,507})"')
    _WRAPPED: Final = re.compile(
        rb'"response"[ \t]*:[ \t]*\{[ \t]*"id"[ \t]*:[ \t]*"([A-Za-z0-9][A-Za-z0-9_.:=-]{0,511})"'
    )
    _FIRST: Final = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"id"[ \t]*:[ \t]*"([A-Za-z0-9][A-Za-z0-9_.:=-]{0,511})"')

    def __init__(self) -> None:
        self._seen = b""
        self.id = ""
        self.done = False

    def feed(self, chunk: bytes) -> None:
        self._seen = chunk if not self._seen else self._seen + chunk
        seen = self._seen
        found = self._PATTERN.search(seen) or self._WRAPPED.search(seen) or self._FIRST.match(seen)
        if found is not None:
            self.id = found[1].decode("ascii")
        if found is not None or len(seen) > self.LOOKED_AT_MAX:
            self.done = True
            self._seen = b""


# -- the lines of a batch ------------------------------------------------------------------------------------


class _Body(msgspec.Struct, frozen=True):
    model: str = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None


class _Line(msgspec.Struct, frozen=True):
    body: _Body = _Body()


class _Answered(msgspec.Struct, frozen=True):
    usage: msgspec.Raw = _EMPTY


class _Response(msgspec.Struct, frozen=True):
    body: _Answered = _Answered()


class _Result(msgspec.Struct, frozen=True):
    response: _Response | None = None


_read_line = msgspec.json.Decoder(_Line).decode
_read_result = msgspec.json.Decoder(_Result).decode
#: One request of a batch.
LINE_BYTES_MAX: Final = 32 * 1024 * 1024


class _Lines:
    """Cuts chunks into lines and hands each to `_take`."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self.count = 0

    def feed(self, chunk: bytes) -> None:
        """Raises BadRequest for a line that is too long or none of a batch."""
        head, newline, tail = chunk.partition(b"\n")
        if not newline:
            self._keep(chunk)
            return
        self._line(b"".join((*self._rest, head)))
        self._rest, self._rest_bytes = [], 0
        *whole, tail = tail.split(b"\n")
        for line in whole:
            self._line(line)
        self._keep(tail)

    def end(self) -> None:
        self._line(b"".join(self._rest))
        self._rest = []

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._rest.append(piece)
            self._rest_bytes += len(piece)
            if self._rest_bytes > LINE_BYTES_MAX:
                raise BadRequest("A line of the batch's file is too long.", param="input_file_id")

    def _line(self, line: bytes) -> None:
        line = line.strip()
        if line:
            self.count += 1
            self._take(line)

    def _take(self, line: bytes) -> None:
        raise NotImplementedError


class BatchInput(_Lines):
    """The requests of a batch: which model they name, and the most that they can use."""

    def __init__(self, *, output_tokens: int) -> None:
        """`output_tokens` is assumed for a request that sets no bound."""
        super().__init__()
        self._output_tokens = output_tokens
        self.model = ""
        self.input_bytes = 0
        self.output_tokens = 0

    def _take(self, line: bytes) -> None:
        try:
            body = _read_line(line.removeprefix(b"\xef\xbb\xbf")).body
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BadRequest(f"Line {self.count} of the batch's file is no request.", param="input_file_id") from None
        if not body.model:
            raise BadRequest(f"Line {self.count} of the batch's file names no model.", param="input_file_id")
        if self.model and body.model != self.model:
            raise BadRequest(
                "All requests of a batch must name the same model.", param="input_file_id", code="mismatched_model"
            )
        self.model = body.model
        self.input_bytes += len(line)
        asked = [each for each in (body.max_tokens, body.max_completion_tokens, body.max_output_tokens) if each]
        self.output_tokens += max(1, body.n or 1) * (max(asked) if asked else self._output_tokens)


class BatchOutput(_Lines):
    """The answers of a batch: the sum of what they report. For providers that do not sum up themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.input_tokens = 0
        self.input_cached_tokens = 0
        self.output_tokens = 0
        self.output_reasoning_tokens = 0
        #: Answers that report nothing.
        self.silent = 0

    def _take(self, line: bytes) -> None:
        try:
            response = _read_result(line).response
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            response = None
        usage = None if response is None else parse_usage(response.body.usage)
        if usage is None:
            self.silent += 1
            return
        self.input_tokens += usage.input_tokens
        self.input_cached_tokens += usage.input_cached_tokens
        self.output_tokens += usage.output_tokens
        self.output_reasoning_tokens += usage.output_reasoning_tokens

    def usage(self) -> Usage | None:
        if not (self.input_tokens or self.output_tokens):
            return None
        return Usage(
            input_tokens=self.input_tokens,
            input_cached_tokens=self.input_cached_tokens,
            output_tokens=self.output_tokens,
            output_reasoning_tokens=self.output_reasoning_tokens,
        )
