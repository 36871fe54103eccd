"""Google's models on Vertex AI: the same dialect at other addresses, with tokens that run out in place of a key.

Rules:
- `api_key` says which credential: the JSON of a service account (`file:/path/to.json`), that of a person, or the word
  `metadata` for the machine's own. Anything else is an API key of Vertex AI in express mode, which needs no project.
- The project is the credential's own where the table names none; the location is `global` where it names none.
- An account's own key is its service account, or an API key; its project is where its requests go, whatever project
  the table names. The machine's credential is nobody's own, and tokens are asked of Google alone.
- The gateway renews the token; here is only what to ask and what was answered. Until a token is here the key is to
  blame, never the caller.
"""

import re
from collections.abc import Iterable
from typing import ClassVar, Final

from gateway.api import (
    Adapter,
    Call,
    ConfigError,
    Dialect,
    Headers,
    KnownProvider,
    Offer,
    ProviderConfig,
    Renewing,
    ResponseHead,
    Secret,
    UpstreamCredentials,
    UpstreamRequest,
)
from gateway_adapters.google.adapter import Google, refuse_unknown
from gateway_adapters.google.credentials import (
    METADATA,
    Credential,
    Token,
    check_foreign,
    read_credential,
    read_token,
)
from gateway_adapters.google.embeddings import predict_request

VERSION: Final = "v1beta1"
GLOBAL: Final = "global"
#: Where a location is a continent, its host is named in another way.
_CONTINENTS: Final = frozenset({"us", "eu"})
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9:.-]{0,127}")
#: Without a token there is no use in asking for a while.
_NO_TOKEN_S: Final = 1.0


class Access:
    """How a provider's table gets at Vertex AI: where, and with what."""

    def __init__(self, config: ProviderConfig) -> None:
        """Read the table.

        Raises:
            ConfigError: naming the key that is missing or wrong.
        """
        refuse_unknown(config.extra, ("location", "project"))
        if config.api_key is None:
            raise ConfigError(
                'is missing: "file:" and the path of a service account\'s JSON, or "metadata"', param="api_key"
            )
        location = _name(config, "location") or GLOBAL
        project = _name(config, "project")
        key = config.api_key.reveal()
        self.credential: Credential | None = None
        #: An API key of express mode; else empty.
        self.key = ""
        prefix = ""
        if key.lstrip().startswith("{") or key.strip() == METADATA:
            self.credential = read_credential(key)
            project = project or self.credential.project
            if not project:
                raise ConfigError("is missing, and the credential names none", param="project")
            prefix = f"/projects/{project}/locations/{location}"
        else:
            self.key = key
        #: What stands before `/publishers`.
        self.base_url = (config.base_url or f"https://{_host(location)}/{VERSION}").rstrip("/") + prefix

    def renewal(self, now_s: float) -> UpstreamRequest | None:
        return None if self.credential is None else self.credential.request(now_s)


def own_access(config: ProviderConfig, key: Secret) -> ProviderConfig:
    """The table with an account's own credential in it.

    Raises:
        ConfigError: it is none that can be somebody's own, or names a project that can't be one.
    """
    text = key.reveal()
    extra = dict(config.extra)
    if text.lstrip().startswith("{") or text.strip() == METADATA:
        check_foreign(text)
        project = read_credential(text).project
        if not _NAME.fullmatch(project):
            raise ConfigError("names no project", param="api_key")
        extra["project"] = project
    return ProviderConfig(name=config.name, base_url=config.base_url, api_key=key, extra=extra)


def bearer(token: Token) -> Headers:
    """The headers of every request with this token."""
    return [(b"accept-encoding", b"identity"), (b"authorization", b"Bearer " + token.text.encode("ascii"))]


def no_token() -> UpstreamCredentials:
    return UpstreamCredentials(back_after_s=_NO_TOKEN_S, detail="no access token is here yet")


class Vertex(Google):
    """Google's own models on Vertex AI, and those of others that speak as they do."""

    ID: ClassVar[str] = "vertex"
    dialects = frozenset({Dialect.GEMINI_GENERATE, Dialect.GEMINI_COUNT_TOKENS})

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        return [KnownProvider(name="vertex", title="Google Vertex AI", adapter=cls.ID, variable="", base_url="")]

    @classmethod
    def own(cls, config: ProviderConfig, key: Secret) -> ProviderConfig:
        return own_access(config, key)

    def configure(self, config: ProviderConfig) -> None:
        self._access = Access(config)
        self.reach(self._access.base_url)
        self._secret = ""
        self._headers: Headers = []
        if self._access.key:
            self.use_key(self._access.key)

    def resource(self, model: str) -> str:
        if model.startswith("publishers/"):
            return model
        publisher, slash, name = model.partition("/")
        return f"publishers/{publisher}/models/{name}" if slash else f"publishers/google/models/{model}"

    def embed(self, call: Call, resource: str) -> tuple[bytes, bytes, tuple[str, ...]]:
        body, dropped = predict_request(call)
        return b":predict", body, dropped

    def listing(self, page: str) -> UpstreamRequest | None:
        # Its list of publishers' models needs another right, and knows neither sizes nor prices.
        return None

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        if not self._headers:
            raise no_token()
        return super().prepare(call, offer)

    def renewal(self, now_s: float) -> UpstreamRequest | None:
        return self._access.renewal(now_s)

    def renewed(self, head: ResponseHead, body: bytes) -> float:
        token = read_token(head, body)
        self._secret = token.text
        self._headers = bearer(token)
        return token.renew_s


def _name(config: ProviderConfig, key: str) -> str:
    value = config.extra.get(key, "")
    if not isinstance(value, str) or (value and not _NAME.fullmatch(value)):
        raise ConfigError("is not the name of one", param=key)
    return value


def _host(location: str) -> str:
    if location == GLOBAL:
        return "aiplatform.googleapis.com"
    if location in _CONTINENTS:
        return f"aiplatform.{location}.rep.googleapis.com"
    return f"{location}-aiplatform.googleapis.com"


# Fail here, not at the caller, when the shape is wrong.
_: type[Adapter] = Vertex
_renewing: type[Renewing] = Vertex
