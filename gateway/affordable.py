"""Going on with what can be paid for, where the dearest of what could serve a request can't.

The hold covers the dearest candidate, so that any of them may serve. Where the ledger says that there is not room for
so much, it says how much room there is: the candidates that fit are then asked for alone. Fallback models count where
none of the model's own offers fits.

Rules:
- Only what money refused is asked for again, with less each time, at most `NARROWINGS_MAX` times. Others may take the
  room in between; the ledger decides, never what it said before.
- What can be paid for is chosen from as before: by priority, strategy and a caller's wishes.
- Where nothing fits, the last refusal holds.
"""

from collections.abc import Callable
from typing import Final

from gateway.deps import Deps
from gateway.exchange import Exchange, Offer, Principal
from gateway.kernel.admission import Refused, take
from gateway.kernel.holds import Hold
from gateway.kernel.money import Nanos
from gateway.kernel.verbs import Admission, NoCredit, OverBudget
from gateway.routing.menu import afford

#: How often less is asked for.
NARROWINGS_MAX: Final = 3


async def take_less(
    refused: Refused,
    hold: Hold,
    tokens: int,
    principal: Principal,
    *,
    x: Exchange,
    deps: Deps,
    worst_case: Callable[[Offer], Nanos],
) -> tuple[Hold, Admission]:
    """Take what `take` takes for those on the menu that there is room for; sets `x.menu` and `x.offers` to them.

    `worst_case` is the most that an offer can cost. The hold that was asked for last, and its answer.

    Raises:
        StoreUnavailable: nobody can tell.
    """
    assert x.menu is not None
    admission: Admission = refused
    for _ in range(NARROWINGS_MAX):
        if not isinstance(admission, NoCredit | OverBudget):
            break
        menu = afford(x.menu, worst_case, room_nanos=admission.room_nanos)
        if menu is None:
            break
        scope, limit = (admission.scope, "budget") if isinstance(admission, OverBudget) else ("account", "credit")
        deps.telemetry.count_narrowing(scope, limit)
        x.menu, x.offers = menu, menu.offers
        hold = Hold(hold.request_id, hold.scopes, max(map(worst_case, menu.offers)))
        admission = await take(hold, tokens, principal, ledger=deps.ledger, holds=deps.holds, loader=deps.loader)
        x.tags = {**x.tags, "narrowed_by": limit}
    return hold, admission
