"""Administration: people, accounts, credit, prices, caches, and how the gateway does: the face of the module."""

from typing import Final

from gateway.control.admin import caches, credit, people, prices, system, trials
from gateway.control.route import Route

ROUTES: Final[tuple[Route, ...]] = tuple(
    route for module in (people, credit, prices, caches, system, trials) for route in module.ROUTES
)
