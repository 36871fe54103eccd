"""Retries are a share of the traffic, and waits are spread."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.budget import BudgetRules, RetryBudget, backoff_s

RULES = BudgetRules(share=0.2, floor_per_s=0.0, burst=5.0)


def test_a_burst_is_allowed_and_then_a_share():
    budget = RetryBudget(RULES, now_s=0.0)

    allowed = []
    for _ in range(1000):
        budget.begun += 1
        allowed.append(budget.spend(0.0))

    assert all(allowed[:5])
    assert sum(allowed) <= 5 + 1000 * RULES.share
    assert sum(allowed) >= 1000 * RULES.share
    assert budget.refused == allowed.count(False)


def test_little_traffic_may_retry_too():
    budget = RetryBudget(BudgetRules(share=0.0, floor_per_s=1.0, burst=1.0), now_s=0.0)

    assert [budget.spend(now_s) for now_s in (0.0, 0.1, 1.2, 1.5, 2.3)] == [True, False, True, False, True]


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 3)), max_size=100))
def test_never_more_than_was_earned(happened):
    rules = BudgetRules(share=0.3, floor_per_s=2.0, burst=7.0)
    budget, now_s, begun, allowed = RetryBudget(rules, now_s=0.0), 0.0, 0, 0

    for requests, passed_s in happened:
        now_s += passed_s
        budget.begun += requests
        begun += requests
        allowed += budget.spend(now_s)

    assert allowed <= rules.burst + begun * rules.share + now_s * rules.floor_per_s + 1e-6


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_a_wait_doubles_up_to_a_bound_and_is_spread_over_the_upper_half(number, chance):
    wait_s = backoff_s(number, base_s=0.1, most_s=4.0, chance=chance)

    full_s = min(4.0, 0.1 * 2 ** min(number - 1, 32))
    assert full_s / 2 <= wait_s <= full_s
