"""The signatures that Google's models put on their tool calls, kept for callers who lose them.

A model of the third generation refuses a conversation in which a call has lost its signature. OpenAI's dialect has no
place for one, so it goes out as `extra_content` beside the call, as Google's own OpenAI-compatible API does it; most
clients drop what they don't know. What they keep is the call's id, so the signature is found again by that.

Why not inside the id, which would need no memory: signatures are hundreds of bytes and more, OpenAI takes ids of 40
characters and Anthropic of 64, and a conversation that falls back to one of them would be refused for good.

What one account's model thought is never found for another: the account is part of what a signature is found by. It
only fills in what a caller left out; what came back with the conversation counts.

Bounds and limits: the memory is this process's, for as many bytes as `SIZE_MAX`, oldest first out. Another worker, or
this one after a restart, does not know what was kept here. Such a call is sent with `UNKNOWN`, which Google takes in
place of a signature (Gemini API documentation, "Thought signatures"): the model answers, but has forgotten what it
thought when it made the call.
"""

from collections import OrderedDict
from typing import Final

#: All that is kept: signatures and the names they are found by.
SIZE_MAX: Final = 16 * 1024 * 1024
#: A longer one is not kept.
SIGNATURE_CHARS_MAX: Final = 256 * 1024
#: What Google takes for a signature that nobody has.
UNKNOWN: Final = "skip_thought_signature_validator"

_Key = tuple[int, str, str]


class Signatures:
    """Signatures by the account that was answered, and the id and name of the call they belong to."""

    def __init__(self, *, size_max: int = SIZE_MAX) -> None:
        self._size_max = size_max
        self._size = 0
        self._kept: OrderedDict[_Key, str] = OrderedDict()

    def keep(self, account_id: int, call_id: str, name: str, signature: str) -> None:
        if len(signature) > SIGNATURE_CHARS_MAX:
            return
        key = (account_id, call_id, name)
        if (old := self._kept.pop(key, None)) is not None:
            self._size -= _size_of(key, old)
        self._kept[key] = signature
        self._size += _size_of(key, signature)
        while self._size > self._size_max:
            oldest, gone = self._kept.popitem(last=False)
            self._size -= _size_of(oldest, gone)

    def find(self, account_id: int, call_id: str, name: str) -> str | None:
        key = (account_id, call_id, name)
        signature = self._kept.get(key)
        if signature is not None:
            self._kept.move_to_end(key)
        return signature


def _size_of(key: _Key, signature: str) -> int:
    return len(key[1]) + len(key[2]) + len(signature)
