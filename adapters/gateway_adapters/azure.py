"""Azure OpenAI: OpenAI's dialects relayed, where the model is a deployment and stands in the path or in the body.

Rules:
- Without an `api_version`, or with `preview`, the paths are those of the v1 API: `/openai/v1/...`, the deployment is
  the `model` of the body.
- With a dated `api_version` they are those from before: `/openai/deployments/DEPLOYMENT/...` for what a deployment
  answers, `/openai/...` for the rest; what the body calls the model then means nothing, and stays as it is.
- The caller's own `api-version`, which Azure's SDKs send, never travels on: paths and version belong together.
- The key goes in `api-key`. `auth` says otherwise: `bearer` for a token of Entra ID in `api_key`; `client-secret` for
  an application (`tenant_id`, `client_id`, `client_secret`) and `managed-identity` for the machine, whose tokens the
  gateway renews. Until a token is here, the key is to blame, never the caller.
- An account's own key is a key of this resource (or, with `bearer`, a token for it), or an application: the JSON of
  `tenant_id`, `client_id` and `client_secret`. Its tokens are asked of the configured authority.
- What Azure adds to an answer (content filter results, a first chunk with no choices) is the caller's to read.

What a deployment costs follows from its model, which its name does not tell: the configuration gives each deployment
a row in `models`.
Sources: Azure's "OpenAI v1 API" and "REST API reference"; the AzureOpenAI client of OpenAI's own SDK.
"""

import re
from collections.abc import Iterable
from typing import ClassVar, Final
from urllib.parse import quote

import msgspec

from gateway.api import (
    API_VERSION,
    Adapter,
    Call,
    ConfigError,
    KnownProvider,
    Offer,
    ProviderConfig,
    Renewing,
    ResponseHead,
    Secret,
    UpstreamCredentials,
    UpstreamRequest,
)
from gateway_adapters import rows
from gateway_adapters.entra import Entra, read_token
from gateway_adapters.openai import OpenAI

#: What a deployment answers; everything else belongs to the whole resource.
_OF_DEPLOYMENTS: Final = frozenset(
    {
        b"/audio/speech",
        b"/audio/transcriptions",
        b"/audio/translations",
        b"/chat/completions",
        b"/completions",
        b"/embeddings",
        b"/images/edits",
        b"/images/generations",
    }
)
_DATED: Final = re.compile(r"\d{4}-\d{2}-\d{2}(?:-preview)?")
_V1: Final = frozenset({"", "v1", "preview", "latest"})
_API_KEY: Final = {"auth_header": "api-key", "auth_scheme": ""}
_AUTHS: Final = ("api-key", "bearer", "client-secret", "managed-identity")
_IDENTITY_KEYS: Final = ("tenant_id", "client_id", "client_secret", "authority")
#: What an account's own application is made of.
_APPLICATION: Final = frozenset({"tenant_id", "client_id", "client_secret"})
_decode_texts: Final = msgspec.json.Decoder(dict[str, str]).decode
#: Without a token there is no use in asking for a while.
_NO_TOKEN_S: Final = 1.0


class Azure(OpenAI):
    """One resource. `base_url` is its endpoint, with or without `/openai` or `/openai/v1`."""

    ID: ClassVar[str] = "azure"
    API: ClassVar[int] = API_VERSION

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        # No variable turns it on: a key alone does not say where the resource is.
        return [KnownProvider(name="azure", title="Azure OpenAI", adapter=cls.ID, variable="", base_url="")]

    @classmethod
    def own(cls, config: ProviderConfig, key: Secret) -> ProviderConfig:
        config = super().own(config, key)
        table = {name: value for name, value in config.extra.items() if name not in _IDENTITY_KEYS}
        if table.get("auth") not in (None, "api-key", "bearer"):
            # The operator's own way; a key is what an account has, unless it says otherwise.
            del table["auth"]
        if not key.reveal().lstrip().startswith("{"):
            return msgspec.structs.replace(config, extra=table)
        try:
            application = _decode_texts(key.reveal())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            application = {}
        if application.keys() != _APPLICATION:
            raise ConfigError(f"is not the JSON of {', '.join(sorted(_APPLICATION))}", param="api_key")
        if "authority" in config.extra:
            table["authority"] = config.extra["authority"]
        table = {**table, **application, "auth": "client-secret"}
        return msgspec.structs.replace(config, api_key=None, extra=table)

    def configure(self, config: ProviderConfig) -> None:
        table = dict(config.extra)
        version = table.pop("api_version", "")
        if not isinstance(version, str) or not (version in _V1 or _DATED.fullmatch(version)):
            raise ConfigError('must be "preview" or a date like "2024-10-21"', param="api_version")
        auth = table.pop("auth", "api-key")
        if auth not in _AUTHS:
            raise ConfigError(f"must be one of {', '.join(_AUTHS)}", param="auth")
        self._identity = _identity(auth, table)
        if not config.base_url:
            raise ConfigError(
                'is missing: the endpoint of the resource, "https://NAME.openai.azure.com"', param="base_url"
            )
        if config.api_key is None and self._identity is None:
            raise ConfigError("is missing; its usual variable is AZURE_OPENAI_API_KEY", param="api_key")
        spoken = {"dialects": sorted(rows.row_of("openai", {}).dialects)}
        self.take(rows.row_of("", {**spoken, **(_API_KEY if auth == "api-key" else {}), **table}), config)
        self._has_token = self._identity is None
        self._version = b"api-version=" + version.encode() if version not in ("", "v1") else b""
        root = self._path.removesuffix(b"/v1").removesuffix(b"/openai")
        self._deployments = b""
        if version in _V1:
            self._path = root + b"/openai/v1"
        else:
            self._path = root + b"/openai"
            self._deployments = self._path + b"/deployments/"

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        if not self._has_token:
            raise UpstreamCredentials(back_after_s=_NO_TOKEN_S, detail="no access token is here yet")
        deployment = ""
        if self._deployments and call.path in _OF_DEPLOYMENTS:
            deployment = offer.upstream_model
            offer = msgspec.structs.replace(offer, upstream_model=call.peek.model or "")
        request = super().prepare(call, offer)
        target, _, query = request.target.partition(b"?")
        if deployment:
            target = self._deployments + quote(deployment, safe="").encode("ascii") + call.path
        parts = [part for part in query.split(b"&") if part and not part.lower().startswith(b"api-version=")]
        if self._version:
            parts.append(self._version)
        if parts:
            target += b"?" + b"&".join(parts)
        return msgspec.structs.replace(request, target=target)

    def listing(self, page: str) -> UpstreamRequest | None:
        # It lists models that could be deployed, not those that are.
        return None

    def renewal(self, now_s: float) -> UpstreamRequest | None:
        return None if self._identity is None else self._identity.request()

    def renewed(self, head: ResponseHead, body: bytes) -> float:
        token, renew_s = read_token(head, body)
        headers = [header for header in self._headers if header[0] != b"authorization"]
        self._headers = [*headers, (b"authorization", b"Bearer " + token.encode("ascii"))]
        self._secret = token
        self._has_token = True
        return renew_s


def _identity(auth: str, table: dict[str, object]) -> Entra | None:
    """Takes the keys of an identity out of the table; None where a key or token is given instead."""
    given = {key: table.pop(key) for key in _IDENTITY_KEYS if key in table}
    for key, value in given.items():
        if not isinstance(value, str) or not value:
            raise ConfigError("must be text", param=key)
    if auth in ("api-key", "bearer"):
        if given:
            raise ConfigError('belongs to auth = "client-secret" or "managed-identity"', param=next(iter(given)))
        return None
    if auth == "client-secret" and "client_secret" not in given:
        raise ConfigError("is missing", param="client_secret")
    if auth == "managed-identity" and (wrong := given.keys() - {"client_id"}):
        raise ConfigError("a machine needs no such thing", param=min(wrong))
    return Entra(**{key: str(value) for key, value in given.items()})


_: type[Adapter] = Azure
_renewing: type[Renewing] = Azure
