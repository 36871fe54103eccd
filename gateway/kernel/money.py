"""What a call costs: integer arithmetic from usage and price to nano-dollars, and nothing else.

Rules:
- Money is `Nanos`, a whole number of 1e-9 USD. A price is nanos for a million tokens, or for one image, second,
  character, search or request. No floats: the only float that comes in (`Usage.seconds`) is taken as the exact
  fraction that it is.
- A cost is computed exactly and rounded once, up, at the end: no traffic is too small to be charged.
- What stands in Redis is a Lua number, exact to 2^53: `MAX_NANOS` bounds every amount, 9.0 million dollars.
- Nothing here may fail because a provider reports nonsense: negative counts are zero, parts that exceed their total
  leave no plain remainder, and never a negative one.

Which price holds (at what date, for which provider) is decided by whoever hands it in.
"""

import re
from decimal import Decimal
from typing import TypeAlias

import msgspec

from gateway.wire.usage import Usage

#: A whole number of nano-dollars.
Nanos: TypeAlias = int

NANOS_PER_USD = 1_000_000_000
#: The largest amount that Redis' scripts can hold exactly.
MAX_NANOS: Nanos = 2**53 - 1

_TOKENS_PER_PRICE = 1_000_000
_PERMILLE = 1000
_HOUR_S = 3600
_DECIMAL = re.compile(r"[+-]?[0-9]{1,24}(?:\.[0-9]{0,24})?(?:[eE][+-]?[0-9]{1,2})?", re.ASCII)


class Tier(msgspec.Struct, frozen=True, omit_defaults=True):
    """Another price for the whole request once its input is larger than `above_tokens`."""

    above_tokens: int
    price: "Price"


class Price(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a provider asks for a model. `*_mtok_nanos` are for a million tokens, the others for one unit.

    A part without a price of its own (None) costs what its plain kind costs. `tiers` are ordered by `above_tokens`,
    and the last one that the input exceeds replaces the prices. Of a price within `tiers` or `service_prices` only
    the prices are looked at, and the `tiers` of the latter: all else of the outer price holds.
    """

    input_mtok_nanos: Nanos = 0
    output_mtok_nanos: Nanos = 0
    input_cached_mtok_nanos: Nanos | None = None
    input_cache_write_mtok_nanos: Nanos | None = None
    #: None falls back to the price of the shorter cache write, then to the plain one.
    input_cache_write_1h_mtok_nanos: Nanos | None = None
    input_audio_mtok_nanos: Nanos | None = None
    input_image_mtok_nanos: Nanos | None = None
    output_reasoning_mtok_nanos: Nanos | None = None
    output_audio_mtok_nanos: Nanos | None = None
    output_image_mtok_nanos: Nanos | None = None
    image_nanos: Nanos = 0
    #: Where pictures have several prices: by quality and size ("hd 1024x1792"), by size, or by quality, tried in that
    #: order; `image_nanos` is for all others.
    image_prices: dict[str, Nanos] = {}
    second_nanos: Nanos = 0
    #: For an hour, on top of `second_nanos`: what providers ask for an hour need not be whole nanos for a second.
    hour_nanos: Nanos = 0
    character_nanos: Nanos = 0
    search_nanos: Nanos = 0
    request_nanos: Nanos = 0
    tiers: tuple[Tier, ...] = ()
    #: Times a thousand: 1150 is 15 % on top.
    markup_permille: int = _PERMILLE
    #: By the service tier that the provider reports ("flex": 500, "priority": 2000); any other is 1000.
    service_permille: dict[str, int] = {}
    #: The same where a service tier is no plain multiple: other prices, and no permille beside them.
    service_prices: dict[str, "Price"] = {}
    #: True where the provider's own figure for what it charged is trusted and beats this table.
    provider_cost: bool = False


def cost_nanos(usage: Usage, price: Price) -> Nanos:
    """What `usage` costs at `price`: never negative, exact, rounded up once."""
    if price.provider_cost and usage.provider_cost_nanos is not None:
        return -(-max(0, usage.provider_cost_nanos) * price.markup_permille // _PERMILLE)
    served, served_permille = _served(price, usage.service_tier)
    rates = _rates(served, usage.input_tokens)
    per_million = _token_cost(usage, rates)
    units = rates.request_nanos
    if usage.images > 0:
        units += usage.images * _image_rate(rates, usage.image_kind)
    if usage.characters > 0:
        units += usage.characters * rates.character_nanos
    if usage.searches > 0:
        units += usage.searches * rates.search_nanos
    per_million += units * _TOKENS_PER_PRICE
    divisor = _TOKENS_PER_PRICE * _PERMILLE
    if usage.seconds > 0 and (hour_nanos := rates.second_nanos * _HOUR_S + rates.hour_nanos):
        # A float is a fraction with a power of two below the line: put everything over that line.
        numerator, denominator = usage.seconds.as_integer_ratio()
        denominator *= _HOUR_S
        per_million = per_million * denominator + numerator * hour_nanos * _TOKENS_PER_PRICE
        divisor *= denominator
    permille = price.markup_permille
    if served_permille != _PERMILLE:
        permille *= served_permille
        divisor *= _PERMILLE
    return -(-per_million * permille // divisor)


def hold_nanos(
    input_tokens: int,
    output_tokens: int,
    price: Price,
    *,
    images: int = 0,
    image_kind: str = "",
    seconds: int = 0,
    characters: int = 0,
    searches: int = 0,
    service_tier: str | None = None,
) -> Nanos:
    """The most that a call of at most these sizes can cost when it is served as `service_tier`: every token as its
    dearest kind, in the dearest tier that the input can reach. Searches of the web can't be foreseen: they are not in
    it.

    Callers may name any number: nobody has what is beyond `MAX_NANOS`, so that is where it ends.
    """
    worst = 0
    served, permille = _served(price, service_tier)
    reachable = (tier.price for tier in served.tiers if input_tokens > tier.above_tokens)
    for rates in (served, *reachable):
        per_million = max(0, input_tokens) * _dearest_input(rates)
        per_million += max(0, output_tokens) * _dearest_output(rates)
        units = rates.request_nanos + max(0, searches) * rates.search_nanos
        if images > 0:
            units += images * _dearest_image(rates, image_kind)
        units += max(0, seconds) * rates.second_nanos + max(0, characters) * rates.character_nanos
        units += -(-max(0, seconds) * rates.hour_nanos // _HOUR_S)
        worst = max(worst, (per_million + units * _TOKENS_PER_PRICE) * permille)
    return min(-(-worst * price.markup_permille // (_TOKENS_PER_PRICE * _PERMILLE * _PERMILLE)), MAX_NANOS)


def rates_of(price: Price, *, input_tokens: int, service_tier: str | None) -> tuple[Price, int]:
    """The rates that hold for a request of that size, and the millionths that markup and tier multiply them by."""
    served, permille = _served(price, service_tier)
    return _rates(served, input_tokens), permille * price.markup_permille


def usd(nanos: Nanos) -> float:
    """Dollars, to be shown: exact to 15 digits."""
    return nanos / NANOS_PER_USD


def fee_nanos(cost: Nanos, permille: int) -> Nanos:
    """The share of a cost that is asked where somebody else is paid the cost: rounded up, like any."""
    return -(-cost * permille // _PERMILLE)


def parse_usd(text: str) -> Nanos:
    """Nanos of a decimal number of dollars ("12.34", "-0.000000001", "1.5e-07").

    Raises:
        ValueError: not a number, finer than a nano-dollar, or larger than `MAX_NANOS`.
    """
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError(f"not an amount in dollars: {text[:60]!r}")
    numerator, denominator = Decimal(text).as_integer_ratio()
    nanos, rest = divmod(numerator * NANOS_PER_USD, denominator)
    if rest:
        raise ValueError(f"finer than a nano-dollar: {text}")
    if abs(nanos) > MAX_NANOS:
        raise ValueError(f"larger than any amount this gateway can hold: {text}")
    return nanos


def format_usd(nanos: Nanos) -> str:
    """Dollars as a plain decimal, exact, with at least two places: "12.34", "0.00", "-0.000000001"."""
    whole, fraction = divmod(abs(nanos), NANOS_PER_USD)
    places = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}{whole}.{places}"


def _served(price: Price, service_tier: str | None) -> tuple[Price, int]:
    """The prices of a service tier, and the thousandths that they are multiplied by."""
    if service_tier is None:
        return price, _PERMILLE
    own = price.service_prices.get(service_tier)
    return (price, price.service_permille.get(service_tier, _PERMILLE)) if own is None else (own, _PERMILLE)


def _rates(price: Price, input_tokens: int) -> Price:
    rates = price
    for tier in price.tiers:
        if input_tokens > tier.above_tokens:
            rates = tier.price
    return rates


def charged_units(price: Price) -> frozenset[str]:
    """The names of the units besides tokens that a price charges for, as `Usage` has them."""
    rates = (price, *price.service_prices.values(), *(tier.price for tier in price.tiers))
    charged = {
        "images": any(each.image_nanos or each.image_prices for each in rates),
        "seconds": any(each.second_nanos or each.hour_nanos for each in rates),
        "characters": any(each.character_nanos for each in rates),
        "searches": any(each.search_nanos for each in rates),
    }
    return frozenset(name for name, is_charged in charged.items() if is_charged)


def _image_rate(rates: Price, kind: str) -> Nanos:
    """The price of one picture of a kind."""
    prices = rates.image_prices
    if not prices:
        return rates.image_nanos
    quality, _, size = kind.rpartition(" ")
    for name in (kind, size, quality):
        if name and name in prices:
            return prices[name]
    return rates.image_nanos


def _dearest_image(rates: Price, kind: str) -> Nanos:
    """The same before the call: where the provider chooses quality or size, whatever is dearest."""
    if " " in kind:
        return _image_rate(rates, kind)
    return max(rates.image_nanos, *rates.image_prices.values(), 0)


def _token_cost(usage: Usage, rates: Price) -> int:
    """Nanos times a million. A part with a price of its own leaves the plain count; one without stays in it."""
    plain = usage.input_tokens
    total = 0
    if (count := usage.input_cached_tokens) > 0 and (rate := rates.input_cached_mtok_nanos) is not None:
        total += count * rate
        plain -= count
    if (count := usage.input_cache_write_tokens) > 0 and (rate := rates.input_cache_write_mtok_nanos) is not None:
        total += count * rate
        plain -= count
    if (count := usage.input_cache_write_1h_tokens) > 0:
        rate = rates.input_cache_write_1h_mtok_nanos
        if rate is None:
            rate = rates.input_cache_write_mtok_nanos
        if rate is not None:
            total += count * rate
            plain -= count
    if (count := usage.input_audio_tokens) > 0 and (rate := rates.input_audio_mtok_nanos) is not None:
        total += count * rate
        plain -= count
    if (count := usage.input_image_tokens) > 0 and (rate := rates.input_image_mtok_nanos) is not None:
        total += count * rate
        plain -= count
    if plain > 0:
        total += plain * rates.input_mtok_nanos
    plain = usage.output_tokens
    if (count := usage.output_reasoning_tokens) > 0 and (rate := rates.output_reasoning_mtok_nanos) is not None:
        total += count * rate
        plain -= count
    if (count := usage.output_audio_tokens) > 0 and (rate := rates.output_audio_mtok_nanos) is not None:
        total += count * rate
        plain -= count
    if (count := usage.output_image_tokens) > 0 and (rate := rates.output_image_mtok_nanos) is not None:
        total += count * rate
        plain -= count
    if plain > 0:
        total += plain * rates.output_mtok_nanos
    return total


def _dearest_input(rates: Price) -> Nanos:
    return max(
        rates.input_mtok_nanos,
        rates.input_cached_mtok_nanos or 0,
        rates.input_cache_write_mtok_nanos or 0,
        rates.input_cache_write_1h_mtok_nanos or 0,
        rates.input_audio_mtok_nanos or 0,
        rates.input_image_mtok_nanos or 0,
    )


def _dearest_output(rates: Price) -> Nanos:
    return max(
        rates.output_mtok_nanos,
        rates.output_reasoning_mtok_nanos or 0,
        rates.output_audio_mtok_nanos or 0,
        rates.output_image_mtok_nanos or 0,
    )
