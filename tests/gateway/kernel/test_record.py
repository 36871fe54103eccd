"""Usage records travel between versions of the gateway."""

import msgspec
import pytest

from gateway.kernel.money import Price
from gateway.kernel.record import Attempt, UsageRecord, decode_record, encode_record
from gateway.wire.usage import Usage

RECORD = UsageRecord(
    request_id="r",
    account_id=7,
    key_id="k",
    cost_nanos=5,
    attempts=(Attempt("a", "provider_timeout"), Attempt("b", "ok")),
    tags={"team": "x"},
)


def test_a_record_reads_back_as_it_was_written() -> None:
    assert decode_record(encode_record(RECORD)) == RECORD


def test_the_positions_that_scripts_read_are_fixed() -> None:
    assert msgspec.msgpack.decode(encode_record(RECORD))[:5] == [1, "r", 7, "k", 5]


def test_an_older_writer_is_understood() -> None:
    fields = msgspec.msgpack.decode(encode_record(RECORD))

    older = decode_record(msgspec.msgpack.encode(fields[:12]))

    assert (older.request_id, older.cost_nanos, older.attempts) == ("r", 5, ())


def test_a_newer_writer_is_understood() -> None:
    fields = msgspec.msgpack.decode(encode_record(RECORD))

    assert decode_record(msgspec.msgpack.encode([*fields, "something new", {"more": 1}])) == RECORD


def test_an_outcome_that_is_not_known_yet_is_kept() -> None:
    newer = msgspec.structs.replace(RECORD, outcome="invented_later")

    assert decode_record(encode_record(newer)).outcome == "invented_later"


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode({"a": 1}), msgspec.msgpack.encode([1, "r"])])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a usage record"):
        decode_record(data)


def test_the_counts_go_in_and_come_out() -> None:
    usage = Usage(
        input_tokens=10,
        output_tokens=9,
        input_cached_tokens=8,
        input_cache_write_tokens=7,
        input_cache_write_1h_tokens=6,
        input_audio_tokens=5,
        input_image_tokens=4,
        output_reasoning_tokens=3,
        output_audio_tokens=2,
        output_image_tokens=1,
        images=11,
        seconds=1.25,
        characters=12,
        searches=13,
        provider_cost_nanos=14,
        service_tier="flex",
        source="partial",
    )
    price = Price(input_mtok_nanos=100, output_mtok_nanos=200, markup_permille=1100)

    record = RECORD.with_usage(usage, price, cost_nanos=99)

    assert record.usage() == usage
    assert (record.cost_nanos, record.input_mtok_nanos, record.output_mtok_nanos) == (99, 100, 200)
