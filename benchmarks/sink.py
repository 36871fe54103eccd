"""Counts the events of thousands of paced streams for next to nothing: the generator for saturation.

A reader that is woken for each event costs as much as the provider that sent it, and both share a core with nobody
else to take it from: the proxy under test would never be the slowest. Where only the number of events matters, not
when each came, it is enough to empty every socket now and then. What arrives is what the proxy has relayed, since
the kernel's buffers hold far more than comes between two sweeps.
"""

import contextlib
import gc
import resource
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.upstream import INTERVAL_MS
from gateway.infra.clock import SystemClock

_CLOCK: Final = SystemClock()
_SWEEP_S: Final = 0.1
_EVENTS_PER_S: Final = 1000 / INTERVAL_MS
_BUFFER_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Point:
    """One stretch of a ramp."""

    at_s: float
    streams: float
    offered_per_s: float
    delivered_per_s: float
    #: Of one processor, the relaying process; 0.0 where none is watched.
    relay_cpu: float
    lost: int


class Sink:
    """Open streams, all asking the same."""

    def __init__(self, *, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._sockets: list[socket.socket] = []
        self._buffer = bytearray(_BUFFER_BYTES)
        self.lost = 0
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard)) if soft < hard else None

    def __len__(self) -> int:
        return len(self._sockets)

    def open(self, streams: int) -> None:
        """Open as many more."""
        for _ in range(streams):
            one = socket.create_connection(("127.0.0.1", self._port), timeout=10)
            one.sendall(self._request)
            one.setblocking(False)
            self._sockets.append(one)

    def sweep(self) -> int:
        """Empty every socket; how many events ended in that."""
        events = 0
        buffer = self._buffer
        gone: list[socket.socket] = []
        for one in self._sockets:
            try:
                received = one.recv_into(buffer)
            except BlockingIOError:
                continue
            except OSError:
                received = 0
            if received:
                events += buffer.count(b"\n\n", 0, received)
            else:
                gone.append(one)
        for one in gone:
            self._sockets.remove(one)
            one.close()
            self.lost += 1
        return events

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.close()
        self._sockets.clear()


def hold(sink: Sink, *, streams: int, seconds: float) -> int:
    """Open `streams` within a second and read them for `seconds`; how many events came."""
    end_s = _CLOCK.monotonic() + seconds
    events = 0
    while _CLOCK.monotonic() < end_s:
        sink.open(min(streams // 10, streams - len(sink)))
        time.sleep(_SWEEP_S)
        events += sink.sweep()
    return events


def ramp(sink: Sink, *, first: int, last: int, streams_per_s: int, relay_cpu_s: Callable[[], float]) -> list[Point]:
    """Have `first` streams, then open more without pause up to `last`; how many events came in each second.

    It goes on past the point where the relaying process falls behind: what it then delivers belongs to the picture.
    """
    gc.disable()
    try:
        hold(sink, streams=first, seconds=2.0)
        points: list[Point] = []
        start_s = _CLOCK.monotonic()
        while len(sink) < last:
            points.append(_stretch(sink, streams_per_s=streams_per_s, start_s=start_s, relay_cpu_s=relay_cpu_s))
        return points
    finally:
        gc.enable()


def sustained(points: Sequence[Point], *, share: float) -> float:
    """Events a second where what is delivered falls below `share` of what is offered, for good.

    Interpolated between the last point above and the first below; the last point's where it never falls below.
    """
    above = [index for index, point in enumerate(points) if point.delivered_per_s >= share * point.offered_per_s]
    if not above:
        return points[0].delivered_per_s
    last = above[-1]
    if last + 1 == len(points):
        return points[last].delivered_per_s
    here, after = points[last], points[last + 1]
    surplus = here.delivered_per_s - share * here.offered_per_s
    shortfall = share * after.offered_per_s - after.delivered_per_s
    way = surplus / (surplus + shortfall)
    return here.delivered_per_s + way * (after.delivered_per_s - here.delivered_per_s)


def _stretch(sink: Sink, *, streams_per_s: int, start_s: float, relay_cpu_s: Callable[[], float]) -> Point:
    """One second of a ramp, a little of the load at a time."""
    from_s = last_s = _CLOCK.monotonic()
    cpu_before_s = relay_cpu_s()
    events = 0
    stream_seconds = 0.0
    while last_s - from_s < 1.0:
        open_before = len(sink)
        sink.open(round(streams_per_s * _SWEEP_S))
        time.sleep(max(0.0, last_s + _SWEEP_S - _CLOCK.monotonic()))
        events += sink.sweep()
        now_s = _CLOCK.monotonic()
        stream_seconds += (open_before + len(sink)) / 2 * (now_s - last_s)
        last_s = now_s
    elapsed_s = last_s - from_s
    return Point(
        at_s=round(last_s - start_s, 2),
        streams=round(stream_seconds / elapsed_s, 1),
        offered_per_s=round(stream_seconds / elapsed_s * _EVENTS_PER_S, 1),
        delivered_per_s=round(events / elapsed_s, 1),
        relay_cpu=round((relay_cpu_s() - cpu_before_s) / elapsed_s, 3),
        lost=sink.lost,
    )
