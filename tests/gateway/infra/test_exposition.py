import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.infra.exposition import Aggregate, merge, render
from gateway.infra.metrics import OTHER, Registry
from tests.gateway.infra.exposition_text import Exposition

TEXT_OF_EACH_KIND = r"""# HELP c_total A count.
# TYPE c_total counter
c_total{x="q\"uo\\te\n"} 3
# HELP g A level.
# TYPE g gauge
g -1.5
# HELP gateway_series_dropped_total Look-ups of a label set beyond the cap, folded into _other.
# TYPE gateway_series_dropped_total counter
gateway_series_dropped_total 0
# HELP h_seconds A time.
# TYPE h_seconds histogram
h_seconds_bucket{x="chat",le="0.1"} 1
h_seconds_bucket{x="chat",le="1"} 1
h_seconds_bucket{x="chat",le="5"} 1
h_seconds_bucket{x="chat",le="+Inf"} 2
h_seconds_sum{x="chat"} 7.1
h_seconds_count{x="chat"} 2
"""
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


class Worker:
    """A registry with one family of each kind."""

    def __init__(self, incarnation: str) -> None:
        self.registry = Registry(incarnation=incarnation)
        self.count = self.registry.counter("c_total", "A count.", ("x",))
        self.time = self.registry.histogram("h_seconds", "A time.", ("x",), bounds=(0.1, 1.0, 5.0))
        self.level = self.registry.gauge("g", "A level.", mode="sum")

    def snapshot(self) -> bytes:
        return self.registry.snapshot()


def shown(aggregate: Aggregate) -> Exposition:
    return Exposition(aggregate.render().decode())


def test_the_text_of_one_family_of_each_kind():
    worker = Worker("a")
    worker.count.add(('q"uo\\te\n',), 3)
    worker.time.bind("chat").observe(0.1)
    worker.time.bind("chat").observe(7)
    worker.level.set((), -1.5)

    assert render(merge([worker.snapshot()])).decode() == TEXT_OF_EACH_KIND


@given(
    help_text=TEXT,
    series=st.dictionaries(st.tuples(TEXT, TEXT), st.floats() | st.integers(-(2**63), 2**63), max_size=6),
)
def test_whatever_is_put_in_is_read_back(help_text, series):
    registry = Registry(incarnation="a")
    gauge = registry.gauge("g", help_text, ("x", "y"), mode="sum")
    for labels, value in series.items():
        gauge.set(labels, value)

    text = Exposition(render(merge([registry.snapshot()])).decode())

    assert text.helps["g"] == help_text
    for (x, y), value in series.items():
        assert text.value("g", x=x, y=y) == pytest.approx(float(value), nan_ok=True, rel=0, abs=0)


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 10)), max_size=20), max_size=4))
def test_workers_add_up_to_what_one_worker_would_have_counted(shares):
    alone = Worker("alone")
    workers = [Worker(str(index)) for index in range(len(shares))]
    for worker, share in zip(workers, shares, strict=True):
        for label, value in share:
            for one in (worker, alone):
                one.count.add((label,))
                one.time.bind(label).observe(value)

    together = Exposition(render(merge(worker.snapshot() for worker in workers)).decode())
    expected = Exposition(render(merge([alone.snapshot()])).decode())

    for key, value in expected.samples.items():
        if workers:
            assert together.samples[key] == pytest.approx(value)


@pytest.mark.parametrize(("mode", "expected"), [("sum", 7), ("max", 5), ("min", 2), ("last", 2)])
def test_gauges_are_put_together_as_declared(mode, expected):
    snapshots = []
    for index, level in enumerate((5, 2)):
        registry = Registry(incarnation=str(index))
        registry.gauge("g", "G.", mode=mode).set((), level)
        snapshots.append(registry.snapshot())

    assert Exposition(render(merge(snapshots)).decode()).value("g") == expected


def test_a_last_gauge_is_of_the_worker_that_reported_last_and_has_it():
    aggregate = Aggregate()
    registries = [Registry(incarnation=name) for name in "abc"]
    gauges = [registry.gauge("g", "G.", mode="last") for registry in registries]
    gauges[0].set((), 1)
    gauges[1].set((), 2)

    for index in (0, 1, 2, 0):
        aggregate.update(str(index), registries[index].snapshot())

    assert shown(aggregate).value("g") == 1


def test_a_dead_workers_counts_stay_and_its_levels_go():
    aggregate = Aggregate()
    workers = [Worker("a"), Worker("b")]
    for index, worker in enumerate(workers):
        worker.count.add(("x",), 10)
        worker.time.bind("x").observe(0.5)
        worker.level.set((), 1)
        aggregate.update(str(index), worker.snapshot())

    aggregate.forget("0")
    aggregate.forget("0")
    aggregate.forget("nobody")

    text = shown(aggregate)
    assert text.value("c_total", x="x") == 20
    assert text.value("h_seconds_count", x="x") == 2
    assert text.value("g") == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["count", "report", "die", "restart"])), max_size=60))
def test_no_sum_ever_goes_down_or_counts_twice(steps):
    aggregate = Aggregate()
    births = 3
    workers = {index: Worker(f"{index}") for index in range(3)}
    reported = 0
    pending = dict.fromkeys(workers, 0)
    for index, step in steps:
        if step == "count":
            workers[index].count.add(("x",))
            pending[index] += 1
        elif step == "report":
            aggregate.update(str(index), workers[index].snapshot())
            reported += pending[index]
            pending[index] = 0
        else:
            # Uncounted work of the dead is lost; a restart may or may not have been noticed before it reports.
            late = workers[index].snapshot()
            if step == "die":
                aggregate.update(str(index), late)
                reported += pending[index]
                aggregate.forget(str(index))
                aggregate.update(str(index), late)
            pending[index] = 0
            births += 1
            workers[index] = Worker(f"{births}")

        text = shown(aggregate)
        assert text.samples.get(("c_total", (("x", "x"),)), 0) == reported


def test_rendering_does_not_change_what_is_counted():
    aggregate = Aggregate()
    first, second = Worker("a"), Worker("b")
    first.count.add(("x",))
    second.count.add(("x",))
    aggregate.update("0", first.snapshot())
    aggregate.forget("0")
    aggregate.update("1", second.snapshot())

    assert aggregate.render() == aggregate.render()
    assert shown(aggregate).value("c_total", x="x") == 2


def test_families_declared_differently_are_left_out_and_counted():
    old = Registry(incarnation="old")
    old.histogram("h", "H.", bounds=(1, 2)).bind().observe(1)
    new = Registry(incarnation="new")
    new.histogram("h", "H.", bounds=(1, 2, 3)).bind().observe(1)

    text = Exposition(render(merge([old.snapshot(), new.snapshot()])).decode())

    assert text.value("h_count") == 1
    assert text.value("gateway_series_mismatched_total") == 1


def test_a_reworded_help_text_still_adds_up():
    snapshots = []
    for text in ("Old words.", "New words."):
        registry = Registry(incarnation=text)
        registry.counter("c_total", text).add(())
        snapshots.append(registry.snapshot())

    assert Exposition(render(merge(snapshots)).decode()).value("c_total") == 2


def test_the_dead_do_not_pile_up_labels():
    aggregate = Aggregate(series_max=10)
    for life in range(20):
        worker = Worker(str(life))
        worker.count.add((f"model-{life}",), 2)
        aggregate.update("0", worker.snapshot())
        aggregate.forget("0")

    text = shown(aggregate)
    counts = {labels: value for (name, labels), value in text.samples.items() if name == "c_total"}
    assert sum(counts.values()) == 40
    assert len(counts) <= 11
    assert counts[("x", OTHER),] > 0


def test_what_is_no_snapshot_is_refused_and_changes_nothing():
    aggregate = Aggregate()
    worker = Worker("a")
    worker.count.add(("x",))
    aggregate.update("0", worker.snapshot())

    with pytest.raises(msgspec.DecodeError):
        aggregate.update("0", b"\x93nonsense")

    assert shown(aggregate).value("c_total", x="x") == 1


def test_infinite_levels_are_written_as_prometheus_reads_them():
    registry = Registry(incarnation="a")
    gauge = registry.gauge("g", "G.", ("x",), mode="sum")
    for value in (math.inf, -math.inf, math.nan):
        gauge.set((str(value),), value)

    text = render(merge([registry.snapshot()])).decode()

    assert 'g{x="inf"} +Inf' in text
    assert 'g{x="-inf"} -Inf' in text
    assert 'g{x="nan"} NaN' in text
