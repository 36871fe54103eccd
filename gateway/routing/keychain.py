"""The provider keys that an account brings itself, and what they make of a menu.

An own key is one more candidate beside the operator's, for its account alone: the same offer with another credential.
Its mode says where it stands:

    first       before the operator's candidates of the same group
    fallback    behind them
    only        in their place: where such a key could serve the model that was asked for, no key of the operator's
                serves the request, not even another provider's or a fallback model's

Rules:
- What happens to an own key is remembered of it alone (`health.OwnHealth`): it never takes an operator's offer out,
  and is never taken out by one.
- A key that can't be used (its master key is gone, its provider does not take it any more) is passed over; an `only`
  one refuses the request then, since its owner wants to pay nothing but the fee.
- Nobody is shown what was asked with an own key: such menus have no shadow.
- Menus are made once for each of the operator's, and kept with the account's keys.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.errors import GatewayError, OwnKeyUnusable
from gateway.exchange import Offer
from gateway.kernel.own_keys import Mode, SealedKey
from gateway.registry import Provider
from gateway.routing.health import OwnHealth
from gateway.routing.menu import FALLBACK, FIRST, Candidate, Group, Menu
from gateway.upstream.renewal import Renewal

#: Menus kept of one account.
MENUS_MAX: Final = 256
_PRIORITIES: Final[dict[Mode, int]] = {"first": FIRST, "only": FIRST, "fallback": FALLBACK}


class OwnKey:
    """One of them, ready to be used. It has no text: that is in the adapter of `provider`."""

    __slots__ = ("fee_permille", "fingerprint", "health", "id", "mode", "name", "provider", "renewal")

    def __init__(
        self,
        key: SealedKey,
        provider: Provider | None,
        *,
        health: OwnHealth,
        fee_permille: int,
        renewal: Renewal | None,
    ) -> None:
        self.id = key.id
        #: Of the provider.
        self.name = key.provider
        self.mode = key.mode
        self.fingerprint = key.fingerprint
        #: The provider as configured, with this key alone; None where it can't be used.
        self.provider = provider
        self.health = health
        #: Of its credential, where that runs out.
        self.renewal = renewal
        #: Of what a request would have cost with the operator's key, in thousandths.
        self.fee_permille = fee_permille

    def __repr__(self) -> str:
        return f"<OwnKey {self.id} for {self.name}, {self.mode}>"


class Keychain:
    """All of one account that are switched on."""

    __slots__ = ("_menus", "keys", "renewals", "sealed")

    def __init__(self, keys: Sequence[OwnKey], sealed: tuple[SealedKey, ...]) -> None:
        self.keys = tuple(keys)
        #: What it was made of.
        self.sealed = sealed
        #: Of those whose credentials run out; nearly always none.
        self.renewals = tuple(key.renewal for key in keys if key.renewal is not None)
        #: By the operator's menu.
        self._menus: dict[Menu, Menu | GatewayError] = {}

    def __repr__(self) -> str:
        return f"<Keychain: {len(self.keys)} keys>"

    def find(self, provider: str, fingerprint: str) -> OwnKey | None:
        """The key that something was made with, if it can still be used."""
        for key in self.keys:
            if key.fingerprint == fingerprint and key.name == provider and key.provider is not None:
                return key
        return None

    def maker(self, provider: str) -> OwnKey | None:
        """The key that objects are made with at a provider which are nobody's yet; None for the operator's.

        Raises:
            OwnKeyUnusable: there is one, it allows no other, and it can't be used.
        """
        keys = [key for key in self.keys if key.name == provider and key.mode != "fallback"]
        for key in keys:
            if key.provider is not None:
                return key
        if any(key.mode == "only" for key in keys):
            raise OwnKeyUnusable
        return None

    def extend(self, menu: Menu, *, keep: bool) -> Menu:
        """A menu with these keys on it; the same where they have nothing to do with it. `keep`: it comes again.

        Raises:
            OwnKeyUnusable: a key that allows no other can't be used.
        """
        found = self._menus.get(menu) if keep else None
        if found is None:
            found = self._extended(menu)
            if keep:
                if len(self._menus) >= MENUS_MAX:
                    self._menus.clear()
                self._menus[menu] = found
        if isinstance(found, GatewayError):
            raise found.with_traceback(None)
        return found

    def _extended(self, menu: Menu) -> Menu | GatewayError:
        own = self._group(menu.own, alone=False)
        if own is None:
            return OwnKeyUnusable()
        alone = own is not menu.own and all(candidate.offer.own is not None for candidate in own.candidates)
        spare, context, policy = (
            tuple(found for group in groups if (found := self._group(group, alone=alone)) is not None)
            for groups in (menu.spare, menu.context, menu.policy)
        )
        if own is menu.own and spare == menu.spare and context == menu.context and policy == menu.policy:
            return menu
        return Menu(
            own, spare=spare, context=context, policy=policy, sole_try=menu.sole_try, hedge=menu.hedge, shadow=None
        )

    def _group(self, group: Group, *, alone: bool) -> Group | None:
        """A group with these keys; `alone`: with nothing else. None where nothing is left."""
        found: list[Candidate] = []
        matches = False
        for candidate in group.candidates:
            offer = candidate.offer
            for key in self.keys:
                if key.name != offer.provider:
                    continue
                matches = True
                alone = alone or key.mode == "only"
                if key.provider is not None:
                    own = msgspec.structs.replace(offer, own=key)
                    found.append(Candidate(own, key.health.offer(offer.model), priority=_PRIORITIES[key.mode]))
        if not matches and not alone:
            return group
        candidates = (*found, *(() if alone else group.candidates))
        if not candidates:
            return None
        if len(candidates) == len(group.candidates) and not found:
            return group
        return Group(candidates, strategy=group.strategy, floor=group.floor)


def own_menu(key: OwnKey, model: str = "") -> Menu:
    """The menu of requests about objects that live under an own key: it alone, and at no cost."""
    offer = Offer(model=model, provider=key.name, upstream_model=model, free=True, own=key)
    return Menu(Group((Candidate(offer, key.health.offer(model)),), strategy="priority"))


def pin_own(menu: Menu, key: OwnKey) -> Menu | None:
    """What is left of an extended menu for a request about such objects; None where the key does not serve it."""
    for group in menu.groups:
        for candidate in group.candidates:
            if candidate.offer.own is key:
                return Menu(Group((candidate,), strategy="priority"))
    return None
