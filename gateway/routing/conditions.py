"""Which of a model's conditions a request meets: rules of the operator's about members of the body.

    when = { "metadata.team" = "legal", temperature = 0, max_tokens = { above = 1000 }, tools = true }

A name is a path into the body, with dots between; all of them must hold. A value is met by the same value, a list by
any value in it, `true` by any member that is there and is not false or null, `false` by one that is not, and
`{ above, below }` by a number between the two, themselves not among them. The first condition that is met counts.

Bodies are read for this only where a model has conditions; what can't be read meets none.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.settings import Between, Condition

_decode = msgspec.json.Decoder().decode
_NOTHING: dict[str, Any] = {}  # Any: JSON


def read_members(body: bytes) -> Mapping[str, Any]:  # Any: JSON
    """The body as an object; empty where it is none."""
    try:
        members = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NOTHING
    return members if isinstance(members, dict) else _NOTHING


def holds(condition: Condition, members: Mapping[str, Any]) -> bool:  # Any: JSON
    """Whether the request with these members meets the condition."""
    return all(_is_met(wanted, _member(members, path)) for path, wanted in condition.when.items())


def _member(members: Any, path: str) -> object:  # Any: JSON
    for name in path.split("."):
        if not isinstance(members, dict):
            return None
        members = members.get(name)
    return members


def _is_met(wanted: object, found: object) -> bool:
    if isinstance(wanted, bool):
        return (found is not None and found is not False) == wanted
    if isinstance(wanted, Between):
        if isinstance(found, bool) or not isinstance(found, int | float):
            return False
        above = wanted.above is None or found > wanted.above
        return above and (wanted.below is None or found < wanted.below)
    if isinstance(wanted, tuple):
        return any(_equals(one, found) for one in wanted)
    return _equals(wanted, found)


def _equals(wanted: object, found: object) -> bool:
    # In Python, and nowhere else, true is 1.
    return not isinstance(found, bool) and wanted == found
