"""Google's models on Vertex AI: the same dialect at other addresses, with tokens that run out in place of a key.

Rules:
- `api_key` says which credential: the JSON of a service account (`file:/path/to.json`), that of a person, or the word
  `metadata` for the machine's own. Anything else is an API key of Vertex AI in express mode, which needs no project.
- The project is the credential's own where the table names none; the location is `global` where it names none.
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
    UpstreamCredentials,
    UpstreamRequest,
)
from gateway_adapters.google.adapter import Google, refuse_unknown
from gateway_adapters.google.credentials import METADATA, Credential, read_credential, read_token
from gateway_adapters.google.embeddings import predict_request

VERSION: Final = "v1beta1"
GLOBAL: Final = "global"
#: Where a location is a continent, its host is named in another way.
_CONTINENTS: Final = frozenset({"us", "eu"})
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9:.-]{0,127}")
#: Without a token there is no use in asking for a while.
_NO_TOKEN_S: Final = 1.0


class Vertex(Google):
    """Vertex AI."""

    ID: ClassVar[str] = "vertex"
    dialects = frozenset({Dialect.GEMINI_GENERATE, Dialect.GEMINI_COUNT_TOKENS})

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        return [KnownProvider(name="vertex", title="Google Vertex AI", adapter=cls.ID, variable="", base_url="")]

    def configure(self, config: ProviderConfig) -> None:
        refuse_unknown(config.extra, ("location", "project"))
        if config.api_key is None:
            raise ConfigError(
                'is missing: "file:" and the path of a service account\'s JSON, or "metadata"', param="api_key"
            )
        location = _name(config, "location") or GLOBAL
        project = _name(config, "project")
        key = config.api_key.reveal()
        self._credential: Credential | None = None
        prefix = ""
        if key.lstrip().startswith("{") or key.strip() == METADATA:
            self._credential = read_credential(key)
            project = project or self._credential.project
            if not project:
                raise ConfigError("is missing, and the credential names none", param="project")
            prefix = f"/projects/{project}/locations/{location}"
        host = _host(location)
        self.reach((config.base_url or f"https://{host}/{VERSION}").rstrip("/") + prefix)
        if self._credential is None:
            self.use_key(key)
        else:
            self._secret = ""
            self._headers: Headers = []

    def resource(self, model: str) -> str:
        if model.startswith("publishers/"):
            return model
        publisher, slash, name = model.partition("/")
        return f"publishers/{publisher}/models/{name}" if slash else f"publishers/google/models/{model}"

    def embed(self, call: Call, resource: str) -> tuple[bytes, bytes, tuple[str, ...]]:
        body, dropped = predict_request(call)
        return b":predict", body, dropped

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        if not self._headers:
            raise UpstreamCredentials(back_after_s=_NO_TOKEN_S, detail="no access token is here yet")
        return super().prepare(call, offer)

    def renewal(self, now_s: float) -> UpstreamRequest | None:
        return None if self._credential is None else self._credential.request(now_s)

    def renewed(self, head: ResponseHead, body: bytes) -> float:
        token = read_token(head, body)
        self._secret = token.text
        self._headers = [
            (b"accept-encoding", b"identity"),
            (b"authorization", b"Bearer " + token.text.encode("ascii")),
        ]
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
