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
  stored, all workers agree, and when a candidate is out, only its own conversations move. What is drawn for is one of
  `SLOTS` names, so that who won is remembered.
- Ties are broken at random: workers must not all choose alike.

Chance comes in as a function that gives numbers from 0 up to 1.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import inf, log
from typing import Final

import msgspec

from gateway.routing.menu import Candidate, Group, lowest

Chance = Callable[[], float]

#: Conversations are told apart no further than this.
SLOTS: Final = 4096
_MASK: Final = 2**64 - 1


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a strategy may want to know of the request."""

    stream: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    #: Names the conversation, where it should go back to where it was.
    key: bytes = b""


def choose(group: Group, candidates: Sequence[Candidate], asked: Asked, now_s: float, chance: Chance) -> Candidate:
    """One of `candidates`, which are of `group` and not empty."""
    if candidates is group.candidates:
        candidates = group.best
    elif group.best is not group.candidates:
        candidates = lowest(candidates)
    if len(candidates) == 1:
        return candidates[0]
    even = group.even
    if asked.key:
        return _drawn(group, candidates, asked.key)
    strategy = group.strategy
    if strategy == "priority":
        return _by_weight(candidates, chance, even=even)
    if strategy == "latency":
        return _faster_of_two(candidates, asked.stream, now_s, chance, even=even)
    if strategy == "throughput":
        return _fast(candidates, group.floor, now_s, chance)
    if strategy == "cost":
        if group.cheapest and candidates is group.best:
            return _by_weight(group.cheapest, chance, even=even)
        tokens_in, tokens_out = asked.input_tokens, asked.output_tokens
        costs = [c.input_cost * tokens_in + c.output_cost * tokens_out + c.request_cost for c in candidates]
        return _least(candidates, costs, chance)
    if even:
        return _least(candidates, [candidate.health.outstanding for candidate in candidates], chance)
    return _least(candidates, [candidate.health.outstanding / candidate.weight for candidate in candidates], chance)


def _by_weight(candidates: Sequence[Candidate], chance: Chance, *, even: bool = False) -> Candidate:
    """One at random; `even` says that they all weigh the same."""
    if even:
        return candidates[int(chance() * len(candidates))]
    at = chance() * sum([candidate.weight for candidate in candidates])
    for candidate in candidates:
        at -= candidate.weight
        if at < 0:
            return candidate
    return candidates[-1]


def _least(candidates: Sequence[Candidate], values: Sequence[float], chance: Chance) -> Candidate:
    """The candidate with the least of `values`, which are theirs."""
    best = min(values)
    equals = [candidate for candidate, value in zip(candidates, values, strict=True) if value == best]
    return equals[0] if len(equals) == 1 else _by_weight(equals, chance)


def _faster_of_two(
    candidates: Sequence[Candidate], stream: bool, now_s: float, chance: Chance, *, even: bool
) -> Candidate:
    if len(candidates) == 2:
        first, second = candidates
    elif even:
        one, other = int(chance() * len(candidates)), int(chance() * (len(candidates) - 1))
        first, second = candidates[one], candidates[other + (other >= one)]
    else:
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


def _drawn(group: Group, candidates: Sequence[Candidate], key: bytes) -> Candidate:
    """The candidate that draws the highest number for a conversation: the likelier, the more weight it has."""
    slot = int.from_bytes(blake2b(key, digest_size=8).digest(), "big") % SLOTS
    if candidates is not group.best:
        return _draw(candidates, slot)
    winner = group.winners.get(slot)
    if winner is None:
        winner = group.winners[slot] = _draw(candidates, slot)
    return winner


def _draw(candidates: Sequence[Candidate], slot: int) -> Candidate:
    # Spread over all bits, as the candidates' own names are.
    name = (slot + 1) * 0x9E3779B97F4A7C15 & _MASK
    best, highest = candidates[0], -inf
    for candidate in candidates:
        # The finishing steps of splitmix64: every bit of both goes into every bit of the number.
        mixed = (name ^ candidate.seed) * 0xBF58476D1CE4E5B9 & _MASK
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
        # 52 bits, so that it is never 0 and never 1.
        number = -candidate.weight / log((((mixed ^ mixed >> 31) >> 12) + 0.5) / 2**52)
        if number > highest:
            best, highest = candidate, number
    return best
