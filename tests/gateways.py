"""The whole gateway, running: the real application on a real server and real stores, in the loop of the test.

    async with ScriptedUpstream(play(RECEIVE, answer(b"{}"), REPEAT)) as upstream:
        async with RunningGateway(stores, providers={"local": upstream}) as gateway:
            ...  # gateway.url, gateway.key, gateway.openai(), await gateway.ask(...), await gateway.records(1)

`server` chooses who speaks HTTP to the callers: `direct` is the gateway's own protocol with its direct path,
`httptools` and `h11` are uvicorn's, which know nothing of it; the application must behave alike on all three.

`openai()` is the official asynchronous client, `blocking_openai()` the other one, to be used in a thread
(`asyncio.to_thread`): the gateway and the scripted provider live in the test's loop. `ask` and `connect` are a client
without manners, for what no SDK would send; its answers are read by h11, which is strict about framing.

`ServedGateway` is the same from further away: the command, in processes of its own.
"""

import asyncio
import contextlib
import functools
import itertools
import os
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import h11
import msgspec
import uvicorn
from openai import AsyncOpenAI, OpenAI

from gateway.app import create_app
from gateway.catalogue.snapshot import FILE_NAME, build_apart
from gateway.dataplane import DataPlane
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.key_store import create_key
from gateway.secret import Secret
from gateway.server.protocol import DirectProtocol
from gateway.server.websocket import WebSocketProtocol
from gateway.settings import Log, Model, Provider, Settings, Timeouts, Upstream
from gateway.telemetry import Record
from tests.places import fast_place
from tests.upstreams import Headers, ScriptedUpstream

ServerKind = Literal["direct", "httptools", "h11"]
SERVERS: Final[tuple[ServerKind, ...]] = ("direct", "httptools", "h11")

PEPPER: Final = "the pepper of the acceptance tests"
#: What the gateway presents to providers; no caller may ever see it.
PROVIDER_KEY: Final = "sk-provider-0123456789abcdef"
#: A test that waits longer than this for one thing has failed.
PATIENCE_S: Final = 30.0

_names = itertools.count()


@functools.cache
def _catalogue() -> bytes:
    """The price catalogue, which every gateway would make for its own data directory: half a second each."""
    return build_apart()


def _furnish(data_dir: Path) -> None:
    data_dir.mkdir(exist_ok=True)
    (data_dir / FILE_NAME).write_bytes(_catalogue())


class Answer(msgspec.Struct, frozen=True):
    """A response as a raw client saw it; header names are lower-cased, the transfer coding is undone."""

    status: int
    headers: Headers
    body: bytes
    #: The transfer ended as its framing says it must; False where the connection was cut before.
    whole: bool

    def header(self, name: bytes) -> bytes | None:
        """Value of the only header called `name`; more than one fails the test."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name!r} {len(values)} times"
        return values[0] if values else None

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        assert self.header(b"content-type") == b"application/json"
        error: dict[str, Any] = msgspec.json.decode(self.body)["error"]
        return error


class Connection:
    """A caller's connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._parser = h11.Connection(h11.CLIENT)

    async def send(self, data: bytes) -> None:
        """Write bytes that are (a part of) a request."""
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, *, method: bytes = b"POST") -> Answer:
        """The next response, to its end."""
        head = await self.receive_head(method=method)
        pieces = [piece async for piece in self.pieces()]
        return Answer(head.status, head.headers, b"".join(pieces), self._parser.their_state is h11.DONE)

    async def receive_head(self, *, method: bytes = b"POST") -> Answer:
        """The head of the next final response, with an empty body."""
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1024 * 1024)
        # What was really sent is the test's business; h11 has to know the method to read the framing.
        self._parser.send(h11.Request(method=method, target="/", headers=[("host", "gateway")]))
        self._parser.send(h11.EndOfMessage())
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Response):
                return Answer(event.status_code, [(bytes(n), bytes(v)) for n, v in event.headers], b"", whole=False)
            assert isinstance(event, h11.InformationalResponse), event

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body that follows a head, as it comes in; ends silently where the connection is cut."""
        with contextlib.suppress(h11.RemoteProtocolError):
            while isinstance(event := await self._next_event(), h11.Data):
                yield bytes(event.data)

    async def _next_event(self) -> Any:  # Any: h11's events have no common name worth writing
        while (event := self._parser.next_event()) is h11.NEED_DATA:
            try:
                data = await asyncio.wait_for(self.reader.read(65536), PATIENCE_S)
            except ConnectionError:
                data = b""
            self._parser.receive_data(data)
        return event

    async def closed(self) -> None:
        """Wait until the gateway has closed its end."""
        with contextlib.suppress(ConnectionError):
            while await asyncio.wait_for(self.reader.read(65536), PATIENCE_S):
                pass

    def abort(self) -> None:
        """Leave without a word."""
        self.writer.transport.abort()


async def connect(port: int, *, window_bytes: int | None = None) -> Connection:
    """A connection to 127.0.0.1; abort it at the end. `window_bytes` is how much the kernel takes in unread."""
    sock = socket.socket()
    sock.setblocking(False)
    if window_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**20)
    return Connection(reader, writer)


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, started and stopped by a test: no signals, no polling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def start(self) -> int:
        """Listen on a free port of the loopback interface; its number."""
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup()
        await self.on_tick(0)
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Cut what is still open, wait for every request to end, then let the application go."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if tasks := tuple(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=PATIENCE_S)
        assert not self.server_state.tasks, "requests that go on without a caller"
        await self.lifespan.shutdown()


class RunningGateway:
    """A gateway in this loop. Use it with `async with`."""

    def __init__(
        self,
        stores: Stores,
        *,
        providers: Mapping[str, ScriptedUpstream | Provider],
        server: ServerKind = "direct",
        settings: Settings | None = None,
        models: Mapping[str, Model] | None = None,
        timeouts: Timeouts | None = None,
        default_provider: str = "",
    ) -> None:
        """`settings` is for what the other arguments can't say; they are laid over it."""
        self._stack = contextlib.AsyncExitStack()
        self._dir = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gw-", dir=fast_place())))
        _furnish(self._dir)
        self._access_log = self._dir / "access.log"
        self.stores = stores
        base = settings or Settings()
        self.settings = msgspec.structs.replace(
            base,
            server=msgspec.structs.replace(base.server, data_dir=str(self._dir)),
            auth=msgspec.structs.replace(base.auth, pepper=Secret(PEPPER)),
            upstream=Upstream(timeouts=timeouts) if timeouts is not None else base.upstream,
            log=Log(level="info", access=str(self._access_log)),
            # This loop is the callers' and the providers' as well: that it is late says nothing of the gateway.
            overload=msgspec.structs.replace(base.overload, lag_s=0.0),
            providers_from_environment=False,
            default_provider=default_provider or base.default_provider,
            providers={
                name: self._provider(target) if isinstance(target, ScriptedUpstream) else target
                for name, target in providers.items()
            },
            models={"*": Model(free=True), **(models or {})},
        )
        self._server_kind = server
        self.key = ""
        self.key_id = ""
        self.url = ""
        self.port = 0

    @staticmethod
    def _provider(upstream: ScriptedUpstream) -> Provider:
        return Provider(adapter="openai", base_url=f"{upstream.url}/v1", api_key=Secret(PROVIDER_KEY), models=("*",))

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                Database(self.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S)
            )
            key = await self.make_key(database)
            self.key, self.key_id = key.text, key.id
        self.app: DataPlane = create_app(self.settings, self.stores)
        http: Any = DirectProtocol if self._server_kind == "direct" else self._server_kind
        config = uvicorn.Config(
            self.app,
            host="127.0.0.1",
            port=0,
            interface="asgi3",
            http=http,
            ws=WebSocketProtocol,
            ws_max_size=self.settings.realtime.message_bytes_max,
            ws_per_message_deflate=False,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # As in production. uvicorn's own 5 s are short enough for a busy machine to close what a client takes up again.
            timeout_keep_alive=int(self.settings.server.keep_alive_s),
        )
        self.server = _Uvicorn(config)
        self.port = await self.server.start()
        self.url = f"http://127.0.0.1:{self.port}"
        self._stack.push_async_callback(self.server.stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def make_key(self, database: Database) -> Any:
        """A new key of the first account."""
        return await create_key(database, name=f"key {next(_names)}", pepper=PEPPER.encode())

    # -- clients -------------------------------------------------------------------------------------------------

    def openai(self, **options: Any) -> AsyncOpenAI:
        """The official client with the gateway's key; closed with the gateway."""
        options = {
            "api_key": self.key,
            "base_url": f"{self.url}/v1",
            "max_retries": 0,
            "timeout": PATIENCE_S,
        } | options
        client = AsyncOpenAI(**options)
        self._stack.push_async_callback(client.close)
        return client

    def blocking_openai(self, **options: Any) -> OpenAI:
        """The official blocking client; use it in a thread."""
        options = {
            "api_key": self.key,
            "base_url": f"{self.url}/v1",
            "max_retries": 0,
            "timeout": PATIENCE_S,
        } | options
        client = OpenAI(**options)
        self._stack.callback(client.close)
        return client

    async def connect(self) -> Connection:
        """A connection to send any bytes on; closed with the gateway."""
        connection = await connect(self.port)
        self._stack.callback(connection.abort)
        return connection

    def request(
        self,
        body: bytes = b"",
        *,
        path: bytes = b"/v1/chat/completions",
        method: bytes = b"POST",
        headers: Iterable[tuple[bytes, bytes]] = (),
        key: str | None = None,
    ) -> bytes:
        """The bytes of a request with the gateway's key (or `key`; "" for none), framed by its length."""
        fields = [(b"host", b"gateway"), *headers]
        names = {name.lower() for name, _ in fields}
        text = self.key if key is None else key
        if text and b"authorization" not in names:
            fields.append((b"authorization", b"Bearer " + text.encode()))
        if method == b"POST" and b"content-type" not in names:
            fields.append((b"content-type", b"application/json"))
        if not names & {b"content-length", b"transfer-encoding"} and (body or method == b"POST"):
            fields.append((b"content-length", b"%d" % len(body)))
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, path, lines, body)

    async def ask(self, body: bytes = b"", *, method: bytes = b"POST", **parts: Any) -> Answer:
        """One request on a connection of its own, as `request` makes it, and its answer."""
        connection = await self.connect()
        await connection.send(self.request(body, method=method, **parts))
        answer = await connection.receive(method=method)
        connection.abort()
        return answer

    # -- what can be seen from outside ---------------------------------------------------------------------------

    async def records(self, count: int) -> list[Record]:
        """The access log, once it has `count` lines."""
        async with asyncio.timeout(PATIENCE_S):
            while len(lines := self._access_log.read_bytes().splitlines()) < count:  # noqa: ASYNC110  another thread writes it, in batches
                await asyncio.sleep(0.02)
        assert len(lines) == count, lines
        return [msgspec.json.decode(line, type=Record) for line in lines]

    async def metrics(self) -> str:
        """`GET /metrics`."""
        answer = await self.ask(method=b"GET", path=b"/metrics", key="")
        assert answer.status == 200
        return answer.body.decode()


#: What must not reach a gateway from the shell that runs the tests.
_FOREIGN: Final = re.compile(r"GATEWAY_.*|DATABASE_URL|REDIS_URL|.*_API_KEY|.*_PROXY|.*_proxy|PYTHON.*")
_READY: Final = re.compile(rb"is ready: (http://\S+)")


class ServedGateway:
    """`gateway serve` in processes of its own, for what only those show: memory, workers, logs. Use with `async with`.

    `config` is TOML; providers in it find their key in the variable PROVIDER_KEY.
    """

    def __init__(self, stores: Stores, config: str, *, workers: int = 1, path: Path | None = None) -> None:
        """`path` is a folder with further packages."""
        self.stores = stores
        self.url = ""
        self.key = ""
        self.key_id = ""
        #: Everything it wrote to standard error, and to standard output.
        self.log = bytearray()
        self.access_log = bytearray()
        self._workers = workers
        self._stack = contextlib.AsyncExitStack()
        self._dir = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gw-", dir=fast_place())))
        _furnish(self._dir / "data")
        (self._dir / "gateway.toml").write_text(config)
        self._environ = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)} | {  # noqa: TID251
            "DATABASE_URL": stores.database_dsn,
            "REDIS_URL": stores.redis_url,
            "PROVIDER_KEY": PROVIDER_KEY,
            "GATEWAY__AUTH__PEPPER": PEPPER,
            "GATEWAY__SERVER__DATA_DIR": str(self._dir / "data"),
            # A busy machine is no reason to refuse what a test asks; what is, `gateway/routing/test_shedding.py` says.
            "GATEWAY__OVERLOAD__LAG_S": "0",
            # What a provider is scripted to be asked is what callers ask.
            "GATEWAY__CATALOGUE__LISTS": "false",
        }
        if path is not None:
            self._environ["PYTHONPATH"] = str(path)

    async def __aenter__(self) -> Self:
        async with Database(self.stores.database_dsn, pool_size=1, timeout_s=PATIENCE_S) as database:
            key = await create_key(database, name=f"key {next(_names)}", pepper=PEPPER.encode())
        self.key, self.key_id = key.text, key.id
        self._process = await self._spawn("serve", "--port", "0", "--workers", str(self._workers))
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        ready = asyncio.get_running_loop().create_future()
        self._readers = [
            asyncio.ensure_future(self._read(self._process.stdout, self.access_log, None)),
            asyncio.ensure_future(self._read(self._process.stderr, self.log, ready)),
        ]
        self._stack.push_async_callback(self.stop)
        self.url = (await asyncio.wait_for(ready, PATIENCE_S)).decode()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def stop(self) -> int:
        """Tell it to end, wait until it has; its exit status."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            status = await asyncio.wait_for(self._process.wait(), PATIENCE_S)
        except TimeoutError:
            self._process.kill()
            raise
        await asyncio.gather(*self._readers)
        return status

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self._process.send_signal(number)

    async def logged(self, text: bytes, *, count: int = 1) -> None:
        """Wait until it has written `text` to its log so often."""
        async with asyncio.timeout(PATIENCE_S):
            while self.log.count(text) < count:  # noqa: ASYNC110  another process writes it
                await asyncio.sleep(0.02)

    async def command(self, *arguments: str) -> str:
        """Run `gateway` with these arguments and the same configuration; its standard output."""
        process = await self._spawn(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def _spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        config = str(self._dir / "gateway.toml")
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", *arguments, "--config", config,
            cwd=self._dir, env=self._environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def _read(
        self, stream: asyncio.StreamReader, into: bytearray, ready: "asyncio.Future[bytes] | None"
    ) -> None:
        while data := await stream.read(65536):
            into += data
            if ready is not None and not ready.done() and (found := _READY.search(into)):
                ready.set_result(found[1])
        if ready is not None and not ready.done():
            ready.set_exception(AssertionError(into.decode()))

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def resident_bytes(self) -> int:
        """Memory of all workers."""
        parent = self._process.pid
        pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf(
            "SC_PAGE_SIZE"
        )
