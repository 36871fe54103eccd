"""The plugins that come along, at work in the whole gateway."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.settings import Plugin, Settings
from tests.acceptance.answers import ASK, ASK_STREAM, CHAT, chat_stream, sse, stream
from tests.gateways import PATIENCE_S, RunningGateway
from tests.upstreams import RECEIVE, REPEAT, ReceivedRequest, ScriptedUpstream, answer, play

PERSONAL = b'{"model":"gpt-x", "messages":[{"role":"user","content":"I am jo@example.com"}],"x":1.0}'
TRACE = b"0af7651916cd43dd8448eb211c80319c"
SPAN = b"b7ad6b7169203331"
PARENT = (b"traceparent", b"00-%b-%b-01" % (TRACE, SPAN))


def on(**tables: dict[str, object]) -> Settings:
    return Settings(plugins={name: Plugin(extra=table) for name, table in tables.items()})


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():  # noqa: ASYNC110  another thread, or another server
            await asyncio.sleep(0.02)


# -- redact ----------------------------------------------------------------------------------------------------


async def test_what_is_personal_does_not_leave_and_everything_else_does(stage, server) -> None:
    gateway, upstream = await stage.gateway(
        play(RECEIVE, answer(CHAT), REPEAT), settings=on(redact={}), server=server
    )

    got = await gateway.ask(PERSONAL)

    assert (got.status, got.body) == (200, CHAT)
    assert upstream.requests[0].body == PERSONAL.replace(b"jo@example.com", b"[EMAIL]")
    metrics = await gateway.metrics()
    assert 'gateway_bodies_read_total{plugin="redact",outcome="rewritten"} 1' in metrics
    assert 'gateway_plugin_seconds_count{plugin="redact",hook="on_request"} 1' in metrics


async def test_what_has_nothing_personal_in_it_leaves_as_it_came(stage) -> None:
    gateway, upstream = await stage.gateway(play(RECEIVE, answer(CHAT), REPEAT), settings=on(redact={}))

    await gateway.ask(ASK)

    assert upstream.requests[0].body == ASK


async def test_a_request_may_be_refused_for_it_and_costs_nothing(stage) -> None:
    gateway, upstream = await stage.gateway(
        play(RECEIVE, answer(CHAT), REPEAT), settings=on(redact={"action": "refuse"})
    )

    got = await gateway.ask(PERSONAL)

    assert got.status == 403
    assert (got.error["code"], got.error["message"]) == (
        "personal_data",
        "The request has personal data in it: email.",
    )
    assert upstream.requests == []
    (record,) = await gateway.records(1)
    assert (record.error_type, record.cost_nanos, record.attempts) == ("policy_rejected", 0, 0)


@pytest.mark.parametrize(("table", "status"), [({}, 403), ({"unreadable": "pass"}, 200)])
async def test_what_it_cannot_read_is_refused_or_passed_as_configured(stage, table, status: int) -> None:
    gateway, upstream = await stage.gateway(
        play(RECEIVE, answer(b'{"text":"hi"}'), REPEAT), settings=on(redact=table)
    )
    form = (
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b\r\n'
        b'content-disposition: form-data; name="file"; filename="a.mp3"\r\n\r\nID3\r\n--b--\r\n'
    )

    got = await gateway.ask(
        form, path=b"/v1/audio/transcriptions", headers=[(b"content-type", b"multipart/form-data; boundary=b")]
    )

    assert got.status == status
    assert len(upstream.requests) == (status == 200)


async def test_a_conversation_is_something_it_cannot_read(stage) -> None:
    gateway, upstream = await stage.gateway(play(RECEIVE, answer(CHAT), REPEAT), settings=on(redact={}))
    handshake = [
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    ]

    got = await gateway.ask(method=b"GET", path=b"/v1/realtime?model=gpt-x", headers=handshake)

    assert (got.status, got.error["code"]) == (403, "unreadable_request")
    assert upstream.requests == []


async def test_what_is_counted_in_other_units_is_counted_anew(stage) -> None:
    gateway, upstream = await stage.gateway(
        play(RECEIVE, answer(b"RIFF", headers=[(b"content-type", b"audio/wav")]), REPEAT), settings=on(redact={})
    )
    asked = b'{"model":"tts-1","voice":"alloy","input":"mail jo@example.com"}'

    got = await gateway.ask(asked, path=b"/v1/audio/speech")

    assert (got.status, got.body) == (200, b"RIFF")
    assert upstream.requests[0].body == asked.replace(b"jo@example.com", b"[EMAIL]")


# -- otel ------------------------------------------------------------------------------------------------------


class Collector:
    """What a collector of OTLP got."""

    def __init__(self, received: ScriptedUpstream) -> None:
        self._received = received

    def _at(self, path: bytes) -> list[ReceivedRequest]:
        return [request for request in self._received.requests if request.target == path]

    def spans(self) -> list:
        found = [ExportTraceServiceRequest.FromString(request.body) for request in self._at(b"/v1/traces")]
        return [
            span
            for export in found
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self) -> dict[str, object]:
        found = [ExportMetricsServiceRequest.FromString(request.body) for request in self._at(b"/v1/metrics")]
        return {
            metric.name: metric
            for export in found
            for resource in export.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def attributes(span) -> dict[str, object]:
    values = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        values[each.key] = getattr(each.value, kind)
    return values


async def traced(stage, table: dict[str, object], *asks: tuple[bytes, list[tuple[bytes, bytes]]]):
    """Ask a gateway and stop it, so that everything is exported."""
    upstream = await stage.upstream(play(RECEIVE, answer(CHAT), REPEAT))
    collecting = await stage.upstream(play(RECEIVE, answer(b""), REPEAT))
    settings = on(otel={"endpoint": collecting.url, **table})
    async with RunningGateway(stage.stores, providers={"local": upstream}, settings=settings) as gateway:
        answers = [await gateway.ask(body, headers=headers) for body, headers in asks]
        await gateway.records(len(asks))
    return answers, upstream, Collector(collecting)


async def test_a_request_is_a_span_within_its_callers_trace(stage) -> None:
    (got,), upstream, collector = await traced(stage, {}, (ASK, [PARENT, (b"tracestate", b"a=1")]))

    (span,) = collector.spans()
    assert span.name == "chat gpt-x"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE.decode(), SPAN.decode())
    assert span.kind == 3  # CLIENT
    assert span.end_time_unix_nano > span.start_time_unix_nano > 1_600_000_000 * 10**9
    facts = attributes(span)
    assert facts["gen_ai.operation.name"] == "chat"
    assert facts["gen_ai.provider.name"] == "local"
    assert (facts["gen_ai.usage.input_tokens"], facts["gen_ai.usage.output_tokens"]) == (9, 2)
    assert facts["http.response.status_code"] == 200
    assert facts["gateway.request.id"] == got.header(b"x-gateway-request-id").decode()
    assert "Hi" not in str(span)
    sent = upstream.requests[0]
    assert sent.header(b"traceparent") == b"00-%b-%b-01" % (TRACE, span.span_id.hex().encode())
    assert sent.header(b"tracestate") == b"a=1"


async def test_metrics_have_the_names_of_the_convention(stage) -> None:
    _, _, collector = await traced(stage, {"traces": False}, (ASK, []))

    metrics = collector.metrics()
    assert {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"} <= metrics.keys()
    (point,) = metrics["gen_ai.client.operation.duration"].histogram.data_points
    assert (point.count, list(point.explicit_bounds)[:3]) == (1, [0.01, 0.02, 0.04])
    tokens = {
        attributes(each)["gen_ai.token.type"]: each.sum
        for each in metrics["gen_ai.client.token.usage"].histogram.data_points
    }
    assert tokens == {"input": 9, "output": 2}
    assert collector.spans() == []


async def test_what_is_not_sampled_is_told_so_and_has_no_span(stage) -> None:
    not_kept = (b"traceparent", b"00-%b-%b-00" % (TRACE, SPAN))

    _, upstream, collector = await traced(stage, {"sample": 0.0}, (ASK, []), (ASK, [not_kept]), (ASK, [PARENT]))

    assert [request.header(b"traceparent")[-3:] for request in upstream.requests] == [b"-00", b"-00", b"-01"]
    assert [span.parent_span_id.hex() for span in collector.spans()] == [SPAN.decode()]


async def test_providers_hear_nothing_of_a_trace_where_that_is_configured(stage) -> None:
    _, upstream, _ = await traced(stage, {"forward": False}, (ASK, [PARENT]))

    assert upstream.requests[0].header(b"traceparent") is None


async def test_a_refusal_is_a_span_with_its_error(stage) -> None:
    upstream = await stage.upstream(play(RECEIVE, answer(b"{}", status=500), REPEAT))
    collecting = await stage.upstream(play(RECEIVE, answer(b""), REPEAT))
    settings = on(otel={"endpoint": collecting.url, "metrics": False})
    async with RunningGateway(stage.stores, providers={"local": upstream}, settings=settings) as gateway:
        await gateway.ask(ASK)
        await gateway.records(1)

    (span,) = Collector(collecting).spans()
    assert span.status.code == 2
    assert attributes(span)["error.type"].startswith("provider_")


# -- request_log -----------------------------------------------------------------------------------------------


async def test_a_line_for_each_request_whatever_became_of_it(stage, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    gateway, _ = await stage.gateway(
        play(RECEIVE, answer(CHAT), REPEAT), settings=on(request_log={"file": str(file), "flush_s": 0.05})
    )

    await gateway.ask(ASK)
    await gateway.ask(ASK, key="gw_live_wrong")

    await until(lambda: file.exists() and len(file.read_bytes().splitlines()) == 2)
    lines = {line["status"]: line for line in map(msgspec.json.decode, file.read_bytes().splitlines())}
    assert lines[200]["usage"] == {
        "input_tokens": 9,
        "output_tokens": 2,
        "service_tier": "default",
        "source": "reported",
    }
    assert (lines[200]["key_id"], lines[200]["attempts"]) == (gateway.key_id, [["local", "ok"]])
    assert lines[401]["error_type"] == "caller_unauthenticated"
    assert gateway.key not in file.read_text()


async def test_bodies_in_it_are_as_providers_get_to_see_them(stage, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    tables = {"request_log": {"file": str(file), "flush_s": 0.05, "bodies": True}, "redact": {}}
    gateway, _ = await stage.gateway(play(RECEIVE, answer(CHAT), REPEAT), settings=on(**tables))

    await gateway.ask(PERSONAL)

    await until(lambda: file.exists() and file.read_bytes())
    (line,) = map(msgspec.json.decode, file.read_bytes().splitlines())
    assert line["body"].encode() == PERSONAL.replace(b"jo@example.com", b"[EMAIL]")
    assert line["tags"] == {"redacted": "email=1"}


async def test_a_sink_that_is_away_fails_no_request(stage, tmp_path: Path) -> None:
    settings = on(request_log={"file": str(tmp_path / "no" / "log"), "flush_s": 0.01})
    gateway, _ = await stage.gateway(play(RECEIVE, answer(CHAT), REPEAT), settings=settings)

    assert [(await gateway.ask(ASK)).status for _ in range(3)] == [200] * 3


# -- all of them -----------------------------------------------------------------------------------------------


async def test_streams_pass_untouched_with_all_of_them_on(stage, server, tmp_path: Path) -> None:
    collecting = await stage.upstream(play(RECEIVE, answer(b""), REPEAT))
    tables = {
        "otel": {"endpoint": collecting.url},
        "redact": {},
        "request_log": {"file": str(tmp_path / "log"), "bodies": True},
    }
    body = sse(*chat_stream("Hel", "lo", usage=False))
    gateway, _ = await stage.gateway(play(RECEIVE, stream(body), REPEAT), settings=on(**tables), server=server)

    got = await gateway.ask(ASK_STREAM)

    assert (got.status, got.body) == (200, body)
