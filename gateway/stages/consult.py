"""Plugins are asked before a request is served. Only there where a plugin is on: see `pipeline.build`.

What one of them has made of the body is what the request is from here on, and what is held for it.
"""

from gateway.deps import Deps, Handler
from gateway.exchange import Call, Exchange
from gateway.wire.dialects import COUNT_DIALECTS
from gateway.wire.estimate import estimate_input_tokens
from gateway.wire.units import units_of


async def consult(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.seen`; with it the body and its estimates, where a plugin rewrites them.

    Raises:
        GatewayError: a plugin refuses it.
    """
    assert deps.hooks is not None
    before = x.call
    await deps.hooks.ask(x)
    if x.call is not None and x.call is not before:
        _estimate(x, x.call)
    await call_next(x)


def _estimate(x: Exchange, call: Call) -> None:
    """As `admit` does, which has seen another body."""
    if x.units is not None:
        x.units = units_of(call.dialect, call.body, call.peek, form=x.form, upload_bytes=len(call.body))
        x.input_tokens = x.units.usage.input_tokens
        x.output_tokens = x.units.usage.output_tokens
    elif x.operation is None and call.dialect not in COUNT_DIALECTS:
        x.input_tokens = estimate_input_tokens(call.body)
