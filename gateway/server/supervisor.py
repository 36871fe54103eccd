"""The process that `gateway serve` is: it starts what a gateway needs, forks workers, and keeps all of it running.

Order: the address (bound, not yet open), embedded servers (where no URL is given), migrations, bootstrap, workers,
the announcement.
Rules:
- Synchronous and single-threaded, so that a fork is safe; all waiting is in one `select`.
- SIGTERM or SIGINT drains, a second one cancels what runs, a third one kills. SIGHUP, or a change of a configuration
  file, loads it again and exchanges all workers; a bad one is logged and changes nothing. A SIGHUP that says that
  the terminal is gone it was started from is the end, as for any program.
- If this process is killed, the kernel takes everything it started with it.

How workers come and go is in `gateway/server/fleet.py`; what one does, in `gateway/server/worker.py`.
"""

import asyncio
import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway import __version__
from gateway.config import Loaded
from gateway.errors import ConfigError, GatewayError, StoreUnavailable
from gateway.infra import migrate
from gateway.infra.clock import Clock, SystemClock
from gateway.infra.embedded import EmbeddedServers, Stores, given_stores, overlay, run_directory
from gateway.infra.link import METRICS
from gateway.infra.redis.fitness import demand_fitness
from gateway.server.control import ControlSocket
from gateway.server.fleet import Fleet, Surroundings
from gateway.server.listening import Listening
from gateway.server.worker import AppFactory, Service
from gateway.settings import Settings
from gateway.status import STATUS, FleetFacts, encode_facts

log = logging.getLogger(__name__)

_TICK_S = 0.5
#: For a Redis that is judged at the start.
REDIS_TIMEOUT_S = 2.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
#: These need a new start; everything else takes effect with new workers.
_FIXED = ("host", "port", "data_dir")

#: Runs once the database is migrated and before any worker, e.g. to make a first account.
Bootstrap = Callable[[Settings, Stores], Awaitable[None]]
#: Told the address, once all workers accept connections, e.g. `http://127.0.0.1:8080`.
Announce = Callable[[str], None]
#: What tells one state of the configuration files from another.
Stamps = dict[str, tuple[int, int, int]]


class StartFailed(GatewayError):
    """The gateway did not start."""

    error_type = "gateway_config"


def run(
    loaded: Loaded,
    *,
    app_factory: AppFactory,
    announce: Announce,
    bootstrap: Bootstrap | None = None,
    service: Service | None = None,
    clock: Clock | None = None,
) -> int:
    """Run a gateway until it is told to stop; the exit status. Call it in the main thread, outside of any event loop.

    Raises: GatewayError when it can't start: StartFailed, ConfigError, EmbeddedFailed, MigrationRefused,
    StoreUnavailable. Nothing is left running then.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        with contextlib.ExitStack() as stack:
            return _run(loaded, app_factory, announce, bootstrap, service, clock=clock or SystemClock(), stack=stack)
    except KeyboardInterrupt:
        log.info("told to stop while starting")
        return 0


def _run(
    loaded: Loaded,
    app_factory: AppFactory,
    announce: Announce,
    bootstrap: Bootstrap | None,
    service: Service | None,
    *,
    clock: Clock,
    stack: contextlib.ExitStack,
) -> int:
    settings = loaded.settings
    data_dir = Path(settings.server.data_dir)
    # First of all, because nothing else fails as often, and nothing has to be undone yet.
    listening = Listening(settings.server.host, settings.server.port)
    stack.callback(listening.close)

    servers: EmbeddedServers | None = None
    stores = given_stores(settings)
    if not all(stores):
        servers = EmbeddedServers(
            data_dir, postgres=not stores.database_dsn, valkey=not stores.redis_url, clock=clock
        )
        stack.callback(servers.stop)
        stores = overlay(stores, servers.start())

    if settings.redis.url is not None:
        asyncio.run(_judge_redis(stores.redis_url))
    asyncio.run(_prepare_database(settings, stores, bootstrap, clock))

    selector = selectors.DefaultSelector()
    stack.callback(selector.close)
    signals = _Signals(selector)
    stack.callback(signals.close)
    control = ControlSocket(selector, run_directory(data_dir), clock=clock)
    stack.callback(control.close)
    surroundings = Surroundings(
        stores=stores,
        app_factory=app_factory,
        listening=listening,
        control_path=control.path,
        give_up=lambda: _give_up(selector, signals),
        service=service,
    )
    fleet = Fleet(surroundings, settings, selector=selector, clock=clock)
    stack.callback(fleet.kill)
    supervisor = Supervisor(
        loaded,
        fleet,
        selector=selector,
        signals=signals,
        control=control,
        servers=servers,
        announce=lambda: announce(listening.url),
        clock=clock,
    )
    return supervisor.supervise()


async def _prepare_database(settings: Settings, stores: Stores, bootstrap: Bootstrap | None, clock: Clock) -> None:
    for name in await migrate.migrate(stores.database_dsn, clock=clock):
        log.info("migrated: %s", name)
    if bootstrap is not None:
        await bootstrap(settings, stores)


async def _judge_redis(url: str) -> None:
    try:
        await demand_fitness(url, timeout_s=REDIS_TIMEOUT_S)
    except StoreUnavailable as error:
        log.warning("Redis can't be judged before it answers: %s", error.detail or error.message)


class _Signals:
    """Signals as bytes on a socket, which the loop reads when it has time."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._heard: list[signal.Signals] = []
        selector.register(self._read, selectors.EVENT_READ, self._hear)
        signal.set_wakeup_fd(self._write.fileno())
        for number in _SIGNALS:
            # Python writes the byte; the handler has only to be one.
            signal.signal(number, lambda *_: None)

    def take(self) -> list[signal.Signals]:
        """Those heard since the last time."""
        heard, self._heard = self._heard, []
        return heard

    def close(self) -> None:
        """Hear nothing more; what is signalled from here on comes too late to matter."""
        signal.set_wakeup_fd(-1)
        self._read.close()
        self._write.close()

    def _hear(self) -> None:
        self._heard += [signal.Signals(number) for number in self._read.recv(4096)]


def _give_up(selector: selectors.BaseSelector, signals: _Signals) -> None:
    """In a worker: let go of what is the supervisor's, without touching what it stands for."""
    keys = list(selector.get_map().values())
    # Closed before the sockets: until then it may be one queue for both processes.
    selector.close()
    signals.close()
    for key in keys:
        if isinstance(key.fileobj, socket.socket):
            key.fileobj.close()
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class Supervisor:
    """The loop: what is heard from signals, workers, clients and the file system, and what follows from it."""

    def __init__(
        self,
        loaded: Loaded,
        fleet: Fleet,
        *,
        selector: selectors.BaseSelector,
        signals: _Signals,
        control: ControlSocket,
        servers: EmbeddedServers | None,
        announce: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._loaded = loaded
        #: The configuration that workers are being started with.
        self._next: Loaded | None = None
        self._fleet = fleet
        self._selector = selector
        self._signals = signals
        self._control = control
        self._servers = servers
        self._announce = announce
        self._clock = clock
        self._had_terminal = has_terminal()
        self._announced = False
        self._stopping = False
        self._reload_wanted = False
        self._stamps_seen = self._stamps_loaded = _stamps(loaded)
        self._started_at = clock.monotonic()
        control.answer(METRICS, fleet.aggregate.render)
        control.answer(STATUS, self._facts)

    def supervise(self) -> int:
        """Start the workers and look after everything until the last of them is gone.

        Raises: StartFailed.
        """
        # What exists now is shared with the workers for good: never look at it again, never move it.
        gc.collect()
        gc.freeze()
        try:
            self._fleet.launch()
        except OSError as error:
            raise StartFailed(f"a worker can't be started: {error}") from error
        while not self._fleet.gone or not (self._stopping or self._fleet.failure):
            for key, _ in self._selector.select(self._timeout_s()):
                key.data()
            for number in self._signals.take():
                self._obey(number)
            self._fleet.reap()
            self._fleet.tend()
            self._control.expire()
            if self._servers is not None:
                self._servers.check()
            if not self._stopping:
                self._advance()
        if self._fleet.failure:
            raise StartFailed(self._fleet.failure)
        return 0

    def _facts(self) -> bytes:
        facts = FleetFacts(
            version=__version__,
            pid=os.getpid(),
            age_s=self._clock.monotonic() - self._started_at,
            workers=self._fleet.facts(),
            families=list(self._fleet.aggregate.merged().values()),
        )
        return encode_facts(facts)

    def _timeout_s(self) -> float:
        due_at = self._fleet.due_at
        return _TICK_S if due_at is None else min(_TICK_S, max(0.0, due_at - self._clock.monotonic()))

    def _obey(self, number: signal.Signals) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stopping = True
            self._fleet.stop()
        elif number == signal.SIGHUP:
            if self._had_terminal and not has_terminal():
                self._stopping = True
                self._fleet.stop()
            else:
                self._reload_wanted = True

    def _advance(self) -> None:
        """From started to announced, from a changed file to a reload, from a reload to its outcome."""
        if not self._fleet.started:
            return
        if not self._announced:
            self._announced = True
            self._announce()
        if self._fleet.replacing:
            return
        if self._next is not None:
            if self._fleet.settings is self._next.settings:
                self._loaded = self._next
            self._next = None
        self._watch()
        if self._reload_wanted:
            self._reload_wanted = False
            self._reload()

    def _watch(self) -> None:
        """A configuration file that changed, and then did not for one look, is loaded like after SIGHUP."""
        stamps = _stamps(self._loaded)
        if stamps != self._stamps_seen:
            self._stamps_seen = stamps
        elif stamps != self._stamps_loaded:
            self._reload_wanted = True

    def _reload(self) -> None:
        self._stamps_seen = self._stamps_loaded = _stamps(self._loaded)
        try:
            loaded = self._loaded.reload()
        except ConfigError as error:
            log.error("the new configuration is not used: %s", error.message)  # noqa: TRY400  the message is all
            return
        old, new = self._loaded.settings, loaded.settings
        for name in _FIXED:
            if getattr(old.server, name) != getattr(new.server, name):
                log.warning("server.%s takes effect at the next start", name)
        if given_stores(old) != given_stores(new):
            log.warning("the URLs of the stores take effect at the next start")
        self._next = loaded
        self._fleet.replace(new)


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, still."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _stamps(loaded: Loaded) -> Stamps:
    stamps: Stamps = {}
    for path in loaded.files:
        with contextlib.suppress(OSError):
            found = os.stat(path)  # noqa: PTH116  twice a second, for ever
            stamps[path] = (found.st_mtime_ns, found.st_size, found.st_ino)
    return stamps
