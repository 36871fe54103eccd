"""What a request needs of an offer, beyond its dialect: read from the body only where some offer can't do something.

Rules:
- An operator says what an offer `lacks`; what nobody said anything about is taken to work. So a provider that learns
  something new is not held back by our table, and the worst of a wrong guess is the provider's own refusal.
- The body is searched as bytes, for names that stand unescaped in it: within a text they would have a backslash
  before their quote.
- Sizes are by estimate, which is rather too high: an offer is passed over for its size only where another fits.
"""

import re
from typing import Final

from gateway.exchange import Call
from gateway.settings import Capability

_SIGNS: Final[dict[Capability, re.Pattern[bytes]]] = {
    "tools": re.compile(rb'"(?:tools|functions)"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*\{'),
    "vision": re.compile(rb'"type"[ \t\r\n]*:[ \t\r\n]*"(?:image_url|input_image|image)"'),
    "audio": re.compile(rb'"type"[ \t\r\n]*:[ \t\r\n]*"(?:input_audio|audio)"'),
    "json_schema": re.compile(rb'"type"[ \t\r\n]*:[ \t\r\n]*"json_schema"'),
}


def needs_of(call: Call) -> frozenset[str]:
    """The capabilities that a call makes use of."""
    needs: set[str] = {name for name, sign in _SIGNS.items() if sign.search(call.body) is not None}
    if call.peek.stream:
        needs.add("streaming")
    return frozenset(needs)
