"""Amazon Bedrock: chat completions translated into Converse and back, whichever maker's model it is, and embeddings.
Anthropic's models take the Messages API in its own words (`invoke.py`).

Rules:
- A request is signed with an access key, or carries one of Bedrock's own API keys. A signature covers the time, which
  is the machine's: `now_s` is the seam for it. AWS refuses one that is more than five minutes off.
- An account's own key is one of Bedrock's API keys, or the JSON of `access_key_id`, `secret_access_key` and, where
  there is one, `session_token`. The region is the provider's.
- A model is named by its id, an inference profile or an ARN; whatever stands in it is encoded into the path.
- The region is in the address. `region` makes one, and has to be given where an address of one's own does not say it.
- Errors are told apart by `x-amzn-errortype`; the id of the answer is AWS' own of the request.

Credentials that have to be fetched (instance roles, single sign-on) are not: what fetches them writes them into the
configuration's variables and reloads it. Bedrock's OpenAI-compatible endpoints are the rows `bedrock-openai` and
`bedrock-mantle`.
Source: Bedrock's API reference, "Converse", "ConverseStream" and "Common Errors".
"""

import re
import time
from collections.abc import Callable, Iterable
from typing import ClassVar, Final
from urllib.parse import quote

import msgspec

from gateway.api import (
    API_VERSION,
    UNCOUNTED,
    Adapter,
    Call,
    ConfigError,
    Dialect,
    Failure,
    JSONTap,
    Known,
    KnownProvider,
    Offer,
    ProviderConfig,
    ResponseHead,
    Secret,
    Selective,
    Tap,
    Translator,
    UpstreamRequest,
    parse_base_url,
    request_headers,
)
from gateway_adapters import failures
from gateway_adapters.bedrock.answer import ConverseTap, read_answer
from gateway_adapters.bedrock.embeddings import embed_tap, write_embed_request
from gateway_adapters.bedrock.invoke import (
    BETAS,
    CountedTap,
    InvokeTap,
    foundation_of,
    is_uncounted,
    serves_messages,
    write_count,
    write_invoke,
)
from gateway_adapters.bedrock.request import write_request
from gateway_adapters.chat_answer import WholeTap
from gateway_adapters.rows import suggestion
from gateway_adapters.sigv4 import Signer

REGION: Final = "us-east-1"
SERVICE: Final = "bedrock"
_ADDRESS: Final = "https://bedrock-runtime.{region}.amazonaws.com"
_STREAM_TYPE: Final = b"application/vnd.amazon.eventstream"

_KEYS: Final = ("access_key_id", "secret_access_key", "session_token", "region", "betas")
#: What an account's own access key is made of; the last of them may be missing.
_PAIR: Final = ("access_key_id", "secret_access_key", "session_token")
_REGION: Final = re.compile(r"[a-z]{2,4}(?:-[a-z]+)+-\d")
_IN_HOST: Final = re.compile(r"(?:^|\.)(?:bedrock-runtime|bedrock-runtime-fips)\.([a-z0-9-]+)\.")
_decode_texts: Final = msgspec.json.Decoder(dict[str, str]).decode
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MESSAGES: Final = frozenset({Dialect.ANTHROPIC_MESSAGES, Dialect.ANTHROPIC_COUNT_TOKENS})
#: Of a caller's headers, what is said in the body here.
_ANTHROPIC: Final = frozenset({b"anthropic-beta", b"anthropic-version"})


class Bedrock:
    """One account in one region."""

    ID: ClassVar[str] = "bedrock"
    API: ClassVar[int] = API_VERSION

    dialects: frozenset[Dialect] = frozenset()
    #: Anthropic's are for its own models alone: see `serves`.
    translates: frozenset[Dialect] = frozenset({Dialect.OPENAI_CHAT, Dialect.OPENAI_EMBEDDINGS, *_MESSAGES})
    extensions: frozenset[str] = frozenset({"cache_control", "reasoning_details"})

    def __init__(
        self,
        now_s: Callable[[], float] = time.time,  # noqa: TID251 - an adapter can't reach the gateway's clock
    ) -> None:
        self._now_s = now_s

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        return [
            KnownProvider(
                name="bedrock",
                title="Amazon Bedrock",
                adapter=cls.ID,
                variable="AWS_BEARER_TOKEN_BEDROCK",
                # Made from the region.
                base_url="",
            )
        ]

    @classmethod
    def own(cls, config: ProviderConfig, key: Secret) -> ProviderConfig:
        # Nothing of the operator's own pair stays.
        table = {name: value for name, value in config.extra.items() if name not in _PAIR}
        if not key.reveal().lstrip().startswith("{"):
            return msgspec.structs.replace(config, api_key=key, extra=table)
        try:
            pair = _decode_texts(key.reveal())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pair = {}
        if not set(_PAIR[:2]) <= pair.keys() <= set(_PAIR):
            raise ConfigError(f"is not the JSON of {', '.join(_PAIR[:2])} and perhaps {_PAIR[2]}", param="api_key")
        return msgspec.structs.replace(config, api_key=None, extra={**table, **pair})

    def configure(self, config: ProviderConfig) -> None:
        table = {key: _text(key, value) for key, value in config.extra.items() if key != "betas"}
        self._betas = _betas(config.extra.get("betas"))
        region = table.get("region", "")
        if region and not _REGION.fullmatch(region):
            raise ConfigError('must be a region like "eu-central-1"', param="region")
        base_url = config.base_url or _ADDRESS.format(region=region or REGION)
        try:
            self._origin, self._path = parse_base_url(base_url)
        except ConfigError as error:
            raise ConfigError(error.message, param="base_url") from error
        host = f"[{self._origin.host}]" if ":" in self._origin.host else self._origin.host
        if self._origin.port != _DEFAULT_PORTS[self._origin.scheme]:
            host += f":{self._origin.port}"
        self._host = host.encode("ascii")
        self._headers = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        self._replaced = frozenset({b"accept", b"content-type"}) | _ANTHROPIC
        self._signer: Signer | None = None
        if "access_key_id" in table or "secret_access_key" in table:
            self._secret = table.get("secret_access_key", "")
            self._signer = _signer(table, region or _region_in(self._origin.host))
        elif config.api_key is not None:
            self._secret = _text("api_key", config.api_key.reveal())
            self._headers.append((b"authorization", b"Bearer " + self._secret.encode("ascii")))
        else:
            raise ConfigError(
                "is missing: set it to an API key of Bedrock (its usual variable is AWS_BEARER_TOKEN_BEDROCK), "
                "or set access_key_id and secret_access_key",
                param="api_key",
            )

    def serves(self, dialect: Dialect, model: str) -> bool:
        return dialect not in _MESSAGES or serves_messages(model)

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        model = offer.upstream_model
        if call.dialect is Dialect.OPENAI_EMBEDDINGS:
            verb, (body, dropped) = b"/invoke", write_embed_request(call, model)
        elif call.dialect is Dialect.ANTHROPIC_MESSAGES:
            verb = b"/invoke-with-response-stream" if call.peek.stream else b"/invoke"
            body, dropped = write_invoke(call, self._betas)
        elif call.dialect is Dialect.ANTHROPIC_COUNT_TOKENS:
            verb, (body, dropped) = b"/count-tokens", write_count(call, self._betas)
            model = foundation_of(model)
        else:
            verb = b"/converse-stream" if call.peek.stream else b"/converse"
            body, dropped = write_request(call, model)
        target = self._path + b"/model/" + quote(model, safe="").encode("ascii") + verb
        headers = request_headers(call.headers, own=self._headers, drop=self._replaced)
        if self._signer is not None:
            headers += self._signer.sign(
                method=b"POST",
                host=self._host,
                path=target,
                headers=self._headers[:1],
                body=body,
                now_s=self._now_s(),
            )
        return UpstreamRequest(
            method=b"POST", origin=self._origin, target=target, headers=headers, body=body, dropped=dropped
        )

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        if call.dialect is Dialect.OPENAI_EMBEDDINGS:
            return embed_tap(call, head)
        streamed = (head.header(b"content-type") or b"").startswith(_STREAM_TYPE)
        if call.dialect is Dialect.ANTHROPIC_COUNT_TOKENS:
            return CountedTap(call, head)
        if call.dialect is Dialect.ANTHROPIC_MESSAGES:
            return InvokeTap(secret=self._secret) if streamed else JSONTap(call.dialect)
        answer_id = (head.header(b"x-amzn-requestid") or b"").decode("latin-1")
        if streamed:
            return ConverseTap(call, head, answer_id=answer_id, secret=self._secret)
        return WholeTap(call, head, read_answer, answer_id=answer_id)

    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        kind = (head.header(b"x-amzn-errortype") or b"").decode("latin-1").partition(":")[0]
        failure = failures.classify(head, body, secret=self._secret, codes=(kind,) if kind else ())
        return msgspec.structs.replace(failure, code=UNCOUNTED) if is_uncounted(body) else failure


def _text(key: str, value: object) -> str:
    """A setting that is text and fit for a header."""
    if key not in (*_KEYS, "api_key"):
        raise ConfigError(f'there is no key "{key}"{suggestion(key, _KEYS)}', param=key)
    if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError("must be printable ASCII on one line", param=key)
    return value


def _betas(value: object) -> frozenset[str]:
    """The betas that may be announced."""
    if value is None:
        return BETAS
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ConfigError("must be a list of names", param="betas")
    return frozenset(value)


def _signer(table: dict[str, str], region: str) -> Signer:
    for key in ("access_key_id", "secret_access_key"):
        if key not in table:
            raise ConfigError("is missing: the other half of the access key is there", param=key)
    if not region:
        raise ConfigError(
            "is missing: this base_url does not tell it, and it is part of the signature", param="region"
        )
    return Signer(
        access_key_id=table["access_key_id"],
        secret_access_key=table["secret_access_key"],
        session_token=table.get("session_token", ""),
        region=region,
        service=SERVICE,
    )


def _region_in(host: str) -> str:
    found = _IN_HOST.search(host)
    return found[1] if found else ""


_: type[Adapter] = Bedrock
_translator: Translator = Bedrock()
_known: type[Known] = Bedrock
_selective: type[Selective] = Bedrock
