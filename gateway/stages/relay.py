"""The provider's answer to the caller, untouched: from the head of the answer to the last byte passed on.

Rules:
- The status is not committed before the provider's is known.
- Body bytes go from the provider's socket to the caller's inside one read (`_Pipe.data`); this stage only awaits
  the end. A caller who reads slowly pauses the provider's socket; one who leaves closes it.
- An answer that is no stream is of no use before its end, so up to `GATHERED_BYTES_MAX` of it wait for that end: it
  then goes out in one write with its head, which can name its cost; and if it breaks off, nothing was committed yet.
- Where another offer could be tried (`x.holdback`), the beginning of a stream waits until it says something; if that
  is an error, this stage raises it, and nothing was committed. Else no byte waits for anything.
- What was delivered is accounted for before its last bytes are written (`x.on_whole`), so that no crash in between
  gives an answer away.
- An answer that broke off never looks finished: this stage raises, and `rescue` ends the stream with an error event;
  unless the provider's own error event was the last thing in it.
"""

import asyncio
from typing import Final

from gateway.api import Adapter, Failure, ResponseHead
from gateway.deps import Deps, Handler
from gateway.downstream import Downstream
from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamMalformed, UpstreamTimeout
from gateway.exchange import Exchange, Headers
from gateway.hooks import Hooks
from gateway.kernel.money import format_usd
from gateway.routing.holdback import Held, error_in, status_of
from gateway.routing.pace import Pace, Sign
from gateway.routing.refusal import error_of, refusal
from gateway.routing.verdict import Verdict, judge
from gateway.settings import Timeouts
from gateway.upstream.response import UpstreamResponse
from gateway.wire.dialects import GEMINI_DIALECTS, Dialect, id_headers
from gateway.wire.encoding import Inflater, response_inflater
from gateway.wire.headers import name_list, response_headers

#: What a compressed answer may become, however long it streams.
INFLATED_BYTES_MAX: Final = 1024 * 1024 * 1024

#: How much of an answer that is no stream waits for its end.
GATHERED_BYTES_MAX: Final = 256 * 1024

#: What a caller's proxies must not do to a stream of events.
_STREAM_HEADERS: Final[Headers] = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
_BODILESS: Final = frozenset({204, 304})
_JSON_TYPE: Final = b"application/json"
#: With what JSON that is worth waiting for begins; nothing yet is no sign of anything else.
_OBJECT_BEGINS: Final = (b"{", b"[", b"")
_JSON: Final[Headers] = [(b"content-type", b"application/json")]
#: What a stream that is silent is kept alive with. Anthropic has an event for it; Google's clients take no comments.
_COMMENT: Final = b": keep-alive\n\n"
_PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_NO_COMMENTS: Final = GEMINI_DIALECTS


async def relay(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Pass `x.response` on.

    Raises:
        UpstreamError: it broke off, or was an error after all (`x.committed` tells whether anything was sent).
    """
    response, downstream = x.response, x.downstream
    assert x.call is not None
    assert x.offer is not None
    assert response is not None
    assert downstream is not None
    if x.recording is not None:
        downstream = x.recording.of(downstream)
    provider = x.provider
    assert provider is not None
    head = response.head
    operation = x.operation
    if (operation is not None and operation.verb != "relay") or x.call.peek.background:
        content_type = head.header(b"content-type") or b""
        if head.status < 300 and not content_type.startswith(b"text/event-stream"):
            await call_next(x)
            return
    if head.status == 304:
        _begin(x, head, downstream, deps.hooks, rewritten=False)
        downstream.end()
        await downstream.flushed()
        return
    assert x.spoken is not None
    adapter = provider.adapters[x.key]
    native = provider.relays(x.call.dialect, x.offer.upstream_model)
    if not native:
        # What is written anew has to say when it was made, which not every provider does.
        head = ResponseHead(head.status, head.headers, deps.clock.now())
    tap = x.tap = adapter.tap(x.spoken, head)
    if x.bridge is not None:
        tap = x.tap = x.bridge.tap(x.call, head, tap)
    # Known before the head goes out, which may be after the charge.
    x.status = head.status
    coding = head.header(b"content-encoding")
    inflate = None if coding is None else response_inflater(coding, size_bytes_max=INFLATED_BYTES_MAX)
    content_type = tap.content_type or head.header(b"content-type") or b""
    x.streaming = content_type.startswith(b"text/event-stream")

    pipe = _Pipe(x, response, downstream, inflate, deps, adapter=adapter, native=native)
    downstream.feed_from(response)
    response.pipe(pipe)
    if pipe.open:
        if x.committed:
            downstream.flush()
        loop = asyncio.get_running_loop()
        pipe.ended = loop.create_future()
        if x.streaming:
            pipe.keep_pace(_pace(x, x.timeouts or provider.timeouts, deps), loop)
        await pipe.ended
    if pipe.error is not None:
        raise pipe.error
    await downstream.flushed()


def _pace(x: Exchange, timeouts: Timeouts, deps: Deps) -> Pace | None:
    """What this stream is watched for; None for nothing, as it usually is."""
    comment_s = 0.0 if x.target.dialect in _NO_COMMENTS else deps.settings.routing.comment_s
    if x.holdback is None and not (comment_s or timeouts.first_token_s or timeouts.bytes_per_s_min):
        return None
    return Pace(
        sent_s=x.sent_s,
        now_s=deps.clock.monotonic(),
        hold_s=0.0 if x.holdback is None else x.holdback.wait_s,
        first_token_s=timeouts.first_token_s,
        bytes_per_s_min=timeouts.bytes_per_s_min,
        comment_s=comment_s,
    )


def _begin(
    x: Exchange,
    head: ResponseHead,
    downstream: Downstream,
    hooks: Hooks | None,
    *,
    rewritten: bool,
    cost_nanos: int | None = None,
    length: int | None = None,
) -> None:
    """Commit: send the response head."""
    assert x.offer is not None
    keep = not (rewritten or x.streaming)
    headers = response_headers(head.headers, keep_length=keep, keep_encoding=keep)
    if x.tap is not None and x.tap.content_type is not None:
        headers = [header for header in headers if header[0] != b"content-type"]
        headers.append((b"content-type", x.tap.content_type))
    if x.dropped and (dropped := name_list(x.dropped)):
        headers.append((b"x-gateway-dropped", dropped))
    names = dict(headers)
    chunked = False
    if b"content-length" not in names and head.status not in _BODILESS:
        if length is None:
            chunked = True
        else:
            headers.append((b"content-length", b"%d" % length))
    headers += id_headers(x.target.dialect, x.id, names)
    if x.streaming:
        headers += [header for header in _STREAM_HEADERS if header[0] not in names]
    headers += x.reply_headers
    headers.append((b"x-gateway-provider", x.offer.provider.encode("latin-1", "replace")))
    headers.append((b"x-gateway-attempts", b"%d" % (len(x.attempts) + 1)))
    if cost_nanos is not None:
        headers.append((b"x-gateway-cost-usd", format_usd(cost_nanos).encode("ascii")))
    if x.seen is not None:
        assert hooks is not None
        headers += hooks.head(x, head.status, headers)
    x.status = head.status
    x.committed = True
    downstream.start(head.status, headers, chunked=chunked)


def _is_object(head: ResponseHead) -> bool:
    """Whether the answer is JSON, by its name; one without a name is taken for it."""
    media_type = (head.header(b"content-type") or _JSON_TYPE).partition(b";")[0].rstrip()
    return media_type.endswith((b"/json", b"+json"))


class _Pipe:
    """Between the two sockets: called by the provider's connection for every read of the body."""

    __slots__ = (
        "_adapter",
        "_clock",
        "_downstream",
        "_feed",
        "_final",
        "_gathered",
        "_gathered_bytes",
        "_holdback",
        "_hooks",
        "_inflate",
        "_learn",
        "_loop",
        "_made",
        "_native",
        "_pace",
        "_response",
        "_tap",
        "_timer",
        "_write",
        "_x",
        "ended",
        "error",
        "open",
    )

    def __init__(
        self,
        x: Exchange,
        response: UpstreamResponse,
        downstream: Downstream,
        inflate: Inflater | None,
        deps: Deps,
        *,
        adapter: Adapter,
        native: bool,
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
        self._clock = deps.clock
        self._hooks = deps.hooks
        self._adapter = adapter
        self._tap = x.tap
        # Bound once: each chunk calls them.
        self._feed = x.tap.feed if native else self._feed_translated
        self._native = native
        self._write = downstream.write
        #: Shown the beginning of the answer.
        self._learn = None if x.learn is None else x.learn()
        #: What waits for the end; None once the head is out.
        self._gathered: list[bytes] | None = []
        self._gathered_bytes = 0
        #: Bytes that leave with the end.
        self._final = b""
        #: What judges the beginning of a stream; None where none of it waits.
        self._holdback = x.holdback if x.streaming else None
        self._pace: Pace | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Its first bytes come from a tap that makes something else of the provider's: until then it may be an error.
        self._made = not native or x.tap.content_type is not None
        if self._holdback is None and not self._made and (x.streaming or not _is_object(response.head)):
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
        if self._learn is not None and self._learn(out):
            self._learn = None
        x = self._x
        if x.first_byte_s is None:
            x.first_byte_s = self._clock.monotonic()
            if x.on_begun is not None and self._holdback is None:
                x.on_begun()
        if self._gathered is None:
            x.bytes_out += len(out)
            if x.mark is not None:
                x.mark.cell[0] = x.bytes_out
            if self._response.last:
                # `end` follows at once: what both write leaves together.
                self._final = out
            else:
                self._write(out)
            return
        self._gathered.append(out)
        self._gathered_bytes += len(out)
        if self._made and self._holdback is None:
            # A translated stream begins with its first event: until then it may be an error with a status.
            if x.streaming or self._gathered_bytes > GATHERED_BYTES_MAX:
                self._release()
            return
        if self._holdback is None and self._gathered_bytes == len(out) and out.lstrip()[:1] not in _OBJECT_BEGINS:
            # Events, or anything else that is of use before its end, under the wrong name.
            self._release()
        elif self._holdback is not None:
            held = self._holdback.feed(out)
            if held is Held.ERROR and (refused := self._refused(self._holdback.error)) is not None:
                self._response.close()
                self.fail(refused)
            elif held is not Held.WAIT:
                self._release()
        elif self._gathered_bytes > GATHERED_BYTES_MAX:
            self._release()

    def end(self) -> None:
        if self._inflate is not None:
            try:
                self._inflate.end()
            except UpstreamMalformed as error:
                self.fail(error)
                return
        x = self._x
        rest = self._tap.end()
        if rest and x.first_byte_s is None:
            # A translated answer may come as late as this; it is delivered all the same.
            x.first_byte_s = self._clock.monotonic()
        if not self._native and (failure := self._tap.failure) is not None:
            self._break(failure, rest)
            return
        if x.streaming and not self._tap.complete and not self._ended_in_error():
            if self._gathered is not None:
                pass  # nothing was sent, and nothing will be
            elif rest := self._final + rest:
                x.bytes_out += len(rest) - len(self._final)
                self._write(rest)
            self.fail(UpstreamDisconnected("The provider's stream ended before its answer was complete."))
            return
        if x.holdback is not None and self._native and self._gathered is not None and not x.streaming:
            body = b"".join(self._gathered)
            if error_in(body) and (refused := self._refused(body)) is not None:
                self.fail(refused)
                return
        if (
            self._holdback is not None
            and rest
            and self._holdback.feed(rest) is Held.ERROR
            and (refused := self._refused(self._holdback.error)) is not None
        ):
            # A plain answer that the tap made a stream of.
            self.fail(refused)
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

    def _ended_in_error(self) -> bool:
        """Whether the stream ends in an error event of the provider's own: the caller has read it, and gets no second
        one from us.
        """
        if self._gathered is not None or not self._native or self._tap.mid_event:
            return False
        self._tap.usage()
        if not self._tap.errored:
            return False
        self._x.aborted_by = "provider"
        return True

    def _feed_translated(self, chunk: bytes) -> bytes:
        """Feed a tap that translates; where it finds an error, the answer ends here."""
        out = self._tap.feed(chunk)
        if (failure := self._tap.failure) is None:
            return out
        self._response.close()
        self._break(failure, out)
        return b""

    def _break(self, failure: Failure, rest: bytes) -> None:
        """End a translated answer that turned out to be an error, after what came before it."""
        if self._gathered is None and rest:
            self._x.bytes_out += len(rest)
            self._write(rest)
        if failure.body:
            head = ResponseHead(status_of(failure.body), _JSON)
            self.fail(refusal(self._adapter, head, failure.body, native=False))
            return
        self.fail(error_of(failure, ResponseHead(failure.status or 502, [])))

    def keep_pace(self, pace: Pace | None, loop: asyncio.AbstractEventLoop) -> None:
        """Look at the stream every now and then."""
        if pace is not None and pace.tick_s:
            self._pace = pace
            self._loop = loop
            self._timer = loop.call_later(pace.tick_s, self._tick)

    def _tick(self) -> None:
        assert self._pace is not None
        assert self._loop is not None
        if not self.open:
            return
        x = self._x
        match self._pace.look(
            self._clock.monotonic(),
            bytes_out=x.bytes_out,
            begun=x.first_byte_s is not None,
            held=self._gathered is not None,
            paused=self._response.paused,
        ):
            case Sign.RELEASE:
                self._release()
                self._downstream.flush()
            case Sign.COMMENT if not self._tap.mid_event:
                self._write(_PING if x.target.dialect is Dialect.ANTHROPIC_MESSAGES else _COMMENT)
            case Sign.LATE:
                self._response.close()
                self.fail(UpstreamTimeout(detail="first token: no event in time"))
                return
            case Sign.SLOW:
                self._response.close()
                self.fail(UpstreamTimeout(detail="throughput: too few bytes each second"))
                return
        self._timer = self._loop.call_later(self._pace.tick_s, self._tick)

    def _release(self) -> None:
        """Let go of what waited, and of everything that follows."""
        body = b"".join(self._gathered or ())
        self._gathered = None
        if self._holdback is not None:
            self._holdback = None
            if self._x.on_begun is not None and body:
                self._x.on_begun()
        self._x.bytes_out += len(body)
        self._begin()
        if body:
            self._write(body)

    def _refused(self, body: bytes) -> UpstreamError | None:
        """What an error inside a good answer means for routing; None where it is the caller's to read as it is."""
        error = refusal(self._adapter, ResponseHead(status_of(body), _JSON), body)
        return None if judge(error) in (Verdict.CALLER, Verdict.ABSENT) else error

    def fail(self, error: UpstreamError) -> None:
        self.error = error
        self._finish()

    def _begin(self, *, cost_nanos: int | None = None, length: int | None = None) -> None:
        rewritten = self._tap.rewrites or self._inflate is not None
        _begin(
            self._x,
            self._response.head,
            self._downstream,
            self._hooks,
            rewritten=rewritten,
            cost_nanos=cost_nanos,
            length=length,
        )

    def _finish(self) -> None:
        self.open = False
        if self._timer is not None:
            self._timer.cancel()
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(None)
