"""Turning requests away before they are any: what a crowded worker does with those it has no room for.

To refuse a request where all others are refused costs most of what serving a small one does, so a worker with three
times as much to do as it can would do nothing but refuse. Here its head is enough: whose key it is, and whether there
is room for one that matters so much (`routing/shedding.py`). The answer is ready but for its ids.

Rules:
- It turns away, and nothing else. What it can't judge from memory and the head alone (an unknown key, one with
  constraints, a browser of another origin, a path with objects behind it) goes the usual way, and is refused there.
- What it turns away is counted and logged like any other request. Plugins are told of every request, so where there
  are plugins it does nothing.
- While there is room, it costs the server one look at two numbers.
"""

from functools import lru_cache
from math import ceil
from typing import Final, NamedTuple

from gateway.deps import Deps
from gateway.errors import Overloaded, Unauthenticated
from gateway.exchange import Headers
from gateway.infra.logs import Timestamps
from gateway.routing.crowd import PRIORITY_NAMES
from gateway.routing.shedding import CROWDED
from gateway.stages.observe import OPERATIONS
from gateway.telemetry import Record
from gateway.wire.credentials import presented_key
from gateway.wire.dialects import GEMINI_DIALECTS, Dialect, error_body, error_status, id_headers
from gateway.wire.paths import resolve

#: Stand in a ready answer for what differs from one to the next, and are as long.
_ID: Final = b"\x00id"
_RETRY_S: Final = b"\x00s"
_RETRY_MS: Final = b"\x00ms"
#: How often the time doubles after which somebody may come back who was turned away again and again.
DOUBLED_MAX: Final = 3
#: Paths whose meaning is remembered; callers choose some of them.
_PATHS_MAX: Final = 256
_PATH_BYTES_MAX: Final = 256
_timestamps: Final = Timestamps()


#: Of a request whose head has come: method, path as it came, query, headers, the caller's address.
Request = tuple[bytes, bytes, bytes, Headers, str]


class Judged(NamedTuple):
    """Whose request it is; and where it is turned away, the answer and when to come back."""

    key_id: str
    status: int = 0
    head: bytes = b""
    body: bytes = b""
    retry_after_s: float = 0.0


class Gate:
    """The gate of one worker. The server asks it about each request while the worker is `crowded`."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._shedding = deps.router.shedding
        self._cross_origin = bool(deps.settings.cors.origins)
        self._works = deps.hooks is None

    def is_crowded(self, running: int) -> bool:
        """Whether there may be no room for one request more than the `running` ones."""
        return running >= self._shedding.free and self._works and not self._shedding.closed

    def judge(self, request: Request, *, running: int, refusals: int) -> Judged | None:
        """Whether a request is turned away; None: nobody here can tell. `refusals` came before it, one by one."""
        method, raw_path, query, headers, client = request
        target = (_resolve if len(raw_path) <= _PATH_BYTES_MAX else resolve)(raw_path)
        if method != b"POST" or target is None or target.dialect is Dialect.OPENAI_OTHER:
            return None
        if self._cross_origin and any(name == b"origin" for name, _ in headers):
            return None
        deps = self._deps
        try:
            text = presented_key(headers, query, as_google=target.dialect in GEMINI_DIALECTS)
            principal = deps.keys.verify_known(text)
        except Unauthenticated:
            return None
        if principal is None or principal.constraints is not None:
            return None
        if self._shedding.takes(principal.priority, running + 1):
            return Judged(principal.key_id)
        request_id = deps.new_id()
        retry_after_s = (1 + deps.router.chance()) * (1 << min(refusals, DOUBLED_MAX))
        status, head, body = _answer(target.dialect, len(request_id))
        written = request_id.encode("ascii")
        head = head.replace(_ID, written).replace(_RETRY_S, b"%d" % ceil(retry_after_s))
        head = head.replace(_RETRY_MS, b"%d" % ceil(retry_after_s * 1000))
        body = body.replace(_ID, written)
        record = Record(
            time=_timestamps.format(deps.clock.now()),
            id=request_id,
            method="POST",
            route=target.label,
            status=status,
            error_type=Overloaded.error_type,
            operation=OPERATIONS.get(target.dialect, "other"),
            key=principal.key_id,
            account=principal.account_id,
            bytes_out=len(body),
            client=client,
        )
        deps.telemetry.record(record)
        deps.telemetry.count_shed("worker", PRIORITY_NAMES[principal.priority])
        deps.access_log.write(record)
        return Judged(principal.key_id, status, head, body, retry_after_s)


_resolve = lru_cache(maxsize=_PATHS_MAX)(resolve)


@lru_cache(maxsize=64)
def _answer(dialect: Dialect, id_length: int) -> tuple[int, bytes, bytes]:
    """The refusal in a dialect, with places for the ids."""
    error = Overloaded(CROWDED)
    sample = "0" * id_length
    body = error_body(
        dialect, status=error.status, type=error.type, code=error.code, message=error.message, request_id=sample
    )
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *id_headers(dialect, sample),
        (b"x-gateway-request-id", sample.encode("ascii")),
        (b"retry-after", _RETRY_S),
        (b"retry-after-ms", _RETRY_MS),
    ]
    head = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    placed = sample.encode("ascii")
    return error_status(dialect, error.status), head.replace(placed, _ID), body.replace(placed, _ID)
