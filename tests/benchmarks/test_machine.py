import os
import socket
import subprocess
import sys

import pytest

from benchmarks import machine

pytestmark = pytest.mark.skipif(not machine.PROC.is_dir(), reason="needs /proc")


@pytest.fixture
def child():
    """A process with a child of its own that waits for its standard input to end."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    yield process
    process.stdin.write(b"\n")
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


def test_descendants_are_children_and_their_children(child) -> None:
    found = machine.descendants(os.getpid())

    assert child.pid in found
    (grandchild,) = machine.descendants(child.pid)
    assert found.index(child.pid) < found.index(grandchild)


def test_pinning_holds_for_the_process(child) -> None:
    core = min(os.sched_getaffinity(0))

    machine.pin(child.pid, core=core)

    assert os.sched_getaffinity(child.pid) == {core}


def test_who_listens_on_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        assert machine.listeners([1, os.getpid()], port=port) == [os.getpid()]

    assert machine.listeners([os.getpid()], port=port) == []


def test_readings_are_plausible() -> None:
    own = os.getpid()

    assert machine.rss_bytes(own) > 1_000_000
    assert machine.cpu_s(own) > 0
    assert machine.busy_s(os.sched_getaffinity(0)) > 0
    assert machine.facts().cores >= 1


def test_a_process_that_has_gone_reads_as_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(30)

    assert (machine.rss_bytes(process.pid), machine.cpu_s(process.pid)) == (0, 0.0)
    assert machine.descendants(process.pid) == []
