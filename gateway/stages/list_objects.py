"""Lists of objects (`GET /v1/files`, `/v1/batches` and the like): the caller's own, from the gateway's books.

A provider would list what all callers have under its key. What is listed is what the provider last said of each
object, to whoever asked.

https://platform.openai.com/docs/api-reference/files/list
"""

import urllib.parse
from typing import Final

import msgspec

from gateway.deps import Deps, Handler
from gateway.errors import BadRequest
from gateway.exchange import Exchange
from gateway.kernel.objects import LIST_MAX

_LIMIT: Final = 20
_encode: Final = msgspec.json.encode


async def list_objects(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Answer with a page.

    Raises:
        BadRequest: a parameter that says nothing.
        StoreUnavailable: the books can't be read.
    """
    assert x.principal is not None
    assert x.operation is not None
    query = dict(urllib.parse.parse_qsl(x.scope["query_string"].decode("latin-1")))
    limit = _limit(query.get("limit"))
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("`order` must be `asc` or `desc`.", param="order")
    found = await deps.objects.list(
        x.principal.account_id,
        x.operation.kind,
        after=query.get("after") or None,
        limit=limit + 1,
        oldest_first=order == "asc",
        purpose=query.get("purpose") or None,
    )
    page = found[:limit]
    body = _encode(
        {
            "object": "list",
            "data": [msgspec.Raw(document) for _, document in page],
            "first_id": page[0][0] if page else None,
            "last_id": page[-1][0] if page else None,
            "has_more": len(found) > limit,
        }
    )
    x.status = 200
    x.committed = True
    x.bytes_out = len(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", x.id.encode()),
        *x.reply_headers,
    ]
    await x.send({"type": "http.response.start", "status": 200, "headers": headers})
    await x.send({"type": "http.response.body", "body": body})


def _limit(text: str | None) -> int:
    if text is None:
        return _LIMIT
    if not text.isdecimal() or not 1 <= int(text[:6]) <= 10_000:
        raise BadRequest("`limit` must be a number from 1 to 10000.", param="limit")
    return min(int(text), LIST_MAX)
