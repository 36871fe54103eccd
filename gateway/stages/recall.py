"""An answer that was given before to the same account for exactly the same request. Only where answers are kept.

Rules:
- The same request is the same path and query, the same body but for blanks and the order of members, headers that
  change answers, and the same offers to choose from: a key that may use less does not get what it could not have had.
- Who asks for it (`x-gateway-cache: on`) is answered so whatever the temperature; the operator may have it done for
  all requests that come out the same each time by themselves: at temperature 0, and embeddings.
- `cache-control` is obeyed: `no-store`, `no-cache` (ask anew, and keep that), `max-age`, `only-if-cached`.
- Kept is what arrived whole and good. A stream is given again as a stream, at once.
- Limits were taken as for any request; the charge is a share of what the answer did cost, by setting, and usually
  nothing. The record says `cache: hit`.
- Identical requests at the same time wait for one answer; streams do not, which would begin later than by themselves.
"""

import asyncio
from hashlib import blake2b
from typing import Final

import msgspec

from gateway.deps import Deps, Handler
from gateway.downstream import Downstream, Source, open_downstream
from gateway.errors import NotKept
from gateway.exchange import Call, Exchange, Headers, Offer
from gateway.kernel.answers import Answer
from gateway.kernel.money import format_usd
from gateway.wire.dialects import GEMINI_DIALECTS, Dialect
from gateway.wire.taps import PassTap

#: Whose answers are nothing but their bytes.
_DIALECTS: Final = frozenset(
    {
        Dialect.OPENAI_CHAT,
        Dialect.OPENAI_COMPLETIONS,
        Dialect.OPENAI_RESPONSES,
        Dialect.OPENAI_EMBEDDINGS,
        Dialect.ANTHROPIC_MESSAGES,
        Dialect.GEMINI_GENERATE,
        Dialect.GEMINI_EMBED,
        Dialect.RERANK,
    }
)
#: Whose answers are the same each time by themselves.
_STEADY: Final = frozenset({Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBED, Dialect.RERANK})
#: Headers that ask for another answer, besides those that begin like the next.
_TELLING: Final = frozenset({b"accept", b"accept-encoding"})
_TELLING_PREFIXES: Final = (b"anthropic-", b"openai-", b"x-goog-")
#: Of one request alone.
_OWN: Final = frozenset({b"x-request-id", b"request-id", b"openai-processing-ms", b"retry-after", b"content-length"})
_OWN_PREFIXES: Final = (b"x-gateway-", b"x-ratelimit-", b"anthropic-ratelimit-", b"access-control-")
_AGE_LENGTH_MAX: Final = 9

_decode = msgspec.json.Decoder().decode


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller says about kept answers."""

    #: None: it says nothing.
    asked: bool | None = None
    fresh: bool = False
    only_kept: bool = False
    age_most_s: float | None = None


async def recall(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Answer from memory, or remember the answer.

    Raises:
        NotKept: the caller wants a kept answer or none.
    """
    answers = deps.answers
    assert answers is not None
    wishes = read_wishes(x.scope["headers"])
    key = _key(x, wishes, deps)
    if key is None:
        if wishes.only_kept:
            raise NotKept
        await call_next(x)
        return
    started_s = deps.clock.monotonic()
    if not wishes.fresh:
        while (found := answers.find(key, deps.clock.monotonic(), age_most_s=wishes.age_most_s)) is None:
            if wishes.only_kept:
                raise NotKept
            if (flight := answers.flights.get(key)) is None:
                break
            await asyncio.wait((flight,))
        if found is not None:
            x.upstream_s = deps.clock.monotonic() - started_s
            deps.telemetry.count_cache("hit")
            await _replay(x, found, deps)
            return
    deps.telemetry.count_cache("miss")
    await _remember(x, key, deps, call_next)


def read_wishes(headers: Headers) -> Wishes:
    """What the request's headers say (RFC 9111, section 5.2.1); what is not understood is as good as not said."""
    asked: bool | None = None
    fresh = only_kept = False
    age_most_s: float | None = None
    for name, value in headers:
        if name == b"x-gateway-cache":
            asked = {b"on": True, b"off": False}.get(value.strip().lower(), asked)
        elif name == b"cache-control":
            for directive in value.lower().split(b","):
                word, _, argument = directive.strip().partition(b"=")
                if word == b"no-store":
                    asked = False
                elif word == b"no-cache":
                    fresh = True
                elif word == b"only-if-cached":
                    only_kept = True
                elif word == b"max-age" and argument.isdigit() and len(argument) <= _AGE_LENGTH_MAX:
                    age_most_s = float(argument)
    return Wishes(asked=asked, fresh=fresh, only_kept=only_kept, age_most_s=age_most_s)


def _key(x: Exchange, wishes: Wishes, deps: Deps) -> bytes | None:
    """What names the request; None where its answer is not to be kept."""
    call, principal = x.call, x.principal
    if call is None or principal is None or call.dialect not in _DIALECTS or not call.body:
        return None
    if x.operation is not None or x.pin is not None or x.owned is not None or call.peek.background:
        return None
    if call.dialect is Dialect.OPENAI_RESPONSES and call.peek.store is not False:
        # It makes an object, a new one each time.
        return None
    always = deps.settings.cache.use == "always"
    if wishes.asked is False or not (always or wishes.asked):
        return None
    try:
        asked = _decode(call.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(asked, dict) or not (wishes.asked or call.dialect in _STEADY or _is_cold(asked, call)):
        return None
    digest = blake2b(b"%d" % principal.account_id, digest_size=32)
    parts = [call.dialect.encode(), call.path, call.query, call.model.encode("utf-8", "surrogatepass")]
    parts += [_named(offer) for offer in x.offers]
    parts += [b"%b: %b" % header for header in sorted(call.headers) if _tells(header[0])]
    parts.append(msgspec.json.encode(asked, order="sorted"))
    for part in parts:
        digest.update(b"%d:%b" % (len(part), part))
    return digest.digest()


def _named(offer: Offer) -> bytes:
    """An offer among those to choose from; what was had with an account's own key is not had without it."""
    own = "" if offer.own is None else f" {offer.own.id}"
    return f"{offer.provider} {offer.model}{own}".encode("utf-8", "surrogatepass")


def _is_cold(asked: dict[object, object], call: Call) -> bool:
    """Whether a request asks for the likeliest answer."""
    if call.dialect in GEMINI_DIALECTS:
        settings = asked.get("generationConfig")
        return isinstance(settings, dict) and settings.get("temperature") == 0
    return asked.get("temperature") == 0


def _tells(name: bytes) -> bool:
    return name in _TELLING or name.startswith(_TELLING_PREFIXES)


async def _replay(x: Exchange, found: Answer, deps: Deps) -> None:
    """Give an answer again."""
    now_s = deps.clock.monotonic()
    downstream = x.downstream = open_downstream(x.scope, x.receive, x.send, on_gone=lambda: None, tasks=deps.tasks)
    x.offer = next((offer for offer in x.offers if offer.provider == found.provider), None)
    x.tap = PassTap()
    x.tap.end()
    x.tags = {**x.tags, "cache": "hit"}
    # Rounded up, as every cost is.
    x.fee_nanos = -(-found.cost_nanos * deps.settings.cache.price_permille // 1000)
    x.status, x.streaming, x.committed = found.status, found.streaming, True
    x.first_byte_s = now_s
    x.bytes_out += len(found.body)
    headers = [*found.headers, (b"x-request-id", x.id.encode("ascii")), *x.reply_headers]
    headers.append((b"x-gateway-cache", b"hit"))
    headers.append((b"age", b"%d" % (now_s - found.made_s)))
    headers.append((b"x-gateway-provider", found.provider.encode("latin-1", "replace")))
    headers.append((b"x-gateway-attempts", b"0"))
    if x.on_whole is not None:
        x.on_whole()
    headers.append((b"x-gateway-cost-usd", format_usd(x.fee_nanos).encode("ascii")))
    if not found.streaming:
        headers.append((b"content-length", b"%d" % len(found.body)))
    if x.seen is not None and deps.hooks is not None:
        headers += deps.hooks.head(x, found.status, headers)
    downstream.start(found.status, headers, chunked=found.streaming)
    downstream.end(found.body)
    await downstream.flushed()


async def _remember(x: Exchange, key: bytes, deps: Deps, call_next: Handler) -> None:
    """Have it answered, and keep that; who asks the same meanwhile may wait for it."""
    answers = deps.answers
    assert answers is not None
    assert x.call is not None
    flight: asyncio.Future[None] | None = None
    if not x.call.peek.stream and key not in answers.flights:
        flight = answers.flights[key] = asyncio.get_running_loop().create_future()
    x.recording = recording = Recording(deps.settings.cache.answer_bytes_max)
    x.reply_headers.append((b"x-gateway-cache", b"miss"))
    try:
        await call_next(x)
        tap = x.tap
        if recording.body is not None and x.status == 200 and tap is not None and tap.complete and not tap.errored:
            answer = Answer(
                status=x.status,
                headers=recording.headers,
                body=recording.body,
                streaming=x.streaming,
                provider="" if x.offer is None else x.offer.provider,
                cost_nanos=x.cost_nanos,
                made_s=deps.clock.monotonic(),
            )
            answers.keep(key, answer)
    finally:
        x.recording = None
        if flight is not None:
            del answers.flights[key]
            flight.set_result(None)


class Recording:
    """Notes an answer on its way to the caller, up to a size."""

    def __init__(self, bytes_max: int) -> None:
        #: The whole of it, once it has ended; None where it has not, or is too large.
        self.body: bytes | None = None
        self.headers: Headers = []
        self._bytes_max = bytes_max
        self._pieces: list[bytes] = []
        self._size_bytes = 0

    def of(self, downstream: Downstream) -> Downstream:
        """The way to the caller, listened to."""
        return _Listened(downstream, self)

    def begin(self, headers: Headers) -> None:
        self.body, self._pieces, self._size_bytes = None, [], 0
        self.headers = [pair for pair in headers if pair[0] not in _OWN and not pair[0].startswith(_OWN_PREFIXES)]

    def note(self, data: bytes) -> None:
        self._size_bytes += len(data)
        if self._size_bytes <= self._bytes_max:
            self._pieces.append(data)
        else:
            self._pieces = []

    def end(self) -> None:
        if self._size_bytes <= self._bytes_max:
            self.body = b"".join(self._pieces)
        self._pieces = []


class _Listened:
    """A `Downstream` that tells a recording what goes through it."""

    def __init__(self, downstream: Downstream, recording: Recording) -> None:
        self._downstream = downstream
        self._recording = recording
        self.flush = downstream.flush
        self.abort = downstream.abort
        self.flushed = downstream.flushed

    @property
    def is_gone(self) -> bool:
        return self._downstream.is_gone

    def feed_from(self, source: Source) -> None:
        self._downstream.feed_from(source)

    def start(self, status: int, headers: Headers, *, chunked: bool) -> None:
        self._recording.begin(headers)
        self._downstream.start(status, headers, chunked=chunked)

    def write(self, data: bytes) -> None:
        self._recording.note(data)
        self._downstream.write(data)

    def end(self, data: bytes = b"") -> None:
        self._recording.note(data)
        self._recording.end()
        self._downstream.end(data)
