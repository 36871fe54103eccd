"""The engine against the benchmarks' own provider and scripted servers, on real sockets for tenths of a second."""

import asyncio

import pytest

from benchmarks import upstream
from gateway.infra.clock import SystemClock
from gateway.loadtest.engine import PAUSE_S, Engine, Plan
from gateway.loadtest.origin import Origin, Unreachable
from gateway.loadtest.result import Result
from tests.gateway.loadtest.provider import provider
from tests.upstreams import HANG, RECEIVE, Pause, ScriptedUpstream, answer, play

CLOCK = SystemClock()


def plan(
    port: int,
    *,
    body: bytes = b"{}",
    streams: int = 4,
    rate: float | None = None,
    window_s: float = 0.3,
    warmup_s: float = 0.0,
    grace_s: float = 5.0,
    timeout_s: float = 10.0,
) -> Plan:
    origin = Origin(f"http://127.0.0.1:{port}/v1/chat/completions")
    return Plan(
        origin=origin,
        request=origin.render(body),
        streams=streams,
        rate=rate,
        window_s=window_s,
        warmup_s=warmup_s,
        grace_s=grace_s,
        timeout_s=timeout_s,
        ramp_s=0.0,
    )


async def measured(of: Plan) -> Result:
    return await Engine(of, clock=CLOCK).run()


async def test_a_closed_loop_counts_every_answer() -> None:
    async with provider() as port:
        result = await measured(plan(port, body=b'{"model":"bench-json"}'))

    assert result.completed > 0
    assert (result.failed, result.unsent, result.events) == (0, 0, 0)
    assert result.latency.count >= result.completed
    assert result.received_bytes == result.completed * len(upstream.COMPLETION)


async def test_every_event_of_a_burst_is_seen() -> None:
    async with provider() as port:
        result = await measured(plan(port, body=b'{"model":"bench-burst-50"}', warmup_s=0.1, grace_s=0.0))

    # Streams that the edges of the window cut bring events without completing in it, and the other way round.
    assert abs(result.events - 50 * result.completed) <= 50 * 4
    assert result.first_token.count > 0
    assert result.between_events.count > 0


async def test_an_open_loop_starts_what_is_due_and_no_more() -> None:
    async with provider() as port:
        result = await measured(plan(port, body=b'{"model":"bench-json"}', streams=50, rate=100.0, window_s=0.5))

    assert abs(result.latency.count + result.unsent - 100 * result.window_s) < 5
    assert result.loop == "open"


async def test_latency_counts_from_when_a_request_was_due() -> None:
    """The server answers the first request after 0.5 s and the others at once; with one stream they all wait."""

    stall = play(RECEIVE, Pause(0.5), answer(b"{}"), *[RECEIVE, answer(b"{}")] * 500)

    async with ScriptedUpstream(stall) as server:
        result = await measured(plan(server.origin.port, streams=1, rate=100.0, window_s=0.8))

    # 50 requests were due while the server stood still: half of the wait is the median of those.
    assert result.latency.count > 30
    assert result.latency.p50_ms > 100
    assert result.start_delay.max_ms > 400


async def test_what_could_not_start_is_told() -> None:
    async with ScriptedUpstream(play(HANG)) as server:
        result = await measured(plan(server.origin.port, streams=2, rate=200.0, grace_s=0.0))

    assert result.unfinished == 2
    assert result.unsent >= 20
    assert result.latency.count == 0


async def test_a_silent_server_is_a_timeout() -> None:
    async with ScriptedUpstream(play(HANG)) as server:
        result = await measured(plan(server.origin.port, streams=1, timeout_s=0.05, window_s=0.6))

    assert list(result.errors) == ["timeout: nothing for 0.05 s"]


async def test_errors_are_counted_by_kind_with_an_example() -> None:
    refusal = b'HTTP/1.1 429 Too Many Requests\r\ncontent-length: 17\r\n\r\n{"error":"limit"}'
    half = b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\nhalf"

    async with ScriptedUpstream(play(RECEIVE, refusal, RECEIVE, half)) as server:
        result = await measured(plan(server.origin.port, streams=1))

    assert set(result.errors) == {"HTTP 429", "connection closed early"}
    assert result.error_samples["HTTP 429"].startswith('{"error":"limit"}')
    assert result.completed == 0


async def test_an_error_event_fails_a_stream_that_ends_well() -> None:
    body = b'data: {"choices":[]}\n\ndata: {"error":{"message":"gone"}}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body)

    async with ScriptedUpstream(play(RECEIVE, head + body, HANG)) as server:
        result = await measured(plan(server.origin.port, streams=1, grace_s=0.0))

    assert result.errors["error event in the stream"] == 1


async def test_a_dead_server_is_not_hammered() -> None:
    async with ScriptedUpstream(play(RECEIVE)) as server:
        result = await measured(plan(server.origin.port, streams=2, window_s=0.5))

    assert result.failed <= 2 * (result.window_s / PAUSE_S + 1)
    assert result.completed == 0


async def test_warm_up_is_not_counted() -> None:
    async with provider() as port:
        engine = Engine(plan(port, body=b'{"model":"bench-paced-3"}', streams=2, warmup_s=0.3), clock=CLOCK)
        result = await engine.run()

    assert result.connect.count == 0
    assert result.completed > 0


async def test_stop_ends_the_run_and_keeps_what_was_measured() -> None:
    async with provider() as port:
        of = plan(port, body=b'{"model":"bench-json"}', window_s=3600.0, grace_s=3600.0)
        answered = asyncio.Event()
        engine = Engine(of, clock=CLOCK, look=lambda *_: answered.set())
        run = asyncio.get_running_loop().create_task(engine.run())
        await answered.wait()

        engine.stop()
        result = await run

    assert result.received_bytes >= len(upstream.COMPLETION)


async def test_nobody_listening_is_an_error_of_its_own() -> None:
    async with ScriptedUpstream(play(HANG)) as server:
        of = plan(server.origin.port)

    with pytest.raises(Unreachable, match="connection refused"):
        await measured(of)


async def test_the_look_sees_the_body_and_the_time() -> None:
    seen: list[tuple[bytes, float]] = []
    async with provider() as port:
        of = plan(port, body=b'{"model":"bench-paced-1000"}', streams=3, grace_s=0.0)
        await Engine(of, clock=CLOCK, look=lambda piece, now_s: seen.append((piece, now_s))).run()

    delays = [
        now_s - int(piece[at + 5 : at + 24]) / 1e9 for piece, now_s in seen if (at := piece.find(b'"t":"')) >= 0
    ]
    assert len(delays) > 10
    assert all(0 <= delay < 5 for delay in delays)
