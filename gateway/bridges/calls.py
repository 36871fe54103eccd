"""Calls to tools in a chat stream: which call a piece belongs to, and when its arguments are whole.

Pieces say which call they are of by an index. Providers that have none give every call its own id, and some give all
of them the same index; both are told apart here. What a call's arguments are is never kept: whether they are whole is
known from their brackets.
"""

import re
from typing import Final

from gateway.bridges.hub import ToolCall

#: Calls in one answer. OpenAI allows 128 tools.
CALLS_MAX: Final = 1024

_TOKEN: Final = re.compile(r'["\\{}\[\]]')
_OPENING: Final = frozenset("{[")


class TooManyCalls(ValueError):
    """An answer with more calls than anybody could have meant."""


class CallNumbers:
    """Numbers the calls of one stream from 0."""

    __slots__ = ("_ids", "_last", "_of_index", "count")

    def __init__(self) -> None:
        self.count = 0
        self._of_index: dict[int, int] = {}
        self._ids: list[str | None] = []
        self._last = -1

    def find(self, call: ToolCall) -> int:
        """The number of the call that this is a piece of.

        Raises:
            TooManyCalls: it would be one more than `CALLS_MAX`.
        """
        if call.index is None:
            # What neither says which call it is of nor names a new one goes on with the last.
            named = call.function is not None and call.function.name
            number = self._of_id(call.id) if call.id else -1 if named else self._last
        else:
            number = self._of_index.get(call.index, -1)
            if number >= 0 and call.id and self._ids[number] and self._ids[number] != call.id:
                # Another call under an index that was used before.
                number = self._of_id(call.id)
        if number < 0:
            number = self._add(call)
        elif call.id and not self._ids[number]:
            self._ids[number] = call.id
        self._last = number
        if call.index is not None:
            self._of_index[call.index] = number
        return number

    def _of_id(self, id_: str) -> int:
        return self._ids.index(id_) if id_ in self._ids else -1

    def _add(self, call: ToolCall) -> int:
        if self.count >= CALLS_MAX:
            raise TooManyCalls
        self._ids.append(call.id or None)
        self.count += 1
        return self.count - 1


class JSONEnd:
    """Sees where a JSON object ends that comes in pieces."""

    __slots__ = ("_depth", "_escaped", "_quoted", "whole")

    def __init__(self) -> None:
        self.whole = False
        self._depth = 0
        self._quoted = False
        #: The piece before ended in a backslash inside a string.
        self._escaped = False

    def feed(self, text: str) -> None:
        at = 0
        if self._escaped and text:
            self._escaped = False
            at = 1
        size = len(text)
        while (found := _TOKEN.search(text, at)) is not None:
            at = found.end()
            mark = found[0]
            if self._quoted:
                if mark == '"':
                    self._quoted = False
                elif mark == "\\":
                    # Whatever follows is no mark.
                    self._escaped = at == size
                    at += 1
            elif mark == '"':
                self._quoted = True
            elif mark in _OPENING:
                self._depth += 1
            elif mark != "\\":
                self._depth -= 1
                if self._depth <= 0:
                    self.whole = True
