"""The realtime dialect: what of its messages the gateway understands, and the few that it writes itself.

Rules:
- Messages pass as they are. Of those the provider sends, the ones that end something paid for are read; of a piece of
  an answer only the size counts, in case its end is never heard of.
- A browser can't set headers and puts its key among the subprotocols. It is taken out: no provider gets to see it.

Source: https://platform.openai.com/docs/api-reference/realtime-server-events
"""

import re
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from gateway.wire.usage import Usage, parse_usage

#: What browsers offer among their subprotocols: the key, and whose organisation and project it is of.
_KEY: Final = "openai-insecure-api-key."
_PRIVATE: Final = (_KEY, "openai-organization.", "openai-project.")
#: What a server answers with, where it was offered.
PROTOCOL: Final = "realtime"

#: Bytes of base64 to a second of audio (24 kHz, 16 bit), and its tokens; bytes of text to a token.
_AUDIO_BYTES_PER_S: Final = 64_000
_AUDIO_TOKENS_PER_S: Final = 20
_BYTES_PER_TOKEN: Final = 4
#: The members around the text of a delta.
_DELTA_FRAME_BYTES: Final = 200

#: A delta says what it is before anything else opens.
_DELTA: Final = re.compile(r'\{[^{]{0,300}"type"[ ]*:[ ]*"(response\.[a-z_.]+\.delta)"')

EventKind = Literal["", "started", "done", "transcribed", "session"]
_KINDS: Final[dict[str, EventKind]] = {
    "response.created": "started",
    "response.done": "done",
    "conversation.item.input_audio_transcription.completed": "transcribed",
    "session.created": "session",
    "session.updated": "session",
}
_EMPTY: Final = msgspec.Raw(b"")


class _Response(msgspec.Struct, frozen=True):
    usage: msgspec.Raw = _EMPTY


class _Transcription(msgspec.Struct, frozen=True):
    model: str = ""


class _Input(msgspec.Struct, frozen=True):
    transcription: _Transcription | None = None


class _Audio(msgspec.Struct, frozen=True):
    input: _Input | None = None


class _Session(msgspec.Struct, frozen=True):
    model: str = ""
    audio: _Audio | None = None
    #: Where the beta has it.
    input_audio_transcription: _Transcription | None = None


class _Message(msgspec.Struct, frozen=True):
    type: str = ""
    response: _Response | None = None
    usage: msgspec.Raw = _EMPTY
    session: _Session | None = None


class Event(msgspec.Struct, frozen=True):
    """A message of the provider's, as far as it matters."""

    kind: EventKind = ""
    usage: Usage | None = None
    #: Of a session: the model that speaks, and the one that writes down what it hears.
    model: str = ""
    transcriber: str = ""
    #: Of a piece of an answer, roughly.
    tokens: int = 0
    audio: bool = False


_NOTHING: Final = Event()
_decode: Final = msgspec.json.Decoder(_Message).decode
_encode: Final = msgspec.json.encode


def read_event(text: str) -> Event:
    """What a message says; an empty event where it is nothing that matters, or can't be read."""
    if (delta := _DELTA.match(text)) is not None:
        audio = delta[1].endswith("audio.delta")
        size = max(0, len(text) - _DELTA_FRAME_BYTES)
        tokens = size * _AUDIO_TOKENS_PER_S // _AUDIO_BYTES_PER_S if audio else size // _BYTES_PER_TOKEN
        return Event(tokens=max(1, tokens), audio=audio)
    try:
        message = _decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return _NOTHING
    kind = _KINDS.get(message.type, "")
    if kind == "done":
        raw = _EMPTY if message.response is None else message.response.usage
        return Event(kind=kind, usage=parse_usage(raw))
    if kind == "transcribed":
        return Event(kind=kind, usage=parse_usage(message.usage))
    if kind == "session" and message.session is not None:
        return Event(kind=kind, model=message.session.model, transcriber=_transcriber(message.session))
    return Event(kind=kind) if kind else _NOTHING


def _transcriber(session: _Session) -> str:
    found = session.input_audio_transcription
    if session.audio is not None and session.audio.input is not None:
        found = session.audio.input.transcription or found
    return "" if found is None else found.model


def error_event(*, type: str, code: str | None, message: str, event_id: str) -> str:  # noqa: A002 - as the event has it
    """The event that tells why a conversation ends here."""
    error = {"type": type, "code": code, "message": message, "param": None, "event_id": None}
    return _encode({"type": "error", "event_id": event_id, "error": error}).decode()


def presented_by(subprotocols: Sequence[str]) -> str:
    """The key among the subprotocols; empty if there is none."""
    return next((each[len(_KEY) :] for each in subprotocols if each.startswith(_KEY)), "")


def public(subprotocols: Sequence[str]) -> list[str]:
    """Those that a provider may see."""
    return [each for each in subprotocols if not each.startswith(_PRIVATE)]


def sendable(code: int) -> int:
    """A close code as it may be sent (RFC 6455, section 7.4): what only says that none was received becomes one."""
    if code == 1005:
        return 1000
    if code in (1004, 1006, 1015) or not (1000 <= code < 1016 or 3000 <= code < 5000):
        return 1011
    return code
