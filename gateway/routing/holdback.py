"""Whether an answer that began with a good status really is one, judged before any of it is sent.

Providers report errors inside a stream whose status was 200, and inside plain answers too. Where another offer could
be tried, the beginning of a stream is therefore held back until an event says something, or is an error. One that
says nothing yet (a role, `response.created`, `message_start`, a ping) does not decide: errors come after those.

Rules:
- Bounds: `events_max` events, `bytes_max` bytes (whoever holds the bytes adds a bound in time). At a bound it goes.
- What is not understood goes: a stream is never kept from a caller because its shape is new.
- Nothing is changed: this reads along.
"""

from enum import Enum
from typing import Any, Final

import msgspec

from gateway.wire.dialects import Dialect
from gateway.wire.sse import EventTooLong, Frame, FrameScanner

_DONE: Final = b"[DONE]"
_FALSY: Final = frozenset({b"", b"null", b"false", b'""', b"{}", b"[]", b"0"})
#: Events of a kind that comes before anything is said.
_PREAMBLES: Final = frozenset(
    {"response.created", "response.in_progress", "response.queued", "message_start", "ping", "keepalive"}
)
#: What the words in an error object are as a status. The first that is part of its code or type decides.
_STATUSES: Final = (
    ("overloaded", 529),
    ("rate_limit", 429),
    ("too_many_requests", 429),
    ("quota", 429),
    ("authentication", 401),
    ("invalid_api_key", 401),
    ("billing", 402),
    ("permission", 403),
    ("not_found", 404),
    ("too_large", 413),
    ("timeout", 504),
    ("unavailable", 503),
    ("context_length", 400),
    ("content_filter", 400),
    ("content_policy", 400),
    ("invalid", 400),
)


class Held(Enum):
    """What is to be done with what is held."""

    WAIT = "wait"
    GO = "go"
    ERROR = "error"


class _Event(msgspec.Struct, frozen=True, gc=False):
    type: Any = None  # Any: whatever a provider sends
    error: msgspec.Raw = msgspec.Raw(b"")
    choices: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_any = msgspec.json.Decoder().decode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Holdback:
    """Reads the beginning of one answer."""

    __slots__ = ("_bytes_left", "_dialect", "_events_left", "_scanner", "error", "wait_s")

    def __init__(self, dialect: Dialect, *, events_max: int, bytes_max: int, wait_s: float) -> None:
        #: The data of the event that is an error.
        self.error = b""
        #: The bound in time, for whoever holds the bytes.
        self.wait_s = wait_s
        self._dialect = dialect
        self._events_left = events_max
        self._bytes_left = bytes_max
        self._scanner = FrameScanner(event_bytes_max=bytes_max)

    def feed(self, data: bytes) -> Held:
        """Look at the next bytes of a stream."""
        self._bytes_left -= len(data)
        try:
            frames = self._scanner.feed(data)
        except EventTooLong:
            return Held.GO
        for frame in frames:
            if not frame.data:
                continue
            held = self._look(frame)
            if held is not Held.WAIT:
                return held
            self._events_left -= 1
            if self._events_left <= 0:
                return Held.GO
        return Held.GO if self._bytes_left <= 0 else Held.WAIT

    def _look(self, frame: Frame) -> Held:
        data = frame.data
        if data.strip() == _DONE:
            return Held.GO
        try:
            event = _decode(data)
        except _UNREADABLE:
            return Held.GO
        if frame.event == b"error" or bytes(event.error) not in _FALSY or event.type in ("error", "response.failed"):
            self.error = data
            return Held.ERROR
        if event.type in _PREAMBLES:
            return Held.WAIT
        return Held.WAIT if isinstance(event.choices, list) and not _says_something(event.choices) else Held.GO


def error_in(body: bytes) -> bool:
    """Whether a plain answer is nothing but an error, its good status notwithstanding."""
    if b'"error"' not in body:
        return False
    try:
        answer = _decode(body)
    except _UNREADABLE:
        return False
    return bytes(answer.error) not in _FALSY and not answer.choices


def status_of(data: bytes) -> int:
    """The status that an error inside an answer would have had as an answer of its own."""
    try:
        document = _decode_any(data)
    except _UNREADABLE:
        return 500
    error = document.get("error", document) if isinstance(document, dict) else None
    if isinstance(document, dict) and isinstance(document.get("response"), dict):
        error = document["response"].get("error") or error
    if not isinstance(error, dict):
        return 500
    for name in ("code", "status", "status_code", "http_code"):
        value = error.get(name)
        if isinstance(value, str) and value.isdigit() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    said = " ".join(str(error.get(name, "")) for name in ("code", "type", "status")).lower()
    return next((status for word, status in _STATUSES if word in said), 500)


def _says_something(choices: list[Any]) -> bool:  # Any: JSON
    """Whether a chunk has a finish reason, or a delta with more in it than a role."""
    for choice in choices:
        if not isinstance(choice, dict) or choice.get("finish_reason") or choice.get("text"):
            return True
        delta = choice.get("delta")
        if delta is None:
            continue
        if not isinstance(delta, dict) or any(value for name, value in delta.items() if name != "role"):
            return True
    return False
