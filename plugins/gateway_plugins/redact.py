"""Personal data taken out of requests before they leave.

Rules:
- Only the texts in a JSON body are looked at, never names of members nor anything the protocol means something by
  (`model`, `role`, ids). What is found is replaced within its text; every byte outside of that text stays as it came,
  and what was JSON stays JSON.
- Card numbers have to pass the Luhn check, IBANs theirs, addresses have to be addresses. Telephone numbers are found
  by how they are written: with their country code, or in groups.
- What can't be read (forms with files, bodies that are no JSON, conversations over a WebSocket) is refused, unless
  the table says `unreadable = "pass"`; where this plugin fails, requests are refused, unless it says
  `on_failure = "pass"`.
- Answers are not looked at, and nothing is put back into them.

Names of people, postal addresses and whatever else has no form of its own are not found. Nor is what stands in a
picture or a recording, or in a text that is itself encoded (base64).
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from ipaddress import ip_address
from typing import ClassVar, Final, NamedTuple

import msgspec

from gateway.api import ConfigError, Dialect, Plugin, Rejected, Request

#: Larger bodies are looked through beside the loop, not in it.
THREAD_BYTES: Final = 256 * 1024
TAG: Final = "redacted"

_STRING: Final = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"([ \t\r\n]*:)?', re.DOTALL)
_ESCAPE: Final = re.compile(r"(\\u[0-9a-fA-F]{4}|\\.)")
#: Without one of these, none of our kinds is in a text.
_HINT: Final = re.compile(rb"[@0-9\\]")
#: Pictures, files, signatures: changing a byte would break them.
_ENCODED: Final = re.compile(r"[A-Za-z0-9+/=_\r\n-]{64,}|data:[^,]{0,100},.*", re.DOTALL)
#: Members whose values are the protocol's.
_PROTOCOL: Final = frozenset(
    {
        *(b"model", b"role", b"type", b"id", b"object", b"service_tier", b"tool_call_id", b"tool_use_id", b"call_id"),
        *(b"item_id", b"previous_response_id", b"conversation", b"response_id", b"file_id", b"signature", b"format"),
        *(b"media_type", b"mimeType", b"mime_type", b"encoding_format", b"prompt_cache_key", b"encrypted_content"),
        *(b"thoughtSignature", b"thought_signature", b"cachedContent", b"fileUri", b"input_file_id", b"endpoint"),
    }
)

_EMAIL: Final = r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}(?![\w-])"
_IBAN: Final = r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
_CARD: Final = r"[2-6](?<![\w.-][0-9])(?:[ -]?[0-9]){12,18}(?![\w-])"
_IPV4: Final = r"[0-9](?<![\w.][0-9])[0-9]{0,2}\.(?:[0-9]{1,3}\.){2}[0-9]{1,3}(?![\w.]*[\w])"
_IPV6: Final = r"[0-9a-fA-F:](?<![\w:.][0-9a-fA-F:])[0-9a-fA-F:]{2,38}(?![\w:])"
# They begin with what they consume, so that the search can jump from one beginning to the next: five times as fast.
_PHONE: Final = (
    r"[+(0-9](?<![\w.+-][+(0-9])(?:"
    r"(?<=\+)[1-9](?:[ ()./-]{0,2}[0-9]){6,14}"
    r"|(?:(?<=\()[0-9]{3}\) ?|(?<=[0-9])[0-9]{2}[-. ])[0-9]{3}[-. ][0-9]{4}"
    r"|(?:(?<=\()0|(?<=0))[1-9][0-9]{0,3}\)?[ /-]{1,3}[0-9]{3,}(?:[ -]?[0-9]){2,6}"
    r")(?![\w-])"
)


def _luhn(text: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    digits = [int(each) for each in text if each.isdecimal()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """ISO 13616: the country and check digits moved to the end, letters as numbers, modulo 97."""
    plain = text.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(each, 36)) for each in plain[4:] + plain[:4])) % 97 == 1


def _is_address(text: str) -> bool:
    # `a::b` is an address by its form, and more often a name.
    if not any(each.isdecimal() for each in text):
        return False
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _anything(text: str) -> bool:
    return True


class _Kind(NamedTuple):
    name: str
    #: Found in every text that the pattern is found in, and sooner.
    hint: re.Pattern[str]
    pattern: re.Pattern[str]
    holds: Callable[[str], bool]


#: In the order in which they are looked for: what is found by one is not seen by the next.
KINDS: Final = (
    _Kind("email", re.compile("@"), re.compile(_EMAIL), _anything),
    _Kind("iban", re.compile("[A-Z][0-9]{2}"), re.compile(_IBAN), _is_iban),
    _Kind("card", re.compile("[0-9][ -]?[0-9]{2}"), re.compile(_CARD), _luhn),
    _Kind("ip", re.compile(r"[0-9]\.[0-9]"), re.compile(_IPV4), _is_address),
    _Kind("ip", re.compile(":[0-9a-fA-F]*:"), re.compile(_IPV6), _is_address),
    _Kind("phone", re.compile("[0-9]{2}"), re.compile(_PHONE), _anything),
)
NAMES: Final = tuple(dict.fromkeys(kind.name for kind in KINDS))


class Redactor:
    """Finds and replaces. Pure: text in, text out."""

    def __init__(
        self,
        kinds: tuple[str, ...] = NAMES,
        *,
        patterns: Mapping[str, re.Pattern[str]] | None = None,
        keep: frozenset[str] = frozenset(),
    ) -> None:
        own = tuple(_Kind(name, pattern, pattern, _anything) for name, pattern in (patterns or {}).items())
        self._kinds = own + tuple(kind for kind in KINDS if kind.name in kinds)
        self._keep = keep
        # A pattern of somebody's own may find anything.
        self._hint = None if own else _HINT

    def text(self, text: str, found: dict[str, int]) -> str:
        """`text` without what is personal in it; `found` counts it by kind."""
        for kind in self._kinds:
            if kind.hint.search(text):
                text = kind.pattern.sub(partial(self._replaced, kind, found), text)
        return text

    def _replaced(self, kind: _Kind, found: dict[str, int], match: re.Match[str]) -> str:
        said = match[0]
        if not said or said in self._keep or not kind.holds(said):
            return said
        found[kind.name] = found.get(kind.name, 0) + 1
        return f"[{kind.name.upper()}]"

    def body(self, body: bytes) -> tuple[bytes, dict[str, int]]:
        """The same of every text in a JSON document; the very same object where nothing is found."""
        found: dict[str, int] = {}
        pieces: list[bytes] = []
        start = 0
        for begin, end in self._texts(body):
            raw = body[begin:end]
            clean = self._string(raw, found)
            if clean != raw:
                pieces += (body[start:begin], clean)
                start = end
        return (b"".join([*pieces, body[start:]]), found) if pieces else (body, found)

    def _texts(self, body: bytes) -> Iterator[tuple[int, int]]:
        """Where the strings stand that are values, their quotes included."""
        name = b""
        after = 0
        for match in _STRING.finditer(body):
            if match[2] is not None:
                name, after = match[1], match.end()
                continue
            begin, end = match.span()
            # A name belongs to the value right behind it.
            is_protocol = name in _PROTOCOL and not body[after:begin].strip()
            if not is_protocol and (self._hint is None or self._hint.search(match[1])):
                yield begin, end

    def _string(self, raw: bytes, found: dict[str, int]) -> bytes:
        try:
            text = msgspec.json.decode(raw, type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Half a surrogate pair, or no UTF-8: what stands between the escapes is looked at as it is.
            parts = _ESCAPE.split(raw.decode("utf-8", "surrogateescape"))
            clean = [part if number % 2 else self.text(part, found) for number, part in enumerate(parts)]
            return "".join(clean).encode("utf-8", "surrogateescape")
        if _ENCODED.fullmatch(text):
            return raw
        clean_text = self.text(text, found)
        return raw if clean_text == text else msgspec.json.encode(clean_text)


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kinds: tuple[str, ...] = NAMES
    #: By name: a regular expression of Python's `re`.
    patterns: dict[str, str] = {}
    #: Found, but nobody's secret: `support@example.com`.
    keep: tuple[str, ...] = ()
    #: "replace" by the name of the kind, or "refuse" the request.
    action: str = "replace"
    unreadable: str = "refuse"
    on_failure: str = "refuse"


_CHOICES: Final = {
    "action": ("replace", "refuse"),
    "unreadable": ("refuse", "pass"),
    "on_failure": ("refuse", "pass"),
}


class Redact:
    """The plugin."""

    ID: ClassVar[str] = "redact"
    API: ClassVar[int] = 1
    reads_body = True
    rewrites_body = True

    def __init__(self) -> None:
        self.essential = True

    def configure(self, table: Mapping[str, object]) -> None:
        if unknown := table.keys() - {*_Table.__struct_fields__}:
            raise ConfigError(f"is not a key of {self.ID}", param=min(unknown))
        try:
            settings = msgspec.convert(dict(table), _Table)
        except msgspec.ValidationError as error:
            raise ConfigError(str(error)) from None
        for name, choices in _CHOICES.items():
            if getattr(settings, name) not in choices:
                raise ConfigError(f"must be one of {', '.join(choices)}", param=name)
        if unknown_kinds := {*settings.kinds} - {*NAMES}:
            raise ConfigError(f'there is no kind "{min(unknown_kinds)}"; there are {", ".join(NAMES)}', param="kinds")
        patterns: dict[str, re.Pattern[str]] = {}
        for name, text in settings.patterns.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
                raise ConfigError(f'"{name}" is no name: lower case letters, digits and _', param="patterns")
            try:
                patterns[name] = re.compile(text)
            except re.error as error:
                raise ConfigError(f'"{name}" is no regular expression: {error}', param="patterns") from None
        self._redactor = Redactor(settings.kinds, patterns=patterns, keep=frozenset(settings.keep))
        self._refuses = settings.action == "refuse"
        self._passes_unread = settings.unreadable == "pass"
        self.essential = settings.on_failure == "refuse"

    async def on_request(self, x: Request) -> bytes | None:
        if not self._is_readable(x):
            if self._passes_unread:
                return None
            raise Rejected(
                "This gateway takes personal data out of requests, and this one can't be read by it.",
                code="unreadable_request",
            )
        body = x.body
        if len(body) > THREAD_BYTES:
            clean, found = await asyncio.to_thread(self._redactor.body, body)
        else:
            clean, found = self._redactor.body(body)
        if not found:
            return None
        kinds = ", ".join(sorted(found))
        if self._refuses:
            raise Rejected(f"The request has personal data in it: {kinds}.", code="personal_data")
        x.tags[TAG] = " ".join(f"{kind}={found[kind]}" for kind in sorted(found))
        return clean

    @staticmethod
    def _is_readable(x: Request) -> bool:
        """What has no body has nothing to be read, but for conversations."""
        if x.is_conversation or x.has_upload:
            return False
        if not x.has_body:
            return True
        kind = (x.header(b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind == b"multipart/form-data":
            return False
        return x.dialect is not Dialect.OPENAI_OTHER or kind == b"application/json" or kind.endswith(b"+json")


_: type[Plugin] = Redact
