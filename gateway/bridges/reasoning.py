"""What only the model that thought it can read, carried through every dialect: signatures and sealed thoughts.

A provider that signs its model's thoughts wants them back as they were, and some refuse a conversation without them.
The hub has them as `reasoning_details` of the assistant's message, written as OpenRouter does it: `reasoning.text`
with a `signature`, `reasoning.encrypted` with `data`, and a `format` that says whose they are. Google's signature of
a call stands beside the call in a chat answer (`extra_content`); here it is a detail with that call's id.

Rules:
- A dialect's own place takes what is of its own maker's making as it is: Anthropic's signatures in a thinking block,
  Google's on a part. What another maker made stands there sealed: a mark, and the details behind it.
- A seal is no secret: the caller may read it, and gets back in what it wrote. It only keeps clients from having to
  know more than their own dialect.
- Details go only to an adapter that reads them (`Extended`), which takes those of its own format. All else is dropped
  and told.

Sources: OpenRouter's documentation of reasoning tokens; Anthropic's of extended thinking; Google's of thought
signatures, for its own API and the OpenAI-compatible one.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from gateway.bridges.hub import UNREADABLE, ToolCall, encode
from gateway.errors import BadRequest

#: What an adapter says it reads, to be given details.
EXTENSION: Final = "reasoning_details"
#: The same of one that wants Google's signatures beside the calls they are of, and knows no others.
BESIDE: Final = "extra_content"
CLAUDE: Final = "anthropic-claude-v1"
GOOGLE: Final = "google-gemini-v1"
#: What begins everything that is sealed here.
MARK: Final = "gw1."
#: What the first three bytes of the mark are in base64.
SEALED_BYTES: Final = base64.b64encode(MARK[:3].encode("ascii")).decode("ascii")
#: Details in one message of a request. A turn of a model with a hundred thoughts is a long one.
DETAILS_MAX: Final = 4096

Detail = dict[str, object]

_NONE: Final = msgspec.Raw(b"")


class _Google(msgspec.Struct, gc=False):
    thought_signature: str | None = None


class _Extra(msgspec.Struct, gc=False):
    google: _Google | None = None


_decode_details = msgspec.json.Decoder(list[Detail]).decode
_decode_extra = msgspec.json.Decoder(_Extra).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_details(raw: bytes | msgspec.Raw) -> list[Detail]:
    """The details in an answer; none where they are not what they should be."""
    try:
        return _decode_details(raw)[:DETAILS_MAX]
    except UNREADABLE:
        return []


def secrets_in(raw: msgspec.Raw) -> list[Detail]:
    """Those of a delta that are more than the text of a thought, which is told as reasoning anyway."""
    data = bytes(raw)
    # Said of every piece of a thought: to look for the two names is a tenth of reading it.
    if b'"signature"' not in data and b'"data"' not in data:
        return []
    return [detail for detail in read_details(data) if secret_of(detail)]


def secret_of(detail: Mapping[str, object]) -> str:
    """The signature of a thought, or a thought that is sealed; empty where there is neither."""
    secret = detail.get("signature" if detail.get("type") == "reasoning.text" else "data")
    return secret if isinstance(secret, str) else ""


def is_text(detail: Mapping[str, object]) -> bool:
    return detail.get("type") == "reasoning.text"


def of_claude(detail: Mapping[str, object]) -> bool:
    """Whether it is Anthropic's: signed thoughts without a format are taken for theirs, who were the first."""
    kind = detail.get("format")
    return kind == CLAUDE or (kind is None and is_text(detail))


def signed(text: str, signature: str, index: int) -> Detail:
    return {"type": "reasoning.text", "index": index, "format": CLAUDE, "text": text, "signature": signature}


def hidden(data: str, index: int, *, form: str = CLAUDE, call_id: str | None = None) -> Detail:
    detail: Detail = {"type": "reasoning.encrypted", "index": index, "format": form, "data": data}
    return detail if call_id is None else {**detail, "id": call_id}


def signature_of(call: ToolCall) -> str | None:
    """Google's signature of a call in a chat answer."""
    if call.extra_content is _NONE or len(call.extra_content) == 0:
        return None
    try:
        google = _decode_extra(call.extra_content).google
    except UNREADABLE:
        return None
    return None if google is None else google.thought_signature


def detail_of(call: ToolCall) -> Detail | None:
    """The same as a detail that finds back to its call."""
    signature = signature_of(call)
    return hidden(signature, 0, form=GOOGLE, call_id=call.id) if signature and call.id else None


# -- seals -------------------------------------------------------------------------------------------------------


def seal(members: Mapping[str, object]) -> str:
    """Members of an assistant's message, in letters that any dialect takes for a signature."""
    return MARK + base64.urlsafe_b64encode(encode(members)).decode("ascii")


def seal_details(details: Iterable[Detail]) -> str:
    return seal({EXTENSION: list(details)})


def is_sealed(text: str) -> bool:
    return text.startswith(MARK)


def unseal(sealed: str, param: str, allowed: Iterable[str]) -> dict[str, msgspec.Raw]:
    """The members that `seal` put away.

    Raises:
        BadRequest: it is not what was given out.
    """
    try:
        members = _decode_members(base64.urlsafe_b64decode(sealed.removeprefix(MARK).encode("ascii")))
    except (*UNREADABLE, UnicodeEncodeError, binascii.Error):
        members = {}
    if not members or not members.keys() <= set(allowed):
        raise BadRequest(f"`{param}` is not what this gateway gave out.", param=param, code="invalid_value")
    return members


def unseal_details(sealed: str, param: str) -> list[Detail]:
    """The details that `seal_details` put away.

    Raises:
        BadRequest: they are not what was given out.
    """
    raw = unseal(sealed, param, (EXTENSION,))[EXTENSION]
    try:
        return _decode_details(raw)
    except UNREADABLE:
        raise BadRequest(f"`{param}` is not what this gateway gave out.", param=param, code="invalid_value") from None


def seal_bytes(details: Iterable[Detail]) -> str:
    """A seal for a dialect whose signatures are bytes in base64."""
    return base64.b64encode(MARK.encode("ascii") + encode({EXTENSION: list(details)})).decode("ascii")


def unseal_bytes(text: str, param: str) -> list[Detail] | None:
    """The details that `seal_bytes` put away; None where it is no seal. Clients may write it in either alphabet.

    Raises:
        BadRequest: they are not what was given out.
    """
    plain = text.replace("-", "+").replace("_", "/")
    if not plain.startswith(SEALED_BYTES):
        return None
    try:
        raw = base64.b64decode(plain + "=" * (-len(plain) % 4))
        return _decode_details(_decode_members(raw.removeprefix(MARK.encode("ascii")))[EXTENSION])
    except (*UNREADABLE, binascii.Error, KeyError):
        raise BadRequest(f"`{param}` is not what this gateway gave out.", param=param, code="invalid_value") from None


class Reader:
    """Collects the details of one message of a request."""

    __slots__ = ("_beside", "_carries", "details", "dropped")

    def __init__(self, extensions: frozenset[str]) -> None:
        """`extensions` are what the adapter reads."""
        self._carries = EXTENSION in extensions
        self._beside = BESIDE in extensions
        self.details: list[Detail] = []
        #: There was something that can't be carried.
        self.dropped = False

    def sign(self, text: str, signature: str) -> None:
        """A thought that Anthropic signed."""
        self.put([signed(text, signature, len(self.details))])

    def hide(self, data: str, *, form: str = CLAUDE, call_id: str | None = None) -> None:
        """A thought that nobody but its maker can read, or the signature of a call."""
        self.put([hidden(data, len(self.details), form=form, call_id=call_id)])

    def open(self, details: Iterable[Detail], text: str = "") -> None:
        """What came out of a seal; `text` is the thought that a signature among it is for."""
        for detail in details:
            if is_text(detail) and text and not detail.get("text"):
                detail["text"] = text
            if is_text(detail) and detail.get("format") is None:
                # A stream says it with the first piece of a thought, and the signature comes with the last.
                detail["format"] = CLAUDE
            # Those of one answer may have been sealed one by one.
            detail["index"] = len(self.details)
            self.put([detail])

    def put(self, details: list[Detail]) -> None:
        if (self._carries or self._beside) and len(self.details) + len(details) <= DETAILS_MAX:
            self.details += details
        else:
            self.dropped = True

    def close(self, message: dict[str, object], calls: Iterable[dict[str, object]]) -> None:
        """Put what there is into the message, and beside its calls."""
        if self._carries and self.details:
            message[EXTENSION] = self.details
        elif self._beside and self.details:
            signatures = {
                detail["id"]: secret_of(detail)
                for detail in self.details
                if detail.get("format") == GOOGLE and "id" in detail
            }
            for call in calls:
                if signature := signatures.pop(_text(call["id"]), ""):
                    call[BESIDE] = {"google": {"thought_signature": signature}}
            self.dropped = self.dropped or len(self.details) > sum(BESIDE in call for call in calls)


def _text(value: object) -> str:
    """A text, or JSON of one."""
    return _decode_text(value) if isinstance(value, msgspec.Raw) else str(value)
