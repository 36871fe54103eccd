"""Makes the parts that processes are put together from: what a worker's stages find in their `Deps`, and what workers
and books set up alike. Nothing is opened and nothing runs before `app.py` or `books.py` starts it.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from gateway import __version__
from gateway.bodies import Bodies
from gateway.bridges import reach
from gateway.catalogue.prices import Catalogue
from gateway.deps import Deps
from gateway.errors import ConfigError, StoreUnavailable
from gateway.hooks import Hooks
from gateway.infra.clock import Clock
from gateway.infra.link import Link
from gateway.infra.logs import AccessLog
from gateway.infra.metrics import Cell
from gateway.infra.metrics import Registry as MetricsRegistry
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.infra.tasks import TaskGroup
from gateway.kernel.answers import Answers
from gateway.kernel.charging import Charging
from gateway.kernel.history import History
from gateway.kernel.holds import Holds
from gateway.kernel.key_store import find_key, load_pepper
from gateway.kernel.keys import KeyRing
from gateway.kernel.ledger import Ledger
from gateway.kernel.limits import COUNTS, Limits
from gateway.kernel.loader import Loader
from gateway.kernel.local_journal import LocalJournal
from gateway.kernel.marks import Marks
from gateway.kernel.money import parse_usd
from gateway.kernel.objects import Deferred, Objects
from gateway.kernel.request_id import RequestIds
from gateway.kernel.security import SecurityLog
from gateway.kernel.standby import Standby
from gateway.kernel.unsettled import Unsettled, find_known
from gateway.kernel.vault import Vault
from gateway.keychains import Keychains
from gateway.registry import Registry
from gateway.repricing import Prices
from gateway.routing.crowd import PRIORITIES
from gateway.routing.router import Router
from gateway.settings import Cache, Plan, Settings
from gateway.telemetry import Telemetry
from gateway.upstream.client import UpstreamClient
from gateway.upstream.renewal import Renewals
from gateway.wire.client_address import parse_networks

log = logging.getLogger(__name__)

CONNECT_RETRY_S: Final = 1.0
#: Of the data directory: what Redis could not be told yet.
JOURNAL_DIR: Final = "journal"
#: How often a worker hands its counts to the supervisor.
PUSH_S: Final = 1.0


def deps_of(
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
    metrics.on_collect(partial(show_pool, database, telemetry))
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


def prices_of(settings: Settings, registry: Registry, clock: Clock) -> Prices:
    catalogue = Catalogue.open(Path(settings.server.data_dir))
    return Prices(settings, catalogue, {name: each.models for name, each in registry.providers.items()}, clock=clock)


async def connect(redis: Redis, tasks: TaskGroup) -> None:
    """Connect now if Redis is there, else as soon as it is: a gateway starts without it and says so."""
    try:
        await redis.connect()
    except StoreUnavailable as error:
        log.warning("starting without Redis: %s", error.detail or error.message)
        tasks.spawn(_keep_connecting(redis), name="connect to redis")


async def push_metrics(link: Link, metrics: MetricsRegistry) -> None:
    while True:
        link.push(metrics.snapshot())
        await asyncio.sleep(PUSH_S)


def show_pool(database: Database, telemetry: Telemetry) -> None:
    telemetry.set_pool(size=database.size, in_use=database.size - database.idle, waiting=database.waiting)


async def _keep_connecting(redis: Redis) -> None:
    while True:
        await asyncio.sleep(CONNECT_RETRY_S)
        try:
            await redis.connect()
        except StoreUnavailable:
            continue
        return


def _show_health(router: Router, telemetry: Telemetry, clock: Clock) -> None:
    for provider, state in router.health.worst().items():
        telemetry.set_breaker(provider, state)
    for provider, out in router.health.keys_out(clock.monotonic()).items():
        telemetry.set_keys_out(provider, out)
    for provider, limit in router.health.limits().items():
        telemetry.set_limit(provider, limit)
    telemetry.in_flight_bound.set((), router.shedding.bound)
    telemetry.retries_refused[0] = router.budget.refused


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


def _level(cell: Cell, value: int) -> None:
    cell[0] = value
