"""Google's Gemini API, with a key of AI Studio's: relayed to callers who speak it, translated for those of OpenAI.

Rules:
- The model is the one that routing decided on: it stands in the path, and where a body names one too, it is made to
  say the same. Nothing else of a native request is changed.
- A caller's `?key=` is the gateway's own key and stays here.
- A translated request is made anew, and carries none of its caller's headers but who is calling.
"""

import urllib.parse
from collections.abc import Iterable
from functools import lru_cache
from typing import ClassVar, Final

import msgspec

from gateway.api import (
    API_VERSION,
    Adapter,
    BadRequest,
    Call,
    ConfigError,
    Dialect,
    Failure,
    GeminiJSONTap,
    GeminiSSETap,
    Headers,
    KnownProvider,
    Offer,
    ProviderConfig,
    ResponseHead,
    Secret,
    Tap,
    Translator,
    UpstreamRequest,
    parse_base_url,
    request_headers,
    rewrite,
)
from gateway_adapters.google.answers import GoogleStreamTap, GoogleWholeTap
from gateway_adapters.google.chat import generate_request
from gateway_adapters.google.embeddings import batch_request, embed_tap
from gateway_adapters.google.failures import classify
from gateway_adapters.google.signatures import Signatures
from gateway_adapters.rows import suggestion

BASE_URL: Final = "https://generativelanguage.googleapis.com/v1beta"
_KEY_HEADER: Final = b"x-goog-api-key"
#: Whatever the caller sends of these, the adapter's own replace it.
_OWN: Final = frozenset({b"accept-encoding", b"authorization", _KEY_HEADER})
_PRIVATE_PARAMETERS: Final = frozenset({b"key", b"api_key", b"access_token"})
_NOWHERE: Final = frozenset({"", ".", ".."})
#: Model names whose paths are remembered.
_PATHS_MAX: Final = 4096

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_encode = msgspec.json.Encoder().encode


class Google:
    """The Gemini API."""

    ID: ClassVar[str] = "google"
    API: ClassVar[int] = API_VERSION
    dialects = frozenset({Dialect.GEMINI_GENERATE, Dialect.GEMINI_COUNT_TOKENS, Dialect.GEMINI_EMBED})
    translates = frozenset({Dialect.OPENAI_CHAT, Dialect.OPENAI_EMBEDDINGS})
    extensions = frozenset({"reasoning_details"})

    @classmethod
    def known(cls) -> Iterable[KnownProvider]:
        return [
            KnownProvider(
                name="gemini",
                title="Google Gemini",
                adapter=cls.ID,
                variable="GEMINI_API_KEY",
                other_variables=("GOOGLE_API_KEY",),
                base_url=BASE_URL,
            )
        ]

    @classmethod
    def own(cls, config: ProviderConfig, key: Secret) -> ProviderConfig:
        return msgspec.structs.replace(config, api_key=key)

    def configure(self, config: ProviderConfig) -> None:
        refuse_unknown(config.extra, ())
        if config.api_key is None:
            raise ConfigError("is missing; its usual variable is GEMINI_API_KEY", param="api_key")
        self.reach(config.base_url or BASE_URL)
        self.use_key(config.api_key.reveal())

    def reach(self, base_url: str) -> None:
        """Set where the models are: what stands before `/models`."""
        try:
            self._origin, self._path = parse_base_url(base_url)
        except ConfigError as error:
            raise ConfigError(error.message, param="base_url") from error
        self._signatures = Signatures()

    def use_key(self, secret: str) -> None:
        if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ConfigError("is not printable ASCII on one line", param="api_key")
        self._secret = secret
        self._headers: Headers = [(b"accept-encoding", b"identity"), (_KEY_HEADER, secret.encode("ascii"))]

    def prepare(self, call: Call, offer: Offer) -> UpstreamRequest:
        resource = self.resource(offer.upstream_model)
        if call.dialect is Dialect.OPENAI_CHAT:
            verb = b":streamGenerateContent?alt=sse" if call.peek.stream else b":generateContent"
            body, dropped = generate_request(call, offer.upstream_model, self._signatures)
            return self._made(call, resource, verb, body, dropped)
        if call.dialect is Dialect.OPENAI_EMBEDDINGS:
            verb, body, dropped = self.embed(call, resource)
            return self._made(call, resource, verb, body, dropped)
        verb = b":" + call.path.rpartition(b":")[2]
        target = self._path + b"/" + quoted(resource) + verb
        if call.query and (query := _public(call.query)):
            target += b"?" + query
        return UpstreamRequest(
            method=call.method.encode("ascii"),
            origin=self._origin,
            target=target,
            headers=request_headers(call.headers, own=self._headers, drop=_OWN),
            body=_renamed(call, resource, verb),
        )

    def listing(self, page: str) -> UpstreamRequest | None:
        query = b"?pageSize=1000" + (b"&pageToken=" + urllib.parse.quote(page, safe="").encode() if page else b"")
        return UpstreamRequest(
            method=b"GET",
            origin=self._origin,
            target=self._path + b"/models" + query,
            headers=[*self._headers],
            body=b"",
        )

    def resource(self, model: str) -> str:
        """The model as the API names it."""
        return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"

    def embed(self, call: Call, resource: str) -> tuple[bytes, bytes, tuple[str, ...]]:
        """Verb, body and what was dropped, for embeddings."""
        body, dropped = batch_request(call, resource)
        return b":batchEmbedContents", body, dropped

    def _made(self, call: Call, resource: str, verb: bytes, body: bytes, dropped: tuple[str, ...]) -> UpstreamRequest:
        headers: Headers = [(b"content-type", b"application/json")]
        headers += [header for header in call.headers if header[0] == b"user-agent"]
        return UpstreamRequest(
            method=b"POST",
            origin=self._origin,
            target=self._path + b"/" + quoted(resource) + verb,
            headers=headers + self._headers,
            body=body,
            dropped=dropped,
        )

    def tap(self, call: Call, head: ResponseHead) -> Tap:
        media_type = (head.header(b"content-type") or b"").partition(b";")[0].strip().lower()
        streamed = media_type == b"text/event-stream"
        if call.dialect is Dialect.OPENAI_CHAT:
            kind = GoogleStreamTap if streamed else GoogleWholeTap
            return kind(call, head, self._signatures, secret=self._secret)
        if call.dialect is Dialect.OPENAI_EMBEDDINGS:
            return embed_tap(call, head)
        return GeminiSSETap() if streamed else GeminiJSONTap(call.dialect)

    def classify(self, head: ResponseHead, body: bytes) -> Failure:
        return classify(head, body, secret=self._secret)


def refuse_unknown(table: Iterable[str], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f'there is no key "{key}"{suggestion(key, known)}', param=key)


@lru_cache(maxsize=_PATHS_MAX)
def quoted(resource: str) -> bytes:
    """A resource's name as it stands in a path, which it can't lead out of.

    Raises:
        BadRequest: it would.
    """
    if not _NOWHERE.isdisjoint(resource.split("/")):
        raise BadRequest("The model's name is not one that Google could have.", param="model", code="model_not_found")
    return urllib.parse.quote(resource, safe="/").encode("ascii")


def _public(query: bytes) -> bytes:
    """The query without what may carry a key, everything else as it came."""
    return b"&".join(
        part
        for part in query.split(b"&")
        if urllib.parse.unquote_to_bytes(part.partition(b"=")[0]).lower() not in _PRIVATE_PARAMETERS
    )


def _renamed(call: Call, resource: str, verb: bytes) -> bytes:
    """The body, with this model wherever it names one; the same object where it does not, or names this one."""
    body = call.body
    if b'"model"' not in body:
        return body
    if call.peek.model is not None:
        body = rewrite(body, call.peek, model=resource)
    inner = {b":batchEmbedContents": "requests", b":countTokens": "generateContentRequest"}.get(verb)
    if inner is None:
        return body
    members = _decode_members(body)
    raw = members.get(inner)
    if raw is None:
        return body
    wanted = msgspec.Raw(_encode(resource))
    try:
        named = _decode_list(raw) if verb == b":batchEmbedContents" else [_decode_members(raw)]
    except msgspec.DecodeError:
        # The provider says better what is wrong with it.
        return body
    if all(bytes(one.get("model", wanted)) == bytes(wanted) for one in named):
        return body
    for one in named:
        if "model" in one:
            one["model"] = wanted
    members[inner] = msgspec.Raw(_encode(named if verb == b":batchEmbedContents" else named[0]))
    return _encode(members)


# Fail here, not at the caller, when the shape is wrong.
_: type[Adapter] = Google
_translator: type[Translator] = Google
