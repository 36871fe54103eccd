"""Is a price plausible? A price a thousand times its neighbours' is a slip in somebody's units, not a price.

Rules:
- The neighbours of a model are the same model at other providers, and the other models of its provider. Where only
  one other provider has it, one of the two must be wrong: it is the one that its own provider's models also speak
  against.
- A provider whose usual price is a thousand times everybody's has got its unit wrong for all of its models.
- The comparison goes both ways: a price for one token where one for a million is meant is too small, not too large.
- Prices of zero say nothing and are never compared.
"""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Final

import msgspec

from gateway.kernel.money import Nanos, Price, format_usd

RATIO_MAX: Final = 1000
#: The parts of a price that nearly every model has.
_PARTS: Final = {"input_mtok_nanos": "input", "output_mtok_nanos": "output"}


class Usual:
    """The median of some prices, part by part."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._nanos: dict[str, Nanos] = {}
        prices = tuple(prices)
        for part in _PARTS:
            if asked := [nanos for price in prices if (nanos := getattr(price, part)) > 0]:
                self._nanos[part] = int(median(asked))

    def price(self) -> Price:
        """These medians as a price of their own."""
        return msgspec.convert(self._nanos, Price)

    def objection(self, price: Price) -> str:
        """What is implausible about `price` beside these, in words; empty if nothing is."""
        for part, word in _PARTS.items():
            asked: Nanos = getattr(price, part)
            usual = self._nanos.get(part, 0)
            if asked <= 0 or usual <= 0:
                continue
            ratio = max(asked / usual, usual / asked)
            if ratio > RATIO_MAX:
                side = "above" if asked > usual else "below"
                return (
                    f"{word} at {format_usd(asked)} USD for a million tokens is {ratio:,.0f} times {side} "
                    f"the usual {format_usd(usual)}"
                )
        return ""


def find_implausible(prices: Mapping[str, Mapping[str, Price]]) -> dict[tuple[str, str], str]:
    """What is wrong with which (provider, model id), given the prices of all providers by model id."""
    by_model: dict[str, list[tuple[str, Price]]] = {}
    for provider, models in prices.items():
        for model, price in models.items():
            by_model.setdefault(_plain(model), []).append((provider, price))
    usual = {provider: Usual(models.values()) for provider, models in prices.items()}
    everybody = Usual(each.price() for each in usual.values())
    wrong = {}
    for provider, models in prices.items():
        own = usual[provider]
        slip = everybody.objection(own.price())
        for model, price in models.items():
            elsewhere = [each for other, each in by_model[_plain(model)] if other != provider]
            why = slip or _objection(price, own=own, elsewhere=elsewhere)
            if why:
                wrong[provider, model] = why
    return wrong


def _objection(price: Price, *, own: Usual, elsewhere: list[Price]) -> str:
    by_own = own.objection(price)
    if not elsewhere:
        return by_own
    by_others = Usual(elsewhere).objection(price)
    return by_others if len(elsewhere) > 1 or by_own else ""


def _plain(model: str) -> str:
    """A model's id without the publisher that resellers put before it."""
    return model.rpartition("/")[2].lower()
