"""Which offer serves it, and which one next while nothing was sent.

Rules:
- What follows runs once for each try. Nothing is tried again once the head of an answer has gone to the caller, or
  once an upload that is passed on as it comes was begun to be sent.
- Where the tries go is decided by `routing/course.py`; here they are made, and what they taught is remembered.
- From here on the caller's connection is watched: one who leaves ends the try under way, the wait before the next
  one, and the request.
- An offer whose provider can't be told what the call asks for (`BadRequest`) is passed over for one that can.
- An offer with as many requests under way as it takes is passed over while another has room; where none has, the
  request waits for a place there, for a moment, and then hears that there is none.
- When all tries failed, the caller hears of the one that tells it most: a provider's own refusal before our trouble
  in reaching one, that before trouble with our credentials, and that before what a provider could not be told: the
  others may be over when the caller tries again.
"""

import asyncio
from functools import partial
from math import inf
from typing import Final

import msgspec

from gateway.deps import Deps, Handler
from gateway.downstream import open_downstream
from gateway.errors import (
    BadRequest,
    CallerGone,
    GatewayError,
    Overloaded,
    OwnKeyRefused,
    UpstreamCredentials,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from gateway.exchange import Exchange
from gateway.routing.choose import Asked
from gateway.routing.conversation import conversation_of
from gateway.routing.course import Course, Failed, Step, begin, end, fail, succeed
from gateway.routing.crowd import PRIORITY_NAMES
from gateway.routing.hedge import Hedge
from gateway.routing.lessons import names_our_field
from gateway.routing.menu import Menu
from gateway.routing.pinned import key_of
from gateway.routing.router import Router
from gateway.routing.verdict import judge
from gateway.wire.dialects import error_status

#: A refusal with this status may be about the model alone.
_FORBIDDEN: Final = 403
#: "Service unavailable", and what Anthropic says instead.
_OVERLOADED: Final = frozenset({503, 529})


async def route(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.offer` and `x.key`, and run the rest, until it answers or nothing is left to try.

    Raises:
        UpstreamError: what the caller is to hear of the tries.
        BadRequest: no offer can be told what the call asks for.
        CallerGone: the caller left; the provider's connection is closed.
    """
    task = asyncio.current_task()
    assert task is not None
    routing = True

    def leave() -> None:
        # Later there is nothing to be cut short: what ends a request is not the caller's to cancel.
        if routing:
            task.cancel()

    upload = None if x.call is None else x.call.upload
    # Until an upload has come in whole, what the caller sends is its.
    receive = x.receive if upload is None else upload.receive_after
    downstream = x.downstream = open_downstream(x.scope, receive, x.send, on_gone=leave, tasks=deps.tasks)
    try:
        await _travel(x, deps, call_next)
    except asyncio.CancelledError:
        if not downstream.is_gone:
            raise
        # The cancellation was ours, to get here at once.
        task.uncancel()
        raise CallerGone from None
    finally:
        routing = False


async def _travel(x: Exchange, deps: Deps, call_next: Handler) -> None:
    """From offer to offer."""
    assert x.menu is not None
    router, monotonic = deps.router, deps.clock.monotonic
    router.budget.begun += 1
    alone = x.menu.alone
    course: Course | None = None
    hedged = x.menu.hedge and not _is_single(x)
    if x.pin is not None:
        # What it is about lives there and nowhere else.
        step = Step(x.menu.own.candidates[0], key_of(x.menu, x.pin[1]))
    elif alone is not None and not router.rules.repeats and not hedged:
        # Nothing to choose, and nowhere to go from there.
        step = Step(alone, alone.health.provider.keys[0])
    else:
        course = _set_out(x, x.menu, router)
        step = course.first(monotonic())
    heard: GatewayError | None = None
    while True:
        if step.wait_s:
            await asyncio.sleep(step.wait_s)
            x.upstream_s = (x.upstream_s or 0.0) + step.wait_s
        if step.candidate.health.is_full:
            await _wait(x, step, deps)
        _prepare(x, step, course, deps)
        begin(step)
        if hedged and course is not None:
            x.hedge = _hedge(x, step, course, deps)
        try:
            try:
                await call_next(x)
            finally:
                step = _survivor(x, step, deps)
        except (UpstreamError, BadRequest) as error:
            now_s = monotonic()
            if _teaches(x, error, router, now_s):
                continue
            failed = _judged(error)
            fail(step, failed, now_s, router.rules)
            if _is_overload(error):
                health = step.candidate.health
                health.crowd.overload(outstanding=health.outstanding, now_s=now_s)
            if x.committed:
                raise
            heard = error if heard is None or _tells(error) >= _tells(heard) else heard
            following = None if course is None or _is_spent(x) else course.after(step, failed, now_s)
            if following is None:
                _give_up(x, heard)
                raise heard from None
            if following.candidate is not step.candidate:
                deps.telemetry.count_fallback(error.error_type)
        else:
            _remember(x, step, course, monotonic())
            return
        finally:
            end(step)
        step = following


def _set_out(x: Exchange, menu: Menu, router: Router) -> Course:
    assert x.call is not None
    key = conversation_of(x.call) if menu.warm and router.settings.routing.sticky else b""
    asked = Asked(stream=x.call.peek.stream, input_tokens=x.input_tokens, output_tokens=x.output_tokens, key=key)
    return Course(
        menu, asked=asked, rules=router.rules, budget=router.budget, chance=router.chance, started_s=x.started_s
    )


def _prepare(x: Exchange, step: Step, course: Course | None, deps: Deps) -> None:
    """Set what this try needs, and take back what an earlier one left."""
    router = deps.router
    offer = step.candidate.offer
    now_s = deps.clock.monotonic()
    if router.lessons.know(offer, now_s):
        offer = msgspec.structs.replace(offer, ask_usage=False)
    x.offer = offer
    x.provider = deps.providers[offer.provider] if offer.own is None else deps.provider_of(offer)
    x.key = step.key.number
    x.timeouts = offer.timeouts
    x.on_begun = None
    if step.candidate.health.breaker.state:
        # Others wait for this one to find out: not for the end of a long stream.
        x.on_begun = partial(_begun, step, deps)
    if course is None:
        return
    x.holdback = router.holdback(x) if course.has_more(now_s) and not _is_single(x) else None
    if x.attempts:
        x.tap = None
        x.first_byte_s = None
        x.streaming = False
        timeouts = offer.timeouts or x.provider.timeouts
        left_s = max(0.001, x.started_s + router.rules.deadline_s - now_s)
        if timeouts.first_byte_s > left_s:
            x.timeouts = msgspec.structs.replace(timeouts, first_byte_s=left_s)


async def _wait(x: Exchange, step: Step, deps: Deps) -> None:
    """Wait until there is a place for this try.

    Raises:
        Overloaded: there was none in time.
    """
    assert x.principal is not None
    health = step.candidate.health
    asked_s = deps.clock.monotonic()
    try:
        await health.crowd.wait(x.principal.priority, chance=deps.router.chance())
    except Overloaded:
        deps.telemetry.count_shed("provider", PRIORITY_NAMES[x.principal.priority])
        raise
    except asyncio.CancelledError:
        # It may have been given a place in the same moment.
        health.crowd.wake(health.outstanding)
        raise
    finally:
        x.upstream_s = (x.upstream_s or 0.0) + deps.clock.monotonic() - asked_s


def _hedge(x: Exchange, step: Step, course: Course, deps: Deps) -> Hedge | None:
    """What may be done should this try take long."""
    assert x.call is not None
    router, stream = deps.router, x.call.peek.stream
    if step.probe or x.attempts:
        # One that finds out about a provider is to be heard to its end, and one that comes after a failure is a
        # second try already.
        return None
    router.hedges.earn()
    usual_s = step.candidate.health.heads[stream].read()

    def second() -> Step | None:
        if not router.hedges.spend():
            return None
        other = course.beside(step, deps.clock.monotonic())
        if other.candidate.health.is_full:
            return None
        begin(other)
        return other

    return Hedge(
        inf if usual_s is None else max(usual_s, router.hedges.rules.least_s),
        begin=second,
        observe=lambda which, seconds: which.candidate.health.heads[stream].observe(seconds),
        first=step,
    )


def _survivor(x: Exchange, step: Step, deps: Deps) -> Step:
    """Whichever of two tries goes on; the other one is over."""
    hedge, x.hedge = x.hedge, None
    if hedge is None or hedge.step is None:
        return step
    survivor, other = (hedge.step, step) if hedge.won else (step, hedge.step)
    if isinstance(hedge.lost, UpstreamError):
        fail(other, _judged(hedge.lost), deps.clock.monotonic(), deps.router.rules)
    end(other)
    return survivor


def _begun(step: Step, deps: Deps) -> None:
    succeed(step, deps.clock.monotonic())


def _teaches(x: Exchange, error: GatewayError, router: Router, now_s: float) -> bool:
    """Whether the failure is about a field that the gateway added: then the same is tried without it."""
    assert x.call is not None
    assert x.offer is not None
    if (
        x.committed
        or _is_spent(x)
        or not isinstance(error, UpstreamRefused)
        or not names_our_field(error, x.call, x.offer)
    ):
        return False
    router.lessons.learn(x.offer, now_s)
    return True


def _is_single(x: Exchange) -> bool:
    """Whether the body can be sent once only: an upload that is passed on as it comes."""
    return x.call is not None and x.call.upload is not None and not x.call.upload.replayable


def _is_spent(x: Exchange) -> bool:
    """Whether that has happened."""
    return x.call is not None and x.call.upload is not None and x.call.upload.consumed


def _is_overload(error: GatewayError) -> bool:
    """Whether it says that the provider has more to do than it can."""
    if isinstance(error, UpstreamRefused):
        return error.status in _OVERLOADED
    return isinstance(error, UpstreamTimeout)


def _judged(error: GatewayError) -> Failed:
    if isinstance(error, UpstreamCredentials):
        model_only = error.refused_status == _FORBIDDEN
        return Failed(verdict=judge(error), retry_after_s=error.back_after_s, model_only=model_only)
    return Failed(verdict=judge(error), retry_after_s=error.retry_after_s)


def _tells(error: GatewayError) -> int:
    """How much a caller learns from it."""
    if isinstance(error, UpstreamRefused | OwnKeyRefused):
        return 2
    if isinstance(error, BadRequest):
        return -1
    return 0 if isinstance(error, UpstreamCredentials) else 1


def _give_up(x: Exchange, heard: GatewayError) -> None:
    """Set what the books are to say: nothing was delivered, and why."""
    x.tap = None
    x.error = heard
    x.status = error_status(x.target.dialect, heard.status)


def _remember(x: Exchange, step: Step, course: Course | None, now_s: float) -> None:
    """What a good answer says about its offer."""
    if x.spoken is None:
        # Nobody was asked.
        return
    if x.tap is not None and x.tap.errored:
        # It began well and ended in an error: that says neither that the provider works nor that it does not.
        return
    succeed(step, now_s)
    health, usage = step.candidate.health, x.usage
    tokens = 0 if usage is None else usage.output_tokens
    begun_s = x.first_byte_s if x.streaming else now_s
    if begun_s is None:
        return
    took_s = begun_s - x.sent_s
    health.crowd.observe(took_s, tokens, stream=x.streaming, outstanding=health.outstanding, now_s=now_s)
    if course is None:
        return
    if not x.streaming:
        health.total.observe(took_s, now_s)
        return
    health.first_token.observe(took_s, now_s)
    if tokens and now_s > begun_s:
        health.rate.observe(tokens / (now_s - begun_s), now_s)
