"""What the catalogue knows of one model, and which of its prices holds at a moment.

Rules:
- Prices are rows in order, and the last one that holds at the moment counts; if none does, the first.
- Dates begin at midnight UTC. A daily window is `[starts, ends)` in seconds of the UTC day, and may pass midnight;
  `days` are ISO weekdays (Monday is 1) of that UTC day.

Where the rows come from is decided in `build`; nothing here rounds, guesses or looks anything up.
"""

from typing import Final

import msgspec

from gateway.catalogue.match import Clause
from gateway.kernel.money import Price

DAY_S: Final = 86_400


class Window(msgspec.Struct, frozen=True, array_like=True):
    """A time of day, on some days of the week or on all."""

    starts_s: int
    ends_s: int
    days: tuple[int, ...] = ()

    def holds(self, at: float) -> bool:
        day, second = divmod(at, DAY_S)
        # The epoch was a Thursday.
        if self.days and int(day + 3) % 7 + 1 not in self.days:
            return False
        if self.ends_s < self.starts_s:
            return second >= self.starts_s or second < self.ends_s
        return self.starts_s <= second < self.ends_s

    def next_edge(self, at: float) -> float:
        """When this may begin or end to hold next, after `at`: its ends, and midnight where days count."""
        midnight = at // DAY_S * DAY_S
        edges = [midnight + self.starts_s, midnight + self.ends_s, *([midnight] if self.days else [])]
        return min(edge if edge > at else edge + DAY_S for edge in edges)


class DatedPrice(msgspec.Struct, frozen=True, omit_defaults=True):
    """A price, and when it holds. `price` is None where the model could not be priced then."""

    price: Price | None = None
    #: Seconds since the Unix epoch; 0 is always.
    since_s: int = 0
    window: Window | None = None

    def holds(self, at: float) -> bool:
        return at >= self.since_s and (self.window is None or self.window.holds(at))


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model at a provider."""

    id: str
    match: Clause
    prices: tuple[DatedPrice, ...] = ()
    #: What the model takes in, and gives out, at the most.
    context_tokens: int | None = None
    output_tokens_max: int | None = None
    #: What the provider charges for and no usage report here counts: it costs what its plain kind costs, or nothing.
    left_out: tuple[str, ...] = ()
    #: Why these prices are not used, where they are not.
    refused: str = ""

    def price(self, at: float) -> Price | None:
        """The price at a moment in seconds since the epoch, whether or not it is refused."""
        for row in reversed(self.prices):
            if row.holds(at):
                return row.price
        return self.prices[0].price if self.prices else None

    def next_change(self, at: float) -> float | None:
        """The price stays what it is until this moment; None: for ever."""
        edges = [float(row.since_s) for row in self.prices if row.since_s > at]
        edges += [row.window.next_edge(at) for row in self.prices if row.window is not None]
        return min(edges, default=None)


class ProviderCards(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The models of one provider, in the order in which their clauses are tried."""

    cards: tuple[ModelCard, ...]
    #: Providers whose models this one resells, asked in order for what is not among `cards`.
    resells: tuple[str, ...] = ()
