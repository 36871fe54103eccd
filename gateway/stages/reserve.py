"""Whether the account can pay for it: hold the worst case, settle the use. Passes everything until money exists."""

from gateway.deps import Deps, Handler
from gateway.exchange import Exchange


async def reserve(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Nothing is held yet."""
    await call_next(x)
