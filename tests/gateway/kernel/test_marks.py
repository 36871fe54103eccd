import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gateway.infra.clock import SystemClock
from gateway.kernel.marks import Left, Marks, find_marks
from gateway.kernel.orphans import DELIVERED, Orphans, continue_to
from gateway.kernel.record import UsageRecord, decode_record, encode_record
from gateway.kernel.request_id import RequestIds
from gateway.kernel.verbs import Admitted, Renewal
from tests.books import CREDIT, PARTITIONS

new_id = RequestIds(SystemClock()).make
DIE = """
import os, signal, sys
from pathlib import Path
from gateway.kernel.marks import Marks

marks = Marks(Path(sys.argv[1]))
done, *open_ = [marks.take(each, int(sys.argv[2]), 100) for each in sys.argv[3:]]
for number, mark in enumerate(open_):
    mark.cell[0] = 1000 + number
marks.give_back(done)
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_one_that_marks(directory: Path, partition: int, *request_ids: str) -> None:
    """A process that is killed when all these streams but the first were open, 1000 bytes on and more."""
    killed = subprocess.run(
        [sys.executable, "-c", DIE, str(directory), str(partition), *request_ids], timeout=60, check=False
    )
    assert killed.returncode < 0


def left_in(directory: Path) -> list[Left]:
    found = []
    for file, left in find_marks(directory):
        found += left
        file.release()
    return found


def test_what_was_open_is_found_when_its_process_was_killed(tmp_path):
    ids = [new_id() for _ in range(3)]

    kill_one_that_marks(tmp_path, 5, *ids)

    assert sorted(left_in(tmp_path), key=lambda left: left.bytes_out) == [
        Left(ids[1], 5, 1000),
        Left(ids[2], 5, 1001),
    ]


def test_marks_of_the_living_are_nobodys_business_and_go_with_them(tmp_path):
    marks = Marks(tmp_path)
    mark = marks.take(new_id(), 1, 7)
    assert mark is not None

    assert list(find_marks(tmp_path)) == []
    marks.close()
    # A stream that is not closed yet may go on writing.
    mark.cell[0] = 8
    marks.give_back(mark)

    assert list(tmp_path.iterdir()) == []


def test_what_there_is_no_room_for_goes_on_without_a_mark(tmp_path):
    marks = Marks(tmp_path, slots_max=2)
    first, second = marks.take(new_id(), 1, 0), marks.take(new_id(), 1, 0)
    full = marks.take(new_id(), 1, 0)
    assert first is not None
    assert second is not None
    marks.give_back(first)

    assert full is None
    assert marks.take(new_id(), 1, 0) is not None
    marks.close()


def test_no_file_is_no_mark(tmp_path, caplog):
    taken = tmp_path / "file"
    taken.write_bytes(b"")
    marks = Marks(taken)

    assert [marks.take(new_id(), 1, 0) for _ in range(2)] == [None, None]
    assert caplog.text.count("last renewal") == 1


@pytest.mark.parametrize(
    "content", [b"", b"gateway", b"something else altogether", b"gateway marks 1\n" + b"\x01" * 40]
)
def test_any_file_can_be_read(tmp_path, content):
    (tmp_path / f"marks-{'a' * 32}.map").write_bytes(content)

    assert len(left_in(tmp_path)) == (1 if len(content) > 50 else 0)


def renewal(*, cost: int, output_tokens: int, delivered: str | None) -> Renewal:
    record = UsageRecord(
        request_id=new_id(),
        account_id=1,
        key_id="k",
        cost_nanos=cost,
        input_tokens=10,
        output_tokens=output_tokens,
        usage_source="partial",
        output_mtok_nanos=2_000_000_000,
        markup_permille=1500,
        tags={} if delivered is None else {DELIVERED: delivered},
    )
    return Renewal(record.request_id, cost, 10 + output_tokens, encode_record(record))


@pytest.mark.parametrize(
    ("cost", "delivered", "bytes_out", "cost_after", "output_after"),
    [
        (50_000, "1000", 1500, 50_000 + 10 * 3000, 30),
        # 20 x 49 / 1000, of which no whole token is one.
        (50_000, "1000", 1049, 50_000, 20),
        (0, "1000", 1500, 0, 30),
        (50_000, "1000", 900, 50_000, 20),
        (50_000, "0", 900, 50_000, 20),
        (50_000, None, 900, 50_000, 20),
        (50_000, "many", 900, 50_000, 20),
    ],
)
def test_what_went_out_later_is_more_of_the_same(cost, delivered, bytes_out, cost_after, output_after):
    known = renewal(cost=cost, output_tokens=20, delivered=delivered)

    told = continue_to(known, bytes_out)

    record = decode_record(told.record)
    assert (told.cost_nanos, told.tokens) == (cost_after, 10 + output_after)
    assert (record.cost_nanos, record.input_tokens, record.output_tokens) == (cost_after, 10, output_after)


def test_with_an_accounts_own_key_only_the_fee_is_asked():
    known = renewal(cost=50_000, output_tokens=20, delivered="1000")
    record = msgspec.structs.replace(decode_record(known.record), fee_permille=50)
    known = msgspec.structs.replace(known, record=encode_record(record))

    assert continue_to(known, 1500).cost_nanos == 50_000 + 10 * 3000 * 50 // 1000


def test_a_report_is_of_the_whole_answer():
    known = renewal(cost=50_000, output_tokens=20, delivered="1000")
    record = msgspec.structs.replace(decode_record(known.record), usage_source="reported")
    known = msgspec.structs.replace(known, record=encode_record(record))

    assert continue_to(known, 1500) is known


async def test_a_killed_workers_streams_are_charged_to_where_they_had_come(books, tmp_path):
    account = await books.open_account()
    partition = account % PARTITIONS
    await books.loader.ensure_loaded(account)
    ended, renewed, silent, swept = [books.new_id() for _ in range(4)]
    for each in (ended, renewed, silent):
        admission = await books.ledger.admit(each, books.scopes(account), hold_nanos=100_000, tokens=1)
        assert isinstance(admission, Admitted)
    record = books.record(
        account,
        20_000,
        request_id=renewed,
        output_tokens=10,
        output_mtok_nanos=2_000_000_000,
        outcome="orphaned",
        usage_source="partial",
        tags={DELIVERED: "500"},
    )
    await books.ledger.renew(partition, [Renewal(renewed, 20_000, 13, encode_record(record))])
    await books.settle(books.record(account, 7, request_id=ended))
    kill_one_that_marks(tmp_path, partition, new_id(), ended, renewed, silent, swept)

    orphans = Orphans(tmp_path, books.ledger, reachable=lambda: True)
    told = await orphans.tell_once()
    again = await orphans.tell_once()
    expired = []
    while len(expired) < 2:
        expired += await books.ledger.sweep(partition)
    await books.drain()

    assert (told, again) == (2, 0)
    assert list(tmp_path.iterdir()) == []
    # 1001 bytes: ten tokens more, for 2 000 nanos each.
    assert {each.request_id: (each.outcome, each.cost_nanos) for each in expired} == {
        renewed: ("charged", 40_000),
        silent: ("voided", 0),
    }
    assert await books.book_nanos(account) == CREDIT - 40_000 - 7
    row = await books.database.fetch_row("select * from usage_records where outcome = 'orphaned'")
    assert (row["output_tokens"], row["usage_source"]) == (20, "partial")
    await books.assert_balanced()


async def test_marks_wait_for_redis(tmp_path):
    kill_one_that_marks(tmp_path, 1, new_id(), new_id())
    orphans = Orphans(tmp_path, ledger=None, reachable=lambda: False)

    assert await orphans.tell_once() == 0
    assert len(left_in(tmp_path)) == 1
