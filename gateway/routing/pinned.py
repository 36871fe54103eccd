"""Requests that only one provider can serve: those about objects that live there.

What `menu.py` makes is narrowed to that provider; a request that names no model gets a menu of its own, at no cost:
what objects cost is charged with what is done with them.
"""

from typing import Final

from gateway.errors import BadRequest
from gateway.exchange import Offer
from gateway.routing.health import Health, KeyHealth
from gateway.routing.menu import Candidate, Group, Menu

#: Menus without a price, kept at hand: by provider and model.
MENUS_MAX: Final = 256


class FreeMenus:
    """The menus of requests that are about objects alone."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._menus: dict[tuple[str, str], Menu] = {}

    def at(self, provider: str, model: str = "") -> Menu:
        """The menu with nothing but this provider on it; `model` is passed on as it is."""
        found = self._menus.get((provider, model))
        if found is None:
            if len(self._menus) >= MENUS_MAX:
                self._menus.clear()
            offer = Offer(model=model, provider=provider, upstream_model=model, free=True)
            found = Menu(_alone(Candidate(offer, self._health.offer(model, provider))))
            self._menus[provider, model] = found
        return found


def pin(menu: Menu, provider: str) -> Menu:
    """What is left of a menu for a request about objects that live at `provider`.

    Raises:
        BadRequest: the model is not offered there.
    """
    for group in menu.groups:
        for candidate in group.candidates:
            if candidate.offer.provider == provider and candidate.offer.own is None:
                return Menu(_alone(candidate))
    raise BadRequest("The model is not offered by the provider that keeps the objects which this request refers to.")


def key_of(menu: Menu, number: int) -> KeyHealth:
    """The key of that number of the only provider on the menu."""
    return menu.own.candidates[0].health.provider.keys[number]


def _alone(candidate: Candidate) -> Group:
    return Group((candidate,), strategy="priority")
