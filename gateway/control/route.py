"""What a route declares, and what its handler is given.

A handler is `async def create(call: Call[NewThing, Page]) -> Thing`: the first parameter of `Call` is the struct of
the body, the second that of the query (`Nothing` for none), and what it returns is the answer. The same annotations
decode, validate, encode and document; nothing is said twice. It raises `GatewayError`s, of which the route lists
those that its documentation should name besides the usual ones.

A handler that answers with something other than JSON returns `Raw`. Headers and cookies are set on the call.
"""

import inspect
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec
from starlette.datastructures import Headers

from gateway.control.access import PUBLIC, Access, AccountRole, check_access
from gateway.control.parts import Parts
from gateway.control.session import Actor
from gateway.errors import GatewayError

Body = TypeVar("Body")
Query = TypeVar("Query")
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

#: The largest number that a column of ids can hold.
ID_MAX: Final = 2**63 - 1


class Nothing(msgspec.Struct, frozen=True):
    """No body, or no query."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """It is done."""

    success: bool = True
    message: str = ""


@dataclass(slots=True)
class Raw:
    """An answer that is not JSON: a page, a file, lines that are made while they are sent, a redirect."""

    content: bytes | AsyncIterator[bytes]
    media_type: str = "text/html; charset=utf-8"
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Call(Generic[Body, Query]):
    """One request that was let in."""

    parts: Parts
    actor: Actor
    body: Body
    query: Query
    #: From the path. Numbers are numbers, of at most `ID_MAX`.
    params: Mapping[str, Any]  # Any: a text or a number, as the path's pattern says
    request_id: str
    #: The caller's address, as far as proxies are to be believed; None for one that can't be told.
    ip: str | None
    user_agent: str
    headers: Headers
    #: Of the answer; also `set-cookie`.
    reply_headers: list[tuple[str, str]] = field(default_factory=list)
    cookies: Mapping[str, str] = field(default_factory=dict)


#: Any: a table holds handlers of all kinds; `Route` reads their types when it is made.
Handler = Callable[[Call[Any, Any]], Awaitable[object]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One thing that can be asked for."""

    method: Method
    #: `/user/api-keys/{key_id}`; `{user_id:int}` is a number.
    path: str
    handler: Handler
    #: Who may; see `access.py`. There is no default.
    access: Access
    #: The least role in the account that it takes.
    account_role: AccountRole = "member"
    #: One line for the documentation; the handler's docstring follows it.
    summary: str
    #: Under which heading it stands there.
    tag: str
    status: int = 200
    #: What it answers with besides what every route may.
    errors: tuple[type[GatewayError], ...] = ()
    #: Other paths for the same.
    aliases: tuple[str, ...] = ()
    #: Whether a caller may repeat it with an `idempotency-key` and get the first answer. For what changes something,
    #: and whose answer may be kept for a day (encrypted).
    idempotent: bool | None = None
    #: None: `control.timeout_s`.
    timeout_s: float | None = None
    #: What an answer that is no JSON is.
    media_type: str = "application/json"
    #: An old way to the same, or one that is only for pages: left out of the documentation.
    hidden: bool = False
    request: type = field(init=False)
    query: type[msgspec.Struct] = field(init=False)
    response: Any = field(init=False)  # Any: a type, or a generic alias of one

    def __post_init__(self) -> None:
        check_access(self.access)
        request, query, response = _read_types(self.handler)
        object.__setattr__(self, "request", request)
        object.__setattr__(self, "query", query)
        object.__setattr__(self, "response", response)
        if self.idempotent is None:
            object.__setattr__(self, "idempotent", self.method == "POST" and self.access != PUBLIC)
        if self.access == PUBLIC and self.idempotent:
            raise ValueError(f"{self.path}: strangers can't be told apart, so none can repeat a request")

    @property
    def writes(self) -> bool:
        return self.method != "GET"

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path, *self.aliases)


def _read_types(handler: Handler) -> tuple[type, type, Any]:
    name = getattr(handler, "__qualname__", repr(handler))
    hints = typing.get_type_hints(handler)
    parameters = list(inspect.signature(handler).parameters)
    call = hints.get(parameters[0]) if parameters else None
    if typing.get_origin(call) is not Call or "return" not in hints:
        raise TypeError(f"{name} is not `async def {name}(call: Call[Body, Query]) -> Answer`")
    request, query = typing.get_args(call)
    return request, query, hints["return"]
