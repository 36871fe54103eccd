"""Offers, candidates and menus for the tests of routing."""

from collections.abc import Mapping

from gateway.exchange import Call, Offer
from gateway.kernel.money import Price
from gateway.routing.breaker import BreakerRules
from gateway.routing.health import Health
from gateway.routing.menu import Candidate, Group, Menu, Menus
from gateway.settings import Model, Strategy
from gateway.wire.dialects import Dialect
from gateway.wire.peek import peek

CHAT = Dialect.OPENAI_CHAT
RULES = BreakerRules(requests_min=4, failure_percent=50.0, window_s=20.0, rest_s=10.0)


def offer(provider: str, model: str = "m", **facts) -> Offer:
    return Offer(model=model, provider=provider, upstream_model=model, **({"free": True} | facts))


def priced(provider: str, nanos: int, **facts) -> Offer:
    price = Price(input_mtok_nanos=nanos, output_mtok_nanos=2 * nanos, **facts.pop("price", {}))
    return offer(provider, free=False, price=price, **facts)


def health_of(*providers: str, keys: int | Mapping[str, int] = 1) -> Health:
    health = Health(RULES)
    for provider in providers:
        health.know(provider, keys=keys if isinstance(keys, int) else keys.get(provider, 1))
    return health


def group(*offers: Offer, strategy: Strategy = "priority", floor: float = 0.0, keys=1) -> Group:
    health = health_of(*(each.provider for each in offers), keys=keys)
    candidates = tuple(Candidate(each, health.offer(each.model, each.provider)) for each in offers)
    return Group(candidates, strategy=strategy, floor=floor)


def menus(offers: Mapping[str, tuple[Offer, ...]], models: Mapping[str, Model] | None = None, dialects=None) -> Menus:
    providers = {each.provider for several in offers.values() for each in several}
    return Menus(
        find=lambda model: offers.get(model, ()),
        dialects={provider: frozenset({CHAT}) for provider in providers} | (dialects or {}),
        models=models or {},
        health=health_of(*providers),
    )


def providers_of(several) -> list[str]:
    candidates = several.own.candidates if isinstance(several, Menu) else several.candidates
    return [candidate.offer.provider for candidate in candidates]


def call(body: bytes = b'{"model":"m","messages":[]}') -> Call:
    peeked = peek(body)
    return Call(
        id="1",
        dialect=CHAT,
        method="POST",
        path=b"/chat/completions",
        query=b"",
        headers=[],
        body=body,
        peek=peeked,
        model=peeked.model or "",
    )
