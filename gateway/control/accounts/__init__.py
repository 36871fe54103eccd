"""People, teams, roles, keys, limits, and what was done with them: the face of the module."""

from typing import Final

from gateway.control.accounts import activity, auth, redirects, roles, teams, trail, users
from gateway.control.route import Route

ROUTES: Final[tuple[Route, ...]] = (
    *auth.ROUTES,
    *redirects.ROUTES,
    *users.ROUTES,
    *activity.ROUTES,
    *teams.ROUTES,
    *roles.ROUTES,
    *trail.ROUTES,
)
