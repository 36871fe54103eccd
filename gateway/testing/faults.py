"""What goes wrong between a gateway and a provider, tried on an adapter: each fault is a promise that it has to keep.

    subject = Subject(Hello, config, conversations_of(Hello, config, paths))
    for fault in FAULTS:
        fault.try_on(subject)            # raises FaultFound

Rules:
- No network, no clock, no state outside: the same seed finds the same thing.
- What a conversation is made of comes from the adapter's golden cases, and for dialects that it relays from samples
  of ours. An adapter that translates and has no cases is tried on half of them.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gateway.api import (
    MESSAGE_CHARS_MAX,
    Adapter,
    BadRequest,
    Call,
    ConfigError,
    GatewayError,
    Headers,
    Offer,
    ProviderConfig,
    ResponseHead,
    Tap,
    UpstreamCredentials,
    UpstreamRequest,
    peek,
)
from gateway.testing.cases import Case, Classes, pieces_of
from gateway.testing.held import held_bytes
from gateway.testing.mutants import GARBAGE, errors_of, events_of, mutants_of
from gateway.testing.samples import SAMPLES
from gateway.wire.dialects import GEMINI_DIALECTS
from gateway.wire.gemini import peek_gemini

#: Points at which one answer is cut.
CUTS_MAX: Final = 400
#: How often an event is repeated, and what a watcher may hold more after that: nothing, but for rounding.
REPEATS: Final = 1000
GROWTH_BYTES_MAX: Final = 16 * 1024
#: Of one event without an end, and what a watcher may hold of it.
EVENT_BYTES: Final = 48 * 1024 * 1024
HELD_BYTES_MAX: Final = 40 * 1024 * 1024
MUTANTS: Final = 150
#: What a caller presents, and what must not get past the gateway.
CANARY: Final = "gw_live_canary0123456789"
BLAMES: Final = frozenset({"caller", "policy", "context", "key", "provider"})
#: Written by whoever frames the message.
_FRAMING: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})
_CALLERS: Final = [(name, CANARY.encode()) for name in (b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie")]
_EVENTS: Final = (b"text/event-stream", b"application/vnd.amazon.eventstream")


class FaultFound(AssertionError):
    """An adapter does not keep a promise."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request of a caller's, and a provider's good answer; an empty one where none is known."""

    name: str
    config: ProviderConfig
    call: Call
    offer: Offer
    head: ResponseHead
    body: bytes

    @property
    def streams(self) -> bool:
        return (self.head.header(b"content-type") or b"").startswith(_EVENTS)


@dataclass(frozen=True, slots=True)
class Subject:
    """An adapter under test, with a configuration that it takes."""

    adapter: type[Adapter]
    config: ProviderConfig
    conversations: Sequence[Conversation] = ()
    seed: int = 1

    def make(self, config: ProviderConfig | None = None) -> Adapter:
        adapter = self.adapter()
        adapter.configure(config or self.config)
        return adapter

    @property
    def answers(self) -> list[Conversation]:
        return [each for each in self.conversations if each.body]


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them. `promise` is what holds where `try_on` raises nothing."""

    name: str
    promise: str
    try_on: Callable[[Subject], None]


def conversations_of(
    adapter: type[Adapter], config: ProviderConfig, paths: Iterable[Path] = (), *, adapters: Classes | None = None
) -> list[Conversation]:
    """From samples for the dialects that it relays, and from cases."""
    made = adapter()
    made.configure(config)
    found = []
    for sample in SAMPLES:
        native = sample.dialect in made.dialects
        if not native and sample.dialect not in getattr(made, "translates", ()):
            continue
        look = peek_gemini(sample.request, stream=True) if sample.dialect in GEMINI_DIALECTS else peek(sample.request)
        call = Call(
            id="sample",
            dialect=sample.dialect,
            method="POST",
            path=sample.path,
            query=b"",
            headers=_with_canaries([(b"content-type", b"application/json")]),
            body=sample.request,
            peek=look,
            model="m",
        )
        head = ResponseHead(200, [(b"content-type", sample.kind)])
        kind = sample.kind.decode().rpartition("/")[2]
        offer = Offer(model="m", provider="sample", upstream_model="m-1")
        answer = sample.answer if native else b""
        found.append(Conversation(f"{sample.dialect} ({kind})", config, call, offer, head, answer))
    for path in paths:
        case = Case(path, adapters=adapters)
        if case.adapter_class is adapter and case.bridge is None and not case.refused and case.call.upload is None:
            call = msgspec.structs.replace(case.call, headers=_with_canaries(case.call.headers))
            body = case.body if case.head.status < 300 and not case.cut else b""
            found.append(Conversation(path.stem, case.config, call, case.offer, case.head, body))
    return found


def _with_canaries(headers: Headers) -> Headers:
    kept = [header for header in headers if header[0] not in dict(_CALLERS) and header[0] != b"authorization"]
    return [*kept, (b"authorization", b"Bearer " + CANARY.encode()), *_CALLERS]


# -- the request -----------------------------------------------------------------------------------------------


def _manners(subject: Subject) -> None:
    for each in subject.conversations:
        request = _prepared(subject, each)
        if request is None:
            continue
        for name, value in request.headers:
            if name != name.lower() or not name or any(byte <= 0x20 or byte == 0x3A for byte in name):
                raise FaultFound(f"{each.name}: {name!r} is no header name in lower case")
            if name in _FRAMING:
                raise FaultFound(f"{each.name}: {name!r} is written by the gateway's own client")
            if b"\r" in value or b"\n" in value:
                raise FaultFound(f"{each.name}: {name!r} has a line break in it")
        if not request.target.startswith(b"/") or any(byte <= 0x20 or byte >= 0x7F for byte in request.target):
            raise FaultFound(f"{each.name}: {request.target!r} is no request target")


def _credentials(subject: Subject) -> None:
    for each in subject.conversations:
        request = _prepared(subject, each)
        if request is None:
            continue
        body = request.body if isinstance(request.body, bytes) else b""
        sent = {"its target": request.target, "its body": body}
        sent |= {name.decode("latin-1"): value for name, value in request.headers}
        for where, text in sent.items():
            if CANARY.encode() in text:
                raise FaultFound(f"{each.name}: the caller's credential is sent on, in {where}")
        secret = _secret(each.config)
        places = [where for where, text in sent.items() if secret and secret.encode() in text]
        if len(places) > 1 or {*places} & {"its target", "its body"}:
            raise FaultFound(f"{each.name}: the provider's key is in {' and '.join(places)}; one header is its place")


def _pure(subject: Subject) -> None:
    for each in subject.conversations:
        headers = [*each.call.headers]
        adapter = subject.make(each.config)
        first, second = _prepared(subject, each, adapter), _prepared(subject, each, adapter)
        if headers != each.call.headers:
            raise FaultFound(f"{each.name}: prepare changed the caller's headers")
        if first is not None and second is not None and (first.body, first.target) != (second.body, second.target):
            raise FaultFound(f"{each.name}: the same call is prepared in two ways")


# -- the answer ------------------------------------------------------------------------------------------------


def _cut(subject: Subject) -> None:
    for each in subject.answers:
        whole = _play(subject, each, [each.body], end=False)
        step = max(1, len(each.body) // CUTS_MAX)
        was_complete = False
        first = len(events_of(each.head, each.body)[0].rstrip())
        for at in range(0, len(each.body), step):
            tap = _watch(subject, each)
            out = _feed(each, tap, [each.body[:at]])
            _read(each, tap)
            if not whole.startswith(out):
                raise FaultFound(f"{each.name}: cut at byte {at}, what was sent is no beginning of the whole")
            if tap.complete and not each.streams and at < len(each.body.rstrip()):
                raise FaultFound(f"{each.name}: complete at byte {at} of {len(each.body)}")
            if was_complete and not tap.complete:
                raise FaultFound(f"{each.name}: complete before byte {at}, and no more at it")
            was_complete = tap.complete
            if tap.complete and at < first:
                raise FaultFound(f"{each.name}: complete at byte {at}, before its first event has ended")


def _garbled(subject: Subject) -> None:
    chance = random.Random(subject.seed)
    for each in subject.answers:
        for name, garbage in GARBAGE:
            for pieces in ([garbage], pieces_of(garbage, chance), [each.body[: len(each.body) // 2], garbage]):
                tap = _watch(subject, each)
                try:
                    _feed(each, tap, pieces)
                    tap.end()
                    _read(each, tap)
                except FaultFound as found:
                    raise FaultFound(f"{found}, on {name}") from found
        for mutant in mutants_of(each.head, each.body, chance, MUTANTS):
            tap = _watch(subject, each)
            try:
                _feed(each, tap, [mutant])
                tap.end()
                _read(each, tap)
            except FaultFound as found:
                raise FaultFound(f"{found}, on {mutant[:400]!r}") from found
            except Exception as error:
                raise FaultFound(f"{each.name}: end raised {_told(error)}, on {mutant[:400]!r}") from error


def _oversized(subject: Subject) -> None:
    chunk = b"x" * (1024 * 1024)
    for each in _distinct(subject.answers, streams=True):
        tap = _watch(subject, each)
        before = held_bytes(tap)
        _feed(each, tap, [b'data: {"choices":[{"index":0,"delta":{"content":"'])
        for _ in range(EVENT_BYTES // len(chunk)):
            _feed(each, tap, [chunk])
        _read(each, tap)
        if (held := held_bytes(tap) - before) > HELD_BYTES_MAX:
            raise FaultFound(f"{each.name}: {held} bytes are held of an event that does not end")


def _long(subject: Subject) -> None:
    for each in subject.answers:
        if not each.streams:
            continue
        events = events_of(each.head, each.body)
        for number in range(1, len(events) - 1):
            tap = _watch(subject, each)
            _feed(each, tap, [*events[:number], *[events[number]] * 50])
            before = held_bytes(tap)
            _feed(each, tap, [events[number]] * REPEATS)
            if tap.failure is None and (growth := held_bytes(tap) - before) > GROWTH_BYTES_MAX:
                raise FaultFound(
                    f"{each.name}: {growth} bytes more are held after {REPEATS} times {events[number][:200]!r}"
                )


def _apart(subject: Subject) -> None:
    for each in subject.answers:
        adapter = subject.make(each.config)
        whole = _play(subject, each, [each.body], end=True)
        one, other = adapter.tap(each.call, each.head), adapter.tap(each.call, each.head)
        outs = [b"", b""]
        for piece in pieces_of(each.body, random.Random(subject.seed)):
            for number, tap in enumerate((one, other)):
                outs[number] += _feed(each, tap, [piece])
        if [outs[0] + one.end(), outs[1] + other.end()] != [whole, whole]:
            raise FaultFound(f"{each.name}: two answers at a time are mixed up")


def _odd_heads(subject: Subject) -> None:
    kinds: list[Headers] = [[], *([(b"content-type", kind)] for kind in (b"", b"text/html", b"\xff", b"a/b;c=d"))]
    for each in subject.conversations:
        for headers in kinds:
            for status in (200, 201, 202, 204):
                tap = _watch(subject, each, ResponseHead(status, headers))
                _feed(each, tap, [b""])
                try:
                    tap.end()
                except Exception as error:
                    raise FaultFound(f"{each.name}: an empty answer raised {_told(error)}") from error
                _read(each, tap)


# -- errors ----------------------------------------------------------------------------------------------------


def _errors(subject: Subject) -> None:
    adapter = subject.make()
    secret = _secret(subject.config) or CANARY
    for status, headers, body in errors_of(secret):
        head = ResponseHead(status, headers)
        where = f"status {status}, {headers}, {body[:80]!r}"
        try:
            failure = adapter.classify(head, body)
        except Exception as error:
            raise FaultFound(f"classify raised {_told(error)}, on {where}") from error
        if failure.blame not in BLAMES:
            raise FaultFound(f"{failure.blame!r} is nobody to blame, on {where}")
        if len(failure.message) > MESSAGE_CHARS_MAX:
            raise FaultFound(f"a message of {len(failure.message)} characters, on {where}")
        wait_s = failure.retry_after_s
        if wait_s is not None and not (math.isfinite(wait_s) and wait_s >= 0):
            raise FaultFound(f"{wait_s} is no number of seconds to wait, on {where}")
        if _secret(subject.config) and secret in repr(failure):
            raise FaultFound(f"the provider's key is in the Failure, on {where}")


def _verdicts(subject: Subject) -> None:
    adapter = subject.make()
    wanted = {401: {"key"}, 429: {"provider", "key"}, 500: {"provider"}, 502: {"provider"}, 503: {"provider"}}
    for status, blames in wanted.items():
        for body in (b"", b"<html>no</html>", b"{}"):
            blame = adapter.classify(ResponseHead(status, [(b"content-type", b"text/html")]), body).blame
            if blame not in blames:
                raise FaultFound(f"status {status} with {body!r} is blamed on {blame}, not {' or '.join(blames)}")


# -- the table -------------------------------------------------------------------------------------------------


def _unknown_keys(subject: Subject) -> None:
    config = msgspec.structs.replace(subject.config, extra={**subject.config.extra, "no_such_key": 1})
    try:
        subject.make(config)
    except ConfigError as error:
        secret = _secret(subject.config)
        if secret and secret in f"{error.message} {error.detail}":
            raise FaultFound("the provider's key is in the refusal of a table") from None
        if error.param != "no_such_key":
            raise FaultFound(f"a key that it does not know is refused as param {error.param!r}") from None
        return
    raise FaultFound("a key that it does not know is taken in silence: a misspelt setting would be lost")


def _secrets(subject: Subject) -> None:
    secret = _secret(subject.config)
    adapter = subject.make()
    if secret and secret in f"{adapter!r} {adapter}":
        raise FaultFound("the provider's key is in its repr")


FAULTS: Final = (
    Fault("manners", "headers and target are fit for the wire, and frame nothing", _manners),
    Fault("credentials", "the caller's stay behind; the provider's is in one header", _credentials),
    Fault("purity", "the same call is prepared alike, and not changed", _pure),
    Fault("cut", "an answer may break off at any byte: what was sent is its beginning", _cut),
    Fault("garbage", "nothing a provider sends raises", _garbled),
    Fault("oversized", "an event that does not end is not collected without bound", _oversized),
    Fault("long streams", "what is held does not grow with the length of a stream", _long),
    Fault("side by side", "two answers at a time have nothing in common", _apart),
    Fault("odd heads", "any content-type and an empty body will do", _odd_heads),
    Fault("errors", "any status with any body is somebody's fault, and tells no key", _errors),
    Fault("verdicts", "401 is the key's fault, 429 and 5xx are not the caller's", _verdicts),
    Fault("unknown keys", "a key of the table that it does not know is refused", _unknown_keys),
    Fault("secrets", "its repr tells no key", _secrets),
)


# -- with every exception told ---------------------------------------------------------------------------------


def _prepared(subject: Subject, each: Conversation, adapter: Adapter | None = None) -> UpstreamRequest | None:
    """The request; None where it is refused as it may be."""
    try:
        return (adapter or subject.make(each.config)).prepare(each.call, each.offer)
    except (BadRequest, UpstreamCredentials):
        return None
    except Exception as error:
        raise FaultFound(f"{each.name}: prepare raised {_told(error)}") from error


def _watch(subject: Subject, each: Conversation, head: ResponseHead | None = None) -> Tap:
    try:
        return subject.make(each.config).tap(each.call, head or each.head)
    except Exception as error:
        raise FaultFound(f"{each.name}: tap raised {_told(error)}") from error


def _feed(each: Conversation, tap: Tap, pieces: Iterable[bytes]) -> bytes:
    try:
        return b"".join([tap.feed(piece) for piece in pieces])
    except Exception as error:
        raise FaultFound(f"{each.name}: feed raised {_told(error)}") from error


def _read(each: Conversation, tap: Tap) -> None:
    """Everything that is asked of a watcher, at any time."""
    try:
        tap.usage()
        tap.delivered()
        _ = (tap.complete, tap.errored, tap.failure, tap.mid_event, tap.rewrites, tap.content_type)
    except Exception as error:
        raise FaultFound(f"{each.name}: asking the watcher raised {_told(error)}") from error


def _play(subject: Subject, each: Conversation, pieces: Iterable[bytes], *, end: bool) -> bytes:
    tap = _watch(subject, each)
    out = _feed(each, tap, pieces)
    return out + tap.end() if end else out


def _distinct(conversations: Iterable[Conversation], *, streams: bool) -> Iterator[Conversation]:
    """One of each dialect and kind: for what takes long."""
    seen = set()
    for each in conversations:
        key = (each.call.dialect, each.head.header(b"content-type"), each.call.peek.include_usage)
        if each.streams is streams and key not in seen:
            seen.add(key)
            yield each


def _secret(config: ProviderConfig) -> str:
    return "" if config.api_key is None else config.api_key.reveal()


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error.message if isinstance(error, GatewayError) else error}"
