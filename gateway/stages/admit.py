"""What the request asks for: the offers that can serve it, and the most that it can use.

Nothing is taken here; `reserve` asks for all of it in one round trip. What can be refused without asking is refused
here: a model nobody offers, an endpoint no provider of it has, a model without a price.
"""

from typing import Final

from gateway.deps import Deps, Handler
from gateway.errors import BadRequest, UnknownModel, Unpriced
from gateway.exchange import Call, Exchange, Offer
from gateway.wire.dialects import Dialect
from gateway.wire.estimate import estimate_input_tokens

#: These answer with numbers or lists: nothing is generated, so nothing is held for it.
_NO_OUTPUT: Final = frozenset({Dialect.OPENAI_EMBEDDINGS})


async def admit(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.offers` and the estimates.

    Raises:
        UnknownModel: nobody offers the model.
        BadRequest: the request names no model and there is no default provider; or no provider of the model speaks
            the caller's dialect.
        Unpriced: no offer has a price, and none is free.
    """
    call = x.call
    assert call is not None
    x.offers = _offers(call, deps)
    x.input_tokens = estimate_input_tokens(call.body) if call.body else 0
    x.output_tokens = _output_bound(call, deps)
    await call_next(x)


def _offers(call: Call, deps: Deps) -> tuple[Offer, ...]:
    """Of the model's offers those whose provider speaks the dialect and that can be charged for."""
    offers = deps.offers.find(call.model)
    # Nearly always all of them: then the table's own tuple serves.
    if all(_serves(offer, call.dialect, deps) for offer in offers):
        if offers:
            return offers
        if call.model:
            raise UnknownModel(call.model)
        raise BadRequest("This path names no model, and the gateway has no default provider for it.", param="model")
    speaking = [offer for offer in offers if call.dialect in deps.providers[offer.provider].adapter.dialects]
    if not speaking:
        raise BadRequest("No provider of this model has this endpoint.", code="unsupported_endpoint", param="model")
    charged = tuple(offer for offer in speaking if _serves(offer, call.dialect, deps))
    if not charged:
        raise Unpriced
    return charged


def _serves(offer: Offer, dialect: Dialect, deps: Deps) -> bool:
    return (offer.free or offer.price is not None) and dialect in deps.providers[offer.provider].adapter.dialects


def _output_bound(call: Call, deps: Deps) -> int:
    """Tokens of all answers together; where the caller set no bound, as many as are held by default."""
    if call.dialect in _NO_OUTPUT or not call.body:
        return 0
    asked = call.peek.max_output_tokens
    return call.peek.n * (deps.settings.money.output_tokens if asked is None else asked)
