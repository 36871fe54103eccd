"""What is charged later is held now: a batch is ordered by this request and paid for when it is done.

The file of its requests is read first, all of it: it says which model they name and the most that they can use, and
nothing else does. A batch whose model has no price, or that the account can't pay, is never made.

What has to be asked or read to know a price is not deleted before it is charged.
"""

from collections.abc import Awaitable
from typing import Final

import msgspec

from gateway.deps import Deps, Handler
from gateway.errors import BadRequest, StillRunning, UnknownModel, Unpriced, UpstreamError
from gateway.exchange import Exchange, Offer
from gateway.inquiry import ask_provider
from gateway.kernel.admission import refusal_of, take
from gateway.kernel.charging import LEASE_MS, read_output
from gateway.kernel.holds import Hold
from gateway.kernel.limits import detach_limits
from gateway.kernel.objects import Charge, Terms
from gateway.kernel.verbs import Admitted
from gateway.upstream.response import UpstreamResponse
from gateway.wire.objects import BatchInput, Document, read_document
from gateway.wire.usage import Usage

#: Bytes to a token of a batch's file, which is mostly JSON around text.
_BYTES_PER_TOKEN: Final = 3
#: A response, with all that was said.
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024


class _Order(msgspec.Struct, frozen=True):
    input_file_id: str = ""


_read_order = msgspec.json.Decoder(_Order).decode


def defer(x: Exchange, *, deps: Deps, call_next: Handler) -> Awaitable[None]:
    """Set `x.charge` where something is charged later.

    Raises:
        BadRequest: the file can't be read, or holds no requests.
        UnknownModel, Unpriced: what it names may not be called.
        InsufficientCredit: it can't be paid.
        StillRunning: it is to be deleted, and can't be charged yet.
    """
    operation = x.operation
    if operation is None:
        return call_next(x)
    if operation.verb == "create" and operation.kind == "batch":
        return _order(x, deps, call_next)
    if operation.verb == "delete" and x.owned is not None:
        if x.owned.pending:
            return _delete(x, deps, call_next)
        if operation.kind == "file":
            return _delete_file(x, deps, call_next)
    return call_next(x)


async def _delete(x: Exchange, deps: Deps, call_next: Handler) -> None:
    """What is deleted can't be asked for its usage any more, so it is asked before."""
    assert x.owned is not None
    assert x.call is not None
    document = await _describe(x, deps, x.call.path)
    if document is not None:
        if not document.ended:
            raise StillRunning
        if not await deps.charging.end_reported(x.owned.id, document):
            raise StillRunning("It has ended, and is not charged yet; delete it a little later.")
        deps.objects.settled(x.owned)
    await call_next(x)


async def _delete_file(x: Exchange, deps: Deps, call_next: Handler) -> None:
    """The answers of a batch may be all that says what it used: they are summed up before they are gone."""
    assert x.owned is not None
    batch_id = await deps.charging.deferred.find_batch(x.owned.account_id, x.owned.id)
    if batch_id is not None:
        document = await _describe(x, deps, b"/batches/" + batch_id.encode())
        usage = None
        if document is not None and document.ended:
            usage = document.counted() or await _sum_up(x, deps, x.owned.id)
        if usage is None:
            # The poller finds out what it used, or that nobody can; then the file may go.
            raise StillRunning("The batch that gave these answers is not charged yet; delete them a little later.")
        await deps.charging.end(batch_id, usage)
        if (batch := deps.objects.find_known(batch_id)) is not None:
            deps.objects.settled(batch)
    await call_next(x)


async def _order(x: Exchange, deps: Deps, call_next: Handler) -> None:
    assert x.call is not None
    assert x.principal is not None
    try:
        file_id = _read_order(x.call.body).input_file_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("The request body must be a JSON object with an `input_file_id`.") from None
    if not file_id:
        raise BadRequest("You must provide an `input_file_id`.", param="input_file_id")
    lines = await _read_lines(x, deps, file_id)
    offer = _offer(x, deps, lines.model)
    amount = deps.charging.estimate(
        offer, input_tokens=lines.input_bytes // _BYTES_PER_TOKEN, output_tokens=lines.output_tokens
    )
    charge_id = deps.new_id()
    principal = x.principal
    scopes = deps.ledger.scopes(
        account_id=principal.account_id, key_id=principal.key_id, limits=detach_limits(principal.limits)
    )
    hold = Hold(charge_id, scopes, amount)
    admission = await take(
        hold, 0, principal, ledger=deps.ledger, holds=deps.holds, loader=deps.loader, lease_ms=LEASE_MS
    )
    if not isinstance(admission, Admitted):
        raise refusal_of(admission, now_s=deps.clock.now())
    x.charge = Charge(
        charge_id=charge_id,
        model=offer.model,
        upstream_model=offer.upstream_model,
        hold_nanos=amount,
        terms=Terms.of(offer),
        poll_s=deps.clock.now() + deps.settings.batches.poll_s,
    )
    try:
        await call_next(x)
    finally:
        if not x.ordered:
            # It was never made.
            deps.holds.abandon(hold)


async def _read_lines(x: Exchange, deps: Deps, file_id: str) -> BatchInput:
    """Read the file of requests where it lives."""
    lines = BatchInput(output_tokens=deps.settings.batches.output_tokens)
    most = deps.settings.batches.file_bytes_max
    size_bytes = 0
    try:
        response = await _get(x, deps, b"/files/" + file_id.encode() + b"/content")
        try:
            if response.head.status != 200:
                raise BadRequest("The batch's file can't be read back from its provider.", param="input_file_id")
            async for chunk in response:
                size_bytes += len(chunk)
                if size_bytes > most:
                    raise BadRequest(f"The batch's file is larger than {most} bytes.", param="input_file_id")
                lines.feed(chunk)
        finally:
            response.close()
    except UpstreamError as error:
        error.detail = f"reading the file of a batch: {error.detail or error.message}"
        raise
    lines.end()
    if not lines.count:
        raise BadRequest("The batch's file holds no requests.", param="input_file_id")
    return lines


async def _describe(x: Exchange, deps: Deps, path: bytes) -> Document | None:
    """What the provider says of an object now; None where it knows of none.

    Raises:
        StillRunning: it does not say.
    """
    response = await _get(x, deps, path)
    try:
        if response.head.status in (404, 410):
            return None
        document = read_document(await response.read(ANSWER_BYTES_MAX)) if response.head.status == 200 else None
        if document is None:
            raise StillRunning("Its provider does not say whether it is done; delete it a little later.")
        return document
    finally:
        response.close()


async def _sum_up(x: Exchange, deps: Deps, file_id: str) -> Usage | None:
    """What the answers in a file report together; None where they report nothing, or can't be read."""
    response = await _get(x, deps, b"/files/" + file_id.encode() + b"/content")
    try:
        return (await read_output(response)).usage() if response.head.status == 200 else None
    except BadRequest:
        return None
    finally:
        response.close()


async def _get(x: Exchange, deps: Deps, path: bytes) -> UpstreamResponse:
    """Ask for something where the request's objects live."""
    assert x.pin is not None
    name, key = x.pin
    provider = deps.providers[name] if x.pinned is None else x.pinned.provider
    assert provider is not None
    return await ask_provider(deps.client, provider, path, key=key, request_id=x.id)


def _offer(x: Exchange, deps: Deps, upstream_model: str) -> Offer:
    """The offer of the model that the file names, as its provider knows it."""
    assert x.pin is not None
    offer = deps.offers.served(x.pin[0], upstream_model)
    if offer is None:
        raise UnknownModel(upstream_model)
    if offer.price is None and not offer.free:
        raise Unpriced
    return offer if x.pinned is None else msgspec.structs.replace(offer, own=x.pinned)
