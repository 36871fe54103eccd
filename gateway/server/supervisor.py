"""The process that `gateway serve` is: it starts what a gateway needs, forks workers, and keeps all of it running.

Order: embedded servers (where no URL is given), migrations, bootstrap, listening sockets, workers, the announcement.
Rules:
- Synchronous and single-threaded, so that a fork is safe; all waiting is in one `select`.
- Each worker has a listening socket of its own (`SO_REUSEPORT`): the kernel spreads connections evenly, where a
  shared queue gives them to whoever is awake. The supervisor keeps the sockets open: a replaced worker's queue goes
  to its successor, and none is lost.
- A worker that never becomes ready aborts the start, with its reason. One that dies later is replaced, with back-off.
- SIGTERM or SIGINT drains, a second one cancels what runs, a third one kills. SIGHUP, or a change of
  a configuration file, loads it again and replaces all workers, the new ones first; a bad one is logged and unused.
- If this process is killed, the kernel takes everything it started with it.

What a worker does is in `gateway/server/worker.py`; what it says, in `gateway/infra/link.py`.
"""

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway.config import Loaded
from gateway.errors import ConfigError, GatewayError
from gateway.infra import migrate
from gateway.infra.children import Backoff, die_with_parent, set_title
from gateway.infra.clock import Clock, SystemClock
from gateway.infra.embedded import EmbeddedServers, Stores, given_stores, overlay, run_directory
from gateway.infra.exposition import Aggregate
from gateway.infra.link import METRICS, Frames, Kind, Link
from gateway.server.control import ControlSocket
from gateway.server.listening import Listening
from gateway.server.worker import SETTLE_S, AppFactory, run_worker
from gateway.settings import Settings

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 60.0
#: What a worker gets on top of its grace time and its time to settle before it is killed.
KILL_MARGIN_S = 2.0
#: A place that stays empty for longer gives up its socket: its connections are better off with the other workers.
VACATE_AFTER_S = 1.0
_TICK_S = 0.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
#: These need a new start; everything else takes effect with new workers.
_FIXED = ("host", "port", "data_dir")

#: Runs once the database is migrated and before any worker, e.g. to make a first account.
Bootstrap = Callable[[Settings, Stores], Awaitable[None]]
#: Told the address, once all workers accept connections, e.g. `http://127.0.0.1:8080`.
Announce = Callable[[str], None]


class StartFailed(GatewayError):
    """The gateway did not start."""

    error_type = "gateway_config"


@dataclass(eq=False)
class _Worker:
    """One life of a worker."""

    slot: int
    name: str
    pid: int
    channel: socket.socket
    started_at: float
    frames: Frames = field(default_factory=Frames)
    ready: bool = False
    reason: str = ""
    #: When it is killed: it has to be ready, or gone, by then.
    kill_at: float | None = None
    stopping: bool = False


class _Slot:
    """A place for one worker, whoever fills it."""

    def __init__(self) -> None:
        self.backoff = Backoff(max_s=30.0, healthy_s=30.0)
        self.due_at: float | None = None


def run(
    loaded: Loaded,
    *,
    app_factory: AppFactory,
    announce: Announce,
    bootstrap: Bootstrap | None = None,
    clock: Clock | None = None,
) -> int:
    """Run a gateway until it is told to stop; the exit status. Call it in the main thread, outside of any event loop.

    Raises: GatewayError when it can't start: StartFailed, ConfigError, EmbeddedFailed, MigrationRefused,
    StoreUnavailable. Nothing is left running then.
    """
    supervisor = Supervisor(loaded, app_factory=app_factory, announce=announce, clock=clock or SystemClock())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        supervisor.prepare(bootstrap)
        return supervisor.supervise()
    except KeyboardInterrupt:
        log.info("told to stop while starting")
        return 0
    finally:
        supervisor.close()


class Supervisor:
    """See the module. `prepare`, then `supervise`, then `close`."""

    def __init__(self, loaded: Loaded, *, app_factory: AppFactory, announce: Announce, clock: Clock) -> None:
        self._loaded = self._previous = loaded
        self._settings = loaded.settings
        self._app_factory = app_factory
        self._announce = announce
        self._clock = clock
        self._stores = Stores("", "")
        self._servers: EmbeddedServers | None = None
        self._listening: Listening | None = None
        self._control: ControlSocket | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._aggregate = Aggregate()
        self._slots: list[_Slot] = []
        self._workers: list[_Worker] = []
        #: During a reload: the workers that will take over once all of them are ready.
        self._successors: list[_Worker] = []
        self._reload_wanted = False
        self._stamps_seen = self._stamps_loaded = _stamps(loaded)
        self._announced = False
        self._stops = 0
        self._failure = ""
        self._names = itertools.count()

    # -- starting ----------------------------------------------------------------------------------------------

    def prepare(self, bootstrap: Bootstrap | None) -> None:
        """Everything up to the first fork."""
        server = self._settings.server
        # First of all, because nothing else fails as often, and nothing has to be undone yet.
        self._listening = Listening(server.host, server.port)
        data_dir = Path(server.data_dir)
        given = given_stores(self._settings)
        if not all(given):
            self._servers = EmbeddedServers(
                data_dir, postgres=not given.database_dsn, valkey=not given.redis_url, clock=self._clock
            )
            self._stores = overlay(given, self._servers.start())
        else:
            self._stores = given
        asyncio.run(self._migrate(bootstrap))
        self._control = ControlSocket(self._selector, run_directory(data_dir), answer=self._answer, clock=self._clock)

    async def _migrate(self, bootstrap: Bootstrap | None) -> None:
        for name in await migrate.migrate(self._stores.database_dsn, clock=self._clock):
            log.info("migrated: %s", name)
        if bootstrap is not None:
            await bootstrap(self._settings, self._stores)

    # -- running -----------------------------------------------------------------------------------------------

    def supervise(self) -> int:
        """Fork the workers and look after them until the last one is gone.

        Raises: StartFailed.
        """
        self._catch_signals()
        # What exists now is shared with the workers for good: never look at it again, never move it.
        gc.collect()
        gc.freeze()
        self._slots = [_Slot() for _ in range(worker_count(self._settings))]
        try:
            for slot in range(len(self._slots)):
                self._workers.append(self._fork(slot))
        except OSError as error:
            raise StartFailed(f"a worker can't be started: {error}") from error
        while self._workers or self._successors or not self._stops:
            for key, _ in self._selector.select(self._timeout_s()):
                key.data()
            self._reap()
            self._tend()
        if self._failure:
            raise StartFailed(self._failure)
        return 0

    def close(self) -> None:
        """End everything that is still there. Called in any state, also twice."""
        for worker in (*self._workers, *self._successors):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)
            worker.channel.close()
        self._workers, self._successors = [], []
        if self._listening is not None:
            self._listening.close()
        if self._servers is not None:
            self._servers.stop()
        if self._control is not None:
            self._control.close()
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _catch_signals(self) -> None:
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._wake)
        signal.set_wakeup_fd(self._wake_write.fileno())
        for number in _SIGNALS:
            # The byte on the wake-up socket says which; handling it is the loop's.
            signal.signal(number, lambda *_: None)

    def _timeout_s(self) -> float:
        due = [slot.due_at for slot in self._slots if slot.due_at is not None]
        return max(0.0, min([_TICK_S, *(at - self._clock.monotonic() for at in due)]))

    def _wake(self) -> None:
        for number in self._wake_read.recv(4096):
            self._obey(signal.Signals(number))

    def _obey(self, number: signal.Signals) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGHUP and not self._stops:
            self._reload_wanted = True

    def _tend(self) -> None:
        """What is due: servers and workers to start again, workers and clients that took too long, a reload."""
        now = self._clock.monotonic()
        if self._servers is not None:
            self._servers.check()
        for worker in (*self._workers, *self._successors):
            if worker.kill_at is not None and now >= worker.kill_at:
                log.error("%s (pid %d) took too long, killing it", worker.name, worker.pid)
                worker.reason = worker.reason or f"it was not ready within {READY_TIMEOUT_S:g} s"
                worker.kill_at = None
                os.kill(worker.pid, signal.SIGKILL)
        if self._control is not None:
            self._control.expire()
        if self._stops:
            return
        for index, slot in enumerate(self._slots):
            if slot.due_at is not None and now >= slot.due_at:
                slot.due_at = None
                self._refill(index)
        self._watch()
        if self._reload_wanted and not self._successors and self._announced:
            self._reload_wanted = False
            self._reload()

    def _watch(self) -> None:
        """A configuration file that changed, and then did not for one look, is loaded like after SIGHUP."""
        seen = _stamps(self._loaded)
        if seen != self._stamps_seen:
            self._stamps_seen = seen
        elif seen != self._stamps_loaded:
            self._stamps_loaded = seen
            self._reload_wanted = True

    # -- workers -----------------------------------------------------------------------------------------------

    def _fork(self, slot: int) -> _Worker:
        assert self._listening is not None
        assert self._control is not None
        self._listening.occupy(slot)
        name = f"worker-{slot}.{next(self._names)}"
        ours, theirs = socket.socketpair()
        supervisor_pid = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # Blocked for the moment in which the child still has our handlers: it would wake us with its signals.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            die_with_parent(supervisor_pid, signal.SIGKILL)
            set_title(f"gw-{name}")
            self._become_worker()
            ours.close()
            listener = self._listening.keep_only(slot)
            link = Link(theirs, self._control.path, name=name)
            run_worker(self._settings, self._stores, app_factory=self._app_factory, link=link, listener=listener)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        ours.setblocking(False)
        now = self._clock.monotonic()
        worker = _Worker(slot, name, pid, ours, now, kill_at=now + READY_TIMEOUT_S)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._listen_to(worker))
        return worker

    def _become_worker(self) -> None:
        """In the child: give up what is the supervisor's, without touching what it stands for."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        self._selector.close()
        self._wake_write.close()

    def _refill(self, slot: int) -> None:
        """Start a worker where one died."""
        try:
            self._workers.append(self._fork(slot))
        except OSError as error:
            delay_s = self._slots[slot].backoff.after(0.0) or _TICK_S
            self._slots[slot].due_at = self._clock.monotonic() + delay_s
            log.error("can't start a worker, trying again in %.1f s: %s", delay_s, error)  # noqa: TRY400

    def _listen_to(self, worker: _Worker) -> bool:
        """Read what a worker says; False when there is nothing more."""
        try:
            data = worker.channel.recv(1 << 20)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._hang_up(worker)
            return False
        try:
            for kind, payload in worker.frames.feed(data):
                if kind is Kind.READY:
                    self._is_ready(worker)
                elif kind is Kind.FAILED:
                    worker.reason = payload.decode(errors="replace")
                else:
                    self._aggregate.update(worker.name, payload)
        except (ValueError, msgspec.DecodeError) as error:
            log.error("%s says what can't be read: %s", worker.name, error)  # noqa: TRY400  where is not of interest
            self._hang_up(worker)
            return False
        return True

    def _hang_up(self, worker: _Worker) -> None:
        if worker.channel.fileno() >= 0:
            self._selector.unregister(worker.channel)
            worker.channel.close()

    def _is_ready(self, worker: _Worker) -> None:
        worker.ready = True
        if not worker.stopping:
            worker.kill_at = None
        log.info("%s (pid %d) accepts connections", worker.name, worker.pid)
        if self._successors and all(each.ready and not each.stopping for each in self._successors):
            self._promote()
        if not self._announced and not self._stops and all(each.ready for each in self._workers):
            self._announced = True
            assert self._listening is not None
            self._announce(self._listening.url)

    def _reap(self) -> None:
        for worker in (*self._workers, *self._successors):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                # Its last words and counts may still be on their way to us.
                while self._listen_to(worker):
                    pass
                self._hang_up(worker)
                self._aggregate.forget(worker.name)
                self._buried(worker, os.waitstatus_to_exitcode(status))

    def _buried(self, worker: _Worker, status: int) -> None:
        """A worker is gone: was that meant, and who replaces it?"""
        if worker in self._successors:
            self._successors.remove(worker)
            if not worker.stopping:
                self._give_up_reload(worker.reason or f"a worker ended with {status}")
            return
        self._workers.remove(worker)
        if worker.stopping or self._stops:
            return
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        if not self._announced:
            self._failure = f"a worker did not start ({how}): {worker.reason or 'see its log'}"
            self._stop()
            return
        now = self._clock.monotonic()
        slot = self._slots[worker.slot]
        delay_s = slot.backoff.after(now - worker.started_at)
        slot.due_at = now + delay_s
        if delay_s >= VACATE_AFTER_S:
            assert self._listening is not None
            self._listening.vacate(worker.slot)
        log.error(
            "%s (pid %d) ended with %s%s, starting another in %.1f s",
            worker.name,
            worker.pid,
            how,
            f" ({worker.reason})" if worker.reason else "",
            delay_s,
        )

    # -- stopping and reloading --------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Once: drain. Twice: cancel what runs. Three times: kill."""
        self._stops += 1
        now = self._clock.monotonic()
        if self._stops == 1:
            log.info("told to stop: running requests have %g s to finish", self._settings.server.grace_s)
            assert self._listening is not None
            self._listening.close()
            for slot in self._slots:
                slot.due_at = None
        else:
            log.warning(
                "told to stop again: %s", "cancelling what runs" if self._stops == 2 else "killing all workers"
            )
        grace_s = self._settings.server.grace_s if self._stops == 1 else 0.0
        for worker in (*self._workers, *self._successors):
            worker.stopping = True
            worker.kill_at = now + grace_s + SETTLE_S + KILL_MARGIN_S
            os.kill(worker.pid, signal.SIGTERM if self._stops < 3 else signal.SIGKILL)

    def _reload(self) -> None:
        """Load the configuration again and start workers with it; the old ones serve until the new ones do."""
        self._stamps_seen = self._stamps_loaded = _stamps(self._loaded)
        try:
            loaded = self._loaded.reload()
        except ConfigError as error:
            log.error("the new configuration is not used: %s", error.message)  # noqa: TRY400  the message is all
            return
        old, new = self._settings.server, loaded.settings.server
        for name in _FIXED:
            if getattr(old, name) != getattr(new, name):
                log.warning("server.%s takes effect at the next start", name)
        if given_stores(loaded.settings) != given_stores(self._settings):
            log.warning("the URLs of the stores take effect at the next start")
        self._previous = self._loaded
        self._loaded, self._settings = loaded, loaded.settings
        assert self._listening is not None
        count = worker_count(self._settings)
        while len(self._slots) < count:
            self._slots.append(_Slot())
        log.info("reloading: starting %d workers with the new configuration", count)
        try:
            for slot in range(count):
                self._successors.append(self._fork(slot))
        except OSError as error:
            self._give_up_reload(f"a worker can't be started: {error}")

    def _promote(self) -> None:
        """The new workers serve: let the old ones finish."""
        now = self._clock.monotonic()
        retired = [worker for worker in self._workers if not worker.stopping]
        for worker in retired:
            worker.stopping = True
            worker.kill_at = now + self._settings.server.grace_s + SETTLE_S + KILL_MARGIN_S
            os.kill(worker.pid, signal.SIGTERM)
        self._workers += self._successors
        self._slots = [_Slot() for _ in self._successors]
        self._successors = []
        assert self._listening is not None
        self._listening.shrink(len(self._slots))
        log.info("reloaded: %d workers are new, %d finish what they have", len(self._slots), len(retired))

    def _give_up_reload(self, reason: str) -> None:
        """A new worker will not be: the old ones stay."""
        log.error("the new configuration is not used: %s", reason)
        self._loaded, self._settings = self._previous, self._previous.settings
        assert self._listening is not None
        self._slots = self._slots[: worker_count(self._settings)]
        self._listening.shrink(len(self._slots))
        for other in self._successors:
            other.stopping = True
            os.kill(other.pid, signal.SIGKILL)

    def _answer(self, request: bytes) -> bytes:
        """What the control socket says."""
        return self._aggregate.render() if request == METRICS else b""


def worker_count(settings: Settings) -> int:
    """How many workers run: what is configured, else one for each processor this process may use."""
    if settings.server.workers:
        return settings.server.workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stamps(loaded: Loaded) -> dict[str, tuple[int, int, int]]:
    """What tells that a configuration file is another one now."""
    stamps = {}
    for path in loaded.files:
        with contextlib.suppress(OSError):
            found = Path(path).stat()
            stamps[path] = (found.st_mtime_ns, found.st_size, found.st_ino)
    return stamps
