"""`GET /v1/models` and `/v1/models/{id}`: what this gateway offers, from memory, in OpenAI's shape."""

import urllib.parse

import msgspec

from gateway.deps import Deps, Handler
from gateway.errors import MethodNotAllowed, UnknownModel
from gateway.exchange import Exchange

#: OpenAI's schema wants an integer; the gateway does not know when a model was made.
_CREATED = 0


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's `model` object."""

    id: str
    object: str = "model"
    created: int = _CREATED
    owned_by: str


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's list of models."""

    object: str = "list"
    data: list[ModelCard]


async def list_models(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Answer with all models, or with the one whose id follows in the path."""
    if x.scope["method"] not in {"GET", "HEAD"}:
        raise MethodNotAllowed(allow="GET, HEAD")
    name = urllib.parse.unquote(x.target.path.removeprefix(b"/models").removeprefix(b"/").decode("latin-1"))
    answer: ModelCard | ModelList
    if name:
        offers = deps.offers.find(name)
        if not offers:
            raise UnknownModel(name)
        answer = ModelCard(id=name, owned_by=offers[0].provider)
    else:
        answer = ModelList(data=[ModelCard(id=model, owned_by=provider) for model, provider in deps.offers.names()])
    body = msgspec.json.encode(answer)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", x.id.encode()),
        *x.reply_headers,
    ]
    x.committed = True
    x.status = 200
    x.bytes_out = len(body)
    await x.send({"type": "http.response.start", "status": 200, "headers": headers})
    await x.send({"type": "http.response.body", "body": b"" if x.scope["method"] == "HEAD" else body})
