"""The public surface for adapters and plugins: the only module of this package that they may import.

An adapter is pure and synchronous: bytes and facts in, bytes and facts out. The gateway owns the sockets, retries,
streaming, limits and billing. One instance is made for each configured provider; `configure` is called once
before any request. See `adapters/README.md`.

Changing anything here in a way that breaks an adapter raises `API_VERSION`.
"""

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import ClassVar, Protocol, runtime_checkable
from urllib.parse import urlsplit

import msgspec

from gateway.errors import BadRequest, ConfigError, UpstreamCredentials
from gateway.exchange import Call, Headers, Offer
from gateway.secret import Secret
from gateway.wire.dialects import Dialect
from gateway.wire.form import rewrite_form
from gateway.wire.gemini import GeminiJSONTap, GeminiSSETap, parse_gemini_usage
from gateway.wire.headers import request_headers
from gateway.wire.peek import Peek, Span, peek, rewrite
from gateway.wire.sse import EventTooLong, Frame, FrameScanner
from gateway.wire.taps import JSON_TAPS, JSONTap, PassTap, SSETap
from gateway.wire.usage import Usage, normalise, read_report

API_VERSION = 1
#: Of what a provider says about a failure, as much as a caller of another dialect is told.
MESSAGE_CHARS_MAX = 2000


class Origin(msgspec.Struct, frozen=True):
    """Where to connect. `scheme` is http or https; `host` a name or an IP literal without brackets."""

    scheme: str
    host: str
    port: int


def parse_base_url(url: str) -> tuple[Origin, bytes]:
    """Where a base URL connects to, and its path without the trailing slash (`b""` for none).

    Raises:
        ConfigError: it is not an absolute http or https URL, or carries credentials, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"base_url is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("base_url must be absolute and begin with http:// or https://")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError("base_url must carry no credentials, query or fragment")
    if not url.isascii() or any(c <= " " for c in url):
        raise ConfigError("base_url must be plain ASCII; percent-encode its path and use punycode for its host")
    origin = Origin(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80))
    return origin, parts.path.rstrip("/").encode("ascii")


class Upload(Protocol):
    """A form too large to be held: `Call.upload`, where `Call.body` is empty. Its boundary is in the caller's
    `content-type`; a model named there is renamed by giving `model`.

    It can be told what it is about (`Call.peek`), but not read: give `pieces` and `size_bytes` to the request.
    """

    def pieces(self, model: str | None = None) -> AsyncIterable[bytes]: ...

    def size_bytes(self, model: str | None = None) -> int | None: ...


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP/1.1 request to a provider.

    `target` is the raw path and query. `headers` hold neither `host`, `content-length`, `transfer-encoding` nor
    `connection`: the client writes those. A `body` that is not bytes is sent as it comes, chunked unless
    `content_length` is given, and can't be tried a second time.
    """

    method: bytes
    origin: Origin
    target: bytes
    headers: Headers
    body: bytes | AsyncIterable[bytes]
    content_length: int | None = None
    #: Members of the caller's request that this provider can't be told, by name; the caller is told of them.
    dropped: tuple[str, ...] = ()


class ResponseHead(msgspec.Struct, frozen=True):
    """Status line and headers of a provider's answer; header names are lower-cased."""

    status: int
    headers: Headers

    def header(self, name: bytes) -> bytes | None:
        """Value of the first header called `name` (lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Tap(Protocol):
    """Watches one successful answer on its way to the caller, and translates it where the dialects differ.

    `feed` gets every body chunk (transfer coding already undone) and returns what the caller is sent for it: the
    same object when nothing changes. `end` is called once at the clean end of the body and returns what is still to
    be sent. State must not grow with the length of the stream (the one that has to is bounded: see
    `bridges/responses_output.py`). The facts are read, never set, from outside.
    """

    @property
    def complete(self) -> bool:
        """True once the answer was seen to be whole (its terminator or finish reason came by)."""
        ...

    @property
    def rewrites(self) -> bool:
        """True when what `feed` and `end` return may differ in length from what came in."""
        ...

    @property
    def mid_event(self) -> bool:
        """True while what was returned so far ends inside an event, which an error event must not be glued to."""
        ...

    @property
    def errored(self) -> bool:
        """True where the answer itself says that it failed, whatever its status was. Asked after `usage`."""
        ...

    @property
    def content_type(self) -> bytes | None:
        """What the caller's answer is, where that differs from the provider's; None where it does not."""
        ...

    @property
    def failure(self) -> "Failure | None":
        """The error that a translated answer turned out to be; what was returned until then stays whole.

        A tap that does not translate leaves an error where it is, and has None here.
        """
        ...

    def feed(self, data: bytes) -> bytes: ...

    def end(self) -> bytes: ...

    def usage(self) -> Usage | None:
        """What the provider reported so far, or None."""
        ...

    def delivered(self) -> Usage:
        """An estimate of what was delivered so far, for answers that never report."""
        ...


@runtime_checkable
class Counting(Protocol):
    """For a tap of a dialect whose events are numbered. Optional."""

    @property
    def events(self) -> int:
        """Events returned so far, which is the number of the next one."""
        ...


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider's error answer means for routing.

    `blame` is who must change something: `caller` (this request is refused anywhere), `policy` (a content filter;
    another model may accept it), `context` (too long for this model), `key` (this provider key), `provider` (this
    provider, now).
    """

    blame: str
    #: Seconds until a retry of the same offer makes sense, where the provider said so.
    retry_after_s: float | None = None
    #: For the log and the attempt trail; never shown to a caller.
    detail: str = ""
    #: What the provider says, for a caller whose dialect is not the provider's; one whose dialect it is gets the
    #: provider's own bytes. At most `MESSAGE_CHARS_MAX`, and without the provider key.
    message: str = ""
    #: OpenAI's code for it, where it has one; `context_length_exceeded` for example.
    code: str | None = None
    #: What the error would have had as its status, where it came inside a good answer.
    status: int | None = None
    #: The provider's own error, as a bridge found it in a good answer: the adapter is asked what it means.
    body: bytes = b""


class ProviderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter is configured with. `extra` are the provider table's keys that the gateway has no name for."""

    name: str
    base_url: str | None
    #: Call `.reveal()` for the text; its repr and str are `***`.
    api_key: Secret | None
    extra: Mapping[str, object]


@runtime_checkable
class Adapter(Protocol):
    """How to talk to one kind of provider."""

    #: The entry-point name.
    ID: ClassVar[str]
    #: The `API_VERSION` it was written for.
    API: ClassVar[int]
    #: Spoken natively: a caller's dialect in here is relayed, its bytes untouched.
    dialects: frozenset[Dialect]

    def configure(self, config: ProviderConfig) -> None:
        """Take the provider's table, without IO.

        Raises:
            ConfigError: naming the key that is missing or wrong.
        """
        ...

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        """The provider's request for this call."""
        ...

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        """The watcher for a successful answer."""
        ...

    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        """What an answer with an error status means. `body` is the start of it, at most 64 KiB."""
        ...


@runtime_checkable
class Translator(Protocol):
    """For an adapter that serves more than its provider speaks. Optional.

    `prepare` gets calls in these dialects too and writes the provider's request; `tap` returns a watcher that turns
    the answer into the caller's dialect (its `rewrites` is True), and `classify` fills in `message`.
    """

    translates: frozenset[Dialect]


@runtime_checkable
class Lifecycle(Protocol):
    """For an adapter that needs more than bytes: a token to refresh, a process to talk to. Optional."""

    async def start(self) -> None:
        """Called in each worker before it accepts requests."""
        ...

    async def stop(self) -> None: ...


@runtime_checkable
class Renewing(Protocol):
    """For an adapter whose credential runs out: a token to fetch again and again. Optional.

    It stays as free of IO as the rest: the gateway asks, in each worker, before the first request and then in time
    before the credential runs out, one asking at a time. Where that fails, it is tried again soon; until it works
    `prepare` raises `UpstreamCredentials`.
    """

    def renewal(self, now_s: float) -> UpstreamRequest | None:
        """The request for a new credential; None where this one does not run out. `now_s` is since 1970."""
        ...

    def renewed(self, head: ResponseHead, body: bytes) -> float:
        """Take the answer, whatever its status. Returns seconds until the next renewal makes sense.

        Raises:
            UpstreamCredentials: it is no credential; `detail` says why, without a secret.
        """
        ...


class KnownProvider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that an adapter knows by name: its table in a file need not say which adapter and where."""

    name: str
    title: str
    #: The entry-point name of the adapter that talks to it.
    adapter: str
    #: Setting it to the provider's key turns the provider on without any table; empty where nothing does.
    variable: str
    base_url: str
    #: Further variables that some set for it; asked for in this order, after the first.
    other_variables: tuple[str, ...] = ()


@runtime_checkable
class Known(Protocol):
    """For an adapter of this distribution that knows providers by name. Optional; asked of the class."""

    @classmethod
    def known(cls) -> Iterable[KnownProvider]: ...


__all__ = [
    "API_VERSION",
    "JSON_TAPS",
    "MESSAGE_CHARS_MAX",
    "Adapter",
    "BadRequest",
    "Call",
    "ConfigError",
    "Counting",
    "Dialect",
    "EventTooLong",
    "Failure",
    "Frame",
    "FrameScanner",
    "GeminiJSONTap",
    "GeminiSSETap",
    "Headers",
    "JSONTap",
    "Known",
    "KnownProvider",
    "Lifecycle",
    "Offer",
    "Origin",
    "PassTap",
    "Peek",
    "ProviderConfig",
    "Renewing",
    "ResponseHead",
    "SSETap",
    "Secret",
    "Span",
    "Tap",
    "Translator",
    "Upload",
    "UpstreamCredentials",
    "UpstreamRequest",
    "Usage",
    "normalise",
    "parse_base_url",
    "parse_gemini_usage",
    "peek",
    "read_report",
    "request_headers",
    "rewrite",
    "rewrite_form",
]
