"""The composition root: opens what a worker needs and puts the planes together. The only module that knows all parts.

`create_app` builds an ASGI application; everything in it with a life of its own starts in its lifespan, in the order
of need, and stops in the reverse one.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Final

from starlette.routing import Route

from gateway import __version__
from gateway.dataplane import V1, DataPlane, Health, Metrics
from gateway.deps import Deps
from gateway.infra.clock import Clock, SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.exposition import merge, render
from gateway.infra.link import METRICS, Link
from gateway.infra.logs import AccessLog
from gateway.infra.metrics import Cell
from gateway.infra.metrics import Registry as MetricsRegistry
from gateway.infra.postgres import Database
from gateway.infra.process import collect_process, measure_loop_lag
from gateway.infra.redis import subscribe
from gateway.infra.tasks import TaskGroup
from gateway.kernel.key_store import find_key, load_pepper
from gateway.kernel.keys import CHANNEL, KeyRing
from gateway.kernel.offers import OfferTable
from gateway.kernel.request_id import RequestIds
from gateway.registry import Registry
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.upstream.client import UpstreamClient

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
    deps = _deps(settings, clock=clock, registry=registry, metrics=metrics, database=database, proxies=proxies)
    health = Health()

    @contextlib.asynccontextmanager
    async def lifespan(_: DataPlane) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(deps.access_log.close)
            stack.push_async_callback(database.close)
            stack.push_async_callback(deps.client.close)
            await registry.start()
            stack.push_async_callback(registry.stop)
            stack.push_async_callback(deps.tasks.close)
            deps.tasks.spawn(_follow_keys(stores.redis_url, deps.keys), name="key notices")
            loop_lag.start()
            stack.callback(loop_lag.stop)
            if link is not None:
                deps.tasks.spawn(_push_metrics(link, metrics), name="metrics")
            yield

    async def render_all() -> bytes:
        return render(merge([metrics.snapshot()])) if link is None else await link.ask(METRICS)

    routes = [Route(path, health, methods=["GET", "HEAD"]) for path in ("/health", "/healthz", "/")]
    if settings.metrics.enabled:
        token = settings.metrics.token
        endpoint = Metrics(render_all, token=None if token is None else token.reveal().encode())
        routes.append(Route("/metrics", endpoint, methods=["GET"]))
    return DataPlane(V1(deps), routes, lifespan=lifespan)


def _deps(
    settings: Settings,
    *,
    clock: Clock,
    registry: Registry,
    metrics: MetricsRegistry,
    database: Database,
    proxies: Mapping[str, str] | None,
) -> Deps:
    offers = OfferTable.of(settings, {name: provider.models for name, provider in registry.providers.items()})
    telemetry = Telemetry(metrics, version=__version__)
    telemetry.know(providers=registry.providers, models=offers.listed())
    access_log = AccessLog(settings.log.access)
    metrics.on_collect(lambda: _level(telemetry.access_lines_dropped, access_log.dropped))
    return Deps(
        settings=settings,
        clock=clock,
        keys=KeyRing(settings.auth, pepper=load_pepper(settings), fetch=partial(find_key, database), clock=clock),
        offers=offers,
        providers=registry.providers,
        client=UpstreamClient(settings.upstream, proxies=proxies),
        telemetry=telemetry,
        access_log=access_log,
        tasks=TaskGroup(),
        new_id=RequestIds(clock).make,
    )


def _level(cell: Cell, value: int) -> None:
    cell[0] = value


async def _push_metrics(link: Link, metrics: MetricsRegistry) -> None:
    while True:
        link.push(metrics.snapshot())
        await asyncio.sleep(PUSH_S)


async def _follow_keys(redis_url: str, keys: KeyRing) -> None:
    """Drop each key that changed somewhere; when notices may have been missed, trust none without asking."""
    async for message in subscribe(redis_url, CHANNEL):
        if message is None:
            keys.doubt()
        else:
            keys.forget(message.decode("ascii", "replace"))
