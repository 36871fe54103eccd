"""Which provider serves it: the offers for the model, best first, and the next one only while nothing was sent."""

from gateway.deps import Deps, Handler
from gateway.errors import BadRequest, UnknownModel
from gateway.exchange import Exchange


async def route(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.offer`.

    Raises:
        UnknownModel: nobody offers the model.
        BadRequest: the request names no model and there is no default provider; or no provider of the model speaks
            the caller's dialect.
    """
    assert x.call is not None
    offers = deps.offers.find(x.call.model)
    if not offers:
        if x.call.model:
            raise UnknownModel(x.call.model)
        raise BadRequest("This path names no model, and the gateway has no default provider for it.", param="model")
    for offer in offers:
        if x.call.dialect in deps.providers[offer.provider].adapter.dialects:
            x.offer = offer
            break
    else:
        raise BadRequest("No provider of this model has this endpoint.", code="unsupported_endpoint", param="model")
    await call_next(x)
