"""Makes the catalogue from the `genai-prices` package: run as a program, it writes the snapshot to standard output.

Loading the package takes pydantic, half a second and tens of megabytes, so it happens in a process that does nothing
else and ends. This is the only module that may import it, and no other one imports this.

Rules:
- Prices become whole nano-dollars, exactly: the package has decimal text. Parts finer than that for a million tokens
  are noise of somebody's floats (0.13999999999999999) and are rounded to the nearest.
- What can't be counted is not priced by halves: a model that is charged by the page or the message, which no usage
  report here has, gets no price at all. Kinds of tokens without a count are named in `left_out`, and cost what their
  plain kind costs.
- `corrections.toml` adds what the package can't say. A price that no neighbour makes plausible is marked as refused.
"""

import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from importlib import resources
from typing import Final, TypeAlias

import msgspec
from genai_prices import types as source
from genai_prices.data import providers as published
from genai_prices.data_units import unit_data

from gateway.catalogue.card import DatedPrice, ModelCard, ProviderCards, Window
from gateway.catalogue.match import AllOf, AnyOf, Clause, Contains, EndsWith, Equals, Expression, StartsWith
from gateway.catalogue.neighbours import find_implausible
from gateway.catalogue.snapshot import CORRECTIONS, Snapshot, edition, encode
from gateway.infra.clock import SystemClock
from gateway.kernel.money import NANOS_PER_USD, Nanos, Price, Tier

Rate: TypeAlias = Decimal | source.TieredPrices
#: The parts of a price by the package's names; None is one that it does not set.
Rates: TypeAlias = Mapping[str, Rate | None]

_PRICED_TOKENS: Final = 1_000_000
#: The package's names of what `Price` has, and for how many units `Price` has it.
_PARTS: Final[dict[str, tuple[str, int]]] = {
    "input_mtok": ("input_mtok_nanos", _PRICED_TOKENS),
    "output_mtok": ("output_mtok_nanos", _PRICED_TOKENS),
    "cache_read_mtok": ("input_cached_mtok_nanos", _PRICED_TOKENS),
    "cache_write_mtok": ("input_cache_write_mtok_nanos", _PRICED_TOKENS),
    "cache_write_1h_mtok": ("input_cache_write_1h_mtok_nanos", _PRICED_TOKENS),
    "input_audio_mtok": ("input_audio_mtok_nanos", _PRICED_TOKENS),
    "input_image_mtok": ("input_image_mtok_nanos", _PRICED_TOKENS),
    "output_reasoning_mtok": ("output_reasoning_mtok_nanos", _PRICED_TOKENS),
    "output_audio_mtok": ("output_audio_mtok_nanos", _PRICED_TOKENS),
    "output_image_mtok": ("output_image_mtok_nanos", _PRICED_TOKENS),
    "audio_hours": ("hour_nanos", 3600),
    "input_audio_hours": ("hour_nanos", 3600),
    "input_mchars": ("character_nanos", 1),
    "web_searches_kcount": ("search_nanos", 1),
    "requests_kcount": ("request_nanos", 1),
}
_UNITS: Final = {unit["price_key"]: unit for unit in unit_data.values()}
#: Families of units that may be left out: the rest of the price still says what a call costs.
_OPTIONAL_FAMILIES: Final = frozenset({"tokens", "tool_calls"})
#: What of a request's circumstances a provider reports as the service tier it served: the words of the package.
_SERVICE_KEYS: Final = frozenset({"service_tier", "processing", "speed"})
_FREE_SUFFIX: Final = ":free"


class WindowRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Narrows the daily windows of some models."""

    provider: str
    models: tuple[str, ...]
    days: tuple[int, ...]
    since: date


class FreeRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Models that cost nothing."""

    provider: str
    models: tuple[str, ...]


class OutputRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Models whose answers have at most `tokens`."""

    provider: str
    models: tuple[str, ...]
    tokens: int


class ApartRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Models of a provider that are had by another API: they are a provider of their own, `named`. What the provider
    resells goes with them.
    """

    provider: str
    prefix: str
    named: str


class Corrections(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`corrections.toml`."""

    window: tuple[WindowRow, ...] = ()
    free: tuple[FreeRow, ...] = ()
    output: tuple[OutputRow, ...] = ()
    apart: tuple[ApartRow, ...] = ()


def read_corrections() -> Corrections:
    """The corrections that this package comes with."""
    text = resources.files("gateway.catalogue").joinpath(CORRECTIONS).read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), Corrections)


def build(providers: Sequence[source.Provider], corrections: Corrections, *, at: float) -> dict[str, ProviderCards]:
    """All cards, by the package's provider ids. What is plausible is judged by the prices of the moment `at`."""
    made = {each.id: [_card(each.id, model, corrections) for model in each.models] for each in providers}
    current = {
        provider: {card.id: price for card in cards if (price := card.price(at)) is not None}
        for provider, cards in made.items()
    }
    implausible = find_implausible(current)
    sold = {
        each.id: ProviderCards(
            cards=tuple(
                msgspec.structs.replace(card, refused=implausible.get((each.id, card.id), ""))
                for card in made[each.id]
            ),
            resells=tuple(each.fallback_model_providers or ()),
        )
        for each in providers
    }
    for row in corrections.apart:
        if row.provider in sold:
            sold |= _set_apart(row, sold[row.provider])
    return sold


def _set_apart(row: ApartRow, sold: ProviderCards) -> dict[str, ProviderCards]:
    """The provider without the models that are a provider of their own, and those, with what is resold there."""
    own = tuple(card for card in sold.cards if not card.id.startswith(row.prefix))
    other = tuple(card for card in sold.cards if card.id.startswith(row.prefix))
    return {row.provider: ProviderCards(cards=own), row.named: ProviderCards(cards=other, resells=sold.resells)}


def to_price(rates: Rates) -> tuple[Price | None, set[str]]:
    """A price, None if it would not say what a call costs; and which parts it had to leave out."""
    given = {key: rate for key, rate in rates.items() if rate is not None}
    left_out = given.keys() - _PARTS.keys()
    if any(key not in _UNITS or _UNITS[key]["dimensions"]["family"] not in _OPTIONAL_FAMILIES for key in left_out):
        return None, left_out
    counted = {key: rate for key, rate in given.items() if key in _PARTS}
    if not any(_UNITS[key]["dimensions"]["family"] != "tool_calls" for key in counted):
        return None, left_out
    starts = {tier.start for rate in counted.values() if isinstance(rate, source.TieredPrices) for tier in rate.tiers}
    tiers = tuple(Tier(above_tokens=start, price=_flat(counted, start)) for start in sorted(starts))
    return msgspec.structs.replace(_flat(counted, -1), tiers=tiers), left_out


def to_nanos(usd: Decimal, *, per: int, units: int) -> Nanos:
    """Nanos for `units` of what costs `usd` for `per`, to the nearest."""
    numerator, denominator = (Fraction(usd) * NANOS_PER_USD * units / per).as_integer_ratio()
    return (2 * numerator + denominator) // (2 * denominator)


def to_clause(match: source.MatchLogic) -> Clause:
    """A match rule of the package as data."""
    if isinstance(match, source.ClauseEquals):
        return Equals(match.equals.lower())
    if isinstance(match, source.ClauseStartsWith):
        return StartsWith(match.starts_with.lower())
    if isinstance(match, source.ClauseEndsWith):
        return EndsWith(match.ends_with.lower())
    if isinstance(match, source.ClauseContains):
        return Contains(match.contains.lower())
    if isinstance(match, source.ClauseRegex):
        return Expression(match.regex)
    if isinstance(match, source.ClauseOr):
        return AnyOf(tuple(to_clause(each) for each in match.or_))
    return AllOf(tuple(to_clause(each) for each in match.and_))


def _card(provider: str, model: source.ModelInfo, corrections: Corrections) -> ModelCard:
    narrowed = next((row for row in corrections.window if row.provider == provider and model.id in row.models), None)
    rows, left_out = _dated(model, narrowed)
    free = model.id.endswith(_FREE_SUFFIX) or any(
        row.provider == provider and model.id in row.models for row in corrections.free
    )
    if free and not left_out and all(row.price is None for row in rows):
        rows = [DatedPrice(Price())]
    output = next((row for row in corrections.output if row.provider == provider and model.id in row.models), None)
    return ModelCard(
        id=model.id,
        match=to_clause(model.match),
        prices=tuple(rows),
        context_tokens=model.context_window,
        output_tokens_max=None if output is None else output.tokens,
        left_out=tuple(sorted(left_out)),
    )


def _dated(model: source.ModelInfo, narrowed: WindowRow | None) -> tuple[list[DatedPrice], set[str]]:
    """The rows of a model: for each date on which anything changes the price that holds from then on, and after it
    those of the daily windows, since the last row that holds is the one that counts.
    """
    only = model.prices
    standard = [source.ConditionalPrice(prices=only)] if isinstance(only, source.ModelPrice) else only
    variants = model.price_variants or []
    dates = {0} | {
        _epoch(constraint.start_date)
        for constraint in [*(row.constraint for row in standard), *(variant.constraint for variant in variants)]
        if isinstance(constraint, source.StartDateConstraint)
    }
    if narrowed is not None:
        dates.add(_epoch(narrowed.since))
    rows: list[DatedPrice] = []
    left_out: set[str] = set()
    for since_s in sorted(dates):
        plain, windows = _active(standard, since_s)
        if narrowed is not None and since_s < _epoch(narrowed.since):
            windows = []
        for rates, constraint in [(plain, None), *windows]:
            price, missing = _with_services(rates, variants, since_s)
            left_out |= missing
            window = None if constraint is None else _window(constraint, days=narrowed.days if narrowed else ())
            row = DatedPrice(price, since_s=since_s, window=window)
            if window is not None or not rows or rows[-1].window is not None or rows[-1].price != price:
                rows.append(row)
    return rows, left_out


def _active(
    rows: Sequence[source.ConditionalPrice], at_s: int
) -> tuple[Rates, list[tuple[Rates, source.TimeOfDateConstraint]]]:
    """The rates that hold on a date whatever the time, and those of the daily windows that come after them."""
    plain: Rates = rows[0].prices.__dict__ if rows else {}
    windows: list[tuple[Rates, source.TimeOfDateConstraint]] = []
    for row in rows:
        if isinstance(row.constraint, source.TimeOfDateConstraint):
            windows.append((row.prices.__dict__, row.constraint))
        elif row.constraint is None or _epoch(row.constraint.start_date) <= at_s:
            plain, windows = row.prices.__dict__, []
    return plain, windows


def _with_services(rates: Rates, variants: Iterable[source.PriceVariant], at_s: int) -> tuple[Price | None, set[str]]:
    """The price, with those of other service tiers. Of several variants the first that sets a part counts for it."""
    price, left_out = to_price(rates)
    if price is None:
        return None, left_out
    overrides: dict[str, dict[str, Rate]] = {}
    for variant in variants:
        if len(variant.when) != 1 or isinstance(variant.constraint, source.TimeOfDateConstraint):
            continue
        if variant.constraint is not None and _epoch(variant.constraint.start_date) > at_s:
            continue
        ((key, service),) = variant.when.items()
        if key in _SERVICE_KEYS:
            given = {part: rate for part, rate in variant.prices.__dict__.items() if rate is not None}
            overrides[service] = given | overrides.get(service, {})
    services = {}
    for service, own in overrides.items():
        served, missing = to_price({**rates, **own})
        left_out |= missing
        if served is not None and served != price:
            services[service] = served
    return msgspec.structs.replace(price, service_prices=services), left_out


def _flat(rates: Mapping[str, Rate], input_tokens: int) -> Price:
    """The price of a request whose input is just larger than `input_tokens`."""
    fields: dict[str, Nanos] = {}
    for key, rate in rates.items():
        field, units = _PARTS[key]
        usd = rate
        if isinstance(usd, source.TieredPrices):
            reached = [tier.price for tier in usd.tiers if tier.start <= input_tokens]
            usd = reached[-1] if reached else usd.base
        fields[field] = to_nanos(usd, per=_UNITS[key]["per"], units=units)
    return msgspec.convert(fields, Price)


def _window(constraint: source.TimeOfDateConstraint, *, days: tuple[int, ...]) -> Window:
    return Window(starts_s=_second(constraint.start_time), ends_s=_second(constraint.end_time), days=days)


def _second(moment: time) -> int:
    """Second of the UTC day."""
    if moment.tzinfo is not None:
        moment = datetime.combine(date(2000, 1, 1), moment).astimezone(UTC).time()
    return moment.hour * 3600 + moment.minute * 60 + moment.second


def _epoch(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def main() -> int:
    """Write the snapshot to standard output."""
    cards = build(published, read_corrections(), at=SystemClock().now())
    sys.stdout.buffer.write(encode(Snapshot.of(cards, edition=edition())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
