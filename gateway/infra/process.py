"""What one process costs: memory, processor time, open files, and how late its event loop runs.

Read from `/proc` at snapshot time, in about 20 us; where there is no `/proc` (macOS), the figures it alone has are
left out. Over several workers the figures are sums, so `process_*` speaks of the gateway as a whole.
"""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

from gateway.infra.clock import Clock
from gateway.infra.metrics import Observations, Registry

LAG_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LAG_INTERVAL_S = 0.25

_STATM = Path("/proc/self/statm")
_FD = Path("/proc/self/fd")


def collect_process(registry: Registry, clock: Clock) -> None:
    """Declare the process families in `registry` and fill them at each snapshot. Call it early: now is the start."""
    cpu = registry.counter("process_cpu_seconds_total", "User and system processor time, all workers.").cell()
    rss = registry.gauge("process_resident_memory_bytes", "Resident memory, all workers.", mode="sum")
    rss_max = registry.gauge("gateway_worker_memory_bytes_max", "Resident memory, the largest worker.", mode="max")
    fds = registry.gauge("process_open_fds", "Open file descriptors, all workers.", mode="sum")
    registry.gauge("process_max_fds", "Open file descriptors one worker may have.", mode="min").set(
        (), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )
    registry.gauge("process_start_time_seconds", "When the oldest worker started, Unix time.", mode="min").set(
        (), clock.now()
    )
    registry.gauge("gateway_workers", "Workers that report.", mode="sum").set((), 1)
    page_bytes = os.sysconf("SC_PAGE_SIZE")

    def collect() -> None:
        times = os.times()
        cpu[0] = times.user + times.system
        if (resident := _resident_pages()) is not None:
            rss.set((), resident * page_bytes)
            rss_max.set((), resident * page_bytes)
        if (count := _open_fds()) is not None:
            fds.set((), count)

    registry.on_collect(collect)


class LoopLag:
    """Measures how long what there is to do waits for the event loop; `start` in the loop it watches.

    A timer that comes late shows a turn of the loop that takes long. It does not show turns that leave work behind:
    of more sockets than one turn takes (libuv's takes 1,024), those left over wait for the next one, and the timers
    are on time. So a byte is sent through a socket of its own as well, which waits its turn among all others.
    """

    def __init__(self, observations: Observations, *, interval_s: float = LAG_INTERVAL_S) -> None:
        self._observations = observations
        self._interval_s = interval_s
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._sent_s = 0.0
        self._waited_s = 0.0
        self._pair: tuple[socket.socket, socket.socket] | None = None
        self._watchers: list[Callable[[float], None]] = []

    def watch(self, tell: Callable[[float], None]) -> None:
        """Tell each measurement, in seconds."""
        self._watchers.append(tell)

    def start(self) -> None:
        """Begin to measure."""
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + self._interval_s
        self._timer = loop.call_at(self._due_s, self._tick, loop)
        self._pair = socket.socketpair()
        for end in self._pair:
            end.setblocking(False)
        loop.add_reader(self._pair[0], self._heard, loop)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pair is not None:
            asyncio.get_running_loop().remove_reader(self._pair[0])
            for end in self._pair:
                end.close()
            self._pair = None

    def _heard(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._pair is not None
        with contextlib.suppress(BlockingIOError):
            self._pair[0].recv(64)
        if self._sent_s:
            self._waited_s = loop.time() - self._sent_s
            self._sent_s = 0.0

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        waited_s = now_s - self._sent_s if self._sent_s else self._waited_s
        lag_s = max(0.0, now_s - self._due_s, waited_s)
        if not self._sent_s and self._pair is not None:
            self._sent_s = now_s
            self._pair[1].send(b"?")
        self._observations.observe(lag_s)
        for tell in self._watchers:
            tell(lag_s)
        self._due_s = now_s + self._interval_s
        self._timer = loop.call_at(self._due_s, self._tick, loop)


def measure_loop_lag(registry: Registry) -> LoopLag:
    """Declare `gateway_loop_lag_seconds` and return its ticker, not yet started."""
    histogram = registry.histogram(
        "gateway_loop_lag_seconds", "How late the event loop calls back.", bounds=LAG_BOUNDS_S
    )
    return LoopLag(histogram.bind())


def _resident_pages() -> int | None:
    try:
        return int(_STATM.read_bytes().split()[1])
    except OSError:
        return None


def _open_fds() -> int | None:
    try:
        # Linux 6.2 and later keep the count as the directory's size; before that it is 0 and they must be listed.
        return _FD.stat().st_size or len(os.listdir(_FD))  # noqa: PTH208 - no Path objects for thousands of names
    except OSError:
        return None
