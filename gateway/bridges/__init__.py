"""Bridges: a call in one dialect made a chat completion, and that completion's answer made an answer to the call.

OpenAI's chat completions are the hub: an adapter that speaks them, or translates them into what its provider speaks,
serves every dialect that has a bridge here. N dialects and M providers need N bridges and M adapters, not N times M.

Rules:
- A bridge is pure and sans-IO, like an adapter: facts and bytes in, facts and bytes out.
- What the hub can't carry is refused (`BadRequest`, naming the member), or dropped and named in `Opened.dropped`,
  which the caller is told of in a response header. Nothing is lost silently.
- A stream is turned event by event; what is kept of it does not grow with its length.

Whether a bridge is needed is `stages/attempt.py`'s to find out. A dialect that an adapter speaks is never bridged.
"""

from typing import Protocol

import msgspec

from gateway.api import ResponseHead, Tap
from gateway.exchange import Call
from gateway.wire.dialects import Dialect


class Opened(msgspec.Struct, frozen=True):
    """A call made a chat completion: `call` has that dialect's path, body and peek."""

    call: Call
    #: Members of the caller's request that the hub can't carry.
    dropped: tuple[str, ...] = ()


class Bridge(Protocol):
    """From one dialect to the hub and back."""

    #: What callers of it speak.
    dialect: Dialect

    def open(self, call: Call) -> Opened:
        """The chat completion that asks for the same. A stream asks for its usage.

        Raises:
            BadRequest: the call is malformed, or the hub can't carry what it needs.
        """
        ...

    def tap(self, call: Call, head: ResponseHead, inner: Tap) -> Tap:
        """The watcher for the answer to the caller's own `call`.

        It feeds `inner`, the adapter's watcher, whose output is a chat completion or a stream of its chunks, and
        returns the caller's dialect. Usage, `complete` and `failure` are the inner one's.
        """
        ...


#: By the dialect that callers speak.
BRIDGES: dict[Dialect, Bridge] = {}


def reach(served: frozenset[Dialect]) -> frozenset[Dialect]:
    """Every dialect that can be served by an adapter that serves these."""
    return served | BRIDGES.keys() if Dialect.OPENAI_CHAT in served else served
