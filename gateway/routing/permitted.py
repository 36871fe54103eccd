"""Requests of keys that may not use every model or every provider.

What `menu.py` makes is narrowed to what the key may use: a provider that it may not use is never asked, not even when
all others fail. A model that it may not use is, to it, none that there is.
"""

from collections.abc import Callable, Sequence

from gateway.errors import Forbidden, UnknownModel
from gateway.exchange import Offer
from gateway.kernel.constraints import Constraints
from gateway.routing.menu import Group, Menu
from gateway.wire.objects import Operation


def permit(menu: Menu, allowed: Constraints, asked: str, *, named: bool = False) -> Menu:
    """What is left of a menu; the same object where that is all of it. `asked` is the model as the caller named it;
    `named` says that every model on the menu was, and passed `permit_names`.

    Raises:
        UnknownModel: it may not be used, or not at any provider that offers it.
        Forbidden: no model is named, and not all may be used.
    """
    if allowed.models is not None and not named:
        if not asked:
            raise Forbidden("This key may be used for certain models only, and the request names none.")
        if not (allowed.allows_model(asked) or allowed.allows_model(menu.own.candidates[0].offer.model)):
            raise UnknownModel(asked, withheld="model_not_permitted")
    own = _permitted(menu.own, allowed, every=True)
    if own is None:
        raise UnknownModel(asked, withheld="provider_not_permitted")
    spare, context, policy = (
        _all_permitted(groups, allowed, every=named) for groups in (menu.spare, menu.context, menu.policy)
    )
    # Who is asked unheard is asked all the same.
    shadow = menu.shadow if menu.shadow is None or _is_permitted(menu.shadow.menu, allowed) else None
    same = own is menu.own and spare == menu.spare and context == menu.context and policy == menu.policy
    if same and shadow is menu.shadow:
        return menu
    return Menu(
        own,
        spare=spare,
        context=context,
        policy=policy,
        sole_try=menu.sole_try,
        hedge=menu.hedge,
        shadow=shadow,
    )


def permit_instead(menu: Menu, instead: Menu, allowed: Constraints, asked: str) -> None:
    """Whether a key may use what the operator's conditions put in the place of what it asked for.

    Raises:
        UnknownModel: that is another model, which it may not use.
    """
    model = instead.own.candidates[0].offer.model
    if model != menu.own.candidates[0].offer.model and not allowed.allows_model(model):
        raise UnknownModel(asked, withheld="model_not_permitted")


def permit_names(
    names: Sequence[str], allowed: Constraints, find: Callable[[str], Sequence[Offer]]
) -> tuple[str, ...]:
    """Those of several models that a caller names which it may use, in their order.

    Raises:
        UnknownModel: it may use none of them.
    """
    usable = tuple(name for name in names if may_use(allowed, name, find(name)))
    if not usable:
        raise UnknownModel(names[0], withheld="model_not_permitted" if any(map(find, names)) else None)
    return usable


def permit_operation(operation: Operation, provider: str, allowed: Constraints) -> None:
    """What concerns objects at a provider.

    Raises:
        Forbidden: the key may not use that provider; or models may be asked for in it that nobody here sees.
    """
    if not allowed.allows_provider(provider):
        raise Forbidden("This key may not use the provider that keeps this.", code="provider_not_allowed")
    unseen = operation.kind == "other" or (operation.kind == "batch" and operation.verb == "create")
    if unseen and allowed.models is not None:
        raise Forbidden(
            "This key may be used for certain models only, and those that this asks for are not looked at.",
            code="model_not_checked",
        )


def may_use(allowed: Constraints, name: str, offers: Sequence[Offer]) -> bool:
    """Whether a model, as callers name it, can be used at all."""
    if not any(allowed.allows_provider(offer.provider) for offer in offers):
        return False
    return allowed.allows_model(name) or allowed.allows_model(offers[0].model)


def _is_permitted(menu: Menu, allowed: Constraints) -> bool:
    return all(allowed.allows_provider(offer.provider) and allowed.allows_model(offer.model) for offer in menu.offers)


def _all_permitted(groups: tuple[Group, ...], allowed: Constraints, *, every: bool) -> tuple[Group, ...]:
    found = (_permitted(group, allowed, every=every) for group in groups)
    return tuple(group for group in found if group is not None)


def _permitted(group: Group, allowed: Constraints, *, every: bool) -> Group | None:
    """`every`: of whatever model."""
    candidates = tuple(
        candidate
        for candidate in group.candidates
        if allowed.allows_provider(candidate.offer.provider)
        and (every or allowed.allows_model(candidate.offer.model))
    )
    if not candidates:
        return None
    if len(candidates) == len(group.candidates):
        return group
    return Group(candidates, strategy=group.strategy, floor=group.floor)
