"""The audit log: who changed what, what it was before and after, and from where.

Rules:
- A change and its line are one transaction: `record` takes the session that makes the change.
- The log is only ever added to; the database refuses anything else.
- No secret and no person's name or address stands in it: people are numbers here, so that deleting a person leaves
  nothing personal behind. `before` and `after` are refused when they have a field that is called like a secret.
"""

from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from gateway.control.route import Call
from gateway.infra.postgres import Session, load_queries

ActorKind = Literal["user", "key", "operator", "system"]
#: Fields that may not be written down, by what their names contain.
SECRET_NAMES: Final = ("password", "secret", "token", "digest", "hash", "pepper", "email", "cookie")

#: Limits of what models read and write are no secrets.
_HARMLESS: Final = ("tokens_per_",)

_queries: Final = load_queries(Path(__file__).with_name("audit.sql"))


class By(msgspec.Struct, frozen=True, kw_only=True):
    """Who did it, and from where."""

    kind: ActorKind
    user_id: int | None = None
    key_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None
    request_id: str | None = None


OPERATOR: Final = By(kind="operator")
SYSTEM: Final = By(kind="system")


def by(call: Call[Any, Any]) -> By:  # Any: of whatever body and query
    """The caller."""
    actor = call.actor
    kind: ActorKind = "key" if actor.kind == "key" else "user" if actor.kind == "session" else "system"
    return By(
        kind=kind,
        user_id=actor.user_id,
        key_id=actor.key_id,
        ip=call.ip,
        user_agent=call.user_agent or None,
        request_id=call.request_id,
    )


async def record(
    session: Session,
    who: By,
    action: str,
    thing: tuple[str, str | int],
    *,
    account_id: int | None,
    before: object = None,
    after: object = None,
    reason: str | None = None,
) -> None:
    """Write a line. `action` is `resource.verb`, `thing` the kind and the id of what was changed; `before` and
    `after` are structs or mappings of what changed, None for nothing (what was made has no before).

    Raises:
        ValueError: a field is called like a secret.
    """
    await session.execute(
        _queries["record"],
        who.kind,
        who.user_id,
        who.key_id,
        account_id,
        action,
        thing[0],
        str(thing[1]),
        _json(before),
        _json(after),
        reason,
        who.ip,
        who.user_agent,
        who.request_id,
    )


def _json(values: object) -> str | None:
    if values is None:
        return None
    plain = msgspec.to_builtins(values, str_keys=True)
    _check(plain)
    return msgspec.json.encode(plain).decode()


def _check(values: object) -> None:
    if isinstance(values, dict):
        for name, value in values.items():
            if not name.startswith(_HARMLESS) and any(part in name.lower() for part in SECRET_NAMES):
                raise ValueError(f"{name} may not be in the audit log")
            _check(value)
    elif isinstance(values, list | tuple):
        for value in values:
            _check(value)
