"""Everything that the stages need to route: made once for each worker, from its configuration."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.exchange import Exchange, Offer
from gateway.infra.clock import Clock
from gateway.routing.breaker import BreakerRules
from gateway.routing.budget import BudgetRules, RetryBudget
from gateway.routing.choose import Chance
from gateway.routing.course import CourseRules
from gateway.routing.crowd import CrowdRules
from gateway.routing.health import Health
from gateway.routing.hedge import HedgeBudget, HedgeRules
from gateway.routing.holdback import Holdback
from gateway.routing.lessons import Lessons
from gateway.routing.menu import Menus
from gateway.routing.pinned import FreeMenus
from gateway.routing.shedding import Shedding, SheddingRules
from gateway.settings import Settings
from gateway.wire.dialects import Dialect


class Offers(Protocol):
    """Where the offers of a model are found."""

    def find(self, model: str) -> tuple[Offer, ...]: ...


@dataclass(slots=True)
class Router:
    """The parts of routing in one worker."""

    menus: Menus
    #: Of requests about objects alone.
    free: FreeMenus
    health: Health
    budget: RetryBudget
    lessons: Lessons
    hedges: HedgeBudget
    shedding: Shedding
    rules: CourseRules
    settings: Settings
    #: Gives numbers from 0 up to 1.
    chance: Chance
    #: Requests that are being asked of a second model.
    mirrors: int = 0

    @classmethod
    def of(
        cls,
        settings: Settings,
        offers: Offers,
        *,
        dialects: Mapping[str, frozenset[Dialect]],
        keys: Mapping[str, int],
        clock: Clock,
        chance: Chance | None = None,
    ) -> "Router":
        """`dialects` says what each provider speaks, `keys` how many keys it has."""
        retries, breaker = settings.routing.retries, settings.routing.breaker
        concurrency = settings.routing.concurrency
        health = Health(
            BreakerRules(
                requests_min=breaker.requests_min,
                failure_percent=breaker.failure_percent,
                window_s=breaker.window_s,
                rest_s=breaker.rest_s,
            ),
            CrowdRules(
                adaptive=concurrency.adaptive,
                least=concurrency.least,
                most=settings.upstream.connections_max,
                tolerance=concurrency.tolerance,
                slow_s=concurrency.slow_s,
                wait_s=concurrency.wait_s,
                waiting_max=concurrency.waiting_max,
            ),
        )
        for provider, count in keys.items():
            health.know(provider, keys=count)
        return cls(
            free=FreeMenus(health),
            menus=Menus(find=offers.find, dialects=dialects, models=settings.models, health=health),
            health=health,
            budget=RetryBudget(
                BudgetRules(share=retries.share, floor_per_s=retries.floor_per_s, burst=retries.burst),
                now_s=clock.monotonic(),
            ),
            lessons=Lessons(),
            hedges=HedgeBudget(
                HedgeRules(share=settings.routing.hedging.percent_max / 100, least_s=settings.routing.hedging.least_s)
            ),
            shedding=Shedding(
                SheddingRules(lag_s=settings.overload.lag_s, requests_max=settings.overload.requests_max)
            ),
            rules=CourseRules(
                attempts_max=retries.attempts_max,
                repeats=retries.repeats,
                deadline_s=retries.deadline_s,
                backoff_s=retries.backoff_s,
                backoff_most_s=retries.backoff_most_s,
                refused_s=settings.routing.key_refused_s,
                throttled_s=settings.routing.key_throttled_s,
            ),
            settings=settings,
            chance=chance or random.Random().random,
        )

    def holdback(self, x: Exchange) -> Holdback:
        """What judges the beginning of an answer to this request."""
        bounds = self.settings.routing.holdback
        return Holdback(
            x.target.dialect, events_max=bounds.events_max, bytes_max=bounds.bytes_max, wait_s=bounds.wait_s
        )
