"""Administration: people, accounts, credit, prices, caches, and how the gateway does: the face of the module."""

from typing import Final

from gateway.control.admin import caches, credit, people, prices, system
from gateway.control.route import Route

ROUTES: Final[tuple[Route, ...]] = (*people.ROUTES, *credit.ROUTES, *prices.ROUTES, *caches.ROUTES, *system.ROUTES)
