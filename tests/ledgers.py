"""What the tests of the ledger share: a clock to turn, records, and the scripts run without a loop.

`run` drives a coroutine of the ledger to its end in one go: over `ImmediateHost` nothing in it ever waits. That lets
hypothesis' state machines, which know no loop, drive the same `Ledger` that serves requests.
"""

import asyncio
import struct
from collections.abc import Awaitable, Generator, Sequence
from typing import Any

import msgspec
import redis

from gateway.infra.redis import Redis
from gateway.kernel.ledger import Argument, Ledger, Script
from gateway.kernel.record import UsageRecord, encode_record
from gateway.kernel.twin import ScopeState
from gateway.kernel.verbs import Admitted

#: A Thursday.
START_US = 1_763_640_000_000_000


class TurnClock:
    """Microseconds, moved by hand."""

    def __init__(self, now_us: int = START_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us


class Immediate:
    """A reply that is there already."""

    def __init__(self, reply: object) -> None:
        self._reply = reply

    def __await__(self) -> Generator[Any, None, object]:
        yield from ()
        return self._reply


class ImmediateHost:
    """Scripts over a plain blocking client."""

    def __init__(self, client: "redis.Redis[bytes]") -> None:
        self._client = client

    def script(self, source: bytes, /) -> Script:
        digest = self._client.script_load(source)

        def call(keys: Sequence[bytes], args: Sequence[Argument], /) -> Awaitable[object]:
            return Immediate(self._client.evalsha(digest, len(keys), *keys, *args))

        return call


def run(work: Awaitable[Any]) -> Any:
    """The result of something that never waits."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


def make_record(request_id: str, account_id: int, key_id: str, cost_nanos: int) -> bytes:
    return encode_record(
        UsageRecord(request_id=request_id, account_id=account_id, key_id=key_id, cost_nanos=cost_nanos)
    )


def read_scope(stored: dict[bytes, bytes]) -> dict[str, object]:
    """A scope's hash, as `describe_scope` puts that of the twin."""
    fields = {name.decode(): value for name, value in stored.items()}
    used, empty_us = [0.0] * 8, [0] * 8
    if "br" in fields:
        used[:4] = struct.unpack("<5d", fields["br"])[1:]
    if "bt" in fields:
        numbers = struct.unpack("<8d", fields["bt"])
        used[4:], empty_us[4:] = numbers[:4], [int(number) for number in numbers[4:]]
    return {
        "balance": int(fields["bal"]) if "bal" in fields else None,
        "held": int(fields.get("held", 0)),
        "in_flight": int(fields.get("conc", 0)),
        "seq": int(fields.get("cseq", 0)),
        "spent": msgspec.msgpack.decode(fields["spent"]) if "spent" in fields else None,
        "used": used,
        "empty_us": [at if level > 0 else 0 for at, level in zip(empty_us, used, strict=True)],
    }


def describe_scope(state: ScopeState) -> dict[str, object]:
    token_empty_us = [0, 0, 0, 0, *state.empty_us[4:]]
    return {
        "balance": state.balance,
        "held": state.held,
        "in_flight": state.in_flight,
        "seq": state.seq,
        "spent": state.spent,
        "used": state.used,
        "empty_us": [at if level > 0 else 0 for at, level in zip(token_empty_us, state.used, strict=True)],
    }


def race(url: str, packed: bytes, *, hold_nanos: int, name: str, tries: int) -> int:
    """In a process of its own: try to get so many requests admitted, all at once; how many were."""

    async def try_all() -> int:
        client = Redis(url, timeout_s=30)
        ledger = Ledger(client)
        await client.connect()
        scopes = ledger.scopes(account_id=1, key_id="k", limits=packed)
        answers = await asyncio.gather(
            *(ledger.admit(f"{name}-{n}", scopes, hold_nanos=hold_nanos, tokens=1) for n in range(tries))
        )
        await client.close()
        return sum(isinstance(answer, Admitted) for answer in answers)

    return asyncio.run(try_all())
