"""Admission: asking the ledger for all that a request may use, and what a refusal is called.

Whoever admits settles or voids what was taken: see `holds.py`.
"""

import math
from typing import Final

from gateway.errors import BudgetExceeded, CreditInFlight, InsufficientCredit, RateLimited, StoreUnavailable
from gateway.exchange import Principal
from gateway.kernel.holds import Hold, Holds
from gateway.kernel.limits import BUCKET_NAMES
from gateway.kernel.loader import Loader
from gateway.kernel.verbs import Admission, Busy, Ended, Limited, NoCredit, NotLoaded, OverBudget, UsedUp, Verbs

#: A slot or a hold is given back when another request ends, which nobody can foresee.
SOON_S: Final = 1.0
#: An account can be emptied from Redis while it is being loaded, but not for ever.
LOADS_MAX: Final = 3
#: What an admission can be but an admission.
Refused = Limited | Busy | OverBudget | UsedUp | NoCredit | NotLoaded | Ended


async def take(
    hold: Hold,
    tokens: int,
    principal: Principal,
    *,
    ledger: Verbs,
    holds: Holds,
    loader: Loader,
    lease_ms: int | None = None,
) -> Admission:
    """Take limits, a hold and a lease, loading the account if need be. Where the question was sent and no answer
    comes, whatever was taken is given back.

    Raises:
        StoreUnavailable: nobody can tell.
    """
    loads = 0
    while True:
        sent = ledger.admit(
            hold.request_id,
            hold.scopes,
            hold_nanos=hold.amount_nanos,
            tokens=tokens,
            lease_ms=lease_ms or holds.lease_ms,
        )
        try:
            admission = await sent
        except BaseException:
            holds.abandon(hold)
            raise
        if not isinstance(admission, NotLoaded) or loads == LOADS_MAX:
            return admission
        loads += 1
        await loader.ensure_loaded(principal.account_id, key_id=principal.key_id)


def refusal_of(refused: Refused, *, now_s: float) -> RateLimited | InsufficientCredit | StoreUnavailable:
    """The error for what the ledger said. Exact balances are nobody's business but the account's."""
    if isinstance(refused, NotLoaded | Ended):
        return StoreUnavailable(detail=f"admission answered {refused}", retry_after_s=SOON_S)
    if isinstance(refused, Limited):
        return _limited(refused)
    if isinstance(refused, Busy):
        return RateLimited(
            f"Rate limit reached: {refused.limit} requests at once for this {refused.scope}.",
            code="concurrency_limit_exceeded",
            retry_after_s=SOON_S,
        )
    if isinstance(refused, OverBudget):
        if refused.in_flight:
            return CreditInFlight(
                f"Requests in flight hold the rest of this {refused.scope}'s {refused.window} budget.",
                code="budget_in_flight",
                retry_after_s=SOON_S,
            )
        ends_s = None if refused.ends_ms is None else max(0.0, refused.ends_ms / 1000 - now_s)
        return BudgetExceeded(
            f"The {refused.window} budget of this {refused.scope} does not cover the request.", retry_after_s=ends_s
        )
    if isinstance(refused, UsedUp):
        return _used_up(refused)
    if refused.in_flight:
        return CreditInFlight(retry_after_s=SOON_S)
    return InsufficientCredit()


def _used_up(refused: UsedUp) -> RateLimited:
    text = f"This {refused.scope} is good for {refused.limit} requests in all"
    if refused.in_flight:
        # One that comes to nothing is given back.
        return RateLimited(
            f"{text}; the last of them are in flight.", code="requests_in_flight", retry_after_s=SOON_S
        )
    error = RateLimited(f"{text}, and they have been made.", code="requests_used_up")
    error.should_retry = False
    return error


def _limited(refused: Limited) -> RateLimited:
    name = BUCKET_NAMES[refused.bucket]
    text = f"Rate limit reached for this {refused.scope}: limit {refused.limit} {name}, requested {refused.wanted}."
    if refused.retry_ms is None:
        error = RateLimited(f"{text} The request is larger than the limit.", code="request_too_large_for_limit")
        error.should_retry = False
    else:
        error = RateLimited(
            f"{text} Please try again in {math.ceil(refused.retry_ms / 1000)}s.",
            retry_after_s=refused.retry_ms / 1000,
        )
    error.type = name.partition(" ")[0]
    return error
