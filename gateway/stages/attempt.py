"""One try at one offer: the request written, the head of its answer awaited, and an error status made an error.

Where the provider does not speak the caller's dialect, the adapter translates; where the adapter does not know that
dialect either, a bridge makes a chat completion of the call first. How many tokens a request would be is told by
estimate where the provider does not count, and then nobody is asked.

Whatever becomes of it is noted: in `x.attempts`, in the metrics, and in the time spent waiting. What is done about a
failure is `route`'s to decide, and what is done with a good answer is `relay`'s.
"""

from typing import Final

from gateway.api import Adapter, ResponseHead
from gateway.bridges import BRIDGES, COUNTERS
from gateway.deps import Deps, Handler
from gateway.errors import UpstreamError, UpstreamRedirected
from gateway.exchange import Call, Exchange
from gateway.registry import Provider
from gateway.routing.refusal import refusal
from gateway.upstream.response import UpstreamResponse
from gateway.wire.dialects import COUNT_DIALECTS
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
    """
    assert x.call is not None
    assert x.offer is not None
    provider = deps.providers[x.offer.provider]
    adapter = provider.adapters[x.key]
    call = x.call
    native = call.dialect in provider.native
    if not native:
        if call.dialect in COUNT_DIALECTS and call.dialect not in provider.served:
            await _count(x, call)
            return
        call = _translated(x, provider)
    x.spoken = call
    try:
        request = adapter.prepare(call, x.offer)
    except UpstreamError as error:
        # Its credential is not here yet, or no more.
        x.attempts.append((provider.name, error.error_type))
        deps.telemetry.count_attempt(provider.name, error.error_type)
        raise
    if request.dropped:
        x.dropped += request.dropped
    response: UpstreamResponse | None = None
    # Unless something else is known: only a caller who leaves gets past the rest.
    outcome = "caller_gone"
    sent_s = x.sent_s = deps.clock.monotonic()
    try:
        response = x.response = await deps.client.send(request, timeouts=x.timeouts or provider.timeouts)
        status = response.head.status
        if status >= 300 and status != _NOT_MODIFIED:
            raise await _refusal(response, adapter, native=native)
        await call_next(x)
        outcome = "ok"
    except UpstreamError as error:
        outcome = error.error_type
        raise
    finally:
        x.response = None
        if response is not None:
            response.close()
        x.attempts.append((provider.name, outcome))
        x.upstream_s = (x.upstream_s or 0.0) + deps.clock.monotonic() - sent_s
        deps.telemetry.count_attempt(provider.name, outcome)


def _translated(x: Exchange, provider: Provider) -> Call:
    """The call as the adapter gets it, where its provider does not speak the caller's dialect."""
    assert x.call is not None
    x.bridge, x.dropped = None, ()
    if x.call.dialect in provider.served:
        return x.call
    x.bridge = BRIDGES[x.call.dialect]
    opened = x.bridge.open(x.call)
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
        (b"x-request-id", x.id.encode("ascii")),
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
    coding = head.header(b"content-encoding")
    if coding is not None and (inflate := response_inflater(coding, size_bytes_max=ERROR_BYTES_MAX)) is not None:
        body = inflate.feed(body)
    return refusal(adapter, ResponseHead(head.status, head.headers), body, whole=response.complete, native=native)
