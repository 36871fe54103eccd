"""Which provider serves it: the offers, best first, and the next one only while nothing was sent."""

from gateway.deps import Deps, Handler
from gateway.exchange import Exchange


async def route(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.offer`."""
    x.offer = x.offers[0]
    await call_next(x)
