"""Answers that are remembered before they leave: an object that was made, changed or is done, and whose it is.

Rules:
- The answer goes out as it came, byte for byte, once PostgreSQL has what it says. Where that can't be had, the caller
  gets an error and no id: what nobody owns nobody can use.
- What a caller reads of a batch or a response that is done also ends its charge, which otherwise a poller does.
- These answers are short; what is long or streams is `relay`'s.
"""

from typing import Final

import msgspec

from gateway.deps import Deps, Handler
from gateway.errors import StoreUnavailable, UpstreamMalformed
from gateway.exchange import Exchange
from gateway.kernel.money import format_usd
from gateway.kernel.objects import Charge, Owned, Terms
from gateway.wire.encoding import response_inflater
from gateway.wire.headers import response_headers
from gateway.wire.objects import Document, read_document

#: A description of an object; of a response, with all that was said.
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_DAY_S: Final = 86400.0
_encode: Final = msgspec.json.encode


async def keep(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Pass `x.response` on, and remember what it says.

    Raises:
        UpstreamError: it broke off, or gives an id that is somebody else's.
        StoreUnavailable: it can't be remembered.
    """
    response = x.response
    assert response is not None
    head = response.head
    body = await response.read(ANSWER_BYTES_MAX)
    coding = head.header(b"content-encoding")
    if coding is not None and (inflate := response_inflater(coding, size_bytes_max=ANSWER_BYTES_MAX)) is not None:
        body = inflate.feed(body)
        inflate.end()
    x.status = head.status
    x.first_byte_s = deps.clock.monotonic()
    if x.operation is None:
        await _answer_in_background(x, deps, body)
    elif (document := read_document(body)) is not None:
        await _remember(x, deps, document, body)
    cost_nanos = None if x.on_whole is None or x.deferred else x.on_whole()
    _send(x, body, cost_nanos)
    assert x.downstream is not None
    await x.downstream.flushed()


async def _remember(x: Exchange, deps: Deps, document: Document, body: bytes) -> None:
    operation = x.operation
    assert operation is not None
    objects = deps.objects
    if operation.verb == "create":
        owned = _owned(x, deps, document, kind=operation.kind)
        await objects.remember([owned], documents=[body], charge=x.charge)
        x.ordered = x.charge is not None
    elif x.owned is None or document.id != x.owned.id:
        return
    elif operation.verb == "delete":
        if document.deleted:
            await objects.forget(x.owned)
    elif operation.verb in ("read", "change"):
        if results := _results(x, deps, document):
            await objects.remember(results, documents=_shown(results, document))
        if operation.kind != "response":
            await objects.describe(x.owned, body)
        if x.owned.pending and document.ended:
            await _charge(x, deps, document)


async def _charge(x: Exchange, deps: Deps, document: Document) -> None:
    """End the charge of what is done, if its report says all that is needed; else that is the poller's."""
    assert x.owned is not None
    try:
        if not await deps.charging.end_reported(x.owned.id, document):
            return
    except StoreUnavailable:
        # It stays due, and the caller need not wait for it.
        return
    deps.objects.settled(x.owned)


async def _answer_in_background(x: Exchange, deps: Deps, body: bytes) -> None:
    """The answer to an order for a response: settled now if it is done already, else when it is."""
    assert x.call is not None
    assert x.spoken is not None
    assert x.response is not None
    assert x.offer is not None
    assert x.provider is not None
    tap = x.provider.adapter.tap(x.spoken, x.response.head)
    tap.feed(body)
    tap.end()
    document = read_document(body)
    if document is None:
        raise UpstreamMalformed(detail="the order for a response was answered with none")
    ended = document.ended or tap.usage() is not None
    owned = _owned(x, deps, document, kind="response")
    if ended:
        x.tap = tap
        await deps.objects.remember([owned])
        return
    charge = Charge(
        charge_id=x.id,
        model=x.offer.model,
        upstream_model=x.offer.upstream_model,
        hold_nanos=x.hold_nanos,
        terms=Terms.of(x.offer),
        poll_s=deps.clock.now() + deps.settings.batches.poll_s,
    )
    await deps.objects.remember([msgspec.structs.replace(owned, pending=True)], charge=charge)
    x.deferred = True


def _owned(x: Exchange, deps: Deps, document: Document, *, kind: str) -> Owned:
    assert x.principal is not None
    assert x.provider is not None
    now_s = deps.clock.now()
    expires_s = document.expires_at if kind in ("file", "upload", "container") else None
    if kind == "response":
        expires_s = now_s + deps.settings.objects.response_days * _DAY_S
    elif kind == "upload" and expires_s is not None:
        # Its file stays; what becomes of the upload is still asked for a while.
        expires_s += _DAY_S
    return Owned(
        id=document.id,
        kind=kind,
        account_id=x.principal.account_id,
        key_id=x.principal.key_id,
        provider=x.provider.name,
        fingerprint=x.provider.fingerprints[x.key],
        created_s=now_s,
        expires_s=expires_s,
        pending=kind == "batch" and x.charge is not None,
    )


def _results(x: Exchange, deps: Deps, document: Document) -> list[Owned]:
    """Files that came into being with an object: they are its owner's."""
    found = [document.output_file_id, document.error_file_id]
    if (file := read_document(document.file) if document.file else None) is not None:
        found.append(file.id)
    made = [_owned(x, deps, Document(id=each), kind="file") for each in found if each]
    return [each for each in made if deps.objects.find_known(each.id) is None]


def _shown(results: list[Owned], document: Document) -> list[bytes]:
    """What lists say of results before anybody asked for them."""
    return [
        _encode(
            {
                "id": each.id,
                "object": "file",
                "bytes": 0,
                "created_at": int(each.created_s),
                "filename": f"{document.id}_output.jsonl",
                "purpose": "batch_output",
                "status": "processed",
            }
        )
        for each in results
    ]


def _send(x: Exchange, body: bytes, cost_nanos: int | None) -> None:
    response, downstream, offer = x.response, x.downstream, x.offer
    assert response is not None
    assert downstream is not None
    assert offer is not None
    headers = response_headers(response.head.headers, keep_encoding=False)
    headers.append((b"content-length", b"%d" % len(body)))
    if all(name != b"x-request-id" for name, _ in headers):
        headers.append((b"x-request-id", x.id.encode("ascii")))
    headers += x.reply_headers
    headers.append((b"x-gateway-provider", offer.provider.encode("latin-1", "replace")))
    headers.append((b"x-gateway-attempts", b"%d" % (len(x.attempts) + 1)))
    if cost_nanos is not None:
        headers.append((b"x-gateway-cost-usd", format_usd(cost_nanos).encode("ascii")))
    x.committed = True
    x.bytes_out += len(body)
    downstream.start(response.head.status, headers, chunked=False)
    downstream.end(body)
