"""Charges for work that a provider does after the request for it has ended: batches, and responses in the background.

Rules:
- Money is held when the work is ordered, under the request id that the charge will have. That id is written down with
  the object, so whoever sees the work done, and however often, charges once: the ledger and the books know a request
  by its id.
- Of several who see it at once, the one who locks the object's row charges. A crash between the charge and the note
  that it was made repeats the charge, to no effect.
- The hold's lease is long, and extended whenever the provider was asked. A hold that is gone is no charge that is
  lost: what was done is charged all the same.
- Where nothing is reported in the end, what the caller got already is charged: who reads an answer to its last word
  and then cancels it has had it all the same.
- The price is that of the order, whatever is asked for the model by the time that it is done.
- A batch is priced as a batch: at its own price where one is known, else at the plain one times a setting. Its tokens
  come as one sum, so prices that rise with the length of a request are not applied to them.
"""

import logging
from collections.abc import AsyncIterable, Callable
from typing import Final

import msgspec

from gateway.exchange import Offer
from gateway.infra.clock import Clock
from gateway.kernel.money import MAX_NANOS, Nanos, Price, cost_nanos, fee_nanos
from gateway.kernel.objects import Deferred, Due, Terms
from gateway.kernel.offers import OfferTable
from gateway.kernel.own_keys import is_own
from gateway.kernel.record import UsageRecord, encode_record
from gateway.kernel.replay import SecondCopy
from gateway.kernel.verbs import Ended, Renewal, Scopes, Verbs
from gateway.wire.objects import CANCELLED, BatchOutput, Document
from gateway.wire.usage import Usage, is_believable

log = logging.getLogger(__name__)

#: How long a hold for deferred work lives without being heard of: longer than any poller is away.
LEASE_MS: Final = 26 * 3600 * 1000
#: The service tier that batches are priced as.
BATCH: Final = "batch"
#: Streams of what was cancelled end, and it is written down how far they came, before it is charged.
CANCELLED_S: Final = 3.0
#: As many of the largest requests are believed to be in a batch.
_BATCH_REQUESTS: Final = 100

_ROUTES: Final = {"batch": "/v1/batches", "response": "/v1/responses"}
_DIALECTS: Final = {"batch": "openai.other", "response": "openai.responses"}


class Charging:
    """Ends what is due."""

    def __init__(
        self,
        deferred: Deferred,
        ledger: Verbs,
        *,
        offers: Callable[[], OfferTable],
        clock: Clock,
        batch_permille: int,
        second_copy: SecondCopy,
        own_fee_permille: int = 0,
    ) -> None:
        """`offers` gives the table that holds at the moment; `batch_permille` prices batches of unknown price, and
        `own_fee_permille` is what is charged of a price where accounts' own keys did the work.
        """
        self.deferred = deferred
        self._second_copy = second_copy
        self._ledger = ledger
        self._offers = offers
        self._clock = clock
        self._batch_permille = batch_permille
        self._own_fee_permille = own_fee_permille

    async def end(self, object_id: str, usage: Usage | None) -> Due | None:
        """Charge for what was used, or end the hold where nothing was; None if somebody has done so already.

        Raises:
            StoreUnavailable: it may be done or not; it is still due.
        """

        async def settle(due: Due) -> str:
            return await self._settle(due, usage)

        return await self.deferred.end(object_id, settle)

    async def end_reported(self, object_id: str, document: Document) -> bool:
        """The same by what its provider says of an object that has ended; False where that is left to the poller,
        because the report lacks the numbers, or because callers may still be reading: of what was cancelled there is
        no other measure than what they got.

        Raises:
            StoreUnavailable: it may be done or not; it is still due.
        """
        usage = document.counted()
        if usage is None and not (document.object == "response" and document.status == "failed"):
            if document.object == "response" and document.status in CANCELLED:
                await self.deferred.hasten(object_id, soon_s=CANCELLED_S)
            return False
        await self.end(object_id, usage)
        return True

    async def give_up(self, object_id: str) -> None:
        """Nobody will ever know what was used: the object is gone."""

        async def void(due: Due) -> str:
            if due.delivered_output_tokens:
                return await self._settle(due, None)
            await self._ledger.void(due.charge_id, self._scopes(due), record=b"")
            return "lost"

        due = await self.deferred.end(object_id, void)
        if due is not None:
            log.error("the cost of %s %s at %s will never be known", due.kind, due.id, due.provider)

    async def extend(self, due: Due) -> None:
        """Keep the hold for another while."""
        scopes = self._scopes(due)
        await self._ledger.renew(scopes.partition, [Renewal(due.charge_id)], lease_ms=LEASE_MS)

    def estimate(self, offer: Offer, *, input_tokens: int, output_tokens: int) -> Nanos:
        """What a batch of these sizes costs at most."""
        usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        cost = min(self._cost(usage, Terms.of(offer), batch=True), MAX_NANOS)
        return cost if offer.own is None else fee_nanos(cost, offer.own.fee_permille)

    async def _settle(self, due: Due, usage: Usage | None) -> str:
        scopes = self._scopes(due)
        if usage is None and due.delivered_output_tokens:
            usage = Usage(
                input_tokens=due.delivered_input_tokens, output_tokens=due.delivered_output_tokens, source="partial"
            )
        terms = self._terms(due)
        cost = 0
        if usage is not None:
            if terms is None:
                # Its price is gone from the configuration: what was held is what was agreed to.
                log.error("%s %s has no price any more: charging what was held", due.kind, due.id)
                cost = due.hold_nanos
            elif not is_believable(usage, requests=_BATCH_REQUESTS if due.kind == "batch" else 1):
                log.warning(
                    "%s reports the impossible of %s %s, what was held is charged: %s",
                    due.provider,
                    due.kind,
                    due.id,
                    usage,
                )
                cost, usage = due.hold_nanos, Usage(source="estimated")
            else:
                cost = min(self._cost(usage, terms, batch=due.kind == "batch"), MAX_NANOS)
                if is_own(due.fingerprint):
                    cost = fee_nanos(cost, self._own_fee_permille)
        record = self._record(due, usage, cost, None if terms is None else terms.price)
        if usage is None:
            await self._ledger.void(due.charge_id, scopes, record=encode_record(record))
            return "void"
        tokens = usage.input_tokens + usage.output_tokens
        packed = encode_record(record)
        sent = self._ledger.settle(due.charge_id, scopes, cost_nanos=cost, tokens=tokens, record=packed)
        # PostgreSQL will say that it is charged, and nobody asks again, before the books have it.
        self._second_copy.keep(due.charge_id, scopes, cost_nanos=cost, tokens=tokens, record=packed)
        answer = await sent
        if isinstance(answer, Ended):
            log.warning("request %s for %s had ended already, by %s", due.charge_id, due.id, answer.verb)
        return "settled"

    def _terms(self, due: Due) -> Terms | None:
        """What it was ordered at; None where nobody knows any more."""
        if due.terms is not None:
            return msgspec.json.decode(due.terms, type=Terms)
        offer = self._offers().served(due.provider, due.upstream_model)
        return None if offer is None else Terms.of(offer)

    def _cost(self, usage: Usage, terms: Terms, *, batch: bool) -> Nanos:
        if terms.price is None:
            return 0
        if not batch:
            return cost_nanos(usage, terms.price)
        price = _flat(terms.price)
        if BATCH not in price.service_prices and BATCH not in price.service_permille:
            price = msgspec.structs.replace(
                price, service_permille={**price.service_permille, BATCH: self._batch_permille}
            )
        return cost_nanos(msgspec.structs.replace(usage, service_tier=BATCH), price)

    def _scopes(self, due: Due) -> Scopes:
        # Limits are in the hold.
        return self._ledger.scopes(account_id=due.account_id, key_id=due.key_id, limits=b"")

    def _record(self, due: Due, usage: Usage | None, cost: Nanos, price: Price | None) -> UsageRecord:
        now_ms = int(self._clock.now() * 1000)
        started_ms = int(due.created_s * 1000)
        record = UsageRecord(
            request_id=due.charge_id,
            account_id=due.account_id,
            key_id=due.key_id,
            cost_nanos=cost,
            hold_nanos=due.hold_nanos,
            model=due.model,
            provider=due.provider,
            upstream_model=due.upstream_model,
            dialect=_DIALECTS.get(due.kind, "openai.other"),
            route=_ROUTES.get(due.kind, "/v1/*"),
            status=200,
            started_ms=started_ms,
            latency_ms=max(0, now_ms - started_ms),
            tags={"object": due.id},
            own_key_id=due.own_key_id,
            fee_permille=self._own_fee_permille if is_own(due.fingerprint) else None,
        )
        if usage is None:
            return record
        return record.with_usage(usage, price or Price(), cost_nanos=cost)


async def read_output(chunks: AsyncIterable[bytes]) -> BatchOutput:
    """What the answers of a batch report, line by line: for providers that do not sum up themselves.

    Raises:
        BadRequest: it is no such file.
    """
    lines = BatchOutput()
    async for chunk in chunks:
        lines.feed(chunk)
    lines.end()
    return lines


def _flat(price: Price) -> Price:
    """The same without tiers by length."""
    services = {name: msgspec.structs.replace(each, tiers=()) for name, each in price.service_prices.items()}
    return msgspec.structs.replace(price, tiers=(), service_prices=services)
