"""What handlers work with: made once for each worker by `gateway/app.py`, handed in with each call."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Self

import httpx2

from gateway.catalogue.book import Book
from gateway.catalogue.lists import ListStore
from gateway.catalogue.metrics import MetricStore
from gateway.control.issuers import Issuers
from gateway.control.mail import Mail
from gateway.control.passwords import Passwords
from gateway.control.pings import Pings
from gateway.control.session import Sessions
from gateway.control.shelf import Shelf
from gateway.control.throttle import Throttle
from gateway.control.today import Today
from gateway.control.traffic import Observer
from gateway.control.trials import Trials
from gateway.deps import Deps
from gateway.infra.clock import Clock
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.infra.tasks import TaskGroup
from gateway.kernel.key_store import load_pepper
from gateway.readiness import Readiness
from gateway.repricing import Prices
from gateway.settings import Settings
from gateway.status import FleetFacts

CLIENT_TIMEOUT_S: Final = 5.0
CLIENT_CONNECTIONS_MAX: Final = 20
#: Addresses to listen at that are none to ask for, and what to ask for there.
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  compared, not listened at


def find_url(settings: Settings) -> str:
    """Where people reach the control plane: what `control.url` says. In development without one it is this machine,
    on which the letters are as well.
    """
    server = settings.server
    if settings.control.url or not (server.development and server.port):
        return settings.control.url
    host = _ANYWHERE.get(server.host, server.host)
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"


@dataclass(slots=True, kw_only=True)
class Parts:
    """The parts of one worker's control plane."""

    settings: Settings
    #: Where people reach this plane; empty where nobody said.
    url: str
    clock: Clock
    #: A pool of its own, so that no slow statement here keeps a key or a balance of the data plane waiting.
    database: Database
    redis: Redis
    #: Keys are hashed under it; the secrets of sessions and cursors are derived from it.
    pepper: bytes
    #: The data plane's parts in this process, to look at: offers, router, limits, loader.
    deps: Deps
    #: Work that outlives its request.
    tasks: TaskGroup
    sessions: Sessions
    passwords: Passwords
    throttle: Throttle
    issuers: Issuers
    mail: Mail
    #: For everything outside: issuers, payment providers, webhooks. Follows no redirects.
    client: httpx2.AsyncClient
    new_id: Callable[[], str]
    readiness: Readiness
    pings: Pings
    observer: Observer
    #: Who asked for how much today, of all accounts.
    today: Today
    #: What became of trials.
    trials: Trials
    #: What offers of this process cost.
    prices: Prices
    #: The models that can be called, and what Hugging Face says of them.
    shelf: Shelf
    metrics: MetricStore
    #: What the processes of this host say of themselves.
    facts: Callable[[], Awaitable[FleetFacts]]

    @classmethod
    def of(
        cls,
        settings: Settings,
        deps: Deps,
        *,
        database: Database,
        redis: Redis,
        readiness: Readiness,
        prices: Prices,
        facts: Callable[[], Awaitable[FleetFacts]],
    ) -> Self:
        """The parts that go with the data plane's."""
        pepper = load_pepper(settings)
        client = httpx2.AsyncClient(
            timeout=CLIENT_TIMEOUT_S,
            follow_redirects=False,
            trust_env=False,
            verify=deps.client.tls,
            limits=httpx2.Limits(max_connections=CLIENT_CONNECTIONS_MAX, max_keepalive_connections=4),
        )
        tasks = TaskGroup()
        url = find_url(settings)
        return cls(
            settings=settings,
            url=url,
            clock=deps.clock,
            database=database,
            redis=redis,
            pepper=pepper,
            deps=deps,
            tasks=tasks,
            sessions=Sessions(database, pepper=pepper, clock=deps.clock, url=url),
            passwords=Passwords(at_once=settings.identity.hashes_at_once),
            throttle=Throttle(redis),
            issuers=Issuers(settings.issuers, client=client, clock=deps.clock),
            mail=Mail(settings.mail, development=settings.server.development, clock=deps.clock),
            client=client,
            new_id=deps.new_id,
            readiness=readiness,
            pings=Pings(database, tasks),
            observer=Observer(database, clock=deps.clock),
            today=Today(database, clock=deps.clock),
            trials=Trials(database, clock=deps.clock),
            prices=prices,
            shelf=Shelf(Book(ListStore(database), clock=deps.clock), deps, settings),
            metrics=MetricStore(database),
            facts=facts,
        )
