"""JSON as text: finding brackets and string ends without decoding anything.

Rules: offsets stay those of the text that came in, and work is linear. Nothing here judges whether the text is JSON.
"""

import re

#: A string or a bracket, in text that went through `mask_escapes`.
TOKEN = re.compile(rb'"[^"]*"|[\[\]{}]')

OPENING = (b"{", b"[")
CLOSING = (b"}", b"]")


def mask_escapes(text: bytes) -> bytes:
    """`text` with escaped backslashes and quotes overwritten: every quote that is left opens or closes a string.

    Backslashes only occur inside strings and pair up from the left, as `bytes.replace` does. The length is the same.
    """
    if b"\\" not in text:
        return text
    return text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
