"""People, teams, roles, keys, limits, and what was done with them: the face of the module."""

from typing import Final

from gateway.control.accounts import auth, redirects, roles, teams, users
from gateway.control.route import Route

ROUTES: Final[tuple[Route, ...]] = (*auth.ROUTES, *redirects.ROUTES, *users.ROUTES, *teams.ROUTES, *roles.ROUTES)
