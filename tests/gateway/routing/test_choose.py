"""Which of several candidates."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.choose import Asked, choose
from tests.gateway.routing.offers import group, offer, priced

ASKED = Asked()


def shares(several, asked=ASKED, *, times: int = 4000, seed: int = 1) -> dict[str, float]:
    chance = random.Random(seed).random
    counted = Counter(choose(several, several.candidates, asked, 0.0, chance).offer.provider for _ in range(times))
    return {candidate.offer.provider: counted[candidate.offer.provider] / times for candidate in several.candidates}


def by_name(several) -> dict:
    return {candidate.offer.provider: candidate for candidate in several.candidates}


def test_weights_share_the_traffic():
    assert shares(group(offer("a", weight=3), offer("b", weight=1))) == pytest.approx(
        {"a": 0.75, "b": 0.25}, abs=0.05
    )


@pytest.mark.parametrize("strategy", ["priority", "least_outstanding", "latency", "cost", "throughput"])
def test_a_lower_priority_number_comes_first_whatever_the_strategy(strategy):
    several = group(offer("a", priority=1), offer("b"), offer("c", priority=2), strategy=strategy)

    assert shares(several, times=50)["b"] == 1.0


def test_the_fewest_outstanding_for_its_weight():
    several = group(offer("a", weight=4), offer("b"), offer("c"), strategy="least_outstanding")
    several.candidates[0].health.outstanding = 3
    several.candidates[1].health.outstanding = 1
    several.candidates[2].health.outstanding = 2

    assert shares(several, times=50)["a"] == 1.0


def test_among_equally_busy_ones_chance_decides():
    several = group(offer("a"), offer("b"), strategy="least_outstanding")

    assert shares(several) == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.05)


def test_the_cheapest_for_this_request():
    several = group(priced("a", 10), priced("b", 20), strategy="cost")
    output_heavy = group(priced("a", 10), priced("b", 9, price={"request_nanos": 10**6}), strategy="cost")

    assert shares(several, Asked(input_tokens=1, output_tokens=1), times=50)["a"] == 1.0
    assert shares(output_heavy, Asked(input_tokens=10, output_tokens=10), times=50)["a"] == 1.0
    assert shares(output_heavy, Asked(input_tokens=10**13, output_tokens=0), times=50)["b"] == 1.0


def test_of_two_taken_at_random_the_faster():
    several = group(offer("a"), offer("b"), offer("c"), strategy="latency")
    for candidate, seconds in zip(several.candidates, (0.1, 1.0, 5.0), strict=True):
        candidate.health.total.observe(seconds, 0.0)

    got = shares(several)

    # The slowest never wins a pair, the fastest wins both of its pairs.
    assert got == pytest.approx({"a": 2 / 3, "b": 1 / 3, "c": 0.0}, abs=0.05)


def test_streams_are_judged_by_their_first_token():
    several = group(offer("a"), offer("b"), strategy="latency")
    first, second = several.candidates
    first.health.total.observe(9.0, 0.0)
    first.health.first_token.observe(0.1, 0.0)
    second.health.total.observe(1.0, 0.0)
    second.health.first_token.observe(0.5, 0.0)

    assert shares(several, Asked(stream=True), times=50)["a"] == 1.0
    assert shares(several, Asked(stream=False), times=50)["b"] == 1.0


def test_a_queue_counts_as_much_as_slowness():
    several = group(offer("a"), offer("b"), strategy="latency")
    for candidate, outstanding in zip(several.candidates, (10, 0), strict=True):
        candidate.health.total.observe(0.2, 0.0)
        candidate.health.outstanding = outstanding

    assert shares(several, times=50)["b"] == 1.0


def test_throughput_takes_what_is_fast_enough_or_unknown():
    several = group(offer("a"), offer("b"), offer("c"), strategy="throughput", floor=50.0)
    several.candidates[0].health.rate.observe(60.0, 0.0)
    several.candidates[1].health.rate.observe(10.0, 0.0)

    got = shares(several)

    assert got == pytest.approx({"a": 0.5, "b": 0.0, "c": 0.5}, abs=0.05)


def test_throughput_takes_the_fastest_where_none_is_fast_enough():
    several = group(offer("a"), offer("b"), strategy="throughput", floor=500.0)
    several.candidates[0].health.rate.observe(60.0, 0.0)
    several.candidates[1].health.rate.observe(70.0, 0.0)

    assert shares(several, times=50)["b"] == 1.0


# -- conversations ---------------------------------------------------------------------------------------------------

conversations = [b"conversation %d" % number for number in range(600)]


def draw(several, key: bytes, candidates=None) -> str:
    chosen = choose(several, candidates or several.candidates, Asked(key=key), 0.0, random.Random(0).random)
    return chosen.offer.provider


def test_a_conversation_goes_back_to_where_it_was():
    several = group(offer("a"), offer("b"), offer("c"), strategy="latency")

    for key in conversations[:50]:
        assert len({draw(several, key) for _ in range(5)}) == 1


def test_conversations_are_spread_by_weight():
    several = group(offer("a", weight=2), offer("b"), offer("c"))

    counted = Counter(draw(several, key) for key in conversations)

    assert counted["a"] / len(conversations) == pytest.approx(0.5, abs=0.1)


def test_when_one_is_out_only_its_own_conversations_move():
    several = group(offer("a"), offer("b"), offer("c"))
    left = [candidate for candidate in several.candidates if candidate.offer.provider != "b"]

    for key in conversations:
        before = draw(several, key)
        after = draw(several, key, left)

        assert before in {after, "b"}


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(0, 9), st.floats(0, 9)), min_size=1, max_size=10
    ),
    st.sampled_from(["priority", "least_outstanding", "latency", "cost", "throughput"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(max_size=3),
)
def test_one_of_the_lowest_priority_is_chosen_whatever_is_known(several, strategy, chance, key):
    offers = [offer(f"p{i}", priority=priority, weight=weight) for i, (priority, weight, _, _) in enumerate(several)]
    made = group(*offers, strategy=strategy)
    for candidate, (_, _, outstanding, seconds) in zip(made.candidates, several, strict=True):
        candidate.health.outstanding = outstanding
        candidate.health.total.observe(seconds, 0.0)

    chosen = choose(made, made.candidates, Asked(key=key), 1.0, lambda: chance)

    assert chosen.priority == min(priority for priority, *_ in several)
