"""A ledger that goes away and comes back, without any server: the twin behind a switch."""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

from gateway.errors import StoreUnavailable
from gateway.kernel.record import decode_record
from gateway.kernel.twin import Done, Twin
from gateway.kernel.verbs import LEASE_MS, PARTITIONS, Renewal, Scopes, Snapshot, Verbs
from tests.ledgers import START_US


class TestClock:
    """Both clocks, moved by hand."""

    __test__ = False

    def __init__(self) -> None:
        self.at_s = START_US / 1_000_000

    def now(self) -> float:
        return self.at_s

    def monotonic(self) -> float:
        return self.at_s


class Lost:
    """An answer that never comes: the verb took effect, or not, and nobody knows."""

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        raise StoreUnavailable(detail="no reply in time")

    def when_done(self, hear: Callable[[Any, BaseException | None], None]) -> None:
        asyncio.get_running_loop().call_soon(hear, None, StoreUnavailable(detail="no reply in time"))


class Switched:
    """`Verbs` of a store that can be `away`: commands are refused; or `silent`: taken, and never answered."""

    def __init__(self, clock: TestClock, *, partitions: int = PARTITIONS) -> None:
        self.away = False
        self.silent = False
        #: What was kept, in order.
        self.records: list[Any] = []
        self.store = Twin(
            now_us=lambda: int(clock.now() * 1_000_000),
            keep=self._keep,
            partitions=partitions,
        )

    def _keep(self, partition: int, record: bytes, at_us: int) -> None:
        self.records.append(decode_record(record))

    def scopes(self, *, account_id: int, key_id: str, limits: bytes, model: str | None = None) -> Scopes:
        return self.store.scopes(account_id=account_id, key_id=key_id, limits=limits, model=model)

    def admit(
        self, request_id: str, scopes: Scopes, *, hold_nanos: int, tokens: int, lease_ms: int = LEASE_MS
    ) -> Any:
        return self._answer(self.store.admit, request_id, scopes, hold_nanos=hold_nanos, tokens=tokens)

    def settle(self, request_id: str, scopes: Scopes, *, cost_nanos: int, tokens: int, record: bytes) -> Any:
        return self._answer(
            self.store.settle, request_id, scopes, cost_nanos=cost_nanos, tokens=tokens, record=record
        )

    def void(self, request_id: str, scopes: Scopes, *, record: bytes = b"") -> Any:
        return self._answer(self.store.void, request_id, scopes, record=record)

    def renew(self, partition: int, renewals: Sequence[Renewal], *, lease_ms: int = LEASE_MS) -> Any:
        return self._answer(self.store.renew, partition, renewals)

    def sweep(self, partition: int, *, at_most: int) -> Any:
        return self._answer(self.store.sweep, partition, at_most=at_most)

    def credit(self, account_id: int, *, seq: int, previous_seq: int, amount_nanos: int) -> Any:
        return self._answer(
            self.store.credit, account_id, seq=seq, previous_seq=previous_seq, amount_nanos=amount_nanos
        )

    async def load(self, account_id: int, snapshot: Snapshot, *, key_id: str = "", force: bool = False) -> Any:
        return await self._answer(self.store.load, account_id, snapshot, key_id=key_id, force=force)

    def forget_spent(self, account_id: int, key_ids: Sequence[str]) -> Any:
        return self._answer(self.store.forget_spent, account_id, key_ids)

    def peek_balance(self, account_id: int) -> Any:
        return self._answer(self.store.peek_balance, account_id)

    def _answer(self, verb: Callable[..., Done[Any]], *args: Any, **named: Any) -> Awaitable[Any]:
        if self.away:
            raise StoreUnavailable(detail="not connected")
        answer = verb(*args, **named)
        return Lost() if self.silent else answer


_: type[Verbs] = Switched
