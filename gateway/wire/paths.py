"""From a request's raw path to what it asks for.

Clients reach the same endpoint in several spellings: with an optional prefix, a doubled or a trailing slash, and (the
Azure SDKs) with the deployment in the path. One function undoes them. The path stays percent-encoded: SDKs encode a
slash inside a model's name as `%2F`, and only the raw path can tell the two apart.
"""

import re
import urllib.parse
from typing import NamedTuple

from gateway.wire.dialects import PATHS, Dialect, dialect_of

_PREFIXES = (b"/v1", b"/openai/v1", b"/api/v1")
_SLASHES = re.compile(rb"//+")
_AGAIN = re.compile(rb"^(?:/v1)+(?=/)")
_DEPLOYMENT = re.compile(rb"/openai/deployments/([^/]+)(/.+)")

#: Servers resolve these away, so they would lead somewhere else than they seem to.
_DOTS = frozenset({b".", b".."})

#: What a provider keeps for its own administrators; the operator's credential must not open it to callers.
_CLOSED = (b"/organization", b"/dashboard", b"/admin")

_OTHER_LABEL = "/v1/*"
#: What became of an earlier request, in the gateway's own spelling and in the one that clients know from OpenRouter.
GENERATIONS = b"/generations/"
GENERATION = b"/generation"
_GENERATIONS_LABEL = "/v1/generations/*"
#: Where the path names the model.
_LABELS = {Dialect.GEMINI_GENERATE: "/v1/models/*:generateContent"}


class Target(NamedTuple):
    """What a path asks for: `path` is what follows `/v1`, `label` a name from a closed list for metrics and logs."""

    dialect: Dialect
    path: bytes
    label: str
    #: The model, where the path names it (Azure deployments).
    model: str | None = None


def resolve(raw_path: bytes) -> Target | None:
    """The target of a `/v1` path in any of its spellings, or None if it is not one or leads out of it."""
    path = _SLASHES.sub(b"/", raw_path)
    if len(path) > 1 and path.endswith(b"/"):
        path = path[:-1]
    model = None
    if match := _DEPLOYMENT.fullmatch(path):
        model = urllib.parse.unquote(match[1].decode("latin-1"))
        path = match[2]
    else:
        for prefix in _PREFIXES:
            if path.startswith(prefix + b"/"):
                path = path[len(prefix) :]
                break
        else:
            return None
    path = _AGAIN.sub(b"", path)  # users put /v1 into a base URL that has it already
    decoded = urllib.parse.unquote_to_bytes(path)
    if not _DOTS.isdisjoint(decoded.split(b"/")) or b"\\" in decoded or any(byte < 0x21 for byte in path):
        return None
    if _AGAIN.sub(b"", _SLASHES.sub(b"/", decoded).lower()).startswith(_CLOSED):
        return None
    if decoded in PATHS:
        # An endpoint that is understood must be so in every spelling that reaches it: it is metered by what it is.
        path = decoded
    dialect = dialect_of(path)
    if dialect is Dialect.OPENAI_OTHER:
        is_generation = path == GENERATION or path.startswith(GENERATIONS)
        return Target(dialect, path, _GENERATIONS_LABEL if is_generation else _OTHER_LABEL, model)
    return Target(dialect, path, _LABELS.get(dialect) or "/v1" + path.decode("ascii"), model)
