"""The data plane's router: `/v1/*`, health and metrics, as plain ASGI callables on a bare Starlette router.

Nothing here wraps `send`: Starlette's application class and its function routes put coroutines between an endpoint
and the server for every chunk, so neither is used. The few paths that carry nearly all traffic are found by one
look-up of the raw path; everything else is matched by the router.
"""

import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeAlias

import msgspec
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Lifespan

from gateway.deps import Deps, Handler
from gateway.errors import BadRequest, ClosedEndpoint, MethodNotAllowed, Overloaded, UnknownRoute
from gateway.exchange import Exchange, Headers, Message, Receive, Scope, Send
from gateway.gate import Gate
from gateway.pipeline import GENERATIONS, INFERENCE, KNOWN_CALLER, LISTS, MODELS, OPEN, REALTIME, build
from gateway.readiness import Readiness, say_missing
from gateway.settings import Cors
from gateway.stages.list_models import client_dialect
from gateway.wire import paths
from gateway.wire.dialects import Dialect
from gateway.wire.objects import ObjectPath, Operation
from gateway.wire.paths import Target, resolve
from gateway.wire.realtime import presented_by

log = logging.getLogger(__name__)

AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_HOT_PATHS: Final = (b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/v1/embeddings")
_NOWHERE: Final = Target(Dialect.OPENAI_OTHER, b"", "_other")
#: How the spellings of `/v1` begin; where one leads is for `wire/paths.py` to say.
_INFERENCE: Final = re.compile(r"/+(?:api/+)?(?:v1[a-z0-9]*|openai)(?:/|$)")
_MODELS: Final = b"/models"
#: Of paths that are relayed without being understood.
_RELAYED_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_EXPOSED: Final = (
    b"x-request-id, request-id, x-gateway-request-id, x-gateway-provider, x-gateway-attempts, x-gateway-cost-usd, "
    b"x-gateway-dropped, "
    b"retry-after, retry-after-ms, x-should-retry, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    b"x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)


class V1:
    """Everything under `/v1`, in any of its spellings."""

    def __init__(self, deps: Deps) -> None:
        self._cors = CorsPolicy(deps.settings.cors)
        self._inference = build(INFERENCE, deps)
        self._models = build(MODELS, deps)
        self._generations = build(GENERATIONS, deps)
        self._lists = build(LISTS, deps)
        self._kinds = frozenset(deps.settings.objects.kinds)
        self._relayed = tuple(prefix.encode() for prefix in deps.settings.objects.relay)
        realtime = deps.settings.realtime
        self._realtime = build(REALTIME, deps)
        self._conversations = realtime.enabled
        self._ephemeral_keys = realtime.ephemeral_keys
        self._no_handshake = build(KNOWN_CALLER, deps, end=_refuse_plain)
        self._no_ephemeral_keys = build(KNOWN_CALLER, deps, end=_refuse_ephemeral_keys)
        self._closed = build(KNOWN_CALLER, deps, end=_refuse_endpoint)
        self._no_route = build(OPEN, deps, end=_refuse_route)
        self._no_method = build(KNOWN_CALLER, deps, end=_refuse_method)
        self._hot = {path: target for path in _HOT_PATHS if (target := resolve(path)) is not None}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine itself: what it finds is awaited by whoever called, one frame less for each request.
        if scope["type"] != "http":
            return self._converse(scope, receive, send)
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        target = self._hot.get(raw_path)
        if target is None:
            target = resolve(raw_path) or _NOWHERE
        x = Exchange(scope, receive, send, target)
        if self._cors.enabled:
            return self._cross_origin(x)
        return self._handler(x)(x)

    async def _cross_origin(self, x: Exchange) -> None:
        if not await self._cors.handled(x):
            await self._handler(x)(x)

    def _converse(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """A WebSocket. It is refused by an HTTP answer, like any other request."""
        target = resolve(scope.get("raw_path") or scope["path"].encode()) or _NOWHERE
        headers = scope["headers"]
        if key := presented_by(scope["subprotocols"]):
            headers = [*headers, (b"authorization", b"Bearer " + key.encode("latin-1", "replace"))]
        x = Exchange({**scope, "method": "GET", "headers": headers}, receive, _denying(scope, send), target)
        if target.path != paths.REALTIME:
            return self._no_route(x)
        return (self._realtime if self._conversations else self._closed)(x)

    def _handler(self, x: Exchange) -> Handler:
        target, method = x.target, x.scope["method"]
        if target is _NOWHERE:
            return self._no_route
        if target.dialect is not Dialect.OPENAI_OTHER:
            return self._inference if method == "POST" else self._no_method
        if target.path == _MODELS or target.path.startswith(_MODELS + b"/"):
            x.told_as = client_dialect(x.scope)
            return self._models
        if target.path == paths.GENERATION or target.path.startswith(paths.GENERATIONS):
            return self._generations
        if target.objects is not None:
            return self._object(x, target.objects, method)
        if target.path.startswith(paths.REALTIME):
            return self._realtime_over_http(x, method)
        if target.path in paths.RELAYED:
            return self._inference if method == "POST" else self._no_method
        # What a path does that is not understood here, and whose objects it shows, nobody can say.
        if not target.path.startswith(self._relayed):
            return self._closed
        x.operation = Operation("other", "relay")
        return self._inference if method in _RELAYED_METHODS else self._no_method

    def _realtime_over_http(self, x: Exchange, method: str) -> Handler:
        """What leads to a conversation: itself without its handshake, or a key that the provider makes for one."""
        if x.target.path == paths.REALTIME:
            return self._no_handshake
        if method != "POST":
            return self._no_method
        if not self._ephemeral_keys:
            return self._no_ephemeral_keys
        x.operation = Operation("other", "relay")
        return self._inference

    def _object(self, x: Exchange, path: ObjectPath, method: str) -> Handler:
        verb = path.methods.get(method)
        if verb is None:
            return self._no_method
        if path.kind not in self._kinds:
            return self._closed
        x.operation = Operation(path.kind, verb, path.ids)
        return self._lists if verb == "list" else self._inference


class CorsPolicy:
    """Cross-origin rules (Fetch standard, section 3.2), off unless origins are configured."""

    def __init__(self, settings: Cors) -> None:
        self.enabled = bool(settings.origins)
        self._any = "*" in settings.origins
        self._origins = frozenset(origin.encode() for origin in settings.origins)
        self._max_age = str(int(settings.max_age_s)).encode()

    async def handled(self, x: Exchange) -> bool:
        """Add the headers of an allowed origin to the reply; answer a preflight here. True if it was one."""
        origin = asked_headers = None
        preflight = False
        for name, value in x.scope["headers"]:
            if name == b"origin":
                origin = value
            elif name == b"access-control-request-method":
                preflight = x.scope["method"] == "OPTIONS"
            elif name == b"access-control-request-headers":
                asked_headers = value
        if not self._any:
            # Also where it is not allowed, or there is none: what a cache keeps of that is not for one that is.
            x.reply_headers.append((b"vary", b"origin"))
        if origin is None:
            return False
        if self._any or origin in self._origins:
            x.reply_headers.append((b"access-control-allow-origin", b"*" if self._any else origin))
            if preflight:
                x.reply_headers += [
                    (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
                    (b"access-control-allow-headers", asked_headers or b"authorization, content-type"),
                    (b"access-control-max-age", self._max_age),
                ]
            else:
                x.reply_headers.append((b"access-control-expose-headers", _EXPOSED))
        if not preflight:
            return False
        await x.send({"type": "http.response.start", "status": 204, "headers": x.reply_headers})
        await x.send({"type": "http.response.body", "body": b""})
        return True


class Fixed(Route):
    """A path with one answer, and the dialect's own refusal of other methods than its."""

    def __init__(self, path: str, endpoint: AsgiApp, *, methods: Sequence[str], deps: Deps) -> None:
        super().__init__(path, endpoint, methods=methods)
        self._refused = build(OPEN, deps, end=self._refuse)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.methods is None or scope["method"] in self.methods:
            await self.app(scope, receive, send)
            return
        x = Exchange(scope, receive, send, _NOWHERE)
        x.told_as = client_dialect(scope)
        await self._refused(x)

    async def _refuse(self, x: Exchange) -> None:
        raise MethodNotAllowed(allow=", ".join(sorted(self.methods or ())))


class Health:
    """`GET /health`: this worker takes requests; one that drains takes no connection. Asks nobody, costs nothing.

    It stays well while a store is away: all gateways share the stores, so a balancer that goes by them would take out
    every one at once, and with them the requests that are served without; `readiness.py` says more.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(scope, send, 200, b'{"status":"ok"}')


class Ready:
    """`GET /health/ready` of a process without a control plane: whether the stores answer, or which don't (503)."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        missing = await self._readiness.find_missing()
        if missing:
            body = msgspec.json.encode({"detail": say_missing(missing), "code": "not_ready"})
            await _answer(scope, send, 503, body)
        else:
            await _answer(scope, send, 200, b'{"status":"ready"}')


class Metrics:
    """`GET /metrics`: what `render` says, in Prometheus' text format; a token is asked for if one is set."""

    def __init__(self, render: Callable[[], Awaitable[bytes]], *, token: bytes | None) -> None:
        self._render = render
        self._authorization = None if token is None else b"Bearer " + token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._authorization is not None and not _presents(scope["headers"], self._authorization):
            await _answer(scope, send, 401, b'{"error":{"message":"This needs the metrics token."}}')
            return
        try:
            body = await self._render()
        except Overloaded as error:
            log.warning("no metrics: %s", error.detail)
            await _answer(scope, send, 503, b'{"error":{"message":"The metrics can\'t be had right now."}}')
            return
        await _answer(scope, send, 200, body, content_type=b"text/plain; version=0.0.4; charset=utf-8")


class ControlPlane(Protocol):
    """What is asked of the control plane here: `gateway/control/app.py` has it."""

    def claims(self, path: str) -> bool:
        """Whether a path that begins like an inference one is answered there."""
        ...

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]: ...


class Crossing:
    """Where the planes part: `/v1` in its spellings is the data plane's, but for what the other one claims there."""

    def __init__(self, v1: AsgiApp, control: ControlPlane) -> None:
        self._v1 = v1
        self.control = control

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        path: str = scope["path"]
        is_inference = _INFERENCE.match(path) and not self.control.claims(path)
        return (self._v1 if is_inference else self.control)(scope, receive, send)


class NoInference:
    """`/v1` of a process that serves the control plane alone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = b'{"message":"Inference is served elsewhere.","type":"invalid_request_error","code":"no_inference"}'
        await _answer(scope, send, 404, b'{"error":' + error + b"}")


class DataPlane(Router):
    """The router, with a short cut for the paths that matter. What no route matches is the control plane's, where
    there is one here, else `/v1`'s or nowhere.
    """

    def __init__(
        self,
        v1: AsgiApp,
        routes: Sequence[BaseRoute],
        *,
        control: ControlPlane | None = None,
        lifespan: Lifespan["DataPlane"],
        gate: Gate | None = None,
    ) -> None:
        """`gate` is asked by our own server what is turned away before it gets here."""
        default = v1 if control is None else Crossing(v1, control)
        super().__init__(routes, redirect_slashes=False, default=default, lifespan=lifespan)
        self.gate = gate
        self._v1 = v1
        self._hot = frozenset(_HOT_PATHS)

    def dispatch(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """What a call awaits: our own server awaits it without the coroutine in between."""
        if scope["type"] == "http" and scope.get("raw_path") in self._hot:
            return self._v1(scope, receive, send)
        return super().__call__(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.dispatch(scope, receive, send)


async def _refuse_route(x: Exchange) -> None:
    raise UnknownRoute


def _denying(scope: Scope, send: Send) -> Send:
    """`send` for a WebSocket that may be refused as an HTTP request is."""
    denies = "websocket.http.response" in scope.get("extensions", {})

    async def sending(message: Message) -> None:
        kind = message["type"]
        if not kind.startswith("http."):
            await send(message)
        elif denies:
            await send({**message, "type": f"websocket.{kind}"})
        elif kind == "http.response.start":
            # Which servers answer with 403.
            await send({"type": "websocket.close", "code": 1008})

    return sending


async def _refuse_plain(x: Exchange) -> None:
    raise BadRequest("This is a WebSocket: connect with a handshake for one.", code="websocket_required")


async def _refuse_ephemeral_keys(x: Exchange) -> None:
    raise ClosedEndpoint(
        "Short-lived keys of the provider's are not given out here, as what is done with them passes the gateway by. "
        "Connect to the gateway's own /v1/realtime with a gateway key; browsers send it as a subprotocol."
    )


async def _refuse_endpoint(x: Exchange) -> None:
    raise ClosedEndpoint


async def _refuse_method(x: Exchange) -> None:
    if x.target.objects is not None:
        raise MethodNotAllowed(allow=", ".join(x.target.objects.methods))
    is_known = x.target.dialect is not Dialect.OPENAI_OTHER
    raise MethodNotAllowed(allow="POST" if is_known else ", ".join(_RELAYED_METHODS))


def _presents(headers: Headers, authorization: bytes) -> bool:
    return any(name == b"authorization" and hmac.compare_digest(value, authorization) for name, value in headers)


async def _answer(
    scope: Scope,
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
