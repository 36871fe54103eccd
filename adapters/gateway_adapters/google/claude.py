"""Anthropic's models on Vertex AI: its Messages API with the model in the path, its version in the body, and Google's
tokens in place of a key. All else is `gateway_adapters.anthropic`.

Source: Google's documentation of partner models, "Claude", and Anthropic's "Claude on Vertex AI".
"""

import urllib.parse
from collections.abc import Iterable
from typing import ClassVar, Final

import msgspec

from gateway.api import (
    Adapter,
    Call,
    ConfigError,
    Dialect,
    KnownProvider,
    Offer,
    ProviderConfig,
    Renewing,
    ResponseHead,
    Secret,
    UpstreamRequest,
    parse_base_url,
    peek,
    rewrite,
)
from gateway_adapters.anthropic import Anthropic
from gateway_adapters.google.credentials import read_token
from gateway_adapters.google.vertex import Access, bearer, no_token, own_access

VERSION: Final = b'"anthropic_version":"vertex-2023-10-16"'
_NAMED: Final = b'"anthropic_version"'
_COUNTER: Final = "count-tokens"

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class VertexAnthropic(Anthropic):
    """Claude on Vertex AI."""

    ID: ClassVar[str] = "vertex-anthropic"

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        return [KnownProvider(name=cls.ID, title="Anthropic on Vertex AI", adapter=cls.ID, variable="", base_url="")]

    @classmethod
    def own(cls, config: ProviderConfig, key: Secret) -> ProviderConfig:
        return own_access(config, key)

    def configure(self, config: ProviderConfig) -> None:
        self._access = Access(config)
        if self._access.key:
            raise ConfigError(
                "is no credential: Anthropic's models are not to be had with a bare key", param="api_key"
            )
        super().configure(ProviderConfig(name=config.name, base_url=self._access.base_url, api_key=None, extra={}))
        self._prefix = parse_base_url(self._access.base_url)[1] + b"/publishers/anthropic/models/"

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        if not self._secret:
            raise no_token()
        made = super().prepare(call, offer)
        assert isinstance(made.body, bytes)
        if call.dialect is Dialect.ANTHROPIC_COUNT_TOKENS:
            # Which model's tokens it counts, it reads in the body.
            target, body = self._target(_COUNTER, stream=False), made.body
        else:
            target, body = self._target(offer.upstream_model, stream=call.peek.stream), _versioned(made.body)
        return msgspec.structs.replace(made, target=target, body=body)

    def listing(self, page: str) -> UpstreamRequest | None:
        # As `vertex.py` says.
        return None

    def _target(self, model: str, *, stream: bool) -> bytes:
        verb = b":streamRawPredict" if stream else b":rawPredict"
        return self._prefix + urllib.parse.quote(model, safe="@").encode("ascii") + verb

    def renewal(self, now_s: float) -> UpstreamRequest | None:
        return self._access.renewal(now_s)

    def renewed(self, head: ResponseHead, body: bytes) -> float:
        token = read_token(head, body)
        self._secret = token.text
        self._own = bearer(token)
        return token.renew_s


def _versioned(body: bytes) -> bytes:
    """The body without its model and with the version, all else as it stands."""
    body = rewrite(body, peek(body), drop=("model",))
    if _NAMED in body and "anthropic_version" in _decode_members(body):
        return body
    start = body.index(b"{") + 1
    comma = b"" if body[start:].lstrip().startswith(b"}") else b","
    return body[:start] + VERSION + comma + body[start:]


# Fail here, not at the caller, when the shape is wrong.
_: type[Adapter] = VertexAnthropic
_renewing: type[Renewing] = VertexAnthropic
