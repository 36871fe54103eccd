"""What a caller says about routing in the request itself, in ways that a stock SDK can send.

    "models": ["a", "b"]           further models, tried in this order after `model`
    "provider": "openai"           this provider and no other
    "provider": {
        "order": ["x", "y"],       these first, in this order
        "only": ["x"], "ignore": ["z"],
        "allow_fallbacks": false,  nobody but the first (or those in `order`)
        "sort": "price",           or "throughput" or "latency"
        "max_price": {"prompt": 1, "completion": 2,    dollars for a million tokens,
                      "request": 0.01, "image": 0.1},  and for one: at this prompt's length and service tier
        "data_collection": "deny", only providers tagged `no-training`
        "zdr": true                only providers tagged `zdr`
    }
    "model": "name:floor"          the cheapest; `name:fast` the fastest

These are the names that OpenRouter gave them. They are for the gateway: `models` and `provider` never reach a
provider, which could otherwise serve, and bill, a model that nobody here authorised. What can't be obeyed is refused,
never ignored, where that could cost money or give data away; members of `provider` that are not listed are ignored.
"""

from typing import Any, Final, Literal

import msgspec

from gateway.errors import BadRequest
from gateway.wire.peek import Peek

#: More names than this in one list are refused.
NAMES_MAX: Final = 32
#: Suffixes of a model's name, and what they ask for.
SUFFIXES: Final[dict[str, "Sort"]] = {":floor": "price", ":fast": "throughput"}

Sort = Literal["price", "throughput", "latency"]

_SORTS: Final[dict[object, Sort]] = {"price": "price", "throughput": "throughput", "latency": "latency"}
#: Members that ask for more than a choice, and the tag that a provider must then have.
NO_TRAINING: Final = "no-training"
ZERO_RETENTION: Final = "zdr"


class Preferences(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's wishes; as made without arguments, none."""

    models: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    allow_fallbacks: bool = True
    sort: Sort | None = None
    #: Dollars for a million tokens in and out.
    max_input_usd: float | None = None
    max_output_usd: float | None = None
    #: Dollars for a request, and for a picture.
    max_request_usd: float | None = None
    max_image_usd: float | None = None
    #: Tags that a provider must have.
    tags: tuple[str, ...] = ()

    @property
    def has_ceiling(self) -> bool:
        """Whether there is a price that must not be passed."""
        ceilings = (self.max_input_usd, self.max_output_usd, self.max_request_usd, self.max_image_usd)
        return any(each is not None for each in ceilings)


NONE: Final = Preferences()

_decode = msgspec.json.Decoder().decode


def read_preferences(body: bytes, peeked: Peek) -> Preferences:
    """The wishes in a request's body.

    Raises:
        BadRequest: one of them is not what it should be; `param` names it.
    """
    models: tuple[str, ...] = ()
    if peeked.models_span is not None:
        models = _names(_value(body, peeked.models_span, "models"), "models")
    if peeked.provider_span is None:
        return Preferences(models=models)
    provider = _value(body, peeked.provider_span, "provider")
    if provider is None:
        return Preferences(models=models)
    if isinstance(provider, str):
        return Preferences(models=models, only=(provider,))
    if not isinstance(provider, dict):
        raise _wrong("provider", "a provider's name or an object")
    return _read(provider, models)


def split_suffix(model: str) -> tuple[str, Sort | None]:
    """A model's name without the suffix that asks for a sort, and that sort."""
    base, colon, suffix = model.rpartition(":")
    sort = SUFFIXES.get(colon + suffix) if base else None
    return (model, None) if sort is None else (base, sort)


def _read(provider: dict[str, Any], models: tuple[str, ...]) -> Preferences:  # Any: JSON
    allow = provider.get("allow_fallbacks")
    if not (allow is None or isinstance(allow, bool)):
        raise _wrong("provider.allow_fallbacks", "true or false")
    sort = provider.get("sort")
    if isinstance(sort, dict):
        sort = sort.get("by")
    if sort is not None and not (isinstance(sort, str) and sort in _SORTS):
        raise _wrong("provider.sort", "`price`, `throughput` or `latency`")
    prices = provider.get("max_price")
    if not (prices is None or isinstance(prices, dict)):
        raise _wrong("provider.max_price", "an object")
    prices = prices or {}
    tags = []
    collection = provider.get("data_collection")
    if collection not in (None, "allow", "deny"):
        raise _wrong("provider.data_collection", "`allow` or `deny`")
    if collection == "deny":
        tags.append(NO_TRAINING)
    retention = provider.get("zdr")
    if not (retention is None or isinstance(retention, bool)):
        raise _wrong("provider.zdr", "true or false")
    if retention:
        tags.append(ZERO_RETENTION)
    return Preferences(
        models=models,
        order=_names(provider.get("order"), "provider.order"),
        only=_names(provider.get("only"), "provider.only"),
        ignore=_names(provider.get("ignore"), "provider.ignore"),
        allow_fallbacks=allow is not False,
        sort=None if sort is None else _SORTS[sort],
        max_input_usd=_price(prices, "prompt"),
        max_output_usd=_price(prices, "completion"),
        max_request_usd=_price(prices, "request"),
        max_image_usd=_price(prices, "image"),
        tags=tuple(tags),
    )


def _value(body: bytes, span: tuple[int, int], name: str) -> Any:  # Any: JSON
    try:
        return _decode(body[span[0] : span[1]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest(f"`{name}` is not valid JSON.", param=name) from None


def _names(value: object, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _wrong(name, "a list of names")
    if len(value) > NAMES_MAX:
        raise BadRequest(f"`{name}` may hold {NAMES_MAX} names.", param=name, code="invalid_value")
    return tuple(dict.fromkeys(value))


def _price(prices: dict[str, Any], name: str) -> float | None:  # Any: JSON
    value = prices.get(name)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = -1.0
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise _wrong(f"provider.max_price.{name}", "a number of dollars")
    return float(value)


def _wrong(name: str, expected: str) -> BadRequest:
    return BadRequest(f"`{name}` must be {expected}.", param=name, code="invalid_value")
