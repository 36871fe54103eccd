"""What providers taught us about fields that the gateway adds of its own accord.

A stream is asked for its usage by `stream_options`, which some servers refuse with a 400 or 422 that names the field.
Then the same request is sent once more without it, and the provider's model is not asked for an hour. A refusal
that names something else, or a field that the caller sent, is the caller's business.
"""

from typing import Final

from gateway.errors import UpstreamRefused
from gateway.exchange import Call, Offer

FIELD: Final = "stream_options"
REMEMBERED_S: Final = 3600.0
LESSONS_MAX: Final = 4096
_STATUSES: Final = frozenset({400, 422})
_NAMES: Final = (b"stream_options", b"include_usage")


def names_our_field(error: UpstreamRefused, call: Call, offer: Offer) -> bool:
    """Whether the provider refused what the gateway added to this call."""
    if error.status not in _STATUSES or not offer.ask_usage or not call.peek.stream:
        return False
    if call.peek.stream_options_span is not None:
        return False
    # A caller of another dialect than the provider's gets no body, but what was said.
    said = error.body or error.message.encode("utf-8", "replace")
    return any(name in said for name in _NAMES)


class Lessons:
    """Which offers are not to be asked for usage, and until when."""

    def __init__(self) -> None:
        self._until_s: dict[tuple[str, str], float] = {}

    def learn(self, offer: Offer, now_s: float) -> None:
        if len(self._until_s) >= LESSONS_MAX:
            self._until_s.pop(next(iter(self._until_s)))
        self._until_s[offer.provider, offer.upstream_model] = now_s + REMEMBERED_S

    def know(self, offer: Offer, now_s: float) -> bool:
        """Whether the offer is not to be asked. Costs next to nothing while nothing was learned."""
        if not self._until_s:
            return False
        until_s = self._until_s.get((offer.provider, offer.upstream_model))
        if until_s is None:
            return False
        if now_s >= until_s:
            del self._until_s[offer.provider, offer.upstream_model]
            return False
        return True
