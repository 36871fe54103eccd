"""One worker: an event loop, an application, and uvicorn's server on the socket that the supervisor gave it.

Rules:
- A worker is a fork of the supervisor and dies with it, at once and unasked.
- It obeys SIGTERM: it stops accepting, refuses new requests on the connections that it has, and lets running ones
  finish within `server.grace_s`. A second SIGTERM, or the end of that time, cancels them; they still get `SETTLE_S`
  to account for what was delivered. SIGINT is the supervisor's: the terminal sends it to everybody.
- SIGUSR1 tells it that another worker has taken its place: the same, but new requests are served.
- A connection is told in its last answer that it was the last one, or was silent for `IDLE_S` before it is closed; so
  hardly any client sends into a closed connection.
- It tells the supervisor when it accepts connections, or why it never will.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from typing import Any, NoReturn

import uvicorn
import uvloop

from gateway.errors import GatewayError
from gateway.infra.embedded import Stores
from gateway.infra.link import Link
from gateway.server.accepting import Acceptor, State
from gateway.server.protocol import DirectProtocol, sweep
from gateway.server.websocket import WebSocketProtocol
from gateway.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048
#: What a cancelled request gets to settle.
SETTLE_S = 5.0
#: How long a connection without a request is kept when we stop.
IDLE_S = 1.0
#: Tells a worker that another one has taken its place.
RETIRE = signal.SIGUSR1
_TICK_S = 1.0
_DRAIN_POLL_S = 0.02

# ASGI's own shapes: what is in the mappings is the protocol's business.
Message = MutableMapping[str, Any]
AsgiApp = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
#: Makes the application of one worker. The stores are reachable; the loop does not run yet.
AppFactory = Callable[[Settings, Stores, Link], AsgiApp]
#: Work beside the workers: runs until the event is set, and reports itself ready.
Service = Callable[[Settings, Stores, Link, asyncio.Event], Awaitable[None]]


class WorkerServer(uvicorn.Server):
    """uvicorn's server with our end: who stops it, what it waits for, and in which order things close."""

    server_state: State

    def __init__(
        self, config: uvicorn.Config, link: Link, *, grace_s: float, keep_alive_s: float, write_timeout_s: float
    ) -> None:
        super().__init__(config)
        self.server_state = State()
        self._link = link
        self._grace_s = grace_s
        self._keep_alive_s = keep_alive_s
        self._write_timeout_s = write_timeout_s
        self._woken = asyncio.Event()
        self._told = False
        self._supervisor_pid = os.getppid()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals come through the loop, see `startup`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._terminate)
        asyncio.get_running_loop().add_signal_handler(RETIRE, self._retire)
        await self._link.open()
        await super().startup(sockets)
        self.server_state.acceptors += [Acceptor(listener, self._protocol) for listener in sockets or []]
        self._link.report_ready()

    async def main_loop(self) -> None:
        """Once a second: the date header, and connections that were idle, or not read, for too long."""
        loop = asyncio.get_running_loop()
        while not self.should_exit:
            if os.getppid() != self._supervisor_pid:
                # Where the kernel has not ended us already.
                os._exit(1)
            await self.on_tick(0)
            sweep(
                self.server_state,
                now_s=loop.time(),
                keep_alive_s=self._keep_alive_s,
                write_timeout_s=self._write_timeout_s,
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, drain, cancel what is left, then close the application: settling needs its stores."""
        for acceptor in self.server_state.acceptors:
            acceptor.close()
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        if not await self._drained(self._grace_s, unless_forced=True):
            tasks = list(self.server_state.tasks)
            log.warning("cancelling %d requests that did not finish within the grace time", len(tasks))
            for task in tasks:
                task.cancel("the gateway shuts down")
            await self._drained(SETTLE_S, unless_forced=False)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await self.lifespan.shutdown()

    async def _drained(self, within_s: float, *, unless_forced: bool) -> bool:
        """Wait until no request runs and every response is out; False when it takes longer, or we were told again."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        while True:
            waited_s = loop.time() - begun_s
            for connection in list(self.server_state.connections):
                if isinstance(connection, DirectProtocol):
                    connection.leave(idle_s=IDLE_S)
                else:
                    connection.shutdown()
            if not self.server_state.tasks and not (unless_forced and self.server_state.connections):
                return True
            if waited_s >= within_s or (unless_forced and self.force_exit):
                return False
            await asyncio.sleep(_DRAIN_POLL_S)

    def _protocol(self) -> asyncio.Protocol:
        """Of a connection, as uvicorn makes it."""
        return DirectProtocol(self.config, self.server_state, self.lifespan.state)

    def _terminate(self) -> None:
        self.force_exit, self._told = self._told, True
        self._link.tell_stopping()
        self._retire()

    def _retire(self) -> None:
        self.should_exit = True
        self._woken.set()


def run_worker(
    settings: Settings, stores: Stores, *, app_factory: AppFactory, link: Link, listener: socket.socket
) -> NoReturn:
    """Serve until told to stop, then end this process. Exit status 0: stopped in order, 1: anything else."""

    def serve() -> None:
        config = uvicorn.Config(
            app_factory(settings, stores, link),
            interface="asgi3",
            http=DirectProtocol,
            ws=WebSocketProtocol,
            ws_max_size=settings.realtime.message_bytes_max,
            ws_per_message_deflate=False,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(settings.server.keep_alive_s),
            limit_concurrency=settings.server.connections_max,
            backlog=BACKLOG,
        )
        server = WorkerServer(
            config,
            link,
            grace_s=settings.server.grace_s,
            keep_alive_s=settings.server.keep_alive_s,
            write_timeout_s=settings.server.write_timeout_s,
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve([listener]))

    _end_with(serve, link)


def run_service(settings: Settings, stores: Stores, *, service: Service, link: Link) -> NoReturn:
    """Run work that serves nobody directly until told to stop, then end this process, as `run_worker` does."""

    async def work() -> None:
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, RETIRE):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await link.open()
        await service(settings, stores, link, stopping)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work())

    _end_with(run, link)


def _end_with(run: Callable[[], None], link: Link) -> NoReturn:
    """The border of a process: do `run`, tell the supervisor what went wrong, and end."""
    # Written to the log by uvicorn, and kept here for the supervisor.
    last_error = _LastError()
    uvicorn_log = logging.getLogger("uvicorn")
    uvicorn_log.setLevel(logging.WARNING)
    uvicorn_log.addHandler(last_error)
    status = 1
    try:
        run()
        status = 0
    except SystemExit:
        # How uvicorn says that the application did not start.
        link.report_failure(last_error.text or "the application did not start")
    except GatewayError as error:
        link.report_failure(error.message)
    except BaseException as error:
        # Nobody is left to handle it.
        log.critical("worker ends", exc_info=error)
        link.report_failure("".join(traceback.format_exception_only(error)).strip())
    finally:
        # Not through the supervisor's stack, of which this process has a copy.
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


class _LastError(logging.Handler):
    """Remembers the last line of the last error."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            return
        text = record.getMessage().strip()
        if record.exc_info and record.exc_info[1] is not None:
            text = "".join(traceback.format_exception_only(record.exc_info[1])).strip()
        # uvicorn's own last words say nothing that the supervisor does not say.
        if not text.startswith("Application startup failed"):
            self.text = text.splitlines()[-1] if text else ""
