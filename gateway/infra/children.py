"""Child processes that never outlive their parent, and the locks that prove it.

Rules:
- On Linux the kernel ends a child when the thread that started it ends (`PR_SET_PDEATHSIG`), however that happened;
  so children are started from the main thread. Elsewhere an orphan is found by its lock at the next start.
- A lock file is held by every process that has its descriptor open. A child inherits the descriptor of its own lock,
  so the lock is free exactly when the child and all its descendants are gone, whatever any pid file says.
- Programs that refuse to run as root run in a user namespace in which root's files belong to `nobody`; where
  namespaces are forbidden, as `nobody` itself. Nothing outside our own directories changes owner or mode.

What is run, and with which files, is decided in `gateway/infra/embedded.py`.
"""

import contextlib
import ctypes
import enum
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.infra.clock import Clock, SystemClock

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_CLONE_NEWUSER = 0x10000000
_POLL_S = 0.005

# Loaded before any fork: the child may only call what is already there.
_libc = ctypes.CDLL(None, use_errno=True)


class Identity(enum.Enum):
    """Whom a child runs as."""

    #: The user that runs the gateway.
    OWN = "own"
    #: The same user, seen from inside as `nobody`.
    NAMESPACE = "namespace"
    #: `nobody`.
    NOBODY = "nobody"


class FileLock:
    """An exclusive lock on `path`, freed when the last process that has it open is gone."""

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        self.path = path
        self._clock = clock or SystemClock()
        self._fd = -1

    @property
    def fd(self) -> int:
        """The descriptor a child must inherit to share the lock."""
        assert self._fd >= 0, "the lock is not held"
        return self._fd

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def acquire(self, *, wait_s: float = 0.0) -> bool:
        """Take the lock, waiting at most `wait_s`; False when another process has it."""
        assert self._fd < 0, "the lock is held already"
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = self._clock.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._clock.monotonic() >= deadline:
                    os.close(fd)
                    return False
                time.sleep(_POLL_S)
            else:
                self._fd = fd
                return True

    def sign(self, pid: int) -> None:
        """Write who holds the lock, for the messages of those who can't have it."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{pid}\n".encode(), 0)

    def holder(self) -> int | None:
        """The pid that was last written by a holder."""
        try:
            return int(self.path.read_text("ascii"))
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Close our descriptor; a child that inherited it keeps the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Backoff:
    """How long to wait before what keeps dying is started again: doubling, bounded, forgotten after some health."""

    def __init__(self, *, first_s: float = 0.1, max_s: float = 10.0, healthy_s: float = 10.0) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._healthy_s = healthy_s
        self._delay_s = 0.0

    def after(self, lived_s: float) -> float:
        """Seconds to wait now that it died after `lived_s`."""
        if lived_s >= self._healthy_s:
            self._delay_s = 0.0
        delay_s = self._delay_s
        self._delay_s = min(self._max_s, max(self._first_s, self._delay_s * 2))
        return delay_s


def die_with_parent(parent_pid: int, death_signal: signal.Signals) -> None:
    """In a child: arrange to get `death_signal` when the parent ends, or end now if it already has."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def set_title(title: str) -> None:
    """Show `title` (15 bytes of it) as this process's name in `ps -o comm` and `top`."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_NAME, title.encode()[:15], 0, 0, 0)


def unprivileged() -> Identity:
    """Whom to run a program as that refuses to run as root."""
    if os.geteuid() != 0:
        return Identity.OWN
    return Identity.NAMESPACE if _namespaces_allowed() else Identity.NOBODY


def nobody() -> tuple[int, int]:
    """User and group of `nobody`."""
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam("nobody")
        return entry.pw_uid, entry.pw_gid
    return 65534, 65534


def spawn(
    argv: Sequence[str],
    *,
    log_fd: int,
    identity: Identity = Identity.OWN,
    death_signal: signal.Signals = signal.SIGTERM,
    inherit: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    """Start `argv` in a session of its own (a Ctrl-C at the terminal is ours to handle), writing to `log_fd`.

    Raises: OSError when it can't be executed.
    """
    parent_pid = os.getpid()
    uid, gid = nobody()

    def prepare() -> None:
        os.umask(0o077)
        if identity is Identity.NAMESPACE:
            try:
                _enter_namespace(uid, gid)
            except OSError as error:
                # Of what goes wrong here only the log ever hears: the parent is told no more than that it did.
                os.write(2, f"no user namespace for {argv[0]}: {error}\n".encode())
                raise
        # Last: a change of user clears it.
        die_with_parent(parent_pid, death_signal)

    drop = identity is Identity.NOBODY
    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=log_fd,
        stderr=log_fd,
        cwd="/",
        pass_fds=tuple(inherit),
        start_new_session=True,
        user=uid if drop else None,
        group=gid if drop else None,
        extra_groups=[] if drop else None,
        preexec_fn=prepare,  # noqa: PLW1509  the supervisor has one thread
    )


def command_line(pid: int) -> bytes:
    """What `pid` was started as, in whatever form the system tells it; empty when it is gone or can't be asked."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    try:
        asked = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return asked.stdout


def wait_until(ready: Callable[[], bool], *, timeout_s: float, clock: Clock | None = None) -> bool:
    """Poll `ready` until it is true; False when it was not within `timeout_s`."""
    now = (clock or SystemClock()).monotonic
    deadline = now() + timeout_s
    while not ready():
        if now() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _enter_namespace(uid: int, gid: int) -> None:
    """In a child that is root: become `uid`, to whom everything of root's belongs, in a new user namespace."""
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("gid_map", f"{gid} {outer_gid} 1"),
        ("uid_map", f"{uid} {outer_uid} 1"),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(fd, text.encode())
        os.close(fd)


def _namespaces_allowed() -> bool:
    """Try it in a child: containers often forbid it, each in its own way."""
    if sys.platform != "linux":
        return False
    pid = os.fork()
    if pid == 0:
        try:
            _enter_namespace(*nobody())
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
