"""Anthropic's Messages API: relayed to those who speak it, translated for those who speak OpenAI's chat completions.

A relayed request is touched only where the offer has another name for the model; an answer never is. Tokens are
counted for nothing: Anthropic charges nothing for it either.

Other servers that speak the dialect are reached by their `base_url`.

Source: Anthropic's API reference.
"""

import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import ClassVar, Final, Literal

import msgspec

from gateway.api import (
    API_VERSION,
    Adapter,
    Call,
    ConfigError,
    Dialect,
    Failure,
    Headers,
    JSONTap,
    KnownProvider,
    Offer,
    PassTap,
    ProviderConfig,
    ResponseHead,
    Secret,
    SSETap,
    Tap,
    UpstreamRequest,
    Usage,
    parse_base_url,
    request_headers,
    rewrite,
)
from gateway_adapters import failures, rows
from gateway_adapters.anthropic import answer
from gateway_adapters.anthropic.request import translate
from gateway_adapters.anthropic.stream import ChunkTap
from gateway_adapters.anthropic.whole import AnswerTap
from gateway_adapters.chat_answer import created_s, unreadable

BASE_URL: Final = "https://api.anthropic.com"
#: The version whose requests and answers are translated, and that a caller who names none gets.
VERSION: Final = "2023-06-01"
#: Tokens of a person's subscription are no API keys: they travel otherwise, and have to be announced.
OAUTH_PREFIX: Final = "sk-ant-oat"
OAUTH_BETA: Final = b"oauth-2025-04-20"

_MESSAGES: Final = b"/messages"
_VERSION_HEADER: Final = b"anthropic-version"
_BETA_HEADER: Final = b"anthropic-beta"
_KEY: Final = re.compile(r"[\x21-\x7e]+")
#: Query parameters that may carry a gateway key.
_PRIVATE_PARAMETERS: Final = frozenset({b"key", b"api_key"})
#: Of a chat client's headers, what Anthropic is told.
_TRAVELLING: Final = frozenset({b"user-agent", _BETA_HEADER})
_SEARCHES: Final = (b'"web_search_options"', b'"web_search_20', b'"citations"')


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a provider's table may say besides what all tables may."""

    #: How the key travels; by default as its kind does.
    auth: Literal["x-api-key", "bearer"] | None = None
    version: str = VERSION


class CountTap(PassTap):
    """For the answer to how many tokens a prompt has: nothing was used, and that is known."""

    __slots__ = ()

    def usage(self) -> Usage | None:
        return Usage()


class Anthropic:
    """Anthropic, or a server that speaks as it does."""

    ID: ClassVar[str] = "anthropic"
    API: ClassVar[int] = API_VERSION
    dialects = frozenset({Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COUNT_TOKENS})
    translates = frozenset({Dialect.OPENAI_CHAT})
    extensions = frozenset({"cache_control", "reasoning_details"})

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        return [
            KnownProvider(
                name=cls.ID, title="Anthropic", adapter=cls.ID, variable="ANTHROPIC_API_KEY", base_url=BASE_URL
            )
        ]

    @classmethod
    def own(cls, config: ProviderConfig, key: Secret) -> ProviderConfig:
        return msgspec.structs.replace(config, api_key=key)

    def configure(self, config: ProviderConfig) -> None:
        table = _table(config.extra)
        base_url = config.base_url or BASE_URL
        try:
            self._origin, path = parse_base_url(base_url)
        except ConfigError as error:
            raise ConfigError(error.message, param="base_url") from error
        # Anthropic's SDKs put the version after their base URL, OpenAI's have it in there: both are understood.
        self._path = path.removesuffix(b"/v1") + b"/v1"
        self._secret = config.api_key.reveal() if config.api_key is not None else ""
        if not self._secret and base_url.rstrip("/") == BASE_URL:
            raise ConfigError("is missing; its usual variable is ANTHROPIC_API_KEY", param="api_key")
        if self._secret and not _KEY.fullmatch(self._secret):
            raise ConfigError("is not printable ASCII on one line", param="api_key")
        if not _KEY.fullmatch(table.version):
            raise ConfigError("is not a version", param="version")
        oauth = self._secret.startswith(OAUTH_PREFIX)
        self._betas = (OAUTH_BETA,) if oauth else ()
        self._version = (_VERSION_HEADER, table.version.encode("ascii"))
        # Answers are asked for uncompressed: a compressed stream arrives in lumps, and the tap reads plain bytes.
        self._own: Headers = [(b"accept-encoding", b"identity")]
        if self._secret:
            secret = self._secret.encode("ascii")
            bearer = table.auth == "bearer" or (table.auth is None and oauth)
            self._own.append((b"authorization", b"Bearer " + secret) if bearer else (b"x-api-key", secret))

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        if call.dialect is Dialect.OPENAI_CHAT:
            return self._translated(call, offer)
        body = call.body
        if offer.upstream_model != call.peek.model:
            body = rewrite(body, call.peek, model=offer.upstream_model or None)
        target = self._path + call.path
        if call.query and (query := _public(call.query)):
            target += b"?" + query
        headers = request_headers(call.headers, own=self._own)
        if all(name != _VERSION_HEADER for name, _ in headers):
            headers.append(self._version)
        return UpstreamRequest(
            method=call.method.encode("ascii"),
            origin=self._origin,
            target=target,
            headers=_with_betas(headers, self._betas),
            body=body,
        )

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        kind = (head.header(b"content-type") or b"").partition(b";")[0].strip().lower()
        is_stream = kind == b"text/event-stream"
        if call.dialect is Dialect.OPENAI_CHAT:
            created = created_s(head)
            chunks = self._chunks(call, created) if is_stream or call.peek.stream else None
            if is_stream and chunks is not None:
                return chunks
            return AnswerTap(call, head, stream=chunks, blame=self._blame)
        if call.dialect is Dialect.ANTHROPIC_COUNT_TOKENS:
            return CountTap()
        if is_stream:
            return SSETap(call.dialect)
        if kind == b"application/json" or kind.endswith(b"+json"):
            return JSONTap(call.dialect)
        return PassTap()

    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        failure = failures.classify(head, body, secret=self._secret)
        if failure.code is not None:
            return failure
        if head.status in (503, 529):
            return msgspec.structs.replace(failure, code="server_is_overloaded")
        if head.status == 413:
            return msgspec.structs.replace(failure, code="request_too_large")
        return failure

    def listing(self, page: str) -> UpstreamRequest | None:
        query = b"?limit=1000" + (b"&after_id=" + urllib.parse.quote(page, safe="").encode("ascii") if page else b"")
        return UpstreamRequest(
            method=b"GET",
            origin=self._origin,
            target=self._path + b"/models" + query,
            headers=_with_betas([*self._own, self._version], self._betas),
            body=b"",
        )

    def _translated(self, call: Call, offer: Offer) -> UpstreamRequest:
        made = translate(call.body, model=offer.upstream_model, output_tokens_max=offer.output_tokens_max)
        headers = [header for header in request_headers(call.headers) if header[0] in _TRAVELLING]
        headers += (b"content-type", b"application/json"), *self._own, self._version
        betas = (*self._betas, *(beta.encode("ascii") for beta in made.betas))
        return UpstreamRequest(
            method=b"POST",
            origin=self._origin,
            target=self._path + _MESSAGES,
            headers=_with_betas(headers, betas),
            body=made.body,
            dropped=made.dropped,
        )

    def _chunks(self, call: Call, created: int) -> ChunkTap:
        return ChunkTap(
            created=created,
            usage_asked=bool(call.peek.include_usage),
            counts=any(call.body.find(sign) >= 0 for sign in _SEARCHES),
            blame=self._blame,
        )

    def _blame(self, data: bytes) -> Failure:
        """What an error inside a good answer means: as much as the same with the status it should have had."""
        try:
            message = answer.decode_message(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return unreadable("an error that can't be read")
        status = answer.status_of("" if message.error is None else message.error.type)
        return msgspec.structs.replace(self.classify(ResponseHead(status, []), data), status=status)


def _table(extra: Mapping[str, object]) -> Table:
    for key in extra:
        if key not in Table.__struct_fields__:
            raise ConfigError(f'there is no key "{key}"{rows.suggestion(key, Table.__struct_fields__)}', param=key)
    try:
        return msgspec.convert(extra, Table)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error).replace("`$.", "`")) from error


def _with_betas(headers: Headers, betas: tuple[bytes, ...]) -> Headers:
    """`headers`, with these among the betas that they announce."""
    if not betas:
        return headers
    announced = [value for name, value in headers if name == _BETA_HEADER]
    known = {beta.strip() for value in announced for beta in value.split(b",")}
    announced += [beta for beta in betas if beta not in known]
    return [header for header in headers if header[0] != _BETA_HEADER] + [(_BETA_HEADER, b",".join(announced))]


def _public(query: bytes) -> bytes:
    """The query without the parameters that may carry a gateway key, everything else as it came."""
    return b"&".join(part for part in query.split(b"&") if part.partition(b"=")[0].lower() not in _PRIVATE_PARAMETERS)


# Fails here, not at the caller, when the shape is wrong.
_: type[Adapter] = Anthropic
