"""An answer that is none, as an error: what the provider said, whose fault it is, and what a caller may see of it.

Rules:
- What the caller gets is the provider's own body, byte for byte, where a client of its dialect could read it: JSON,
  and whole. Else it gets an error of ours with the provider's status.
- A caller of another dialect than the provider's gets what the provider says as an error of its own dialect.
- Nothing about the gateway's own credential reaches a caller, least of all a 401 that would make it change its key.
"""

from typing import Final

from gateway.api import Adapter, Failure, ResponseHead
from gateway.errors import (
    ContentRefused,
    RequestRefused,
    UpstreamCredentials,
    UpstreamError,
    UpstreamRefused,
    UpstreamThrottled,
)

#: The code of a model that a provider does not have.
_ABSENT: Final = "model_not_found"
#: Statuses of a provider's own trouble that clients of other dialects take for theirs, or do not know.
_FOREIGN: Final = {408: 504, 409: 502, 424: 502, 425: 503, 498: 503, 499: 502, 529: 503}


def refusal(
    adapter: Adapter, head: ResponseHead, body: bytes, *, whole: bool = True, native: bool = True
) -> UpstreamError:
    """The error for an answer with an error status. `body` is plain (no content coding), as far as it came.

    `native` says that the provider speaks the caller's dialect.
    """
    failure = adapter.classify(head, body)
    readable = native and whole and _is_json(head, body)
    return error_of(failure, head, body=body if readable else None, native=native)


def error_of(
    failure: Failure, head: ResponseHead, *, body: bytes | None = None, native: bool = False
) -> UpstreamError:
    """The error that a failure is. `body` is what the caller gets byte for byte, if anything."""
    detail = failure.detail or f"status {head.status}"
    if failure.blame == "key":
        return UpstreamCredentials(
            refused_status=head.status, back_after_s=failure.retry_after_s, detail=f"status {head.status}: {detail}"
        )
    kind: type[UpstreamRefused] = UpstreamRefused
    if failure.blame in ("caller", "context"):
        kind = RequestRefused
    elif failure.blame == "policy":
        kind = ContentRefused
    elif head.status == 429:
        kind = UpstreamThrottled
    message = None if native else failure.message or None
    return kind(
        message,
        status=head.status if native else _foreign_status(head.status, failure),
        headers=tuple(head.headers),
        body=body,
        blame=failure.blame,
        code=None if native else failure.code,
        absent=failure.blame == "caller" and failure.code == _ABSENT,
        retry_after_s=failure.retry_after_s,
        detail=detail,
    )


def _foreign_status(status: int, failure: Failure) -> int:
    """A status as clients of another dialect than the provider's know it: Bedrock says 408 and 424 of its models,
    Anthropic 529 of its overload.
    """
    return _FOREIGN.get(status, status) if failure.blame == "provider" else status


def _is_json(head: ResponseHead, body: bytes) -> bool:
    media_type = (head.header(b"content-type") or b"application/json").partition(b";")[0].strip().lower()
    return body.lstrip()[:1] in (b"{", b"[") and (media_type.endswith((b"/json", b"+json")))
