import resource
import selectors
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.server.control import CLIENT_TIMEOUT_S, CLIENTS_MAX, ControlSocket
from tests.places import fast_place


class FakeClock:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


class World:
    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.selector = selectors.DefaultSelector()
        self.control = ControlSocket(self.selector, directory, clock=self.clock)
        self.control.answer(b"large\n", lambda: bytes(4 * 1024 * 1024))
        self.control.answer(b"small\n", lambda: b"yes")

    def turn(self) -> None:
        """What is ready now, and what that makes ready."""
        while ready := self.selector.select(0):
            for key, _ in ready:
                key.data()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.control.path))
        client.settimeout(30)
        self.turn()
        return client


@pytest.fixture
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="gw-control-", dir=fast_place()) as directory:
        world = World(Path(directory))
        try:
            yield world
        finally:
            world.control.close()
            world.selector.close()
        assert list(Path(directory).iterdir()) == []


def read_all(world: World, client: socket.socket) -> bytes:
    received = b""
    client.setblocking(False)
    while True:
        world.turn()
        try:
            chunk = client.recv(1 << 20)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            # The end of a connection on which we had more to say.
            return received
        if not chunk:
            return received
        received += chunk


def test_line_is_answered_even_in_pieces(world: World) -> None:
    with world.connect() as client:
        client.sendall(b"sma")
        world.turn()
        client.sendall(b"ll\n")

        assert read_all(world, client) == b"yes"


def test_large_answer_waits_for_its_reader_and_nobody_for_both(world: World) -> None:
    with world.connect() as slow, world.connect() as quick:
        slow.sendall(b"large\n")
        world.turn()
        quick.sendall(b"small\n")

        assert read_all(world, quick) == b"yes"
        assert len(read_all(world, slow)) == 4 * 1024 * 1024


@pytest.mark.parametrize("request_line", [b"unknown\n", b"x" * 1000])
def test_nonsense_gets_nothing(world: World, request_line: bytes) -> None:
    with world.connect() as client:
        client.sendall(request_line)

        assert read_all(world, client) == b""


def test_client_that_says_nothing_is_dropped(world: World) -> None:
    with world.connect() as client:
        world.clock.at = CLIENT_TIMEOUT_S
        world.control.expire()

        assert client.recv(1) == b""


def test_too_many_clients_are_turned_away(world: World) -> None:
    clients = [world.connect() for _ in range(CLIENTS_MAX + 1)]

    assert clients[-1].recv(1) == b""
    for client in clients:
        client.close()
    world.turn()
    with world.connect() as client:
        client.sendall(b"small\n")
        assert read_all(world, client) == b"yes"


def test_a_process_that_may_open_no_file_lives_on(world: World) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(world.control.path))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            for key, _ in world.selector.select(0):
                key.data()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client.sendall(b"small\n")

        assert read_all(world, client) == b"yes"


def test_what_a_killed_supervisor_left_is_removed(world: World) -> None:
    directory = world.control.path.parent
    left = directory / "control-1.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    selector = selectors.DefaultSelector()
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(directory / "control-2.sock"))
        living.listen()
        world.control.path.rename(directory / "aside")
        control = ControlSocket(selector, directory, clock=world.clock)

        assert not left.exists()
        assert (directory / "control-2.sock").exists()
    control.close()
    selector.close()
    (directory / "control-2.sock").unlink()
    (directory / "aside").unlink()
