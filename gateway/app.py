"""The composition root: opens what a worker needs and puts the planes together. The only module that knows all parts.

`create_app` builds an ASGI application; everything in it with a life of its own starts in its lifespan, in the order
of need, and stops in the reverse one.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial

from starlette.routing import Route

from gateway import __version__
from gateway.dataplane import V1, DataPlane, Health, Metrics
from gateway.deps import Deps
from gateway.infra.clock import Clock, SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.exposition import merge, render
from gateway.infra.logs import AccessLog
from gateway.infra.metrics import Registry as MetricsRegistry
from gateway.infra.postgres import Database
from gateway.infra.process import collect_process, measure_loop_lag
from gateway.infra.redis import Redis, subscribe
from gateway.infra.tasks import TaskGroup
from gateway.kernel.key_store import find_key, load_pepper
from gateway.kernel.keys import CHANNEL, KeyRing
from gateway.kernel.offers import OfferTable
from gateway.kernel.request_id import RequestIds
from gateway.registry import Registry
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.upstream.client import UpstreamClient

log = logging.getLogger(__name__)

#: Gives the text of `/metrics`, for all workers together.
Render = Callable[[], Awaitable[bytes]]


def create_app(
    settings: Settings,
    stores: Stores,
    *,
    metrics: MetricsRegistry,
    render_metrics: Render | None = None,
    proxies: Mapping[str, str] | None = None,
    clock: Clock | None = None,
) -> DataPlane:
    """The application of one worker.

    `render_metrics` asks whoever adds the workers up; without one, `/metrics` shows this process alone. `proxies` is
    the environment that proxy variables are read from.

    Raises:
        ConfigError: an adapter, a file or a proxy named by the configuration can't be used.
    """
    clock = clock or SystemClock()
    registry = Registry.load(settings)
    telemetry = Telemetry(metrics, version=__version__)
    collect_process(metrics, clock)
    database = Database(stores.database_dsn, pool_size=settings.database.pool_size, timeout_s=settings.database.timeout_s)
    offers = OfferTable.of(settings, {name: provider.models for name, provider in registry.providers.items()})
    telemetry.know(providers=registry.providers, models=offers.listed())
    deps = Deps(
        settings=settings,
        clock=clock,
        keys=KeyRing(settings.auth, pepper=load_pepper(settings), fetch=partial(find_key, database), clock=clock),
        offers=offers,
        providers=registry.providers,
        client=UpstreamClient(settings.upstream, proxies=proxies),
        telemetry=telemetry,
        access_log=AccessLog(settings.log.access),
        tasks=TaskGroup(),
        new_id=RequestIds(clock).make,
    )
    loop_lag = measure_loop_lag(metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: DataPlane) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(deps.access_log.close)
            stack.push_async_callback(database.close)
            redis = Redis(stores.redis_url, timeout_s=settings.redis.timeout_s)
            stack.push_async_callback(redis.close)
            await redis.connect()
            stack.push_async_callback(deps.client.close)
            await registry.start()
            stack.push_async_callback(registry.stop)
            stack.push_async_callback(deps.tasks.close)
            deps.tasks.spawn(_follow_keys(stores.redis_url, deps.keys), name="key notices")
            loop_lag.start()
            stack.callback(loop_lag.stop)
            yield

    async def render_alone() -> bytes:
        return render(merge([metrics.snapshot()]))

    v1 = V1(deps)
    health = Health()
    routes = [Route(path, health, methods=["GET", "HEAD"]) for path in ("/health", "/healthz", "/")]
    if settings.metrics.enabled:
        token = settings.metrics.token
        endpoint = Metrics(render_metrics or render_alone, token=None if token is None else token.reveal().encode())
        routes.append(Route("/metrics", endpoint, methods=["GET"]))
    return DataPlane(v1, routes, lifespan=lifespan)


async def _follow_keys(redis_url: str, keys: KeyRing) -> None:
    """Drop each key that changed somewhere; when notices may have been missed, trust none without asking."""
    async for message in subscribe(redis_url, CHANNEL):
        if message is None:
            keys.doubt()
        else:
            keys.forget(message.decode("ascii", "replace"))
