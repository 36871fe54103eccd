"""How fast providers answer, from what the workers counted."""

import msgspec
import pytest

from gateway.infra.metrics import Registry, Snapshot
from gateway.status import FleetFacts, Pace, paces_of
from gateway.telemetry import Record, Telemetry


class Fleet:
    """One worker, and what its supervisor says of it."""

    def __init__(self) -> None:
        self._registry = Registry(incarnation="test")
        self._telemetry = Telemetry(self._registry, version="1")
        self._telemetry.know(providers=("a", "b"), models=("a",))
        for provider in ("a", "b"):
            self._telemetry.set_breaker(provider, 0)

    def answer(
        self, provider: str, *durations_s: float, first_byte_s: float | None = None, fails: bool = False
    ) -> None:
        for duration_s in durations_s:
            self._telemetry.count_attempt(provider, "provider_timeout" if fails else "ok")
            self._telemetry.record(
                Record(
                    time="",
                    id="",
                    method="POST",
                    route="/v1/chat/completions",
                    status=200,
                    operation="chat",
                    provider=provider,
                    # A model may be called like a provider.
                    model="a",
                    duration_s=duration_s,
                    stream=first_byte_s is not None,
                    first_byte_s=first_byte_s,
                )
            )

    def facts(self, age_s: float) -> FleetFacts:
        snapshot = msgspec.msgpack.decode(self._registry.snapshot(), type=Snapshot)
        return FleetFacts(version="1", pid=1, age_s=age_s, workers=(), families=snapshot.families)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_since_the_start_there_are_times_and_no_rates(fleet):
    fleet.answer("a", *[0.2] * 19, 30.0)

    paces = paces_of(fleet.facts(100.0))

    assert (paces["a"].attempts_per_s, paces["a"].first_token_p50_s) == (None, None)
    assert 0.05 < paces["a"].latency_p50_s <= 0.4
    assert paces["a"].latency_p95_s < 1.0
    nothing = dict.fromkeys(Pace.__struct_fields__)
    assert paces["b"] == Pace(**nothing)


def test_between_two_looks_only_what_passed_counts(fleet):
    fleet.answer("a", *[40.0] * 100, fails=True)
    before = fleet.facts(100.0)
    fleet.answer("a", *[0.2] * 18, first_byte_s=0.02)
    fleet.answer("a", *[0.2] * 2, fails=True)

    pace = paces_of(fleet.facts(104.0), before)["a"]

    assert (pace.attempts_per_s, pace.failures_per_s) == (5.0, 0.5)
    assert pace.latency_p95_s < 1.0
    assert pace.first_token_p50_s < 0.1


def test_what_is_longer_than_every_bound_is_at_least_the_last_one(fleet):
    fleet.answer("a", 1e6)

    assert paces_of(fleet.facts(1.0))["a"].latency_p50_s >= 60.0
