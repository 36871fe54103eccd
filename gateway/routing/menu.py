"""What routing chooses from: the offers of one model for one dialect, and where to go when none of them will do.

A `Menu` is made once for each model and dialect that is asked for, from one configuration, and never changes: an
ordinary request finds it by one look-up. Where a caller has wishes, or an offer has limits, `narrow` makes another
for that request. Candidates of both share what is remembered of their offers.

Rules:
- An offer that does not speak the dialect, lacks a tag that its model requires, or has no price, is on no menu. Where
  a dialect costs nothing unless a price says otherwise (moderations), none is needed.
- Groups are tried in order. The first are the model's own offers; each fallback model is a group of its own.
- A fallback is followed once: the fallbacks of a fallback model are not. A model is on a menu once.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from math import inf
from typing import Final

import msgspec

from gateway.errors import BadRequest, GatewayError, NoOffer, UnknownModel, UnmetWish, Unpriced
from gateway.exchange import Offer
from gateway.kernel.money import rates_of
from gateway.kernel.offers import served_as
from gateway.routing.health import Health, OfferHealth
from gateway.routing.preferences import Preferences, Sort
from gateway.settings import Condition, Model, Strategy
from gateway.wire.dialects import FREE_DIALECTS, Dialect

#: The priorities of accounts' own keys (`keychain.py`): before and behind all that an operator gives.
FIRST: Final = -1
FALLBACK: Final = 2**31
#: Menus kept at hand; callers choose the names that only a wildcard matches.
MENUS_MAX: Final = 4096
#: Further models of one request.
MODELS_MAX: Final = 8

_STRATEGIES: Final[dict[Sort, Strategy]] = {"price": "cost", "throughput": "throughput", "latency": "latency"}
_USD_NANOS: Final = 1_000_000_000
_NO_ROW: Final = Model()
_NO_MODEL: Final = "This path names no model, and the gateway has no default provider for it."
_NO_ENDPOINT: Final = "No provider of this model has this endpoint."


class Candidate:
    """An offer, what is remembered of it, and what strategies compute from it again and again."""

    __slots__ = ("health", "input_cost", "offer", "output_cost", "priority", "request_cost", "seed", "weight")

    def __init__(self, offer: Offer, health: OfferHealth, *, priority: int | None = None) -> None:
        self.offer = offer
        self.health = health
        self.priority = offer.priority if priority is None else priority
        self.weight = offer.weight
        # Of a token in, a token out and a request, in proportion: good for comparing and nothing else.
        price = None if offer.free else offer.price
        permille = 0 if price is None else price.markup_permille
        self.input_cost = 0 if price is None else price.input_mtok_nanos * permille
        self.output_cost = 0 if price is None else price.output_mtok_nanos * permille
        self.request_cost = 0 if price is None else price.request_nanos * permille * 1_000_000
        #: What tells it apart where candidates draw for a conversation; the same in every worker.
        name = offer.provider.encode("utf-8", "surrogatepass")
        self.seed = int.from_bytes(blake2b(name, digest_size=8).digest(), "big")

    def __repr__(self) -> str:
        return f"<Candidate {self.offer.model} at {self.offer.provider}>"


class Group:
    """Candidates of equal right, and how to choose between them."""

    __slots__ = ("best", "candidates", "cheapest", "even", "floor", "strategy", "winners")

    def __init__(self, candidates: tuple[Candidate, ...], *, strategy: Strategy, floor: float = 0.0) -> None:
        self.candidates = candidates
        self.strategy = strategy
        #: Tokens each second that will do, for the throughput strategy.
        self.floor = floor
        #: Those of the lowest priority number; all of them where priorities do not differ.
        self.best = lowest(candidates)
        #: All of them weigh the same.
        self.even = len({candidate.weight for candidate in candidates}) == 1
        #: Those of the best that are the cheapest for requests of any size; empty where that depends.
        self.cheapest = _cheapest(self.best)
        #: Who serves which conversations, as far as it was asked; of the best.
        self.winners: dict[int, Candidate] = {}


def _cheapest(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    costs = [(each.input_cost, each.output_cost, each.request_cost) for each in candidates]
    least = tuple(map(min, zip(*costs, strict=True)))
    return tuple(each for each, cost in zip(candidates, costs, strict=True) if cost == least)


def lowest(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """The candidates with the lowest priority number; the same object where that is all of them."""
    first = min([candidate.priority for candidate in candidates])
    best = [candidate for candidate in candidates if candidate.priority == first]
    return candidates if len(best) == len(candidates) else best


class Shadow(msgspec.Struct, frozen=True):
    """Who is asked as well, and how often: a share of the requests."""

    menu: "Menu"
    share: float


class Menu:
    """The groups of one request, and everything on them."""

    __slots__ = (
        "alone",
        "conditions",
        "context",
        "count",
        "groups",
        "hedge",
        "lacks",
        "longest_tokens",
        "offers",
        "own",
        "policy",
        "room_tokens",
        "shadow",
        "sole_try",
        "spare",
        "warm",
    )

    def __init__(
        self,
        own: Group,
        *,
        spare: tuple[Group, ...] = (),
        context: tuple[Group, ...] = (),
        policy: tuple[Group, ...] = (),
        sole_try: bool = False,
        hedge: bool = False,
        shadow: Shadow | None = None,
        conditions: "tuple[tuple[Condition, Menu | GatewayError], ...]" = (),
    ) -> None:
        self.own = own
        #: Who is asked as well when it was answered.
        self.shadow = shadow
        #: What holds instead for requests that meet a condition, in the order in which they count.
        self.conditions = conditions
        #: Where to go when the own offers fail, find the prompt too long, or find it offensive.
        self.spare = spare
        self.context = context
        self.policy = policy
        #: True where the caller wants no second provider.
        self.sole_try = sole_try
        #: A first try that takes long may get a second one beside it.
        self.hedge = hedge
        #: Where a failing offer leads, and how many candidates there are.
        self.groups = (own, *spare)
        self.count = sum(len(group.candidates) for group in self.groups)
        groups = (*self.groups, *context, *policy)
        # By identity: a price can't be hashed.
        offers = {id(candidate.offer): candidate.offer for group in groups for candidate in group.candidates}
        self.offers = tuple(offers.values())
        limits = [offer.output_tokens_max for offer in self.offers if offer.output_tokens_max is not None]
        #: The longest answer that any of them gives; None where that is not known of all.
        self.longest_tokens = max(limits) if len(limits) == len(self.offers) else None
        first = own.candidates[0]
        #: The only candidate with its only key, where there is nothing to choose at all.
        self.alone = first if len(self.offers) == 1 and len(first.health.provider.keys) == 1 else None
        #: What some offer can't do.
        self.lacks = frozenset(lack for offer in self.offers for lack in offer.lacks)
        #: A prompt with its answer that is larger does not fit everywhere, where there is a choice.
        sizes = [candidate.offer.context_tokens or inf for candidate in own.candidates]
        self.room_tokens = min(sizes) if len(sizes) > 1 or context else inf
        #: True where coming back to the same offer saves money: a prompt it has kept is cheaper.
        self.warm = len(own.candidates) > 1 and any(_keeps_prompts(c.offer) for c in own.candidates)


def _keeps_prompts(offer: Offer) -> bool:
    price = offer.price
    if price is None or price.input_cached_mtok_nanos is None:
        return False
    return price.input_cached_mtok_nanos < price.input_mtok_nanos


class Menus:
    """Makes and keeps the menus of one configuration."""

    def __init__(
        self,
        *,
        find: Callable[[str], tuple[Offer, ...]],
        dialects: Mapping[str, frozenset[Dialect]],
        models: Mapping[str, Model],
        health: Health,
    ) -> None:
        """`find` gives the offers of a model, `dialects` what each provider speaks, `models` the rows of the file."""
        self._find = find
        self._dialects = dialects
        self._models = models
        self._health = health
        self._menus: dict[tuple[str, Dialect], Menu] = {}

    def serve(self, find: Callable[[str], tuple[Offer, ...]]) -> None:
        """From now on, offers are found so; what is remembered of them stays."""
        self._find = find
        self._menus = {}

    def find(self, model: str, dialect: Dialect) -> Menu:
        """The menu for a model as a caller named it.

        Raises:
            UnknownModel: nobody offers it.
            BadRequest: no model was named and there is no default provider, or no provider of it has this endpoint.
            Unpriced: no offer has a price, and none is free.
            NoOffer: no provider has the tags that the model's row requires.
        """
        found = self._menus.get((model, dialect))
        if found is None:
            found = self._make(model, dialect)
            if len(self._menus) >= MENUS_MAX:
                self._menus.clear()
            self._menus[model, dialect] = found
        return found

    def combine(self, models: tuple[str, ...], dialect: Dialect) -> Menu:
        """The menu of the first of `models` that can be had, with the others as its fallbacks, whatever happens.

        Raises:
            GatewayError: as `find` for the first of them, if none can be had.
        """
        menus: list[Menu] = []
        failure: GatewayError | None = None
        for model in models[: MODELS_MAX + 1]:
            try:
                menus.append(self.find(model, dialect))
            except (UnknownModel, BadRequest, Unpriced, NoOffer) as error:
                failure = failure or error
        if not menus:
            raise failure or BadRequest("`models` is empty.", param="models")
        others = tuple(menu.own for menu in menus[1:])
        return Menu(menus[0].own, spare=others, context=others, policy=others, hedge=menus[0].hedge)

    def _make(self, model: str, dialect: Dialect) -> Menu:
        row = self._row(model)
        conditions = tuple((each, self._make_for(each, model, row, dialect)) for each in row.conditions)
        return self._make_of(model, row, dialect, conditions=conditions)

    def _make_for(self, condition: Condition, model: str, row: Model, dialect: Dialect) -> "Menu | GatewayError":
        """What holds where a condition is met: a menu, or why there is none."""
        require = (*row.require, *condition.require)
        if condition.model:
            model = condition.model
            row = self._row(model)
            require = (*row.require, *require)
        row = msgspec.structs.replace(row, require=require, routing=condition.routing or row.routing)
        try:
            return self._make_of(model, row, dialect, providers=condition.providers)
        except (UnknownModel, BadRequest, Unpriced, NoOffer) as error:
            return error

    def _make_of(
        self,
        model: str,
        row: Model,
        dialect: Dialect,
        *,
        providers: tuple[str, ...] = (),
        conditions: "tuple[tuple[Condition, Menu | GatewayError], ...]" = (),
    ) -> Menu:
        offers = self._served(model, dialect, row)
        if providers:
            offers = tuple(offer for offer in offers if offer.provider in providers)
            if not offers:
                raise NoOffer("No provider of this model meets what its operator requires.")
        own = self._group(offers, row)
        return Menu(
            own,
            spare=self._chain(model, row.fallbacks, dialect),
            context=self._chain(model, row.context_fallbacks, dialect),
            policy=self._chain(model, row.policy_fallbacks, dialect),
            hedge=row.hedge,
            shadow=self._shadow(row, dialect),
            conditions=conditions,
        )

    def _shadow(self, row: Model, dialect: Dialect) -> Shadow | None:
        if not row.shadow:
            return None
        try:
            offers = self._served(row.shadow, dialect, self._row(row.shadow))
        except (UnknownModel, BadRequest, Unpriced, NoOffer):
            # As of fallbacks: the configuration's check tells.
            return None
        offers = tuple(offer for offer in offers if _has_tags(offer, row.require))
        return Shadow(Menu(self._group(offers, row)), row.shadow_percent / 100) if offers else None

    def _row(self, model: str) -> Model:
        offers = self._find(model)
        name = offers[0].model if offers else model
        return self._models.get(name) or self._models.get("*") or _NO_ROW

    def _served(self, model: str, dialect: Dialect, row: Model) -> tuple[Offer, ...]:
        offers = self._find(model)
        if not offers:
            if model:
                raise UnknownModel(model)
            raise BadRequest(_NO_MODEL, param="model")
        speaking = [offer for offer in offers if dialect in self._dialects[offer.provider]]
        if not speaking:
            raise BadRequest(_NO_ENDPOINT, code="unsupported_endpoint", param="model")
        allowed = [offer for offer in speaking if _has_tags(offer, row.require)]
        if not allowed:
            raise NoOffer("No provider of this model meets what its operator requires.")
        is_free = dialect in FREE_DIALECTS
        charged = tuple(offer for offer in allowed if is_free or offer.free or offer.price is not None)
        if not charged:
            if any(offer.free or offer.price is not None for offer in offers if offer not in speaking):
                # Those who take any name do not know this one: whoever has it has no such endpoint.
                raise BadRequest(_NO_ENDPOINT, code="unsupported_endpoint", param="model")
            raise Unpriced
        return charged

    def _group(self, offers: tuple[Offer, ...], row: Model) -> Group:
        health = self._health
        candidates = tuple(Candidate(offer, health.offer(offer.model, offer.provider)) for offer in offers)
        return Group(candidates, strategy=row.routing, floor=row.tokens_per_s_wanted)

    def _chain(self, model: str, names: tuple[str, ...], dialect: Dialect) -> tuple[Group, ...]:
        groups: list[Group] = []
        for name in dict.fromkeys(names):
            if name == model:
                continue
            try:
                row = self._row(name)
                groups.append(self._group(self._served(name, dialect, row), row))
            except (UnknownModel, BadRequest, Unpriced, NoOffer):
                # The configuration's check tells the operator; the request is served without.
                continue
        return tuple(groups)


class _Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller wants to pay at most, and what for."""

    input_usd: float | None
    output_usd: float | None
    request_usd: float | None
    image_usd: float | None
    input_tokens: int
    service_tier: str | None


def narrow(
    menu: Menu,
    wishes: Preferences,
    *,
    needs: frozenset[str],
    tokens: int,
    input_tokens: int = 0,
    service_tier: str | None = None,
) -> Menu:
    """What is left of a menu for a request that needs something, or whose caller wants something.

    `tokens` is the estimated size of prompt and answer, `input_tokens` that of the prompt alone, and `service_tier`
    what the caller asks to be served as.

    Raises:
        UnmetWish: the wishes leave nothing, now and whenever it is tried again.
        BadRequest: no offer can do what the request needs.
    """
    ceiling = None
    if wishes.has_ceiling:
        ceiling = _Ceiling(
            input_usd=wishes.max_input_usd,
            output_usd=wishes.max_output_usd,
            request_usd=wishes.max_request_usd,
            image_usd=wishes.max_image_usd,
            input_tokens=input_tokens,
            service_tier=service_tier,
        )
    own = _wanted(menu.own, wishes, ceiling)
    others = () if not wishes.allow_fallbacks else menu.spare
    spare = _all_wanted(others, wishes, ceiling)
    context = _all_wanted(menu.context if wishes.allow_fallbacks else (), wishes, ceiling)
    policy = _all_wanted(menu.policy if wishes.allow_fallbacks else (), wishes, ceiling)
    if not own:
        if not spare:
            raise UnmetWish(param="provider")
        own, spare = spare[0].candidates, spare[1:]
    able = _able(own, needs)
    if not able:
        spare = tuple(
            group for group in (_regroup(group, _able(group.candidates, needs)) for group in spare) if group
        )
        if not spare:
            missing = ", ".join(sorted(needs & frozenset(lack for c in own for lack in c.offer.lacks)))
            raise BadRequest(f"No provider of this model can do what the request needs: {missing}.", param="model")
        able, spare = spare[0].candidates, spare[1:]
    fitting = tuple(candidate for candidate in able if _fits(candidate, tokens))
    if fitting:
        able = fitting
    elif context:
        # Sent as it is, it would only come back as too long.
        able, context = context[0].candidates, context[1:]
    strategy = menu.own.strategy if wishes.sort is None else _STRATEGIES[wishes.sort]
    if wishes.order and not wishes.allow_fallbacks:
        able = tuple(c for c in able if c.offer.provider in wishes.order) or able
    return Menu(
        Group(able, strategy=strategy, floor=0.0 if wishes.sort else menu.own.floor),
        spare=spare,
        context=context,
        policy=policy,
        sole_try=not wishes.allow_fallbacks and not wishes.order,
        hedge=menu.hedge and wishes.allow_fallbacks,
    )


def afford(menu: Menu, worst_case: Callable[[Offer], int], *, room_nanos: int) -> Menu | None:
    """What is left of a menu where there is room for a hold of so much, negative where there is none; None if that is
    nothing, or all of it. What costs nothing always fits.
    """
    most = max(0, room_nanos)
    fitting = {id(offer) for offer in menu.offers if worst_case(offer) <= most}
    if len(fitting) == len(menu.offers):
        return None

    def fit(groups: tuple[Group, ...]) -> tuple[Group, ...]:
        found = (_regroup(group, tuple(c for c in group.candidates if id(c.offer) in fitting)) for group in groups)
        return tuple(group for group in found if group is not None)

    groups = fit(menu.groups)
    if not groups:
        return None
    return Menu(
        groups[0],
        spare=groups[1:],
        context=fit(menu.context),
        policy=fit(menu.policy),
        sole_try=menu.sole_try,
        hedge=menu.hedge,
        shadow=menu.shadow,
    )


def _all_wanted(groups: tuple[Group, ...], wishes: Preferences, ceiling: _Ceiling | None) -> tuple[Group, ...]:
    found = (_regroup(group, _wanted(group, wishes, ceiling)) for group in groups)
    return tuple(group for group in found if group is not None)


def _regroup(group: Group, candidates: tuple[Candidate, ...]) -> Group | None:
    return Group(candidates, strategy=group.strategy, floor=group.floor) if candidates else None


def _wanted(group: Group, wishes: Preferences, ceiling: _Ceiling | None) -> tuple[Candidate, ...]:
    """The candidates that a caller's wishes allow, with the order it wants."""
    found = []
    for candidate in group.candidates:
        offer = candidate.offer
        if wishes.only and offer.provider not in wishes.only:
            continue
        if offer.provider in wishes.ignore or not _has_tags(offer, wishes.tags):
            continue
        if ceiling is not None and not _is_cheap(offer, ceiling):
            continue
        if wishes.order:
            # Behind all that were named, the operator's order.
            named = offer.provider in wishes.order
            place = candidate.priority
            if named:
                # Three places each: for an account's own key before or behind the operator's.
                place = 3 * (wishes.order.index(offer.provider) - len(wishes.order)) + _rank(candidate.priority)
            candidate = Candidate(offer, candidate.health, priority=place)  # noqa: PLW2901
        found.append(candidate)
    return tuple(found)


def _rank(priority: int) -> int:
    return -1 if priority == FIRST else 1 if priority == FALLBACK else 0


def _has_tags(offer: Offer, tags: tuple[str, ...]) -> bool:
    return not tags or all(tag in offer.tags for tag in tags)


def _is_cheap(offer: Offer, ceiling: "_Ceiling") -> bool:
    if offer.free:
        return True
    price = offer.price
    if price is None:
        return False
    rates, millionths = rates_of(
        price, input_tokens=ceiling.input_tokens, service_tier=served_as(ceiling.service_tier, offer)
    )
    # Times the markup: the ceiling is on what the caller pays.
    unit = _USD_NANOS * 1_000_000
    asked = (
        (ceiling.input_usd, rates.input_mtok_nanos),
        (ceiling.output_usd, rates.output_mtok_nanos),
        (ceiling.request_usd, rates.request_nanos),
        (ceiling.image_usd, max((rates.image_nanos, *rates.image_prices.values()))),
    )
    return all(most is None or nanos * millionths <= most * unit for most, nanos in asked)


def _able(candidates: tuple[Candidate, ...], needs: frozenset[str]) -> tuple[Candidate, ...]:
    if not needs:
        return candidates
    return tuple(candidate for candidate in candidates if needs.isdisjoint(candidate.offer.lacks))


def _fits(candidate: Candidate, tokens: int) -> bool:
    size = candidate.offer.context_tokens
    return size is None or tokens <= size
