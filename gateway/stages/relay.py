"""The provider's answer to the caller, untouched: one attempt, from the request written to the last byte passed on.

Rules:
- The status is not committed before the provider's is known.
- Body bytes go from the provider's socket to the caller's inside one read (`_Pipe.data`); this stage only awaits
  the end. A caller who reads slowly pauses the provider's socket; one who leaves closes it.
- An answer that is no stream is of no use before its end, so up to `GATHERED_BYTES_MAX` of it wait for that end: it
  then goes out in one write with its head, which can name its cost; and if it breaks off, nothing was committed yet.
- What was delivered is accounted for before its last bytes are written (`x.on_whole`), so that no crash in between
  gives an answer away.
- An error answer is the caller's business and goes back byte for byte, unless it is about the gateway's own
  credential or is no JSON: then the caller gets our error instead.
- An answer that broke off never looks finished: this stage raises, and `rescue` ends the stream with an error event.
"""

import asyncio
from typing import Final

from gateway.api import Adapter, ResponseHead
from gateway.deps import Deps, Handler
from gateway.downstream import Downstream, open_downstream
from gateway.errors import (
    BadRequest,
    CallerGone,
    UpstreamCredentials,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamMalformed,
    UpstreamRedirected,
)
from gateway.exchange import Exchange, Headers
from gateway.infra.clock import Clock
from gateway.kernel.money import format_usd
from gateway.upstream.response import UpstreamResponse
from gateway.wire.encoding import Inflater, response_inflater
from gateway.wire.headers import response_headers

#: An error answer larger than this is cut down to an error of ours.
ERROR_BYTES_MAX: Final = 1024 * 1024

#: What a compressed answer may become, however long it streams.
INFLATED_BYTES_MAX: Final = 1024 * 1024 * 1024

#: How much of an answer that is no stream waits for its end.
GATHERED_BYTES_MAX: Final = 256 * 1024

#: What a caller's proxies must not do to a stream of events.
_STREAM_HEADERS: Final[Headers] = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
_BODILESS: Final = frozenset({204, 304})


async def relay(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Send the request to `x.offer` and its answer to the caller.

    Raises:
        UpstreamError: before the head, or in the middle of the body (`x.committed` tells).
        CallerGone: the caller left; the provider's connection is closed.
    """
    assert x.call is not None
    assert x.offer is not None
    provider = deps.providers[x.offer.provider]
    request = provider.adapter.prepare(x.call, x.offer)

    task = asyncio.current_task()
    assert task is not None
    relaying = True

    def leave() -> None:
        # Later there is nothing to be cut short: what ends a request is not the caller's to cancel.
        if relaying:
            task.cancel()

    downstream = open_downstream(x.scope, x.receive, x.send, on_gone=leave, tasks=deps.tasks)
    x.downstream = downstream
    response: UpstreamResponse | None = None
    outcome = "caller_gone"
    sent_s = deps.clock.monotonic()
    try:
        response = await deps.client.send(request, timeouts=provider.timeouts)
        if response.head.status < 300:
            await _relay_success(x, response, downstream, deps)
            outcome = "ok"
        else:
            outcome = await _relay_failure(x, response, downstream, provider.adapter)
    except UpstreamError as error:
        outcome = error.error_type
        raise
    except asyncio.CancelledError:
        if not downstream.is_gone:
            raise
        # The cancellation was ours, to get here at once.
        task.uncancel()
        raise CallerGone from None
    finally:
        relaying = False
        if response is not None:
            response.close()
        x.attempts.append((provider.name, outcome))
        x.upstream_s = (x.upstream_s or 0.0) + deps.clock.monotonic() - sent_s
        deps.telemetry.count_attempt(provider.name, outcome)


async def _relay_success(x: Exchange, response: UpstreamResponse, downstream: Downstream, deps: Deps) -> None:
    assert x.call is not None
    assert x.offer is not None
    head = response.head
    x.tap = deps.providers[x.offer.provider].adapter.tap(x.call, head)
    # Known before the head goes out, which may be after the charge.
    x.status = head.status
    coding = head.header(b"content-encoding")
    inflate = None if coding is None else response_inflater(coding, size_bytes_max=INFLATED_BYTES_MAX)
    content_type = head.header(b"content-type") or b""
    x.streaming = content_type.startswith(b"text/event-stream")

    pipe = _Pipe(x, response, downstream, inflate, deps.clock)
    downstream.feed_from(response)
    response.pipe(pipe)
    if pipe.open:
        if x.committed:
            downstream.flush()
        pipe.ended = asyncio.get_running_loop().create_future()
        await pipe.ended
    if pipe.error is not None:
        raise pipe.error
    await downstream.flushed()


def _begin(
    x: Exchange,
    head: ResponseHead,
    downstream: Downstream,
    *,
    rewritten: bool,
    cost_nanos: int | None = None,
    length: int | None = None,
) -> None:
    """Commit: send the response head."""
    assert x.offer is not None
    keep = not (rewritten or x.streaming)
    headers = response_headers(head.headers, keep_length=keep, keep_encoding=keep)
    names = {name for name, _ in headers}
    chunked = False
    if b"content-length" not in names and head.status not in _BODILESS:
        if length is None:
            chunked = True
        else:
            headers.append((b"content-length", b"%d" % length))
    if b"x-request-id" not in names:
        headers.append((b"x-request-id", x.id.encode("ascii")))
    if x.streaming:
        headers += [header for header in _STREAM_HEADERS if header[0] not in names]
    headers += x.reply_headers
    headers.append((b"x-gateway-provider", x.offer.provider.encode("latin-1", "replace")))
    headers.append((b"x-gateway-attempts", b"%d" % (len(x.attempts) + 1)))
    if cost_nanos is not None:
        headers.append((b"x-gateway-cost-usd", format_usd(cost_nanos).encode("ascii")))
    x.status = head.status
    x.committed = True
    downstream.start(head.status, headers, chunked=chunked)


async def _relay_failure(x: Exchange, response: UpstreamResponse, downstream: Downstream, adapter: Adapter) -> str:
    """Pass a refusal on, or raise what it means for us."""
    head = response.head
    if head.status < 400:
        if head.status == 304:
            _begin(x, head, downstream, rewritten=False)
            downstream.end()
            await downstream.flushed()
            return "ok"
        raise UpstreamRedirected(detail=f"status {head.status}")
    body = await response.read(ERROR_BYTES_MAX, truncate=True)
    coding = head.header(b"content-encoding")
    if coding is not None and (inflate := response_inflater(coding, size_bytes_max=ERROR_BYTES_MAX)) is not None:
        body = inflate.feed(body)
    failure = adapter.classify(head, body)
    if failure.blame == "key":
        raise UpstreamCredentials(detail=f"status {head.status}: {failure.detail}")
    if not response.complete or not _is_json(head, body):
        raise _wrapped(head.status, failure.detail)
    headers = [header for header in head.headers if header[0] != b"content-length"]
    headers.append((b"content-length", b"%d" % len(body)))
    _begin(x, ResponseHead(head.status, headers), downstream, rewritten=coding is not None)
    if body:
        downstream.write(body)
        x.bytes_out += len(body)
    downstream.end()
    await downstream.flushed()
    return f"status_{head.status}"


def _is_json(head: ResponseHead, body: bytes) -> bool:
    media_type = (head.header(b"content-type") or b"application/json").partition(b";")[0].strip().lower()
    return body.lstrip()[:1] in (b"{", b"[") and (media_type.endswith((b"/json", b"+json")))


def _wrapped(status: int, detail: str) -> UpstreamError | BadRequest:
    """Our error for a refusal whose body no client of this dialect could read; the status stays the provider's."""
    if status < 500:
        refused = BadRequest("The provider refused the request.", code="upstream_refused", detail=detail)
        refused.status = status
        return refused
    broken = UpstreamMalformed("The provider answered with an error that is not JSON.", detail=detail)
    broken.status = status
    return broken


class _Pipe:
    """Between the two sockets: called by the provider's connection for every read of the body."""

    __slots__ = (
        "_clock",
        "_downstream",
        "_feed",
        "_final",
        "_gathered",
        "_gathered_bytes",
        "_inflate",
        "_response",
        "_tap",
        "_write",
        "_x",
        "ended",
        "error",
        "open",
    )

    def __init__(
        self, x: Exchange, response: UpstreamResponse, downstream: Downstream, inflate: Inflater | None, clock: Clock
    ) -> None:
        assert x.tap is not None
        self.open = True
        self.error: UpstreamError | None = None
        #: For whoever waits, if the end is not here yet.
        self.ended: asyncio.Future[None] | None = None
        self._x = x
        self._response = response
        self._downstream = downstream
        self._inflate = inflate
        self._clock = clock
        self._tap = x.tap
        # Bound once: each chunk calls them.
        self._feed = x.tap.feed
        self._write = downstream.write
        #: What waits for the end; None once the head is out.
        self._gathered: list[bytes] | None = []
        self._gathered_bytes = 0
        #: Bytes that leave with the end.
        self._final = b""
        if x.streaming:
            self._gathered = None
            self._begin()

    def data(self, chunk: bytes) -> None:
        if self._inflate is not None:
            try:
                chunk = self._inflate.feed(chunk)
            except UpstreamMalformed as error:
                self._response.close()
                self.fail(error)
                return
        out = self._feed(chunk)
        if not out:
            return
        x = self._x
        if x.first_byte_s is None:
            x.first_byte_s = self._clock.monotonic()
        if self._gathered is None:
            x.bytes_out += len(out)
            if self._response.last:
                # `end` follows at once: what both write leaves together.
                self._final = out
            else:
                self._write(out)
            return
        self._gathered.append(out)
        self._gathered_bytes += len(out)
        if self._gathered_bytes > GATHERED_BYTES_MAX:
            body = b"".join(self._gathered)
            self._gathered = None
            x.bytes_out += len(body)
            self._begin()
            self._write(body)

    def end(self) -> None:
        if self._inflate is not None:
            try:
                self._inflate.end()
            except UpstreamMalformed as error:
                self.fail(error)
                return
        x = self._x
        rest = self._tap.end()
        if x.streaming and not self._tap.complete:
            if rest := self._final + rest:
                x.bytes_out += len(rest) - len(self._final)
                self._write(rest)
            self.fail(UpstreamDisconnected("The provider's stream ended before its answer was complete."))
            return
        cost_nanos = None if x.on_whole is None else x.on_whole()
        if self._gathered is None:
            x.bytes_out += len(rest)
            self._downstream.end(self._final + rest)
        else:
            self._gathered.append(rest)
            body = b"".join(self._gathered)
            x.bytes_out += len(body)
            self._begin(cost_nanos=cost_nanos, length=len(body))
            self._downstream.end(body)
        self._finish()

    def fail(self, error: UpstreamError) -> None:
        self.error = error
        self._finish()

    def _begin(self, *, cost_nanos: int | None = None, length: int | None = None) -> None:
        rewritten = self._tap.rewrites or self._inflate is not None
        _begin(
            self._x,
            self._response.head,
            self._downstream,
            rewritten=rewritten,
            cost_nanos=cost_nanos,
            length=length,
        )

    def _finish(self) -> None:
        self.open = False
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(None)
