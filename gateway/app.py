"""The composition root: opens what a worker needs and puts the planes together. The only module that knows all parts.

`create_app` builds an ASGI application; everything in it with a life of its own starts in its lifespan, in the order
of need, and stops in the reverse one.
"""

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Literal

from gateway import __version__
from gateway.bodies import Bodies
from gateway.bridges import reach
from gateway.catalogue.lists import ListStore
from gateway.catalogue.metrics import MetricStore
from gateway.catalogue.prices import Catalogue
from gateway.control.app import ControlPlane
from gateway.control.parts import Parts
from gateway.dataplane import V1, DataPlane, Fixed, Health, Metrics, NoInference, Ready
from gateway.deps import Deps
from gateway.errors import ConfigError, StoreUnavailable
from gateway.gate import Gate
from gateway.hooks import Hooks
from gateway.infra.clock import Clock, SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.exposition import merge, render
from gateway.infra.link import METRICS, Link
from gateway.infra.logs import AccessLog
from gateway.infra.metrics import Cell
from gateway.infra.metrics import Registry as MetricsRegistry
from gateway.infra.postgres import Database
from gateway.infra.process import collect_process, measure_loop_lag
from gateway.infra.redis import Redis
from gateway.infra.tasks import TaskGroup
from gateway.kernel.answers import Answers
from gateway.kernel.bookkeeping import Bookkeeping
from gateway.kernel.charging import Charging
from gateway.kernel.history import History
from gateway.kernel.holds import Holds
from gateway.kernel.key_store import find_key, load_pepper
from gateway.kernel.keys import CHANNEL, EVERY_KEY, KeyRing
from gateway.kernel.ledger import Ledger
from gateway.kernel.limits import COUNTS, Limits
from gateway.kernel.loader import Loader
from gateway.kernel.local_journal import LocalJournal
from gateway.kernel.marks import Marks
from gateway.kernel.money import parse_usd
from gateway.kernel.objects import Deferred, Objects
from gateway.kernel.offers import OfferTable
from gateway.kernel.orphans import Orphans
from gateway.kernel.replay import Replay
from gateway.kernel.request_id import RequestIds
from gateway.kernel.security import SecurityLog
from gateway.kernel.settler import CHANNEL as SETTLED
from gateway.kernel.standby import Standby
from gateway.kernel.unsettled import Unsettled, find_known
from gateway.kernel.vault import Vault
from gateway.keychains import Keychains, find_own
from gateway.poller import Poller
from gateway.readiness import Readiness
from gateway.registry import Provider, Registry
from gateway.repricing import Prices
from gateway.routing.crowd import PRIORITIES
from gateway.routing.router import Router
from gateway.settings import Cache, Plan, Settings
from gateway.status import STATUS, FleetFacts, WorkerFacts, decode_facts
from gateway.surveyor import Surveyor
from gateway.telemetry import Telemetry
from gateway.upstream.client import UpstreamClient
from gateway.upstream.renewal import Renewals
from gateway.wire.client_address import parse_networks

log = logging.getLogger(__name__)

CONNECT_RETRY_S: Final = 1.0
#: The ledger's own connections; its batches may take longer than a caller would wait.
BOOKS_POOL_SIZE: Final = 4
BOOKS_TIMEOUT_S: Final = 15.0
#: What the ends of the last requests get to reach Redis.
CLOSE_S: Final = 2.0
#: Of the data directory: what Redis could not be told yet.
JOURNAL_DIR: Final = "journal"
#: How often a worker hands its counts to the supervisor.
PUSH_S: Final = 1.0


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
    prices = _prices(settings, registry, clock)
    deps = _deps(
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
            await _connect(redis, deps.tasks)
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
                deps.tasks.spawn(_push_metrics(link, metrics), name="metrics")
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


async def keep_books(
    settings: Settings,
    stores: Stores,
    link: Link,
    stopping: asyncio.Event,
    *,
    proxies: Mapping[str, str] | None = None,
) -> None:
    """The ledger's work in the background, in a process of its own, so that it takes no time from those that serve.

    Any number of these may run, on any number of hosts: one of them does the work, but for asking providers what has
    become of batches, which all share.
    """
    metrics = MetricsRegistry(incarnation=link.name, series_max=settings.metrics.series_max)
    telemetry = Telemetry(metrics, version=__version__)
    tasks = TaskGroup()
    async with contextlib.AsyncExitStack() as stack:
        database = Database(stores.database_dsn, pool_size=BOOKS_POOL_SIZE, timeout_s=BOOKS_TIMEOUT_S)
        stack.push_async_callback(database.close)
        metrics.on_collect(partial(_show_pool, database, telemetry))
        redis = Redis(stores.redis_url, timeout_s=BOOKS_TIMEOUT_S)
        stack.push_async_callback(redis.close)
        books = Bookkeeping(database, redis, ledger=Ledger(redis), telemetry=telemetry, clock=SystemClock())
        stack.push_async_callback(books.stop)
        registry = Registry.load(settings)
        client = UpstreamClient(settings.upstream, proxies=proxies)
        stack.push_async_callback(client.close)
        await registry.start()
        stack.push_async_callback(registry.stop)
        renewals = Renewals(client, clock=SystemClock())
        stack.push_async_callback(renewals.stop)
        await renewals.start(registry.adapters())
        stack.push_async_callback(tasks.close)
        await _connect(redis, tasks)
        tasks.spawn(_push_metrics(link, metrics), name="metrics")
        books.start()
        prices = _prices(settings, registry, SystemClock())
        tasks.spawn(prices.follow_overrides(database, redis, lambda _: None), name="prices that were set")
        unsettled = Unsettled(Ledger(redis), find_known(database), clock=SystemClock())
        unsettled.start(redis.subscribe(SETTLED))
        stack.push_async_callback(unsettled.stop)
        poller = poller_of(settings, registry, client, database, redis, unsettled=unsettled, prices=prices)
        tasks.spawn(poller.poll_forever(), name="poll providers")
        surveyor = surveyor_of(settings, registry, client, database, redis, prices=prices)
        tasks.spawn(surveyor.survey_forever(), name="ask for models")
        link.report_ready()
        await stopping.wait()
        link.push(metrics.snapshot())


def poller_of(
    settings: Settings,
    registry: Registry,
    client: UpstreamClient,
    database: Database,
    redis: Redis,
    *,
    unsettled: Unsettled,
    prices: Prices | None = None,
) -> Poller:
    """What asks the providers of a started registry. Without `prices`, those of the configuration hold."""
    clock = SystemClock()
    prices = prices or _prices(settings, registry, clock)
    charging = Charging(
        Deferred(database),
        Ledger(redis),
        offers=prices.table,
        clock=clock,
        batch_permille=settings.batches.price_permille,
        second_copy=unsettled,
        own_fee_permille=settings.own_keys.fee_permille,
    )
    vault = Vault.of(settings.own_keys)

    async def find(account_id: int, provider: str, fingerprint: str) -> Provider | Literal["off"] | None:
        return await find_own(
            database, registry, vault, account_id=account_id, provider=provider, fingerprint=fingerprint
        )

    return Poller(
        charging,
        providers=registry.providers,
        client=client,
        clock=clock,
        settings=settings.batches,
        find_own=find,
        renewals=Renewals(client, clock=clock),
    )


def surveyor_of(
    settings: Settings,
    registry: Registry,
    client: UpstreamClient,
    database: Database,
    redis: Redis,
    *,
    prices: Prices,
) -> Surveyor:
    """What asks the providers of a started registry for their models."""
    return Surveyor(
        ListStore(database),
        MetricStore(database),
        providers=registry.providers,
        catalogue=prices.catalogue,
        catalogue_ids=prices.pricer.catalogue_ids(),
        client=client,
        redis=redis,
        clock=SystemClock(),
        settings=settings.catalogue,
    )


def _deps(
    settings: Settings,
    *,
    clock: Clock,
    registry: Registry,
    prices: Prices,
    metrics: MetricsRegistry,
    database: Database,
    redis: Redis,
    proxies: Mapping[str, str] | None,
) -> Deps:
    offers = prices.table()
    client = UpstreamClient(settings.upstream, proxies=proxies)
    router = Router.of(
        settings,
        offers,
        dialects={name: reach(each.served) for name, each in registry.providers.items()},
        keys={name: len(each.adapters) for name, each in registry.providers.items()},
        clock=clock,
    )
    telemetry = Telemetry(metrics, version=__version__)
    telemetry.know(providers=registry.providers, models=offers.listed())
    metrics.on_collect(partial(_show_health, router, telemetry, clock))
    metrics.on_collect(partial(_show_pool, database, telemetry))
    try:
        access_log = AccessLog(settings.log.access)
    except OSError as error:
        raise ConfigError(
            f"log.access: {settings.log.access!r} can't be written ({error.strerror}): make its directory, or give "
            "`-` for standard output",
            param="log.access",
        ) from error
    hot = Ledger(redis)
    journal = LocalJournal(
        Path(settings.server.data_dir) / JOURNAL_DIR, bytes_max=settings.money.local_journal_bytes_max
    )
    ledger = hot if settings.money.when_redis_is_away == "refuse" else _standby(hot, journal, settings, clock)
    keychains = Keychains(
        registry,
        Vault.of(settings.own_keys),
        health=router.health,
        renewals=Renewals(client, clock=clock),
        fee_permille=settings.own_keys.fee_permille,
    )
    unsettled = Unsettled(hot, find_known(database), clock=clock)
    metrics.on_collect(lambda: _level(telemetry.access_lines_dropped, access_log.dropped))
    metrics.on_collect(partial(_show_journal, journal, ledger, telemetry))
    metrics.on_collect(lambda: telemetry.holds_open.set((), deps.holds.open_count))
    deps = Deps(
        settings=settings,
        clock=clock,
        keys=KeyRing(
            settings.auth,
            pepper=load_pepper(settings),
            fetch=partial(find_key, database),
            clock=clock,
            plans={name: _limits(plan) for name, plan in settings.plans.items()},
            trusted=parse_networks(settings.server.trusted_proxies),
            priorities={name: PRIORITIES[plan.priority] for name, plan in settings.plans.items()},
            unlock=keychains.unlock,
        ),
        keychains=keychains,
        offers=offers,
        providers=registry.providers,
        router=router,
        client=client,
        ledger=ledger,
        journal=journal,
        unsettled=unsettled,
        holds=Holds(
            ledger,
            clock=clock,
            settle_seconds=telemetry.time_redis("settle"),
            journal=journal,
            second_copy=unsettled,
            lease_ms=round(settings.money.lease_s * 1000),
        ),
        loader=Loader(database, ledger),
        history=History(database, redis),
        telemetry=telemetry,
        admit_seconds=telemetry.time_redis("admit"),
        access_log=access_log,
        security=SecurityLog(clock, trusted=parse_networks(settings.server.trusted_proxies)),
        tasks=TaskGroup(),
        objects=Objects(database, redis, clock=clock, cache_size=settings.objects.cache_size),
        # Where Redis is away, a charge waits in PostgreSQL.
        charging=Charging(
            Deferred(database),
            hot,
            offers=lambda: deps.offers,
            clock=clock,
            batch_permille=settings.batches.price_permille,
            second_copy=unsettled,
            own_fee_permille=settings.own_keys.fee_permille,
        ),
        bodies=Bodies(settings.server.bodies_bytes_max),
        new_id=RequestIds(clock).make,
        hooks=Hooks.of(settings, metrics=metrics, clock=clock),
        marks=Marks(journal.directory),
        answers=_answers(settings.cache, metrics, telemetry),
    )
    return deps


def _show_health(router: Router, telemetry: Telemetry, clock: Clock) -> None:
    for provider, state in router.health.worst().items():
        telemetry.set_breaker(provider, state)
    for provider, out in router.health.keys_out(clock.monotonic()).items():
        telemetry.set_keys_out(provider, out)
    for provider, limit in router.health.limits().items():
        telemetry.set_limit(provider, limit)
    telemetry.in_flight_bound.set((), router.shedding.bound)
    telemetry.retries_refused[0] = router.budget.refused


def _show_pool(database: Database, telemetry: Telemetry) -> None:
    telemetry.set_pool(size=database.size, in_use=database.size - database.idle, waiting=database.waiting)


def _show_journal(journal: LocalJournal, ledger: Ledger | Standby, telemetry: Telemetry) -> None:
    telemetry.journal_bytes.set((), journal.size_bytes)
    _level(telemetry.ends_journaled, journal.written)
    if isinstance(ledger, Standby):
        _level(telemetry.admitted_locally, ledger.admitted)


def _limits(plan: Plan) -> Limits:
    return Limits(**{name: getattr(plan, name) for name in COUNTS})


def _standby(hot: Ledger, journal: LocalJournal, settings: Settings, clock: Clock) -> Standby:
    allowance_nanos = parse_usd(repr(settings.money.local_allowance_usd))
    return Standby(hot, journal=journal, clock=clock, allowance_nanos=allowance_nanos)


def _answers(cache: Cache, metrics: MetricsRegistry, telemetry: Telemetry) -> Answers | None:
    if cache.use == "never":
        return None
    answers = Answers(bytes_max=cache.bytes_max, ttl_s=cache.ttl_s)
    metrics.on_collect(lambda: telemetry.cache_bytes.set((), answers.size_bytes))
    return answers


def _close_journal(journal: LocalJournal) -> None:
    try:
        journal.close()
    except OSError as error:
        log.error("the local journal may not be on the disk: %s", error)  # noqa: TRY400  the text says it all


def _level(cell: Cell, value: int) -> None:
    cell[0] = value


async def _push_metrics(link: Link, metrics: MetricsRegistry) -> None:
    while True:
        link.push(metrics.snapshot())
        await asyncio.sleep(PUSH_S)


def _prices(settings: Settings, registry: Registry, clock: Clock) -> Prices:
    catalogue = Catalogue.open(Path(settings.server.data_dir))
    return Prices(settings, catalogue, {name: each.models for name, each in registry.providers.items()}, clock=clock)


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


async def _connect(redis: Redis, tasks: TaskGroup) -> None:
    """Connect now if Redis is there, else as soon as it is: a gateway starts without it and says so."""
    try:
        await redis.connect()
    except StoreUnavailable as error:
        log.warning("starting without Redis: %s", error.detail or error.message)
        tasks.spawn(_keep_connecting(redis), name="connect to redis")


async def _keep_connecting(redis: Redis) -> None:
    while True:
        await asyncio.sleep(CONNECT_RETRY_S)
        try:
            await redis.connect()
        except StoreUnavailable:
            continue
        return


async def _follow_keys(redis: Redis, keys: KeyRing) -> None:
    """Drop each key that changed somewhere; when notices may have been missed, trust none without asking."""
    async for message in redis.subscribe(CHANNEL):
        if message is None or message.data == EVERY_KEY:
            keys.doubt()
        else:
            keys.forget(message.data.decode("ascii", "replace"))
