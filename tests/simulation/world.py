"""A world: workers with the real pipeline and the real bookkeeping, on stores, networks and clocks that are drawn from
one seed. Everything may die, hang, go away, lose its memory or its last moments, at any step; then the world heals, and
what is left is held against what callers saw.

What must hold, in every world:
- Money is conserved: each account's entries are its credit and its charges, and Redis agrees with PostgreSQL.
- A request is charged at most once.
- Who got a whole answer pays exactly its price; who got tokens pays at least for those, where the worker lived; where
  it died, for what Redis or the journal knew of it then.
- Nothing stays held, no slot taken, no request is admitted beyond the balance, no bucket is below empty.

One thing may be lost, and only by two failures at once: a settled record of a worker that died before PostgreSQL had
it, when Redis then loses it too. The world knows each copy of each record, so it knows when that happened.
"""

import asyncio
import random
import tempfile
from collections.abc import Coroutine, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway import __version__
from gateway.bodies import Bodies
from gateway.dataplane import V1
from gateway.deps import Deps
from gateway.errors import StoreUnavailable
from gateway.infra.logs import AccessLog
from gateway.infra.metrics import Registry as MetricsRegistry
from gateway.infra.tasks import TaskGroup
from gateway.kernel.bookkeeping import Bookkeeping
from gateway.kernel.charging import Charging
from gateway.kernel.history import History
from gateway.kernel.holds import RENEW_S, YOUNG_S, Holds
from gateway.kernel.keys import KeyRecord, KeyRing, NewKey, mint
from gateway.kernel.loader import Loader
from gateway.kernel.local_journal import Entry as JournalEntry
from gateway.kernel.local_journal import JournalFile, LocalJournal
from gateway.kernel.money import Price
from gateway.kernel.objects import Deferred, Objects
from gateway.kernel.offers import OfferTable
from gateway.kernel.record import decode_record
from gateway.kernel.replay import Replay
from gateway.kernel.request_id import RequestIds
from gateway.kernel.security import SecurityLog
from gateway.kernel.settler import CHANNEL
from gateway.kernel.unsettled import Unsettled, find_known
from gateway.kernel.vault import Vault
from gateway.keychains import Keychains
from gateway.registry import Registry
from gateway.routing.router import Router
from gateway.secret import Secret
from gateway.server.protocol import DirectProtocol
from gateway.settings import Provider, Retries, Routing, Settings, Timeouts, Upstream
from gateway.telemetry import Telemetry
from gateway.upstream.client import UpstreamClient
from gateway.upstream.renewal import Renewals
from gateway.wire.estimate import estimate_input_tokens
from tests.crash.crowd import INPUT_NANOS, INPUT_TOKENS, OUTPUT_NANOS
from tests.places import fast_place
from tests.simulation.clockwork import Process, SimClock, SimLoop
from tests.simulation.cold import ColdStore, Database
from tests.simulation.hot import PARTITIONS, HotStore, Wire
from tests.simulation.network import Call, CallerSocket, Providers

PEPPER = b"the pepper of the simulation"
ACCOUNTS = (1, 2, 3)
LEASE_MS = 5_000
#: How long callers come, and what they and their answers get to be over.
ACTIVE_S = 4.0
#: What a world gets to come to rest once nothing disturbs it.
REST_S = 40.0
#: What a command may take on its way.
ON_THE_WAY_S = 0.05

SETTINGS = Settings(
    providers_from_environment=False,
    upstream=Upstream(timeouts=Timeouts(connect_s=1.0, first_byte_s=2.0, idle_s=1.5, total_s=8.0)),
    routing=Routing(retries=Retries(backoff_s=0.05, deadline_s=4.0)),
    providers={
        "near": Provider(adapter="openai", base_url="http://near.test/v1", api_key=Secret("sk"), models=("m", "f")),
        "far": Provider(adapter="openai", base_url="http://far.test/v1", api_key=Secret("sk"), models=("f",)),
    },
)
PRICE = Price(input_mtok_nanos=INPUT_NANOS * 1_000_000, output_mtok_nanos=OUTPUT_NANOS * 1_000_000)


class Broken(AssertionError):
    """A rule does not hold in the world of this seed."""


@lru_cache(maxsize=1)
def parts() -> tuple[Registry, OfferTable, Telemetry, dict[int, NewKey]]:
    """What all worlds share: none of it changes what happens."""
    registry = Registry.load(SETTINGS)
    models = {name: provider.models for name, provider in registry.providers.items()}
    offers = OfferTable.of(SETTINGS, models, price=lambda *_: (PRICE, False))
    telemetry = Telemetry(MetricsRegistry(incarnation="simulation"), version=__version__)
    return registry, offers, telemetry, {account_id: mint("live", pepper=PEPPER) for account_id in ACCOUNTS}


class Journal(LocalJournal):
    """The disk is outside of the process."""

    def __init__(self, process: Process, directory: Path, wire: Wire) -> None:
        super().__init__(directory, bytes_max=1024 * 1024)
        self._process = process
        self._wire = wire
        #: The process died as it was about to take back what the journal says of these, which is a renewal old.
        self.unsaid: set[str] = set()

    def append(self, entry: JournalEntry) -> None:
        if not self._process.step():
            if entry.verb == "told":
                self.unsaid.add(entry.request_id)
            raise StoreUnavailable(detail="dead")
        super().append(entry)
        if entry.verb in {"settle", "void"}:
            self._wire.note(entry.request_id, entry.cost_nanos)


class Worker:
    """One life of a serving process."""

    def __init__(self, world: "World", name: str) -> None:
        self.process = process = Process(name, world.draw)
        self.calls: list[Call] = []
        self.wire = Wire(process, world.hot, world.draw)
        self.database = Database(process, world.cold)
        self._world = world
        process._context.run(self._build, world)

    def _build(self, world: "World") -> None:
        registry, offers, telemetry, _ = parts()
        clock, wire, database, process = world.clock, self.wire, self.database, self.process
        self.journal = Journal(process, world.directory, wire)
        self.unsettled = Unsettled(wire, find_known(database), clock=clock)
        self.holds = Holds(
            wire,
            clock=clock,
            settle_seconds=telemetry.time_redis("settle"),
            journal=self.journal,
            second_copy=self.unsettled,
            lease_ms=LEASE_MS,
        )
        self.loader = Loader(database, wire, partitions=PARTITIONS)
        self.replay = Replay(self.journal, wire, reachable=lambda: wire.connected, second_copy=self.unsettled)
        self.client = UpstreamClient(SETTINGS.upstream, dial=world.providers.dialler(process))
        router = Router.of(
            SETTINGS,
            offers,
            dialects={name: each.adapter.dialects for name, each in registry.providers.items()},
            keys={name: len(each.adapters) for name, each in registry.providers.items()},
            clock=clock,
            chance=world.draw.random,
        )
        self.deps = Deps(
            settings=SETTINGS,
            clock=clock,
            keys=KeyRing(SETTINGS.auth, pepper=PEPPER, fetch=world.find_key, clock=clock),
            offers=offers,
            providers=registry.providers,
            router=router,
            keychains=Keychains(
                registry,
                Vault({}, active=""),
                health=router.health,
                renewals=Renewals(self.client, clock=clock),
                fee_permille=0,
            ),
            client=self.client,
            ledger=wire,
            journal=self.journal,
            unsettled=self.unsettled,
            holds=self.holds,
            loader=self.loader,
            history=History(database, wire, partitions=PARTITIONS),
            telemetry=telemetry,
            admit_seconds=telemetry.time_redis("admit"),
            access_log=AccessLog(""),
            security=SecurityLog(clock),
            tasks=TaskGroup(),
            # Nobody in these worlds asks for what providers keep.
            objects=Objects(database, wire, clock=clock, cache_size=1),
            charging=Charging(
                Deferred(database),
                wire,
                offers=lambda: offers,
                clock=clock,
                batch_permille=500,
                second_copy=self.unsettled,
            ),
            bodies=Bodies(64 * 1024 * 1024),
            new_id=RequestIds(clock).make,
        )
        app = V1(self.deps)
        self._config = uvicorn.Config(
            app,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        self._config.load()
        self._state = uvicorn.server.ServerState()
        process.on_death += [self._release, lambda: world.buried(self)]
        self.unsettled.start(wire.subscribe(CHANNEL))
        for work in (self.holds.renew_forever(), self.replay.replay_forever()):
            process.spawn(work)

    def _release(self) -> None:
        """The kernel gives up the locks."""
        if (file := self.journal.seal()) is not None:
            file.release()
        self.replay.close()

    def take(self, call: Call) -> CallerSocket:
        """A caller connects, and asks."""
        call.process = self.process
        self.calls.append(call)
        kind = DirectProtocol if self._world.draw.random() < 0.75 else HttpToolsProtocol
        protocol = kind(self._config, self._state, {}, asyncio.get_running_loop())
        socket = CallerSocket(call, self.process, protocol)
        self.process.call(protocol.connection_made, socket)
        self.process.call(protocol.data_received, call.request)
        if self._world.draw.random() < 0.2:
            # One who reads slowly.
            loop = asyncio.get_running_loop()
            at_s = loop.time() + self._world.draw.uniform(0, 1)
            loop.call_at(at_s, self.process.call, protocol.flow.pause_writing)
            loop.call_at(at_s, self.process.call, protocol.pause_writing)
            loop.call_at(at_s + 0.3, self.process.call, protocol.resume_writing)
        return socket

    async def stop(self) -> None:
        """End in order, as the application does."""
        deps = self.deps
        while self._state.tasks:  # noqa: ASYNC110  as the server does
            await asyncio.sleep(0.05)
        await deps.tasks.close()
        await self.unsettled.stop()
        await self.client.close()
        await self.holds.close(2.0)
        self.replay.close()
        self.journal.close()
        await self.loader.close()
        self.process.die()


class Books:
    """One life of the process that keeps the books."""

    def __init__(self, world: "World", name: str) -> None:
        _, _, telemetry, _ = parts()
        self.process = Process(name, world.draw)
        self.wire = Wire(self.process, world.hot, world.draw)
        database: Any = Database(self.process, world.cold)
        wire: Any = self.wire
        self.work = Bookkeeping(
            database, wire, ledger=wire, telemetry=telemetry, clock=world.clock, partitions=PARTITIONS
        )
        self.process.call(self.work.start)


class World:
    """One of them."""

    def __init__(self, seed: int, loop: SimLoop, directory: Path) -> None:
        self.seed = seed
        self.draw = random.Random(seed)
        self.loop = loop
        self.clock = SimClock(loop)
        self.directory = directory
        self.hot = HotStore(self.clock, self.draw)
        self.cold = ColdStore(self.clock, self.draw)
        self.calls: dict[int, Call] = {}
        self.providers = Providers(self.calls, self.draw)
        self.workers: list[Worker] = []
        self.books: list[Books] = []
        #: What happened, for whoever has to find out why.
        self.story: list[str] = []
        #: The least that a request of a dead worker has to cost: what the stores knew of it.
        self.due: dict[str, int] = {}
        #: Requests of which no copy was left anywhere.
        self.lost: set[str] = set()
        self.disturbed = True
        self._names = iter(range(1_000_000))
        self._saved: object | None = None
        #: Redis was away, or forgot something.
        self.redis_failed = False
        self._background: set[asyncio.Task[Any]] = set()

    def tell(self, text: str) -> None:
        self.story.append(f"{self.loop.time():8.3f} {text}")

    async def find_key(self, key_id: str) -> KeyRecord | None:
        await asyncio.sleep(0.002)
        if not self.cold.up:
            raise StoreUnavailable(detail="postgres is away")
        _, _, _, keys = parts()
        for account_id, key in keys.items():
            if key.id == key_id:
                return KeyRecord(id=key_id, account_id=account_id, environment="live", digest=key.digest)
        return None

    # -- what is noted -------------------------------------------------------------------------------------------

    @property
    def settled(self) -> dict[str, int]:
        """What each request was settled at, the first time its worker said so."""
        wires = [worker.wire for worker in self.workers]
        return {name: cost for wire in wires for name, cost in wire.admitted.items() if cost is not None}

    def buried(self, worker: Worker) -> None:
        """A worker died: what the stores know of its requests has to be charged."""
        self.tell(f"{worker.process} died")
        self.loop.call_later(ON_THE_WAY_S, self.audit)

    def audit(self) -> None:
        """Look for what exists nowhere any more, and for what is known of those whose worker is gone."""
        copies = self._copies()
        news = self._news()
        settled = self.settled
        for call in self.calls.values():
            process, request_id = call.process, call.request_id
            if process is None or process.alive or not request_id:
                continue
            if request_id in settled:
                if request_id not in copies and request_id not in self.lost:
                    self.tell(f"{request_id} is lost")
                    self.lost.add(request_id)
            elif any(request_id in worker.journal.unsaid for worker in self.workers):
                self.due[request_id] = 0
            else:
                # Of two, an estimate and a report, the report is right.
                price = INPUT_TOKENS * INPUT_NANOS + call.told * OUTPUT_NANOS
                self.due[request_id] = min(price, news.get(request_id, 0))

    def _copies(self) -> set[str]:
        found = set(self.cold.usage)
        found |= {decode_record(packed).request_id for stream in self.hot.streams.values() for _, packed in stream}
        found |= {entry.request_id for entry in self._journaled() if entry.verb in {"settle", "void"}}
        for worker in self.workers:
            if worker.process.alive:
                found |= {kept.request_id for kept in worker.unsettled._kept.values()}
        return found

    def _news(self) -> dict[str, int]:
        """What would be charged of requests that nobody ends."""
        found = {
            request_id: hold.news.cost_nanos
            for request_id, hold in self.hot.twin._holds.items()
            if hold.news is not None
        }
        for entry in self._journaled():
            if entry.verb == "progress":
                found[entry.request_id] = max(entry.cost_nanos, found.get(entry.request_id, 0))
        for stream in self.hot.streams.values():
            found |= {record.request_id: record.cost_nanos for record in (decode_record(each) for _, each in stream)}
        return found | {name: row.get("cost_nanos", 0) for name, row in self.cold.usage.items()}

    def _journaled(self) -> Iterator[JournalEntry]:
        for path in sorted(self.directory.glob("*.journal")):
            with path.open("rb") as file:
                found = JournalFile(path, file.fileno())
                yield from (entry for entry in found.read() if isinstance(entry, JournalEntry))

    # -- life ----------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        for account_id in ACCOUNTS:
            self.cold.credit(account_id, self.draw.choice((60_000, 400_000, 10_000_000, 10_000_000)))
        for _ in range(self.draw.choice((1, 1, 2, 3))):
            self.workers.append(Worker(self, f"worker {next(self._names)}"))
        for _ in range(self.draw.choice((1, 1, 1, 2))):
            self.books.append(Books(self, f"books {next(self._names)}"))
        for work in (*self._callers(), *self._troubles()):
            self._spawn(work)
        await asyncio.sleep(ACTIVE_S)
        while self._background:
            await asyncio.wait(self._background)
        self.disturbed = False
        for each in (*self.workers, *self.books):
            each.process.fuse = None
        self._keep_alive()
        await self._come_to_rest()
        self.providers.stop()
        self.check()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _keep_alive(self) -> None:
        """One of each kind, at least: what a supervisor does."""
        if not any(each.process.alive for each in self.workers):
            self.workers.append(Worker(self, f"worker {next(self._names)}"))
        if not any(each.process.alive for each in self.books):
            self.books.append(Books(self, f"books {next(self._names)}"))

    async def _come_to_rest(self) -> None:
        end_s = self.loop.time() + REST_S
        while self.loop.time() < end_s:
            await asyncio.sleep(0.5)
            if self._at_rest():
                return
        raise Broken(f"it does not come to rest: {self._unrest()}")

    def _at_rest(self) -> bool:
        return not any(self._unrest().values())

    def _unrest(self) -> dict[str, object]:
        living = [worker for worker in self.workers if worker.process.alive]
        keeping = [books for books in self.books if books.process.alive]
        holders = [books for books in keeping if books.work.is_ours]
        return {
            "unconnected": [each.process for each in (*living, *keeping) if not each.wire.connected],
            "nobody keeps the books": not holders,
            "holds": list(self.hot.twin._holds),
            "streams": {
                number: len(self.hot.backlog(number, self.cold.cursors.get(number, "0-0")))
                for number in self.hot.streams
                if self.hot.backlog(number, self.cold.cursors.get(number, "0-0"))
            },
            "cursors": [
                number
                for number, stream in self.hot.streams.items()
                if self.cold.cursors.get(number, "0-0") not in ("0-0", *(name for name, _ in stream))
            ],
            "outbox": list(self.cold.outbox),
            "journals": [entry.request_id for entry in self._journaled()],
            "doubted": [name for worker in living for name in worker.unsettled._doubted],
            "open": [repr(w.holds) for w in living if w.holds._open or w.holds._ending or w.holds._unconfirmed],
            "mending": [
                each.process
                for each in holders
                if each.work._repeated or each.work._doubted or each.work._settler._repeated
            ],
        }

    async def _ask(self, call: Call, at_s: float) -> None:
        await asyncio.sleep(at_s)
        living = [worker for worker in self.workers if worker.process.alive]
        if not living:
            return
        socket = self.draw.choice(living).take(call)
        if self.draw.random() < 0.2:
            await asyncio.sleep(self.draw.expovariate(3))
            socket.leave()

    def _callers(self) -> Iterator[Coroutine[Any, Any, None]]:
        _, _, _, keys = parts()
        for number in range(self.draw.randint(3, 14)):
            account_id = self.draw.choice(ACCOUNTS)
            call = Call(
                number,
                account_id,
                keys[account_id].text,
                model=self.draw.choice(("m", "f")),
                stream=self.draw.random() < 0.7,
                max_tokens=self.draw.randint(1, 12),
            )
            self.calls[number] = call
            yield self._ask(call, self.draw.uniform(0, ACTIVE_S * 0.8))

    # -- what goes wrong -----------------------------------------------------------------------------------------

    def _troubles(self) -> Iterator[Coroutine[Any, Any, None]]:
        draw = self.draw
        for _ in range(draw.choice((0, 0, 1, 1, 2))):
            yield self._kill_worker(draw.uniform(0.1, ACTIVE_S))
        for _ in range(draw.choice((0, 0, 0, 1, 2))):
            yield self._kill_books(draw.uniform(0.1, ACTIVE_S))
        if draw.random() < 0.15:
            yield self._stop_worker(draw.uniform(0.1, ACTIVE_S))
        if draw.random() < 0.35:
            yield self._restart_redis(draw.uniform(0.3, ACTIVE_S))
        elif draw.random() < 0.25:
            yield self._hang_redis(draw.uniform(0.3, ACTIVE_S))
        if draw.random() < 0.3:
            yield self._take_away_postgres(draw.uniform(0.1, ACTIVE_S))
        for _ in range(draw.choice((0, 1, 2))):
            yield self._give_credit(draw.uniform(0.1, ACTIVE_S))

    async def _kill_worker(self, at_s: float) -> None:
        await asyncio.sleep(at_s)
        living = [worker for worker in self.workers if worker.process.alive]
        if living:
            # At once, or at one of its next steps.
            process = self.draw.choice(living).process
            process.fuse = self.draw.randint(0, 12)
            if process.fuse == 0:
                process.die()
            await asyncio.sleep(self.draw.uniform(0.05, 0.8))
            self.workers.append(Worker(self, f"worker {next(self._names)}"))

    async def _stop_worker(self, at_s: float) -> None:
        await asyncio.sleep(at_s)
        living = [worker for worker in self.workers if worker.process.alive]
        if len(living) > 1:
            worker = self.draw.choice(living)
            self.tell(f"{worker.process} is told to stop")
            await asyncio.wait([worker.process.spawn(worker.stop())])

    async def _kill_books(self, at_s: float) -> None:
        await asyncio.sleep(at_s)
        living = [each for each in self.books if each.process.alive]
        if living:
            process = self.draw.choice(living).process
            process.fuse = self.draw.randint(0, 8)
            self.tell(f"{process} will die")
            await asyncio.sleep(self.draw.uniform(0.05, 0.8))
            self.books.append(Books(self, f"books {next(self._names)}"))

    async def _restart_redis(self, at_s: float) -> None:
        draw = self.draw
        lag_s = draw.choice((0.0, 0.0, draw.uniform(0, 0.2), draw.uniform(0, 1), None))
        saved = None
        if lag_s is None:
            await asyncio.sleep(at_s)
        else:
            await asyncio.sleep(max(0.0, at_s - lag_s))
            if lag_s:
                saved = self.hot.save()
                await asyncio.sleep(lag_s)
        self.hot.fall()
        self.tell(f"redis falls, {'everything' if lag_s is None else f'{lag_s:.3f} s'} lost")
        if lag_s == 0:
            saved = self.hot.save()
        self.redis_failed = True
        await asyncio.sleep(draw.choice((0.05, 0.5, 1.5, 7.0)))
        self.hot.rise(saved)
        self.tell("redis is back")
        self.audit()
        self.loop.call_later(ON_THE_WAY_S, self.audit)

    async def _hang_redis(self, at_s: float) -> None:
        await asyncio.sleep(at_s)
        self.tell("redis hangs")
        self.redis_failed = True
        self.hot.hang()
        await asyncio.sleep(self.draw.choice((0.1, 0.7, 2.0, 7.0)))
        self.hot.recover()
        self.tell("redis goes on")

    async def _take_away_postgres(self, at_s: float) -> None:
        await asyncio.sleep(at_s)
        self.tell("postgres is away")
        self.cold.up = False
        await asyncio.sleep(self.draw.choice((0.1, 0.5, 2.0)))
        self.cold.up = True
        self.tell("postgres is back")

    async def _give_credit(self, at_s: float) -> None:
        await asyncio.sleep(at_s)
        self.cold.credit(self.draw.choice(ACCOUNTS), self.draw.choice((100_000, 1_000_000, -20_000)))

    # -- the end -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Every rule, in the world at rest.

        Raises:
            Broken
        """
        if self.lost and not self.redis_failed:
            raise Broken(f"a worker died alone, and took with it {self.lost}")
        wrong = [*self._wrong_money(), *self._wrong_charges(), *(repr(each) for each in self.providers.failures)]
        try:
            self.hot.check()
        except AssertionError as error:
            wrong.append(str(error))
        if wrong:
            raise Broken("\n".join(wrong))

    def _wrong_money(self) -> Iterator[str]:
        if self.cold.rejects:
            yield f"set aside: {self.cold.rejects}"
        charged = [request_id for account in self.cold.accounts.values() for _, _, request_id in account.entries]
        charged = [request_id for request_id in charged if request_id]
        if len(set(charged)) != len(charged):
            yield "a request with two entries"
        for account_id, account in self.cold.accounts.items():
            if account.balance_nanos != sum(amount for _, amount, _ in account.entries):
                yield f"account {account_id}: {account.balance_nanos} is not the sum of its entries"
            for key, state in self.hot.twin.states.items():
                ours = key.endswith(f":a:{account_id}".encode()) and state.balance is not None
                if ours and state.balance != account.balance_nanos:
                    yield f"account {account_id}: {state.balance} in redis, {account.balance_nanos} in the books"
        for key, state in self.hot.twin.states.items():
            if state.held or state.in_flight:
                yield f"{key!r}: {state.held} held, {state.in_flight} in flight"

    def _wrong_charges(self) -> Iterator[str]:
        settled = self.settled
        for call in self.calls.values():
            if call.process is None or not call.request_id or call.status != 200:
                continue
            request_id = call.request_id
            row = self.cold.usage.get(request_id)
            cost = 0 if row is None else row.get("cost_nanos", 0)
            text = f"call {call.number} {request_id} of {call.process}, {call.tokens} tokens, cost {cost}"
            if request_id in self.lost:
                continue
            if not call.process.alive and request_id not in settled:
                if cost < self.due.get(request_id, 0):
                    yield f"{text}: the stores knew of {self.due[request_id]}"
                if not self.redis_failed and cost < (least := self._due_by_time(call)):
                    yield f"{text}: {least} were out a renewal before its worker died"
                if call.whole:
                    yield f"{text}: whole, and never settled"
                continue
            if request_id in settled and cost != settled[request_id]:
                yield f"{text}: settled at {settled[request_id]}: {row}"
            if cost and row is not None and row.get("usage_source") == "reported":
                price = INPUT_TOKENS * INPUT_NANOS + call.told * OUTPUT_NANOS
                if cost != price:
                    yield f"{text}: the price is {price}"
            elif call.tokens and cost < self._least(call, call.tokens):
                yield f"{text}: at least {self._least(call, call.tokens)}"

    def _due_by_time(self, call: Call) -> int:
        assert call.process is not None
        assert call.process.died_s is not None
        until_s = call.process.died_s - RENEW_S - YOUNG_S - ON_THE_WAY_S
        tokens = max((count for at_s, count in call.seen if at_s <= until_s), default=0)
        return self._least(call, tokens) if tokens and call.stream else 0

    def _least(self, call: Call, tokens: int) -> int:
        """What so many tokens cost at least, reported or estimated.

        An estimate leaves one event out, the one that only names the role; of a plain answer it goes by size.
        """
        if not call.stream:
            return INPUT_NANOS
        estimate = estimate_input_tokens(call.body) * INPUT_NANOS + max(tokens - 1, 1) * OUTPUT_NANOS
        return min(estimate, INPUT_TOKENS * INPUT_NANOS + call.told * OUTPUT_NANOS)


def run_world(seed: int, *, story: bool = False) -> World:
    """Live through the world of one seed, and check it.

    Raises:
        Broken: with what happened in it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="gw-world-", dir=fast_place()) as directory,
        asyncio.Runner(loop_factory=SimLoop) as runner,
    ):
        loop = runner.get_loop()
        assert isinstance(loop, SimLoop)
        world = World(seed, loop, Path(directory))
        try:
            runner.run(world.live())
        except AssertionError as error:
            raise Broken(f"seed {seed}:\n{error}\n" + "\n".join(world.story)) from error
    return world
