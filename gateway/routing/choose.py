"""Which of several candidates: the strategies, each a function of what is known at this moment.

    priority            by weight, at random
    least_outstanding   the fewest requests under way, for its weight
    latency             of two taken at random, the one whose peak average times its queue is smaller
    cost                the cheapest for a request of this size
    throughput          any that is known to be fast enough, or not known at all; else the fastest

Rules:
- A lower priority number comes first, whatever the strategy.
- A conversation goes back to the candidate that served it, where that saves money (`key`): each candidate draws a
  number from the conversation's name and its own, and the highest wins (rendezvous hashing, weighted). So nothing is
  stored, all workers agree, and when a candidate is out, only its own conversations move.
- Ties are broken at random: workers must not all choose alike.

Chance comes in as a function that gives numbers from 0 up to 1.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import inf, log

import msgspec

from gateway.exchange import Offer
from gateway.routing.menu import Candidate, Group

Chance = Callable[[], float]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a strategy may want to know of the request."""

    stream: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    #: Names the conversation, where it should go back to where it was.
    key: bytes = b""


def choose(group: Group, candidates: Sequence[Candidate], asked: Asked, now_s: float, chance: Chance) -> Candidate:
    """One of `candidates`, which are of `group` and not empty."""
    if len(candidates) == 1:
        return candidates[0]
    if group.levels:
        first = min(candidate.priority for candidate in candidates)
        candidates = [candidate for candidate in candidates if candidate.priority == first]
        if len(candidates) == 1:
            return candidates[0]
    if asked.key:
        return max(candidates, key=lambda candidate: _draw(candidate, asked.key))
    match group.strategy:
        case "least_outstanding":
            return _least(candidates, lambda candidate: candidate.health.outstanding / candidate.weight, chance)
        case "latency":
            return _faster_of_two(candidates, asked.stream, now_s, chance)
        case "cost":
            return _least(candidates, lambda candidate: cost_of(candidate.offer, asked), chance)
        case "throughput":
            return _fast(candidates, group.floor, now_s, chance)
        case _:
            return _by_weight(candidates, chance)


def cost_of(offer: Offer, asked: Asked) -> int:
    """What a request of this size costs at an offer, in proportion: good for comparing and nothing else."""
    price = offer.price
    if offer.free or price is None:
        return 0
    tokens = asked.input_tokens * price.input_mtok_nanos + asked.output_tokens * price.output_mtok_nanos
    return (tokens + price.request_nanos * 1_000_000) * price.markup_permille


def _by_weight(candidates: Sequence[Candidate], chance: Chance) -> Candidate:
    at = chance() * sum(candidate.weight for candidate in candidates)
    for candidate in candidates:
        at -= candidate.weight
        if at < 0:
            return candidate
    return candidates[-1]


def _least(candidates: Sequence[Candidate], key: Callable[[Candidate], float], chance: Chance) -> Candidate:
    best = inf
    equals: list[Candidate] = []
    for candidate in candidates:
        value = key(candidate)
        if value < best:
            best = value
            equals = [candidate]
        elif value == best:
            equals.append(candidate)
    return equals[0] if len(equals) == 1 else _by_weight(equals, chance)


def _faster_of_two(candidates: Sequence[Candidate], stream: bool, now_s: float, chance: Chance) -> Candidate:
    first = _by_weight(candidates, chance)
    second = _by_weight([candidate for candidate in candidates if candidate is not first], chance)
    return first if _load(first, stream, now_s) <= _load(second, stream, now_s) else second


def _load(candidate: Candidate, stream: bool, now_s: float) -> float:
    """How long the next request would take if each under way took as long as the last ones."""
    health = candidate.health
    average = health.first_token if stream else health.total
    return average.read(now_s) * (health.outstanding + 1)


def _fast(candidates: Sequence[Candidate], floor: float, now_s: float, chance: Chance) -> Candidate:
    """Those nobody measured lately are among the fast ones: they are found out by asking."""
    rates = [(candidate.health.rate.read(now_s), candidate) for candidate in candidates]
    good = [candidate for rate, candidate in rates if rate is None or (floor and rate >= floor)]
    if good:
        return _by_weight(good, chance)
    return max(rates, key=lambda pair: pair[0] or 0.0)[1]


def _draw(candidate: Candidate, key: bytes) -> float:
    """A candidate's number for a conversation: the higher, the likelier with its weight."""
    name = candidate.offer.provider.encode("utf-8", "surrogatepass")
    digest = blake2b(key, digest_size=8, person=blake2b(name, digest_size=8).digest()).digest()
    part = (int.from_bytes(digest) + 1) / (2**64 + 1)
    return -candidate.weight / log(part)
