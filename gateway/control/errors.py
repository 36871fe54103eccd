"""What only the control plane answers with. Everything else is in `gateway/errors.py`."""

from collections.abc import Sequence

import msgspec

from gateway.errors import CallerError, StoreUnavailable


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with one part of a request."""

    #: Where: `body`, `query` or `path`, and then the names that lead to it.
    loc: tuple[str | int, ...]
    msg: str
    type: str = "value_error"


class Invalid(CallerError):
    """The request is well-formed, but something in it can't be."""

    error_type = "caller_bad_request"
    status = 422
    code = "invalid"

    def __init__(self, message: str | None = None, *, loc: Sequence[str | int] = ("body",)) -> None:
        super().__init__(message)
        self.faults = (Fault(tuple(loc), self.message),)


class NotFound(CallerError):
    """There is no such thing here, or it is not yours."""

    error_type = "caller_unknown_route"
    status = 404
    code = "not_found"


class Conflict(CallerError):
    """That is taken, or no longer as you think."""

    error_type = "caller_conflict"
    status = 409
    code = "conflict"


class NotReady(StoreUnavailable):
    """A store does not answer."""

    code = "not_ready"


class SignInNeeded(CallerError):
    """Sign in, or send a gateway key as `Authorization: Bearer gw_...`."""

    error_type = "caller_unauthenticated"
    status = 401
    code = "not_signed_in"


class NotPermitted(CallerError):
    """You may not do that."""

    error_type = "caller_forbidden"
    status = 403
    type = "permission_error"
    code = "forbidden"
