"""What handlers work with: made once for each worker by `gateway/app.py`, handed in with each call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from gateway.control.session import Sessions
from gateway.deps import Deps
from gateway.infra.clock import Clock
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.infra.tasks import TaskGroup
from gateway.kernel.key_store import load_pepper
from gateway.settings import Settings


@dataclass(slots=True, kw_only=True)
class Parts:
    """The parts of one worker's control plane."""

    settings: Settings
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
    new_id: Callable[[], str]

    @classmethod
    def of(cls, settings: Settings, deps: Deps, *, database: Database, redis: Redis) -> Self:
        """The parts that go with the data plane's."""
        pepper = load_pepper(settings)
        return cls(
            settings=settings,
            clock=deps.clock,
            database=database,
            redis=redis,
            pepper=pepper,
            deps=deps,
            tasks=TaskGroup(),
            sessions=Sessions(database, pepper=pepper, clock=deps.clock, url=settings.control.url),
            new_id=deps.new_id,
        )
