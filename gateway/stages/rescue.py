"""The one place where an error becomes bytes, in the caller's dialect.

Before the response has begun: the provider's own refusal byte for byte, where it was one that clients can read; else
the status and the dialect's error object. After it has begun: a stream is ended with
the dialect's own error event, so that no client takes a cut answer for a whole one; anything else is cut off, which
clients see as a broken transfer. A caller who is gone is told nothing; one whose request outlasts the grace time of a
gateway that stops is told that.
"""

import asyncio
import logging
import math
from typing import Final

from gateway.api import Counting
from gateway.deps import Deps, Handler
from gateway.downstream import DIRECT
from gateway.errors import CallerGone, GatewayError, MethodNotAllowed, Overloaded, UpstreamRefused
from gateway.exchange import Exchange, Headers
from gateway.wire.dialects import error_body, error_event, error_status, id_headers
from gateway.wire.headers import response_headers

log = logging.getLogger(__name__)

STOPPING: Final = "This gateway is stopping; try again shortly."


async def rescue(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Let nothing but cancellation past, and not that without a word."""
    cancelled: asyncio.CancelledError | None = None
    try:
        await call_next(x)
    except GatewayError as error:
        x.error = error
        if error.detail is not None:
            log.info("request %s: %s: %s", x.id, error.error_type, error.detail)
    except asyncio.CancelledError as error:
        if DIRECT not in x.scope.get("extensions", {}) or (x.downstream is not None and x.downstream.is_gone):
            # Another server may say in this way that the caller has left.
            x.error = CallerGone()
            if x.downstream is not None:
                x.downstream.abort()
            raise
        # Ours does it to what outlasts the grace time, and then waits a moment for what there is to say.
        cancelled = error
        x.error = Overloaded(STOPPING, retry_after_s=1.0)
    except Exception:  # the border: whatever went wrong in here, the caller gets an answer and the log the reason
        log.exception("request %s failed", x.id)
        x.error = GatewayError()
    if x.error is None:
        return
    if isinstance(x.error, CallerGone):
        x.aborted_by = "caller" if x.committed else ""
        x.status = x.error.status
    elif x.committed:
        x.aborted_by = "provider" if x.error.source == "provider" else "gateway"
        await _break_off(x, x.error)
    elif isinstance(x.error, UpstreamRefused) and x.error.body is not None:
        await _pass_on(x, x.error, x.error.body)
    else:
        await answer_error(x, x.error)
    if cancelled is not None:
        raise cancelled


async def answer_error(x: Exchange, error: GatewayError) -> None:
    """Answer with an error nothing else was answered before."""
    dialect = x.told_as or x.target.dialect
    body = error_body(
        dialect,
        status=error.status,
        type=error.type,
        code=error.code,
        message=error.message,
        param=error.param,
        request_id=x.id,
    )
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *id_headers(dialect, x.id),
        *x.reply_headers,
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
        headers.append((b"retry-after-ms", str(math.ceil(error.retry_after_s * 1000)).encode()))
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if x.attempts:
        headers.append((b"x-gateway-attempts", b"%d" % len(x.attempts)))
    x.committed = True
    x.status = error_status(dialect, error.status)
    x.bytes_out += len(body)
    if x.downstream is not None:
        x.downstream.start(x.status, headers, chunked=False)
        x.downstream.end(body)
        await x.downstream.flushed()
        return
    await x.send({"type": "http.response.start", "status": x.status, "headers": headers})
    await x.send({"type": "http.response.body", "body": body, "more_body": False})


async def _pass_on(x: Exchange, error: UpstreamRefused, body: bytes) -> None:
    """Answer with what the provider said."""
    downstream = x.downstream
    assert downstream is not None
    headers = response_headers([*error.headers], keep_encoding=False)
    headers.append((b"content-length", b"%d" % len(body)))
    headers += id_headers(x.target.dialect, x.id, [name for name, _ in headers])
    headers += x.reply_headers
    if x.offer is not None:
        headers.append((b"x-gateway-provider", x.offer.provider.encode("latin-1", "replace")))
    headers.append((b"x-gateway-attempts", b"%d" % len(x.attempts)))
    x.committed = True
    x.status = error.status
    x.bytes_out += len(body)
    downstream.start(error.status, headers, chunked=False)
    downstream.end(body)
    await downstream.flushed()


async def _break_off(x: Exchange, error: GatewayError) -> None:
    downstream = x.downstream
    if downstream is None:
        # A conversation, which has said so itself.
        return
    if not x.streaming:
        downstream.abort()
    else:
        if x.tap is not None and x.tap.mid_event:
            downstream.write(b"\n\n")
        downstream.write(
            error_event(
                x.target.dialect,
                status=error.status,
                type=error.type,
                code=error.code,
                message=error.message,
                request_id=x.id,
                sequence_number=x.tap.events if isinstance(x.tap, Counting) else 0,
            )
        )
        downstream.end()
    await downstream.flushed()
