"""Every error the gateway itself can answer with.

Rules:
- An error says whose fault it is (`source`), what the caller is told (`status`, `type`, `code`, the message), what
  the metrics call it (`error_type`, a closed list) and whether another offer may help (`retryable`).
- The class docstring is the default message, and both it and any message passed in are shown to callers: no URLs,
  no keys, no provider bodies, no stack traces. Details for operators go into the log through `detail`.
- `stages/rescue.py` is the only place that turns one of these into bytes.

`type` and `code` are those of OpenAI's error object; other dialects map from `status` (`wire/dialects.py`).
"""

from typing import ClassVar, Literal

Source = Literal["caller", "policy", "provider", "gateway"]
Over = Literal["key_rotated", "key_revoked", "key_disabled", "key_expired", "account_inactive"]
Withheld = Literal["model_not_permitted", "provider_not_permitted"]


class GatewayError(Exception):
    """The gateway failed to handle this request."""

    source: ClassVar[Source] = "gateway"
    error_type: ClassVar[str] = "gateway_internal"
    status: int = 500
    type: str = "server_error"
    code: str | None = "internal_error"
    retryable: ClassVar[bool] = False
    #: False writes `x-should-retry: false`, which the official SDKs obey; None leaves them their own rule.
    should_retry: bool | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        detail: str | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        super().__init__(self.message)
        if code is not None:
            self.code = code
        self.param = param
        #: Seconds after which a retry makes sense; written as `retry-after` and `retry-after-ms`.
        self.retry_after_s = retry_after_s
        #: For the log only.
        self.detail = detail


class ConfigError(GatewayError):
    """The configuration is not usable."""

    error_type = "gateway_config"


# -- the caller's fault --------------------------------------------------------------------------------------


class CallerError(GatewayError):
    """The request is not acceptable."""

    source = "caller"
    error_type = "caller_bad_request"
    status = 400
    type = "invalid_request_error"
    code: str | None = None


class BadRequest(CallerError):
    """The request is not valid."""


class UnmetWish(CallerError):
    """No provider that may serve this model here matches the request's `provider` wishes."""

    code = "no_matching_provider"
    should_retry = False


class BodyTooLarge(CallerError):
    """The request body is larger than this gateway accepts."""

    error_type = "caller_too_large"
    status = 413
    code = "request_too_large"


class UnsupportedEncoding(CallerError):
    """The request body's content-encoding is not supported; send gzip, deflate or identity."""

    error_type = "caller_bad_request"
    status = 415
    code = "unsupported_content_type"


class UnknownModel(CallerError):
    """The model does not exist or you do not have access to it."""

    error_type = "caller_unknown_model"
    status = 404
    code = "model_not_found"

    def __init__(self, model: str, *, withheld: Withheld | None = None) -> None:
        #: Why a key may not use a model that there is: for the security log. Its caller is told the same either way.
        self.withheld = withheld
        # Said back to its author, but short and without control characters.
        shown = "".join(character if character.isprintable() else "?" for character in model[:128])
        super().__init__(f"The model `{shown}` does not exist or you do not have access to it.", param="model")


class UnknownGeneration(CallerError):
    """This key made no request of that id, or it is not in the books yet: that takes about a second after its end."""

    error_type = "caller_unknown_generation"
    status = 404
    code = "generation_not_found"


class UnknownObject(CallerError):
    """There is no such object, or it is not yours."""

    error_type = "caller_unknown_object"
    status = 404
    code = "object_not_found"

    def __init__(self, object_id: str = "") -> None:
        shown = "".join(character if character.isprintable() else "?" for character in object_id[:128])
        super().__init__(f"There is no object `{shown}`, or it is not yours." if shown else None)


class OwnKeyGone(CallerError):
    """This was made with a provider key of your account's own that is not here any more, or is switched off."""

    error_type = "caller_own_key"
    status = 409
    code = "own_key_gone"


class StillRunning(CallerError):
    """This is still being worked on; cancel it first."""

    error_type = "caller_conflict"
    status = 409
    code = "still_running"


class ClosedEndpoint(CallerError):
    """This endpoint is not open here; the gateway's operator decides which are."""

    error_type = "caller_unknown_route"
    status = 403
    type = "permission_error"
    code = "endpoint_not_open"


class UnknownRoute(CallerError):
    """There is nothing at this path."""

    error_type = "caller_unknown_route"
    status = 404
    code = "unknown_url"


class MethodNotAllowed(CallerError):
    """This path does not take that method."""

    error_type = "caller_unknown_route"
    status = 405
    code = "method_not_supported"

    def __init__(self, *, allow: str) -> None:
        super().__init__()
        self.allow = allow


class RequestTimeout(CallerError):
    """The request body did not arrive in time."""

    error_type = "caller_timeout"
    status = 408
    code = "request_timeout"


class Unauthenticated(CallerError):
    """Incorrect API key provided. Send a gateway key as `Authorization: Bearer gw_...`."""

    error_type = "caller_unauthenticated"
    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str | None = None, *, code: str | None = None, over: Over | None = None) -> None:
        super().__init__(message, code=code)
        #: It is the right key and good no more: why, for the security log.
        self.over = over


class Forbidden(CallerError):
    """This key may not do that."""

    error_type = "caller_forbidden"
    status = 403
    type = "permission_error"
    code = "forbidden"


class CallerGone(CallerError):
    """The caller closed the connection."""

    error_type = "caller_gone"
    status = 499
    code = "client_closed_request"


# -- limits and money ----------------------------------------------------------------------------------------


class RateLimited(GatewayError):
    """Rate limit reached."""

    source = "policy"
    error_type = "policy_rate_limited"
    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class InsufficientCredit(GatewayError):
    """The credit left on this account does not cover the request."""

    source = "policy"
    error_type = "policy_insufficient_credit"
    status = 402
    type = "billing_error"
    code = "insufficient_credit"
    should_retry = False


class CreditInFlight(InsufficientCredit):
    """Requests in flight hold the rest of this account's credit; some of it comes back when they end."""

    error_type = "policy_credit_in_flight"
    code = "credit_in_flight"


class BudgetExceeded(InsufficientCredit):
    """A budget set for this key or account is used up."""

    error_type = "policy_budget_exceeded"
    code = "budget_exceeded"


class Unpriced(GatewayError):
    """No price is known for this model, so it can't be called here."""

    source = "policy"
    error_type = "policy_unpriced"
    status = 403
    type = "permission_error"
    code = "model_not_priced"
    should_retry = False


class Rejected(GatewayError):
    """This request is refused by a policy of this gateway."""

    source = "policy"
    error_type = "policy_rejected"
    status = 403
    type = "permission_error"
    code = "rejected_by_policy"
    should_retry = False


# -- a provider's fault --------------------------------------------------------------------------------------


class UpstreamError(GatewayError):
    """The provider failed to answer."""

    source: ClassVar[Source] = "provider"
    error_type = "provider_error"
    status = 502
    type = "server_error"
    code = "upstream_error"
    retryable = True


class UpstreamUnreachable(UpstreamError):
    """The provider could not be reached."""

    error_type = "provider_unreachable"
    code = "upstream_unreachable"


class UpstreamDisconnected(UpstreamError):
    """The provider closed the connection before its answer was complete."""

    error_type = "provider_disconnected"
    code = "upstream_connection_error"


class UpstreamMalformed(UpstreamError):
    """The provider's answer was not valid HTTP."""

    error_type = "provider_malformed"
    code = "upstream_protocol_error"


class UpstreamTimeout(UpstreamError):
    """The provider did not answer in time."""

    error_type = "provider_timeout"
    status = 504
    code = "upstream_timeout"


class UpstreamSaturated(UpstreamError):
    """All connections this gateway may open to the provider are in use."""

    source = "gateway"
    error_type = "gateway_saturated"
    status = 503
    type = "service_unavailable_error"
    code = "upstream_saturated"


class UpstreamCredentials(UpstreamError):
    """The gateway's own credential for this provider was refused."""

    error_type = "provider_credentials"
    type = "upstream_error"
    code = "upstream_auth"
    should_retry = False

    def __init__(
        self,
        message: str | None = None,
        *,
        refused_status: int = 401,
        back_after_s: float | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail)
        #: What the provider answered, and when it said the credential would be good again; not for the caller.
        self.refused_status = refused_status
        self.back_after_s = back_after_s


class OwnKeyRefused(UpstreamCredentials):
    """Your account's own key for this provider was refused by the provider."""

    source = "caller"
    error_type = "caller_own_key"
    status = 401
    type = "invalid_request_error"
    code = "own_key_refused"

    @classmethod
    def of(cls, provider: str, refused: UpstreamCredentials) -> "OwnKeyRefused":
        """What a refusal is where the credential was not the gateway's."""
        status = refused.refused_status
        error = cls(
            f"Your account's own key for {provider} was refused by the provider ({status}). It is not your gateway "
            "key: see /user/provider-keys.",
            refused_status=status,
            back_after_s=refused.back_after_s,
            detail=refused.detail,
        )
        error.status = status if status in {401, 402, 403} else 401
        return error


class UpstreamRefused(UpstreamError):
    """The provider refused the request."""

    error_type = "provider_refused"

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int = 502,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        body: bytes | None = None,
        blame: str = "provider",
        code: str | None = None,
        absent: bool = False,
        retry_after_s: float | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, detail=detail)
        self.status = status
        #: It does not have the model, or not for this key.
        self.absent = absent
        #: The provider's own answer, which the caller gets byte for byte; None where no client could read it.
        self.headers = headers
        self.body = body
        #: As in `api.Failure`.
        self.blame = blame
        if status < 500:
            self.type, self.code = "invalid_request_error", "upstream_refused"
        if code is not None:
            self.code = code


class UpstreamThrottled(UpstreamRefused):
    """The provider's rate limit is reached."""

    error_type = "provider_throttled"


class RequestRefused(UpstreamRefused):
    """The provider does not accept the request."""

    source = "caller"
    error_type = "caller_refused"


class ContentRefused(UpstreamRefused):
    """The provider's content policy refuses the request."""

    source = "policy"
    error_type = "policy_refused"


class UpstreamRedirected(UpstreamError):
    """The provider answered with a redirect, which a gateway does not follow."""

    error_type = "provider_redirect"
    code = "upstream_redirect"


# -- ours ----------------------------------------------------------------------------------------------------


class NoOffer(GatewayError):
    """No provider can serve this model right now."""

    error_type = "gateway_no_offer"
    status = 503
    type = "service_unavailable_error"
    code = "no_provider_available"


class OwnKeyUnusable(GatewayError):
    """Your account's own key for this provider can't be used here right now, and it allows no other."""

    error_type = "gateway_own_key"
    status = 503
    type = "service_unavailable_error"
    code = "own_key_unusable"
    should_retry = False


class PluginFailed(GatewayError):
    """A check that every request has to pass could not be made. Try again shortly."""

    error_type = "gateway_plugin"
    status = 503
    type = "service_unavailable_error"
    code = "check_unavailable"


class Overloaded(GatewayError):
    """The gateway has no capacity left for this request."""

    error_type = "gateway_overloaded"
    status = 503
    type = "service_unavailable_error"
    code = "server_is_overloaded"


class NotKept(GatewayError):
    """There is no kept answer to this request, and `only-if-cached` asks for nothing else."""

    source = "caller"
    error_type = "caller_not_kept"
    status = 504
    type = "invalid_request_error"
    code = "not_cached"
    should_retry = False


class StoreUnavailable(GatewayError):
    """A store this gateway depends on does not answer. Try again shortly."""

    error_type = "gateway_store_unavailable"
    status = 503
    type = "service_unavailable_error"
    code = "store_unavailable"

    def __init__(self, message: str | None = None, *, retry_after_s: float = 1.0, detail: str | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s, detail=detail)
