"""Asking a provider, in the gateway's own name, about something it keeps for a caller: is it done, what is in it.

It costs nothing and is never charged, so it names no model and takes no price. What the answer means is for whoever
asks; they close it.
"""

from typing import Final

from gateway.api import Call
from gateway.exchange import Offer
from gateway.registry import Provider
from gateway.upstream.client import UpstreamClient
from gateway.upstream.response import UpstreamResponse
from gateway.wire.dialects import Dialect
from gateway.wire.peek import Peek

_NO_PEEK: Final = Peek()


async def ask_provider(
    client: UpstreamClient, provider: Provider, path: bytes, *, key: int, request_id: str
) -> UpstreamResponse:
    """GET `path` with that one of the provider's keys, since objects belong to the key they were made with.

    Raises:
        UpstreamError
    """
    call = Call(
        id=request_id,
        dialect=Dialect.OPENAI_OTHER,
        method="GET",
        path=path,
        query=b"",
        headers=[],
        body=b"",
        peek=_NO_PEEK,
        model="",
    )
    offer = Offer(model="", provider=provider.name, upstream_model="", free=True)
    return await client.send(provider.adapters[key].prepare(call, offer), timeouts=provider.timeouts)
