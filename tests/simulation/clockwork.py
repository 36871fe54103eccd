"""Time that a test owns, and processes that die between any two of their steps.

`SimLoop` is an event loop without a machine under it: when nothing is ready, its clock jumps to the next timer. So a
world of half a minute takes milliseconds, and what happens depends on nothing but what was drawn.

A `Process` is everything one worker has in memory. Whatever leaves it (a command to a store, bytes to a socket, an
entry to the disk) asks `step` first, and once it is dead nothing leaves any more: the code that was running goes on
for a moment and talks to nobody, which the world can't tell from a kill -9 at that very step.
"""

import asyncio
import contextvars
import heapq
import random
from collections.abc import Callable, Coroutine
from typing import Any

from tests.ledgers import START_US

_process: "contextvars.ContextVar[Process | None]" = contextvars.ContextVar("process", default=None)


class Stuck(Exception):
    """Nothing will ever happen again, and somebody waits."""


class SimLoop(asyncio.BaseEventLoop):
    """Timers and callbacks; no sockets, no threads."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._clock_resolution = 1e-9
        # The base class asks it how long to wait; that is when the clock moves.
        self._selector: Any = self
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self._now_s

    def select(self, timeout_s: float | None) -> list[Any]:
        if timeout_s is None:
            raise Stuck
        self._now_s += timeout_s
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    @property
    def next_timer_s(self) -> float:
        """When something happens next."""
        return heapq.nsmallest(1, self._scheduled)[0].when()


def _make_task(loop: Any, work: Coroutine[Any, Any, Any], **options: Any) -> "asyncio.Task[Any]":
    task = asyncio.Task(work, loop=loop, **options)
    process = _process.get()
    if process is not None:
        process.tasks.add(task)
        task.add_done_callback(process.tasks.discard)
    return task


class SimClock:
    """Both of the gateway's clocks, on the loop's."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return START_US / 1_000_000 + self._loop.time()

    def monotonic(self) -> float:
        return 1000.0 + self._loop.time()

    def now_us(self) -> int:
        return START_US + round(self._loop.time() * 1_000_000)


class Process:
    """One life of one process."""

    def __init__(self, name: str, draw: random.Random) -> None:
        self.name = name
        self.alive = True
        self.died_s: float | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        #: What the kernel does when it is gone: closes sockets, gives up locks.
        self.on_death: list[Callable[[], object]] = []
        #: Steps until it dies; None: not of itself.
        self.fuse: int | None = None
        self._draw = draw
        self._context = contextvars.copy_context()
        self._context.run(_process.set, self)

    def __repr__(self) -> str:
        return self.name

    def step(self) -> bool:
        """Something is about to leave the process; False if it died before."""
        if self.alive and self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.die()
        return self.alive

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Something reaches the process."""
        if self.alive:
            self._context.copy().run(function, *args)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run `work` in it."""
        return self._context.copy().run(asyncio.get_running_loop().create_task, work)

    def die(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self.died_s = asyncio.get_running_loop().time()
        for task in tuple(self.tasks):
            task.cancel()
        for close in self.on_death:
            close()
