"""What is remembered of each offer and each provider key: the only state that routing has, one object for each.

Rules:
- Every time is given from outside; nothing here looks at a clock.
- Whatever is put aside comes back by itself, at a time that is known when it is put aside.
- A key that was refused (401, 402: the whole account) is out for all models of its provider. One that is throttled or
  not allowed something (429, 403) is out for that offer alone: limits and permissions are by model.
- At most `OFFERS_MAX` offers are remembered. Callers choose the names that only a wildcard matches; when there are
  too many, those that are idle and well are forgotten, and then the oldest.
"""

from typing import Final

from gateway.routing.breaker import Breaker, BreakerRules, State
from gateway.routing.crowd import Crowd, CrowdRules
from gateway.routing.ewma import PeakEwma, RateEwma, UsualTime

OFFERS_MAX: Final = 8192
#: Of one key that an account brings itself.
OWN_OFFERS_MAX: Final = 64
_CROWD: Final = CrowdRules()


class KeyHealth:
    """One key of one provider."""

    __slots__ = ("number", "outstanding", "until_s")

    def __init__(self, number: int) -> None:
        self.number = number
        self.outstanding = 0
        #: Out of use until then.
        self.until_s = 0.0

    def __repr__(self) -> str:
        return f"<KeyHealth {self.number}: {self.outstanding} outstanding, out until {self.until_s:g}>"


class ProviderHealth:
    """The keys of one provider. One that needs no key has one without a text."""

    __slots__ = ("keys", "name", "turn")

    def __init__(self, name: str, keys: int) -> None:
        self.name = name
        self.keys = tuple(KeyHealth(number) for number in range(keys))
        #: Which key comes first among equals.
        self.turn = 0

    def out(self, now_s: float) -> int:
        """How many keys are out of use."""
        return sum(key.until_s > now_s for key in self.keys)


class OfferHealth:
    """A model at a provider."""

    __slots__ = ("breaker", "cooling", "crowd", "first_token", "heads", "outstanding", "provider", "rate", "total")

    def __init__(self, provider: ProviderHealth, rules: BreakerRules, crowd: CrowdRules = _CROWD) -> None:
        self.provider = provider
        self.breaker = Breaker(rules)
        self.crowd = Crowd(crowd)
        self.outstanding = 0
        #: Until when a key is not to be used for this offer, by its number.
        self.cooling: dict[int, float] = {}
        #: Seconds: of streams to their first token, of plain answers to their end.
        self.first_token = PeakEwma()
        self.total = PeakEwma()
        #: Output tokens each second, of streams.
        self.rate = RateEwma()
        #: How long plain answers, and streams, take to begin; measured where the model is hedged.
        self.heads = (UsualTime(), UsualTime())

    def __repr__(self) -> str:
        return f"<OfferHealth at {self.provider.name}: {self.outstanding} outstanding, {self.breaker!r}>"

    def is_ready(self, key: KeyHealth, now_s: float) -> bool:
        """Whether this key can be used here now."""
        return key.until_s <= now_s and (not self.cooling or self.cooling.get(key.number, 0.0) <= now_s)

    def admits(self, now_s: float) -> bool:
        """Whether a request may go here: the breaker lets it, and a key can be used."""
        if not self.breaker.admits(now_s):
            return False
        for key in self.provider.keys:
            if key.until_s <= now_s and (not self.cooling or self.cooling.get(key.number, 0.0) <= now_s):
                return True
        return False

    @property
    def is_full(self) -> bool:
        """Whether one more request would be more than the offer is known to take."""
        return self.outstanding + self.crowd.given >= self.crowd.limit

    def key_for(self, now_s: float, *, tried: frozenset[int]) -> KeyHealth:
        """The best key: one that can be used before one that can't, least outstanding first, in turn among equals."""
        keys = self.provider.keys
        if len(keys) == 1:
            return keys[0]
        turn = self.provider.turn = (self.provider.turn + 1) % len(keys)
        return min(
            keys[turn:] + keys[:turn],
            key=lambda key: (key.number in tried, not self.is_ready(key, now_s), key.outstanding),
        )

    def cool(self, key: KeyHealth, until_s: float) -> None:
        """Leave the key alone for this offer until then."""
        self.cooling[key.number] = max(until_s, self.cooling.get(key.number, 0.0))

    @property
    def is_well(self) -> bool:
        """True if forgetting it would lose nothing but an average."""
        return self.outstanding == 0 and self.breaker.state is State.CLOSED and not self.cooling


class OwnHealth:
    """What is remembered of one key that an account brings itself: nothing of it touches the operator's."""

    __slots__ = ("_crowd", "_offers", "_provider", "_rules")

    def __init__(self, provider: str, rules: BreakerRules, crowd: CrowdRules) -> None:
        self._provider = ProviderHealth(provider, 1)
        self._rules = rules
        self._crowd = crowd
        self._offers: dict[str, OfferHealth] = {}

    def offer(self, model: str) -> OfferHealth:
        """What is known of a model with this key."""
        found = self._offers.get(model)
        if found is None:
            if len(self._offers) >= OWN_OFFERS_MAX:
                self._offers = {name: offer for name, offer in self._offers.items() if not offer.is_well}
                while len(self._offers) >= OWN_OFFERS_MAX:
                    del self._offers[next(iter(self._offers))]
            found = self._offers[model] = OfferHealth(self._provider, self._rules, self._crowd)
        return found


class Health:
    """Everything that is remembered, in one worker."""

    def __init__(self, rules: BreakerRules, crowd: CrowdRules = _CROWD) -> None:
        self._rules = rules
        self._crowd = crowd
        self._offers: dict[tuple[str, str], OfferHealth] = {}
        self._providers: dict[str, ProviderHealth] = {}

    def know(self, provider: str, *, keys: int) -> None:
        """A provider is configured with this many keys. Where the number changed, it and its offers begin anew."""
        known = self._providers.get(provider)
        if known is None or len(known.keys) != keys:
            self._providers[provider] = ProviderHealth(provider, keys)
            for name in [name for name in self._offers if name[1] == provider]:
                del self._offers[name]

    def offer(self, model: str, provider: str) -> OfferHealth:
        """What is known of a model at a provider."""
        found = self._offers.get((model, provider))
        if found is None:
            if len(self._offers) >= OFFERS_MAX:
                self._offers = {name: offer for name, offer in self._offers.items() if not offer.is_well}
                while len(self._offers) >= OFFERS_MAX:
                    del self._offers[next(iter(self._offers))]
            found = self._offers[model, provider] = OfferHealth(self._providers[provider], self._rules, self._crowd)
        return found

    def make_own(self, provider: str) -> OwnHealth:
        """For a key that an account brings itself; its owner keeps it."""
        return OwnHealth(provider, self._rules, self._crowd)

    def worst(self) -> dict[str, State]:
        """The state of each provider's breakers: its worst one."""
        states = dict.fromkeys(self._providers, State.CLOSED)
        for (_, provider), offer in self._offers.items():
            states[provider] = max(states[provider], offer.breaker.state)
        return states

    def limits(self) -> dict[str, int]:
        """The lowest limit of requests under way among each provider's offers; those without are left out."""
        limits: dict[str, int] = {}
        for (_, provider), offer in self._offers.items():
            if offer.crowd.limit < self._crowd.most:
                limits[provider] = min(offer.crowd.limit, limits.get(provider, offer.crowd.limit))
        return limits

    def keys_out(self, now_s: float) -> dict[str, int]:
        """How many keys of each provider are out of use."""
        return {name: provider.out(now_s) for name, provider in self._providers.items()}
