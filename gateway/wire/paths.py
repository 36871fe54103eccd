"""From a request's raw path to what it asks for.

Clients reach the same endpoint in several spellings: with an optional prefix, a doubled or a trailing slash, and (the
Azure SDKs) with the deployment in the path. One function undoes them. The path stays percent-encoded: SDKs encode a
slash inside a model's name as `%2F`, and only the raw path can tell the two apart.
"""

import re
import urllib.parse
from typing import NamedTuple

from gateway.wire.dialects import GEMINI_DIALECTS, GEMINI_VERBS, PATHS, Dialect, dialect_of
from gateway.wire.objects import ObjectPath, object_path

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
#: Posted to with a model and paid for as any call, without being a dialect of their own.
RELAYED = frozenset({b"/responses/compact"})
#: Conversations over a WebSocket, also in Azure's spelling; and what makes keys for them that pass the gateway by.
REALTIME = b"/realtime"
_AZURE_REALTIME = b"/openai/realtime"
#: Google's paths name the model and what is to be done. Its SDKs write one of several versions before them, and those
#: that are told of Vertex AI the project and the publisher too, which are not a caller's to choose.
_GEMINI = re.compile(
    rb"(?:/api|/openai)?(?:/v1)*/v1(?:alpha|beta1?)?(?:/projects/[^/]+/locations/[^/]+)?(?:/publishers/([^/]+))?"
    rb"/models/(.+):([A-Za-z]+)"
)
#: Where they look for the models there are, under versions that only they write.
_GEMINI_MODELS = re.compile(rb"(?:/v1)*/v1(?:alpha|beta1?)(?:/publishers/google)?(/models(?:/[^:]+)?)")
#: Found in any case: a path that a provider might understand is metered by what it is.
_GEMINI_VERBS = {verb.lower(): verb for verb in GEMINI_VERBS}
_STREAMED = b"streamGenerateContent"


class Target(NamedTuple):
    """What a path asks for: `path` is what follows `/v1`, `label` a name from a closed list for metrics and logs."""

    dialect: Dialect
    path: bytes
    label: str
    #: The model, where the path names it (Azure deployments, Google).
    model: str | None = None
    #: Which objects it is about, where it is about such that providers keep.
    objects: ObjectPath | None = None
    #: The path asks for a stream (Google); elsewhere the body does.
    stream: bool = False


def resolve(raw_path: bytes) -> Target | None:
    """The target of a `/v1` path in any of its spellings, or None if it is not one or leads out of it."""
    path = _SLASHES.sub(b"/", raw_path)
    if len(path) > 1 and path.endswith(b"/"):
        path = path[:-1]
    if (target := _gemini(path)) is not None:
        return target
    if path == _AZURE_REALTIME:
        return Target(Dialect.OPENAI_OTHER, REALTIME, "/v1/realtime")
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
        if decoded not in RELAYED and (objects := object_path(path)) is not None:
            return Target(dialect, objects.path, objects.label, None, objects)
        if decoded == REALTIME:
            return Target(dialect, REALTIME, "/v1/realtime")
        is_generation = path == GENERATION or path.startswith(GENERATIONS)
        return Target(dialect, path, _GENERATIONS_LABEL if is_generation else _OTHER_LABEL, model)
    if dialect in GEMINI_DIALECTS:
        return None
    return Target(dialect, path, "/v1" + path.decode("ascii"), model)


def _gemini(path: bytes) -> Target | None:
    """The target of a path of Google's; None for any other."""
    if not path.startswith((b"/v1", b"/api", b"/openai")) or b"/models" not in path:
        return None
    decoded = urllib.parse.unquote_to_bytes(path)
    if not _DOTS.isdisjoint(decoded.split(b"/")) or any(byte < 0x20 for byte in decoded):
        return None
    match = _GEMINI.fullmatch(decoded)
    verb = None if match is None else _GEMINI_VERBS.get(match[3].lower())
    if match is None or verb is None:
        models = _GEMINI_MODELS.fullmatch(path)
        return None if models is None else Target(Dialect.OPENAI_OTHER, models[1], _OTHER_LABEL)
    model = match[2].decode("utf-8", "replace")
    if match[1] not in (None, b"google"):
        # Its SDK took the name apart at a slash.
        model = f"{match[1].decode('utf-8', 'replace')}/{model}"
    # The path is rebuilt, with the model encoded whole.
    path = b"/models/" + urllib.parse.quote(model, safe="").encode("ascii") + b":" + verb
    label = "/v1/models/*:" + verb.decode("ascii")
    return Target(GEMINI_VERBS[verb], path, label, model, stream=verb == _STREAMED)
