"""What the offers of this process cost, kept up to date: by the clock, by what administrators set, and by what
providers say of their models.

Rules:
- A table of offers is made anew when a price changes by its date or its hour, and when `overrides.CHANNEL` says that
  something was set, or that a provider's list changed; it then takes the place of the old one at once and as a whole.
- What is set counts from the first request on: it is read before the process serves, and again whenever notices may
  have been missed. Where the database does not answer, the prices known last hold, and it is asked again.
- Prices that could not be used (the configuration changed under them) are passed over, model by model, and logged.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from gateway.catalogue.lists import Lists, read_lists
from gateway.catalogue.overrides import CHANNEL, Override, pricer_with, read_overrides
from gateway.catalogue.prices import Catalogue
from gateway.catalogue.rows import Pricer
from gateway.errors import ConfigError, StoreUnavailable
from gateway.infra.clock import Clock
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.offers import Known, OfferTable
from gateway.settings import Settings

log = logging.getLogger(__name__)

#: How long a change of prices may go unnoticed, where a clock was set.
REPRICE_S: Final = 60.0
RETRY_S: Final = 1.0


class Prices:
    """Of one process. `put` in the calls below is told each new table."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, models: Mapping[str, Iterable[str]], *, clock: Clock
    ) -> None:
        """`models` are those that each provider in use lists.

        Raises:
            ConfigError: the configuration has a price that can't be meant.
        """
        self._settings = settings
        self._models = models
        self._clock = clock
        self.catalogue = catalogue
        self.overrides: Mapping[str, Override] = {}
        self.lists = Lists()
        self.pricer = pricer_with(settings, catalogue, {})

    def table(self) -> OfferTable:
        """The offers at the prices of this moment."""
        price = partial(self.pricer.price, at=self._clock.now())
        return OfferTable.of(self._settings, self._models, price=price, know=self._know, listing=self.lists.names)

    async def read(self, database: Database) -> None:
        """Take what administrators have set, and what providers say.

        Raises:
            StoreUnavailable
        """
        found, lists = await read_overrides(database), await read_lists(database)
        if found != self.overrides or lists != self.lists:
            self.lists = lists
            self.pricer = self._price(found)
            self.overrides = found

    async def follow_overrides(self, database: Database, redis: Redis, put: Callable[[OfferTable], None]) -> None:
        """Read again whenever something was set."""
        async for message in redis.subscribe(CHANNEL):
            before = self.pricer
            while True:
                try:
                    await self.read(database)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(RETRY_S)
            # Whoever tells us wants a new table, whatever changed.
            if self.pricer is not before or message is not None:
                put(self.table())

    async def follow_clock(self, put: Callable[[OfferTable], None]) -> None:
        """Put a new table in place when a price changes by its date or its hour."""
        while True:
            now_s = self._clock.now()
            change_s = self.pricer.next_change(now_s)
            await asyncio.sleep(REPRICE_S if change_s is None else min(REPRICE_S, max(0.0, change_s - now_s)))
            if change_s is not None and self._clock.now() >= change_s:
                put(self.table())

    def _price(self, overrides: Mapping[str, Override]) -> Pricer:
        try:
            return pricer_with(self._settings, self.catalogue, overrides, self.lists)
        except ConfigError:
            pass
        usable = {}
        for model, override in overrides.items():
            try:
                pricer_with(self._settings, self.catalogue, {model: override})
                usable[model] = override
            except ConfigError as error:
                log.error("the price set for %s is not used: %s", model, error.message)  # noqa: TRY400  that says it
        return pricer_with(self._settings, self.catalogue, usable, self.lists)

    def _know(self, provider: str, model: str, upstream_model: str) -> Known:
        sizes = self.pricer.sizes(provider, model, upstream_model)
        return Known(sizes.context_tokens, self.pricer.lacks(provider, upstream_model), sizes.output_tokens_max)
