"""Redis, as far as money needs it: the twin as its scripts, streams, a lease, and channels; and the way there.

What the real one does to its clients is done here too: commands of one turn leave together; they arrive in order; a
connection that breaks fails whoever waits, and whether their commands took effect nobody knows; a server that hangs
may run much later what had reached its socket; a restart loses the last moments, or everything.
"""

import asyncio
import copy
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from gateway.errors import StoreUnavailable
from gateway.infra.redis import lease
from gateway.infra.redis.subscription import Message
from gateway.kernel.ledger import Answer, source
from gateway.kernel.limits import BUCKET_WINDOWS_US
from gateway.kernel.record import UsageRecord, decode_record
from gateway.kernel.twin import Twin
from gateway.kernel.verbs import LEASE_MS, Admitted, Renewal, Scopes, Snapshot, Stale, Verbs
from tests.simulation.clockwork import Process, SimClock

PARTITIONS = 2
LATENCY_S = (0.0002, 0.004)
#: As `redis.timeout_s`.
TIMEOUT_S = 0.5

Entry = tuple[str, bytes]
Batch = list[tuple["asyncio.Future[object]", Callable[[], object]]]


class HotStore:
    """The server."""

    def __init__(self, clock: SimClock, draw: random.Random) -> None:
        self.clock = clock
        self.up = True
        self.hung = False
        self.wires: set[Wire] = set()
        self.streams: dict[int, list[Entry]] = {number: [] for number in range(PARTITIONS)}
        self.records: dict[str, UsageRecord] = {}
        self._draw = draw
        self._added = 0
        self._trimmed: dict[int, bool] = dict.fromkeys(range(PARTITIONS), False)
        self._lease: tuple[str, float] | None = None
        #: What has reached a server that hangs.
        self._unheard: list[tuple[Wire, Batch, int]] = []
        self.twin = self._new_twin()

    def _new_twin(self) -> Twin:
        return Twin(now_us=self.clock.now_us, keep=self._keep, backlog=self.backlog, partitions=PARTITIONS)

    # -- what it does --------------------------------------------------------------------------------------------

    def admit(self, request_id: str, scopes: Scopes, hold_nanos: int, tokens: int, lease_ms: int) -> object:
        admission = self.twin.admit(
            request_id, scopes, hold_nanos=hold_nanos, tokens=tokens, lease_ms=lease_ms
        )._answer
        if isinstance(admission, Admitted) and hold_nanos:
            account = self.twin.states[scopes.account_key]
            assert account.balance is not None
            assert account.held <= account.balance, f"{request_id}: admitted beyond the balance"
        return admission

    def load(self, account_id: int, snapshot: Snapshot, key_id: str, *, force: bool) -> object:
        partition = account_id % PARTITIONS
        if snapshot.cursor == "0-0":
            stale = self._trimmed[partition]
        else:
            stale = all(entry_id != snapshot.cursor for entry_id, _ in self.streams[partition])
        if stale:
            return Stale(snapshot.seq)
        return self.twin.load(account_id, snapshot, key_id=key_id, force=force)._answer

    def count_due(self, partition: int) -> int:
        now_ms = self.clock.now_us() // 1000
        return sum(
            hold.scopes.partition == partition and hold.ends_ms <= now_ms for hold in self.twin._holds.values()
        )

    def backlog(self, partition: int, cursor: str) -> list[tuple[int, bytes]]:
        after = _number(cursor)
        return [(_number(name)[0], packed) for name, packed in self.streams[partition] if _number(name) > after]

    def execute(self, *command: Any) -> object:
        """The commands that the settler uses."""
        name, key, *rest = command
        if name == "PUBLISH":
            for wire in self.wires:
                wire.publish(key, rest[0])
            return 0
        partition = int(key[2 : key.index(b"}")])
        stream = self.streams[partition]
        if name == "XTRIM":
            assert rest[:2] == ["MINID", "="]
            kept = [entry for entry in stream if _number(entry[0]) >= _number(rest[2])]
            self._trimmed[partition] |= len(kept) < len(stream)
            self.streams[partition] = kept
            return len(stream) - len(kept)
        assert name == "XRANGE"
        start, end, *bound = rest
        found = stream
        if start.startswith("("):
            found = [entry for entry in stream if _number(entry[0]) > _number(start[1:])]
        elif start != "-":
            found = [entry for entry in stream if entry[0] == start == end]
        most = bound[1] if bound else len(found)
        return [[entry_id.encode(), [b"r", packed]] for entry_id, packed in found[:most]]

    def run_script(self, text: bytes, keys: Sequence[bytes], args: Sequence[Any]) -> object:
        """The scripts that are no verbs."""
        if text == lease._HOLD:
            token, ttl_ms = args
            now_s = self.clock.monotonic()
            if self._lease is not None and self._lease[0] != token and self._lease[1] > now_s:
                return 0
            self._lease = (token, now_s + ttl_ms / 1000)
            return 1
        if text == lease._DROP:
            self._lease = None
            return 1
        assert text == source("audit")
        return self._audit(keys, *args)

    def _audit(self, keys: Sequence[bytes], cursor: str, most: int, *ids: int) -> object:
        partition = int(keys[0][2 : keys[0].index(b"}")])
        if cursor != "0-0" and all(entry_id != cursor for entry_id, _ in self.streams[partition]):
            return [4]
        sums = dict.fromkeys(ids, 0)
        for _, packed in self.backlog(partition, cursor):
            record = decode_record(packed)
            if record.account_id in sums:
                sums[record.account_id] += record.cost_nanos
        answer: list[int] = [1]
        for account_id in ids:
            state = self.twin.states.get(f"{{p{partition}}}:a:{account_id}".encode())
            balance = None if state is None else state.balance
            answer += [balance is not None, balance or 0, 0 if state is None else state.seq, sums[account_id]]
        return answer

    def _keep(self, partition: int, record: bytes, at_us: int) -> None:
        self._added += 1
        stream = self.streams[partition]
        ms = at_us // 1000
        seq = 0
        if stream and _number(stream[-1][0])[0] >= ms:
            ms, seq = _number(stream[-1][0])
            seq += 1
        stream.append((f"{ms}-{seq}", record))

    def check(self) -> None:
        """What holds at any moment."""
        for key, state in self.twin.states.items():
            assert all(used >= 0 for used in state.used), f"{key!r}: {state.used}"
            assert len(state.used) == len(BUCKET_WINDOWS_US)
            assert state.held >= 0
            assert state.in_flight >= 0

    # -- what is done to it --------------------------------------------------------------------------------------

    def save(self) -> object:
        """What is on its disk at this moment."""
        twin = self.twin
        return copy.deepcopy((twin.states, twin._holds, twin._tombstones, self.streams, self._trimmed))

    def fall(self) -> None:
        """Crash."""
        self.up = False
        self._unheard.clear()
        for wire in self.wires:
            wire.disconnect()

    def rise(self, saved: object | None) -> None:
        """Come back, with what was on the disk, or with nothing."""
        self.twin = self._new_twin()
        self._lease = None
        if saved is None:
            self.streams = {number: [] for number in range(PARTITIONS)}
            self._trimmed = dict.fromkeys(range(PARTITIONS), False)
        else:
            states, holds, tombstones, self.streams, self._trimmed = saved  # type: ignore[misc]
            self.twin.states, self.twin._holds, self.twin._tombstones = states, holds, tombstones
        self.up = True
        for wire in self.wires:
            wire.reconnect_soon()

    def hang(self) -> None:
        """Take in commands, and do nothing."""
        self.hung = True
        for wire in self.wires:
            asyncio.get_running_loop().call_later(
                self._draw.uniform(TIMEOUT_S, 1.25 * TIMEOUT_S), self._give_up, wire
            )

    def _give_up(self, wire: "Wire") -> None:
        if self.hung:
            wire.disconnect()

    def recover(self) -> None:
        """Go on, with what had come in, of those too who have left."""
        self.hung = False
        unheard, self._unheard = self._unheard, []
        for wire, batch, generation in unheard:
            if wire.generation == generation or self._draw.random() < 0.5:
                self.receive(wire, batch, generation)
        for wire in self.wires:
            if not wire.connected:
                wire.reconnect_soon()

    def receive(self, wire: "Wire", batch: Batch, generation: int) -> None:
        """Commands arrive."""
        if not self.up:
            return
        if self.hung:
            self._unheard.append((wire, batch, generation))
            return
        replies: list[tuple[asyncio.Future[object], object]] = []
        for future, work in batch:
            try:
                replies.append((future, work()))
            except StoreUnavailable as error:
                replies.append((future, error))
        wire.reply_soon(replies, generation)


class Wire:
    """One process' connection: `Verbs`, and the parts of the client that the books use."""

    def __init__(self, process: Process, store: HotStore, draw: random.Random) -> None:
        self.connected = store.up and not store.hung
        self.generation = 0
        #: What this process itself admitted, and the cost at which it ended that.
        self.admitted: dict[str, int | None] = {}
        self._process = process
        self._store = store
        self._draw = draw
        self._out: Batch = []
        self._ends: list[tuple[str, int]] = []
        self._waiting: dict[asyncio.Future[object], None] = {}
        self._arrives_s = 0.0
        self._replies_s = 0.0
        self._notices: list[Notices] = []
        store.wires.add(self)
        process.on_death.append(self._die)
        if not self.connected:
            self.reconnect_soon()

    # -- verbs ---------------------------------------------------------------------------------------------------

    def scopes(self, *, account_id: int, key_id: str, limits: bytes, model: str | None = None) -> Scopes:
        return self._store.twin.scopes(account_id=account_id, key_id=key_id, limits=limits, model=model)

    def admit(
        self, request_id: str, scopes: Scopes, *, hold_nanos: int, tokens: int, lease_ms: int = LEASE_MS
    ) -> Any:
        self.admitted[request_id] = None
        return self._say(lambda: self._store.admit(request_id, scopes, hold_nanos, tokens, lease_ms))

    def settle(self, request_id: str, scopes: Scopes, *, cost_nanos: int, tokens: int, record: bytes) -> Any:
        def work() -> object:
            twin = self._store.twin
            return twin.settle(request_id, scopes, cost_nanos=cost_nanos, tokens=tokens, record=record)._answer

        return self._say(work, end=(request_id, cost_nanos))

    def void(self, request_id: str, scopes: Scopes, *, record: bytes = b"") -> Any:
        return self._say(
            lambda: self._store.twin.void(request_id, scopes, record=record)._answer,
            end=(request_id, 0) if record else None,
        )

    def renew(self, partition: int, renewals: Sequence[Renewal], *, lease_ms: int = LEASE_MS) -> Any:
        return self._say(lambda: self._store.twin.renew(partition, renewals, lease_ms=lease_ms)._answer)

    async def sweep(self, partition: int, *, at_most: int, permitted: Callable[[], bool] | None = None) -> Any:
        due = await self._ask(lambda: self._store.count_due(partition))
        if not due or (permitted is not None and not permitted()):
            return []
        return await self._ask(lambda: self._store.twin.sweep(partition, at_most=at_most)._answer)

    def credit(self, account_id: int, *, seq: int, previous_seq: int, amount_nanos: int) -> Any:
        return self._say(
            lambda: (
                self._store.twin.credit(
                    account_id, seq=seq, previous_seq=previous_seq, amount_nanos=amount_nanos
                )._answer
            )
        )

    async def load(self, account_id: int, snapshot: Snapshot, *, key_id: str = "", force: bool = False) -> Any:
        return await self._ask(lambda: self._store.load(account_id, snapshot, key_id, force=force))

    def forget_spent(self, account_id: int, key_ids: Sequence[str]) -> Any:
        return self._say(lambda: len(key_ids))

    def peek_balance(self, account_id: int) -> Any:
        return self._say(lambda: self._store.twin.peek_balance(account_id)._answer)

    def note(self, request_id: str, cost_nanos: int) -> None:
        """The process has told somebody that a request has ended."""
        if self.admitted.get(request_id, 0) is None:
            self.admitted[request_id] = cost_nanos

    # -- the rest of the client ----------------------------------------------------------------------------------

    def execute(self, *command: Any) -> "asyncio.Future[object]":
        return self._ask(lambda: self._store.execute(*command))

    def script(self, text: bytes, /) -> Any:
        return lambda keys, args: self._ask(lambda: self._store.run_script(text, keys, args))

    def subscribe(self, channel: bytes) -> "Notices":
        notices = Notices(channel)
        self._notices.append(notices)
        return notices

    def publish(self, channel: bytes, data: bytes) -> None:
        if self.connected:
            at_s = self._draw.uniform(*LATENCY_S)
            asyncio.get_running_loop().call_later(at_s, self._heard, Message(channel, data), self.generation)

    def _heard(self, message: Message, generation: int) -> None:
        if generation == self.generation:
            for notices in self._notices:
                if notices.channel == message.channel:
                    notices.put(message)

    # -- the connection ------------------------------------------------------------------------------------------

    def _say(self, work: Callable[[], object], *, end: tuple[str, int] | None = None) -> Answer[Any]:
        answer = Answer(self._ask(work), _as_it_is)
        if end is not None:
            self._ends.append(end)
        return answer

    def _ask(self, work: Callable[[], object]) -> "asyncio.Future[object]":
        if not self.connected:
            raise StoreUnavailable(detail="not connected")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        if not self._out:
            loop.call_soon(self._flush)
        self._out.append((future, work))
        self._waiting[future] = None
        return future

    def _flush(self) -> None:
        """The commands of one turn leave."""
        out, self._out = self._out, []
        ends, self._ends = self._ends, []
        if not out or not self.connected or not self._process.step():
            return
        for end in ends:
            self.note(*end)
        loop = asyncio.get_running_loop()
        self._arrives_s = max(self._arrives_s, loop.time() + self._draw.uniform(*LATENCY_S))
        loop.call_at(self._arrives_s, self._store.receive, self, out, self.generation)

    def reply_soon(self, replies: list[tuple["asyncio.Future[object]", object]], generation: int) -> None:
        loop = asyncio.get_running_loop()
        self._replies_s = max(self._replies_s, loop.time() + self._draw.uniform(*LATENCY_S))
        loop.call_at(self._replies_s, self._reply, replies, generation)

    def _reply(self, replies: list[tuple["asyncio.Future[object]", object]], generation: int) -> None:
        if generation != self.generation or not self._process.alive:
            return
        for future, reply in replies:
            self._waiting.pop(future, None)
            if future.done():
                continue
            if isinstance(reply, BaseException):
                future.set_exception(reply)
            else:
                future.set_result(reply)

    def disconnect(self) -> None:
        if not self.connected:
            return
        self.connected = False
        self.generation += 1
        self._out.clear()
        self._ends.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_exception(StoreUnavailable(detail="connection lost"))
                # Not everybody waits for an answer.
                future.exception()

    def reconnect_soon(self) -> None:
        asyncio.get_running_loop().call_later(self._draw.uniform(0.01, 0.4), self._reconnect)

    def _reconnect(self) -> None:
        if self.connected or not self._process.alive or not self._store.up or self._store.hung:
            return
        self.connected = True
        for notices in self._notices:
            notices.put(None)

    def _die(self) -> None:
        # What it wrote is the kernel's, and still arrives; it only hears nothing more.
        self._store.wires.discard(self)


class Notices:
    """A subscription."""

    def __init__(self, channel: bytes) -> None:
        self.channel = channel
        self._messages: deque[Message | None] = deque([None])
        self._arrived = asyncio.Event()

    def put(self, message: Message | None) -> None:
        self._messages.append(message)
        self._arrived.set()

    def __aiter__(self) -> "Notices":
        return self

    async def __anext__(self) -> Message | None:
        while not self._messages:
            self._arrived.clear()
            await self._arrived.wait()
        return self._messages.popleft()

    def close(self) -> None:
        pass


def _number(entry_id: str) -> tuple[int, int]:
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq or 0)


def _as_it_is(reply: Any) -> Any:
    return reply


_: type[Verbs] = Wire
