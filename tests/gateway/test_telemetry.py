import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.infra.exposition import merge, render
from gateway.infra.metrics import OTHER, Registry
from gateway.telemetry import Record, Telemetry
from tests.gateway.infra.exposition_text import Exposition

FAMILIES = {
    "gateway_access_lines_dropped_total": "counter",
    "gateway_admitted_locally_total": "counter",
    "gateway_breaker_state": "gauge",
    "gateway_build_info": "gauge",
    "gateway_control_duration_seconds": "histogram",
    "gateway_credit_held_nanodollars_total": "counter",
    "gateway_credit_settled_nanodollars_total": "counter",
    "gateway_credit_voided_nanodollars_total": "counter",
    "gateway_db_pool_in_use": "gauge",
    "gateway_db_pool_size": "gauge",
    "gateway_db_pool_waiting": "gauge",
    "gateway_ends_journaled_total": "counter",
    "gateway_fallbacks_total": "counter",
    "gateway_holds_expired_total": "counter",
    "gateway_in_flight": "gauge",
    "gateway_ledger_drift_nanodollars": "gauge",
    "gateway_hedges_total": "counter",
    "gateway_holds_open": "gauge",
    "gateway_in_flight_bound": "gauge",
    "gateway_provider_concurrency_limit": "gauge",
    "gateway_shed_total": "counter",
    "gateway_limiter_decisions_total": "counter",
    "gateway_local_journal_bytes": "gauge",
    "gateway_narrowings_total": "counter",
    "gateway_overhead_seconds": "histogram",
    "gateway_provider_keys_out": "gauge",
    "gateway_records_rejected_total": "counter",
    "gateway_records_settled_total": "counter",
    "gateway_redis_seconds": "histogram",
    "gateway_requests_total": "counter",
    "gateway_retries_refused_total": "counter",
    "gateway_series_dropped_total": "counter",
    "gateway_settle_lag_seconds": "gauge",
    "gateway_stream_aborts_total": "counter",
    "gateway_upstream_attempts_total": "counter",
    "gateway_usage_source_total": "counter",
    "gateway_usage_disbelieved_total": "counter",
    "gateway_cache_bytes": "gauge",
    "gateway_cache_total": "counter",
    "gen_ai_client_operation_duration_seconds": "histogram",
    "gen_ai_client_token_usage": "histogram",
    "gen_ai_server_time_per_output_token_seconds": "histogram",
    "gen_ai_server_time_to_first_token_seconds": "histogram",
}
CHAT = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "openai",
    "gen_ai_request_model": "gpt-4o-mini",
}


class Seen:
    """A telemetry that knows one provider and one model, and what a scrape of it shows."""

    def __init__(self) -> None:
        self.registry = Registry(incarnation="a")
        self.telemetry = Telemetry(self.registry, version="1.2.3")
        self.telemetry.know(providers=["openai"], models=["gpt-4o-mini"])

    def shown(self) -> Exposition:
        return Exposition(render(merge([self.registry.snapshot()])).decode())


def streamed(**changes) -> Record:
    fields = {
        "time": "2026-11-22T19:44:07.123Z",
        "id": "0193",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "operation": "chat",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "attempts": 1,
        "stream": True,
        "duration_s": 2.5,
        "first_byte_s": 0.5,
        "upstream_s": 2.496,
        "input_tokens": 16,
        "output_tokens": 21,
        "usage_source": "reported",
    }
    return Record(**{**fields, **changes})


def test_one_streamed_answer_is_seen_in_every_family_it_concerns():
    seen = Seen()

    seen.telemetry.record(streamed())

    text = seen.shown()
    assert text.value("gateway_requests_total", route="/v1/chat/completions", status_class="2xx", error_type="") == 1
    assert text.value("gen_ai_client_operation_duration_seconds_sum", **CHAT, error_type="") == 2.5
    assert text.value("gen_ai_client_operation_duration_seconds_bucket", **CHAT, error_type="", le="1.28") == 0
    assert text.value("gen_ai_client_operation_duration_seconds_bucket", **CHAT, error_type="", le="2.56") == 1
    assert text.value("gen_ai_server_time_to_first_token_seconds_bucket", **CHAT, le="0.25") == 0
    assert text.value("gen_ai_server_time_to_first_token_seconds_bucket", **CHAT, le="0.5") == 1
    assert text.value("gen_ai_server_time_per_output_token_seconds_sum", **CHAT) == pytest.approx(0.1)
    assert text.value("gen_ai_client_token_usage_sum", **CHAT, gen_ai_token_type="input") == 16
    assert text.value("gen_ai_client_token_usage_bucket", **CHAT, gen_ai_token_type="input", le="16") == 1
    assert text.value("gen_ai_client_token_usage_sum", **CHAT, gen_ai_token_type="output") == 21
    assert text.value("gateway_overhead_seconds_bucket", component="total", le="0.0025") == 0
    assert text.value("gateway_overhead_seconds_bucket", component="total", le="0.005") == 1
    assert text.value("gateway_usage_source_total", source="reported") == 1


def test_a_request_that_was_refused_is_no_model_fact():
    seen = Seen()

    seen.telemetry.record(
        streamed(status=401, error_type="caller_unauthenticated", provider="", model="", upstream_s=None)
    )

    text = seen.shown()
    assert (
        text.value(
            "gateway_requests_total",
            route="/v1/chat/completions",
            status_class="4xx",
            error_type="caller_unauthenticated",
        )
        == 1
    )
    assert not any(name.startswith("gen_ai") for name, _ in text.samples)
    assert text.value("gateway_overhead_seconds_count", component="total") == 0


def test_what_a_caller_typed_never_becomes_a_label():
    seen = Seen()

    for index in range(20_000):
        seen.telemetry.record(streamed(model=f"junk-{index}", provider=f"p-{index}", status=404))

    text = seen.shown()
    labels = {**CHAT, "gen_ai_provider_name": OTHER, "gen_ai_request_model": OTHER}
    assert text.value("gen_ai_client_operation_duration_seconds_count", **labels, error_type="") == 20_000
    assert len(text.samples) < 300
    assert len(seen.telemetry._bound) == 1
    assert text.value("gateway_series_dropped_total") == 0


def test_a_reload_opens_the_new_names():
    seen = Seen()
    seen.telemetry.record(streamed(model="new-model"))

    seen.telemetry.know(providers=["openai"], models=["gpt-4o-mini", "new-model"])
    seen.telemetry.record(streamed(model="new-model"))

    text = seen.shown()
    for model in (OTHER, "new-model"):
        labels = {**CHAT, "gen_ai_request_model": model}
        assert text.value("gen_ai_client_operation_duration_seconds_count", **labels, error_type="") == 1


def test_a_cut_answer_says_who_cut_it():
    seen = Seen()

    seen.telemetry.record(streamed(aborted_by="caller", usage_source="partial"))

    text = seen.shown()
    assert text.value("gateway_stream_aborts_total", by="caller") == 1
    assert text.value("gateway_usage_source_total", source="partial") == 1


@given(
    status=st.integers(0, 999),
    duration_s=st.floats(0, 1e5),
    output_tokens=st.integers(0, 10**9),
    stream=st.booleans(),
    first_byte_s=st.none() | st.floats(0, 1e5),
    usage_source=st.sampled_from(["reported", "estimated", "partial", "none"]),
)
def test_any_record_is_counted_exactly_once(**fields):
    seen = Seen()

    seen.telemetry.record(streamed(**fields))

    text = seen.shown()
    assert sum(value for (name, _), value in text.samples.items() if name == "gateway_requests_total") == 1
    assert text.value("gen_ai_client_operation_duration_seconds_count", **CHAT, error_type="") == 1


def test_the_families_are_those_that_are_documented():
    assert Seen().shown().types == FAMILIES


def test_what_is_counted_as_it_happens():
    seen = Seen()
    telemetry = seen.telemetry

    telemetry.count_attempt("openai", "ok")
    telemetry.count_attempt("unknown", "provider_timeout")
    telemetry.count_fallback("provider_timeout")
    telemetry.count_refusal("key", "tokens")
    telemetry.count_narrowing("key", "budget")
    telemetry.set_breaker("openai", 2)
    telemetry.time_redis("settle").observe(0.0003)
    telemetry.set_pool(size=4, in_use=3, waiting=2)
    telemetry.in_flight[0] += 2
    telemetry.in_flight[0] -= 1
    telemetry.credit_held[0] += 2**60
    telemetry.ledger_drift.set((), -5)

    text = seen.shown()
    assert text.value("gateway_upstream_attempts_total", provider="openai", outcome="ok") == 1
    assert text.value("gateway_upstream_attempts_total", provider=OTHER, outcome="provider_timeout") == 1
    assert text.value("gateway_fallbacks_total", reason="provider_timeout") == 1
    assert text.value("gateway_limiter_decisions_total", scope="key", decision="tokens") == 1
    assert text.value("gateway_narrowings_total", scope="key", limit="budget") == 1
    assert text.value("gateway_breaker_state", provider="openai") == 2
    assert text.value("gateway_redis_seconds_count", op="settle") == 1
    assert text.value("gateway_db_pool_size") == 4
    assert text.value("gateway_db_pool_in_use") == 3
    assert text.value("gateway_db_pool_waiting") == 2
    assert text.value("gateway_in_flight") == 1
    assert text.value("gateway_credit_held_nanodollars_total") == 2**60
    assert text.value("gateway_ledger_drift_nanodollars") == -5
    assert text.value("gateway_build_info", version="1.2.3") == 1


def test_a_record_is_a_short_line_without_what_is_empty():
    line = msgspec.json.encode(Record(time="t", id="i", method="GET", route="/health", status=200))

    assert line == b'{"time":"t","id":"i","method":"GET","route":"/health","status":200}'
    assert math.isclose(msgspec.json.decode(msgspec.json.encode(streamed()))["duration_s"], 2.5)
