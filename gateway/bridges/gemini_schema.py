"""Google's spelling of a schema, as JSON Schema: types in small letters, `nullable` as a type, counts as numbers.

Google's `Schema` is a part of OpenAPI 3.0's, written by protobuf: its types are names in capitals, and its 64-bit
counts stand in quotes. What neither knows is kept as it is.

Source: https://ai.google.dev/api/caching#Schema.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.bridges.hub import UNREADABLE, invalid
from gateway.errors import BadRequest

#: Schemas within schemas.
DEPTH_MAX: Final = 64

_NAMES: Final = {
    "any_of": "anyOf",
    "max_items": "maxItems",
    "min_items": "minItems",
    "max_length": "maxLength",
    "min_length": "minLength",
    "max_properties": "maxProperties",
    "min_properties": "minProperties",
}
_COUNTS: Final = frozenset({"maxItems", "minItems", "maxLength", "minLength", "maxProperties", "minProperties"})
#: They say something to Google and nobody else.
_DROPPED: Final = frozenset({"propertyOrdering", "property_ordering", "example", "nullable"})
_UNSPECIFIED: Final = "type_unspecified"
_decode = msgspec.json.Decoder(dict[str, object]).decode


def schema_of(raw: msgspec.Raw, where: str) -> dict[str, object]:
    """JSON Schema of Google's.

    Raises:
        BadRequest: it is no object, or goes too deep.
    """
    try:
        schema = _decode(raw)
    except UNREADABLE as error:
        raise invalid(where, error) from None
    return _turn(schema, where, DEPTH_MAX)


def _turn(schema: Mapping[str, Any], where: str, depth: int) -> dict[str, object]:  # Any: JSON
    if not depth:
        raise BadRequest(f"`{where}` is nested too deeply.", param=where, code="invalid_value")
    turned: dict[str, object] = {}
    for name, value in schema.items():
        name = _NAMES.get(name, name)  # noqa: PLW2901 - the same member by its usual name
        if name in _DROPPED:
            continue
        if name == "type" and isinstance(value, str):
            if (kind := value.lower()) != _UNSPECIFIED:
                turned[name] = [kind, "null"] if schema.get("nullable") is True else kind
        elif name == "properties" and isinstance(value, dict):
            turned[name] = {
                key: _turn(each, where, depth - 1) if isinstance(each, dict) else each for key, each in value.items()
            }
        elif name == "items" and isinstance(value, dict):
            turned[name] = _turn(value, where, depth - 1)
        elif name == "anyOf" and isinstance(value, list):
            turned[name] = [_turn(each, where, depth - 1) if isinstance(each, dict) else each for each in value]
        elif name in _COUNTS and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            turned[name] = int(value)
        else:
            turned[name] = value
    return turned
