"""A conversation over a WebSocket (`GET /v1/realtime`): messages pass both ways as they are, and every answer in it
is paid for when it ends (`gateway/meter.py`).

Rules:
- The caller hears of a refusal before anything is opened: as an HTTP answer to its handshake.
- Where the money or the limits for the next answer are refused, the caller gets an `error` event, and the
  conversation ends with 1008.
- What one side can't take the other does not get to send: each message is handed on before the next is read.
- Whoever closes first decides the code, which the other side gets too. What the gateway ends itself ends with 1001
  (it stops, or nobody said anything for `realtime.idle_s`, or it took `realtime.total_s`) or 1008.

https://platform.openai.com/docs/guides/realtime-websocket
"""

import asyncio
import contextlib
import urllib.parse
from collections.abc import Coroutine
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gateway.api import ResponseHead
from gateway.deps import Deps, Handler
from gateway.errors import (
    BadRequest,
    CallerGone,
    GatewayError,
    OwnKeyRefused,
    UpstreamCredentials,
    UpstreamDisconnected,
    UpstreamError,
)
from gateway.exchange import Call, Exchange, Offer
from gateway.meter import Meter
from gateway.routing.choose import Asked
from gateway.routing.course import Course, Failed, begin, end, fail, succeed
from gateway.routing.permitted import permit
from gateway.routing.refusal import refusal
from gateway.routing.verdict import judge
from gateway.upstream.websocket import Refusal, close_websocket
from gateway.wire.dialects import Dialect
from gateway.wire.peek import Peek
from gateway.wire.realtime import PROTOCOL, error_event, public, read_event, sendable

#: ASGI extension of `gateway.server.websocket`.
DRAINING: Final = "gateway.draining"
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
POLICY: Final = 1008
INTERNAL: Final = 1011
_REASON_BYTES_MAX: Final = 120
_NO_PEEK: Final = Peek()
#: Parameters that are for the gateway, or that it writes itself.
_OWN_PARAMETERS: Final = frozenset({b"model", b"deployment", b"api-version", b"key", b"api_key"})


async def converse(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Open a conversation at a provider, then with the caller, and stay until it ends.

    Raises:
        GatewayError: it was never opened.
    """
    model, query = _asked(x.scope["query_string"])
    call = Call(
        id=x.id,
        dialect=Dialect.OPENAI_OTHER,
        method="GET",
        path=b"/realtime",
        query=query,
        headers=x.scope["headers"],
        body=b"",
        peek=_NO_PEEK,
        model=model,
        account_id=x.principal.account_id if x.principal is not None else 0,
    )
    x.call = call
    x.menu = deps.router.menus.find(model, Dialect.OPENAI_OTHER)
    assert x.principal is not None
    if (keychain := x.principal.keychain) is not None:
        x.menu = keychain.extend(x.menu, keep=True)
        if keychain.renewals:
            await deps.keychains.ready(keychain)
    if x.principal.constraints is not None:
        x.menu = permit(x.menu, x.principal.constraints, model)
    x.offers = x.menu.offers
    meter = Meter(x, deps)
    await meter.hold()
    try:
        upstream = await _reach(x, deps, call)
        try:
            await _Conversation(x, deps, upstream, meter).run()
        finally:
            await close_websocket(upstream, GOING_AWAY, "")
    finally:
        meter.close()


def _asked(query: bytes) -> tuple[str, bytes]:
    """The model that a query names, and what else is in it.

    Raises:
        BadRequest: it names none, or wants what is not to be had here.
    """
    parts = [part for part in query.split(b"&") if part]
    given = {name: value for name, _, value in (part.partition(b"=") for part in parts)}
    if b"call_id" in given:
        raise BadRequest("Calls can't be joined through this gateway.", param="call_id")
    named = given.get(b"model") or given.get(b"deployment") or b""
    model = urllib.parse.unquote_plus(named.decode("latin-1"))
    if not model:
        raise BadRequest("You must provide a `model` in the query.", code="missing_required_parameter", param="model")
    return model, b"&".join(part for part in parts if part.partition(b"=")[0].lower() not in _OWN_PARAMETERS)


async def _reach(x: Exchange, deps: Deps, call: Call) -> ClientConnection:
    """Open a conversation at one of the model's providers; sets `x.offer` and `x.key`."""
    assert x.menu is not None
    router, monotonic = deps.router, deps.clock.monotonic
    course = Course(
        x.menu,
        asked=Asked(stream=True, input_tokens=x.input_tokens, output_tokens=x.output_tokens, key=b""),
        rules=router.rules,
        budget=router.budget,
        chance=router.chance,
        started_s=x.started_s,
    )
    router.budget.begun += 1
    step = course.first(monotonic())
    while True:
        if step.wait_s:
            await asyncio.sleep(step.wait_s)
        x.offer, x.key = step.candidate.offer, step.key.number
        x.provider = deps.provider_of(x.offer)
        begin(step)
        outcome = "caller_gone"
        try:
            opened = await _open(x, deps, call, step.candidate.offer, step.key.number)
        except UpstreamError as error:
            told = error
            if x.offer.own is not None and isinstance(error, UpstreamCredentials):
                told = OwnKeyRefused.of(x.offer.provider, error)
            outcome = told.error_type
            failed = Failed(verdict=judge(told), retry_after_s=told.retry_after_s)
            fail(step, failed, monotonic(), router.rules)
            following = course.after(step, failed, monotonic())
            if following is None:
                raise told from None
        else:
            outcome = "ok"
            succeed(step, monotonic())
            return opened
        finally:
            end(step)
            x.attempts.append((step.candidate.offer.provider, outcome))
            deps.telemetry.count_attempt(step.candidate.offer.provider, outcome)
        step = following


async def _open(x: Exchange, deps: Deps, call: Call, offer: Offer, key: int) -> ClientConnection:
    provider = x.provider
    assert provider is not None
    adapter = provider.adapters[key]
    named = b"model=" + urllib.parse.quote(offer.upstream_model, safe="").encode("ascii")
    query = named + b"&" + call.query if call.query else named
    asked = Call(
        id=call.id,
        dialect=call.dialect,
        method=call.method,
        path=call.path,
        query=query,
        headers=call.headers,
        body=b"",
        peek=call.peek,
        model=call.model,
        account_id=call.account_id,
    )
    try:
        return await deps.client.open_websocket(
            adapter.prepare(asked, offer),
            subprotocols=public(x.scope["subprotocols"]),
            timeouts=offer.timeouts or provider.timeouts,
            message_bytes_max=deps.settings.realtime.message_bytes_max,
        )
    except Refusal as refused:
        head = ResponseHead(refused.head.status, refused.head.headers)
        raise refusal(adapter, head, refused.body) from None


class _End(Exception):
    """The conversation ends: with this code for both sides, and why."""

    def __init__(self, code: int, reason: str = "", error: GatewayError | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
        self.error = error


class _Conversation:
    """Between the two sockets, until one of them has enough."""

    def __init__(self, x: Exchange, deps: Deps, upstream: ClientConnection, meter: Meter) -> None:
        self._x = x
        self._deps = deps
        self._upstream = upstream
        self._meter = meter
        self._heard_s = deps.clock.monotonic()
        self._draining: asyncio.Event = x.scope.get("extensions", {}).get(DRAINING) or asyncio.Event()
        self._ended: asyncio.Future[_End] = asyncio.get_running_loop().create_future()
        self._caller_left = False

    async def run(self) -> None:
        await self._accept()
        x, deps = self._x, self._deps
        tasks = [
            deps.tasks.spawn(self._pump(self._from_caller()), name="realtime from caller"),
            deps.tasks.spawn(self._pump(self._from_provider()), name="realtime from provider"),
            deps.tasks.spawn(self._pump(self._watch()), name="realtime watch"),
        ]
        try:
            ended = await self._ended
        except asyncio.CancelledError:
            # The grace time is over.
            ended = _End(GOING_AWAY, "the gateway shuts down")
            await self._part(ended)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        x.error = ended.error
        await self._part(ended)

    async def _accept(self) -> None:
        x = self._x
        first = await x.receive()
        if first["type"] != "websocket.connect":
            raise CallerGone
        offered: list[str] = x.scope["subprotocols"]
        chosen = self._upstream.subprotocol
        if chosen is None and PROTOCOL in offered:
            chosen = PROTOCOL  # type: ignore[assignment]  # a str in all but name
        x.committed = True
        x.status = 101
        assert x.offer is not None
        headers = [
            (b"x-request-id", x.id.encode()),
            *x.reply_headers,
            (b"x-gateway-provider", x.offer.provider.encode("latin-1", "replace")),
        ]
        await x.send({"type": "websocket.accept", "subprotocol": chosen, "headers": headers})

    async def _pump(self, work: Coroutine[object, object, None]) -> None:
        """Do `work` until the conversation ends; whatever ends it is told."""
        try:
            await work
        except _End as ended:
            self._end(ended)
        except GatewayError as error:
            await self._tell(error)
            self._end(_End(POLICY if error.source in ("policy", "caller") else INTERNAL, error.code or "", error))
        except OSError:
            # How servers say that a caller who is written to has gone.
            self._caller_left = True
            self._end(_End(NORMAL, "", CallerGone()))

    def _end(self, ended: _End) -> None:
        if not self._ended.done():
            self._ended.set_result(ended)

    async def _from_caller(self) -> None:
        x, upstream, monotonic = self._x, self._upstream, self._deps.clock.monotonic
        while True:
            message = await x.receive()
            self._heard_s = monotonic()
            if message["type"] != "websocket.receive":
                self._caller_left = True
                code = message.get("code") or 1005
                error = CallerGone() if code == 1006 else None
                raise _End(sendable(code), message.get("reason") or "", error)
            text = message.get("text")
            try:
                await upstream.send(message["bytes"] if text is None else text)
            except ConnectionClosed as closed:
                raise self._left(closed) from None

    async def _from_provider(self) -> None:
        x, upstream, meter, monotonic = self._x, self._upstream, self._meter, self._deps.clock.monotonic
        while True:
            try:
                message = await upstream.recv()
            except ConnectionClosed as closed:
                raise self._left(closed) from None
            self._heard_s = monotonic()
            if isinstance(message, bytes):
                x.bytes_out += len(message)
                await x.send({"type": "websocket.send", "bytes": message})
                continue
            # What is charged is on its way before the message that says so.
            charged = meter.see(read_event(message))
            if x.first_byte_s is None:
                x.first_byte_s = self._heard_s
            x.bytes_out += len(message)
            await x.send({"type": "websocket.send", "text": message})
            if self._draining.is_set() and not meter.answering:
                raise _End(GOING_AWAY, "the gateway restarts")
            if charged:
                await meter.hold()

    async def _watch(self) -> None:
        """End what is silent, what takes too long, and what a stopping server waits for."""
        settings, monotonic = self._deps.settings.realtime, self._deps.clock.monotonic
        until_s = monotonic() + settings.total_s
        while True:
            now_s = monotonic()
            wait_s = min(until_s, self._heard_s + settings.idle_s) - now_s
            if wait_s <= 0:
                over = now_s >= until_s
                raise _End(GOING_AWAY, "the session took too long" if over else "nobody said anything for too long")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._draining.wait()
                if not self._meter.answering:
                    raise _End(GOING_AWAY, "the gateway restarts")
                # The answer under way may end.
                await asyncio.Event().wait()

    def _left(self, closed: ConnectionClosed) -> _End:
        """The provider has closed."""
        if closed.rcvd is None:
            return _End(INTERNAL, "the provider is gone", UpstreamDisconnected())
        return _End(sendable(closed.rcvd.code), closed.rcvd.reason)

    async def _tell(self, error: GatewayError) -> None:
        """Say why the conversation ends."""
        text = error_event(type=error.type, code=error.code, message=error.message, event_id=f"event_{self._x.id}")
        with contextlib.suppress(OSError):
            await self._x.send({"type": "websocket.send", "text": text})

    async def _part(self, ended: _End) -> None:
        """Close both sides."""
        if not self._caller_left:
            with contextlib.suppress(OSError):
                await self._x.send({"type": "websocket.close", "code": ended.code, "reason": ended.reason})
        await close_websocket(self._upstream, ended.code, ended.reason)
