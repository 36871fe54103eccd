"""Who is calling: from the headers alone, before a byte of the body is read."""

import urllib.parse

from gateway.deps import Deps, Handler
from gateway.errors import Unauthenticated
from gateway.exchange import Exchange, Headers

#: Where SDKs put a key, besides `authorization`: Azure, Anthropic, Google.
_KEY_HEADERS = frozenset({b"api-key", b"x-api-key", b"x-goog-api-key"})


async def authenticate(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.principal`.

    Raises:
        Unauthenticated: no key, not a key, or two different ones.
        StoreUnavailable: the key is not known here and the database does not answer.
    """
    text = presented_key(x.scope["headers"], x.scope["query_string"])
    x.principal = deps.keys.verify_known(text) or await deps.keys.verify(text)
    await call_next(x)


def presented_key(headers: Headers, query: bytes) -> str:
    """The one key a request presents.

    Raises:
        Unauthenticated: there is none, or headers that name different ones.
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
    if found is None and query:
        # Spelled as adapters know it: what they don't take out again would reach a provider.
        parts = (part.partition(b"=") for part in query.split(b"&"))
        found = next((urllib.parse.unquote_to_bytes(value) for name, _, value in parts if name == b"key"), None)
    if not found:
        raise Unauthenticated("You didn't provide an API key. Send a gateway key as `Authorization: Bearer gw_...`.")
    return found.decode("latin-1")
