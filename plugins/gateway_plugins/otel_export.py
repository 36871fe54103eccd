"""The part of the `otel` plugin that needs OpenTelemetry's SDK. Spans and metrics leave by threads of the SDK's own.

A span is made whole, with the ids that were forwarded while the request ran, and handed to the processor that gathers
them: the SDK's own way of beginning one early and ending it later would cost every request, traced or not.
"""

from collections.abc import Mapping
from typing import Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from gateway.api import Settled
from gateway_plugins.tracing import Trace

#: What one export may take.
TIMEOUT_S: Final = 5.0
#: Spans that wait to be exported; what comes on top is dropped by the SDK.
QUEUE_MAX: Final = 8192
SCOPE: Final = "ai-gateway"

#: `gen_ai.provider.name`, where the convention's word is not ours.
PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex": "gcp.vertex_ai",
    "xai": "x_ai",
}
# Buckets as the convention advises.
_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS: Final = tuple(float(4**power) for power in range(14))

Attributes = dict[str, str | bool | int | float]


class Exporter:
    """`close` it: that exports what is left, and waits for it."""

    def __init__(
        self,
        *,
        endpoint: str,
        headers: Mapping[str, str],
        service: str,
        traces: bool,
        metrics: bool,
        interval_s: float,
    ) -> None:
        self._resource = Resource.create({"service.name": service})
        self._scope = InstrumentationScope(SCOPE)
        self._spans: BatchSpanProcessor | None = None
        self._meters: MeterProvider | None = None
        if traces:
            self._spans = BatchSpanProcessor(
                OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", headers=dict(headers), timeout=TIMEOUT_S),
                max_queue_size=QUEUE_MAX,
                export_timeout_millis=TIMEOUT_S * 1000,
            )
        if metrics:
            self._begin_metrics(
                OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics", headers=dict(headers), timeout=TIMEOUT_S),
                interval_s,
            )

    def _begin_metrics(self, exporter: OTLPMetricExporter, interval_s: float) -> None:
        reader = PeriodicExportingMetricReader(exporter, interval_s * 1000, TIMEOUT_S * 1000)
        self._meters = MeterProvider([reader], self._resource, shutdown_on_exit=False)
        meter = self._meters.get_meter(SCOPE)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", explicit_bucket_boundaries_advisory=_SECONDS
        )
        self._first_token = meter.create_histogram(
            "gen_ai.server.time_to_first_token", "s", explicit_bucket_boundaries_advisory=_FIRST_TOKEN
        )
        self._per_token = meter.create_histogram(
            "gen_ai.server.time_per_output_token", "s", explicit_bucket_boundaries_advisory=_PER_TOKEN
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", explicit_bucket_boundaries_advisory=_TOKENS
        )

    def trace(self, record: Settled, trace: Trace) -> None:
        """Hand the span of an ended request over."""
        if self._spans is None:
            return
        flags = TraceFlags(TraceFlags.SAMPLED)
        state = TraceState.from_header([trace.state.decode("latin-1")]) if trace.state else None
        start_ns = int(record.started_at * 1e9)
        failed = bool(record.error_type) and not record.error_type.startswith("caller_")
        span = ReadableSpan(
            name=f"{record.operation} {record.model}" if record.model else record.operation,
            context=SpanContext(trace.trace_id, trace.span_id, is_remote=False, trace_flags=flags, trace_state=state),
            parent=SpanContext(trace.trace_id, trace.parent_id, is_remote=True, trace_flags=flags)
            if trace.parent_id
            else None,
            resource=self._resource,
            attributes=_span_attributes(record),
            kind=SpanKind.CLIENT,
            status=Status(StatusCode.ERROR, record.error_type) if failed else Status(StatusCode.UNSET),
            start_time=start_ns,
            end_time=start_ns + int(record.duration_s * 1e9),
            instrumentation_scope=self._scope,
        )
        self._spans.on_end(span)

    def count(self, record: Settled) -> None:
        """Put an ended request into the metrics."""
        attributes = _attributes(record)
        if record.error_type:
            self._duration.record(record.duration_s, {**attributes, "error.type": record.error_type})
        else:
            self._duration.record(record.duration_s, attributes)
        usage = record.usage
        output_tokens = 0 if usage is None else usage.output_tokens
        if record.stream and record.first_byte_s is not None:
            self._first_token.record(record.first_byte_s, attributes)
            if output_tokens > 1:
                self._per_token.record((record.duration_s - record.first_byte_s) / (output_tokens - 1), attributes)
        if usage is not None:
            self._tokens.record(usage.input_tokens, {**attributes, "gen_ai.token.type": "input"})
            self._tokens.record(output_tokens, {**attributes, "gen_ai.token.type": "output"})

    def close(self) -> None:
        """Blocks, for `TIMEOUT_S` each at most."""
        if self._spans is not None:
            self._spans.shutdown()  # type: ignore[no-untyped-call]  # as the SDK has it
        if self._meters is not None:
            self._meters.shutdown(timeout_millis=TIMEOUT_S * 1000)


def _attributes(record: Settled) -> Attributes:
    return {
        "gen_ai.operation.name": record.operation,
        "gen_ai.provider.name": PROVIDERS.get(record.provider, record.provider),
        "gen_ai.request.model": record.model,
    }


def _span_attributes(record: Settled) -> Attributes:
    attributes: Attributes = {"gen_ai.operation.name": record.operation, "gen_ai.request.model": record.model}
    if record.provider:
        attributes["gen_ai.provider.name"] = PROVIDERS.get(record.provider, record.provider)
    if record.upstream_model:
        attributes["gateway.upstream_model"] = record.upstream_model
    if record.stream:
        attributes["gen_ai.request.stream"] = True
        if record.first_byte_s is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = record.first_byte_s
    if record.error_type:
        attributes["error.type"] = record.error_type
    usage = record.usage
    if usage is not None:
        attributes["gen_ai.usage.input_tokens"] = usage.input_tokens
        attributes["gen_ai.usage.output_tokens"] = usage.output_tokens
        if usage.input_cached_tokens:
            attributes["gen_ai.usage.cache_read.input_tokens"] = usage.input_cached_tokens
        if usage.input_cache_write_tokens:
            attributes["gen_ai.usage.cache_creation.input_tokens"] = usage.input_cache_write_tokens
        if usage.output_reasoning_tokens:
            attributes["gen_ai.usage.reasoning.output_tokens"] = usage.output_reasoning_tokens
    return attributes | {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "gateway.request.id": record.id,
        "gateway.account.id": record.account_id,
        "gateway.key.id": record.key_id,
        "gateway.attempts": len(record.attempts),
        "gateway.cost_nanodollars": record.cost_nanos,
    }
