"""A request that was answered is asked of a second model as well, to see how that one does; nobody hears its answer.

It goes once more through the stages behind this one, as a request of its own whose caller is nobody. Only there where
some model has such a second one.

Rules:
- After the caller has its answer: it never waits for this, and never pays for it.
- A share of the requests, by the model's row; those without wishes of their own, of keys that may use everything; and
  only at providers with the tags that the model itself requires.
- At most `MIRRORS_MAX` at a time, and where there is not room for all, it gives way first.
- What became of it is a line of the access log and counted in the metrics, under the route `_shadow` and the
  operation `shadow`, at no cost and without an account. It is in no usage record.
"""

import asyncio
import contextlib
from typing import Final

import msgspec

from gateway.deps import Deps, Handler
from gateway.errors import CallerGone, GatewayError
from gateway.exchange import Exchange, Message
from gateway.infra.logs import Timestamps
from gateway.routing.crowd import LOW
from gateway.routing.menu import Menu
from gateway.telemetry import Record
from gateway.wire.paths import Target

MIRRORS_MAX: Final = 32
ROUTE: Final = "_shadow"
OPERATION: Final = "shadow"

_timestamps: Final = Timestamps()


async def mirror(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Have it answered; and then, now and then, once more."""
    await call_next(x)
    shadow = None if x.menu is None else x.menu.shadow
    if shadow is None or x.call is None or x.call.upload is not None or x.operation is not None:
        return
    if x.status >= 300 or x.call.peek.background or x.pin is not None:
        return
    router = deps.router
    if router.mirrors < MIRRORS_MAX and router.chance() < shadow.share:
        router.mirrors += 1
        deps.tasks.spawn(_ask(_copy(x, shadow.menu, deps), deps, call_next), name="shadow")


def _copy(x: Exchange, menu: Menu, deps: Deps) -> Exchange:
    """The same request, of nobody."""
    assert x.call is not None
    assert x.principal is not None
    other = Exchange(
        {**x.scope, "extensions": {}}, _hear_nothing, _say_nothing, Target(x.target.dialect, x.target.path, ROUTE)
    )
    other.id = deps.new_id()
    other.call = msgspec.structs.replace(x.call, id=other.id)
    other.principal = msgspec.structs.replace(x.principal, priority=LOW)
    other.menu, other.offers = menu, menu.offers
    other.input_tokens, other.output_tokens, other.units = x.input_tokens, x.output_tokens, x.units
    other.seen = x.seen
    return other


async def _hear_nothing() -> Message:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody is there to say anything")


async def _say_nothing(_: Message) -> None:
    return


async def _ask(x: Exchange, deps: Deps, call_next: Handler) -> None:
    x.started_s = deps.clock.monotonic()
    try:
        await call_next(x)
    except GatewayError as error:
        x.error, x.status = error, error.status
        await _hang_up(x)
    finally:
        deps.router.mirrors -= 1
        _tell(x, deps)


async def _hang_up(x: Exchange) -> None:
    """End what would have taken an answer."""
    if x.downstream is not None:
        x.downstream.abort()
        with contextlib.suppress(CallerGone):
            await x.downstream.flushed()


def _tell(x: Exchange, deps: Deps) -> None:
    duration_s = deps.clock.monotonic() - x.started_s
    offer = x.offer
    usage = None if x.tap is None else x.tap.usage()
    record = Record(
        time=_timestamps.format(deps.clock.now()),
        id=x.id,
        method=x.scope["method"],
        route=ROUTE,
        status=x.status,
        error_type="" if x.error is None else x.error.error_type,
        operation=OPERATION,
        provider="" if offer is None else offer.provider,
        model="" if offer is None else offer.model,
        attempts=len(x.attempts),
        stream=x.streaming,
        duration_s=round(duration_s, 6),
        first_byte_s=None if x.first_byte_s is None else round(x.first_byte_s - x.started_s, 6),
        upstream_s=None if x.upstream_s is None else round(x.upstream_s, 6),
        bytes_out=x.bytes_out,
        input_tokens=0 if usage is None else usage.input_tokens,
        output_tokens=0 if usage is None else usage.output_tokens,
        usage_source="none" if usage is None else usage.source,
    )
    deps.telemetry.record(record)
    deps.access_log.write(record)
