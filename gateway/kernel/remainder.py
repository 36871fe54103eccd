"""What is still to be charged of a request that a sweep took for an orphan, although its worker went on.

A worker that was paused for longer than a lease, or cut off from Redis while others were not, finds its requests
ended: charged what its last renewal said. What it delivered after that is charged as a request of its own.

Rules:
- Its id follows from that of the request, with the same time inside. So whoever finds the remainder, and however
  often, charges it once.
- It has a cost and no tokens: how many the first record counted, only the books know.
"""

from hashlib import blake2b
from typing import Final

import msgspec

from gateway.kernel.money import Nanos
from gateway.kernel.record import decode_record, encode_record
from gateway.kernel.verbs import Ended

#: The tag that names the request.
CONTINUES: Final = "continues"
#: A record's counts, and their value where nothing is known.
_UNCOUNTED: Final[dict[str, int | None]] = {
    "hold_nanos": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_cached_tokens": 0,
    "input_cache_write_tokens": 0,
    "input_cache_write_1h_tokens": 0,
    "input_audio_tokens": 0,
    "input_image_tokens": 0,
    "output_reasoning_tokens": 0,
    "output_audio_tokens": 0,
    "output_image_tokens": 0,
    "images": 0,
    "audio_ms": 0,
    "characters": 0,
    "searches": 0,
    "provider_cost_nanos": None,
}


class Remainder(msgspec.Struct, frozen=True):
    """As a request, to be settled without a hold."""

    request_id: str
    cost_nanos: Nanos
    record: bytes


def remainder_of(ended: Ended, record: bytes) -> Remainder | None:
    """What `record` is charged for beyond what a sweep has charged; None where that is nothing."""
    if ended.verb != "expire" or not record:
        return None
    try:
        whole = decode_record(record)
    except ValueError:
        # Of a release that writes them otherwise.
        return None
    cost_nanos = whole.cost_nanos - ended.cost_nanos
    if cost_nanos <= 0:
        return None
    request_id = _follow(whole.request_id)
    rest = msgspec.structs.replace(
        whole,
        request_id=request_id,
        cost_nanos=cost_nanos,
        tags={**whole.tags, CONTINUES: whole.request_id},
        **_UNCOUNTED,
    )
    return Remainder(request_id, cost_nanos, encode_record(rest))


def _follow(request_id: str) -> str:
    """An id of the same millisecond that is nobody else's."""
    digits = blake2b(request_id.encode(), digest_size=10, person=b"remainder").hexdigest()
    # Time and version stay (RFC 9562, section 5.7), and so does the variant.
    return f"{request_id[:15]}{digits[:3]}-8{digits[3:6]}-{digits[6:18]}"
