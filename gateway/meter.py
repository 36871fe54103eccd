"""What a conversation costs: one hold at a time, and what has passed of the answer that it is for.

Rules:
- Money and limits are held for one answer. What the provider reports of it is charged, as a request of its own, and
  then the next hold is due.
- An answer of which no end is heard, or an end without a report, is charged by what passed of it, also where this
  process dies: the hold's renewals say how far it has come.
- Speech that is written down is charged when that is reported, at the price of the model that did so where one is
  known, else at the price of the one that speaks.
- A session that goes over to another model goes on at that one's price, or not at all.
- A key that is revoked, or narrowed, meanwhile ends the conversation with the next hold.
"""

import logging
from typing import Final

import msgspec

from gateway.affordable import take_less
from gateway.deps import Deps
from gateway.errors import OwnKeyGone, UnknownModel, Unpriced
from gateway.exchange import Exchange, Offer
from gateway.kernel.admission import refusal_of, take
from gateway.kernel.holds import Hold
from gateway.kernel.money import Nanos, Price, fee_nanos, hold_nanos
from gateway.kernel.offers import charge_nanos
from gateway.kernel.record import Outcome, UsageRecord
from gateway.kernel.verbs import Admitted
from gateway.wire.realtime import Event
from gateway.wire.usage import Usage, is_believable

log = logging.getLogger(__name__)

_LABEL: Final = "/v1/realtime"


class Meter:
    """Of one conversation. `close` it."""

    def __init__(self, x: Exchange, deps: Deps) -> None:
        assert x.principal is not None
        self._x = x
        self._deps = deps
        self._principal = x.principal
        self._hold: Hold | None = None
        self._begun_s = 0.0
        self._count = 0
        #: Of the answer under way: tokens that passed, those of them that are audio; and what the last one took in.
        self._text_tokens = 0
        self._audio_tokens = 0
        self._input_tokens = 0
        #: The provider is answering.
        self.answering = False
        #: Models as the session has them: its first name, and who writes down.
        self._spoken = ""
        self._moved = False
        self._transcriber = ""
        self.usage = Usage()

    async def hold(self) -> None:
        """Ask for what the next answer may use.

        Raises:
            GatewayError: it is refused, or nobody can tell.
        """
        x, deps, settings = self._x, self._deps, self._deps.settings.realtime
        if self._count:
            await self._renew()
        x.input_tokens, x.output_tokens = settings.input_tokens, settings.output_tokens
        # Once it runs, nobody else will answer.
        amount = max(map(self._worst_case, x.offers if x.offer is None else (x.offer,)), default=0)
        hold = Hold(deps.new_id() if self._count else x.id, deps.holds.scopes(self._principal), amount)
        tokens = settings.input_tokens + settings.output_tokens
        admission = await take(
            hold, tokens, self._principal, ledger=deps.ledger, holds=deps.holds, loader=deps.loader
        )
        if not isinstance(admission, Admitted) and x.offer is None and len(x.offers) > 1:
            hold, admission = await take_less(
                admission, hold, tokens, self._principal, x=x, deps=deps, worst_case=self._worst_case
            )
            amount = hold.amount_nanos
        if not isinstance(admission, Admitted):
            raise refusal_of(admission, now_s=deps.clock.now())
        self._count += 1
        self._hold = hold
        self._begun_s = deps.clock.monotonic()
        deps.telemetry.credit_held[0] += amount
        deps.holds.add(hold, self._progress)

    def _worst_case(self, offer: Offer) -> Nanos:
        settings = self._deps.settings.realtime
        if offer.free or offer.price is None:
            return 0
        worst = hold_nanos(settings.input_tokens, settings.output_tokens, offer.price)
        return worst if offer.own is None else fee_nanos(worst, offer.own.fee_permille)

    async def _renew(self) -> None:
        """Go by what the key may do now."""
        self._principal = await self._deps.keys.renew(self._principal)
        self._check_model()
        own = None if self._x.offer is None else self._x.offer.own
        keychain = self._principal.keychain
        if own is not None and (keychain is None or keychain.find(own.name, own.fingerprint) is None):
            raise OwnKeyGone("Your account's own key that this conversation was opened with is not here any more.")
        if (constraints := self._principal.constraints) is not None:
            constraints.check_request(self._x.scope)

    def _check_model(self) -> None:
        constraints, offer = self._principal.constraints, self._x.offer
        if constraints is None or offer is None:
            return
        asked = "" if self._x.call is None else self._x.call.model
        # A model has the name that it was asked for by, until the session goes over to another.
        if not (constraints.allows_model(offer.model) or (not self._moved and constraints.allows_model(asked))):
            raise UnknownModel(offer.model, withheld="model_not_permitted")
        if not constraints.allows_provider(offer.provider):
            raise UnknownModel(offer.model, withheld="provider_not_permitted")

    def see(self, event: Event) -> bool:
        """Take note of a message; True if an answer was charged, so that the next hold is due.

        Raises:
            Unpriced, UnknownModel: the session has gone over to a model that may not be called.
        """
        if event.tokens:
            if event.audio:
                self._audio_tokens += event.tokens
            else:
                self._text_tokens += event.tokens
        elif event.kind == "started":
            self.answering = True
        elif event.kind == "done":
            self.answering = False
            return self._charge(event.usage)
        elif event.kind == "transcribed" and event.usage is not None:
            self._charge_transcript(event.usage)
        elif event.kind == "session":
            self._follow(event)
        return False

    def close(self) -> None:
        """The conversation is over: charge what was heard of an answer without an end, or let go of the hold."""
        hold, self._hold = self._hold, None
        if hold is None:
            return
        partial = self._partial()
        if partial is not None:
            self._settle(hold, partial, "provider_error" if self._x.error is not None else "caller_gone")
        elif hold.request_id == self._x.id:
            self._deps.telemetry.credit_voided[0] += hold.amount_nanos
            self._deps.holds.void(hold, self._record(hold, Usage(), 0, None, "ok"))
        else:
            self._deps.telemetry.credit_voided[0] += hold.amount_nanos
            self._deps.holds.abandon(hold)

    def _charge(self, usage: Usage | None) -> bool:
        hold = self._hold
        if usage is None and (partial := self._partial()) is not None:
            # One that was cancelled, and heard all the same.
            usage = msgspec.structs.replace(partial, source="estimated")
        if usage is None or hold is None:
            return False
        self._hold = None
        if not is_believable(usage):
            self._doubt(usage)
            usage = msgspec.structs.replace(self._partial() or Usage(), source="estimated")
        self._settle(hold, usage, "ok")
        self._input_tokens = usage.input_tokens
        self._text_tokens = self._audio_tokens = 0
        return True

    def _settle(self, hold: Hold, usage: Usage, outcome: Outcome) -> None:
        offer = self._x.offer
        price = None if offer is None or offer.free else offer.price
        cost = 0 if offer is None else charge_nanos(usage, offer)
        self._count_cost(usage, cost)
        record = self._record(hold, usage, cost, price, outcome)
        self._deps.holds.settle(hold, record, tokens=usage.input_tokens + usage.output_tokens)

    def _charge_transcript(self, usage: Usage) -> None:
        """What was written down, without a hold: it was said already."""
        offer = self._x.offer
        assert offer is not None
        if not is_believable(usage):
            # What was heard is in the next answer's input; how long it was is not known here.
            self._doubt(usage)
            return
        other = self._deps.offers.served(offer.provider, self._transcriber) if self._transcriber else None
        if other is not None and (other.free or other.price is not None):
            offer = msgspec.structs.replace(other, own=offer.own)
        price = None if offer.free else offer.price
        cost = charge_nanos(usage, offer)
        hold = Hold(self._deps.new_id(), self._deps.holds.scopes(self._principal), 0)
        self._count_cost(usage, cost)
        record = self._record(hold, usage, cost, price, "ok", offer=offer)
        self._deps.holds.settle(hold, record, tokens=usage.input_tokens + usage.output_tokens)

    def _doubt(self, usage: Usage) -> None:
        """Tell of a report that can't be true: what passed is charged instead."""
        provider = "" if self._x.offer is None else self._x.offer.provider
        self._deps.telemetry.count_disbelief(provider)
        log.warning(
            "%s reports the impossible of conversation %s, it is not charged: %s", provider, self._x.id, usage
        )

    def _follow(self, event: Event) -> None:
        """A session says which model it has."""
        self._transcriber = event.transcriber
        if not event.model or event.model == self._spoken:
            return
        x = self._x
        if self._spoken and x.offer is not None:
            offer = self._deps.offers.served(x.offer.provider, event.model)
            if offer is None or (offer.price is None and not offer.free):
                raise Unpriced
            x.offer = msgspec.structs.replace(offer, own=x.offer.own)
            self._moved = True
            self._check_model()
        self._spoken = event.model

    def _partial(self) -> Usage | None:
        """An estimate of the answer under way, as far as it has come."""
        if not (self._text_tokens or self._audio_tokens):
            return None
        return Usage(
            input_tokens=self._input_tokens,
            output_tokens=self._text_tokens + self._audio_tokens,
            output_audio_tokens=self._audio_tokens,
            source="partial",
        )

    def _progress(self) -> tuple[Nanos, int, UsageRecord] | None:
        """What would be charged if this process were to end now."""
        usage, hold, offer = self._partial(), self._hold, self._x.offer
        if usage is None or hold is None:
            return None
        price = None if offer is None or offer.free else offer.price
        cost = 0 if offer is None else charge_nanos(usage, offer)
        return cost, usage.input_tokens + usage.output_tokens, self._record(hold, usage, cost, price, "orphaned")

    def _count_cost(self, usage: Usage, cost: Nanos) -> None:
        x = self._x
        self._deps.telemetry.credit_settled[0] += cost
        x.cost_nanos += cost
        self.usage = Usage(
            input_tokens=self.usage.input_tokens + usage.input_tokens,
            output_tokens=self.usage.output_tokens + usage.output_tokens,
            source=usage.source,
        )
        x.usage = self.usage

    def _record(
        self,
        hold: Hold,
        usage: Usage,
        cost: Nanos,
        price: Price | None,
        outcome: Outcome,
        *,
        offer: Offer | None = None,
    ) -> UsageRecord:
        x, clock = self._x, self._deps.clock
        offer = offer or x.offer
        age_ms = int((clock.monotonic() - self._begun_s) * 1000)
        record = UsageRecord(
            request_id=hold.request_id,
            account_id=self._principal.account_id,
            key_id=self._principal.key_id,
            cost_nanos=cost,
            hold_nanos=hold.amount_nanos,
            model="" if offer is None else offer.model,
            provider="" if offer is None else offer.provider,
            upstream_model="" if offer is None else offer.upstream_model,
            dialect="openai.realtime",
            route=_LABEL,
            status=x.status,
            outcome=outcome,
            error_type="" if x.error is None else x.error.error_type,
            stream=True,
            started_ms=int(clock.now() * 1000) - age_ms,
            latency_ms=age_ms,
            tags={**x.tags, "session": x.id},
            own_key_id=None if offer is None or offer.own is None else offer.own.id,
            fee_permille=None if offer is None or offer.own is None else offer.own.fee_permille,
        )
        return record.with_usage(usage, price or Price(), cost_nanos=cost)
