"""An answer that is none, as an error: what the provider said, whose fault it is, and what a caller may see of it.

Rules:
- What the caller gets is the provider's own body, byte for byte, where a client of its dialect could read it: JSON,
  and whole. Else it gets an error of ours with the provider's status.
- Nothing about the gateway's own credential reaches a caller, least of all a 401 that would make it change its key.
"""

from gateway.api import Adapter, ResponseHead
from gateway.errors import (
    ContentRefused,
    RequestRefused,
    UpstreamCredentials,
    UpstreamError,
    UpstreamRefused,
    UpstreamThrottled,
)


def refusal(adapter: Adapter, head: ResponseHead, body: bytes, *, whole: bool = True) -> UpstreamError:
    """The error for an answer with an error status. `body` is plain (no content coding), as far as it came."""
    failure = adapter.classify(head, body)
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
    readable = whole and _is_json(head, body)
    return kind(
        status=head.status,
        headers=tuple(head.headers),
        body=body if readable else None,
        blame=failure.blame,
        retry_after_s=failure.retry_after_s,
        detail=detail,
    )


def _is_json(head: ResponseHead, body: bytes) -> bool:
    media_type = (head.header(b"content-type") or b"application/json").partition(b";")[0].strip().lower()
    return body.lstrip()[:1] in (b"{", b"[") and (media_type.endswith((b"/json", b"+json")))
