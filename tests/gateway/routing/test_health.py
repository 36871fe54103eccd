"""What is remembered of offers and keys, and when it is forgotten."""

from gateway.routing.breaker import State
from gateway.routing.health import OFFERS_MAX
from tests.gateway.routing.offers import RULES, health_of


def test_an_offer_is_remembered_by_model_and_provider():
    health = health_of("a", "b")

    assert health.offer("m", "a") is health.offer("m", "a")
    assert health.offer("m", "a") is not health.offer("m", "b")
    assert health.offer("m", "a").provider is health.offer("n", "a").provider


def test_a_key_that_is_out_comes_back_by_itself():
    offer = health_of("a").offer("m", "a")

    offer.provider.keys[0].until_s = 60.0

    assert not offer.admits(59.0)
    assert offer.admits(60.0)


def test_a_key_out_for_one_model_serves_the_others():
    health = health_of("a")
    offer, other = health.offer("m", "a"), health.offer("n", "a")

    offer.cool(offer.provider.keys[0], 5.0)

    assert not offer.admits(4.0)
    assert other.admits(4.0)
    assert offer.admits(5.0)


def test_keys_are_used_in_turn():
    offer = health_of("a", keys=3).offer("m", "a")

    used = [offer.key_for(0.0, tried=frozenset()).number for _ in range(6)]

    assert sorted(used[:3]) == sorted(used[3:]) == [0, 1, 2]


def test_a_key_that_can_be_used_comes_before_one_that_can_not_or_was_tried():
    offer = health_of("a", keys=3).offer("m", "a")
    first, second, third = offer.provider.keys
    first.until_s = 10.0
    second.outstanding = 50

    assert {offer.key_for(0.0, tried=frozenset({2})).number for _ in range(5)} == {1}
    assert {offer.key_for(0.0, tried=frozenset({1, 2})).number for _ in range(5)} == {0}
    assert third.outstanding == 0


def test_busy_keys_come_last():
    offer = health_of("a", keys=2).offer("m", "a")
    offer.provider.keys[0].outstanding = 1

    assert {offer.key_for(0.0, tried=frozenset()).number for _ in range(5)} == {1}


def test_one_key_left_is_enough():
    offer = health_of("a", keys=2).offer("m", "a")
    offer.provider.keys[0].until_s = 100.0

    assert offer.admits(0.0)
    assert offer.provider.out(0.0) == 1


def test_memory_is_bounded_and_trouble_is_remembered_longest():
    health = health_of("a")
    sick = health.offer("sick", "a")
    for _ in range(RULES.requests_min):
        sick.breaker.fail(0.0, probe=sick.breaker.enter())

    for number in range(OFFERS_MAX + 10):
        health.offer(f"m{number}", "a")

    assert len(health._offers) <= OFFERS_MAX
    assert health.offer("sick", "a") is sick


def test_the_worst_breaker_stands_for_its_provider():
    health = health_of("a", "b")
    health.offer("well", "a")
    sick = health.offer("sick", "a")
    for _ in range(RULES.requests_min):
        sick.breaker.fail(0.0, probe=sick.breaker.enter())

    assert health.worst() == {"a": State.OPEN, "b": State.CLOSED}


def test_a_provider_with_other_keys_begins_anew():
    health = health_of("a")
    before = health.offer("m", "a")

    health.know("a", keys=1)
    assert health.offer("m", "a") is before

    health.know("a", keys=2)
    assert health.offer("m", "a") is not before
    assert len(health.offer("m", "a").provider.keys) == 2
    assert health.keys_out(0.0) == {"a": 0}
