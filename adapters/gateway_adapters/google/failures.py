"""What Google's errors mean, beyond what is the same at every provider.

A wrong key is a 400 there, and a refusal for what is in the prompt is one too. An error may come in an array, and
inside a stream whose status was good; then its `code` is the status it would have had.
"""

import re
from typing import Final

import msgspec

from gateway.api import Failure, ResponseHead
from gateway_adapters import failures

_POLICY: Final = re.compile(r"\bsafety\b|prohibited[ _](?:content|use)|blocklist|responsible ai", re.IGNORECASE)
_ELSEWHERE: Final = re.compile(
    r"user location is not supported|not available in your (?:country|region)", re.IGNORECASE
)
#: What Google calls the statuses of google.rpc.Code, for errors that come without a number.
_STATUSES: Final = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class _Error(msgspec.Struct):
    code: object = None
    status: object = None


class _Body(msgspec.Struct):
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Body | list[_Body]).decode


def classify(head: ResponseHead, body: bytes, *, secret: str) -> Failure:
    """The failure that an answer with an error status is."""
    failure = failures.classify(head, body, secret=secret)
    if failure.blame != "caller" or head.status != 400:
        return failure
    if _POLICY.search(failure.message):
        return msgspec.structs.replace(failure, blame="policy", code="content_filter")
    if _ELSEWHERE.search(failure.message):
        # Where the gateway stands is nothing a caller can mend; another provider may be asked.
        return msgspec.structs.replace(failure, blame="provider")
    return failure


def failure_inside(data: bytes, *, secret: str) -> Failure:
    """The failure that an error inside a good answer is."""
    status = _status_of(data)
    return msgspec.structs.replace(classify(ResponseHead(status, []), data, secret=secret), status=status)


def _status_of(data: bytes) -> int:
    try:
        found = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 502
    bodies = found if isinstance(found, list) else [found]
    error = next((body.error for body in bodies if body.error is not None), None)
    if error is None:
        return 502
    if isinstance(error.code, int) and 400 <= error.code < 600:
        return error.code
    return _STATUSES.get(error.status, 502) if isinstance(error.status, str) else 502
