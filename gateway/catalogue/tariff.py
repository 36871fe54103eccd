"""What callers pay for a model, as they read it: OpenRouter's `pricing`, markups included.

Dollars as decimal texts, exactly: for one token, or for one of what the name says.
"""

from decimal import Decimal
from typing import Final

import msgspec

from gateway.exchange import Offer
from gateway.kernel.money import Nanos, Price

_NANOS_DIGITS: Final = 9
_MTOK_DIGITS: Final = 6
_PERMILLE_DIGITS: Final = 3


class Pricing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dollars, as decimal texts."""

    prompt: str
    completion: str
    request: str
    image: str
    web_search: str
    internal_reasoning: str
    input_cache_read: str | None = None
    input_cache_write: str | None = None


def pricing_of(offer: Offer) -> Pricing | None:
    """What callers pay; None where nobody knows."""
    price = Price() if offer.free else offer.price
    if price is None:
        return None
    permille = price.markup_permille
    written, read = price.input_cache_write_mtok_nanos, price.input_cached_mtok_nanos
    return Pricing(
        prompt=_per_token(price.input_mtok_nanos, permille),
        completion=_per_token(price.output_mtok_nanos, permille),
        request=_per_unit(price.request_nanos, permille),
        image=_per_unit(price.image_nanos, permille),
        web_search=_per_unit(price.search_nanos, permille),
        internal_reasoning=_per_token(price.output_reasoning_mtok_nanos or 0, permille),
        input_cache_read=None if read is None else _per_token(read, permille),
        input_cache_write=None if written is None else _per_token(written, permille),
    )


def _per_token(mtok_nanos: Nanos, permille: int) -> str:
    return _text(mtok_nanos * permille, _NANOS_DIGITS + _MTOK_DIGITS + _PERMILLE_DIGITS)


def _per_unit(nanos: Nanos, permille: int) -> str:
    return _text(nanos * permille, _NANOS_DIGITS + _PERMILLE_DIGITS)


def _text(value: int, digits: int) -> str:
    """`value` with its point moved, exactly and without an exponent."""
    text = f"{Decimal(value).scaleb(-digits):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
