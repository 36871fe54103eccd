import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.infra.children import Backoff, FileLock, command_line, spawn, wait_until

REPOSITORY = Path(__file__).parents[3]


def test_lock_is_held_once_and_free_again(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    first.sign(4711)

    assert not second.acquire()
    assert second.holder() == 4711
    first.release()
    assert second.acquire(wait_s=5)
    second.release()
    second.release()


def test_lock_stays_with_the_child_that_inherited_it(tmp_path: Path) -> None:
    mine, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert mine.acquire()
    child = spawn(["cat"], log_fd=subprocess.DEVNULL, inherit=(mine.fd,), stdin=subprocess.PIPE)
    mine.release()

    assert not other.acquire()
    child.communicate()
    assert other.acquire(wait_s=30)
    other.release()


def test_unsigned_lock_has_no_holder(tmp_path: Path) -> None:
    assert FileLock(tmp_path / "none").holder() is None
    (tmp_path / "odd").write_text("who?")
    assert FileLock(tmp_path / "odd").holder() is None


@given(st.lists(st.floats(min_value=0, max_value=100), max_size=40))
def test_backoff_is_bounded_and_forgets_after_health(lives_s: list[float]) -> None:
    backoff = Backoff(first_s=0.1, max_s=5.0, healthy_s=10.0)
    previous_s = 0.0
    for lived_s in lives_s:
        delay_s = backoff.after(lived_s)
        assert 0 <= delay_s <= 5.0
        if lived_s >= 10.0:
            assert delay_s == 0
        else:
            assert delay_s >= previous_s
        previous_s = delay_s


def test_backoff_doubles() -> None:
    backoff = Backoff(first_s=0.1, max_s=0.5)

    assert [backoff.after(0) for _ in range(6)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.5, 0.5])


def test_command_line_of_a_process_and_of_none() -> None:
    assert b"pytest" in command_line(os.getpid()) or b"python" in command_line(os.getpid())
    child = subprocess.Popen(["true"])
    child.wait()
    assert command_line(child.pid) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_child_dies_with_a_parent_that_was_killed() -> None:
    script = (
        "import signal, subprocess, sys; from gateway.infra.children import spawn;"
        "child = spawn(['sleep', '600'], log_fd=subprocess.DEVNULL, death_signal=signal.SIGKILL);"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert b"sleep" in command_line(pid)

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    assert wait_until(lambda: command_line(pid) == b"", timeout_s=30)
    parent.stdin.close()
    parent.stdout.close()


def test_child_has_a_session_of_its_own() -> None:
    child = spawn(["cat"], log_fd=subprocess.DEVNULL, stdin=subprocess.PIPE)

    assert os.getsid(child.pid) == child.pid
    child.communicate()


def test_waiting_ends_with_the_condition_or_the_time() -> None:
    assert wait_until(lambda: True, timeout_s=0)
    assert not wait_until(lambda: False, timeout_s=0.01)
