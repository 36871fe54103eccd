"""Who is calling, whether the key may be used so, and whether there is room for it now: from the headers alone,
before a byte of the body is read.
"""

from gateway.deps import Deps, Handler
from gateway.errors import Overloaded
from gateway.exchange import Exchange
from gateway.routing.crowd import PRIORITY_NAMES
from gateway.wire.credentials import presented_key
from gateway.wire.dialects import GEMINI_DIALECTS


async def authenticate(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.principal`.

    Raises:
        Unauthenticated: no key, not a key, or two different ones.
        Forbidden: not from there, or not for that.
        StoreUnavailable: the key is not known here and the database does not answer.
        Overloaded: this worker has as much in flight as it can serve in time.
    """
    as_google = x.target.dialect in GEMINI_DIALECTS
    text = presented_key(x.scope["headers"], x.scope["query_string"], as_google=as_google)
    principal = x.principal = deps.keys.verify_known(text) or await deps.keys.verify(text)
    if principal.constraints is not None:
        principal.constraints.check_request(x.scope)
    in_flight = deps.telemetry.in_flight[0]
    if in_flight > deps.router.shedding.free:
        _make_room(principal.priority, int(in_flight), deps)
    await call_next(x)


def _make_room(priority: int, in_flight: int, deps: Deps) -> None:
    try:
        deps.router.shedding.admit(priority, in_flight, chance=deps.router.chance())
    except Overloaded:
        deps.telemetry.count_shed("worker", PRIORITY_NAMES[priority])
        raise
