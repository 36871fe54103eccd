"""Who is calling, whether the key may be used so, and whether there is room for it now: from the headers alone,
before a byte of the body is read.
"""

import urllib.parse

from gateway.deps import Deps, Handler
from gateway.errors import Overloaded, Unauthenticated
from gateway.exchange import Exchange, Headers
from gateway.routing.crowd import PRIORITY_NAMES
from gateway.wire.dialects import GEMINI_DIALECTS

#: Where SDKs put a key, besides `authorization`: Azure, Anthropic, Google.
_KEY_HEADERS = frozenset({b"api-key", b"x-api-key", b"x-goog-api-key"})


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


def presented_key(headers: Headers, query: bytes, *, as_google: bool = False) -> str:
    """The one key a request presents.

    `as_google` where `?key=` is as good a place as a header, so that the two must agree; elsewhere a parameter of
    that name may mean something else.

    Raises:
        Unauthenticated: there is none, or there are different ones.
    """
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthenticated("Send the API key as `Authorization: Bearer gw_...`.")
            key = key.strip()
        elif name in _KEY_HEADERS:
            key = value.strip()
        else:
            continue
        if found is not None and key != found:
            raise Unauthenticated("The request carries two different API keys; send one.")
        found = key
    if query and (found is None or as_google):
        # Spelled as adapters know it: what they don't take out again would reach a provider.
        parts = (part.partition(b"=") for part in query.split(b"&"))
        keys = (urllib.parse.unquote_to_bytes(value) for name, _, value in parts if name == b"key")
        if as_google:
            if len(different := {key for key in (found, *keys) if key}) > 1:
                raise Unauthenticated("The request carries two different API keys; send one.")
            found = next(iter(different), None)
        else:
            found = next(keys, None)
    if not found:
        raise Unauthenticated("You didn't provide an API key. Send a gateway key as `Authorization: Bearer gw_...`.")
    return found.decode("latin-1")
