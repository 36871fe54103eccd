"""The measurements. Each takes one target through one round and gives back plain numbers.

`json`        closed loop, 64 connections, one small completion each: requests a second
`burst`       closed loop, 64 connections, 50 events in one write: streams a second
`saturation`  paced streams, ever more of them: events a second that still come as they are sent
`translated`  the same for streams that are translated, and what share that is of those that are relayed
`paced`       500 paced streams: how much later an event is read than it was sent
`memory`      resident memory of the relaying process, idle and with 1,000 streams open

Beside each stands what the processors did: whoever is near 1.0 was the bottleneck, and if that is not the target, the
figure is a floor. Start-up and soak are the gateway's own and stand at the end.
"""

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from benchmarks import machine, wrk
from benchmarks.sink import Point, Sink, hold, ramp, sustained
from benchmarks.targets import ANTHROPIC, CHAT, CHAT_ONLY, GOOGLE, Gateway, Providers, Target
from gateway.infra.clock import SystemClock
from gateway.loadtest.engine import Engine, Plan
from gateway.loadtest.histogram import Histogram
from gateway.loadtest.origin import Origin, Unreachable
from gateway.loadtest.probe import Answer, probe
from gateway.loadtest.result import Result

CONNECTIONS: Final = 64
BURST_EVENTS: Final = 50
PACED_STREAMS: Final = 500
MEMORY_STREAMS: Final = 1000
RAMP_FIRST_STREAMS: Final = 500
#: More events than any run takes: the stream is open until the generator hangs up.
_ENDLESS: Final = 1_000_000
#: What a process that has just started may take to come to rest.
_SETTLE_S: Final = 1.0
#: Processor time in as long that is next to nothing, and how often it is looked.
_RESTING_S: Final = 0.05
_REST_TRIES: Final = 15
_CLOCK: Final = SystemClock()
_MB: Final = 1024 * 1024


class Sample(msgspec.Struct, kw_only=True):
    """One scenario on one target in one round."""

    scenario: str
    target: str
    round: int
    metrics: dict[str, float]
    #: Shares of one processor: the relaying process (`target`), what runs `beside` it (its databases), the
    #: `providers`, the generator (`load`), and `others`, who had no business on these processors.
    cpu: dict[str, float]
    #: Named series of (x, y) for the report.
    curves: dict[str, list[tuple[float, float]]] = msgspec.field(default_factory=dict)


class Invalid(Exception):
    """A measurement that must not be shown: the target answered with errors, or not in full."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every scenario needs."""

    providers: Providers
    scratch: Path
    #: The measured one and the generator's.
    cores: tuple[int, int]
    window_s: float
    #: Streams that the ramp adds each second.
    ramp_streams_per_s: int
    ramp_streams_max: int
    #: Whether wrk generates the closed loops; all targets of a run get the same.
    use_wrk: bool


#: Metrics and curves.
Outcome = tuple[dict[str, float], dict[str, list[tuple[float, float]]]]
Scenario = Callable[[Bench, Target], Outcome]


@dataclass(kw_only=True)
class _Usage:
    """Processor time between two moments, as shares of one processor, known once the block has ended."""

    shares: dict[str, float] = field(default_factory=dict)


@contextmanager
def _watched(bench: Bench, target: Target) -> Iterator[_Usage]:
    relay = target.relay_pid()
    groups = {
        "target": [relay] if relay else [],
        "beside": [pid for pid in target.pids() if pid != relay],
        "providers": list(bench.providers.pids),
    }

    def read() -> dict[str, float]:
        spent = {name: sum(map(machine.cpu_s, pids)) for name, pids in groups.items()}
        times = os.times()
        # Ours, and that of our ended children (wrk).
        spent["load"] = times.user + times.system + times.children_user + times.children_system
        spent["others"] = machine.busy_s(bench.cores) - sum(spent.values())
        return spent

    usage = _Usage()
    before = read()
    start_s = _CLOCK.monotonic()
    yield usage
    elapsed_s = _CLOCK.monotonic() - start_s
    usage.shares = {name: round((after - before[name]) / elapsed_s, 3) for name, after in read().items()}


def measure(name: str, bench: Bench, target: Target, *, round_number: int) -> Sample:
    """Run a scenario once.

    Raises Invalid.
    """
    gc.collect()
    with _watched(bench, target) as usage:
        metrics, curves = SCENARIOS[name](bench, target)
    return Sample(
        scenario=name,
        target=target.name,
        round=round_number,
        metrics={key: round(value, 3) for key, value in metrics.items()},
        cpu=usage.shares,
        curves=curves,
    )


def body(model: str, *, stream: bool) -> bytes:
    """A request as an application would send it, of some 300 bytes."""
    streaming = b',"stream":true,"stream_options":{"include_usage":true}' if stream else b""
    return (
        b'{"model":"' + model.encode() + b'","messages":[{"role":"system","content":"You are a helpful assistant."},'
        b'{"role":"user","content":"In one sentence, what should a gateway cost, and how would you prove it?"}],'
        b'"temperature":0.2,"max_tokens":64' + streaming + b"}"
    )


def message_body(model: str) -> bytes:
    """The same for Anthropic's Messages API."""
    return (
        b'{"model":"' + model.encode() + b'","max_tokens":64,"stream":true,"system":"You are a helpful assistant.",'
        b'"messages":[{"role":"user","content":"In one sentence, what should a gateway cost?"}]}'
    )


def response_body(model: str) -> bytes:
    """The same for OpenAI's Responses API."""
    return (
        b'{"model":"' + model.encode() + b'","max_output_tokens":64,"stream":true,"instructions":"You are helpful.",'
        b'"input":"In one sentence, what should a gateway cost, and how would you prove it?"}'
    )


def _chat_body(model: str) -> bytes:
    return body(model, stream=True)


RELAY: Final = "relay"
#: Whose stream is asked of whom: the caller's path and request, and the model that leads to the provider.
TRANSLATIONS: Final[dict[str, tuple[str, str, Callable[[str], bytes]]]] = {
    RELAY: (CHAT, CHAT_ONLY, _chat_body),
    "chat_from_anthropic": (CHAT, ANTHROPIC, _chat_body),
    "chat_from_google": (CHAT, GOOGLE, _chat_body),
    "messages_from_chat": ("/v1/messages", CHAT_ONLY, message_body),
    "responses_from_chat": ("/v1/responses", CHAT_ONLY, response_body),
}


# The scenarios.


def measure_json(bench: Bench, target: Target) -> Outcome:
    return _closed(
        bench, target, url=target.json_url, request=body("bench-json", stream=False), unit="requests_per_s"
    )


def measure_burst(bench: Bench, target: Target) -> Outcome:
    """Case 114: `cpu_us` is what a stream of known length costs the relaying process."""
    request = body(f"bench-burst-{BURST_EVENTS}", stream=True)
    _verify_burst(target, request)
    return _closed(bench, target, url=target.stream_url, request=request, unit="streams_per_s")


def measure_paced(bench: Bench, target: Target) -> Outcome:
    """Case 113: delays of every event that came in the window, by the time stamp that the provider wrote into it."""
    delays = Histogram()

    def look(piece: bytes, now_s: float) -> None:
        now_ns = int(now_s * 1e9)
        at = piece.find(b'"t":"')
        while at >= 0:
            stamp = piece[at + 5 : at + 24]
            if len(stamp) == 19:
                delays.record(now_ns - int(stamp))
            at = piece.find(b'"t":"', at + 24)

    result = _run(
        target.stream_url,
        target,
        request=body(f"bench-paced-{_ENDLESS}", stream=True),
        streams=PACED_STREAMS,
        warmup_s=2.5,
        window_s=bench.window_s,
        look=look,
    )
    if not delays:
        raise Invalid("no time stamp arrived")
    metrics = {
        "events_per_s": result.events_per_s,
        "delay_p50_ms": delays.percentile_ns(50) / 1e6,
        "delay_p90_ms": delays.percentile_ns(90) / 1e6,
        "delay_p99_ms": delays.percentile_ns(99) / 1e6,
        "delay_p999_ms": delays.percentile_ns(99.9) / 1e6,
        "delay_max_ms": delays.max_ns / 1e6,
    }
    percents = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)
    return metrics, {"delay": [(percent, delays.percentile_ns(percent) / 1e6) for percent in percents]}


def measure_saturation(bench: Bench, target: Target) -> Outcome:
    """`sustained` is where 90 % of what is offered still comes; `peak` the most that came at any overload."""
    points = _ramp(bench, target, _sink(target))
    metrics = {
        "sustained_events_per_s": sustained(points, share=0.9),
        "peak_events_per_s": max(point.delivered_per_s for point in points),
    }
    if target.relay_pid():
        metrics["cpu_us"] = _event_us(points)
    return metrics, {
        "delivered": [(point.offered_per_s, point.delivered_per_s) for point in points],
        "relay cpu": [(point.offered_per_s, point.relay_cpu) for point in points],
    }


def measure_translated(bench: Bench, target: Target) -> Outcome:
    """Saturation, once for streams that are relayed and once for each way of translating them.

    `share_NAME` is what of the relay's events a second are left; of the same minute, on the same machine.
    """
    if not isinstance(target, Gateway):
        return {}, {}
    metrics: dict[str, float] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, (path, model, asked) in TRANSLATIONS.items():
        origin = Origin(target.stream_url.removesuffix(CHAT) + path)
        sink = Sink(port=origin.port, request=origin.render(asked(model), headers=target.headers))
        _rest(target.relay_pid())
        points = _ramp(bench, target, sink)
        metrics[f"{name}_events_per_s"] = sustained(points, share=0.9)
        metrics[f"cpu_us_{name}"] = _event_us(points)
        if name != RELAY:
            metrics[f"share_{name}"] = metrics[f"{name}_events_per_s"] / metrics[f"{RELAY}_events_per_s"]
        curves[name] = [(point.offered_per_s, point.delivered_per_s) for point in points]
    return metrics, curves


def measure_memory(bench: Bench, target: Target) -> Outcome:
    """Case 115: resident memory, idle and with open streams that say little."""
    pid = target.relay_pid()
    if pid is None:
        return {}, {}
    time.sleep(_SETTLE_S)
    idle = machine.rss_bytes(pid)
    sink = _sink(target)
    try:
        hold(sink, streams=MEMORY_STREAMS, seconds=4.0)
        busy = machine.rss_bytes(pid)
        if sink.lost:
            raise Invalid(f"{sink.lost} of {MEMORY_STREAMS} streams were cut")
    finally:
        sink.close()
    return {"idle_mb": idle / _MB, "streams_1000_mb": busy / _MB}, {}


#: In the order in which a round runs them: memory first, while the processes are fresh.
SCENARIOS: Final[dict[str, Scenario]] = {
    "memory": measure_memory,
    "json": measure_json,
    "burst": measure_burst,
    "saturation": measure_saturation,
    "translated": measure_translated,
    "paced": measure_paced,
}


def measure_startup(gateway: Gateway) -> Sample:
    """Exec to the first 200 on /health, on a fresh data directory and on a used one."""
    cold_s = gateway.launch()
    gateway.stop()
    warm_s = gateway.launch()
    gateway.stop()
    return Sample(
        scenario="startup",
        target=gateway.name,
        round=1,
        metrics={"cold_s": round(cold_s, 3), "warm_s": round(warm_s, 3)},
        cpu={},
    )


def measure_soak(bench: Bench, target: Target, *, requests: int) -> Sample:
    """Resident memory over so many JSON requests; `growth_mb` is from a fifth of the way to the end."""
    pid = target.relay_pid()
    if pid is None:
        raise Invalid("there is no process to watch")
    curve: list[tuple[float, float]] = [(0.0, machine.rss_bytes(pid) / _MB)]
    done = 0.0
    with _watched(bench, target) as usage:
        while done < requests:
            metrics, _ = measure_json(bench, target)
            done += metrics["requests_per_s"] * bench.window_s
            curve.append((done, machine.rss_bytes(pid) / _MB))
    settled = next(mb for count, mb in curve if count >= requests / 5)
    return Sample(
        scenario="soak",
        target=target.name,
        round=1,
        metrics={"requests": done, "end_mb": round(curve[-1][1], 1), "growth_mb": round(curve[-1][1] - settled, 1)},
        cpu=usage.shares,
        curves={"memory": curve},
    )


# Generators.


def _closed(bench: Bench, target: Target, *, url: str, request: bytes, unit: str) -> Outcome:
    """`cpu_us` is what one request costs the relaying process: it says the same on a busy machine, or nearly."""
    pid = target.relay_pid()
    before_s = machine.cpu_s(pid) if pid else 0.0
    start_s = _CLOCK.monotonic()
    if bench.use_wrk:
        reached = wrk.saturate(
            url,
            body=request,
            headers=target.headers,
            connections=CONNECTIONS,
            window_s=bench.window_s,
            scratch=bench.scratch,
            core=bench.cores[1],
        )
        if reached.errors:
            raise Invalid(f"{reached.errors} requests failed")
        metrics = {unit: reached.requests_per_s, "p50_ms": reached.p50_ms, "p99_ms": reached.p99_ms}
    else:
        result = _run(
            url, target, request=request, streams=CONNECTIONS, warmup_s=0.5, window_s=bench.window_s, look=None
        )
        metrics = {unit: result.requests_per_s, "p50_ms": result.latency.p50_ms, "p99_ms": result.latency.p99_ms}
    if pid and metrics[unit]:
        busy = (machine.cpu_s(pid) - before_s) / (_CLOCK.monotonic() - start_s)
        metrics["cpu_us"] = busy / metrics[unit] * 1e6
    return metrics, {}


def _run(
    url: str,
    target: Target,
    *,
    request: bytes,
    streams: int,
    warmup_s: float,
    window_s: float,
    look: Callable[[bytes, float], None] | None,
) -> Result:
    origin = Origin(url)
    plan = Plan(
        origin=origin,
        request=origin.render(request, headers=target.headers),
        streams=streams,
        rate=None,
        window_s=window_s,
        warmup_s=warmup_s,
        grace_s=0.0,
        timeout_s=10.0,
        ramp_s=min(1.0, warmup_s),
    )
    gc.disable()
    try:
        result: Result = uvloop.run(Engine(plan, clock=_CLOCK, look=look).run())
    finally:
        gc.enable()
    if result.failed:
        raise Invalid(f"{result.errors} {result.error_samples}")
    return result


def _ramp(bench: Bench, target: Target, sink: Sink) -> list[Point]:
    """Raises Invalid."""
    pid = target.relay_pid()
    try:
        points = ramp(
            sink,
            first=RAMP_FIRST_STREAMS,
            last=bench.ramp_streams_max,
            streams_per_s=bench.ramp_streams_per_s,
            relay_cpu_s=lambda: machine.cpu_s(pid) if pid else 0.0,
        )
    finally:
        sink.close()
    if not points or points[-1].lost:
        raise Invalid(f"{points[-1].lost if points else 'all'} streams were cut")
    return points


def _event_us(points: Sequence[Point]) -> float:
    """Processor time of an event, before the relay is saturated: later it reads several at a time, which makes each
    cheaper.
    """
    if not points[0].delivered_per_s:
        raise Invalid("nothing came in the first second")
    return points[0].relay_cpu / points[0].delivered_per_s * 1e6


def _rest(pid: int | None) -> None:
    """Wait until the relay has done with what was before: thousands of callers who left are work too."""
    for _ in range(_REST_TRIES):
        before_s = machine.cpu_s(pid) if pid else 0.0
        time.sleep(_SETTLE_S)
        if pid is None or machine.cpu_s(pid) - before_s < _RESTING_S:
            return


def _sink(target: Target) -> Sink:
    origin = Origin(target.stream_url)
    request = origin.render(body(f"bench-paced-{_ENDLESS}", stream=True), headers=target.headers)
    return Sink(port=origin.port, request=request)


def _verify_burst(target: Target, request: bytes) -> None:
    """One stream on its own has to hold all of its events: nobody gets faster by leaving some out."""
    origin = Origin(target.stream_url)
    rendered = origin.render(request, headers=target.headers)
    try:
        answer: Answer = uvloop.run(probe(origin, rendered, clock=_CLOCK, timeout_s=10.0))
    except Unreachable as error:
        raise Invalid(str(error)) from error
    if answer.status != 200 or answer.events != BURST_EVENTS:
        raise Invalid(f"HTTP {answer.status} with {answer.events} events instead of {BURST_EVENTS}")
