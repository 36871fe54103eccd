"""OpenAI's dialects relayed: to OpenAI itself, and to whatever a row says is compatible with it.

What arrives is what leaves. A request's bytes are touched only where the offer has another name for the model, where
a stream has to be asked for its usage, and where the row names a parameter that the provider would refuse; an
untouched body is the very object that came in. An answer's bytes are never touched, but for the usage chunk of a
caller who did not ask for one.

Everything that does not depend on the request is worked out in `configure`: `prepare` and `tap` run once for each
request, on the hot path.
"""

import re
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import ClassVar

import msgspec

from gateway.api import (
    API_VERSION,
    CREDENTIALS,
    JSON_TAPS,
    Adapter,
    Call,
    ConfigError,
    Dialect,
    Failure,
    Headers,
    JSONTap,
    KnownProvider,
    Offer,
    OwnKeyed,
    PassTap,
    ProviderConfig,
    ResponseHead,
    Secret,
    SSETap,
    Tap,
    UpstreamRequest,
    members_among,
    parse_base_url,
    request_headers,
    rewrite,
    rewrite_form,
)
from gateway_adapters import failures, rows, unstreamed
from gateway_adapters.rows import Row
from gateway_adapters.unstreamed import UnstreamedTap

#: Streams of these report their usage only when asked.
_ASKABLE = frozenset({Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS})
#: Whose bodies may be forms.
_FORMS = frozenset({Dialect.OPENAI_IMAGE_EDITS, Dialect.OPENAI_TRANSCRIPTIONS, Dialect.OPENAI_OTHER})
#: Query parameters that may carry a gateway key.
_PRIVATE_PARAMETERS = frozenset({b"key", b"api_key"})
_NO_NAMES: Mapping[str, str] = {}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?")
#: Written by the client that sends the request.
_FRAMING = frozenset(
    {"connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)


class OpenAI:
    """The relay. Its `base_url` may be any server's that speaks as OpenAI's does."""

    ID: ClassVar[str] = "openai"
    API: ClassVar[int] = API_VERSION

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        return [row for row in rows.known(cls.ID) if row.name == "openai"]

    @classmethod
    def own(cls, config: ProviderConfig, key: Secret) -> ProviderConfig:
        headers = config.extra.get("headers")
        if isinstance(headers, dict) and not CREDENTIALS.isdisjoint(str(name).lower().encode() for name in headers):
            raise ConfigError("has a credential in it, beside which no other key can be used", param="headers")
        return msgspec.structs.replace(config, api_key=key)

    def configure(self, config: ProviderConfig) -> None:
        self.take(rows.row_of("openai", config.extra), config)

    def take(self, row: Row, config: ProviderConfig) -> None:
        """Work out what `prepare` needs from a row and the provider's own settings."""
        if not (base_url := config.base_url or row.base_url):
            raise ConfigError("is missing", param="base_url")
        try:
            self._origin, self._path = parse_base_url(base_url)
        except ConfigError as error:
            raise ConfigError(error.message, param="base_url") from error
        self.dialects = row.dialects
        self.extensions = row.extensions
        self._secret = config.api_key.reveal() if config.api_key is not None else ""
        # The same adapter talks to servers of one's own, which may want no key.
        if row.key_required and not self._secret and base_url == row.base_url:
            variable = f"; its usual variable is {row.variable}" if row.variable else ""
            raise ConfigError(f"is missing{variable}", param="api_key")
        self._headers = _own_headers(row, self._secret)
        # Most of them never travel on from a caller, and need no second look.
        self._replaced = frozenset(name for name, _ in request_headers(self._headers))
        self._asks = _ASKABLE if row.stream_usage == "inject" else frozenset()
        self._refuses = _ASKABLE if row.stream_usage == "reject" else frozenset()
        self._prefix = row.model_prefix
        self._drop = row.drop
        self._drop_with_stream_options = (*row.drop, "stream_options")
        self._rename = row.rename
        # Also where one stands in a text as if it were a member's name; what it is then is found out with care.
        names = (re.escape(name.encode()) for name in (*self._drop_with_stream_options, *row.rename))
        self._named = re.compile(rb'"(?:%b)"[ \t\r\n]*:' % b"|".join(names))
        self._trust_cost = row.trust_cost
        self._reasoning_in_total = row.reasoning_in_total

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        body: bytes | AsyncIterable[bytes] = call.body
        length: int | None = None
        dropped: tuple[str, ...] = ()
        model = offer.upstream_model
        if self._prefix and "/" not in model:
            model = self._prefix + model
        dialect = call.dialect
        if call.upload is not None:
            # A body that names no model has no place for one either.
            body, length = call.upload.pieces(model or None), call.upload.size_bytes(model or None)
        elif dialect in _FORMS and _is_form(call.headers):
            body = rewrite_form(call.body, call.peek, model=model) if model else call.body
        elif dialect is Dialect.OPENAI_OTHER:
            if model != call.peek.model is not None:
                body = rewrite(call.body, call.peek, model=model)
        else:
            asks = offer.ask_usage and self._asks_for_usage(call)
            drop = self._drop_with_stream_options if dialect in self._refuses else self._drop
            # To look at each member is dear, and names that stand nowhere need it not.
            named = bool(drop or self._rename) and self._may_name(call.body)
            rename = self._rename if named else _NO_NAMES
            drop = drop if named else ()
            if drop:
                dropped = members_among(call.body, drop)
            if asks or drop or rename or model != call.peek.model:
                body = rewrite(
                    call.body, call.peek, model=model or None, include_usage=asks, drop=drop, rename=rename
                )
        target = self._path + call.path
        if call.query and (query := _public(call.query)):
            target += b"?" + query
        return UpstreamRequest(
            method=call.method.encode("ascii"),
            origin=self._origin,
            target=target,
            headers=request_headers(call.headers, own=self._headers, drop=self._replaced),
            body=body,
            content_length=length,
            dropped=dropped,
        )

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        kind = (head.header(b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind == b"text/event-stream":
            return self._stream_tap(call)
        if kind == b"application/json" or kind.endswith(b"+json"):
            if call.peek.stream and call.dialect in unstreamed.DIALECTS:
                return UnstreamedTap(call, events=self._stream_tap(call), whole=self._whole_tap(call))
            return self._whole_tap(call)
        return PassTap()

    def _stream_tap(self, call: Call) -> SSETap:
        return SSETap(
            call.dialect,
            strip_usage=self._asks_for_usage(call),
            trust_cost=self._trust_cost,
            reasoning_in_total=self._reasoning_in_total,
        )

    def _whole_tap(self, call: Call) -> JSONTap:
        tap = JSON_TAPS.get(call.dialect, JSONTap)
        return tap(call.dialect, trust_cost=self._trust_cost, reasoning_in_total=self._reasoning_in_total)

    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        return failures.classify(head, body, secret=self._secret)

    def listing(self, page: str) -> UpstreamRequest | None:
        if page:
            return None
        headers = [*self._headers]
        return UpstreamRequest(
            method=b"GET", origin=self._origin, target=self._path + b"/models", headers=headers, body=b""
        )

    def _may_name(self, body: bytes) -> bool:
        """Whether a body has a member that this provider wants otherwise; an escape could spell it too."""
        return self._named.search(body) is not None or b"\\u" in body

    def _asks_for_usage(self, call: Call) -> bool:
        """Whether the usage is asked for on the gateway's behalf, so that the caller must not see the answer."""
        return call.peek.stream and not call.peek.include_usage and call.dialect in self._asks


def _own_headers(row: Row, secret: str) -> list[tuple[bytes, bytes]]:
    """The headers that are the same in every request to this provider: they replace the caller's.

    Answers are asked for uncompressed: a compressed stream arrives in lumps, and the tap reads plain bytes.
    """
    fields = {"accept-encoding": "identity"}
    for name, value in row.headers.items():
        if name.lower() in _FRAMING or not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f'"{name}" is not a header that can be set', param="headers")
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigError(f"the value of {name} is not printable ASCII", param="headers")
        fields[name.lower()] = value
    if secret:
        if row.auth_header.lower() in _FRAMING or not _HEADER_NAME.fullmatch(row.auth_header):
            raise ConfigError("is not a header that can be set", param="auth_header")
        value = f"{row.auth_scheme} {secret}" if row.auth_scheme else secret
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigError("is not printable ASCII on one line", param="api_key")
        fields[row.auth_header.lower()] = value
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in fields.items()]


def _is_form(headers: Headers) -> bool:
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    return kind[:19].lower() == b"multipart/form-data"


def _public(query: bytes) -> bytes:
    """The query without the parameters that may carry a gateway key, everything else as it came."""
    return b"&".join(part for part in query.split(b"&") if part.partition(b"=")[0].lower() not in _PRIVATE_PARAMETERS)


# Fails here, not at the caller, when the shape is wrong.
_: type[Adapter] = OpenAI
_own_keyed: type[OwnKeyed] = OpenAI
