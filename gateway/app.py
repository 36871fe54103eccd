"""The composition root: opens what a worker needs and puts the planes together.

`create_app` builds an ASGI application of the parts that `assembly.py` makes; everything in it with a life of its own
starts in its lifespan, in the order of need, and stops in the reverse one.
"""

import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Final

from gateway import __version__
from gateway.assembly import connect, deps_of, prices_of, push_metrics
from gateway.control.app import ControlPlane
from gateway.control.parts import Parts
from gateway.dataplane import V1, DataPlane, Fixed, Health, Metrics, NoInference, Ready
from gateway.deps import Deps
from gateway.errors import StoreUnavailable
from gateway.gate import Gate
from gateway.infra.clock import Clock, SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.exposition import merge, render
from gateway.infra.link import METRICS, Link
from gateway.infra.metrics import Registry as MetricsRegistry
from gateway.infra.postgres import Database
from gateway.infra.process import collect_process, measure_loop_lag
from gateway.infra.redis import Redis
from gateway.kernel.keys import CHANNEL, EVERY_KEY, KeyRing
from gateway.kernel.ledger import Ledger
from gateway.kernel.local_journal import LocalJournal
from gateway.kernel.offers import OfferTable
from gateway.kernel.orphans import Orphans
from gateway.kernel.replay import Replay
from gateway.kernel.settler import CHANNEL as SETTLED
from gateway.readiness import Readiness
from gateway.registry import Registry
from gateway.repricing import Prices
from gateway.settings import Settings
from gateway.status import STATUS, FleetFacts, WorkerFacts, decode_facts

log = logging.getLogger(__name__)

#: What the ends of the last requests get to reach Redis.
CLOSE_S: Final = 2.0


def create_app(
    settings: Settings,
    stores: Stores,
    link: Link | None = None,
    *,
    proxies: Mapping[str, str] | None = None,
    clock: Clock | None = None,
) -> DataPlane:
    """The application of one worker.

    `link` leads to the supervisor, which adds the workers' metrics up; without one, `/metrics` shows this process
    alone. `proxies` is the environment that proxy variables are read from.

    Raises:
        ConfigError: an adapter, a file or a proxy named by the configuration can't be used.
    """
    clock = clock or SystemClock()
    metrics = MetricsRegistry(
        incarnation=secrets.token_hex(8) if link is None else link.name, series_max=settings.metrics.series_max
    )
    collect_process(metrics, clock)
    loop_lag = measure_loop_lag(metrics)
    registry = Registry.load(settings)
    database = Database(
        stores.database_dsn, pool_size=settings.database.pool_size, timeout_s=settings.database.timeout_s
    )
    redis = Redis(stores.redis_url, timeout_s=settings.redis.timeout_s)
    prices = prices_of(settings, registry, clock)
    deps = deps_of(
        settings,
        clock=clock,
        registry=registry,
        prices=prices,
        metrics=metrics,
        database=database,
        redis=redis,
        proxies=proxies,
    )
    orphans = Orphans(deps.journal.directory, Ledger(redis), reachable=lambda: redis.connected)
    replay = Replay(deps.journal, Ledger(redis), reachable=lambda: redis.connected, second_copy=deps.unsettled)
    health = Health()
    readiness = Readiness(database, redis, clock=clock)
    started_s = clock.monotonic()

    async def read_facts() -> FleetFacts:
        """Of all processes here, or of this one where it has no others."""
        if link is not None:
            return decode_facts(await link.ask(STATUS))
        age_s = clock.monotonic() - started_s
        families = list(merge([metrics.snapshot()]).values())
        worker = WorkerFacts(name="worker", pid=os.getpid(), state="ready", age_s=round(age_s, 1))
        return FleetFacts(version=__version__, pid=worker.pid, age_s=age_s, workers=(worker,), families=families)

    control = None
    if settings.server.plane != "data":
        control_database = Database(
            stores.database_dsn,
            pool_size=settings.control.pool_size,
            timeout_s=settings.control.timeout_s,
            application="gateway control",
            prepared=False,
        )
        parts = Parts.of(
            settings,
            deps,
            database=control_database,
            redis=redis,
            readiness=readiness,
            prices=prices,
            facts=read_facts,
        )
        control = ControlPlane(parts)

    @contextlib.asynccontextmanager
    async def lifespan(_: DataPlane) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(deps.access_log.close)
            stack.callback(deps.security.close)
            stack.push_async_callback(database.close)
            if control is not None:
                stack.push_async_callback(control.parts.database.close)
            stack.push_async_callback(redis.close)
            stack.push_async_callback(deps.loader.close)
            stack.push_async_callback(deps.objects.close)
            stack.callback(_close_journal, deps.journal)
            stack.callback(replay.close)
            if deps.marks is not None:
                stack.callback(deps.marks.close)
            stack.push_async_callback(deps.holds.close, CLOSE_S)
            stack.push_async_callback(deps.client.close)
            await registry.start()
            stack.push_async_callback(registry.stop)
            stack.push_async_callback(deps.keychains.renewals.stop)
            await deps.keychains.renewals.start(registry.adapters())
            stack.push_async_callback(deps.tasks.close)
            if control is not None:
                await stack.enter_async_context(control.running())
            await connect(redis, deps.tasks)
            if deps.hooks is not None:
                await deps.hooks.start(deps.tasks)
                stack.push_async_callback(deps.hooks.stop)
            deps.tasks.spawn(_follow_keys(redis, deps.keys), name="key notices")
            worker = secrets.token_hex(8)
            deps.tasks.spawn(
                deps.keychains.announce_forever(redis, worker, clock), name="say which master keys are here"
            )
            deps.unsettled.start(redis.subscribe(SETTLED))
            stack.push_async_callback(deps.unsettled.stop)
            deps.tasks.spawn(deps.objects.flush_forever(), name="remember objects")
            await _read_prices(prices, deps, database)
            put = partial(_put_offers, deps)
            deps.tasks.spawn(prices.follow_overrides(database, redis, put), name="prices that were set")
            deps.tasks.spawn(prices.follow_clock(put), name="prices that change by themselves")
            deps.tasks.spawn(deps.holds.renew_forever(), name="renew holds")
            deps.tasks.spawn(replay.replay_forever(), name="replay journals")
            deps.tasks.spawn(replay.sync_forever(), name="sync the journal")
            deps.tasks.spawn(orphans.tell_forever(), name="tell of orphans")
            loop_lag.watch(lambda lag_s: deps.router.shedding.look(lag_s, int(deps.telemetry.in_flight[0])))
            loop_lag.start()
            stack.callback(loop_lag.stop)
            if link is not None:
                link.when_stopping(deps.router.shedding.close)
                deps.tasks.spawn(push_metrics(link, metrics), name="metrics")
            yield
            if link is not None:
                link.push(metrics.snapshot())

    async def render_all() -> bytes:
        return render(merge([metrics.snapshot()])) if link is None else await link.ask(METRICS)

    paths = ("/health", "/healthz", "/") if control is None else ("/health", "/healthz")
    routes = [Fixed(path, health, methods=["GET", "HEAD"], deps=deps) for path in paths]
    if control is None:
        routes.append(Fixed("/health/ready", Ready(readiness), methods=["GET", "HEAD"], deps=deps))
    if settings.metrics.enabled:
        token = settings.metrics.token
        endpoint = Metrics(render_all, token=None if token is None else token.reveal().encode())
        routes.append(Fixed("/metrics", endpoint, methods=["GET", "HEAD"], deps=deps))
    v1 = NoInference() if settings.server.plane == "control" else V1(deps)
    gate = None if settings.server.plane == "control" else Gate(deps)
    return DataPlane(v1, routes, control=control, lifespan=lifespan, gate=gate)


def _close_journal(journal: LocalJournal) -> None:
    try:
        journal.close()
    except OSError as error:
        log.error("the local journal may not be on the disk: %s", error)  # noqa: TRY400  the text says it all


def _put_offers(deps: Deps, offers: OfferTable) -> None:
    """From the next request on these are offered, all at once."""
    deps.offers = offers
    deps.router.menus.serve(offers.find)


async def _read_prices(prices: Prices, deps: Deps, database: Database) -> None:
    """What was set counts from the first request on. Without the database there is none: no key is known here yet."""
    try:
        await prices.read(database)
    except StoreUnavailable as error:
        log.warning("starting with the prices of the configuration: %s", error.detail)
    else:
        _put_offers(deps, prices.table())


async def _follow_keys(redis: Redis, keys: KeyRing) -> None:
    """Drop each key that changed somewhere; when notices may have been missed, trust none without asking."""
    async for message in redis.subscribe(CHANNEL):
        if message is None or message.data == EVERY_KEY:
            keys.doubt()
        else:
            keys.forget(message.data.decode("ascii", "replace"))
