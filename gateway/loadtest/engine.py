"""Runs a load: starts requests when the schedule says so, on as few connections as that takes, and measures.

Rules
- A run is warm-up, window, grace. Rates count what happened in the window; latencies also what ended in the grace,
  so that the slow ones aren't left out. What even then has not ended is `unfinished`, what could not start because
  all streams were taken is `unsent`; either says that the percentiles are too good.
- The generator never decides anything by how fast the server is, but for `streams`, the bound on requests at a time.
- A connection that failed keeps its place among the streams for `PAUSE_S`: a dead server isn't hammered.
- No task and no future for each request: callbacks from the connections, one ticker, one sweep for timeouts.

It does not judge, print or pin processors; `gateway bench` and `benchmarks/` do.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from gateway.infra.clock import Clock
from gateway.infra.tasks import TaskGroup
from gateway.loadtest.connection import Connection, End
from gateway.loadtest.origin import Origin, Unreachable
from gateway.loadtest.result import Measurement, Result, quantiles
from gateway.loadtest.schedule import ClosedLoop, OpenLoop, Schedule
from gateway.loadtest.ticker import Ticker

PAUSE_S: Final = 0.1
_SWEEP_S: Final = 0.25
_ENDS: Final = {End.CLOSED: "connection closed early", End.GARBLED: "answer is not HTTP/1.1"}

#: Sees every piece of body of the window and when it was read; for measurements that need the content.
Look = Callable[[bytes, float], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send, how often and for how long."""

    origin: Origin
    request: bytes
    #: Most requests at a time.
    streams: int
    #: Arrivals a second (open loop), or None: always `streams` at a time (closed loop).
    rate: float | None
    window_s: float
    warmup_s: float
    grace_s: float
    #: Without a byte for so long, a request has failed.
    timeout_s: float
    #: Closed loop: the first requests are spread over this.
    ramp_s: float


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A look at a running load."""

    phase: str
    #: Of the phase: how long it has run and how long it takes.
    elapsed_s: float
    length_s: float
    running: int
    overdue: int
    completed: int
    failed: int
    events: int
    latency_p50_ms: float
    latency_p99_ms: float


class Engine:
    """One run of a `Plan`. `run` may be called once; `progress` and `stop` at any time from the same loop."""

    def __init__(self, plan: Plan, *, clock: Clock, look: Look | None = None) -> None:
        self._plan = plan
        self._clock = clock
        self._look = look
        self._tasks = TaskGroup()
        self._measured = Measurement()
        self._schedule: Schedule = ClosedLoop(streams=plan.streams, ramp_s=0.0, start_s=0.0)
        self._idle: dict[Connection, None] = {}
        self._running: set[Connection] = set()
        self._connecting = 0
        self._pausing = 0
        self._launching = False
        self._in_window = False
        self._window_start_s = 0.0
        self._phase = ("starting", 0.0, 0.0)
        self._stopped = asyncio.Event()
        self._quiet = asyncio.Event()

    def stop(self) -> None:
        """End the run now; `run` returns what was measured so far."""
        self._stopped.set()
        self._quiet.set()

    def progress(self) -> Progress:
        phase, started_s, length_s = self._phase
        now_s = self._clock.monotonic()
        measured = self._measured
        return Progress(
            phase=phase,
            elapsed_s=max(0.0, now_s - started_s),
            length_s=length_s,
            running=len(self._running) + self._connecting,
            overdue=self._schedule.overdue(now_s) if self._launching else 0,
            completed=measured.completed,
            failed=measured.failed,
            events=measured.events,
            latency_p50_ms=measured.latency.percentile_ns(50) / 1e6,
            latency_p99_ms=measured.latency.percentile_ns(99) / 1e6,
        )

    async def run(self) -> Result:
        """Warm up, measure, wait for what is running, close everything.

        Raises Unreachable when the origin accepts no connection at all.
        """
        plan = self._plan
        await plan.origin.resolve()
        start_s = self._clock.monotonic()
        self._schedule = (
            OpenLoop(rate=plan.rate, start_s=start_s)
            if plan.rate
            else ClosedLoop(streams=plan.streams, ramp_s=plan.ramp_s, start_s=start_s)
        )
        ticker = Ticker(
            loop=asyncio.get_running_loop(),
            clock=self._clock,
            next_due_s=self._schedule.next_due_s,
            wake=self._launch,
        )
        sweep = self._tasks.spawn(self._sweep(), name="loadtest sweep")
        try:
            self._launching = True
            ticker.start()
            if plan.warmup_s:
                await self._pass("warm-up", plan.warmup_s)
            self._open_window(start_s if not plan.warmup_s else self._clock.monotonic())
            await self._pass("measuring", plan.window_s)
            return await self._close_window()
        finally:
            self._launching = False
            ticker.stop()
            sweep.cancel()
            for connection in (*self._running, *self._idle):
                connection.abort()
            await self._tasks.close()

    async def _pass(self, phase: str, length_s: float) -> None:
        """Let time go by, or return at once when stopped."""
        self._phase = (phase, self._clock.monotonic(), length_s)
        try:
            async with asyncio.timeout(length_s):
                await self._stopped.wait()
        except TimeoutError:
            return

    def _open_window(self, now_s: float) -> None:
        self._window_start_s = now_s
        self._measured = Measurement()
        self._in_window = True

    async def _close_window(self) -> Result:
        now_s = self._clock.monotonic()
        self._launching = False
        self._in_window = False
        counted = self._measured
        completed, events, received = counted.completed, counted.events, counted.received_bytes
        unsent = self._schedule.overdue(now_s)
        window_s = max(now_s - self._window_start_s, 1e-9)
        if self._running or self._connecting:
            self._quiet.clear()
            self._phase = ("finishing", now_s, self._plan.grace_s)
            if not self._stopped.is_set():
                try:
                    async with asyncio.timeout(self._plan.grace_s):
                        await self._quiet.wait()
                except TimeoutError:
                    pass
        return Result(
            loop="open" if self._plan.rate else "closed",
            streams=self._plan.streams,
            rate=self._plan.rate,
            window_s=round(window_s, 3),
            completed=completed,
            failed=counted.failed,
            unfinished=len(self._running) + self._connecting,
            unsent=unsent,
            events=events,
            received_bytes=received,
            requests_per_s=round(completed / window_s, 1),
            events_per_s=round(events / window_s, 1),
            latency=quantiles(counted.latency),
            first_token=quantiles(counted.first_token),
            between_events=quantiles(counted.between_events),
            connect=quantiles(counted.connect),
            start_delay=quantiles(counted.start_delay),
            errors=dict(sorted(counted.errors.items(), key=lambda item: -item[1])),
            error_samples=dict(counted.error_samples),
        )

    # Starting.

    def _launch(self) -> None:
        """Start whatever is due, as long as there is a place for it."""
        while self._launching and len(self._running) + self._connecting + self._pausing < self._plan.streams:
            due_s = self._schedule.take(self._clock.monotonic())
            if due_s is None:
                return
            if self._idle:
                self._send(self._idle.popitem()[0], due_s)
            else:
                self._connecting += 1
                self._tasks.spawn(self._connect_and_send(due_s), name="loadtest connect")

    async def _connect_and_send(self, due_s: float) -> None:
        started_s = self._clock.monotonic()
        try:
            connection = await self._plan.origin.connect(lambda: Connection(self, self._clock))
        except Unreachable as error:
            self._measured.fail(str(error))
            self._pause()
        else:
            self._measured.connect.record(_ns(self._clock.monotonic() - started_s))
            self._send(connection, due_s)
        finally:
            self._connecting -= 1
            self._ended()

    def _send(self, connection: Connection, due_s: float) -> None:
        connection.due_s = due_s
        self._running.add(connection)
        connection.send(self._plan.request)
        self._measured.start_delay.record(_ns(connection.active_s - due_s))

    def _pause(self) -> None:
        self._pausing += 1

        def resume() -> None:
            self._pausing -= 1
            self._launch()

        asyncio.get_running_loop().call_later(PAUSE_S, resume)

    # What connections report.

    def on_body(self, connection: Connection, piece: bytes, events: int, now_s: float) -> None:
        measured = self._measured
        if self._in_window:
            measured.received_bytes += len(piece)
            measured.events += events
            if self._look is not None:
                self._look(piece, now_s)
        last_s = connection.last_event_s
        if events:
            if last_s:
                measured.between_events.record(_ns(now_s - last_s))
            if events > 1:
                measured.between_events.record(0, times=events - 1)
        elif connection.streams or last_s:
            return
        connection.last_event_s = now_s
        if not last_s:
            measured.first_token.record(_ns(now_s - connection.due_s))

    def on_end(self, connection: Connection, end: End, now_s: float) -> None:
        self._running.discard(connection)
        measured = self._measured
        if end is not End.COMPLETE:
            measured.fail(_ENDS[end])
            self._pause()
        elif not 200 <= connection.status < 300:
            measured.fail(f"HTTP {connection.status}", sample=connection.tail)
        elif connection.streams and _is_error(connection.tail):
            measured.fail("error event in the stream", sample=connection.tail)
        else:
            if self._in_window:
                measured.completed += 1
            measured.latency.record(_ns(now_s - connection.due_s))
        if connection.open:
            self._idle[connection] = None
        self._ended()

    def on_idle_lost(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def _ended(self) -> None:
        if self._launching:
            self._launch()
        elif not self._running and not self._connecting:
            self._quiet.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            oldest_s = self._clock.monotonic() - self._plan.timeout_s
            for connection in [one for one in self._running if one.active_s < oldest_s]:
                self._running.discard(connection)
                connection.abort()
                self._measured.fail(f"timeout: nothing for {self._plan.timeout_s:g} s")
                self._ended()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _is_error(tail: bytes) -> bool:
    """Whether a stream's last bytes are an error event of OpenAI's or Anthropic's kind, and not a regular end."""
    return (b'data: {"error"' in tail or b"event: error" in tail) and b"data: [DONE]" not in tail
