"""Credentials are fetched before the first request, and again in time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from gateway.api import Origin, ResponseHead, UpstreamCredentials, UpstreamRequest
from gateway.infra.clock import SystemClock
from gateway.settings import Upstream
from gateway.upstream.client import UpstreamClient
from gateway.upstream.renewal import Renewals
from tests.upstreams import CLOSE, HANG, RECEIVE, REPEAT, Script, ScriptedUpstream, Until, answer, play

PATIENCE_S = 20.0


class Renewed:
    """An adapter as far as its credential goes."""

    def __init__(self, origin: Origin, *, pause_s: float = 3600.0) -> None:
        self.origin = origin
        self.pause_s = pause_s
        self.bodies: list[bytes] = []
        self.times: list[float] = []
        self.came = asyncio.Event()

    def renewal(self, now_s: float) -> UpstreamRequest | None:
        self.times.append(now_s)
        return UpstreamRequest(method=b"POST", origin=self.origin, target=b"/token", headers=[], body=b"please")

    def renewed(self, head: ResponseHead, body: bytes) -> float:
        if head.status != 200:
            raise UpstreamCredentials(detail=f"status {head.status}")
        self.bodies.append(body)
        self.came.set()
        return self.pause_s


class Lasting:
    """An adapter whose credential does not run out."""

    def renewal(self, now_s: float) -> UpstreamRequest | None:
        return None

    def renewed(self, head: ResponseHead, body: bytes) -> float:
        raise AssertionError


@contextlib.asynccontextmanager
async def renewals(**options: float) -> AsyncIterator[Renewals]:
    client = UpstreamClient(Upstream())
    found = Renewals(client, clock=SystemClock(), **options)
    try:
        yield found
    finally:
        await found.stop()
        await client.close()


def same(*parts: bytes) -> Script:
    return play(RECEIVE, *parts, REPEAT)


async def test_the_first_is_here_when_the_start_is_over() -> None:
    async with ScriptedUpstream(same(answer(b"one"))) as server, renewals() as found:
        adapter = Renewed(server.origin)

        await found.start([("a", adapter), ("b", Lasting()), ("c", object())])

        assert adapter.bodies == [b"one"]
        assert server.requests[0].body == b"please"
        assert adapter.times[0] > 1_700_000_000


async def test_it_is_renewed_when_it_says_so() -> None:
    async with ScriptedUpstream(same(answer(b"one"))) as server, renewals(renew_s_min=0.0) as found:
        adapter = Renewed(server.origin, pause_s=0.01)
        await found.start([("a", adapter)])
        async with asyncio.timeout(PATIENCE_S):
            await server.received(3)

        # Never two at once: each answer was there before the next was asked for.
        assert len(adapter.bodies) >= len(server.requests) - 1


async def test_a_failure_is_tried_again_and_does_not_keep_the_start(caplog: pytest.LogCaptureFixture) -> None:
    script = play(RECEIVE, answer(b"secret", status=503), RECEIVE, answer(b"two"), REPEAT)
    async with ScriptedUpstream(script) as server, renewals() as found:
        adapter = Renewed(server.origin)
        await found.start([("vertex", adapter)])
        assert adapter.bodies == []
        async with asyncio.timeout(PATIENCE_S):
            await adapter.came.wait()

    assert adapter.bodies == [b"two"]
    assert "provider vertex has no new credential: status 503" in caplog.text
    assert "secret" not in caplog.text


async def test_a_server_that_is_away_is_a_failure_too() -> None:
    async with ScriptedUpstream(play(CLOSE)) as server, renewals() as found:
        adapter = Renewed(server.origin)
        async with asyncio.timeout(PATIENCE_S):
            await found.start([("a", adapter)])

        assert adapter.bodies == []


async def test_a_slow_one_does_not_keep_the_start_for_long() -> None:
    late = asyncio.Event()
    async with (
        ScriptedUpstream(play(RECEIVE, Until(late), answer(b"late"), HANG)) as server,
        renewals(first_wait_s=0.05) as found,
    ):
        adapter = Renewed(server.origin)
        await found.start([("a", adapter)])
        assert adapter.bodies == []
        late.set()
        async with asyncio.timeout(PATIENCE_S):
            await adapter.came.wait()

        assert adapter.bodies == [b"late"]
