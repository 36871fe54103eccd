"""The gateway key that a request presents, wherever clients of the different dialects put it.

OpenAI's send `authorization: Bearer`, Anthropic's that or `x-api-key`, Azure's `api-key`, Google's `x-goog-api-key`
or the query's `key`. Whether the key is any good is `kernel/keys.py`'s to say.
"""

import urllib.parse

from gateway.errors import Unauthenticated

#: Where SDKs put a key, besides `authorization`: Azure, Anthropic, Google.
_KEY_HEADERS = frozenset({b"api-key", b"x-api-key", b"x-goog-api-key"})


def presented_key(headers: list[tuple[bytes, bytes]], query: bytes, *, as_google: bool = False) -> str:
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
