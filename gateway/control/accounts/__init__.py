"""People, teams, roles, keys, limits, and what was done with them: the face of the module."""

from typing import Final

from gateway.control.accounts import (
    activity,
    auth,
    key_usage,
    keys,
    plans,
    provider_keys,
    rate_limits,
    redirects,
    roles,
    rotation,
    teams,
    trail,
    users,
)
from gateway.control.route import Route

ROUTES: Final[tuple[Route, ...]] = (
    *auth.ROUTES,
    *redirects.ROUTES,
    *users.ROUTES,
    *keys.ROUTES,
    *rotation.ROUTES,
    *key_usage.ROUTES,
    *provider_keys.ROUTES,
    *rate_limits.ROUTES,
    *plans.ROUTES,
    *activity.ROUTES,
    *teams.ROUTES,
    *roles.ROUTES,
    *trail.ROUTES,
)
