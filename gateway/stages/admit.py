"""What the request asks for: the offers that can serve it, and the most that it can use.

Nothing is taken here; `reserve` asks for all of it in one round trip. What can be refused without asking is refused
here: a model nobody offers, an endpoint no provider of it has, a model without a price, wishes nobody can meet.

A caller's wishes about routing (`models`, `provider`, a suffix of the model's name) are read here and taken out of
the body: they are for the gateway. All other bytes stay as they are.
"""

from typing import Final

import msgspec

from gateway.deps import Deps, Handler
from gateway.errors import BadRequest
from gateway.exchange import Call, Exchange
from gateway.kernel.constraints import Constraints
from gateway.routing.conditions import holds, read_members
from gateway.routing.keychain import Keychain, OwnKey, own_menu, pin_own
from gateway.routing.menu import Menu, narrow
from gateway.routing.needs import needs_of
from gateway.routing.permitted import permit, permit_instead, permit_names, permit_operation
from gateway.routing.pinned import pin
from gateway.routing.preferences import NONE, Preferences, read_preferences, split_suffix
from gateway.wire.dialects import COUNT_DIALECTS, UNIT_DIALECTS, Dialect
from gateway.wire.estimate import estimate_input_tokens
from gateway.wire.peek import peek, rewrite
from gateway.wire.units import units_of

#: These answer with numbers or lists, so that no text is held for; or with what is counted in other units.
_NO_OUTPUT: Final = UNIT_DIALECTS | COUNT_DIALECTS | {Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBED}
#: Members of a body that are for the gateway.
_WISHES: Final = ("models", "provider")
_NO_NEEDS: Final[frozenset[str]] = frozenset()


async def admit(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.menu`, `x.offers` and the estimates; take a caller's wishes out of `x.call`.

    Raises:
        UnknownModel: nobody offers the model, or the key may not use it.
        Forbidden: the key may not use the provider, or nobody can tell whether it may.
        BadRequest: the request names no model and there is no default provider; or no provider of the model speaks
            the caller's dialect, or can do what the request needs; or a wish is not what it should be.
        Unpriced: no offer has a price, and none is free.
        UnmetWish: the caller's wishes leave no provider.
        NoOffer: the operator's requirements leave none.
        OwnKeyUnusable: an own key of the account allows no other, and can't be used.
    """
    call = x.call
    assert call is not None
    assert x.principal is not None
    allowed = x.principal.constraints
    if x.operation is not None:
        # What objects cost is charged with what is done with them.
        assert x.pin is not None
        if allowed is not None:
            permit_operation(x.operation, x.pin[0], allowed)
        if x.pinned is None:
            x.menu = deps.router.free.at(x.pin[0], call.model)
        else:
            x.menu = own_menu(x.pinned, call.model)
            if x.principal.keychain is not None and x.principal.keychain.renewals:
                await deps.keychains.ready(x.principal.keychain)
        x.offers = x.menu.offers
        await call_next(x)
        return
    peeked = call.peek
    wishes = NONE
    if (
        peeked.models_span is not None or peeked.provider_span is not None or ":" in call.model
    ) and call.dialect is not Dialect.OPENAI_OTHER:
        wishes = _wishes(call, deps)
        call = x.call = _without_wishes(call, wishes, deps)
    if call.body and call.dialect not in COUNT_DIALECTS:
        x.input_tokens = estimate_input_tokens(call.body)
    x.output_tokens = _output_bound(x, call, deps)
    keychain = x.principal.keychain
    if keychain is not None:
        if x.pin is not None and x.pinned is None:
            # What it is about was made with the operator's key.
            keychain = None
        elif keychain.renewals:
            await deps.keychains.ready(keychain)
    x.menu = _menu(call, wishes, x.input_tokens, allowed, deps, keychain=keychain)
    if x.pin is not None:
        x.menu = pin(x.menu, x.pin[0]) if x.pinned is None else _pin_own(x.menu, x.pinned)
    x.offers = x.menu.offers
    longest = x.menu.longest_tokens
    if longest is not None and x.units is None:
        # Nobody pays in advance for what no answer can have.
        x.output_tokens = min(x.output_tokens, call.peek.n * longest)
    await call_next(x)


def _pin_own(menu: Menu, key: OwnKey) -> Menu:
    """The offer with the key that the objects were made with.

    Raises:
        BadRequest: the model is not offered there.
    """
    pinned = pin_own(menu, key)
    return pin(menu, "") if pinned is None else pinned


def _menu(
    call: Call,
    wishes: Preferences,
    input_tokens: int,
    allowed: Constraints | None,
    deps: Deps,
    *,
    keychain: Keychain | None,
) -> Menu:
    menus = deps.router.menus
    if wishes.models:
        names: tuple[str, ...] = (call.model, *wishes.models)
        if allowed is not None:
            names = permit_names(names, allowed, deps.offers.find)
        menu = menus.combine(names, call.dialect)
    else:
        menu = menus.find(call.model, call.dialect)
        if menu.conditions:
            met = _met(menu, call)
            if allowed is not None:
                permit_instead(menu, met, allowed, call.model)
            menu = met
    if keychain is not None:
        menu = keychain.extend(menu, keep=not wishes.models)
    if allowed is not None:
        menu = permit(menu, allowed, call.model, named=bool(wishes.models))
    tokens = input_tokens + (call.peek.max_output_tokens or 0)
    # Bodies are searched only where some offer can't do something.
    needs = needs_of(call) & menu.lacks if menu.lacks else _NO_NEEDS
    if wishes is NONE and not needs and tokens <= menu.room_tokens:
        return menu
    return narrow(
        menu,
        wishes,
        needs=needs,
        tokens=tokens,
        input_tokens=input_tokens,
        service_tier=call.peek.service_tier,
    )


def _met(menu: Menu, call: Call) -> Menu:
    """What holds for this request of a model with conditions."""
    members = read_members(call.body)
    for condition, instead in menu.conditions:
        if holds(condition, members):
            if isinstance(instead, Menu):
                return instead
            raise instead.with_traceback(None)
    return menu


def _wishes(call: Call, deps: Deps) -> Preferences:
    """What the caller says about routing; `NONE` itself where it says nothing."""
    peeked = call.peek
    wishes = NONE
    if peeked.models_span is not None or peeked.provider_span is not None:
        wishes = read_preferences(call.body, peeked)
    if not deps.offers.is_listed(call.model):
        _, sort = split_suffix(call.model)
        if sort is not None:
            wishes = msgspec.structs.replace(wishes, sort=sort)
    if not (call.model or wishes.models or deps.settings.default_provider):
        raise BadRequest("You must provide a `model`.", code="missing_required_parameter", param="model")
    return NONE if wishes == NONE else wishes


def _without_wishes(call: Call, wishes: Preferences, deps: Deps) -> Call:
    """The call as providers get to know it."""
    model = call.model
    if not deps.offers.is_listed(model):
        model, _ = split_suffix(model)
    if not model and wishes.models:
        # Where no model is named, the first of the others is it.
        model = wishes.models[0]
    body, peeked = call.body, call.peek
    if peeked.models_span is not None or peeked.provider_span is not None:
        body = rewrite(body, peeked, drop=_WISHES)
        # What else is known of the body stays: in some dialects the path says part of it.
        moved = peek(body)
        peeked = msgspec.structs.replace(
            moved, stream=peeked.stream, max_output_tokens=peeked.max_output_tokens, n=peeked.n
        )
    if model == call.model and body is call.body:
        return call
    return msgspec.structs.replace(call, model=model, body=body, peek=peeked)


def _count_units(x: Exchange, call: Call) -> int:
    """Set what it asks for in other units, and the tokens that go with them; those of the answer are returned."""
    size_bytes = len(call.body) if call.upload is None else call.upload.size_bytes() or 0
    units = x.units = units_of(call.dialect, call.body, call.peek, form=x.form, upload_bytes=size_bytes)
    x.input_tokens = units.usage.input_tokens
    return units.usage.output_tokens


def _output_bound(x: Exchange, call: Call, deps: Deps) -> int:
    """Tokens of all answers together; where the caller set no bound, as many as are held by default."""
    if call.dialect in _NO_OUTPUT or not call.body:
        return _count_units(x, call) if call.dialect in UNIT_DIALECTS else 0
    asked = call.peek.max_output_tokens
    return call.peek.n * (deps.settings.money.output_tokens if asked is None else asked)
