"""The ledger's work in the background: settling, carrying credit, sweeping, comparing, making room for next months.

Any number of processes start it; one of them does it, the holder of a lease in Redis, and another takes over within
seconds when that one is gone. None of the work depends on being done by one only: see the modules that do it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.errors import GatewayError, StoreUnavailable
from gateway.infra.clock import Clock
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis, Subscription
from gateway.infra.redis.lease import Lease
from gateway.infra.tasks import TaskGroup
from gateway.kernel.courier import ROUND_MAX, Courier
from gateway.kernel.ledger import Ledger
from gateway.kernel.loader import Loader
from gateway.kernel.reconciler import Reconciler
from gateway.kernel.settler import CHANNEL as SETTLED
from gateway.kernel.settler import Meters, Settler
from gateway.kernel.verbs import PARTITIONS

log = logging.getLogger(__name__)

LEASE: Final = b"gateway:bookkeeping"
LEASE_TTL_S: Final = 5.0
#: How often the lease is renewed, or asked for.
LEASE_EVERY_S: Final = 1.0
#: Passes over the streams: while there is something to settle, and while there is nothing.
SETTLE_BUSY_S: Final = 0.05
SETTLE_IDLE_S: Final = 0.25
CARRY_EVERY_S: Final = 0.25
SWEEP_EVERY_S: Final = 5.0
#: After Redis was away, workers get so long to renew leases that ran out meanwhile, and to tell what has ended.
SWEEP_AFTER_S: Final = 4.0
#: It was away if nothing was heard of it for so long; the lease asks every second.
SILENT_S: Final = 3.0
SWEEP_MAX: Final = 500
RECONCILE_EVERY_S: Final = 60.0
PARTITIONS_EVERY_S: Final = 6 * 3600.0
MONTHS_AHEAD: Final = 3
#: After a failure, doubled for each that follows.
FAILED_S_MIN: Final = 0.5
FAILED_S_MAX: Final = 10.0


class Bookkeeping:
    """Started by many, done by one. Give it a Redis client of its own: what it asks for is large."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        *,
        ledger: Ledger,
        telemetry: Meters,
        clock: Clock,
        partitions: int = PARTITIONS,
    ) -> None:
        self._database = database
        self._redis = redis
        self._ledger = ledger
        self._telemetry = telemetry
        self._partitions = partitions
        self.loader = Loader(database, ledger, partitions=partitions)
        self._lease = Lease(redis, LEASE, ttl_s=LEASE_TTL_S)
        self._settler = Settler(database, redis, clock=clock, telemetry=telemetry, partitions=range(partitions))
        self._courier = Courier(database, ledger, self.loader)
        self._reconciler = Reconciler(database, redis, self.loader, partitions=partitions)
        self._tasks = TaskGroup()
        self._clock = clock
        self._ours = asyncio.Event()
        #: When Redis last answered us, and since when it does so without a pause, on the monotonic clock.
        self._heard_s = 0.0
        self._heard_since_s = 0.0
        #: Accounts that Redis charged twice, and partitions that may have forgotten something; not mended yet.
        self._repeated: set[int] = set()
        self._doubted: set[int] = set()

    @property
    def is_ours(self) -> bool:
        """Whether this process does the work now."""
        return self._ours.is_set()

    def start(self) -> None:
        """Begin, once there is a loop; Redis need not answer yet."""
        self._tasks.spawn(self._keep_lease(), name="bookkeeping lease")
        self._tasks.spawn(self._listen(self._redis.subscribe(SETTLED)), name="bookkeeping doubts")
        for name, work in (
            ("settle", self._settle),
            ("mend", self._mend),
            ("carry", self._carry),
            ("sweep", self._sweep),
            ("reconcile", self._reconcile),
            ("make partitions", self._make_partitions),
        ):
            self._tasks.spawn(self._repeat(work), name=name)

    async def stop(self) -> None:
        """Stop where each transaction ends or begins, and let another take over at once."""
        await self._tasks.close()
        await self.loader.close()
        if self._ours.is_set():
            self._ours.clear()
            try:
                await self._lease.drop()
            except GatewayError as error:
                log.info("the bookkeeping lease ends by itself: %s", error.detail)

    # -- the loops ---------------------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        while True:
            try:
                ours = await self._lease.hold()
            except GatewayError:
                ours = False
            if ours:
                self._hear()
                self._ours.set()
            else:
                self._ours.clear()
                self._telemetry.settle_lag.set((), 0.0)  # the holder's is the one that counts
            await asyncio.sleep(LEASE_EVERY_S)

    def _hear(self) -> bool:
        """Redis has answered. Whether it does so for long enough that living workers have renewed their leases."""
        now_s = self._clock.monotonic()
        if now_s - self._heard_s > SILENT_S:
            self._heard_since_s = now_s
        self._heard_s = now_s
        return now_s - self._heard_since_s >= SWEEP_AFTER_S

    async def _listen(self, notices: Subscription) -> None:
        """Doubt everything whenever Redis was lost: it may be back with less than it had. Lost charges show when they
        are settled; credit that was carried and forgotten shows nowhere else.
        """
        try:
            async for message in notices:
                if message is None:
                    self._doubted.update(range(self._partitions))
        finally:
            notices.close()

    async def _repeat(self, work: Callable[[], Awaitable[float]]) -> None:
        """Do `work` for ever; it answers how long to wait until the next time."""
        failed_s = 0.0
        while True:
            await self._ours.wait()
            try:
                wait_s = await work()
                failed_s = 0.0
            except StoreUnavailable as error:
                wait_s = failed_s = _longer(failed_s)
                log.warning("bookkeeping waits for a store: %s", error.detail)
            except Exception:  # a border: whatever is wrong with one kind of work, it must be tried again
                wait_s = failed_s = _longer(failed_s)
                log.exception("bookkeeping failed, trying again in %.1f s", wait_s)
            await asyncio.sleep(wait_s)

    async def _settle(self) -> float:
        done = await self._settler.settle_once()
        self._repeated |= done.repeated
        self._doubted.update(done.rewound)
        if done.more:
            return 0.0
        return SETTLE_BUSY_S if done.settled else SETTLE_IDLE_S

    async def _mend(self) -> float:
        """Load anew what settling showed to be wrong in Redis."""
        while self._repeated:
            account_id = next(iter(self._repeated))
            await self._loader_force(account_id)
            self._repeated.discard(account_id)
        while self._doubted:
            # Taken off first: it may be doubted again while it is mended.
            partition = self._doubted.pop()
            finished = False
            try:
                report = await self._reconciler.mend(partition)
                finished = not report.unread
            finally:
                if not finished:
                    self._doubted.add(partition)
            if report.drifts:
                log.warning("partition %d: %d accounts loaded anew", partition, len(report.drifts))
            if not finished:
                return SETTLE_IDLE_S
        return SETTLE_IDLE_S

    async def _loader_force(self, account_id: int) -> None:
        if await self._ledger.peek_balance(account_id) is not None:
            await self.loader.ensure_loaded(account_id, force=True)

    async def _carry(self) -> float:
        return 0.0 if await self._courier.carry_once() >= ROUND_MAX else CARRY_EVERY_S

    async def _sweep(self) -> float:
        wait_s = self._heard_since_s + SWEEP_AFTER_S - self._clock.monotonic()
        if wait_s > 0:
            return wait_s
        for partition in range(self._partitions):
            expired = await self._ledger.sweep(partition, at_most=SWEEP_MAX, permitted=self._hear)
            self._telemetry.holds_expired[0] += sum(each.outcome != "lost" for each in expired)
            for each in expired:
                log.warning("request %s: its worker is gone, %s", each.request_id, each.outcome)
        return SWEEP_EVERY_S

    async def _reconcile(self) -> float:
        # At once at first would meet workers that are just starting to offer what they still have.
        await asyncio.sleep(RECONCILE_EVERY_S)
        report = await self._reconciler.reconcile()
        self._telemetry.ledger_drift.set((), report.drift_nanos)
        for drift in report.drifts:
            log.error(
                "account %d drifts: Redis has %d nanos too many; `gateway reconcile --fix` loads it anew",
                drift.account_id,
                drift.nanos,
            )
        return 0.0

    async def _make_partitions(self) -> float:
        made = await self._database.fetch("select make_partitions($1)", MONTHS_AHEAD)
        for row in made:
            log.info("made partition %s", row["make_partitions"])
        return PARTITIONS_EVERY_S


def _longer(failed_s: float) -> float:
    return min(FAILED_S_MAX, max(FAILED_S_MIN, failed_s * 2))
