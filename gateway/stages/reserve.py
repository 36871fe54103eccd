"""Limits and money: all that a request may use is taken in one round trip before it is sent, and what it did use is
settled in one after.

Rules:
- Admission is all or nothing, and the last thing that refuses: after the call the gateway only accounts.
- The hold is for the dearest offer that may serve. Where money has no room for it, those that fit will do.
- What was delivered is charged, by the provider's report, or by an estimate where none came. Where nothing was
  delivered, or the provider refused, nothing is charged.
- A report beyond anything possible is not believed, and counts as none. No cost is above what the ledger can count.
- An answer that arrived whole is settled before its last bytes are written (`x.on_whole`), any other one when the
  request ends, however it ends. Both happen at most once.
"""

import logging
import math
from functools import partial
from typing import Final

import msgspec

from gateway.affordable import take_less
from gateway.deps import Deps, Handler
from gateway.exchange import Exchange, Headers, Offer
from gateway.kernel.admission import refusal_of, take
from gateway.kernel.charging import LEASE_MS
from gateway.kernel.holds import Hold
from gateway.kernel.limits import BUCKET_NAMES
from gateway.kernel.money import MAX_NANOS, Nanos, charged_units, cost_nanos, fee_nanos, hold_nanos
from gateway.kernel.offers import charge_nanos, served_as
from gateway.kernel.orphans import DELIVERED
from gateway.kernel.record import Attempt, Outcome, UsageRecord
from gateway.kernel.verbs import Admitted, Busy, Ended, Limited, NoCredit, NotLoaded, OverBudget, Rates, UsedUp
from gateway.wire.ratelimit import format_duration
from gateway.wire.units import complete, estimate, units_of
from gateway.wire.usage import Usage, is_believable

log = logging.getLogger(__name__)

#: Of a stream of responses: each token is an event of about this size.
_EVENT_BYTES_PER_TOKEN: Final = 256


async def reserve(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Take limits, a hold and a lease; give them back, settled.

    Raises:
        RateLimited, InsufficientCredit: it does not fit.
        StoreUnavailable: nobody can tell.
    """
    assert x.principal is not None
    principal = x.principal
    scopes = deps.holds.scopes(principal)
    amount = 0
    for offer in x.offers:
        amount = max(amount, _worst_case(x, offer))
    # Callers may name any number; what is beyond this no limit admits, and Redis can't count it.
    tokens = min(x.input_tokens + x.output_tokens, MAX_NANOS)
    hold = Hold(x.id, scopes, amount)
    x.hold_nanos = amount
    started = deps.clock.monotonic()
    admission = await take(hold, tokens, principal, ledger=deps.ledger, holds=deps.holds, loader=deps.loader)
    deps.admit_seconds.observe(deps.clock.monotonic() - started)
    if not isinstance(admission, Admitted) and len(x.offers) > 1:
        hold, admission = await take_less(
            admission, hold, tokens, principal, x=x, deps=deps, worst_case=partial(_worst_case, x)
        )
        x.hold_nanos = amount = hold.amount_nanos
    if not isinstance(admission, Admitted):
        deps.telemetry.count_refusal(*_refuser(admission))
        if not isinstance(admission, NotLoaded | Ended):
            x.reply_headers += rate_headers(admission.rates)
        raise refusal_of(admission, now_s=deps.clock.now())
    x.reply_headers += rate_headers(admission.rates)
    deps.telemetry.credit_held[0] += amount
    deps.telemetry.allowed[0] += 1

    settlement = _Settlement(x, deps, hold)
    x.on_whole = settlement.settle_whole
    deps.holds.add(settlement.hold, settlement.progress)
    try:
        await call_next(x)
    finally:
        settlement.settle()
        # A request must not wait for the collector of cycles.
        x.on_whole = None


def _refuser(refused: Limited | Busy | OverBudget | UsedUp | NoCredit | NotLoaded | Ended) -> tuple[str, str]:
    """Whose limit it was, and which, in words from closed lists."""
    match refused:
        case Limited():
            return refused.scope, BUCKET_NAMES[refused.bucket].partition(" ")[0]
        case Busy():
            return refused.scope, "concurrency"
        case OverBudget():
            return refused.scope, "budget"
        case UsedUp():
            return refused.scope, "lifetime"
        case NoCredit():
            return "account", "credit"
        case _:
            return "account", "unknown"


class _Settlement:
    """The end of one hold."""

    __slots__ = ("_cost_nanos", "_deps", "_disbelieved", "_x", "hold")

    def __init__(self, x: Exchange, deps: Deps, hold: Hold) -> None:
        self.hold = hold
        self._x = x
        self._deps = deps
        self._cost_nanos: Nanos | None = None
        #: What the provider reported, where nobody could believe it.
        self._disbelieved: Usage | None = None

    def settle(self) -> Nanos:
        """Charge for what was delivered so far, or void the hold if nothing was; once. The cost."""
        if self._cost_nanos is None:
            self._cost_nanos = 0 if self._deferred() else self._close("")
            self._unmark()
        return self._cost_nanos

    def settle_whole(self) -> Nanos:
        """The same from within the attempt that has brought the whole answer, and is not in `x.attempts` yet."""
        if self._cost_nanos is None:
            self._cost_nanos = 0 if self._deferred() else self._close("ok")
            self._unmark()
        return self._cost_nanos

    def progress(self) -> tuple[Nanos, int, UsageRecord] | None:
        """What would be charged if nothing more were heard of this request; None while nothing was delivered."""
        if self._reads_on():
            self._note_delivered()
        if self._goes_on():
            # Charged when the provider is done with it, whatever becomes of this process.
            self._note_delivered()
            return None
        usage = self._used()
        if usage is None:
            return None
        cost = self._cost(usage)
        record = self._record(usage, cost, "orphaned", "orphaned")
        x, marks = self._x, self._deps.marks
        if x.streaming and marks is not None:
            # What goes out until the next time is charged by what has gone out by now.
            record = msgspec.structs.replace(record, tags={**record.tags, DELIVERED: str(x.bytes_out)})
            if x.mark is None:
                x.mark = marks.take(x.id, self.hold.scopes.partition, x.bytes_out)
        return cost, usage.input_tokens + usage.output_tokens, record

    def _goes_on(self) -> bool:
        """Whether the provider works on without this request: an answer in the background, whose id is known."""
        x = self._x
        if x.owned is None or x.operation is not None or x.call is None or not x.call.peek.background:
            return False
        return x.tap is None or x.tap.usage() is None

    def _unmark(self) -> None:
        """The end is told by the hold's."""
        x, marks = self._x, self._deps.marks
        if x.mark is not None and marks is not None:
            marks.give_back(x.mark)
            x.mark = None

    def _reads_on(self) -> bool:
        """Whether this is another stream of an answer in the background that is not charged yet."""
        x = self._x
        return x.operation is not None and x.streaming and x.owned is not None and x.owned.pending

    def _deferred(self) -> bool:
        """Leave the hold as it is, where the charge comes later."""
        if self._reads_on():
            self._note_delivered()
        if not self._x.deferred and not self._goes_on():
            return False
        self._note_delivered()
        self._deps.holds.leave(self.hold, lease_ms=LEASE_MS)
        return True

    def _note_delivered(self) -> None:
        """What of it has gone out: the least that is to be charged, whatever becomes of the rest."""
        x = self._x
        if x.owned is None or x.tap is None or not x.committed:
            return
        if x.operation is None:
            delivered = x.tap.delivered()
            input_tokens, output_tokens = delivered.input_tokens or x.input_tokens, delivered.output_tokens
        else:
            # Nobody looks into what is read again.
            input_tokens, output_tokens = 0, x.bytes_out // _EVENT_BYTES_PER_TOKEN
        if output_tokens:
            self._deps.objects.note_delivered(x.owned.id, input_tokens=input_tokens, output_tokens=output_tokens)

    def _close(self, attempt: str) -> Nanos:
        """`attempt` is the outcome of the one that still runs, if one does."""
        telemetry, holds = self._deps.telemetry, self._deps.holds
        usage = self._used()
        if usage is None:
            telemetry.credit_voided[0] += self.hold.amount_nanos
            holds.void(self.hold, self._record(Usage(), 0, _outcome(self._x), attempt))
            return 0
        if self._disbelieved is not None:
            self._tell(self._disbelieved)
        cost = self._cost(usage)
        telemetry.credit_settled[0] += cost
        self._x.usage = usage
        self._x.cost_nanos = cost
        record = self._record(usage, cost, _outcome(self._x), attempt)
        holds.settle(self.hold, record, tokens=usage.input_tokens + usage.output_tokens)
        return cost

    def _tell(self, disbelieved: Usage) -> None:
        x = self._x
        provider = "" if x.offer is None else x.offer.provider
        self._deps.telemetry.count_disbelief(provider)
        log.warning(
            "%s reports the impossible of request %s, an estimate is charged: %s", provider, x.id, disbelieved
        )

    def _used(self) -> Usage | None:
        """What was used, by report or by estimate; None if nothing was delivered."""
        x = self._x
        if x.fee_nanos is not None:
            return Usage()
        if x.tap is None:
            return None
        if (reported := x.tap.usage()) is not None:
            if is_believable(reported):
                return reported if x.units is None else complete(reported, self._expected(), needs=self._charged())
            self._disbelieved = reported
        if x.first_byte_s is None or not (x.committed or x.tap.complete):
            return None
        delivered = x.tap.delivered()
        if x.tap.errored and delivered.output_tokens == 0:
            return None
        if x.units is not None:
            delivered = estimate(x.target.dialect, self._expected(), delivered)
        elif delivered.input_tokens == 0:
            delivered = msgspec.structs.replace(delivered, input_tokens=x.input_tokens)
        if x.call is not None and x.offer is not None and delivered.service_tier is None:
            # Nobody said what it was served as: what was asked for.
            tier = served_as(x.call.peek.service_tier, x.offer)
            if tier is not None:
                delivered = msgspec.structs.replace(delivered, service_tier=tier)
        return delivered

    def _expected(self) -> Usage:
        """What a whole answer is worth by the request alone, of which more is known once a form has come by."""
        x = self._x
        assert x.units is not None
        assert x.call is not None
        if x.form is None:
            return x.units.usage
        return units_of(x.call.dialect, b"", x.call.peek, form=x.form).usage

    def _charged(self) -> frozenset[str]:
        """The units that the price of the offer is made of."""
        offer = self._x.offer
        return frozenset() if offer is None or offer.price is None else charged_units(offer.price)

    def _cost(self, usage: Usage) -> Nanos:
        offer = self._x.offer
        if self._x.fee_nanos is not None:
            return self._x.fee_nanos
        if offer is None or offer.price is None or (offer.free and usage.provider_cost_nanos is None):
            return 0
        if offer.own is not None:
            return charge_nanos(usage, offer)
        # As there, without another frame.
        return min(cost_nanos(usage, offer.price), MAX_NANOS)

    def _record(self, usage: Usage, cost: Nanos, outcome: Outcome, attempt: str) -> UsageRecord:
        x, clock = self._x, self._deps.clock
        assert x.principal is not None
        offer = x.offer
        now_s = clock.monotonic()
        age_ms = (now_s - x.started_s) * 1000
        price = offer.price if offer is not None else None
        attempts = [Attempt(provider, result) for provider, result in x.attempts]
        if attempt and offer is not None and x.fee_nanos is None:
            attempts.append(Attempt(offer.provider, attempt))
        record = UsageRecord(
            request_id=x.id,
            account_id=x.principal.account_id,
            key_id=x.principal.key_id,
            cost_nanos=cost,
            hold_nanos=self.hold.amount_nanos,
            model="" if offer is None else offer.model,
            provider="" if offer is None else offer.provider,
            upstream_model="" if offer is None else offer.upstream_model,
            dialect=x.target.dialect,
            route=x.target.label,
            status=x.status,
            outcome=outcome,
            error_type="" if x.error is None else x.error.error_type,
            stream=x.streaming,
            started_ms=int(clock.now() * 1000 - age_ms),
            latency_ms=int(age_ms),
            first_token_ms=None if x.first_byte_s is None else int((x.first_byte_s - x.started_s) * 1000),
            usage_source=usage.source,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            input_cached_tokens=usage.input_cached_tokens,
            input_cache_write_tokens=usage.input_cache_write_tokens,
            input_cache_write_1h_tokens=usage.input_cache_write_1h_tokens,
            input_audio_tokens=usage.input_audio_tokens,
            input_image_tokens=usage.input_image_tokens,
            output_reasoning_tokens=usage.output_reasoning_tokens,
            output_audio_tokens=usage.output_audio_tokens,
            output_image_tokens=usage.output_image_tokens,
            images=usage.images,
            audio_ms=round(usage.seconds * 1000),
            characters=usage.characters,
            searches=usage.searches,
            provider_cost_nanos=usage.provider_cost_nanos,
            service_tier=usage.service_tier,
            input_mtok_nanos=0 if price is None else price.input_mtok_nanos,
            output_mtok_nanos=0 if price is None else price.output_mtok_nanos,
            markup_permille=1000 if price is None else price.markup_permille,
            attempts=tuple(attempts),
            tags={**x.tags, "image": usage.image_kind} if usage.image_kind else x.tags,
        )
        if offer is not None and offer.own is not None:
            return msgspec.structs.replace(record, own_key_id=offer.own.id, fee_permille=offer.own.fee_permille)
        return record


def _worst_case(x: Exchange, offer: Offer) -> Nanos:
    if offer.free or offer.price is None:
        return 0
    if offer.own is not None:
        return fee_nanos(_worst_case(x, msgspec.structs.replace(offer, own=None)), offer.own.fee_permille)
    units = x.units
    tier = None if x.call is None else served_as(x.call.peek.service_tier, offer)
    if units is None:
        return hold_nanos(x.input_tokens, x.output_tokens, offer.price, service_tier=tier)
    return hold_nanos(
        units.input_tokens,
        units.output_tokens,
        offer.price,
        images=units.images,
        image_kind=units.image_kind,
        seconds=math.ceil(units.seconds),
        characters=units.characters,
        searches=units.searches,
        service_tier=tier,
    )


def _outcome(x: Exchange) -> Outcome:
    if x.downstream is not None and x.downstream.is_gone:
        return "caller_gone"
    if x.tap is not None and x.tap.complete:
        return "ok"
    if x.tap is None and x.error is None and 200 <= x.status < 400:
        # Of objects and lists: nothing in them is paid for.
        return "ok"
    return "provider_error" if x.status == 0 or x.status >= 500 or x.tap is not None else "caller_error"


def rate_headers(rates: Rates) -> Headers:
    """The limits in OpenAI's headers: of the tightest request bucket and of the tightest token bucket."""
    headers: Headers = []
    if rates.requests_limit >= 0:
        headers += (
            (b"x-ratelimit-limit-requests", b"%d" % rates.requests_limit),
            (b"x-ratelimit-remaining-requests", b"%d" % rates.requests_remaining),
            (b"x-ratelimit-reset-requests", format_duration(rates.requests_reset_ms / 1000)),
        )
    if rates.tokens_limit >= 0:
        headers += (
            (b"x-ratelimit-limit-tokens", b"%d" % rates.tokens_limit),
            (b"x-ratelimit-remaining-tokens", b"%d" % rates.tokens_remaining),
            (b"x-ratelimit-reset-tokens", format_duration(rates.tokens_reset_ms / 1000)),
        )
    return headers
