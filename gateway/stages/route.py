"""Which provider serves it: the offers for the model, best first, and the next one only while nothing was sent."""

from gateway.deps import Deps, Handler
from gateway.errors import BadRequest, UnknownModel
from gateway.exchange import Exchange


async def route(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.offer`.

    Raises:
        UnknownModel: nobody offers the model.
        BadRequest: the request names no model and there is no default provider.
    """
    assert x.call is not None
    offers = deps.offers.find(x.call.model)
    if not offers:
        if x.call.model:
            raise UnknownModel(x.call.model)
        raise BadRequest("This path names no model, and the gateway has no default provider for it.", param="model")
    x.offer = offers[0]
    await call_next(x)
