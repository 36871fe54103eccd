"""What a failed attempt means: one of a few verdicts, and by one table what follows from it.

    verdict      for example                           next                      the breaker learns
    caller       400, 413, 422                         back to the caller        that it answers
    absent       404, it does not have the model       the next offer            that it answers
    context      400, the prompt is too long           the context fallbacks     that it answers
    policy       400, the content filter               the policy fallbacks      that it answers
    key          401, 402, 403, quota used up          the next key, offer       nothing
    throttled    429                                   the next key, offer       nothing
    provider     500, 503, 529, an error in a stream   the next offer            a failure
    network      refused, reset, not in time           the next offer            a failure
    saturated    all our connections are in use        the next offer            nothing
    unfit        a member it can't be told of          the next offer            nothing

"Next" is where there is one; else the caller gets what there was. Whether a try is still allowed (attempts, deadline,
retry budget) is decided in `course.py`. An offer that is unfit was not asked: it counts for none of these.
"""

from enum import Enum, StrEnum
from typing import Final, Literal

import msgspec

from gateway.errors import (
    BadRequest,
    GatewayError,
    UpstreamCredentials,
    UpstreamError,
    UpstreamRefused,
    UpstreamSaturated,
)


class Verdict(StrEnum):
    """Who must change something for the request to succeed."""

    CALLER = "caller"
    ABSENT = "absent"
    CONTEXT = "context"
    POLICY = "policy"
    KEY = "key"
    THROTTLED = "throttled"
    PROVIDER = "provider"
    NETWORK = "network"
    SATURATED = "saturated"
    UNFIT = "unfit"


class Next(Enum):
    """Where to go from a failure."""

    STOP = "stop"
    KEY = "key"
    OFFER = "offer"
    CONTEXT = "context"
    POLICY = "policy"


Lesson = Literal["success", "failure", "nothing"]


class Rule(msgspec.Struct, frozen=True):
    """What follows from a verdict."""

    next: Next
    breaker: Lesson
    #: True where the same offer may do better in a moment.
    passing: bool = False


RULES: Final = {
    Verdict.CALLER: Rule(Next.STOP, "success"),
    Verdict.ABSENT: Rule(Next.OFFER, "success"),
    Verdict.CONTEXT: Rule(Next.CONTEXT, "success"),
    Verdict.POLICY: Rule(Next.POLICY, "success"),
    Verdict.KEY: Rule(Next.KEY, "nothing"),
    Verdict.THROTTLED: Rule(Next.KEY, "nothing", passing=True),
    Verdict.PROVIDER: Rule(Next.OFFER, "failure", passing=True),
    Verdict.NETWORK: Rule(Next.OFFER, "failure", passing=True),
    Verdict.SATURATED: Rule(Next.OFFER, "nothing"),
    Verdict.UNFIT: Rule(Next.OFFER, "nothing"),
}

_BLAMES: Final = {
    "caller": Verdict.CALLER,
    "context": Verdict.CONTEXT,
    "policy": Verdict.POLICY,
    "key": Verdict.KEY,
    "provider": Verdict.PROVIDER,
}


def judge(error: GatewayError) -> Verdict:
    """The verdict on what an attempt raised. Anything that is no provider's failure is the caller's to hear."""
    if isinstance(error, UpstreamRefused):
        if error.absent:
            return Verdict.ABSENT
        verdict = _BLAMES.get(error.blame, Verdict.PROVIDER)
        return Verdict.THROTTLED if verdict is Verdict.PROVIDER and error.status == 429 else verdict
    if isinstance(error, UpstreamCredentials):
        return Verdict.KEY
    if isinstance(error, UpstreamSaturated):
        return Verdict.SATURATED
    if isinstance(error, BadRequest):
        # From writing the request, which each provider's adapter does in its own way.
        return Verdict.UNFIT
    return Verdict.NETWORK if isinstance(error, UpstreamError) else Verdict.CALLER
