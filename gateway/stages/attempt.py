"""One try at one offer: the request written, the head of its answer awaited, and an error status made an error.

Where the provider does not speak the caller's dialect, the adapter translates; where the adapter does not know that
dialect either, a bridge makes a chat completion of the call first. How many tokens a request would be is told by
estimate where the provider does not count, and then nobody is asked.

Whatever becomes of it is noted: in `x.attempts`, in the metrics, and in the time spent waiting. What is done about a
failure is `route`'s to decide, and what is done with a good answer is `relay`'s.
"""

from collections.abc import Awaitable
from typing import Final

from gateway.api import UNCOUNTED, Adapter, ResponseHead, UpstreamRequest
from gateway.bridges import BRIDGES, COUNTERS, without_seals
from gateway.deps import Deps, Handler
from gateway.errors import (
    BadRequest,
    GatewayError,
    OwnKeyRefused,
    UpstreamCredentials,
    UpstreamError,
    UpstreamMalformed,
    UpstreamRedirected,
)
from gateway.exchange import Call, Exchange
from gateway.registry import Provider
from gateway.routing.hedge import Hedge, race
from gateway.routing.refusal import refusal
from gateway.upstream.response import UpstreamResponse
from gateway.wire.dialects import COUNT_DIALECTS, id_headers
from gateway.wire.encoding import response_inflater
from gateway.wire.taps import PassTap

#: An error answer larger than this is cut down to an error of ours.
ERROR_BYTES_MAX: Final = 1024 * 1024
#: Good, and as an answer to a conditional request, what the caller asked for.
_NOT_MODIFIED: Final = 304


async def attempt(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Send the request to `x.offer` with its key, and set `x.response`.

    Raises:
        UpstreamError: it did not answer, or refused, or `relay` found its answer broken.
        BadRequest: this provider can't be told what the call asks for; another may.
    """
    assert x.call is not None
    assert x.offer is not None
    assert x.provider is not None
    counts = x.call.dialect in COUNT_DIALECTS
    if counts and not x.provider.takes(x.call.dialect, x.offer.upstream_model):
        await _count(x, x.call)
        return
    provider, adapter, native, request = _write(x, deps)
    response: UpstreamResponse | None = None
    # Unless something else is known: only a caller who leaves gets past the rest.
    outcome = "caller_gone"
    sent_s = x.sent_s = deps.clock.monotonic()
    try:
        sending = deps.client.send(request, timeouts=x.timeouts or provider.timeouts)
        if x.hedge is None:
            response = x.response = await sending
        else:
            response, written = await _send_hedged(x, x.hedge, sending, deps)
            provider, adapter, native, _ = written or (provider, adapter, native, request)
            x.response = response
        status = response.head.status
        if status >= 300 and status != _NOT_MODIFIED:
            refused = await _refusal(response, adapter, native=native)
            if not counts or refused.code != UNCOUNTED:
                raise refused
            # Not of this model. It is no fault of anybody's.
            await _count(x, x.call)
        else:
            await call_next(x)
        outcome = "ok"
    except UpstreamError as error:
        told = _told(x, error)
        outcome = told.error_type
        if told is not error:
            raise told from None
        raise
    finally:
        x.response = None
        if response is not None:
            response.close()
        x.attempts.append((provider.name, outcome))
        x.upstream_s = (x.upstream_s or 0.0) + deps.clock.monotonic() - sent_s
        deps.telemetry.count_attempt(provider.name, outcome)


def _write(x: Exchange, deps: Deps) -> tuple[Provider, Adapter, bool, UpstreamRequest]:
    """The request to `x.offer` with its key: who is asked, by which adapter, whether it speaks the dialect, what."""
    assert x.call is not None
    assert x.offer is not None
    provider = x.provider
    assert provider is not None
    adapter = provider.adapters[x.key]
    call = x.call
    native = provider.relays(call.dialect, x.offer.upstream_model)
    # What an earlier try left.
    x.bridge, x.dropped = None, ()
    try:
        call = without_seals(call) if native else _translated(x, call, provider, x.offer.upstream_model)
        x.spoken = call
        request = adapter.prepare(call, x.offer)
    except (UpstreamError, BadRequest) as error:
        # Its credential is not here yet, or no more; or it has no words for what is asked.
        told = _told(x, error)
        x.attempts.append((provider.name, told.error_type))
        deps.telemetry.count_attempt(provider.name, told.error_type)
        if told is not error:
            raise told from None
        raise
    if request.dropped:
        x.dropped += request.dropped
    if x.seen is not None:
        assert deps.hooks is not None
        request = deps.hooks.attempt(x, x.offer, request)
    return provider, adapter, native, request


def _told(x: Exchange, error: GatewayError) -> GatewayError:
    """A failure as what it is: of a credential that is not ours."""
    if x.offer is not None and x.offer.own is not None and isinstance(error, UpstreamCredentials):
        return OwnKeyRefused.of(x.offer.provider, error)
    return error


async def _send_hedged(
    x: Exchange, hedge: Hedge, first: Awaitable[UpstreamResponse], deps: Deps
) -> "tuple[UpstreamResponse, tuple[Provider, Adapter, bool, UpstreamRequest] | None]":
    """The better of two answers; and if it is the second one's, what was sent for it, `x` being changed to match."""
    # What the first try set is needed again should it win.
    before = (x.offer, x.provider, x.key, x.timeouts, x.spoken, x.bridge, x.dropped)
    written: tuple[Provider, Adapter, bool, UpstreamRequest] | None = None
    clock, telemetry = deps.clock, deps.telemetry
    started_s = second_s = clock.monotonic()

    def second() -> Awaitable[UpstreamResponse] | None:
        nonlocal written, second_s
        step = hedge.begin()
        if step is None:
            return None
        x.offer, x.key = step.candidate.offer, step.key.number
        x.provider = deps.provider_of(x.offer)
        x.timeouts = x.offer.timeouts
        second_s = clock.monotonic()
        try:
            written = _write(x, deps)
        except (UpstreamError, BadRequest):
            return None
        return deps.client.send(written[3], timeouts=x.timeouts or written[0].timeouts)

    try:
        winner, loser = await race(
            first,
            after_s=hedge.after_s,
            second=second,
            good=lambda response: response.head.status < 400,
            discard=lambda response: response.close(),
            tasks=deps.tasks,
        )
    except BaseException:
        x.offer, x.provider, x.key, x.timeouts, x.spoken, x.bridge, x.dropped = before
        raise
    hedge.won = winner.second
    mine, other = x.offer, before[0]
    if not hedge.won:
        x.offer, x.provider, x.key, x.timeouts, x.spoken, x.bridge, x.dropped = before
        mine, other = other, mine
        written = None
    if loser is not None and other is not None:
        outcome = "outrun" if loser.error is None else loser.error.error_type
        x.attempts.append((other.provider, outcome))
        telemetry.count_attempt(other.provider, outcome)
        telemetry.count_hedge(won=hedge.won)
        hedge.lost = loser.error
    response = winner.take()
    if response.head.status < 400:
        step = hedge.step if hedge.won else hedge.first
        assert step is not None
        hedge.observe(step, clock.monotonic() - (second_s if hedge.won else started_s))
    return response, written


def _translated(x: Exchange, call: Call, provider: Provider, model: str) -> Call:
    """The call as the adapter gets it, where its provider does not speak the caller's dialect."""
    if provider.takes(call.dialect, model):
        return without_seals(call)
    x.bridge = BRIDGES[call.dialect]
    opened = x.bridge.open(call, provider.extensions)
    x.dropped = opened.dropped
    return opened.call


async def _count(x: Exchange, call: Call) -> None:
    """Answer with an estimate."""
    downstream = x.downstream
    assert downstream is not None
    body = COUNTERS[call.dialect](call)
    x.spoken = None
    # Whole, and nothing in it to be charged for.
    x.tap = PassTap()
    x.tap.end()
    x.status = 200
    x.committed = True
    x.bytes_out += len(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *id_headers(call.dialect, x.id),
        *x.reply_headers,
    ]
    downstream.start(200, headers, chunked=False)
    downstream.end(body)
    await downstream.flushed()


async def _refusal(response: UpstreamResponse, adapter: Adapter, *, native: bool) -> UpstreamError:
    """What an answer that is not a good one means."""
    head = response.head
    if head.status < 400:
        return UpstreamRedirected(detail=f"status {head.status}")
    body = await response.read(ERROR_BYTES_MAX, truncate=True)
    whole = response.complete
    coding = head.header(b"content-encoding")
    if coding is not None:
        try:
            inflate = response_inflater(coding, size_bytes_max=ERROR_BYTES_MAX)
            body = body if inflate is None else inflate.feed(body)
        except UpstreamMalformed:
            # Its status and headers say enough: a 429 that nobody can read is one all the same.
            body, whole = b"", False
    return refusal(adapter, ResponseHead(head.status, head.headers), body, whole=whole, native=native)
