"""The workers: forked, watched, replaced where they die, exchanged all at once, and stopped.

Rules:
- Each worker has a listening socket of its own (`SO_REUSEPORT`): the kernel spreads connections evenly, where a
  shared queue gives them to whoever is awake. The sockets stay open here: the queue of a worker that is replaced goes
  to its successor, and none is lost.
- A worker that dies before all of the first ones were ready is a failed start; later it is replaced, with back-off.
- Workers with a new configuration take over only once all of them are ready; until then the old ones serve, and where
  a new one dies, they go on doing so.
- Nothing here waits. The supervisor calls `reap` when a child may have ended and `tend` now and then.
"""

import itertools
import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway.infra.children import Backoff, die_with_parent, set_title
from gateway.infra.clock import Clock
from gateway.infra.embedded import Stores
from gateway.infra.exposition import Aggregate
from gateway.infra.link import Frames, Kind, Link
from gateway.server.listening import Listening
from gateway.server.worker import RETIRE, SETTLE_S, AppFactory, Service, run_service, run_worker
from gateway.settings import Settings
from gateway.status import WorkerFacts

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 60.0
#: What a worker gets on top of its grace time and its time to settle before it is killed.
KILL_MARGIN_S = 2.0
#: A place that stays empty for longer gives up its socket: its connections are better off with the other workers.
VACATE_AFTER_S = 1.0
_FORK_RETRY_S = 0.5
_READ_BYTES = 1024 * 1024


@dataclass(eq=False)
class _Worker:
    """One life of a worker."""

    slot: int
    name: str
    pid: int
    channel: socket.socket
    started_at: float
    #: When it is killed: it has to be ready, or gone, by then.
    kill_at: float | None
    frames: Frames = field(default_factory=Frames)
    ready: bool = False
    stopping: bool = False
    #: Why it failed, in its own words.
    reason: str = ""


class _Slot:
    """A place for one worker, whoever fills it."""

    def __init__(self) -> None:
        self.backoff = Backoff(max_s=30.0, healthy_s=30.0)
        #: When it is filled again.
        self.due_at: float | None = None


@dataclass(kw_only=True)
class Surroundings:
    """What workers are made of, the same for all of them."""

    stores: Stores
    app_factory: AppFactory
    listening: Listening
    #: Where a worker asks what all of them counted.
    control_path: Path
    #: Called in a new worker, to give up what is the supervisor's.
    give_up: Callable[[], None]
    #: Work that one more process does, beside those that serve: the ledger's, which must not take their time.
    service: Service | None = None

    def places(self, settings: Settings) -> int:
        """How many processes run: the serving ones, and after them the one that does not serve."""
        return worker_count(settings) + (self.service is not None)


class Fleet:
    """All workers. `settings` are those of the serving ones."""

    def __init__(
        self, surroundings: Surroundings, settings: Settings, *, selector: selectors.BaseSelector, clock: Clock
    ) -> None:
        self.settings = settings
        #: Why the start failed; empty while it has not.
        self.failure = ""
        self.aggregate = Aggregate()
        self._surroundings = surroundings
        self._listening = surroundings.listening
        self._selector = selector
        self._clock = clock
        self._slots = [_Slot() for _ in range(surroundings.places(settings))]
        self._workers: list[_Worker] = []
        #: The workers that take over once all of them are ready, and what they were started with.
        self._successors: list[_Worker] = []
        self._next_settings = settings
        self._started = False
        self._stops = 0
        self._names = itertools.count()

    @property
    def started(self) -> bool:
        """All of the first workers accept connections, or did."""
        return self._started

    @property
    def replacing(self) -> bool:
        return bool(self._successors)

    @property
    def gone(self) -> bool:
        return not self._workers and not self._successors

    def facts(self) -> tuple[WorkerFacts, ...]:
        """Every process there is, successors included."""
        now = self._clock.monotonic()
        return tuple(
            WorkerFacts(
                name=worker.name,
                pid=worker.pid,
                state="stopping" if worker.stopping else "ready" if worker.ready else "starting",
                age_s=round(now - worker.started_at, 1),
            )
            for worker in (*self._workers, *self._successors)
        )

    @property
    def due_at(self) -> float | None:
        """When `tend` has a worker to start."""
        return min((slot.due_at for slot in self._slots if slot.due_at is not None), default=None)

    def launch(self) -> None:
        """Start the first workers.

        Raises: OSError.
        """
        for slot in range(len(self._slots)):
            self._workers.append(self._fork(slot, self.settings))

    def replace(self, settings: Settings) -> None:
        """Start workers with `settings`; `replacing` is true until they have taken over, or were given up."""
        assert not self._successors
        self._next_settings = settings
        log.info("starting %d workers with the new configuration", worker_count(settings))
        try:
            for slot in range(self._surroundings.places(settings)):
                self._successors.append(self._fork(slot, settings))
        except OSError as error:
            self._give_up(f"a worker can't be started: {error}")

    def stop(self) -> None:
        """Once: drain. Twice: cancel what runs. Three times: kill."""
        self._stops += 1
        if self._stops == 1:
            log.info("told to stop: running requests have %g s to finish", self.settings.server.grace_s)
            self._listening.close()
            for slot in self._slots:
                slot.due_at = None
        else:
            how = "cancelling what runs" if self._stops == 2 else "killing all workers"
            log.warning("told to stop again: %s", how)
        grace_s = self.settings.server.grace_s if self._stops == 1 else 0.0
        for worker in (*self._workers, *self._successors):
            self._end(worker, grace_s=grace_s, number=signal.SIGTERM if self._stops < 3 else signal.SIGKILL)

    def kill(self) -> None:
        """End all at once, and wait for it."""
        for worker in (*self._workers, *self._successors):
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            self._hang_up(worker)
        self._workers, self._successors = [], []

    def tend(self) -> None:
        """Kill those that took too long, fill the places that are due."""
        now = self._clock.monotonic()
        for worker in (*self._workers, *self._successors):
            if worker.kill_at is not None and now >= worker.kill_at:
                log.error("%s (pid %d) took too long, killing it", worker.name, worker.pid)
                worker.reason = worker.reason or f"it was not ready within {READY_TIMEOUT_S:g} s"
                worker.kill_at = None
                os.kill(worker.pid, signal.SIGKILL)
        for index, slot in enumerate(self._slots):
            if slot.due_at is not None and now >= slot.due_at:
                slot.due_at = None
                self._refill(index)

    def reap(self) -> None:
        """Take note of the workers that have ended."""
        for worker in (*self._workers, *self._successors):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                # Its last words and counts may still be on their way to us.
                while self._listen_to(worker):
                    pass
                self._hang_up(worker)
                self.aggregate.forget(worker.name)
                self._buried(worker, os.waitstatus_to_exitcode(status))

    # -- one worker --------------------------------------------------------------------------------------------

    def _fork(self, slot: int, settings: Settings) -> _Worker:
        around = self._surroundings
        service = around.service if slot >= worker_count(settings) else None
        if service is None:
            self._listening.occupy(slot)
        name = f"{'worker' if service is None else 'books'}-{slot}.{next(self._names)}"
        ours, theirs = socket.socketpair()
        supervisor_pid = os.getpid()
        # What is buffered here would be written twice.
        sys.stdout.flush()
        sys.stderr.flush()
        # Blocked for the moment in which the child has our handlers: it would wake us with its signals.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            die_with_parent(supervisor_pid, signal.SIGKILL)
            set_title(f"gw-{name}")
            around.give_up()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            ours.close()
            link = Link(theirs, around.control_path, name=name)
            if service is not None:
                self._listening.close()
                run_service(settings, around.stores, service=service, link=link)
            listener = self._listening.keep_only(slot)
            run_worker(settings, around.stores, app_factory=around.app_factory, link=link, listener=listener)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        ours.setblocking(False)
        now = self._clock.monotonic()
        worker = _Worker(slot, name, pid, ours, now, now + READY_TIMEOUT_S)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._listen_to(worker))
        return worker

    def _refill(self, slot: int) -> None:
        try:
            self._workers.append(self._fork(slot, self.settings))
        except OSError as error:
            self._slots[slot].due_at = self._clock.monotonic() + _FORK_RETRY_S
            log.error("can't start a worker, trying again: %s", error)  # noqa: TRY400  the message is all

    def _end(self, worker: _Worker, *, grace_s: float, number: signal.Signals) -> None:
        worker.stopping = True
        worker.kill_at = self._clock.monotonic() + grace_s + SETTLE_S + KILL_MARGIN_S
        os.kill(worker.pid, number)

    def _listen_to(self, worker: _Worker) -> bool:
        """Read what a worker says; False when there is nothing more."""
        try:
            data = worker.channel.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._hang_up(worker)
            return False
        try:
            for kind, payload in worker.frames.feed(data):
                self._hear(worker, kind, payload)
        except (ValueError, msgspec.DecodeError) as error:
            log.error("%s says what can't be read: %s", worker.name, error)  # noqa: TRY400  where is not of interest
            self._hang_up(worker)
            return False
        return True

    def _hear(self, worker: _Worker, kind: Kind, payload: bytes) -> None:
        if kind is Kind.SNAPSHOT:
            self.aggregate.update(worker.name, payload)
        elif kind is Kind.FAILED:
            worker.reason = payload.decode(errors="replace")
        else:
            worker.ready = True
            if not worker.stopping:
                worker.kill_at = None
            log.info("%s (pid %d) is ready", worker.name, worker.pid)
            if self._successors and all(each.ready and not each.stopping for each in self._successors):
                self._promote()
            self._started = self._started or (not self._stops and all(each.ready for each in self._workers))

    def _hang_up(self, worker: _Worker) -> None:
        if worker.channel.fileno() >= 0:
            self._selector.unregister(worker.channel)
            worker.channel.close()

    def _buried(self, worker: _Worker, status: int) -> None:
        """A worker is gone: was that meant, and who replaces it?"""
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        if worker in self._successors:
            self._successors.remove(worker)
            if not worker.stopping:
                self._give_up(worker.reason or f"a worker ended with {how}")
            return
        self._workers.remove(worker)
        if worker.stopping or self._stops:
            return
        if not self._started:
            self.failure = f"a worker did not start ({how}): {worker.reason or 'see its log'}"
            self.stop()
            return
        now = self._clock.monotonic()
        slot = self._slots[worker.slot]
        delay_s = slot.backoff.after(now - worker.started_at)
        slot.due_at = now + delay_s
        if delay_s >= VACATE_AFTER_S:
            self._listening.vacate(worker.slot)
        why = f" ({worker.reason})" if worker.reason else ""
        again = f"starting another in {delay_s:.1f} s"
        log.error("%s (pid %d) ended with %s%s, %s", worker.name, worker.pid, how, why, again)

    # -- all of them -------------------------------------------------------------------------------------------

    def _promote(self) -> None:
        """The new workers serve: let the old ones finish."""
        retired = [worker for worker in self._workers if not worker.stopping]
        for worker in retired:
            self._end(worker, grace_s=self.settings.server.grace_s, number=RETIRE)
        self.settings = self._next_settings
        self._slots = [_Slot() for _ in self._successors]
        self._workers += self._successors
        self._successors = []
        self._listening.shrink(worker_count(self.settings))
        log.info("reloaded: %d workers are new, %d finish what they have", len(self._slots), len(retired))

    def _give_up(self, reason: str) -> None:
        """A new worker will not be: the old ones stay."""
        log.error("the new configuration is not used: %s", reason)
        self._listening.shrink(worker_count(self.settings))
        for worker in self._successors:
            self._end(worker, grace_s=0.0, number=signal.SIGKILL)


def worker_count(settings: Settings) -> int:
    """How many workers run: what is configured, else one for each processor this process may use."""
    if settings.server.workers:
        return settings.server.workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
