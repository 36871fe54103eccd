"""The provider's answer to the caller, untouched: one attempt, from the request written to the last byte passed on.

Rules:
- The status is not committed before the provider's is known.
- Body bytes go from the provider's socket to the caller's inside one read (`_Pipe.data`); this stage only awaits
  the end. A caller who reads slowly pauses the provider's socket; one who leaves closes it.
- An error answer is the caller's business and goes back byte for byte, unless it is about the gateway's own credential
  or is no JSON: then the caller gets our error instead.
- An answer that broke off never looks finished: this stage raises, and `rescue` ends the stream with an error event.
"""

import asyncio
from typing import Final, Protocol

from gateway.api import Adapter, ResponseHead, Tap
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
from gateway.upstream.response import UpstreamResponse
from gateway.wire.encoding import Inflater, inflater
from gateway.wire.headers import response_headers

#: An error answer larger than this is cut down to an error of ours.
ERROR_BYTES_MAX: Final = 1024 * 1024

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
    downstream = open_downstream(x.scope, x.receive, x.send, on_gone=task.cancel, tasks=deps.tasks)
    x.downstream = downstream
    response: UpstreamResponse | None = None
    outcome = "caller_gone"
    clock = asyncio.get_running_loop().time
    sent_s = clock()
    try:
        response = await deps.client.send(request, timeouts=provider.timeouts)
        if response.head.status < 300:
            await _relay_success(x, response, downstream, provider.adapter)
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
        if response is not None:
            response.close()
        x.attempts.append((provider.name, outcome))
        x.upstream_s = (x.upstream_s or 0.0) + clock() - sent_s
        deps.telemetry.count_attempt(provider.name, outcome)


async def _relay_success(x: Exchange, response: UpstreamResponse, downstream: Downstream, adapter: Adapter) -> None:
    assert x.call is not None
    head = response.head
    tap = x.tap = adapter.tap(x.call, head)
    coding = head.header(b"content-encoding")
    inflate = None if coding is None or coding == b"identity" else inflater(coding)
    content_type = head.header(b"content-type") or b""
    x.streaming = content_type.startswith(b"text/event-stream")
    chunked = _begin(x, head, downstream, rewritten=tap.rewrites or inflate is not None)

    pipe = _Pipe(x, response, downstream, tap, inflate)
    downstream.feed_from(response)
    response.pipe(pipe)
    if pipe.open:
        await pipe.ended
    if pipe.error is not None:
        raise pipe.error
    if x.streaming and chunked and not tap.complete:
        raise UpstreamDisconnected("The provider's stream ended before its answer was complete.")
    downstream.end()
    await downstream.flushed()


def _begin(x: Exchange, head: ResponseHead, downstream: Downstream, *, rewritten: bool) -> bool:
    """Commit: send the response head. True if the body goes out in chunks."""
    assert x.offer is not None
    headers = response_headers(head.headers, keep_length=not (rewritten or x.streaming))
    bodiless = head.status in _BODILESS or x.scope["method"] == "HEAD"
    chunked = not bodiless and all(name != b"content-length" for name, _ in headers)
    if rewritten:
        headers = [header for header in headers if header[0] != b"content-encoding"]
    if all(name != b"x-request-id" for name, _ in headers):
        headers.append((b"x-request-id", x.id.encode("ascii")))
    if x.streaming:
        present = {name for name, _ in headers}
        headers += [header for header in _STREAM_HEADERS if header[0] not in present]
    headers += x.reply_headers
    headers.append((b"x-gateway-provider", x.offer.provider.encode("latin-1", "replace")))
    headers.append((b"x-gateway-attempts", b"%d" % (len(x.attempts) + 1)))
    x.status = head.status
    x.committed = True
    downstream.start(head.status, headers, chunked=chunked)
    return chunked


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
    if coding is not None and coding != b"identity":
        undo = inflater(coding)
        body = undo.feed(body) + undo.end()
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


class _Feed(Protocol):
    def __call__(self, data: bytes) -> bytes: ...


class _Pipe:
    """Between the two sockets: called by the provider's connection for every read of the body."""

    __slots__ = ("_downstream", "_feed", "_inflate", "_response", "_tap", "_write", "_x", "ended", "error", "open")

    def __init__(
        self, x: Exchange, response: UpstreamResponse, downstream: Downstream, tap: Tap, inflate: Inflater | None
    ) -> None:
        self.open = True
        self.error: UpstreamError | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._x = x
        self._response = response
        self._downstream = downstream
        self._tap = tap
        self._inflate = inflate
        self._feed: _Feed = tap.feed
        self._write = downstream.write

    def data(self, chunk: bytes) -> None:
        if self._inflate is not None:
            try:
                chunk = self._inflate.feed(chunk)
            except UpstreamMalformed as error:
                self._response.close()
                self.fail(error)
                return
        out = self._feed(chunk)
        if out:
            x = self._x
            if x.first_byte_s is None:
                x.first_byte_s = self.ended.get_loop().time()
            x.bytes_out += len(out)
            self._write(out)

    def end(self) -> None:
        if self._inflate is not None and (rest := self._inflate.end()):
            self._x.bytes_out += len(rest)
            self._write(self._feed(rest))
        if out := self._tap.end():
            self._x.bytes_out += len(out)
            self._write(out)
        self._finish()

    def fail(self, error: UpstreamError) -> None:
        self.error = error
        self._finish()

    def _finish(self) -> None:
        self.open = False
        if not self.ended.done():
            self.ended.set_result(None)
