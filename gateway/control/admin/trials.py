"""How trials did, for administrators. What is counted is told in `gateway/control/trials.py`."""

from typing import Final

from gateway.control.route import Call, Nothing, Route
from gateway.control.trials import TrialAnalytics


async def show_analytics(call: Call[Nothing, Nothing]) -> TrialAnalytics:
    """How many trials there were, what became of them, and what was used in them. At most a minute old."""
    return await call.parts.trials.analytics()


ROUTES: Final = (
    Route(
        method="GET",
        path="/admin/trial/analytics",
        handler=show_analytics,
        access="admin:analytics:read",
        summary="How trials did",
        tag="administration",
    ),
)
