"""The text in the only member of an object, as a stream brings the object piece by piece.

A tool that takes plain text is told to Anthropic as one that takes `{"input":"..."}`. What comes back is the JSON of
this object in pieces cut anywhere. The text is handed on as it is written there, escapes and all, since it goes into
a JSON string again; no escape sequence is cut in two.
"""

import re
from typing import Final

from gateway_adapters.anthropic.names import CUSTOM_INPUT

#: What may stand before the text, and how long that may be.
_HEAD: Final = re.compile(rf'\s*\{{\s*"{CUSTOM_INPUT}"\s*:\s*"')
_HEAD_CHARS_MAX: Final = 256
#: Whole characters of a JSON string; of a pair of surrogates both or none.
_TEXT: Final = re.compile(
    r'(?:[^"\\]|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*'
)
#: The longest that one of them is.
_CHARACTER_CHARS_MAX: Final = 12


class CustomInput:
    """The text of one call."""

    __slots__ = ("_ended", "_held", "_inside")

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self._ended = False

    def feed(self, piece: str) -> str:
        """What of the text this piece of the object's JSON has, escaped as it came."""
        if self._ended:
            return ""
        held = self._held + piece
        if not self._inside:
            head = _HEAD.match(held)
            if head is None:
                self._held = held
                self._ended = len(held) > _HEAD_CHARS_MAX
                return ""
            self._inside = True
            held = held[head.end() :]
        found = _TEXT.match(held)
        text = "" if found is None else found[0]
        self._held = held[len(text) :]
        # Its closing quote; or what no JSON has.
        self._ended = self._held.startswith('"') or len(self._held) >= _CHARACTER_CHARS_MAX
        return text
