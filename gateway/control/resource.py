"""A request, from the router to the answer: who calls, may they, what do they want, and what became of it.

This is the one way to a handler, so no route can be without its guard. The order is the document:

1. room: more than `control.requests_max` at a time are told to come back, so that no crowd here takes the memory or
   the time of the data plane in the same process; `control.timeout_s` bounds everything below
2. who calls (401), and whether they may (403), from the headers alone
3. the path's numbers (404), the query and the body (400, 413, 415, 422)
4. whether it is the repeat of an earlier request
5. the handler; its answer, or its error, as bytes
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from starlette.datastructures import Headers, QueryParams
from starlette.requests import cookie_parser

from gateway.control.access import PUBLIC
from gateway.control.errors import NotFound, SignInNeeded
from gateway.control.http import (
    HeaderList,
    Receive,
    Scope,
    Send,
    client_ip,
    decode_body,
    decode_query,
    encode,
    error_answer,
    read_body,
    send_answer,
    user_agent,
)
from gateway.control.idempotency import HEADER as IDEMPOTENCY_HEADER
from gateway.control.idempotency import Answers
from gateway.control.parts import Parts
from gateway.control.route import ID_MAX, Call, Nothing, Raw, Route
from gateway.control.session import NOBODY, Actor, Sessions
from gateway.errors import GatewayError, MethodNotAllowed, Overloaded, UnknownRoute
from gateway.infra.logs import Timestamps
from gateway.kernel.security import Event
from gateway.telemetry import Record
from gateway.wire.client_address import Network

log = logging.getLogger(__name__)

#: What crowded requests are told.
COME_BACK_S: Final = 1.0
#: What the log calls a path at which there is nothing.
NOWHERE: Final = "_other"
#: What the security log is told of, by the status of the answer.
_REFUSALS: Final[Mapping[int, Event]] = {
    401: "authentication_failed",
    403: "permission_refused",
    429: "tries_exhausted",
}
_timestamps: Final = Timestamps()


class Room:
    """Places for the requests of one worker's control plane."""

    __slots__ = ("free",)

    def __init__(self, places: int) -> None:
        self.free = places


class Resource:
    """One path with its methods: an ASGI application."""

    def __init__(
        self,
        path: str,
        routes: Sequence[Route],
        *,
        parts: Parts,
        sessions: Sessions,
        answers: Answers,
        room: Room,
        trusted: Sequence[Network],
    ) -> None:
        self._path = path
        self._routes: dict[str, Route] = {route.method: route for route in routes}
        if len(self._routes) < len(routes):
            raise ValueError(f"{path} has two handlers for one method")
        if "GET" in self._routes:
            self._routes["HEAD"] = self._routes["GET"]
        self._parts = parts
        self._sessions = sessions
        self._answers = answers
        self._room = room
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = self._parts
        request_id = parts.new_id()
        started_s = parts.clock.monotonic()
        exchange = _Exchange(scope, receive, send, request_id)
        if self._room.free <= 0:
            await exchange.refuse(Overloaded(retry_after_s=COME_BACK_S))
        else:
            self._room.free -= 1
            try:
                await self._answer(exchange)
            finally:
                self._room.free += 1
        self._note(exchange, duration_s=parts.clock.monotonic() - started_s)
        if exchange.error is not None:
            self._note_refusal(exchange, exchange.error)

    async def _answer(self, exchange: "_Exchange") -> None:
        """Let the request in, and turn whatever becomes of it into bytes."""
        try:
            route = self._routes.get(exchange.method)
            if not self._routes:
                raise UnknownRoute
            if route is None:
                raise MethodNotAllowed(allow=", ".join(sorted(self._routes)))
            async with asyncio.timeout(route.timeout_s or self._parts.settings.control.timeout_s):
                await self._handle(exchange, route)
        except GatewayError as error:
            if error.detail or error.status >= 500:
                log.warning("%s: %s", error.error_type, error.detail or error.message, extra=self._facts(exchange))
            await exchange.refuse(error)
        except TimeoutError:
            log.warning("took too long", extra=self._facts(exchange))
            await exchange.refuse(Overloaded("This took longer than it may.", retry_after_s=COME_BACK_S))
        except Exception:  # the border of the control plane: a bug is an answer, and a line for whoever mends it
            log.exception("a handler failed", extra=self._facts(exchange))
            await exchange.refuse(GatewayError("Internal server error"))

    async def _handle(self, exchange: "_Exchange", route: Route) -> None:
        headers = exchange.headers
        cookies = cookie_parser(headers.get("cookie", ""))
        actor = NOBODY
        ip = client_ip(exchange.scope, headers, self._trusted)
        if route.access != PUBLIC:
            actor = await self._sessions.identify(headers, cookies, method=exchange.method, ip=ip)
            exchange.actor = actor
            if actor is NOBODY:
                raise SignInNeeded
            actor.check(route.access, account_role=route.account_role, writes=route.writes)
        params = _check_params(exchange.scope.get("path_params", {}))
        query = decode_query(QueryParams(exchange.scope.get("query_string", b"")), route.query)
        raw = b""
        body: Any = Nothing()  # Any: the struct that the route names
        if route.writes:
            raw = await read_body(exchange.receive, headers, bytes_max=self._parts.settings.control.body_bytes_max)
            if route.request is not Nothing:
                body = decode_body(raw, route.request, headers.get("content-type", ""))
        call: Call[Any, Any] = Call(
            parts=self._parts,
            actor=actor,
            body=body,
            query=query,
            params=params,
            request_id=exchange.request_id,
            ip=ip,
            user_agent=user_agent(headers),
            headers=headers,
            cookies=cookies,
        )
        key = headers.get(IDEMPOTENCY_HEADER) if route.idempotent else None
        if key is None:
            await exchange.respond(route, call, await route.handler(call))
        else:
            await self._once(exchange, route, call, key, raw)

    async def _once(
        self, exchange: "_Exchange", route: Route, call: Call[Any, Any], key: str, raw: bytes
    ) -> None:  # Any: of whatever the route names
        """Handle what may be the repeat of an earlier request."""
        scope = f"{call.actor.account_id}:{call.actor.user_id or call.actor.key_id}"
        target = exchange.scope.get("raw_path") or exchange.scope["path"].encode()
        request = b"\n".join((exchange.method.encode(), target, exchange.scope.get("query_string", b""), raw))
        first = await self._answers.claim(scope, key, request)
        if first is not None:
            await exchange.send_whole(*first, headers=[(b"idempotency-replayed", b"true")])
            return
        settled = False
        try:
            answer = await route.handler(call)
            # It took effect. Whatever becomes of its answer, it must not be done again.
            settled = True
        except GatewayError as error:
            if error.status >= 500 or error.retry_after_s is not None:
                raise
            refusal, _ = error_answer(error, exchange.request_id)
            await self._answers.keep(scope, key, error.status, refusal)
            settled = True
            raise
        finally:
            if not settled:
                # In a task of its own: this one may have been cancelled.
                self._parts.tasks.spawn(self._answers.give_up(scope, key), name="give up an idempotency key")
        body = encode(answer)
        await self._answers.keep(scope, key, route.status, body)
        await exchange.send_whole(route.status, body, headers=_pairs(call.reply_headers))

    def _note(self, exchange: "_Exchange", *, duration_s: float) -> None:
        """One line in the access log, one count in the metrics, as for every request."""
        peer = exchange.scope.get("client")
        record = Record(
            time=_timestamps.format(self._parts.clock.now()),
            id=exchange.request_id,
            method=exchange.method,
            route=self._path,
            status=exchange.status,
            error_type=exchange.error_type,
            operation="control",
            key=exchange.actor.key_id or "",
            account=exchange.actor.account_id,
            duration_s=round(duration_s, 6),
            bytes_out=exchange.bytes_out,
            client="" if peer is None else str(peer[0]),
        )
        self._parts.deps.telemetry.record_control(record)
        self._parts.deps.access_log.write(record)

    def _note_refusal(self, exchange: "_Exchange", error: GatewayError) -> None:
        """A line in the security log, of who was not let in, may not do what they asked for, or tries too often."""
        event = _REFUSALS.get(error.status)
        if event is None:
            return
        actor, security = exchange.actor, self._parts.deps.security
        client = security.source_of(exchange.scope)
        subject = client
        if event == "permission_refused" and actor is not NOBODY:
            subject = actor.key_id or f"user {actor.user_id}"
        security.note(
            event,
            subject,
            code=error.code,
            client=client,
            user=actor.user_id,
            key=actor.key_id,
            account=actor.account_id or None,
            method=exchange.method,
            route=self._path,
            request_id=exchange.request_id,
        )

    def _facts(self, exchange: "_Exchange") -> dict[str, str]:
        return {"request_id": exchange.request_id, "method": exchange.method, "route": self._path}


class _Exchange:
    """One request and what was answered."""

    __slots__ = (
        "actor",
        "bytes_out",
        "error",
        "error_type",
        "headers",
        "method",
        "receive",
        "request_id",
        "scope",
        "send",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.request_id = request_id
        self.headers = Headers(scope=scope)
        self.method: str = scope["method"]
        self.actor: Actor = NOBODY
        self.status = 0
        self.error_type = ""
        #: What the caller was refused with.
        self.error: GatewayError | None = None
        self.bytes_out = 0

    async def respond(self, route: Route, call: Call[Any, Any], answer: object) -> None:  # Any: as in Route.handler
        """Send what a handler returned."""
        headers = _pairs(call.reply_headers)
        if not isinstance(answer, Raw):
            await self.send_whole(route.status, encode(answer), headers=headers)
            return
        status = answer.status or route.status
        headers += _pairs(answer.headers)
        media_type = answer.media_type.encode("latin-1")
        if isinstance(answer.content, bytes):
            await self.send_whole(status, answer.content, headers=headers, media_type=media_type)
        else:
            await self._send_pieces(status, answer.content, headers=headers, media_type=media_type)

    async def refuse(self, error: GatewayError) -> None:
        """Send an error, or where something else has been sent, end that."""
        self.error_type = error.error_type
        self.error = error
        if self.status:
            # A whole one was sent, or pieces that can't be taken back: the server cuts what has no end.
            return
        body, headers = error_answer(error, self.request_id)
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", error.allow.encode("ascii")))
        await self.send_whole(error.status, body, headers=headers)

    async def send_whole(
        self, status: int, body: bytes, *, headers: HeaderList, media_type: bytes = b"application/json"
    ) -> None:
        self.status = status
        self.bytes_out = len(body)
        headers = [(b"x-request-id", self.request_id.encode()), *headers]
        await send_answer(self.scope, self.send, status, body, headers=headers, media_type=media_type)

    async def _send_pieces(
        self, status: int, pieces: AsyncIterator[bytes], *, headers: HeaderList, media_type: bytes
    ) -> None:
        # The first one is made before the status is sent, so that what fails at once is an error like any other.
        piece = await anext(pieces, None)
        self.status = status
        head = [(b"x-request-id", self.request_id.encode()), *headers, (b"content-type", media_type)]
        head += [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
        await self.send({"type": "http.response.start", "status": status, "headers": head})
        while piece is not None and self.method != "HEAD":
            self.bytes_out += len(piece)
            await self.send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await anext(pieces, None)
        await self.send({"type": "http.response.body", "body": b""})


def _check_params(params: Mapping[str, Any]) -> Mapping[str, Any]:  # Any: texts and numbers
    """Refuse what no row can have.

    Raises:
        NotFound
    """
    for value in params.values():
        if isinstance(value, int) and value > ID_MAX:
            raise NotFound
        if isinstance(value, str) and ("\0" in value or not value.isprintable()):
            raise NotFound
    return params


def _pairs(headers: Sequence[tuple[str, str]]) -> HeaderList:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
