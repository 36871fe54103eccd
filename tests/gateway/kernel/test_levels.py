"""What is shown of the limiter is what it counts."""

import struct

import pytest

from gateway.infra.redis import Redis
from gateway.kernel.ledger import Ledger
from gateway.kernel.levels import read_account_levels, read_key_levels, unpack_levels
from gateway.kernel.limits import MINUTE_US, Limits, combine_limits
from gateway.kernel.verbs import Snapshot, Spent

NOW_US = 1_800_000_000_000_000.0


def test_a_bucket_drains_as_time_goes_on():
    packed = struct.pack("<5d", NOW_US - MINUTE_US / 2, 40.0, 0, 0, 0)

    found = unpack_levels(packed, None, Limits(requests_per_minute=60), now_us=NOW_US)

    assert found["requests_per_minute"].used == pytest.approx(10)
    assert found["requests_per_minute"].remaining == 50
    assert found["requests_per_minute"].reset_s == pytest.approx(10)


def test_what_was_never_used_is_empty_and_what_is_not_limited_is_not_there():
    found = unpack_levels(None, None, Limits(tokens_per_day=5, requests_per_hour=0), now_us=NOW_US)

    assert found.keys() == {"tokens_per_day", "requests_per_hour"}
    assert found["tokens_per_day"].used == 0
    assert found["requests_per_hour"].reset_s == 0


async def test_it_reads_what_the_script_wrote(redis_url):
    redis = Redis(redis_url, timeout_s=5)
    await redis.connect()
    try:
        now_us = int(NOW_US)
        ledger = Ledger(redis, now_us=lambda: now_us)
        nothing = Spent(as_of_us=now_us, day_nanos=0, week_nanos=0, month_nanos=0, total_nanos=0)
        await ledger.load(
            7, Snapshot(balance_nanos=10**9, seq=0, cursor="0-0", account_spent=nothing, key_spent=nothing)
        )
        plan, own = Limits(requests_per_day=100, tokens_per_hour=1000, concurrency=5), Limits(requests_per_minute=9)
        scopes = ledger.scopes(account_id=7, key_id="key", limits=combine_limits(plan=plan, key=own))
        await ledger.admit("01a20590-452f-7116-a62d-45c99c5dc4c5", scopes, hold_nanos=0, tokens=250, lease_ms=60_000)

        account = await read_account_levels(redis, 7, plan, now_s=NOW_US / 1e6)
        key = await read_key_levels(redis, 7, "key", own, now_s=NOW_US / 1e6)
    finally:
        await redis.close()

    assert account.buckets["requests_per_day"].used == 1
    assert account.buckets["tokens_per_hour"].used == 250
    assert account.concurrency == 1
    assert key.buckets["requests_per_minute"].used == 1
