"""The process that keeps the books, apart from those that serve, so that it takes no time from them.

It settles, reconciles and sweeps, asks providers what has become of what they work on, and for their models.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal

from gateway import __version__
from gateway.assembly import connect, prices_of, push_metrics, show_pool
from gateway.catalogue.lists import ListStore
from gateway.catalogue.metrics import MetricStore
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.link import Link
from gateway.infra.metrics import Registry as MetricsRegistry
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.infra.tasks import TaskGroup
from gateway.kernel.bookkeeping import Bookkeeping
from gateway.kernel.charging import Charging
from gateway.kernel.ledger import Ledger
from gateway.kernel.objects import Deferred
from gateway.kernel.settler import CHANNEL as SETTLED
from gateway.kernel.unsettled import Unsettled, find_known
from gateway.kernel.vault import Vault
from gateway.keychains import find_own
from gateway.poller import Poller
from gateway.registry import Provider, Registry
from gateway.repricing import Prices
from gateway.settings import Settings
from gateway.surveyor import Surveyor
from gateway.telemetry import Telemetry
from gateway.upstream.client import UpstreamClient
from gateway.upstream.renewal import Renewals

#: The ledger's own connections; its batches may take longer than a caller would wait.
BOOKS_POOL_SIZE: Final = 4
BOOKS_TIMEOUT_S: Final = 15.0


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
        metrics.on_collect(partial(show_pool, database, telemetry))
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
        await connect(redis, tasks)
        tasks.spawn(push_metrics(link, metrics), name="metrics")
        books.start()
        prices = prices_of(settings, registry, SystemClock())
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
    prices = prices or prices_of(settings, registry, clock)
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
