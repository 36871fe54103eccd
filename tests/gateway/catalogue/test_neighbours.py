import pytest

from gateway.catalogue.neighbours import RATIO_MAX, Usual, find_implausible
from gateway.kernel.money import Price

USD = 1_000_000_000


def price(into: float, out: float = 0) -> Price:
    return Price(input_mtok_nanos=int(into * USD), output_mtok_nanos=int(out * USD))


def test_the_bound_itself_is_plausible():
    usual = Usual([price(1, 2)])

    assert usual.objection(price(RATIO_MAX, 2)) == ""
    assert usual.objection(price(1 / RATIO_MAX, 2)) == ""
    assert "above the usual 1.00" in usual.objection(price(RATIO_MAX + 1, 2))
    assert "output at 0.001 USD" in usual.objection(price(1, 0.001))


def test_zero_says_nothing():
    assert Usual([price(0, 0)]).objection(price(5, 5)) == ""
    assert Usual([price(5, 5)]).objection(price(0, 0)) == ""
    assert Usual([]).objection(price(5, 5)) == ""


def test_a_price_for_one_token_is_found_by_the_other_models():
    wrong = find_implausible({"a": {"m1": price(1), "m2": price(2), "slip": price(0.000003)}})

    assert wrong.keys() == {("a", "slip")}
    assert "below" in wrong["a", "slip"]


def test_of_two_providers_the_one_that_is_odd_at_home_is_wrong():
    wrong = find_implausible(
        {
            "a": {"m1": price(1), "m2": price(2), "same": price(3)},
            "b": {"m3": price(1), "m4": price(2), "vendor/Same": price(3_000_000)},
        }
    )

    assert wrong.keys() == {("b", "vendor/Same")}


def test_a_dear_model_is_believed_where_others_ask_the_same():
    prices = {each: {"m1": price(0.1), "m2": price(0.2), "m3": price(0.1), "pro": price(600)} for each in "abc"}

    assert find_implausible(prices) == {}


def test_two_others_outvote_a_provider():
    prices = {each: {"m": price(1)} for each in "abc"} | {"d": {"m": price(5000), "n": price(4000)}}

    assert find_implausible(prices).keys() >= {("d", "m")}


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_provider_with_the_wrong_unit_throughout_is_refused_whole(factor):
    right = {each: {f"{each}{number}": price(number) for number in range(1, 5)} for each in "abcd"}
    wrong = {f"w{number}": price(number * factor) for number in range(1, 5)}

    assert find_implausible(right | {"wrong": wrong}).keys() == {("wrong", model) for model in wrong}
