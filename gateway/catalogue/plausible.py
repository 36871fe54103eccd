"""Whether what a provider's list says about a model's price can be meant.

Rules:
- A price is held against the catalogue's for the same model; where there is none, against what this provider's models
  cost usually, else everybody's. A thousand times more or less is a slip in somebody's units: the price is refused,
  and says why.
- A list that says what the catalogue says leaves the catalogue's price in place, which knows more: cached input,
  tiers, other service tiers, changes to come.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from gateway.catalogue.listing import ListedModel
from gateway.catalogue.neighbours import Usual
from gateway.catalogue.prices import Catalogue
from gateway.kernel.money import Price

#: Providers whose models tell what anything costs usually.
_MAKERS: Final = ("openai", "anthropic", "google", "mistral", "deepseek", "together", "openrouter")
_PARTS: Final = ("input_mtok_nanos", "output_mtok_nanos")


def judge_prices(
    models: Iterable[ListedModel], catalogue: Catalogue, provider: str, *, at: float
) -> tuple[ListedModel, ...]:
    """The models, prices that can't be meant moved to `refused`. `provider` is the catalogue's id, empty for none."""
    own = _usual(catalogue, provider, at)
    everybody = Usual(price for maker in _MAKERS if (price := _usual(catalogue, maker, at).price()) is not None)
    return tuple(_judged(model, catalogue, provider, (own, everybody), at) for model in models)


def _judged(
    model: ListedModel, catalogue: Catalogue, provider: str, usual: tuple[Usual, ...], at: float
) -> ListedModel:
    price = model.price
    if price is None:
        return model
    published = catalogue.price(provider, model.id, at=at) if provider else None
    if published is not None and all(getattr(price, part) == getattr(published, part) for part in _PARTS):
        return msgspec.structs.replace(model, price=None)
    beside = (Usual((published,)),) if published is not None else usual
    # The first that says anything: a provider of one unknown model has no usual price.
    why = next((why for each in beside if (why := each.objection(price))), "")
    return msgspec.structs.replace(model, price=None, refused=why) if why else model


def _usual(catalogue: Catalogue, provider: str, at: float) -> Usual:
    cards = catalogue.cards(provider) if provider else ()
    prices: list[Price] = [
        price
        for card in cards
        if not card.refused and (price := card.price(at)) is not None and not price.image_nanos
    ]
    return Usual(prices)
