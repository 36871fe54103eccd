"""What an offer costs: the configuration's rows over the provider's own list, and that over the catalogue.

Rules:
- `free = true` in a model's own row wins over everything: it costs nothing.
- Else the prices of its own row, else what its provider's list says (`listing.py`), else the catalogue's, else those
  of `[models."*"]`, where `free` means that a model may be called although nobody knows its price. The echo provider
  costs nobody anything, unless a row says so.
- A row with any price in it replaces the catalogue's price as a whole. What it leaves out costs what its plain kind
  costs, so a row that would give away all tokens by mistake is a ConfigError. A price a thousand times the
  catalogue's, or a thousandth of it, is refused: the model then has none, and `objections` says why.
- Prices are decimals as they are written, exactly; the markup of the model, else of the provider, multiplies them.
- What a provider says it charged, where its adapter trusts it, beats the catalogue, but not a model's own row.

Nothing here reads a clock: every question comes with its moment.
"""

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Final, NamedTuple

import msgspec

from gateway.catalogue.card import ModelCard
from gateway.catalogue.lists import Lists
from gateway.catalogue.neighbours import Usual
from gateway.catalogue.prices import Catalogue
from gateway.errors import ConfigError
from gateway.kernel.money import Price, parse_usd
from gateway.settings import Model, Settings
from gateway.settings import Provider as ProviderSettings
from gateway.toml_positions import join_key

#: Offers whose price is remembered until it changes.
REMEMBERED_MAX: Final = 8192
#: The row for models that nothing else is known of.
ANY_MODEL: Final = "*"

#: Our names of providers whose id in the catalogue is another one.
_CATALOGUE_IDS: Final = {
    "bedrock": "aws",
    "bedrock-mantle": "aws",
    "bedrock-openai": "aws",
    "cohere-compatible": "cohere",
    "gemini": "google",
    "moonshot": "moonshotai",
    "vertex": "google",
    "voyage": "voyageai",
    "xai": "x-ai",
}
_FREE_ADAPTER: Final = "echo"
_PERMILLE: Final = 1000

#: The keys of a row that are prices, and what they are in a `Price`.
PRICE_KEYS: Final = {
    "input_usd_per_mtok": "input_mtok_nanos",
    "output_usd_per_mtok": "output_mtok_nanos",
    "input_cached_usd_per_mtok": "input_cached_mtok_nanos",
    "input_cache_write_usd_per_mtok": "input_cache_write_mtok_nanos",
    "input_cache_write_1h_usd_per_mtok": "input_cache_write_1h_mtok_nanos",
    "input_audio_usd_per_mtok": "input_audio_mtok_nanos",
    "output_audio_usd_per_mtok": "output_audio_mtok_nanos",
    "output_reasoning_usd_per_mtok": "output_reasoning_mtok_nanos",
    "image_usd": "image_nanos",
    "second_usd": "second_nanos",
    "character_usd": "character_nanos",
    "search_usd": "search_nanos",
    "request_usd": "request_nanos",
}
#: Parts that say nothing without the price of their plain kind: leaving that one out would give the rest away.
_NEEDED: Final = {
    "input_cached_usd_per_mtok": "input_usd_per_mtok",
    "input_cache_write_usd_per_mtok": "input_usd_per_mtok",
    "input_cache_write_1h_usd_per_mtok": "input_usd_per_mtok",
    "output_reasoning_usd_per_mtok": "output_usd_per_mtok",
    "search_usd": "input_usd_per_mtok",
}


class Sizes(NamedTuple):
    """How much a model takes in, and how long its answers can be, in tokens; None where nobody knows."""

    context_tokens: int | None
    output_tokens_max: int | None


class _Remembered(NamedTuple):
    since_s: float
    until_s: float
    price: Price | None
    free: bool


def price_of(row: Model, *, key: str = "models") -> Price | None:
    """The price that a row of the configuration gives, without its markup; None if it gives none.

    Raises:
        ConfigError: it is finer than a nano-dollar, or gives away what it leaves out; `key` is the row's.
    """
    given = {name: usd for name in PRICE_KEYS if (usd := getattr(row, name)) is not None}
    for name in given:
        needed = _NEEDED.get(name)
        if needed is not None and needed not in given:
            raise ConfigError(f"{key}.{name}: needs `{needed}` beside it", param=f"{key}.{name}")
    if not given and not row.images_usd:
        return None
    prices: dict[str, object] = {PRICE_KEYS[name]: _nanos(usd, key=f"{key}.{name}") for name, usd in given.items()}
    prices["image_prices"] = {
        " ".join(kind.lower().split()): _nanos(usd, key=f"{key}.images_usd") for kind, usd in row.images_usd.items()
    }
    return msgspec.convert(prices, Price)


def catalogue_id(name: str, provider: ProviderSettings, catalogue: Catalogue) -> str:
    """What the catalogue calls a configured provider: what its table says, else what it knows by the name of its row,
    by its own name, or, where it is called at no address of its own, by that of its adapter. Empty if nothing.
    """
    if provider.catalogue is not None:
        return provider.catalogue
    row = provider.extra.get("row")
    names = [row if isinstance(row, str) else name]
    if not provider.base_url:
        names.append(provider.adapter)
    ids = (_CATALOGUE_IDS.get(each, each) for each in names)
    return next((each for each in ids if catalogue.knows(each)), "")


class Pricer:
    """Prices the offers of one configuration."""

    def __init__(self, settings: Settings, catalogue: Catalogue, lists: Lists | None = None) -> None:
        """Raises a ConfigError for a price or a markup that can't be meant, or a provider the catalogue lacks."""
        self._catalogue = catalogue
        self._lists = lists or Lists()
        self._models = settings.models
        self._any = settings.models.get(ANY_MODEL, Model())
        self._ids = {name: catalogue_id(name, provider, catalogue) for name, provider in settings.providers.items()}
        self._free_providers = {
            name for name, provider in settings.providers.items() if provider.adapter == _FREE_ADAPTER
        }
        self._rows = {name: price_of(row, key=_key(name)) for name, row in settings.models.items()}
        self._provider_markups = _markups(settings.providers, key=lambda name: f"providers.{name}.markup")
        self._model_markups = _markups(settings.models, key=lambda name: f"{_key(name)}.markup")
        for name, provider in settings.providers.items():
            if provider.catalogue and not catalogue.knows(provider.catalogue):
                key = f"providers.{name}.catalogue"
                raise ConfigError(f'{key}: the catalogue has no provider "{provider.catalogue}"', param=key)
        self._remembered: dict[tuple[str, str, str], _Remembered] = {}
        self._changes_at: float | None = None

    def price(self, provider: str, model: str, upstream_model: str, at: float) -> tuple[Price | None, bool]:
        """What `model` costs at `provider` (which calls it `upstream_model`) at a moment, with the markup in it; and
        whether it is free. Without a price and not free, it may not be called.
        """
        key = (provider, model, upstream_model)
        known = self._remembered.get(key)
        if known is None or not known.since_s <= at < known.until_s:
            price, free = self._decide(provider, model, upstream_model, at)
            until_s = self._catalogue.next_change(self._ids.get(provider, ""), upstream_model, at=at)
            known = _Remembered(at, float("inf") if until_s is None else until_s, price, free)
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[key] = known
        return known.price, known.free

    def next_change(self, at: float) -> float | None:
        """No price changes from `at` until this moment; None: never. For whoever keeps what `price` answered."""
        changes = [
            change
            for catalogue_provider in set(self._ids.values())
            for card in self._all_cards(catalogue_provider)
            if (change := card.next_change(at)) is not None
        ]
        return min(changes, default=None)

    def sizes(self, provider: str, model: str, upstream_model: str) -> Sizes:
        """The configuration's figures, else its provider's, else the catalogue's, else those of `[models."*"]`."""
        row, card = self._models.get(model, Model()), self.card(provider, upstream_model)
        listed = self._lists.facts(provider, upstream_model)
        context, longest = (None, None) if card is None else (card.context_tokens, card.output_tokens_max)
        return Sizes(
            _first(row.context_tokens, listed.context_tokens, context, self._any.context_tokens),
            _first(row.max_output_tokens, listed.output_tokens_max, longest, self._any.max_output_tokens),
        )

    def lacks(self, provider: str, upstream_model: str) -> tuple[str, ...]:
        """What the provider's own list denies the model."""
        return self._lists.facts(provider, upstream_model).lacks

    def catalogue_ids(self) -> dict[str, str]:
        """What the catalogue calls each configured provider; empty where it does not know it."""
        return dict(self._ids)

    def card(self, provider: str, upstream_model: str) -> ModelCard | None:
        """The catalogue's card of what a configured provider calls `upstream_model`."""
        return self._catalogue.card(self._ids.get(provider, ""), upstream_model)

    def cards(self, provider: str) -> tuple[ModelCard, ...]:
        """All cards of a configured provider."""
        return self._catalogue.cards(self._ids.get(provider, ""))

    def objections(self, at: float) -> dict[str, str]:
        """Which rows of the configuration have a price that is refused at a moment: their key, and why."""
        found = {}
        for model, row in self._models.items():
            for provider in self._ids:
                if why := self._objection(provider, model, row.upstream.get(provider, model), at):
                    found[_key(model)] = f"{why}, which is what {provider} asks"
        return found

    def _objection(self, provider: str, model: str, upstream_model: str, at: float) -> str:
        own = self._rows.get(model)
        published = self._catalogue.price(self._ids.get(provider, ""), upstream_model, at=at)
        if own is None or published is None or self._models[model].free:
            return ""
        return Usual((published,)).objection(own)

    def _decide(self, provider: str, model: str, upstream_model: str, at: float) -> tuple[Price | None, bool]:
        row = None if model == ANY_MODEL else self._models.get(model)
        if row is not None and row.free:
            return None, True
        markup = self._markup(provider, model)
        if row is not None and (own := self._rows[model]) is not None:
            if self._objection(provider, model, upstream_model, at):
                return None, False
            return msgspec.structs.replace(own, markup_permille=markup), False
        if provider in self._free_providers:
            return None, True
        published = self._lists.facts(provider, upstream_model).price
        if published is None:
            published = self._catalogue.price(self._ids.get(provider, ""), upstream_model, at=at)
        fallback = self._rows.get(ANY_MODEL) if published is None and not self._any.free else published
        if fallback is None and self._any.free:
            # Nobody knows a price, so nothing is held; but a provider that says what it charges is believed.
            fallback = Price()
            return msgspec.structs.replace(fallback, markup_permille=markup, provider_cost=True), True
        if fallback is None:
            return None, False
        return msgspec.structs.replace(fallback, markup_permille=markup, provider_cost=True), False

    def _markup(self, provider: str, model: str) -> int:
        for markups, name in (
            (self._model_markups, model),
            (self._provider_markups, provider),
            (self._model_markups, ANY_MODEL),
        ):
            if name in markups:
                return markups[name]
        return _PERMILLE

    def _all_cards(self, catalogue_provider: str) -> Iterator[ModelCard]:
        yield from self._catalogue.cards(catalogue_provider)
        for other in self._catalogue.resold(catalogue_provider):
            yield from self._catalogue.cards(other)


def _markups(rows: Mapping[str, Model | ProviderSettings], *, key: Callable[[str], str]) -> dict[str, int]:
    """Times a thousand, of those that have one."""
    found = {}
    for name, row in rows.items():
        if row.markup is None:
            continue
        permille = Decimal(repr(row.markup)) * _PERMILLE
        if permille != int(permille):
            raise ConfigError(f"{key(name)}: at most three decimals", param=key(name))
        found[name] = int(permille)
    return found


def _nanos(usd: float, *, key: str) -> int:
    try:
        # The shortest text that stands for the float is what was written.
        return parse_usd(repr(usd))
    except ValueError as error:
        raise ConfigError(f"{key}: {error}", param=key) from error


def _key(model: str) -> str:
    return join_key(("models", model))


def _first(*figures: int | None) -> int | None:
    return next((figure for figure in figures if figure is not None), None)
