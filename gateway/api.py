"""The public surface for adapters and plugins: the only module of this package that they may import.

An adapter is pure and synchronous: bytes and facts in, bytes and facts out. The gateway owns the sockets, retries,
streaming, limits and billing. One instance is made for each configured provider; `configure` is called once
before any request. See `adapters/README.md`.

A plugin looks on: it is called at four points of a request's life, may refuse it, and adds to what is sent. One
instance is made for each `[plugins.NAME]` table. See `plugins/README.md`.

Changing anything here in a way that breaks an adapter or a plugin raises `API_VERSION`.
"""

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import ClassVar, Protocol, runtime_checkable
from urllib.parse import urlsplit

import msgspec

from gateway.errors import BadRequest, ConfigError, GatewayError, RateLimited, Rejected, UpstreamCredentials
from gateway.exchange import Call, Exchange, Headers, Offer
from gateway.secret import Secret
from gateway.wire.dialects import Dialect
from gateway.wire.form import rewrite_form
from gateway.wire.gemini import GeminiJSONTap, GeminiSSETap, parse_gemini_usage
from gateway.wire.headers import CREDENTIALS, request_headers
from gateway.wire.media_taps import JSON_TAPS
from gateway.wire.peek import Peek, Span, members_among, peek, rewrite
from gateway.wire.sse import EventTooLong, Frame, FrameScanner
from gateway.wire.sse_tap import SSETap
from gateway.wire.taps import JSONTap, PassTap
from gateway.wire.usage import Usage, normalise, read_report

API_VERSION = 1
#: Where a caller's key may stand; browsers put it into the name of a subprotocol.
_HIDDEN = CREDENTIALS | {b"proxy-authorization", b"sec-websocket-protocol"}
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
    #: Members of the caller's request that this provider can't be told, by name; the caller is told of them, as far
    #: as names that a caller made up are fit for a header.
    dropped: tuple[str, ...] = ()


class ResponseHead(msgspec.Struct, frozen=True):
    """Status line and headers of a provider's answer; header names are lower-cased."""

    status: int
    headers: Headers
    #: When it was here, seconds since 1970, for who writes the answer anew; 0 for who does not.
    received_s: float = 0.0

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
    #: OpenAI's code for it, where it has one; `context_length_exceeded` for example. Of the caller's failures,
    #: `model_not_found` leads to another offer, where there is one.
    code: str | None = None
    #: What the error would have had as its status, where it came inside a good answer.
    status: int | None = None
    #: The provider's own error, as a bridge found it in a good answer: the adapter is asked what it means.
    body: bytes = b""


#: The `code` of a failure to count tokens: of this model the provider can't, and the gateway estimates them.
UNCOUNTED = "counting_unsupported"


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
class Extended(Protocol):
    """For an adapter that reads more in a chat completion than OpenAI's reference has. Optional.

    A caller of another dialect may have said it, and the bridge then hands it on instead of dropping it:
    `cache_control`, which stands on parts, messages and tools, and `reasoning_details` of the assistant's messages,
    in OpenRouter's form: what the model thought, signed or sealed. A detail's `format` says whose it is; an adapter
    takes its own provider's and leaves the others out. `extra_content` stands beside a call, with Google's signature
    of it.
    """

    extensions: frozenset[str]


@runtime_checkable
class Selective(Protocol):
    """For an adapter that serves some of its dialects for some of its provider's models alone. Optional.

    Where it does not, the call comes as it would if the adapter did not name the dialect: in another one, or not.
    """

    def serves(self, dialect: Dialect, model: str) -> bool:
        """Whether calls in this dialect, one of those it names, are for this model, by the provider's name for it."""
        ...


@runtime_checkable
class Listing(Protocol):
    """For an adapter whose provider tells which models it has. Optional.

    It is asked in the background now and then, with the first key, and never for a caller. The answer is JSON, in a
    shape that `gateway/catalogue/listing.py` reads.
    """

    def listing(self, page: str) -> UpstreamRequest | None:
        """The request for the list, None where there is none; `page` is empty, or what the last answer named."""
        ...


@runtime_checkable
class OwnKeyed(Protocol):
    """For an adapter whose providers may be used with a key that an account brings itself. Optional.

    It is asked of the class. The key is a text that somebody outside wrote: nothing in it may decide where anything
    is sent, and nothing of the operator's own credentials may go out beside it.
    """

    @classmethod
    def own(cls, config: ProviderConfig, key: Secret) -> ProviderConfig:
        """The provider's table with `key` in the place of every credential in it, to configure an instance with.

        `config` is the operator's, without its `api_key`. What `key` may be is what the operator may configure, as
        one text: an API key, or the JSON of what takes several.

        Raises:
            ConfigError: `key` is not in a form that can be used here; nothing of it is in the message. Or the table
                has a credential that can't be told from the rest.
        """
        ...


@runtime_checkable
class Lifecycle(Protocol):
    """For an adapter or a plugin that needs more than bytes: a process to talk to, a file to close. Optional."""

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


class Request:
    """A request on its way, as plugins see it. Nothing of it can be changed but `tags` and `notes`.

    What no stage has found out yet is empty: in `on_request` there is no provider, on a conversation over a WebSocket
    neither a body nor a model.
    """

    __slots__ = ("_exchange", "_readable", "notes")

    def __init__(self, exchange: Exchange, *, notes: dict[str, object], readable: bool) -> None:
        self._exchange = exchange
        self._readable = readable
        #: Whatever plugins want to remember until `on_settled`. Kept nowhere; begin a name with your plugin's.
        self.notes = notes

    @property
    def id(self) -> str:
        """What the caller finds in `x-gateway-request-id`, and the books under."""
        return self._exchange.id

    @property
    def method(self) -> str:
        method: str = self._exchange.scope["method"]
        return method

    @property
    def path(self) -> bytes:
        """Raw, after the `/v1` prefix, without the query: a key may stand in that."""
        return self._exchange.target.path

    @property
    def dialect(self) -> Dialect:
        return self._exchange.target.dialect

    @property
    def model(self) -> str:
        """As the caller named it; empty where it is about none."""
        return "" if self._exchange.call is None else self._exchange.call.model

    @property
    def stream(self) -> bool:
        """Whether the caller asked for one."""
        return self._exchange.call is not None and self._exchange.call.peek.stream

    @property
    def account_id(self) -> int:
        return 0 if self._exchange.principal is None else self._exchange.principal.account_id

    @property
    def key_id(self) -> str:
        """The public id of the caller's key."""
        return "" if self._exchange.principal is None else self._exchange.principal.key_id

    @property
    def provider(self) -> str:
        """Who is being asked, or answered."""
        return "" if self._exchange.offer is None else self._exchange.offer.provider

    @property
    def tags(self) -> dict[str, str]:
        """Kept in the usage record, and told by `GET /v1/generations/{id}`: a few short words."""
        return self._exchange.tags

    @property
    def has_body(self) -> bool:
        return self._exchange.call is not None and bool(self._exchange.call.body)

    @property
    def has_upload(self) -> bool:
        """Whether it brings a form with files, which is passed on unread: `body` is empty then."""
        return self._exchange.call is not None and self._exchange.call.upload is not None

    @property
    def is_conversation(self) -> bool:
        """Whether it opens a WebSocket, whose messages no plugin sees."""
        return bool(self._exchange.scope["type"] == "websocket")

    @property
    def body(self) -> bytes:
        """What the caller sent, as plugins before this one left it.

        Raises:
            PermissionError: the plugin does not declare `reads_body`.
        """
        if not self._readable:
            raise PermissionError("a plugin that reads bodies has to declare it: reads_body = True")
        return b"" if self._exchange.call is None else self._exchange.call.body

    def header(self, name: bytes) -> bytes | None:
        """The caller's first header called `name` (lower case). Its credentials are not shown."""
        if name not in _HIDDEN:
            for key, value in self._exchange.scope["headers"]:
                if key == name:
                    return bytes(value)
        return None


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has ended, and what it came to. Durations count from its begin."""

    id: str
    method: str
    #: The path as a template, without what a caller chose: `/v1/chat/completions`, `_other`.
    route: str
    dialect: str
    #: OpenTelemetry's word: chat, text_completion, embeddings, ...
    operation: str
    #: 0 where nothing was sent.
    status: int
    #: As in `gateway/ARCHITECTURE.md`; empty where nothing failed.
    error_type: str
    #: Who cut an answer that had begun: caller, provider or gateway.
    aborted_by: str
    account_id: int
    key_id: str
    #: The public name; what the provider calls it; and who that was. Empty where none was asked.
    model: str
    upstream_model: str
    provider: str
    #: Each try: the provider, and "ok" or an error type.
    attempts: tuple[tuple[str, str], ...]
    stream: bool
    #: Seconds since 1970.
    started_at: float
    duration_s: float
    first_byte_s: float | None
    upstream_s: float | None
    bytes_in: int
    bytes_out: int
    #: None where nothing was delivered.
    usage: Usage | None
    cost_nanos: int
    client: str
    tags: Mapping[str, str]
    #: What plugins noted on the way.
    notes: Mapping[str, object]


@runtime_checkable
class Plugin(Protocol):
    """What looks on. It has at least one of the four hooks below, and may have a `Lifecycle`."""

    #: The entry-point name.
    ID: ClassVar[str]
    #: The `API_VERSION` it was written for.
    API: ClassVar[int]

    def configure(self, table: Mapping[str, object]) -> None:
        """Take the `[plugins.NAME]` table, but for the keys that the gateway has names for; without IO.

        Raises:
            ConfigError: naming the key that is missing or wrong.
        """
        ...


@runtime_checkable
class OnRequest(Protocol):
    """For a plugin that is asked before a request is served."""

    async def on_request(self, x: Request) -> bytes | None:
        """Called once it is known who asks for what, before limits and money. Raise to refuse; set tags and notes.

        A plugin that declares `rewrites_body` may return another body. What is asked for must stay what it is: the
        model, the stream, the bounds of the answer.

        Raises:
            GatewayError: the caller gets it: `Rejected`, `BadRequest`, `RateLimited`.
        """
        ...


@runtime_checkable
class OnAttempt(Protocol):
    """For a plugin that adds headers to what providers are sent."""

    def on_attempt(self, x: Request, offer: Offer, request: UpstreamRequest) -> Headers | None:
        """Called before each try at a provider. Returns headers to add; one that is there already stays as it is.

        `request` is what will be sent but for its headers and its body, which are not shown: the key is in them.
        """
        ...


@runtime_checkable
class OnHead(Protocol):
    """For a plugin that adds headers to answers."""

    def on_head(self, x: Request, status: int, headers: Headers) -> Headers | None:
        """Called when the head of a provider's good answer is about to leave. Returns headers to add to `headers`."""
        ...


@runtime_checkable
class OnSettled(Protocol):
    """For a plugin that is told what became of requests."""

    async def on_settled(self, record: Settled) -> None:
        """Called for each request that has ended, refused ones too, one at a time and off the request's clock."""
        ...


@runtime_checkable
class Essential(Protocol):
    """For a plugin without which a request must not go on. Optional: one that has none may fail unnoticed.

    Where `essential` is True and `on_request` fails or takes too long, the request is refused with a 503.
    """

    essential: bool


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
    "CREDENTIALS",
    "JSON_TAPS",
    "MESSAGE_CHARS_MAX",
    "UNCOUNTED",
    "Adapter",
    "BadRequest",
    "Call",
    "ConfigError",
    "Counting",
    "Dialect",
    "Essential",
    "EventTooLong",
    "Extended",
    "Failure",
    "Frame",
    "FrameScanner",
    "GatewayError",
    "GeminiJSONTap",
    "GeminiSSETap",
    "Headers",
    "JSONTap",
    "Known",
    "KnownProvider",
    "Lifecycle",
    "Listing",
    "Offer",
    "OnAttempt",
    "OnHead",
    "OnRequest",
    "OnSettled",
    "Origin",
    "OwnKeyed",
    "PassTap",
    "Peek",
    "Plugin",
    "ProviderConfig",
    "RateLimited",
    "Rejected",
    "Renewing",
    "Request",
    "ResponseHead",
    "SSETap",
    "Secret",
    "Selective",
    "Settled",
    "Span",
    "Tap",
    "Translator",
    "Upload",
    "UpstreamCredentials",
    "UpstreamRequest",
    "Usage",
    "members_among",
    "normalise",
    "parse_base_url",
    "parse_gemini_usage",
    "peek",
    "read_report",
    "request_headers",
    "rewrite",
    "rewrite_form",
]
