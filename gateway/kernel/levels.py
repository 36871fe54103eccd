"""How full the buckets of an account or a key are, read from where the limiter keeps them, to be shown.

The layout is that of `lua/buckets.lua`: levels stand as they were at the last write, and have drained since.
"""

import struct
from collections.abc import Awaitable
from typing import Final, Protocol

import msgspec

from gateway.kernel.limits import BUCKET_WINDOWS_US, BUCKETS, Limits
from gateway.kernel.verbs import PARTITIONS, name_account

_REQUESTS: Final = struct.Struct("<5d")
_TOKENS: Final = struct.Struct("<8d")
_WINDOWS: Final = ("minute", "hour", "day", "month")
#: Which limit each bucket is of, in the order of `BUCKETS`.
FIELDS: Final = tuple(f"{unit}_per_{window}" for unit in ("requests", "tokens") for window in _WINDOWS)


class Commands(Protocol):
    """The part of the Redis client that is needed here."""

    def execute(self, *command: bytes | str | int) -> Awaitable[object]: ...


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One bucket."""

    limit: int
    #: What of it is taken now.
    used: float
    #: Until it is empty if nothing more comes.
    reset_s: float

    @property
    def remaining(self) -> int:
        return max(0, int(self.limit - self.used))


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """One scope; only what is limited is counted, by the names of `Limits`."""

    buckets: dict[str, Level]
    #: Requests in flight.
    concurrency: int = 0


async def read_account_levels(
    redis: Commands, account_id: int, limits: Limits, *, now_s: float, partitions: int = PARTITIONS
) -> Levels:
    """Of an account.

    Raises:
        StoreUnavailable
    """
    return await _read(redis, name_account(account_id % partitions, account_id), limits, now_s)


async def read_key_levels(
    redis: Commands, account_id: int, key_id: str, limits: Limits, *, now_s: float, partitions: int = PARTITIONS
) -> Levels:
    """Of a key.

    Raises:
        StoreUnavailable
    """
    return await _read(redis, f"{{p{account_id % partitions}}}:k:{key_id}".encode(), limits, now_s)


def unpack_levels(requests: bytes | None, tokens: bytes | None, limits: Limits, *, now_us: float) -> dict[str, Level]:
    """The buckets of one scope, drained to now."""
    at_us, levels = now_us, [0.0] * len(BUCKETS)
    if requests is not None and len(requests) == _REQUESTS.size:
        at_us, *levels[:4] = _REQUESTS.unpack(requests)
        if tokens is not None and len(tokens) == _TOKENS.size:
            levels[4:] = _TOKENS.unpack(tokens)[:4]
    elapsed_us = max(0.0, now_us - at_us)
    found = {}
    for name, level, window_us in zip(FIELDS, levels, BUCKET_WINDOWS_US, strict=True):
        limit = getattr(limits, name)
        if limit is None and name == "requests_per_minute":
            limit = limits.burst
        if limit is None:
            continue
        used = max(0.0, level - elapsed_us * limit / window_us)
        reset_s = used * window_us / limit / 1e6 if limit else 0.0
        found[name] = Level(limit=limit, used=used, reset_s=reset_s)
    return found


async def _read(redis: Commands, name: bytes, limits: Limits, now_s: float) -> Levels:
    reply = await redis.execute("HMGET", name, "conc", "br", "bt")
    assert isinstance(reply, list)
    concurrency, requests, tokens = reply
    return Levels(
        buckets=unpack_levels(requests, tokens, limits, now_us=now_s * 1e6),
        concurrency=int(concurrency or 0),
    )
