"""Whether this key may have a request now: rates, tokens and concurrency. Passes everything until limits exist."""

from gateway.deps import Deps, Handler
from gateway.exchange import Exchange


async def admit(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Nothing is refused yet."""
    await call_next(x)
