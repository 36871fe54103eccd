"""What a bridge is: see the package's own page for the rules."""

from typing import Final, Protocol

import msgspec

from gateway.api import ResponseHead, Tap
from gateway.exchange import Call
from gateway.wire.dialects import Dialect


class Opened(msgspec.Struct, frozen=True):
    """A call made one of the hub's: `call` has that dialect's path, body and peek."""

    call: Call
    #: Members of the caller's request that the hub can't carry.
    dropped: tuple[str, ...] = ()


NO_EXTENSIONS: Final[frozenset[str]] = frozenset()


class Bridge(Protocol):
    """From one dialect to the hub and back."""

    #: What callers of it speak.
    dialect: Dialect
    #: What calls are made: chat completions, for nearly all.
    hub: Dialect

    def open(self, call: Call, extensions: frozenset[str] = NO_EXTENSIONS) -> Opened:
        """The hub's call that asks for the same. `extensions` may be used besides what OpenAI's reference has.

        Whether a stream is asked for its usage is left to the adapter, as with any caller who did not ask: it knows
        how its provider wants to be asked, and its tap has the figures in any case.

        Raises:
            BadRequest: the call is malformed, or the hub can't carry what it needs.
        """
        ...

    def tap(self, call: Call, head: ResponseHead, inner: Tap) -> Tap:
        """The watcher for the answer to the caller's own `call`.

        It feeds `inner`, the adapter's watcher, whose output is the hub's (a chat completion or a stream of its
        chunks), and returns the caller's dialect. Usage, `complete` and `failure` are the inner one's.
        """
        ...
