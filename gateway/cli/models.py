"""`gateway models`: what can be called, at which provider, and for how much; with `--check`, what can't and why.

What providers say of themselves counts where it was stored: a gateway that runs asks them for their lists. The JSON
has the members of `Listing`, in its order; new ones are added at the end.
"""

import argparse
import sys
from collections.abc import Iterator

import msgspec

from gateway.catalogue.card import ModelCard
from gateway.catalogue.listing import ListedModel
from gateway.catalogue.lists import Lists
from gateway.catalogue.rows import ANY_MODEL, Pricer
from gateway.cli.check import load_prices
from gateway.cli.listed import Listed, read_listed
from gateway.cli.loading import load_config
from gateway.cli.table import Colour, Printer
from gateway.exchange import Offer
from gateway.infra.clock import SystemClock
from gateway.kernel.money import Price, format_usd
from gateway.kernel.offers import OfferTable
from gateway.settings import Settings

_NOTHING = "-"
#: Names in a line of many.
_SHOWN_MAX = 8
#: Fees of tools, which the provider adds to a call; only searches are counted.
_TOOL_FEES = "_kcount"


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a provider. Prices are nano-dollars, without the markup; `Price` says for what."""

    model: str
    provider: str
    upstream_model: str
    free: bool
    price: Price | None
    context_tokens: int | None
    max_output_tokens: int | None
    #: Why the catalogue's price is not used; empty otherwise.
    refused: str
    #: Unix time in seconds when the price may be another one.
    changes_at: float | None
    #: Whether the provider's own list has it; None where there is no such list.
    listed: bool | None


def run(arguments: argparse.Namespace) -> int:
    """Print what is asked for.

    Raises:
        ConfigError: the configuration, or the catalogue, is not usable.
    """
    loaded = load_config(arguments)
    listed = read_listed(loaded.settings)
    pricer = load_prices(loaded, listed=listed)
    at = SystemClock().now()
    out = Printer(sys.stdout)
    if arguments.check:
        return _check(loaded.settings, pricer, listed, out, at=at)
    found = find_listings(loaded.settings, pricer, listed.lists, at=at)
    listings = [each for each in found if arguments.text in each.model]
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(listings), indent=2).decode() + "\n")
    elif listings:
        _print(listings, out, missing=listed.missing)
    else:
        out.line(
            f"no model has {arguments.text!r} in its name"
            if found
            else "no model: configure a provider, or set a variable such as OPENAI_API_KEY"
        )
    return 0


def find_listings(settings: Settings, pricer: Pricer, lists: Lists, *, at: float) -> list[Listing]:
    """Every model that the configuration names, at each provider that takes it; and for providers that take any, the
    models that they list themselves and those that the catalogue has of them.
    """
    table = _offers(settings, pricer, at=at)
    named = _named(settings, table)
    published: set[str] = set()
    for name, provider in settings.providers.items():
        if provider.enabled and any(model.endswith("*") for model in provider.models):
            published.update(card.id for card in pricer.cards(name))
            published.update(lists.names(name))
    return [
        _listing(offer, pricer, lists, at=at)
        for name in sorted(named | published)
        for offer in table.find(name)
        if name in named
        or pricer.card(offer.provider, offer.upstream_model) is not None
        or offer.upstream_model in lists.names(offer.provider)
    ]


def _offers(settings: Settings, pricer: Pricer, *, at: float) -> OfferTable:
    enabled = {name: provider.models for name, provider in settings.providers.items() if provider.enabled}
    return OfferTable.of(
        settings, enabled, price=lambda provider, model, upstream: pricer.price(provider, model, upstream, at)
    )


def _named(settings: Settings, table: OfferTable) -> set[str]:
    return {*table.listed(), *(name for name in settings.models if name != ANY_MODEL)}


def _listing(offer: Offer, pricer: Pricer, lists: Lists, *, at: float) -> Listing:
    card = pricer.card(offer.provider, offer.upstream_model)
    sizes = pricer.sizes(offer.provider, offer.model, offer.upstream_model)
    return Listing(
        model=offer.model,
        provider=offer.provider,
        upstream_model=offer.upstream_model,
        free=offer.free,
        price=offer.price,
        context_tokens=sizes.context_tokens,
        max_output_tokens=sizes.output_tokens_max,
        refused="" if card is None or offer.price is not None else card.refused,
        changes_at=None if card is None else card.next_change(at),
        listed=offer.upstream_model in lists.names(offer.provider) if lists.names(offer.provider) else None,
    )


def _print(listings: list[Listing], out: Printer, *, missing: str) -> None:
    rows, colours = [], []
    for each in listings:
        price = each.price
        context = _NOTHING if each.context_tokens is None else f"{each.context_tokens:,}"
        state, colour = _state(each)
        into = _NOTHING if price is None else _charged(price.input_mtok_nanos, price)
        outof = _NOTHING if price is None else _charged(price.output_mtok_nanos, price)
        rows.append((each.model, each.provider, into, outof, context, state))
        colours.append(colour)
    out.table(("MODEL", "PROVIDER", "INPUT", "OUTPUT", "CONTEXT", ""), rows, colours=colours)
    out.line()
    out.line("Prices are US dollars for a million tokens.")
    if missing:
        sys.stderr.write(f"Without what providers say themselves: {missing}.\n")


def _state(listing: Listing) -> tuple[str, Colour | None]:
    unlisted = "not on its list" if listing.listed is False else ""
    if listing.free:
        return ", ".join(filter(None, ("free", unlisted))), Colour.GREEN
    price = listing.price
    if price is None:
        state = "refused" if listing.refused else "unpriced"
        return ", ".join(filter(None, (state, unlisted))), Colour.YELLOW
    extras = _extras(price, changes=listing.changes_at is not None)
    return ", ".join(filter(None, (*extras, unlisted))), None


def _extras(price: Price, *, changes: bool) -> Iterator[str]:
    """What else a call may cost."""
    for unit, nanos in (
        ("an hour", price.hour_nanos + price.second_nanos * 3600),
        ("an image", price.image_nanos),
        ("a million characters", price.character_nanos * 1_000_000),
        ("a request", price.request_nanos),
    ):
        if nanos:
            yield f"{_charged(nanos, price)} {unit}"
    for tier in price.tiers:
        yield f"more above {tier.above_tokens:,}"
    if changes:
        yield "by date or time"


def _charged(nanos: int, price: Price) -> str:
    return format_usd(-(-nanos * price.markup_permille // 1000))


def _check(settings: Settings, pricer: Pricer, listed: Listed, out: Printer, *, at: float) -> int:
    odd = [f"{key}: {why}" for key, why in pricer.objections(at).items()]
    notes = []
    for name, provider in settings.providers.items():
        if provider.enabled:
            for card in pricer.cards(name):
                if card.refused:
                    odd.append(f"{name}, {card.id}: {card.refused}")
                elif missing := _uncounted(card):
                    notes.append(f"{name}, {card.id}: no count of {missing}, charged like other tokens")
    odd += _refused(settings, pricer, listed, notes, at=at)
    for line in odd:
        out.line(f"{out.paint('refused', Colour.RED)}: {line}")
    table = _offers(settings, pricer, at=at)
    # Of the catalogue's models nobody said that they are wanted.
    wanted = [
        _listing(offer, pricer, listed.lists, at=at)
        for name in sorted(_named(settings, table))
        for offer in table.find(name)
    ]
    unpriced = [each for each in wanted if each.price is None and not each.free]
    for each in unpriced:
        out.line(f"{out.paint('unpriced', Colour.YELLOW)}: {each.model} at {each.provider} can't be called")
    short = list(_unsold(settings, pricer, listed, at=at))
    for line in short:
        out.line(f"{out.paint('unpriced', Colour.YELLOW)}: {line}")
    notes += [f"{each.model} is not on the list of {each.provider}" for each in wanted if each.listed is False]
    notes += _silent(settings, listed)
    for line in notes:
        out.line(f"{out.paint('note', Colour.DIM)}: {line}")
    if unpriced or short:
        out.line('Give them a price in a row of their own, or `free = true` there or in [models."*"].')
    if not odd and not unpriced and not short:
        out.line(f"{out.paint('ok', Colour.GREEN)}: every model of the configuration has a price or is free")
    return 1 if odd else 0


def _refused(settings: Settings, pricer: Pricer, listed: Listed, notes: list[str], *, at: float) -> list[str]:
    """Prices of providers' own lists that can't be meant. Where another one is used instead, it is worth a note."""
    odd = []
    for name, models in _enabled(settings, listed):
        for model in models:
            if not model.refused:
                continue
            line = f"{name} lists {model.id}: {model.refused}"
            price, free = pricer.price(name, model.id, model.id, at)
            if price is None and not free:
                odd.append(line)
            else:
                notes.append(f"{line}; another price is used")
    return odd


def _unsold(settings: Settings, pricer: Pricer, listed: Listed, *, at: float) -> Iterator[str]:
    """What providers have and nobody knows a price of, a line for each that takes any model."""
    table = _offers(settings, pricer, at=at)
    for name, models in _enabled(settings, listed):
        offers = (
            next((offer for offer in table.find(model.id) if offer.provider == name), None)
            for model in models
            if model.id not in settings.models
        )
        unsold = [offer.model for offer in offers if offer is not None and offer.price is None and not offer.free]
        if unsold:
            shown = ", ".join(unsold[:_SHOWN_MAX])
            more = f" and {len(unsold) - _SHOWN_MAX} more" if len(unsold) > _SHOWN_MAX else ""
            yield f"{name} lists what can't be called: {shown}{more}"


def _silent(settings: Settings, listed: Listed) -> Iterator[str]:
    """What is not known of providers' lists."""
    if listed.missing:
        yield f"what providers list themselves was not looked at: {listed.missing}"
    for state in listed.states:
        provider = settings.providers.get(state.provider)
        if state.failures and provider is not None and provider.enabled:
            since = "" if state.listed_s is None else f" since it listed {state.model_count} models"
            yield f"{state.provider} does not say which models it has{since}: {state.error}"


def _enabled(settings: Settings, listed: Listed) -> Iterator[tuple[str, tuple[ListedModel, ...]]]:
    for name, models in listed.models.items():
        provider = settings.providers.get(name)
        if provider is not None and provider.enabled:
            yield name, models


def _uncounted(card: ModelCard) -> str:
    return ", ".join(part.removesuffix("_mtok") for part in card.left_out if not part.endswith(_TOOL_FEES))
