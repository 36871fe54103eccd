"""The journal's files: who may read which, what survives, and what happens when there is no room."""

import contextlib
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import StoreUnavailable
from gateway.kernel.local_journal import Entry, Gap, JournalFile, LocalJournal, find_left

SIZE = 1024 * 1024


def entry(number: int, verb="settle", **fields) -> Entry:
    known = {"partition": 3, "account_key": b"{p3}:a:3", "key_key": b"{p3}:k:key", "cost_nanos": number, "tokens": 7}
    return Entry(verb=verb, request_id=f"request {number}", **(known | {"record": b"record"} | fields))


def read(file: JournalFile) -> list[Entry | Gap]:
    return list(file.read())


def fill(journal: LocalJournal, with_entry: Entry) -> None:
    """Until it is refused."""
    while True:
        try:
            journal.append(with_entry)
        except StoreUnavailable:
            return


@pytest.fixture
def journal(tmp_path: Path) -> LocalJournal:
    return LocalJournal(tmp_path / "journal", bytes_max=SIZE)


def test_nothing_is_made_before_there_is_something_to_write(journal, tmp_path):
    journal.close()

    assert find_left(journal.directory) == []
    assert list(tmp_path.iterdir()) == []


def test_what_was_appended_is_read_in_order(journal):
    written = [entry(1), entry(2, "void"), entry(3, "progress"), entry(3, "told", record=b"")]
    for each in written:
        journal.append(each)

    file = journal.seal()

    assert file is not None
    assert read(file) == written
    assert (journal.untold, journal.ends) == (2, 0)
    file.remove()


def test_a_file_belongs_to_its_writer_for_as_long_as_it_lives(journal):
    journal.append(entry(1))

    assert find_left(journal.directory) == []
    journal.close()
    (left,) = find_left(journal.directory)
    assert read(left) == [entry(1)]
    assert find_left(journal.directory) == []
    left.remove()
    assert list(journal.directory.iterdir()) == []


def test_files_are_for_their_owner_alone(journal):
    journal.append(entry(1))

    (path,) = journal.directory.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert journal.directory.stat().st_mode & 0o777 == 0o700
    journal.close()


def test_scopes_come_back_from_an_entry():
    scopes = entry(1, model_key=b"{p3}:m:3:model").scopes

    assert scopes.partition == 3
    assert scopes.hold_prefix == b"{p3}:h:"
    assert scopes.usage_key == b"{p3}:usage"
    assert scopes.model_key == b"{p3}:m:3:model"


def test_progress_leaves_half_of_the_room_and_admission_a_quarter(journal):
    large = b"x" * 1000
    fill(journal, entry(1, "progress", record=large))
    assert SIZE * 0.49 < journal.size_bytes <= SIZE // 2
    assert journal.has_room

    while journal.has_room:
        journal.append(entry(1, record=large))
    for number in range(SIZE // 4 // 1200):
        journal.append(entry(number, record=large))

    fill(journal, entry(1, record=large))
    file = journal.seal()
    assert file is not None
    assert not any(isinstance(found, Gap) for found in file.read())
    assert file.path.stat().st_size <= SIZE
    file.remove()


def test_an_entry_too_large_is_refused_and_leaves_nothing(journal):
    journal.append(entry(1))

    with pytest.raises(StoreUnavailable):
        journal.append(entry(2, record=bytes(2 * SIZE)))

    journal.append(entry(3))
    file = journal.seal()
    assert file is not None
    assert read(file) == [entry(1), entry(3)]
    file.remove()


def test_a_disk_that_is_full_costs_only_what_it_refused(journal):
    journal.append(entry(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # Room for half an entry.
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.size_bytes + 40, limits[1]))
    try:
        with pytest.raises(StoreUnavailable):
            journal.append(entry(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)

    journal.append(entry(3))
    file = journal.seal()
    assert file is not None
    assert read(file) == [entry(1), entry(3)]
    file.remove()


def test_a_directory_that_can_not_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(StoreUnavailable):
        LocalJournal(tmp_path / "file" / "journal", bytes_max=SIZE).append(entry(1))


def test_a_file_in_which_something_is_damaged_is_kept_aside(journal):
    journal.append(entry(1))
    (path,) = journal.directory.iterdir()
    journal.close()
    (left,) = find_left(journal.directory)

    aside = left.set_aside()

    assert aside.exists()
    assert not path.exists()
    assert find_left(journal.directory) == []


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing can be opened: who brings a file to the disk, through a descriptor of its own, fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_what_is_new_in_it_is_brought_to_the_disk_and_only_that(journal):
    for number in range(2):
        journal.append(entry(number))
        with no_descriptors(), pytest.raises(OSError, match="files"):
            await journal.sync()
        await journal.sync()
        with no_descriptors():
            await journal.sync()

    journal.close()


WRITER = """
import sys
from pathlib import Path
from tests.gateway.kernel.test_local_journal import SIZE, entry
from gateway.kernel.local_journal import LocalJournal
journal = LocalJournal(Path(sys.argv[1]), bytes_max=64 * SIZE)
number = 0
while True:
    number += 1
    journal.append(entry(number, record=b"x" * (number % 700)))
    sys.stdout.buffer.write(b"%d\\n" % number)
    sys.stdout.buffer.flush()
"""


@pytest.mark.parametrize("heard", [1, 7, 400, 3000])
def test_a_killed_writer_loses_nothing_that_it_said_it_had(tmp_path, heard):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path.cwd())
    assert writer.stdout is not None
    for _ in range(heard):
        writer.stdout.readline()
    writer.kill()
    said = heard + len(writer.stdout.read().splitlines())
    writer.wait()
    writer.stdout.close()

    (left,) = find_left(tmp_path)
    found = read(left)

    # At most one more than it could say.
    entries = [each for each in found if isinstance(each, Entry)]
    assert [each.cost_nanos for each in entries] == list(range(1, len(entries) + 1))
    assert said <= len(entries) <= said + 1
    assert all(each.torn for each in found if isinstance(each, Gap))
    left.remove()
