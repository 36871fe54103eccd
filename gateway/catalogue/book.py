"""The catalogue that people read: what each configured provider has, as its own list says.

Kept in the process, and read anew when a list has another digest; asked at most every `FRESH_S`.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from gateway.catalogue.listing import ListedModel
from gateway.catalogue.lists import ListStore
from gateway.infra.clock import Clock

FRESH_S: Final = 5.0

Listed = Mapping[str, tuple[ListedModel, ...]]


class Book:
    """All lists, by the configuration's names of providers."""

    def __init__(self, store: ListStore, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._digests: dict[str, bytes] = {}
        self._lists: dict[str, tuple[ListedModel, ...]] = {}
        self._fresh_until_s = float("-inf")
        self._reading = asyncio.Lock()

    async def lists(self) -> Listed:
        """What is listed now.

        Raises:
            StoreUnavailable: and nothing was read before.
        """
        if self._clock.monotonic() < self._fresh_until_s:
            return self._lists
        async with self._reading:
            if self._clock.monotonic() >= self._fresh_until_s:
                await self._read()
        return self._lists

    async def _read(self) -> None:
        digests = await self._store.digests()
        lists = {
            provider: self._lists[provider]
            if self._digests.get(provider) == digest
            else await self._store.read(provider)
            for provider, digest in digests.items()
        }
        self._digests, self._lists = digests, lists
        self._fresh_until_s = self._clock.monotonic() + FRESH_S
