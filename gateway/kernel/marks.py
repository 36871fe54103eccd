"""Marks: how many bytes of each open stream have gone out, in memory that outlives the process.

A worker tells Redis each second how far its streams are (`holds.py`). What it passed on after that, and was killed
with, stands here: a number for each stream in a mapped file, which is the kernel's and not the process's. Whoever
finds the file afterwards charges by it (`orphans.py`).

Rules:
- A mark is one store into memory for each chunk, and nothing else: no call to the kernel, nothing for the disk. It is
  as old as the last chunk when the process dies, and may be gone when the machine does.
- Only streams that were renewed have one: most requests are over before.
- A file has one writer, which holds its lock for as long as it lives. Without marks all goes on as it would: where
  there is no room, or no file can be made, streams are charged by their last renewal.
"""

import errno
import logging
import mmap
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from gateway.kernel.local_journal import JournalFile, take_file

log = logging.getLogger(__name__)

#: Streams that can be marked at a time; 32 bytes each.
SLOTS_MAX: Final = 4096

_MAGIC: Final = b"gateway marks 1\n"
#: Both halves of the request id, partition, bytes; no id: the slot is free.
_SLOT: Final = struct.Struct("<QQQQ")
_CELL_BYTES: Final = 8
_CELLS: Final = _SLOT.size // _CELL_BYTES
_HALF: Final = 1 << 64
_GLOB: Final = f"marks-{'[0-9a-f]' * 32}.map"


class Mark:
    """Of one stream: `cell[0]` is the bytes that have gone out."""

    __slots__ = ("cell", "slot")

    def __init__(self, slot: int, cell: "memoryview[int]") -> None:
        self.slot = slot
        self.cell = cell


class Left(msgspec.Struct, frozen=True):
    """A stream that was open when its process died."""

    request_id: str
    partition: int
    bytes_out: int


class Marks:
    """Of one process; the file is made when there is something to mark."""

    def __init__(self, directory: Path, *, slots_max: int = SLOTS_MAX) -> None:
        self._directory = directory
        self._slots_max = slots_max
        self._file: JournalFile | None = None
        self._map: mmap.mmap | None = None
        self._cells: memoryview[int] | None = None
        self._free: list[int] = []
        self._failed = False

    def take(self, request_id: str, partition: int, bytes_out: int) -> Mark | None:
        """A mark for a stream, until it is given back; None where there is none to be had."""
        if self._cells is None and not self._open():
            return None
        if not self._free:
            return None
        assert self._cells is not None
        slot = self._free.pop()
        at = slot * _CELLS
        number = int(request_id.replace("-", ""), 16)
        # The id comes last: a slot without one is nobody's.
        self._cells[at + 3] = bytes_out
        self._cells[at + 2] = partition
        self._cells[at + 1] = number % _HALF
        self._cells[at] = number // _HALF
        return Mark(slot, self._cells[at + 3 : at + 4])

    def give_back(self, mark: Mark) -> None:
        """The stream has ended in a way that is told elsewhere."""
        if self._cells is None:
            return
        self._cells[mark.slot * _CELLS] = 0
        self._cells[mark.slot * _CELLS + 1] = 0
        self._free.append(mark.slot)

    def close(self) -> None:
        """This process ends in good order: what is open now is told by other ways."""
        self._cells = None
        if self._file is not None:
            self._file.remove()
            self._file = None

    def _open(self) -> bool:
        if self._failed:
            return False
        size_bytes = len(_MAGIC) + self._slots_max * _SLOT.size
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._directory / f"marks-{secrets.token_hex(16)}.map"
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._file = take_file(path)
            if self._file is None:
                # Somebody took the empty file for one that was left behind; the next stream tries again.
                return False
            # Written, so that a full disk is found out here, and not by a signal where a page is touched.
            if os.write(self._file.descriptor, _MAGIC.ljust(size_bytes, b"\0")) < size_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._map = mmap.mmap(self._file.descriptor, size_bytes)
        except OSError as error:
            self._failed = True
            log.warning("streams can't be marked, they are charged by their last renewal: %s", error)
            return False
        self._cells = memoryview(self._map)[len(_MAGIC) :].cast("Q")
        self._free = list(range(self._slots_max - 1, -1, -1))
        return True


def find_marks(directory: Path) -> Iterator[tuple[JournalFile, list[Left]]]:
    """Files whose processes are gone, with what was open; whoever gets one removes or releases it.

    Raises:
        OSError
    """
    if not directory.is_dir():
        return
    for path in sorted(directory.glob(_GLOB)):
        if (file := take_file(path)) is not None:
            yield file, _read(file)


def _read(file: JournalFile) -> list[Left]:
    size_bytes = os.fstat(file.descriptor).st_size
    data = os.pread(file.descriptor, size_bytes, 0)
    if not data.startswith(_MAGIC):
        return []
    found = []
    whole = len(_MAGIC) + (len(data) - len(_MAGIC)) // _SLOT.size * _SLOT.size
    for high, low, partition, bytes_out in _SLOT.iter_unpack(data[len(_MAGIC) : whole]):
        if high and low:
            digits = f"{high:016x}{low:016x}"
            request_id = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
            found.append(Left(request_id, partition, bytes_out))
    return found
