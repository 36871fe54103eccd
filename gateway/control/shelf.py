"""Every model that can be called here by name, in the order in which the configuration names providers.

A model is what a provider's table lists, or what the provider says that it has where the table takes any such name
(`*`). One that several providers have stands here once, by its name in lower case; the first of them describes it.

Made anew only when a list or the configuration's offers changed: with some thousands of models it takes a while.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.catalogue.book import Book
from gateway.catalogue.listing import ListedModel
from gateway.deps import Deps
from gateway.kernel.offers import OfferTable
from gateway.settings import Settings

#: Between two of these, others get a turn at the event loop.
_MODELS_AT_ONCE: Final = 500


class Place(msgspec.Struct, frozen=True):
    """A model at one provider."""

    provider: str
    upstream_model: str
    listed: ListedModel | None


class Entry(msgspec.Struct, frozen=True):
    """A model, by the name that callers use."""

    model: str
    places: tuple[Place, ...]

    @property
    def maker(self) -> str:
        """How its name begins; the provider's name where it has no such beginning."""
        maker, slash, _ = self.model.partition("/")
        return maker if slash else self.places[0].provider

    @property
    def listed(self) -> ListedModel | None:
        """What the first provider that says anything says of it."""
        return next((place.listed for place in self.places if place.listed is not None), None)


class Shelf:
    """The entries of this process."""

    def __init__(self, book: Book, deps: Deps, settings: Settings) -> None:
        self._book = book
        self._deps = deps
        self._settings = settings
        self._made_of: tuple[object, OfferTable] | None = None
        self._entries: tuple[Entry, ...] = ()
        self._making = asyncio.Lock()

    async def entries(self) -> tuple[Entry, ...]:
        """All of them.

        Raises:
            StoreUnavailable: the lists were never read.
        """
        lists, offers = await self._book.lists(), self._deps.offers
        async with self._making:
            if self._made_of is None or self._made_of[0] is not lists or self._made_of[1] is not offers:
                self._entries = await self._make(lists, offers)
                self._made_of = (lists, offers)
        return self._entries

    async def _make(self, lists: Mapping[str, tuple[ListedModel, ...]], offers: OfferTable) -> tuple[Entry, ...]:
        found: dict[str, tuple[str, list[Place]]] = {}
        for name, provider in self._deps.providers.items():
            listed = {model.id: model for model in lists.get(name, ())}
            exact = [model for model in provider.models if not model.endswith("*")]
            for model in exact:
                row = self._settings.models.get(model)
                upstream = model if row is None else row.upstream.get(name, model)
                _add(found, model, Place(name, upstream, listed.get(upstream)))
            starts = tuple(model[:-1] for model in provider.models if model.endswith("*"))
            for number, model_id in enumerate(listed):
                if number % _MODELS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                # A name that some table lists is not for those that take any.
                if starts and model_id.startswith(starts) and not offers.is_listed(model_id):
                    _add(found, model_id, Place(name, model_id, listed[model_id]))
        return tuple(Entry(model, tuple(places)) for model, places in found.values())


def _add(found: dict[str, tuple[str, list[Place]]], model: str, place: Place) -> None:
    found.setdefault(model.lower(), (model, []))[1].append(place)
