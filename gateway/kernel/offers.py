"""Which providers offer which model: an immutable table, swapped whole when the configuration changes.

A provider lists public model names. `*` offers every model that no list names; `prefix*` every one that begins so.
The most exact listing wins: a name, then the longest prefix, then `*`; among equals, the order of the configuration.

Where a wildcard takes a name with a slash in it, what providers say that they have decides what it means: aggregators
name models after their makers, who would refuse the name. `acme/m` at the provider `acme` is its `m`, where it says
that it has that and no `acme/m`. And of those who say what they have, only those are asked who have it, if any.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from gateway.exchange import Offer
from gateway.kernel.money import MAX_NANOS, Nanos, Price, cost_nanos, fee_nanos
from gateway.settings import Model, ModelTimeouts, Provider, Settings, Timeouts
from gateway.wire.usage import Usage

#: How many names that only a wildcard matches are remembered; callers choose these names.
REMEMBERED_MAX: Final = 4096
#: Of what one provider says that it has, as many are shown to callers who ask for all models.
LISTED_MAX: Final = 1000

#: As a service tier: whatever the account at the provider is set to.
AUTO: Final = "auto"

_NO_MODEL: Final = Model()
_NO_PROVIDER: Final = Provider(adapter="")
_TIMEOUTS: Final = Timeouts()

#: (provider, public model, the provider's name for it) to its price, if any is known, and whether it is free.
Pricing = Callable[[str, str, str], tuple[Price | None, bool]]


class Known(NamedTuple):
    """What is known of a model at a provider besides its price; the configuration's own figures among it."""

    context_tokens: int | None = None
    lacks: tuple[str, ...] = ()
    output_tokens_max: int | None = None


#: A provider to the models that it says it has; empty where it says nothing.
Listing = Callable[[str], Collection[str]]
#: The same three to what is known of it.
Knowing = Callable[[str, str, str], Known]


def _configured_only(models: Mapping[str, Model]) -> Knowing:
    """Where nobody is asked but the configuration."""

    def know(provider: str, model: str, upstream_model: str) -> Known:
        return Known((models.get(model) or models.get("*") or _NO_MODEL).context_tokens)

    return know


class OfferTable:
    """The offers of one configuration."""

    def __init__(
        self,
        providers: Mapping[str, Iterable[str]],
        *,
        models: Mapping[str, Model],
        price: Pricing,
        know: Knowing | None = None,
        listing: Listing = lambda _: (),
        default: str = "",
        rows: Mapping[str, Provider] | None = None,
        timeouts: Timeouts = _TIMEOUTS,
    ) -> None:
        """`providers` maps each provider in use to the model names it lists; `default` takes requests without one.

        `rows` are the providers as configured, `timeouts` what holds for those that have none of their own.
        """
        self._rows = rows or {}
        self._timeouts = timeouts
        self._models = models
        self._price = price
        self._know = know or _configured_only(models)
        self._listing = listing
        self._callable: list[tuple[str, str]] | None = None
        #: Answers that are the same for everybody until another table takes this one's place.
        self.shown: dict[str, bytes] = {}
        self._default = default
        self._exact: dict[str, tuple[Offer, ...]] = {}
        self._prefixes: list[tuple[str, str]] = []
        self._aliases = {alias: name for name, model in models.items() for alias in model.aliases}
        listed: dict[str, list[str]] = {}
        for provider, names in providers.items():
            for name in names:
                if name.endswith("*"):
                    self._prefixes.append((name[:-1], provider))
                else:
                    listed.setdefault(name, []).append(provider)
        # Longest first; the sort keeps the configuration's order among equals.
        self._prefixes.sort(key=lambda item: -len(item[0]))
        for name, offering in listed.items():
            self._exact[name] = tuple(self._offer(name, provider) for provider in offering)
        self._remembered: dict[str, tuple[Offer, ...]] = {}

    @classmethod
    def of(
        cls,
        settings: Settings,
        providers: Mapping[str, Iterable[str]],
        *,
        price: Pricing,
        know: Knowing | None = None,
        listing: Listing = lambda _: (),
    ) -> "OfferTable":
        """The table for a configuration and the providers that loaded."""
        default = settings.default_provider
        if not default and len(providers) == 1:
            default = next(iter(providers))
        return cls(
            providers,
            models=settings.models,
            price=price,
            know=know,
            listing=listing,
            default=default,
            rows=settings.providers,
            timeouts=settings.upstream.timeouts,
        )

    def find(self, model: str) -> tuple[Offer, ...]:
        """The offers for a model as a caller named it, best first; empty if there is none."""
        found = self._exact.get(model) or self._remembered.get(model)
        if found is not None:
            return found
        if not model:
            return (self._offer("", self._default),) if self._default else ()
        if (target := self._aliases.get(model)) is not None and target != model:
            return self.find(target)
        found = self._match(model)
        if found:
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[model] = found
        return found

    def served(self, provider: str, upstream_model: str) -> Offer | None:
        """The offer behind a name that a provider knows a model by, where a caller can only use that one."""
        for name in (upstream_model, *self._exact):
            for offer in self.find(name):
                if offer.provider == provider and offer.upstream_model == upstream_model:
                    return offer
        return None

    def offer(self, model: str, provider: str) -> Offer:
        """The offer of a model at a provider, listed or not; for looking at, nothing of it is remembered."""
        return self._offer(model, provider)

    def is_listed(self, model: str) -> bool:
        """Whether the configuration names exactly this, so that no part of it is a wish."""
        return model in self._exact or model in self._aliases

    def listed(self) -> list[str]:
        """The models the configuration names, and so the ones that may be labels; callers choose other names."""
        return list(self._exact)

    def names(self) -> list[tuple[str, str]]:
        """(model, provider that is first to serve it) for every model that is listed by name, sorted."""
        named = {name: offers[0].provider for name, offers in self._exact.items()}
        for alias, target in self._aliases.items():
            if offers := self.find(target):
                named.setdefault(alias, offers[0].provider)
        return sorted(named.items())

    def callable_names(self) -> list[tuple[str, str]]:
        """`names`, and those that a wildcard takes of what its provider says that it has, where they have a price."""
        if self._callable is None:
            found = dict(self.names())
            for prefix, provider in self._prefixes:
                for name in islice(self._listing(provider), LISTED_MAX):
                    if name in found or not name.startswith(prefix):
                        continue
                    offer = self._offer(name, provider)
                    if offer.free or offer.price is not None:
                        found[name] = provider
            self._callable = sorted(found.items())
        return self._callable

    def _match(self, model: str) -> tuple[Offer, ...]:
        matching = [(prefix, provider) for prefix, provider in self._prefixes if model.startswith(prefix)]
        if not matching:
            return ()
        longest = len(matching[0][0])
        offers = [self._offer(model, provider) for prefix, provider in matching if len(prefix) == longest]
        if "/" in model and len(offers) > 1:
            has = {offer.provider: self._listing(offer.provider) for offer in offers}
            if any(offer.upstream_model in has[offer.provider] for offer in offers):
                offers = [o for o in offers if not has[o.provider] or o.upstream_model in has[o.provider]]
        return tuple(offers)

    def _upstream_model(self, model: str, provider: str) -> str:
        """What a provider is asked for."""
        row = self._models.get(model)
        if row is not None and (name := row.upstream.get(provider)) is not None:
            return name
        maker, slash, rest = model.partition("/")
        if slash and maker == provider and rest in (has := self._listing(provider)) and model not in has:
            return rest
        return model

    def _offer(self, model: str, provider: str) -> Offer:
        row = self._models.get(model)
        upstream_model = self._upstream_model(model, provider)
        price, free = self._price(provider, model, upstream_model)
        known = self._know(provider, model, upstream_model)
        # What is no price holds for models without a row of their own, if it stands in the one for all of them.
        row = row or self._models.get("*") or _NO_MODEL
        at = self._rows.get(provider, _NO_PROVIDER)
        return Offer(
            model=model,
            provider=provider,
            upstream_model=upstream_model,
            price=price,
            free=free,
            priority=row.priorities.get(provider, at.priority),
            weight=row.weights.get(provider, at.weight),
            tags=at.tags,
            lacks=tuple(dict.fromkeys((*at.lacks, *row.lacks, *known.lacks))),
            context_tokens=known.context_tokens,
            output_tokens_max=known.output_tokens_max or row.max_output_tokens,
            timeouts=_laid_over(at.timeouts or self._timeouts, row.timeouts),
            service_tier=at.service_tier,
        )


def served_as(asked: str | None, offer: Offer) -> str | None:
    """The service tier that an offer is to serve a request as which asks for `asked`; None: the plain one.

    A provider may serve less than it was asked for, at a lower price, but nothing dearer.
    """
    return offer.service_tier if asked is None or asked == AUTO else asked


def charge_nanos(usage: Usage, offer: Offer) -> Nanos:
    """What this usage is charged at this offer: its cost; of what went out with an account's own key, the fee."""
    if offer.price is None or (offer.free and usage.provider_cost_nanos is None):
        # Where nobody knows a price, the provider may: then there is one that has nothing but its word.
        return 0
    cost = min(cost_nanos(usage, offer.price), MAX_NANOS)
    return cost if offer.own is None else fee_nanos(cost, offer.own.fee_permille)


def _laid_over(timeouts: Timeouts, own: ModelTimeouts) -> Timeouts | None:
    """A model's own timeouts over those of its provider; None where it has none."""
    given = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not None}
    return msgspec.structs.replace(timeouts, **given) if given else None
