"""What is told of trials: by the ledger, and of their days alone."""

from datetime import UTC, datetime, timedelta

import pytest

from gateway.control.trials import DAYS, REMEMBERED_S, STATES, Trials, TrialSums, analyse
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.kernel.journal import CreditType, credit
from tests.control.desk import Desk
from tests.control.usage import add_usage

NOBODY = {
    "total_trials": 0,
    "active_trials": 0,
    "expired_trials": 0,
    "converted_trials": 0,
    "conversion_rate": 0.0,
    "total_requests_used": 0,
    "total_tokens_used": 0,
    "total_credits_used": 0.0,
    "average_requests_per_trial": 0.0,
    "average_tokens_per_trial": 0.0,
    "average_credits_per_trial": 0.0,
    "breakdown": {state: {"trials": 0, "requests": 0, "tokens": 0, "credits": 0.0} for state in STATES},
}


class HandClock:
    """Stands at a time until it is moved."""

    def __init__(self, at: datetime) -> None:
        self.now_s = at.timestamp()

    def now(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


async def give(database: Database, account_id: int, kind: CreditType) -> None:
    await credit(database, account_id, type=kind, amount_nanos=10**10, idempotency_key=f"{kind} {account_id}")


@pytest.fixture
async def desk(database: str, redis_url: str):
    async with Desk(Stores(database, redis_url)) as desk:
        yield desk


async def test_without_trials_every_number_is_nought(desk: Desk):
    boss = await desk.person(role="admin")

    found = (await boss.get("/admin/trial/analytics")).json

    assert datetime.fromisoformat(found.pop("timestamp")).tzinfo is not None
    assert found == NOBODY


async def test_a_trial_goes_on_is_over_or_led_to_a_purchase(desk: Desk):
    database = desk.parts.database
    now = datetime.now(UTC)
    clock = HandClock(now)
    trials = Trials(database, clock=clock)
    ann, bob, eve = [await desk.person() for _ in range(3)]
    for each in (ann, bob):
        await give(database, each.account_id, "trial")
        await add_usage(database, each.account_id)
        await add_usage(database, each.account_id, at=now - timedelta(days=10))
    # Whoever bought and never tried is none of them, and a second trial is none.
    await give(database, eve.account_id, "purchase")
    await credit(database, ann.account_id, type="trial", amount_nanos=1, idempotency_key=f"again {ann.account_id}")

    first = await trials.analytics()
    await give(database, bob.account_id, "purchase")
    remembered = await trials.analytics()
    clock.now_s += max(REMEMBERED_S, DAYS * 86_400) + 60
    later = await trials.analytics()

    assert (first.total_trials, first.active_trials, first.expired_trials, first.converted_trials) == (2, 2, 0, 0)
    assert first.breakdown["active"] == TrialSums(trials=2, requests=2, tokens=300, credits=0.003)
    assert remembered is first
    assert (later.total_trials, later.active_trials, later.expired_trials, later.converted_trials) == (2, 0, 1, 1)
    assert later.conversion_rate == 50.0
    assert later.breakdown["converted"] == TrialSums(trials=1, requests=1, tokens=150, credits=0.0015)


def test_averages_are_of_all_trials_and_the_rate_of_those_that_came_to_an_end():
    sums = {
        "active": TrialSums(trials=5, requests=10, tokens=100, credits=1.0),
        "expired": TrialSums(trials=2, requests=6, tokens=60, credits=0.5),
        "converted": TrialSums(trials=1, requests=4, tokens=40, credits=0.5),
    }

    found = analyse(sums, at=datetime.now(UTC))

    assert (found.total_trials, found.conversion_rate) == (8, 33.33)
    assert (found.total_requests_used, found.total_tokens_used, found.total_credits_used) == (20, 200, 2.0)
    assert (found.average_requests_per_trial, found.average_tokens_per_trial) == (2.5, 25.0)
    assert found.average_credits_per_trial == 0.25
