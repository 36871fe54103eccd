"""The life of a request: every stage, in the one order there is. Start reading here.

Money and safety depend on the order, so it is fixed; plugins get hooks at named points, not places in the list. Each
stage is a file in `gateway/stages/`. It costs one frame for each request and none for each chunk: the body bytes go
from the provider's socket to the caller's inside `relay`, and the stages above it only await the end.
"""

from collections.abc import Awaitable
from typing import Protocol

from gateway.deps import Deps, Handler
from gateway.exchange import Exchange
from gateway.stages.admit import admit
from gateway.stages.attempt import attempt
from gateway.stages.authenticate import authenticate
from gateway.stages.consult import consult
from gateway.stages.converse import converse
from gateway.stages.defer import defer
from gateway.stages.keep import keep
from gateway.stages.list_models import list_models
from gateway.stages.list_objects import list_objects
from gateway.stages.mirror import mirror
from gateway.stages.observe import observe
from gateway.stages.own import own
from gateway.stages.recall import recall
from gateway.stages.receive import receive
from gateway.stages.relay import relay
from gateway.stages.rescue import rescue
from gateway.stages.reserve import reserve
from gateway.stages.route import route
from gateway.stages.show_generation import show_generation


class Stage(Protocol):
    """One phase. It awaits `call_next(x)` once, or answers, or raises a GatewayError."""

    def __call__(self, x: Exchange, *, deps: Deps, call_next: Handler) -> Awaitable[None]: ...


INFERENCE: tuple[Stage, ...] = (
    observe,  # outermost: its finally sees every outcome, what rescue did included
    rescue,  # above all that may raise, below observe so that the record has the final status
    authenticate,  # before the body: strangers may not make us read it                       401 503
    receive,  # before the limits: they may be per model                                      400 408 413 415
    own,  # before offers: what it refers to must be the caller's, and decides where it goes  404
    admit,  # before money: what can be refused without asking costs no round trip           403 404
    reserve,  # before routing: the hold covers the dearest candidate; settles on the way out    402 429
    recall,  # behind limits: answers from memory count like others; only there where answers are kept   504
    defer,  # behind limits: what is ordered now and paid for later is held now                402
    mirror,  # above routing: what is asked of a second model as well goes through it once more; only where any is
    route,  # runs what follows once for each try, while nothing was sent                     503
    attempt,  # one try: an error status becomes an error, so that route can judge it          502 504
    relay,  # the provider's bytes go to the caller's socket                                  502 504
    keep,  # last, and in its place: answers that are remembered before they leave            502 503
)

#: What only a caller with a key may be told.
KNOWN_CALLER: tuple[Stage, ...] = (observe, rescue, authenticate)

#: `GET /v1/models`: answered from memory.
MODELS: tuple[Stage, ...] = (*KNOWN_CALLER, list_models)

#: `GET /v1/generations/{id}`: answered from the books, or from what is on its way to them.
GENERATIONS: tuple[Stage, ...] = (*KNOWN_CALLER, show_generation)

#: `GET /v1/files` and the like: answered from our own books, within the caller's limits.
LISTS: tuple[Stage, ...] = (*KNOWN_CALLER, reserve, list_objects)

#: `GET /v1/realtime`: a WebSocket; it asks for money and limits again and again while it lasts.
REALTIME: tuple[Stage, ...] = (*KNOWN_CALLER, converse)

#: What anybody may be told: that there is nothing here.
OPEN: tuple[Stage, ...] = (observe, rescue)


async def _end(x: Exchange) -> None:
    raise AssertionError("the last stage answers; nothing comes after it")


def with_plugins(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The same with plugins asked before anything is taken for the request."""
    taking = next((number for number, stage in enumerate(stages) if stage in (reserve, converse)), len(stages))
    return (*stages[:taking], consult, *stages[taking:]) if taking < len(stages) else stages


def build(stages: tuple[Stage, ...], deps: Deps, *, end: Handler = _end) -> Handler:
    """Fold the stages into one handler, with `end` behind the last."""
    if deps.hooks is not None:
        stages = with_plugins(stages)
    if deps.answers is None:
        stages = tuple(stage for stage in stages if stage is not recall)
    if not any(row.shadow for row in deps.settings.models.values()):
        stages = tuple(stage for stage in stages if stage is not mirror)
    handler = end
    for stage in reversed(stages):
        handler = _bind(stage, deps, handler)
    return handler


def _bind(stage: Stage, deps: Deps, behind: Handler) -> Handler:
    # No partial: one with keywords makes a dictionary for each call.
    def run(x: Exchange) -> Awaitable[None]:
        return stage(x, deps=deps, call_next=behind)

    return run
