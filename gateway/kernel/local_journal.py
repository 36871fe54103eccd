"""The local journal: how requests ended, on this machine's disk, for as long as Redis can't be told.

Rules:
- What was appended survives the death of the process at once, and that of the machine after `SYNC_S`: each entry is
  one write, and a sync follows it in a thread.
- A file has one writer, which holds its lock for as long as it lives. A file whose lock is free was left behind by a
  dead process, and belongs to whoever takes the lock.
- An entry that was damaged, or written in half, is not read, and costs no other: each stands in a frame with a mark
  to find the next one by, and a checksum under a key that is the file's name. So nothing a caller sends can pass for
  a frame. What a reader gives is what a writer wrote.
- A file is bounded. The last quarter is kept for the ends of requests that were let in before, and what only says how
  far a request has come stays out of the second half.

What is in here is sent to Redis by `replay.py`.
"""

import asyncio
import fcntl
import hashlib
import mmap
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from gateway.errors import StoreUnavailable
from gateway.kernel.money import Nanos
from gateway.kernel.verbs import Scopes, restore_scopes

#: What a failing machine can take with it.
SYNC_S: Final = 0.1
#: A larger entry is refused.
ENTRY_BYTES_MAX: Final = 1024 * 1024

_MARK: Final = b"\xf5\x1eJ\xe2"
_CHECK_BYTES: Final = 8
#: Mark, length of the payload, checksum of length and payload.
_HEAD: Final = struct.Struct(f"<4sI{_CHECK_BYTES}s")
_KEY_BYTES: Final = 16
_PREFIX: Final = "usage-"
_SUFFIX: Final = ".journal"


Verb: TypeAlias = Literal["settle", "void", "progress", "told"]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What is to be told to Redis of one request. The later of two about the same request counts.

    "progress" is what to charge if its process dies before it says more; "told": it ended, and Redis knows.
    """

    verb: Verb
    request_id: str
    partition: int = 0
    account_key: bytes = b""
    key_key: bytes = b""
    model_key: bytes | None = None
    cost_nanos: Nanos = 0
    tokens: int = 0
    #: A usage record, encoded.
    record: bytes = b""

    @property
    def scopes(self) -> Scopes:
        """Enough of them to end a request by."""
        return restore_scopes(self.partition, self.account_key, self.key_key, self.model_key)


class Gap(msgspec.Struct, frozen=True):
    """Bytes of a file that are no entry. `torn`: as a writer leaves its end that dies in the middle of an entry."""

    size_bytes: int
    torn: bool


Data: TypeAlias = bytes | mmap.mmap


class LocalJournal:
    """The file this process writes to; made when there is something to write."""

    def __init__(self, directory: Path, *, bytes_max: int) -> None:
        self.directory = directory
        self._bytes_max = bytes_max
        self._file: JournalFile | None = None
        self._key = b""
        self._size_bytes = 0
        self._synced_bytes = 0
        #: Ends in the file, and requests it says of that they are under way.
        self.ends = 0
        self._under_way: set[str] = set()
        #: Ends that this process wrote, and those of them that Redis was not told yet.
        self.written = 0
        self.untold = 0

    @property
    def size_bytes(self) -> int:
        """How much is in the file."""
        return self._size_bytes

    @property
    def has_room(self) -> bool:
        """Whether another request may be let in whose end may have to be written here."""
        return self._size_bytes < self._bytes_max // 4 * 3

    @property
    def is_due(self) -> bool:
        """Whether to seal it as soon as Redis can be told: it has ends in it, or nothing that still counts."""
        return self.ends > 0 or (self._size_bytes > 0 and not self._under_way)

    def append(self, entry: Entry) -> None:
        """Write one entry; it is the kernel's when this returns.

        Raises:
            StoreUnavailable: it could not be written, and is not in the file.
        """
        frame_bytes_max = self._bytes_max // 2 if entry.verb == "progress" else self._bytes_max
        try:
            if self._file is None:
                self._open()
            frame = make_frame(msgspec.msgpack.encode(entry), self._key)
            if self._size_bytes + len(frame) > frame_bytes_max:
                raise StoreUnavailable(detail="the local journal is full")
            self._write(frame)
        except OSError as error:
            raise StoreUnavailable(detail=f"the local journal can't be written: {error}") from error
        if entry.verb == "progress":
            self._under_way.add(entry.request_id)
            return
        self._under_way.discard(entry.request_id)
        if entry.verb != "told":
            self.ends += 1
            self.written += 1
            self.untold += 1

    async def sync(self) -> None:
        """Bring what was appended so far to the disk, in a thread.

        Raises:
            OSError
        """
        file, size_bytes = self._file, self._size_bytes
        if file is None or size_bytes == self._synced_bytes:
            return
        # A descriptor of its own, because the file may be sealed and gone meanwhile.
        await asyncio.to_thread(_sync_and_close, os.dup(file.descriptor))
        if self._file is file:
            self._synced_bytes = size_bytes

    def seal(self) -> "JournalFile | None":
        """The file, which will not be written to any more, still locked; None if there is none."""
        file, self._file = self._file, None
        self._size_bytes = self._synced_bytes = self.ends = 0
        self._under_way.clear()
        return file

    def close(self) -> None:
        """Leave the file to whoever comes next.

        Raises:
            OSError: it is not known to be on the disk.
        """
        if (file := self.seal()) is not None:
            try:
                os.fsync(file.descriptor)
            finally:
                file.release()

    def _open(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        while self._file is None:
            key = secrets.token_bytes(_KEY_BYTES)
            path = self.directory / f"{_PREFIX}{key.hex()}{_SUFFIX}"
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            # None if somebody takes the empty file for one that was left behind.
            self._file = take_file(path)
            self._key = key
        self._size_bytes = self._synced_bytes = self.ends = 0
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _write(self, frame: bytes) -> None:
        assert self._file is not None
        descriptor = self._file.descriptor
        written = 0
        try:
            while written < len(frame):
                written += os.write(descriptor, frame[written:])
        except OSError:
            # A disk that is full takes a part of it.
            os.ftruncate(descriptor, self._size_bytes)
            raise
        self._size_bytes += len(frame)


class JournalFile:
    """A journal file whose lock we hold."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def __repr__(self) -> str:
        return f"<JournalFile {self.path.name}>"

    def read(self) -> Iterator[Entry | Gap]:
        """What is in it, in the order in which it was written.

        Raises:
            OSError
        """
        if os.fstat(self.descriptor).st_size == 0:
            return
        key = bytes.fromhex(self.path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX))
        with mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ) as data:
            for found in read_frames(data, key):
                yield found if isinstance(found, Gap) else _decode(found)

    def remove(self) -> None:
        """All that is in it was told."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def release(self) -> None:
        """Let another process have it."""
        os.close(self.descriptor)

    def set_aside(self) -> Path:
        """Keep it for people to look at; nobody will read it again. Its new name."""
        aside = self.path.with_suffix(".damaged")
        self.path.rename(aside)
        os.close(self.descriptor)
        return aside


def find_left(directory: Path) -> list[JournalFile]:
    """Files whose writers are gone, oldest first, ours from now on.

    Raises:
        OSError
    """
    if not directory.is_dir():
        return []
    found = sorted(directory.glob(f"{_PREFIX}{'[0-9a-f]' * 2 * _KEY_BYTES}{_SUFFIX}"), key=_modified_s)
    return [file for path in found if (file := take_file(path)) is not None]


def make_frame(payload: bytes, key: bytes) -> bytes:
    """`payload` as it stands in a file.

    Raises:
        StoreUnavailable: it is too large for one.
    """
    if len(payload) > ENTRY_BYTES_MAX:
        raise StoreUnavailable(detail=f"an entry of {len(payload)} bytes is too large for the local journal")
    return _HEAD.pack(_MARK, len(payload), _checksum(payload, key)) + payload


def read_frames(data: Data, key: bytes) -> Iterator[bytes | Gap]:
    """The payloads of all frames that are whole, and what lies between them."""
    at, end = 0, len(data)
    while at < end:
        payload = _payload_at(data, at, key)
        if payload is not None:
            yield payload
            at += _HEAD.size + len(payload)
            continue
        start = at
        while payload is None:
            at = data.find(_MARK, at + 1)
            if at < 0:
                yield Gap(end - start, torn=_is_torn(data, start))
                return
            payload = _payload_at(data, at, key)
        yield Gap(at - start, torn=False)


def _payload_at(data: Data, at: int, key: bytes) -> bytes | None:
    start = at + _HEAD.size
    if start > len(data):
        return None
    mark, length, check = _HEAD.unpack(data[at:start])
    if mark != _MARK or length > ENTRY_BYTES_MAX or start + length > len(data):
        return None
    payload = data[start : start + length]
    return payload if _checksum(payload, key) == check else None


def _is_torn(data: Data, at: int) -> bool:
    """Whether the rest of the file is the beginning of a frame."""
    head = data[at : at + _HEAD.size]
    if len(head) < _HEAD.size:
        return head[: len(_MARK)] == _MARK[: len(head)]
    mark: bytes
    length: int
    mark, length, _ = _HEAD.unpack(head)
    return mark == _MARK and len(data) - at - _HEAD.size < length <= ENTRY_BYTES_MAX


def _decode(payload: bytes) -> Entry | Gap:
    try:
        return msgspec.msgpack.decode(payload, type=Entry)
    except msgspec.DecodeError:
        # Whole, and of a release that writes them otherwise.
        return Gap(len(payload), torn=False)


def _checksum(payload: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(b"%d:%b" % (len(payload), payload), digest_size=_CHECK_BYTES, key=key).digest()


def take_file(path: Path) -> JournalFile | None:
    """The file with its lock, or None where another has it, or had it and removed the file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink > 0 and path.exists():
            return JournalFile(path, descriptor)
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
