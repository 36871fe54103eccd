import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.infra.metrics import OTHER, Registry, Snapshot


def decoded(registry: Registry) -> dict[str, dict[tuple[str, ...], list[float]]]:
    snapshot = msgspec.msgpack.decode(registry.snapshot(), type=Snapshot)
    return {family.spec.name: family.series for family in snapshot.families}


def test_a_kept_cell_and_a_look_up_count_into_the_same_series():
    registry = Registry(incarnation="a")
    counter = registry.counter("requests_total", "Requests.", ("route",))

    cell = counter.cell("chat")
    cell[0] += 1
    counter.add(("chat",), 2)

    assert decoded(registry)["requests_total"] == {("chat",): [3]}


def test_money_stays_exact_past_what_a_double_holds():
    registry = Registry(incarnation="a")
    registry.counter("nanodollars_total", "Money.").cell()[0] += 2**53 + 1

    assert decoded(registry)["nanodollars_total"][()] == [2**53 + 1]


@given(st.lists(st.floats(min_value=-1e9, max_value=1e9), max_size=50))
def test_each_value_is_counted_in_the_first_bucket_that_holds_it(values):
    bounds = (0.0, 0.5, 1.0, 100.0)
    registry = Registry(incarnation="a")
    series = registry.histogram("h", "H.", bounds=bounds).bind()

    for value in values:
        series.observe(value)

    cell = decoded(registry)["h"][()]
    edges = (-math.inf, *bounds, math.inf)
    for index, count in enumerate(cell[:-1]):
        assert count == sum(edges[index] < value <= edges[index + 1] for value in values)
    assert cell[-1] == pytest.approx(sum(values))


def test_a_label_set_beyond_the_cap_is_folded_and_counted():
    registry = Registry(incarnation="a", series_max=4)
    counter = registry.counter("c_total", "C.", ("model", "provider"))

    for index in range(10):
        counter.add((f"model-{index}", "p"))

    series = decoded(registry)
    assert sum(cell[0] for cell in series["c_total"].values()) == 10
    assert series["c_total"][OTHER, OTHER] == [7]
    assert len(series["c_total"]) == 4
    assert series["gateway_series_dropped_total"][()] == [7]


def test_the_cap_counts_every_family_and_spares_those_without_labels():
    registry = Registry(incarnation="a", series_max=1)

    registry.counter("plain_total", "P.").add(())
    registry.histogram("h", "H.", ("x",), bounds=(1,)).bind("a").observe(0)
    registry.gauge("g", "G.", ("x",), mode="sum").set(("a",), 5)

    series = decoded(registry)
    assert series["plain_total"] == {(): [1]}
    assert series["h"] == {(OTHER,): [1, 0, 0]}
    assert series["g"] == {(OTHER,): [5]}


def test_a_forgotten_gauge_makes_room():
    registry = Registry(incarnation="a", series_max=2)
    gauge = registry.gauge("g", "G.", ("x",), mode="sum")

    for index in range(50):
        gauge.set((str(index),), index)
        gauge.forget((str(index),))
    gauge.forget(("never",))

    series = decoded(registry)
    assert series["g"] == {}
    assert series["gateway_series_dropped_total"][()] == [0]


def test_a_gauge_nobody_set_is_not_exposed_but_a_counter_starts_at_zero():
    registry = Registry(incarnation="a")
    registry.gauge("g", "G.", mode="last")
    registry.counter("c_total", "C.")

    series = decoded(registry)

    assert series["g"] == {}
    assert series["c_total"] == {(): [0]}


def test_collectors_run_before_each_snapshot():
    registry = Registry(incarnation="a")
    gauge = registry.gauge("g", "G.", mode="sum")
    registry.on_collect(lambda: gauge.set((), gauge.cell()[0] + 1))

    registry.snapshot()

    assert decoded(registry)["g"] == {(): [2]}


@pytest.mark.parametrize(
    "declare",
    [
        lambda registry: registry.counter("requests", "No suffix."),
        lambda registry: registry.counter("0_total", "Digit first."),
        lambda registry: registry.gauge("g", "Bad label.", ("a-b",), mode="sum"),
        lambda registry: registry.gauge("g", "Reserved label.", ("__name",), mode="sum"),
        lambda registry: registry.histogram("h", "No bounds.", bounds=()),
        lambda registry: registry.histogram("h", "Falling.", bounds=(2, 1)),
        lambda registry: registry.histogram("h", "le.", ("le",), bounds=(1,)),
        lambda registry: registry.counter("gateway_series_dropped_total", "Twice."),
        lambda registry: registry.counter("c_total", "Labels.", ("a",)).cell("x", "y"),
    ],
)
def test_a_wrong_declaration_is_refused(declare):
    with pytest.raises(ValueError, match=r".+"):
        declare(Registry(incarnation="a"))
