"""Real Valkey servers for tests that stop, kill, promote or reshard them: alone, replicating, or as a cluster."""

import contextlib
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hiredis

from gateway.infra.binaries import find_valkey
from tests.places import fast_place

WAIT_S = 30.0
SLOTS = 16384


class Server:
    """One server on a port of its own, of which the next start is the same again."""

    def __init__(self, folder: Path, *arguments: str, sentinel_of: "Server | None" = None) -> None:
        self.port = free_port()
        self.folder = folder / str(self.port)
        self.folder.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        self._config = self.folder / "valkey.conf"
        self._config.write_text(
            f"sentinel monitor main 127.0.0.1 {sentinel_of.port} 1\nsentinel down-after-milliseconds main 1000\n"
            if sentinel_of
            else ""
        )
        self._arguments = [
            *("--port", str(self.port)),
            *("--bind", "127.0.0.1"),
            *("--dir", str(self.folder)),
            *(["--sentinel"] if sentinel_of else ["--save", ""]),
            *arguments,
        ]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> "Server":
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([find_valkey(), self._config, *self._arguments], stdout=log, stderr=log)
        wait_until(self.up)
        return self

    def up(self) -> bool:
        try:
            return self.ask("PING") == b"PONG"
        except hiredis.ReplyError as error:
            # It wants to know who asks; so it is up.
            return str(error).startswith("NOAUTH")
        except OSError:
            return False

    def kill(self) -> None:
        """As the kernel does it when memory is short."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            # A stopped process does not take any other signal.
            self.signal(signal.SIGCONT)
            self.kill()

    def ask(self, *command: str | int) -> object:
        """The reply to one command; an error is raised."""
        reader = hiredis.Reader(notEnoughData=Server)
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S) as client:
            client.sendall(hiredis.pack_command(command))
            while (reply := reader.gets()) is Server:
                data = client.recv(65536)
                if not data:
                    raise ConnectionResetError
                reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def answers(self, *command: str | int) -> object:
        """The reply, or None while there is none."""
        try:
            return self.ask(*command)
        except (OSError, hiredis.ReplyError):
            return None

    def cluster_info(self) -> dict[str, str]:
        text = self.answers("CLUSTER", "INFO")
        lines = text.decode().splitlines() if isinstance(text, bytes) else []
        return dict(line.split(":", 1) for line in lines if ":" in line)


class ValkeyCluster:
    """Masters that share the slots evenly."""

    def __init__(self, folder: Path, masters: int) -> None:
        self.servers = [
            Server(folder, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000") for _ in range(masters)
        ]
        self._folder = folder

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> "ValkeyCluster":
        for server in self.servers:
            server.start()
        first, *others = self.servers
        share = SLOTS // len(self.servers)
        for index, server in enumerate(self.servers):
            last = SLOTS if server is self.servers[-1] else (index + 1) * share
            server.ask("CLUSTER", "ADDSLOTSRANGE", index * share, last - 1)
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for other in others:
            first.ask("CLUSTER", "MEET", "127.0.0.1", other.port)
        self.wait_ok()
        return self

    def add(self) -> Server:
        """One more server, without slots."""
        server = Server(self._folder, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000").start()
        self.servers.append(server)
        self.servers[0].ask("CLUSTER", "MEET", "127.0.0.1", server.port)
        self.wait_ok()
        return server

    def replicate(self, replica: Server, master: Server) -> None:
        """Make `replica` one of `master`'s, and wait until it has its data."""
        wait_until(lambda: replica.answers("CLUSTER", "REPLICATE", node_id(master)) == b"OK")
        wait_until(lambda: b"master_link_status:up" in (replica.answers("INFO", "replication") or b""))
        # A replica stands for election only if its master is known to have slots.
        wait_until(lambda: all(self.counts(each, b" slave ") == 1 for each in self.servers))

    def counts(self, server: Server, word: bytes) -> int:
        nodes = server.answers("CLUSTER", "NODES")
        return nodes.replace(b"myself,", b"").count(word) if isinstance(nodes, bytes) else -1

    def owner(self, slot: int) -> Server:
        reply = self.servers[0].ask("CLUSTER", "SLOTS")
        assert isinstance(reply, list)
        port = next(master[1] for first, last, master, *_ in reply if first <= slot <= last)
        return next(server for server in self.servers if server.port == port)

    def begin_move(self, slot: int, target: Server) -> Server:
        """Open `slot` for migration to `target`; the server that has it."""
        source = self.owner(slot)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))
        return source

    def move_keys(self, slot: int, source: Server, target: Server, *, pause_s: float = 0.0) -> None:
        """One by one, so that what needs two keys of the slot meets them apart."""
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
            assert isinstance(keys, list)
            source.ask("MIGRATE", "127.0.0.1", target.port, keys[0].decode(), 0, 5000)
            time.sleep(pause_s)

    def end_move(self, slot: int, target: Server) -> None:
        for server in (target, *(each for each in self.servers if each is not target)):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", node_id(target))

    def wait_ok(self) -> None:
        def ok() -> bool:
            for server in self.servers:
                info = server.cluster_info()
                if info.get("cluster_state") != "ok" or info.get("cluster_known_nodes") != str(len(self.servers)):
                    return False
            return True

        wait_until(ok)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


def node_id(server: Server) -> str:
    reply = server.ask("CLUSTER", "MYID")
    assert isinstance(reply, bytes)
    return reply.decode()


def free_port() -> int:
    """A port that was free a moment ago, with its cluster bus's 10,000 further up."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError, OverflowError), socket.socket() as bus:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            bus.bind(("127.0.0.1", port + 10_000))
            return port


def wait_until(condition) -> None:
    """Poll a condition of another process."""
    deadline_s = time.monotonic() + WAIT_S  # noqa: TID251
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"  # noqa: TID251
        time.sleep(0.01)


@contextlib.contextmanager
def valkey(*arguments: str) -> Iterator[Server]:
    """One running server of one's own."""
    with tempfile.TemporaryDirectory(prefix="gw-valkey-", dir=fast_place()) as folder:
        server = Server(Path(folder), *arguments)
        try:
            yield server.start()
        finally:
            server.stop()


@contextlib.contextmanager
def watched_pair() -> Iterator[tuple[Server, Server, Server]]:
    """A master, its replica, and a Sentinel that calls the master `main`."""
    with (
        tempfile.TemporaryDirectory(prefix="gw-sentinel-", dir=fast_place()) as folder,
        contextlib.ExitStack() as stack,
    ):
        servers = []
        for _ in range(2):
            server = Server(Path(folder), "--repl-diskless-sync-delay", "0")
            stack.callback(server.stop)
            servers.append(server.start())
        master, replica = servers
        replica.ask("REPLICAOF", "127.0.0.1", master.port)
        wait_until(lambda: b"master_link_status:up" in (replica.answers("INFO", "replication") or b""))
        sentinel = Server(Path(folder), sentinel_of=master)
        stack.callback(sentinel.stop)
        sentinel.start()
        wait_until(lambda: sentinel.answers("SENTINEL", "REPLICAS", "main"))
        yield master, replica, sentinel


@contextlib.contextmanager
def valkey_cluster(masters: int = 3) -> Iterator[ValkeyCluster]:
    """A running cluster, every slot served."""
    with tempfile.TemporaryDirectory(prefix="gw-cluster-", dir=fast_place()) as folder:
        cluster = ValkeyCluster(Path(folder), masters)
        try:
            yield cluster.start()
        finally:
            cluster.stop()
