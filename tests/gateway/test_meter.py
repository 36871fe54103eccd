"""One hold after the other: what a conversation is charged for, and what it is let go for."""

import itertools
from typing import Any

import msgspec
import pytest

from gateway import __version__
from gateway.errors import InsufficientCredit, Unauthenticated, UnknownModel, Unpriced, UpstreamDisconnected
from gateway.exchange import Offer, Principal
from gateway.infra.metrics import Registry
from gateway.kernel.constraints import Constraints, Names
from gateway.kernel.holds import Holds
from gateway.kernel.local_journal import LocalJournal
from gateway.kernel.money import Price
from gateway.kernel.record import UsageRecord, decode_record
from gateway.kernel.twin import Twin
from gateway.kernel.verbs import Snapshot
from gateway.meter import Meter
from gateway.settings import Realtime, Settings
from gateway.telemetry import Telemetry
from gateway.wire.realtime import Event
from gateway.wire.usage import Usage
from tests.ledgers import run
from tests.parts import HandClock, deps_of, exchange_of, offer_of

SPEAKER = offer_of("speaker", price=Price(input_mtok_nanos=10**9, output_mtok_nanos=2 * 10**9))
DEARER = offer_of("dearer", price=Price(input_mtok_nanos=3 * 10**9, output_mtok_nanos=6 * 10**9))
WRITER = offer_of("writer", price=Price(input_mtok_nanos=5 * 10**9, output_mtok_nanos=5 * 10**9))
#: Of the dearest that may come to serve it.
HELD_NANOS = 100 * 1000 + 200 * 2000
HELD_FOR_ANY_NANOS = 100 * 3000 + 200 * 6000
USAGE = Usage(input_tokens=30, output_tokens=12)
USAGE_NANOS = 30 * 1000 + 12 * 2000
DONE = Event(kind="done", usage=USAGE)


class _Keys:
    """What keys may do now."""

    def __init__(self) -> None:
        self.now: Principal | None = None

    async def renew(self, principal: Principal) -> Principal:
        if self.now is None:
            raise Unauthenticated
        return self.now


class _Offers:
    def __init__(self, *offers: Offer) -> None:
        self._offers = {offer.upstream_model: offer for offer in offers}

    def served(self, provider: str, upstream_model: str) -> Offer | None:
        offer = self._offers.get(upstream_model)
        return offer if offer is not None and offer.provider == provider else None


class Conversation:
    """A meter over the ledger in memory, and what it wrote down."""

    def __init__(self, directory: Any, *, balance_nanos: int = 10**9, offers: tuple[Offer, ...]) -> None:
        self.clock = HandClock()
        self.written: list[UsageRecord] = []
        self.ledger = Twin(
            now_us=lambda: int(self.clock.now() * 1e6),
            keep=lambda _, record, __: self.written.append(decode_record(record)),
        )
        run(self.ledger.load(7, Snapshot(balance_nanos=balance_nanos, seq=1, cursor="0-0")))
        telemetry = Telemetry(Registry(incarnation="test"), version=__version__)
        self.journal = LocalJournal(directory, bytes_max=1024 * 1024)
        self.holds = Holds(
            self.ledger, clock=self.clock, settle_seconds=telemetry.time_redis("settle"), journal=self.journal
        )
        self.keys = _Keys()
        numbers = itertools.count(2)
        self.x = x = exchange_of(path=b"/realtime", model="speaker")
        x.offers, x.offer, x.status = offers, SPEAKER, 101
        assert x.principal is not None
        self.keys.now = x.principal
        self.telemetry = telemetry
        self.meter = Meter(
            x,
            deps_of(
                settings=Settings(realtime=Realtime(input_tokens=100, output_tokens=200)),
                clock=self.clock,
                keys=self.keys,
                offers=_Offers(SPEAKER, DEARER, WRITER, offer_of("unpriced")),
                ledger=self.ledger,
                holds=self.holds,
                telemetry=telemetry,
                new_id=lambda: f"0199a7c0-0000-7000-8000-{next(numbers):012d}",
            ),
        )

    @property
    def balance(self) -> tuple[int, int]:
        """What there is, and what of it is held."""
        found = run(self.ledger.peek_balance(7))
        return found.balance_nanos, found.held_nanos

    def narrow(self, **members: Any) -> None:
        assert self.x.principal is not None
        self.keys.now = msgspec.structs.replace(self.x.principal, constraints=Constraints(**members))


@pytest.fixture
def open_conversation(tmp_path):
    journals = []

    def build(**options: Any) -> Conversation:
        conversation = Conversation(tmp_path, **({"offers": (SPEAKER, DEARER)} | options))
        journals.append(conversation.journal)
        return conversation

    yield build
    for journal in journals:
        journal.close()


async def test_each_answer_is_held_for_and_charged_by_itself(open_conversation) -> None:
    talk = open_conversation()

    await talk.meter.hold()
    held = talk.balance
    talk.meter.see(Event(kind="started"))
    answering = talk.meter.answering
    due = talk.meter.see(DONE)
    after = talk.balance
    await talk.meter.hold()
    talk.clock.now_s += 2
    talk.meter.see(DONE)
    talk.meter.close()

    assert held == (10**9, HELD_NANOS)
    assert answering
    assert due
    assert not talk.meter.answering
    assert after == (10**9 - USAGE_NANOS, 0)
    assert talk.balance == (10**9 - 2 * USAGE_NANOS, 0)
    first, second = talk.written
    assert first.request_id == talk.x.id
    assert second.request_id != talk.x.id
    assert {record.tags["session"] for record in talk.written} == {talk.x.id}
    assert [record.cost_nanos for record in talk.written] == [USAGE_NANOS] * 2
    assert [record.latency_ms for record in talk.written] == [0, 2000]
    assert (first.model, first.dialect, first.outcome, first.status) == ("speaker", "openai.realtime", "ok", 101)
    assert talk.x.cost_nanos == 2 * USAGE_NANOS
    assert (talk.meter.usage.input_tokens, talk.meter.usage.output_tokens) == (60, 24)
    assert talk.telemetry.credit_held[0] == 2 * HELD_NANOS


async def test_a_report_of_the_impossible_is_not_believed(open_conversation) -> None:
    talk = open_conversation()

    await talk.meter.hold()
    talk.meter.see(Event(kind="delta", tokens=7))
    talk.meter.see(Event(kind="done", usage=Usage(input_tokens=10**12, output_tokens=1)))
    talk.meter.see(Event(kind="transcribed", usage=Usage(input_tokens=10**12)))
    talk.meter.close()

    (record,) = talk.written
    assert (record.output_tokens, record.cost_nanos, record.usage_source) == (7, 7 * 2000, "estimated")
    assert talk.balance == (10**9 - record.cost_nanos, 0)


async def test_an_answer_that_was_heard_and_reports_nothing_is_charged_for_what_was_heard(open_conversation) -> None:
    """As of one that is cancelled before its last word."""
    talk = open_conversation()
    await talk.meter.hold()
    talk.meter.see(DONE)
    await talk.meter.hold()

    talk.meter.see(Event(tokens=50))
    due = talk.meter.see(Event(kind="done"))
    talk.meter.close()

    cost = 30 * 1000 + 50 * 2000
    assert due
    assert [record.cost_nanos for record in talk.written] == [USAGE_NANOS, cost]
    assert (talk.written[1].outcome, talk.written[1].usage_source) == ("ok", "estimated")
    assert talk.balance == (10**9 - USAGE_NANOS - cost, 0)


async def test_an_answer_of_nothing_leaves_the_hold_to_the_next(open_conversation) -> None:
    talk = open_conversation()
    await talk.meter.hold()

    assert talk.meter.see(Event(kind="done")) is False
    assert talk.balance == (10**9, HELD_NANOS)
    talk.meter.close()

    assert talk.balance == (10**9, 0)
    [record] = talk.written
    assert (record.cost_nanos, record.outcome) == (0, "ok")


@pytest.mark.parametrize(("error", "outcome"), [(None, "caller_gone"), (UpstreamDisconnected(), "provider_error")])
async def test_what_was_heard_of_an_answer_without_an_end_is_charged(open_conversation, error, outcome) -> None:
    talk = open_conversation()
    await talk.meter.hold()
    talk.meter.see(DONE)
    await talk.meter.hold()
    talk.meter.see(Event(tokens=40))
    talk.meter.see(Event(tokens=10, audio=True))
    talk.x.error = error

    talk.meter.close()
    talk.meter.close()

    # What it took in is taken to be what the answer before it did.
    cost = 30 * 1000 + 50 * 2000
    assert [record.cost_nanos for record in talk.written] == [USAGE_NANOS, cost]
    assert (talk.written[1].outcome, talk.written[1].usage_source) == (outcome, "partial")
    assert talk.balance == (10**9 - USAGE_NANOS - cost, 0)


async def test_a_worker_that_dies_has_said_how_far_it_came(open_conversation) -> None:
    talk = open_conversation()
    await talk.meter.hold()
    await talk.holds.renew()
    talk.meter.see(Event(tokens=40))
    talk.clock.now_s += 1
    await talk.holds.renew()

    talk.clock.now_s += 3600
    partition = talk.holds.scopes(talk.x.principal).partition
    expired = run(talk.ledger.sweep(partition, at_most=10))

    assert [each.request_id for each in expired] == [talk.x.id]
    assert talk.balance == (10**9 - 40 * 2000, 0)
    assert talk.written[0].outcome == "orphaned"


async def test_a_conversation_that_came_to_nothing_is_a_request_that_cost_nothing(open_conversation) -> None:
    talk = open_conversation()
    await talk.meter.hold()

    talk.meter.close()

    assert talk.balance == (10**9, 0)
    assert [(record.request_id, record.cost_nanos) for record in talk.written] == [(talk.x.id, 0)]
    assert talk.telemetry.credit_voided[0] == HELD_NANOS


async def test_a_hold_that_was_not_needed_after_an_answer_is_no_request(open_conversation) -> None:
    talk = open_conversation()
    await talk.meter.hold()
    talk.meter.see(DONE)
    await talk.meter.hold()

    talk.meter.close()

    assert talk.balance == (10**9 - USAGE_NANOS, 0)
    assert len(talk.written) == 1


async def test_the_dearest_is_held_for_until_it_is_known_who_answers(open_conversation) -> None:
    talk = open_conversation()
    talk.x.offer = None

    await talk.meter.hold()
    any_of_them = talk.balance
    talk.x.offer = SPEAKER
    talk.meter.see(DONE)
    await talk.meter.hold()

    assert any_of_them == (10**9, HELD_FOR_ANY_NANOS)
    assert talk.balance == (10**9 - USAGE_NANOS, HELD_NANOS)
    talk.meter.close()


async def test_who_can_not_pay_the_next_answer_is_refused_it(open_conversation) -> None:
    talk = open_conversation(balance_nanos=HELD_NANOS + USAGE_NANOS - 1)
    await talk.meter.hold()
    talk.meter.see(DONE)

    with pytest.raises(InsufficientCredit):
        await talk.meter.hold()

    talk.meter.close()
    assert talk.balance == (HELD_NANOS - 1, 0)


async def test_what_is_written_down_is_charged_at_the_writers_price(open_conversation) -> None:
    talk = open_conversation()
    await talk.meter.hold()
    spoken = Usage(input_tokens=10, output_tokens=4)

    talk.meter.see(Event(kind="transcribed", usage=spoken))
    talk.meter.see(Event(kind="session", model="speaker", transcriber="writer"))
    talk.meter.see(Event(kind="transcribed", usage=spoken))
    talk.meter.see(Event(kind="session", model="speaker", transcriber="unpriced"))
    talk.meter.see(Event(kind="transcribed", usage=spoken))

    own = 10 * 1000 + 4 * 2000
    assert [(record.model, record.cost_nanos) for record in talk.written] == [
        ("speaker", own),
        ("writer", 14 * 5000),
        ("speaker", own),
    ]
    assert len({record.request_id for record in talk.written} | {talk.x.id}) == 4
    # The hold for the answer is not touched by it.
    assert talk.balance == (10**9 - 2 * own - 14 * 5000, HELD_NANOS)
    talk.meter.close()


async def test_a_session_goes_over_to_what_has_a_price_or_ends(open_conversation) -> None:
    talk = open_conversation()
    await talk.meter.hold()

    talk.meter.see(Event(kind="session", model="speaker-2026-01-01"))
    first = talk.x.offer
    talk.meter.see(Event(kind="session", model="dearer"))
    talk.meter.see(DONE)

    assert first is SPEAKER, "the first name is only how the provider calls it"
    assert talk.written[0].cost_nanos == 30 * 3000 + 12 * 6000
    for model in ("unpriced", "unknown"):
        with pytest.raises(Unpriced):
            talk.meter.see(Event(kind="session", model=model))


async def test_a_key_that_was_revoked_or_narrowed_ends_it_with_the_next_hold(open_conversation) -> None:
    talk = open_conversation()
    await talk.meter.hold()
    talk.meter.see(DONE)

    talk.narrow(models=Names(frozenset({"speaker"})))
    await talk.meter.hold()
    talk.meter.see(Event(kind="session", model="spoken"))
    with pytest.raises(UnknownModel):
        talk.meter.see(Event(kind="session", model="dearer"))
    talk.narrow(providers=frozenset({"elsewhere"}))
    talk.x.offer = SPEAKER
    talk.meter.see(DONE)
    with pytest.raises(UnknownModel):
        await talk.meter.hold()
    talk.keys.now = None
    with pytest.raises(Unauthenticated):
        await talk.meter.hold()

    talk.meter.close()
    assert talk.balance == (10**9 - 2 * USAGE_NANOS, 0)


async def test_what_is_free_holds_and_costs_nothing(open_conversation) -> None:
    free = offer_of("free", free=True)
    talk = open_conversation(balance_nanos=0, offers=(free,))
    talk.x.offer = free

    await talk.meter.hold()
    talk.meter.see(DONE)

    assert talk.balance == (0, 0)
    assert [(record.cost_nanos, record.input_tokens) for record in talk.written] == [(0, 30)]
