"""Looks models up in the catalogue: what a provider asks for a model at a moment, and how much the model takes.

Rules:
- A name means what the catalogue's own clauses say. Only a name that they don't know is tried in other spellings: a
  compact date written out, the id of an entry, without the provider before it, without a date or `-latest` after it.
- Providers here are the catalogue's ids; `rows.catalogue_id` says which of them a configured provider is.
- A refused price is no price.
- Names come from callers, so what is remembered of them is bounded.
"""

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Final, Self

import msgspec

from gateway.catalogue.card import ModelCard, ProviderCards
from gateway.catalogue.match import NAME_LENGTH_MAX, Index
from gateway.catalogue.snapshot import Snapshot, open_snapshot
from gateway.kernel.money import Price

#: How many names, each at a provider, are remembered with what they mean.
REMEMBERED_MAX: Final = 4096

_COMPACT_DATE: Final = re.compile(r"-(20\d\d)(\d\d)(\d\d)(?=-|:|$)")
_LAST_WORD: Final = re.compile(r"(?:[-@]20\d{6}|-20\d\d-\d\d-\d\d|-latest|@(?:latest|default))$")
_NO_CARDS: Final = ProviderCards(cards=())


class Catalogue:
    """The cards of all providers."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._providers: dict[str, tuple[ProviderCards, Index]] = {}
        self._remembered: dict[tuple[str, str], ModelCard | None] = {}

    @classmethod
    def open(cls, data_dir: str | Path, *, keep: bool = True) -> Self:
        """The catalogue kept in a data directory, made first if need be, and then kept there if `keep`.

        Raises:
            ConfigError: it could not be made or kept.
        """
        return cls(open_snapshot(data_dir, keep=keep))

    def knows(self, provider: str) -> bool:
        """Whether there is a provider of that id."""
        return provider in self._snapshot.providers

    def cards(self, provider: str) -> tuple[ModelCard, ...]:
        """All models of a provider, refused ones too."""
        return self._open(provider)[0].cards

    def resold(self, provider: str) -> tuple[str, ...]:
        """The providers whose models this one sells besides its own."""
        return self._open(provider)[0].resells

    def card(self, provider: str, model: str) -> ModelCard | None:
        """What is known of the model that a provider calls `model`."""
        key = (provider, model)
        try:
            return self._remembered[key]
        except KeyError:
            pass
        found = None if len(model) > NAME_LENGTH_MAX else self._find(provider, model.lower())
        if len(self._remembered) >= REMEMBERED_MAX:
            self._remembered.clear()
        if len(model) <= NAME_LENGTH_MAX:
            self._remembered[key] = found
        return found

    def price(self, provider: str, model: str, *, at: float) -> Price | None:
        """What the provider asks for the model at a moment, in seconds since the epoch; None if nobody knows."""
        card = self.card(provider, model)
        return None if card is None or card.refused else card.price(at)

    def next_change(self, provider: str, model: str, *, at: float) -> float | None:
        """`price` stays what it is from `at` until this moment at least; None: for ever."""
        card = self.card(provider, model)
        return None if card is None else card.next_change(at)

    def _open(self, provider: str) -> tuple[ProviderCards, Index]:
        if provider not in self._snapshot.providers:
            return _NO_CARDS, Index(())
        if provider not in self._providers:
            cards = self._snapshot.cards(provider) or _NO_CARDS
            self._providers[provider] = (cards, Index((card.id, card.match) for card in cards.cards))
        return self._providers[provider]

    def _find(self, provider: str, name: str) -> ModelCard | None:
        for spelling in _spellings(provider, name):
            if found := self._find_exactly(provider, spelling):
                return found
            for other in self._open(provider)[0].resells:
                if found := self._find_exactly(other, spelling):
                    return _as_resold(found)
        return None

    def _find_exactly(self, provider: str, name: str) -> ModelCard | None:
        cards, index = self._open(provider)
        number = index.find(name)
        if number is None:
            number = index.find_id(name)
        return None if number is None else cards.cards[number]


def _spellings(provider: str, name: str) -> Iterator[str]:
    """`name` and what else may stand for it, the most exact first."""
    yield name
    dashed = _COMPACT_DATE.sub(_dash, name)
    if dashed != name:
        yield dashed
    for prefix in ("models/", f"{provider}/"):
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            yield name
    shorter = _LAST_WORD.sub("", name)
    if shorter not in (name, ""):
        yield shorter


def _dash(found: re.Match[str]) -> str:
    try:
        return f"-{date(int(found[1]), int(found[2]), int(found[3])).isoformat()}"
    except ValueError:
        return found[0]


def _as_resold(card: ModelCard) -> ModelCard:
    """The card of a model that somebody else sells, who need not have the service tiers of its maker."""
    prices = tuple(
        row if row.price is None else msgspec.structs.replace(row, price=_plain(row.price)) for row in card.prices
    )
    return msgspec.structs.replace(card, prices=prices)


def _plain(price: Price) -> Price:
    return msgspec.structs.replace(price, service_prices={})
