"""Spans and metrics of requests, by OpenTelemetry's conventions for generative AI, over OTLP.

Rules:
- A caller's `traceparent` is taken up, and providers get one that continues it (`forward = false`: they get none).
- Whether a request is traced is decided by its trace id before anything of OpenTelemetry is called; one that is not
  costs some text. Its span is made when the request has ended, off its clock, and exported by a thread.
- Metrics count every request that reached a provider. They are the same as `GET /metrics` has; turn one of them off.
- Nothing that was said is in a span, and no key: who asked is the account's number and the key's public id.

https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import asyncio
from collections.abc import Mapping
from typing import ClassVar, Final
from urllib.parse import urlsplit

import msgspec

from gateway.api import ConfigError, Headers, Offer, Plugin, Request, Settled, UpstreamRequest
from gateway_plugins.tracing import Trace, begin

try:
    from gateway_plugins.otel_export import Exporter
except ModuleNotFoundError as error:  # the SDK is an extra
    if not (error.name or "").startswith("opentelemetry"):
        raise
    Exporter = None  # type: ignore[assignment,misc]  # asked for in configure

NOTE: Final = "otel.trace"


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    endpoint: str = "http://127.0.0.1:4318"
    headers: dict[str, str] = {}
    service: str = "ai-gateway"
    traces: bool = True
    metrics: bool = True
    #: The share of requests that are traced, where no caller has decided.
    sample: float = 1.0
    #: Take a caller's word for whether its trace is kept.
    trust_parent: bool = True
    forward: bool = True
    interval_s: float = 30.0


class OpenTelemetry:
    """The plugin."""

    ID: ClassVar[str] = "otel"
    API: ClassVar[int] = 1

    def configure(self, table: Mapping[str, object]) -> None:
        if Exporter is None:
            raise ConfigError("needs OpenTelemetry's SDK: pip install 'ai-gateway[otel]'")
        if unknown := table.keys() - {*_Table.__struct_fields__}:
            raise ConfigError(f"is not a key of {self.ID}", param=min(unknown))
        try:
            settings = msgspec.convert(dict(table), _Table, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(str(error)) from None
        if not 0 <= settings.sample <= 1:
            raise ConfigError("must be between 0 and 1", param="sample")
        if settings.interval_s <= 0:
            raise ConfigError("must be more than 0", param="interval_s")
        if urlsplit(settings.endpoint).scheme not in ("http", "https"):
            raise ConfigError("must begin with http:// or https://", param="endpoint")
        if not (settings.traces or settings.metrics):
            raise ConfigError("with neither traces nor metrics there is nothing to do")
        self._settings = settings
        self._exporter: Exporter | None = None

    async def start(self) -> None:
        """Begin to export; each worker does so by itself."""
        settings = self._settings
        self._exporter = Exporter(
            endpoint=settings.endpoint.rstrip("/"),
            headers=settings.headers,
            service=settings.service,
            traces=settings.traces,
            metrics=settings.metrics,
            interval_s=settings.interval_s,
        )

    async def stop(self) -> None:
        """Export what is left; that waits for the collector, in a thread."""
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            await asyncio.to_thread(exporter.close)

    async def on_request(self, x: Request) -> bytes | None:
        settings = self._settings
        x.notes[NOTE] = begin(
            x.header(b"traceparent"),
            x.header(b"tracestate"),
            share=settings.sample if settings.traces else 0.0,
            trust_parent=settings.trust_parent and settings.traces,
        )
        return None

    def on_attempt(self, x: Request, offer: Offer, request: UpstreamRequest) -> Headers | None:
        trace = x.notes.get(NOTE)
        if not self._settings.forward or not isinstance(trace, Trace):
            return None
        headers: Headers = [(b"traceparent", trace.header)]
        if trace.state:
            headers.append((b"tracestate", trace.state))
        return headers

    async def on_settled(self, record: Settled) -> None:
        exporter = self._exporter
        if exporter is None:
            return
        trace = record.notes.get(NOTE)
        if isinstance(trace, Trace) and trace.sampled:
            exporter.trace(record, trace)
        if self._settings.metrics and record.provider:
            exporter.count(record)


_: type[Plugin] = OpenTelemetry
