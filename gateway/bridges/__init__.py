"""Bridges: a call in one dialect made a chat completion, and that completion's answer made an answer to the call.

OpenAI's chat completions are the hub: an adapter that speaks them, or translates them into what its provider speaks,
serves every dialect that has a bridge here. N dialects and M providers need N bridges and M adapters, not N times M.
Where something is embedded, the hub is OpenAI's embeddings.

Rules:
- A bridge is pure and sans-IO, like an adapter: facts and bytes in, facts and bytes out.
- What the hub can't carry is refused (`BadRequest`, naming the member), or dropped and named in `Opened.dropped`,
  which the caller is told of in a response header. Nothing is lost silently.
- A stream is turned event by event; what is kept of it does not grow with its length. The one exception is responses,
  whose last event repeats the answer: what that needs is kept, and bounded (`responses_output.py`).

Whether a bridge is needed is `stages/attempt.py`'s to find out. A dialect that an adapter speaks is never bridged.
"""

from gateway.bridges.bridge import Bridge, Opened
from gateway.bridges.completions import Completions
from gateway.bridges.counting import COUNTERS
from gateway.bridges.gemini import Gemini
from gateway.bridges.gemini_embed import GeminiEmbed
from gateway.bridges.messages import Messages
from gateway.bridges.responses import Responses
from gateway.bridges.seals import without_seals
from gateway.wire.dialects import Dialect

__all__ = ["BRIDGES", "COUNTERS", "Bridge", "Opened", "reach", "without_seals"]

#: One for each dialect.
_ALL: tuple[Bridge, ...] = (Completions(), Gemini(), GeminiEmbed(), Messages(), Responses())

#: By the dialect that callers speak.
BRIDGES: dict[Dialect, Bridge] = {bridge.dialect: bridge for bridge in _ALL}


def reach(served: frozenset[Dialect]) -> frozenset[Dialect]:
    """Every dialect that can be served by an adapter that serves these."""
    bridged = {bridge.dialect for bridge in _ALL if bridge.hub in served}
    return served | bridged | (COUNTERS.keys() if Dialect.OPENAI_CHAT in served else set())
