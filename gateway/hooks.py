"""How the gateway calls plugins: at four points of the stages, and none of it is there where no plugin is on.

Rules:
- Plugins are called in the order of the configuration, but those that rewrite bodies come first: whoever only reads
  one sees what will leave.
- A plugin refuses a request by raising a GatewayError in `on_request`. Whatever else goes wrong in a hook never fails
  a request: it is counted each time and logged once for each hook and kind of error. The one exception is a plugin
  that calls itself `essential`: where its `on_request` fails, the request is refused with a 503.
- `on_request` and `on_settled` may wait, for `timeout_s` each time; `on_attempt` and `on_head` are plain functions in
  the way of every byte, and what they return is checked.
- `on_settled` is called from a queue of each plugin's own, so that a slow one delays neither requests nor another
  plugin. A queue that is full loses records, and counts them.
- Only a plugin that declares `reads_body` gets to see a body, and only one that declares `rewrites_body` may change
  it. A request that such a one has looked at has left the path on which bytes are not touched; `gateway doctor` names
  these plugins, `gateway_bodies_read_total` counts the requests.
"""

import asyncio
import contextlib
import logging
import re
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Final, TypeVar, cast

import msgspec

from gateway.api import (
    ConfigError,
    Headers,
    Lifecycle,
    Offer,
    OnAttempt,
    OnHead,
    OnRequest,
    OnSettled,
    Request,
    Settled,
    UpstreamRequest,
)
from gateway.errors import BadRequest, GatewayError, PluginFailed
from gateway.exchange import Call, Exchange
from gateway.infra.clock import Clock, SystemClock
from gateway.infra.metrics import Observations
from gateway.infra.metrics import Registry as MetricsRegistry
from gateway.infra.tasks import TaskGroup
from gateway.plugins import Plugged, load_plugins
from gateway.registry import Discover, installed
from gateway.settings import Settings
from gateway.telemetry import STORE_BOUNDS_S, Record
from gateway.wire.dialects import GEMINI_DIALECTS
from gateway.wire.gemini import peek_gemini
from gateway.wire.peek import Peek, peek

log = logging.getLogger(__name__)

T = TypeVar("T")


#: Ended requests that wait to be told to one plugin.
QUEUE_MAX: Final = 10_000
#: How long a plugin that is stopped may take to hear of the last requests.
DRAIN_S: Final = 5.0

_HEADER_NAME: Final = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(rb"[^\x00\r\n]*")
#: What frames a message is not a plugin's to say, nor who asks.
_FRAMING: Final = frozenset(
    {
        *(b"connection", b"content-encoding", b"content-length", b"content-type", b"expect", b"host", b"keep-alive"),
        *(b"authorization", b"cookie", b"proxy-authorization", b"set-cookie", b"te", b"trailer"),
        *(b"transfer-encoding", b"upgrade", b"accept-encoding"),
    }
)


class Hooks:
    """What the stages call. `start` before the first request, `stop` after the last."""

    def __init__(
        self, plugged: tuple[Plugged, ...], *, metrics: MetricsRegistry | None = None, clock: Clock | None = None
    ) -> None:
        self.plugged = plugged
        self._clock = clock or SystemClock()
        self.monotonic = self._clock.monotonic
        self._faults: set[tuple[str, str, str]] = set()
        self._running = contextlib.AsyncExitStack()
        self._declare(metrics or MetricsRegistry(incarnation="unread"))
        self._asked = [
            (each, each.plugin, self._timed(each, "on_request"))
            for each in plugged
            if isinstance(each.plugin, OnRequest)
        ]
        self._attempted = [
            (each, each.plugin, self._timed(each, "on_attempt"))
            for each in plugged
            if isinstance(each.plugin, OnAttempt)
        ]
        self._headed = [
            (each, each.plugin, self._timed(each, "on_head")) for each in plugged if isinstance(each.plugin, OnHead)
        ]
        self._told = [
            _Outbox(each, each.plugin, self._timed(each, "on_settled"), self)
            for each in plugged
            if isinstance(each.plugin, OnSettled)
        ]

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        metrics: MetricsRegistry | None = None,
        clock: Clock | None = None,
        entry_points: Discover = installed,
    ) -> "Hooks | None":
        """Those of a configuration; None where no plugin is on.

        Raises:
            ConfigError: as `load_plugins`.
        """
        plugged = load_plugins(settings, entry_points=entry_points)
        return cls(plugged, metrics=metrics, clock=clock) if plugged else None

    def _declare(self, metrics: MetricsRegistry) -> None:
        self._seconds = metrics.histogram(
            "gateway_plugin_seconds", "Time spent in plugins' hooks.", ("plugin", "hook"), bounds=STORE_BOUNDS_S
        )
        self._troubles = metrics.counter(
            "gateway_plugin_troubles_total",
            "Hooks that rejected a request, failed, took too long, returned what can't be used, or lost a record.",
            ("plugin", "hook", "trouble"),
        )
        self._bodies = metrics.counter(
            "gateway_bodies_read_total",
            "Requests whose body a plugin has read, and so left the path on which bytes are not touched.",
            ("plugin", "outcome"),
        )

    def _timed(self, each: Plugged, hook: str) -> Observations:
        return self._seconds.bind(each.name, hook)

    # -- a life ------------------------------------------------------------------------------------------------

    async def start(self, tasks: TaskGroup) -> None:
        """Start the plugins that have a life of their own, and the queues.

        Raises:
            ConfigError: one could not; those already started are stopped.
        """
        async with contextlib.AsyncExitStack() as stack:
            for each in self.plugged:
                if isinstance(each.plugin, Lifecycle):
                    try:
                        await each.plugin.start()
                    except Exception as error:
                        reason = (
                            error.message if isinstance(error, GatewayError) else f"{type(error).__name__}: {error}"
                        )
                        raise ConfigError(
                            f"plugins.{each.name}: {each.package} could not start: {reason}",
                            param=f"plugins.{each.name}",
                        ) from error
                    stack.push_async_callback(self._stop, each, each.plugin)
            for outbox in self._told:
                tasks.spawn(outbox.tell_forever(), name=f"plugin {outbox.each.name}")
                stack.push_async_callback(outbox.drain)
            self._running = stack.pop_all()

    async def stop(self) -> None:
        """Tell what is still to be told, then stop what was started, last first."""
        await self._running.aclose()

    async def _stop(self, each: Plugged, plugin: Lifecycle) -> None:
        try:
            async with asyncio.timeout(each.timeout_s):
                await plugin.stop()
        except Exception:  # the border: what is stopped has no say any more
            log.exception("plugin %s of %s did not stop", each.name, each.package)

    # -- what the stages call ----------------------------------------------------------------------------------

    async def ask(self, x: Exchange) -> None:
        """Show the request to the plugins; sets `x.seen`, and `x.call` where one has rewritten its body.

        Raises:
            GatewayError: one refuses it.
        """
        notes: dict[str, object] = {}
        x.seen = Request(x, notes=notes, readable=False)
        readable = Request(x, notes=notes, readable=True)
        monotonic = self._clock.monotonic
        for each, plugin, seconds in self._asked:
            started_s = monotonic()
            try:
                body = await _within(each.timeout_s, plugin.on_request(readable if each.reads_body else x.seen))
                if body is not None:
                    _rewrite(x, each, body)
            except GatewayError:
                self._troubles.add((each.name, "on_request", "rejected"))
                raise
            except Exception as error:  # noqa: BLE001  the border between the gateway and its plugins
                self.fault(each, "on_request", error)
                if each.essential:
                    raise PluginFailed(detail=f"plugin {each.name}: {type(error).__name__}") from None
                body = None
            finally:
                seconds.observe(monotonic() - started_s)
            if each.reads_body and readable.has_body:
                self._bodies.add((each.name, "untouched" if body is None else "rewritten"))

    def attempt(self, x: Exchange, offer: Offer, request: UpstreamRequest) -> UpstreamRequest:
        """The request with what plugins add."""
        assert x.seen is not None
        if not self._attempted:
            return request
        shown = msgspec.structs.replace(request, headers=[], body=b"")
        added: Headers = []
        for each, plugin, seconds in self._attempted:
            started_s = self._clock.monotonic()
            try:
                given = plugin.on_attempt(x.seen, offer, shown)
                if given:
                    added += _checked(given, [*request.headers, *added])
            except Exception as error:  # noqa: BLE001  the border between the gateway and its plugins
                self.fault(each, "on_attempt", error)
            seconds.observe(self._clock.monotonic() - started_s)
        return msgspec.structs.replace(request, headers=[*request.headers, *added]) if added else request

    def head(self, x: Exchange, status: int, headers: Headers) -> Headers:
        """What plugins add to the head of an answer."""
        assert x.seen is not None
        added: Headers = []
        for each, plugin, seconds in self._headed:
            started_s = self._clock.monotonic()
            try:
                given = plugin.on_head(x.seen, status, [*headers, *added])
                if given:
                    added += _checked(given, [*headers, *added])
            except Exception as error:  # noqa: BLE001  the border between the gateway and its plugins
                self.fault(each, "on_head", error)
            seconds.observe(self._clock.monotonic() - started_s)
        return added

    def settled(self, x: Exchange, record: Record) -> None:
        """Put an ended request into the queues."""
        if not self._told:
            return
        settled = _settled(x, record, self._clock)
        for outbox in self._told:
            outbox.put(settled)

    def fault(self, each: Plugged, hook: str, error: Exception) -> None:
        """Count it; log the first of its kind."""
        trouble = "late" if isinstance(error, TimeoutError) else "failed"
        self._troubles.add((each.name, hook, trouble))
        kind = (each.name, hook, type(error).__name__)
        if kind not in self._faults:
            self._faults.add(kind)
            log.error(
                "plugin %s of %s failed in %s; further failures of this kind are only counted",
                each.name,
                each.package,
                hook,
                exc_info=error,
            )

    def lost(self, each: Plugged) -> None:
        """Count a record that a plugin will not hear of; log the first one."""
        self._troubles.add((each.name, "on_settled", "lost"))
        kind = (each.name, "on_settled", "lost")
        if kind not in self._faults:
            self._faults.add(kind)
            log.error("plugin %s of %s is too slow: records are lost", each.name, each.package)


class _Outbox:
    """Ended requests on their way to one plugin."""

    def __init__(self, each: Plugged, plugin: OnSettled, seconds: Observations, hooks: Hooks) -> None:
        self.each = each
        self._plugin = plugin
        self._seconds = seconds
        self._hooks = hooks
        self._queue: asyncio.Queue[Settled] = asyncio.Queue(QUEUE_MAX)

    def put(self, settled: Settled) -> None:
        try:
            self._queue.put_nowait(settled)
        except asyncio.QueueFull:
            self._hooks.lost(self.each)

    async def tell_forever(self) -> None:
        monotonic = self._hooks.monotonic
        while True:
            settled = await self._queue.get()
            started_s = monotonic()
            try:
                await _within(self.each.timeout_s, self._plugin.on_settled(settled))
            except Exception as error:  # noqa: BLE001  the border between the gateway and its plugins
                self._hooks.fault(self.each, "on_settled", error)
            finally:
                self._queue.task_done()
            self._seconds.observe(monotonic() - started_s)

    async def drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await self._queue.join()
        for _ in range(self._queue.qsize()):
            self._hooks.lost(self.each)


async def _within(timeout_s: float, hook: Coroutine[Any, Any, T]) -> T:
    """What a hook returns, in time. One that has nothing to wait for is done with the first step, as most are, and
    then no timer is set.

    Raises:
        TimeoutError: it took too long.
    """
    try:
        waiting = hook.send(None)
    except StopIteration as done:
        # StopIteration has no types; this one is what `hook` returned.
        return cast("T", done.value)
    async with asyncio.timeout(timeout_s):
        return await _resumed(hook, waiting)


@types.coroutine
def _resumed(hook: Coroutine[Any, Any, T], waiting: object) -> Generator[Any, Any, T]:
    """The rest of a coroutine that has begun, and waits for `waiting`."""
    while True:
        step: Callable[[], object]
        try:
            answer = yield waiting
        except BaseException as error:  # noqa: BLE001  whatever a task is told is for the hook to hear
            step = partial(hook.throw, error)
        else:
            step = partial(hook.send, answer)
        try:
            waiting = step()
        except StopIteration as done:
            return cast("T", done.value)


def _rewrite(x: Exchange, each: Plugged, body: bytes) -> None:
    """Put a plugin's body in the place of the caller's.

    Raises:
        ValueError: that is not for this plugin to do, or it would be another request.
    """
    call = x.call
    if not each.rewrites_body:
        raise ValueError("it returned a body, but does not declare rewrites_body")
    if call is None or not call.body:
        raise ValueError("it returned a body where there is none")
    look: Callable[[bytes], Peek] = peek
    if call.dialect in GEMINI_DIALECTS:
        look = _look_gemini(call)
    try:
        before, after = look(call.body), look(body)
    except BadRequest as error:
        raise ValueError(f"what it returned is no request: {error.message}") from error
    if _asks(before) != _asks(after):
        raise ValueError("what it returned asks for something else than the caller did")
    # What else is known of the body stays: in some dialects the path says part of it.
    known = call.peek
    after = msgspec.structs.replace(
        after,
        stream=known.stream,
        max_output_tokens=known.max_output_tokens,
        n=known.n,
        service_tier=known.service_tier,
    )
    x.call = msgspec.structs.replace(call, body=body, peek=after)


def _look_gemini(call: Call) -> Callable[[bytes], Peek]:
    return lambda body: peek_gemini(body, stream=call.peek.stream)


def _asks(seen: Peek) -> tuple[object, ...]:
    """What decides where a request goes and what it costs."""
    return (
        *(seen.model, seen.stream, seen.include_usage, seen.max_output_tokens, seen.n, seen.service_tier),
        *(seen.background, seen.store, seen.models_span is None, seen.provider_span is None),
    )


def _checked(given: Headers, there: Headers) -> Headers:
    """Those of `given` that are not there already.

    Raises:
        ValueError: one is no header, or says what plugins have no say in.
    """
    names = {name for name, _ in there}
    for name, value in given:
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"{name!r} with that value is no header; names are lower case")
        if name in _FRAMING or name.startswith(b"x-gateway-"):
            raise ValueError(f"{name!r} is not a header that plugins write")
    return [(name, value) for name, value in given if name not in names]


def _settled(x: Exchange, record: Record, clock: Clock) -> Settled:
    seen, offer = x.seen, x.offer
    return Settled(
        id=record.id,
        method=record.method,
        route=record.route,
        dialect=x.target.dialect,
        operation=record.operation,
        status=record.status,
        error_type=record.error_type,
        aborted_by=record.aborted_by,
        account_id=record.account,
        key_id=record.key,
        model=record.model,
        upstream_model="" if offer is None else offer.upstream_model,
        provider=record.provider,
        attempts=tuple(x.attempts),
        stream=record.stream,
        started_at=clock.now() - record.duration_s,
        duration_s=record.duration_s,
        first_byte_s=record.first_byte_s,
        upstream_s=record.upstream_s,
        bytes_in=record.bytes_in,
        bytes_out=record.bytes_out,
        usage=x.usage,
        cost_nanos=record.cost_nanos,
        client=record.client,
        tags=dict(x.tags),
        notes={} if seen is None else seen.notes,
    )
